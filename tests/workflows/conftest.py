"""Workflows that run: act on a copy of the tree, actions from stubs, AWS emulated, the test agent in Batch's place."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, ended
from tests.jobs.conftest import Deployed
from tests.jobs.conftest import deployed as deployed  # a fixture

STUBS = Path(__file__).parent / "stubs"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
ACTIONS = sorted((ROOT / ".github/actions").glob("*/action.yml"))
LEFT_BEHIND = (".git", ".venv", "out", "build", "dist", "__pycache__", "*.egg-info", ".*_cache", "tests", "benchmarks")
TOKEN = "token-of-the-job"
# In place of the action that installs: what is installed here already.
SETUP = """\
name: Set up pagefleet
inputs:
  install: { default: run }
  python-version: { default: "3" }
runs:
  using: composite
  steps:
    - run: echo "$TEST_BIN" >> "$GITHUB_PATH"
      shell: bash
"""


@dataclass
class Ran:
    """A workflow that has ended."""

    jobs: dict[str, str] = field(default_factory=dict)  # results by job
    steps: dict[str, str] = field(default_factory=dict)  # results by name, those of composite actions too
    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    log: str = ""  # all that was said
    artifacts: Path = Path()

    def artifact(self, name: str) -> set[str]:
        """The files of an artifact."""
        folder = self.artifacts / name
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@dataclass
class Act:
    """Runs workflows of a repository, with AWS as `environment` has it."""

    repository: Path
    home: Path
    environment: dict[str, str]
    variables: dict[str, str]

    def run(self, workflow: str, event: str = "workflow_dispatch", **payload: Any) -> Ran:
        """Until it has ended. `payload` is the event's; the inputs of a form are `inputs`."""
        artifacts = self.home / "artifacts"
        shutil.rmtree(artifacts, ignore_errors=True)
        artifacts.mkdir(parents=True)
        (self.home / "event.json").write_text(json.dumps(payload))
        given = self.environment | {
            "TEST_ARTIFACTS": str(artifacts),
            "TEST_BIN": str(Path(sys.executable).parent),
            "TEST_PYTHON": sys.executable,
            "TEST_CALLS": str(self.home / "calls.jsonl"),
            "TEST_REPOSITORY": str(self.repository),
            "TEST_STUBS": str(STUBS),
            "TEST_PULUMI": str(STUBS / "pulumi/bin"),
            "PAGEFLEET_INTERVAL": "0.1",
        }
        command = [
            *(str(Path(sys.executable).parent / "act"), event, "--json", "--pull=false", "--action-offline-mode"),
            *("-W", f".github/workflows/{workflow}.yml", "-C", str(self.repository)),
            *("-e", str(self.home / "event.json"), "-P", "ubuntu-24.04=-self-hosted"),
            *("--container-daemon-socket", "-", "--no-cache-server"),
            *(f"--local-repository={used}={STUBS / used.partition('@')[0]}" for used in sorted(remote_actions())),
            f"--secret=GITHUB_TOKEN={TOKEN}",
            *(f"--var={name}={value}" for name, value in self.variables.items()),
            *(f"--env={name}={value}" for name, value in given.items()),
        ]
        clean = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        done = ended(subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        ran = _read(done.stdout + done.stderr, artifacts)
        assert not [secret for secret in _secrets() if secret in ran.log + ran.summary]
        return ran

    @property
    def calls(self) -> list[tuple[str, dict[str, str]]]:
        """Which of the actions that only tell of themselves were used, with what."""
        lines = (self.home / "calls.jsonl").read_text().splitlines()
        return [(call["action"], call["with"]) for call in map(json.loads, lines)]


def remote_actions() -> set[str]:
    """All `owner/name@commit` that workflows and actions use."""
    text = "".join(path.read_text() for path in (*WORKFLOWS, *ACTIONS))
    return set(re.findall(r"uses: (\S+@\S+)", text))


def load(path: Path) -> dict[str, Any]:
    """YAML in which `on` is a word, as GitHub reads it."""
    loaded: dict[str, Any] = yaml.load(path.read_text(), Loader=_Loader)
    return loaded


class _Loader(yaml.SafeLoader):
    pass


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, as a checkout of its main branch would be; only the action that installs is another."""
    folder = tmp_path_factory.mktemp("checkout") / "pagefleet"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    (folder / ".github/actions/setup/action.yml").write_text(SETUP)
    for command in (
        ("init", "--quiet", "--initial-branch=main"),
        ("remote", "add", "origin", "https://github.com/acme/pagefleet.git"),
        ("add", "--all"),
        ("-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "--message=tree"),
    ):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def act(repository: Path, tmp_path: Path, deployed: Deployed) -> Act:
    """On the emulator with a deployed stack; credentials come from the roles alone."""
    everything = [{"Effect": "Allow", "Action": "*", "Resource": "*"}]
    roles = {name: make_role(deployed, name, everything) for name in ("preview", "deploy", "operator")}
    return Act(
        repository,
        tmp_path / "act",
        {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"], "AWS_EC2_METADATA_DISABLED": "true"},
        {
            "AWS_REGION": "us-east-1",
            "PULUMI_BACKEND_URL": "s3://state",
            **{f"AWS_{name.upper()}_ROLE": arn for name, arn in roles.items()},
        },
    )


def make_role(deployed: Deployed, name: str, statements: list[dict[str, Any]]) -> str:
    iam = deployed.client("iam")
    document = json.dumps({"Version": "2012-10-17", "Statement": statements})
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=document)
    return str(role)


@pytest.fixture
def batch(deployed: Deployed) -> Iterator[Callable[[], None]]:
    """Jobs are run as they are submitted, once this was called; until then they wait."""
    submitted: queue.Queue[str | None] = queue.Queue()
    deployed.jobs.on_submit = submitted.put

    def work() -> None:
        while job := submitted.get():
            deployed.agent.run(job)

    thread = threading.Thread(target=work)

    def start() -> None:
        thread.start()

    yield start
    submitted.put(None)
    if thread.ident is not None:
        thread.join()


def _secrets() -> list[str]:
    """The job's token, and those of all credentials that the emulator has given for roles."""
    from moto.sts.models import sts_backends

    given = [role for account in sts_backends.values() for one in account.values() for role in one.assumed_roles]
    return [TOKEN, *(secret for role in given for secret in (role.secret_access_key, role.session_token))]


def _read(said: str, artifacts: Path) -> Ran:
    ran = Ran(log=said, artifacts=artifacts)
    plain = []
    for line in said.splitlines():
        try:
            entry: Mapping[str, Any] = json.loads(line)
        except ValueError:
            plain.append(line)
            continue
        plain.append(str(entry.get("msg", "")).rstrip("\n"))
        if "jobResult" in entry:
            ran.jobs[entry["jobID"]] = entry["jobResult"]
        if "stepResult" in entry:
            ran.steps[entry["step"]] = entry["stepResult"]
        if entry.get("command") == "summary":
            ran.summary += entry["content"]
        if entry.get("command") == "set-output":
            ran.outputs[entry["name"]] = entry["arg"]
    ran.log = "\n".join(plain)
    return ran
