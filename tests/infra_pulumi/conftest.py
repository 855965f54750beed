"""Runs the Pulumi program without a cloud and keeps what it declared."""

from __future__ import annotations

import asyncio
import contextvars
import json
import runpy
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
import pulumi.runtime
import pulumi.runtime.mocks
import pytest
import yaml
from pulumi.runtime.stack import run_pulumi_func

ROOT = Path(__file__).parent.parent.parent
ACCOUNT = "123456789012"
GITHUB = {
    "repository": "octo-org/pagefleet",
    "ownerId": 583231,
    "repositoryId": 1296269,
    "stateBucket": "octo-state",
}
SECRET = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:upstage-AbCdEf"


@dataclass(frozen=True)
class Declared:
    """A resource as the program declared it; keys are Pulumi's camelCase."""

    type: str
    name: str
    inputs: Mapping[str, Any]
    physical: str
    arn: str

    def document(self, key: str) -> Any:
        """An input that holds JSON."""
        return json.loads(self.inputs[key])


class Deployment(pulumi.runtime.Mocks):
    """What one run of the program declared."""

    def __init__(self) -> None:
        self.resources: list[Declared] = []
        self.protected: set[tuple[str, str]] = set()  # types and names

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        name = args.inputs.get("name") or f"{args.name}-0a1b2c3"
        arn = _arn(args.typ.split(":")[1], name, args.inputs)
        self.resources.append(Declared(args.typ, args.name, args.inputs, name, arn))
        made = {
            "arn": arn,
            "name": name,
            "bucket": name,
            "repositoryUrl": f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/{name}",
            "ecsClusterArn": f"arn:aws:ecs:us-east-1:{ACCOUNT}:cluster/AWSBatch-{name}",
            "allocationId": "eipalloc-0a1b2c3",
            "latestVersion": 7,
        }
        return name, {**made, **args.inputs}

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[Any, Any]:
        answers: dict[str, dict[str, Any]] = {
            "aws:index/getCallerIdentity:getCallerIdentity": {"accountId": ACCOUNT},
            "aws:index/getPartition:getPartition": {"partition": "aws"},
            "aws:index/getAvailabilityZones:getAvailabilityZones": {
                "names": [f"us-east-1{letter}" for letter in "abcdef"]
            },
        }
        return answers[args.token]

    def all(self, kind: str) -> list[Declared]:
        """All of a type, such as `s3/bucket`; there must be some."""
        found = [declared for declared in self.resources if declared.type.split(":")[1] == kind]
        assert found, f"the program declares no {kind}"
        return found

    def count(self, kind: str) -> int:
        return sum(declared.type.split(":")[1] == kind for declared in self.resources)

    def one(self, kind: str, ending: str = "") -> Declared:
        (found,) = [declared for declared in self.all(kind) if declared.name.endswith(ending)]
        return found

    def statements(self, role: str) -> list[dict[str, Any]]:
        """What a role is allowed by the policy inside it."""
        return list(self.one("iam/rolePolicy", f"-{role}").document("policy")["Statement"])

    def allowed(self, role: str) -> dict[str, list[str]]:
        """Resources by action."""
        resources: dict[str, list[str]] = {}
        for statement in self.statements(role):
            assert statement["Effect"] == "Allow"
            for action in statement["Action"]:
                resources.setdefault(action, []).extend(statement["Resource"])
        return resources

    @property
    def description(self) -> Any:
        return self.one("ssm/parameter").document("insecureValue")


class Monitor(pulumi.runtime.mocks.MockMonitor):
    """Tells the deployment what mocks aren't told."""

    def RegisterResource(self, request: Any) -> Any:
        if request.protect:
            self.mocks.protected.add((request.type, request.name))
        return super().RegisterResource(request)


def _arn(kind: str, name: str, inputs: Mapping[str, Any]) -> str:
    """As AWS would make it of what a policy may name; of the rest, something that looks like one."""
    service, _, thing = kind.partition("/")
    path = f"{inputs.get('path', '/')}{name}"
    known = {
        "s3/bucket": f"s3:::{name}",
        "iam/role": f"iam::{ACCOUNT}:role{path}",
        "iam/policy": f"iam::{ACCOUNT}:policy{path}",
        "iam/openIdConnectProvider": f"iam::{ACCOUNT}:oidc-provider/{inputs.get('url', '').removeprefix('https://')}",
        "batch/jobQueue": f"batch:us-east-1:{ACCOUNT}:job-queue/{name}",
        "batch/jobDefinition": f"batch:us-east-1:{ACCOUNT}:job-definition/{name}:1",
        "cloudwatch/logGroup": f"logs:us-east-1:{ACCOUNT}:log-group:{name}",
        "ssm/parameter": f"ssm:us-east-1:{ACCOUNT}:parameter{name}",
    }
    return "arn:aws:" + known.get(kind, f"{service}:us-east-1:{ACCOUNT}:{thing}/{name}")


Deploy = Callable[..., Deployment]


def stack_file(stack: str) -> dict[str, Any]:
    text = (ROOT / f"Pulumi.{stack}.yaml").read_text()
    return dict(yaml.safe_load(text)["config"])


def during(stack: str, config: Mapping[str, Any], act: Callable[[], object], mocks: Deployment | None = None) -> None:
    """Has Pulumi believe that this stack is being deployed while `act` runs. Keys without a colon are ours.

    In a context and event loops of its own: Pulumi keeps the stack it works on in context variables, makes a loop in
    each of its threads, and leaves them open.
    """
    named = {key if ":" in key else f"pagefleet:{key}": value for key, value in config.items()}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in named.items()}
    loops: list[asyncio.AbstractEventLoop] = []

    def prepare() -> asyncio.AbstractEventLoop:
        loops.append(asyncio.new_event_loop())
        asyncio.set_event_loop(loops[-1])
        return loops[-1]

    def run() -> None:
        path = list(sys.path)
        loop = prepare()
        loop.set_default_executor(ThreadPoolExecutor(4, initializer=prepare))
        try:
            asked = mocks or Deployment()
            pulumi.runtime.set_mocks(asked, project="pagefleet", stack=stack, preview=False, monitor=Monitor(asked))
            pulumi.runtime.set_all_config(texts)
            loop.run_until_complete(run_pulumi_func(lambda: act() and None))
        finally:
            asyncio.set_event_loop(None)
            loop.run_until_complete(loop.shutdown_default_executor())
            for each in loops:
                each.close()
            sys.path[:] = path

    contextvars.copy_context().run(run)


@pytest.fixture(scope="session")
def deploy() -> Deploy:
    """`deploy("dev", network={...})`: the stack's own configuration with these sections in place of its."""
    done: dict[str, Deployment] = {}

    def run(stack: str = "dev", **sections: Any) -> Deployment:
        key = json.dumps([stack, sections], sort_keys=True)
        if key not in done:
            done[key] = Deployment()
            program = str(ROOT / "infra_pulumi")
            during(
                stack,
                {**stack_file(stack), **sections},
                lambda: runpy.run_path(program, run_name="__main__"),
                done[key],
            )
        return done[key]

    return run
