"""What can be told of a workflow without running it: pinned, with few rights, and no shell sees what a person typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra_pulumi.github import OPERATOR_HOURS
from jobs.dispatch import MAX_WAIT
from tests.conftest import ROOT
from tests.workflows.conftest import ACTIONS, STUBS, WORKFLOWS, load, remote_actions

ALL = [*WORKFLOWS, *ACTIONS]
JOBS = [(path.stem, name) for path in WORKFLOWS for name in load(path)["jobs"]]
PUBLISHING = ("deploy",)
BIN = Path(sys.executable).parent


def named(path: Path) -> str:
    return path.parent.name if path.name == "action.yml" else path.stem


def steps(path: Path) -> list[dict[str, Any]]:
    definition = load(path)
    if "runs" in definition:
        return list(definition["runs"]["steps"])
    return [step for job in definition["jobs"].values() for step in job["steps"]]


def job_of(workflow: str, job: str) -> dict[str, Any]:
    found: dict[str, Any] = load(ROOT / f".github/workflows/{workflow}.yml")["jobs"][job]
    return found


def test_all_of_them_are_there() -> None:
    wanted = {"ci", "preview", "deploy", "ocr", "collect", "resume", "drift", "destroy"}
    assert {path.stem for path in WORKFLOWS} == wanted


@pytest.mark.parametrize("path", ALL, ids=named)
def test_actions_are_pinned_to_a_commit_whose_version_is_told(path: Path) -> None:
    for line in re.findall(r"uses: (.*)", path.read_text()):
        if not line.startswith("./.github/actions/"):
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_one_version_of_an_action_is_used_and_each_has_its_stand_in() -> None:
    used = [reference.partition("@")[0] for reference in remote_actions()]
    assert len(used) == len(set(used))
    for name in set(used) - {"actions/setup-python"}:  # of the one action that isn't run as it is
        inputs = set(load(STUBS / name / "action.yml").get("inputs", {}))
        given = {key for path in ALL for step in steps(path) if step.get("uses", "").startswith(f"{name}@")
                 for key in step.get("with", {})}  # fmt: skip
        assert given <= inputs, name


@pytest.mark.parametrize("path", WORKFLOWS, ids=named)
def test_nothing_is_allowed_but_what_a_job_asks_for(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {}
    assert "pull_request_target" not in workflow["on"]
    text = path.read_text()
    assert "secrets." not in text
    for line in re.findall(r"^      [a-z-]+: (?:read|write).*$", text, re.M):
        assert " # " in line, f"{line.strip()} does not say what for"


@pytest.mark.parametrize(("workflow", "job"), JOBS)
def test_a_job_ends_some_time_and_keeps_no_token(workflow: str, job: str) -> None:
    definition = job_of(workflow, job)
    assert 0 < definition["timeout-minutes"] <= 360
    rights = definition.get("permissions", {})
    checkouts = [step for step in definition["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] == "false" for step in checkouts)
    if rights.get("pull-requests") == "write":
        assert checkouts[0]["with"]["ref"] == "${{ github.event.pull_request.base.sha }}"
        assert "id-token" not in rights


@pytest.mark.parametrize("path", ALL, ids=named)
def test_a_step_is_one_command_and_what_comes_from_outside_is_in_its_environment(path: Path) -> None:
    for step in steps(path):
        if "run" in step:
            assert "${{" not in step["run"], step["run"]
            assert "\n" not in step["run"].strip(), step["run"]
            assert not re.search(r"[|;&`]|\$\(", step["run"]), step["run"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=named)
def test_no_change_of_a_stack_is_ever_cancelled(path: Path) -> None:
    workflow = load(path)
    groups = [workflow.get("concurrency"), *(job.get("concurrency") for job in workflow["jobs"].values())]
    groups = [group for group in groups if group]
    assert groups
    changes = path.stem in ("deploy", "destroy")  # what else waits in their group would push out one that waits
    assert all(group["group"].startswith("pulumi-") == changes for group in groups)
    for group in groups:
        assert group["cancel-in-progress"] == "false" or path.stem in ("ci", "preview")


@pytest.mark.parametrize("workflow", PUBLISHING)
def test_what_publishes_uses_no_cache_that_others_may_write(workflow: str) -> None:
    text = (ROOT / f".github/workflows/{workflow}.yml").read_text()
    text += "".join(path.read_text() for path in ACTIONS)
    assert "actions/cache" not in text
    assert not re.search(r"^\s+cache: (pip|true)", text, re.M)
    assert "type=gha" not in text


def test_waiting_fits_the_job_and_the_job_fits_the_credentials() -> None:
    for workflow in ("ocr", "resume"):
        (definition,) = load(ROOT / f".github/workflows/{workflow}.yml")["jobs"].values()
        (seconds,) = (step["with"]["seconds"] for step in definition["steps"] if "seconds" in step.get("with", {}))
        assert 60 * MAX_WAIT < 60 * definition["timeout-minutes"] < int(seconds) <= 3600 * OPERATOR_HOURS


def test_the_pulumi_cli_is_that_of_the_program() -> None:
    version = (ROOT / ".github/pulumi-version").read_text().strip()
    assert f"\npulumi=={version} " in (ROOT / "requirements/infra.txt").read_text()


def test_new_versions_wait_before_they_are_proposed() -> None:
    for update in load(ROOT / ".github/dependabot.yml")["updates"]:
        assert int(update["cooldown"]["default-days"]) >= 7


@pytest.mark.parametrize(
    "command",
    [
        ["actionlint"],
        ["zizmor", "--quiet", "--offline", "--persona", "pedantic", "--config", ".github/zizmor.yml", ".github"],
    ],
    ids=["actionlint", "zizmor"],
)
def test_linters_of_workflows_find_nothing(command: list[str]) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
