"""A deployed stack on the emulator: what the Pulumi program makes, as far as the commands see it."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.aws import Aws
from tests.agent import Agent, HeldJobs
from tests.conftest import PATIENCE, draw

RULES = [
    {"onStatusReason": "Host EC2*", "action": "RETRY"},
    {"onReason": "CannotPullContainerError*", "action": "RETRY"},
    {"onExitCode": "1*", "action": "RETRY"},
    {"onExitCode": "75", "action": "RETRY"},
    {"onReason": "*", "action": "EXIT"},
]
LOG_GROUP = "/pagefleet/dev"
REPOSITORY = "123456789012.dkr.ecr.us-east-1.amazonaws.com/pagefleet-dev"


@dataclass
class Deployed:
    """Clients of a stack `dev`, its description, and the agent that reads its jobs."""

    client: Callable[[str], Any]
    description: dict[str, Any]
    agent: Agent
    jobs: HeldJobs
    aws: Aws

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def publish(self) -> None:
        """Writes the description anew."""
        value = json.dumps(self.description)
        self.client("ssm").put_parameter(Name="/pagefleet/dev", Value=value, Type="String", Overwrite=True)

    def upload(self, tmp_path: Path, pictures: dict[str, str]) -> None:
        """Pictures into the inputs bucket: key, and what they make the engine do."""
        for key, action in pictures.items():
            self.client("s3").upload_file(str(draw(tmp_path / f"{action}.png", action)), "inputs", key)

    def job(self, run_id: str) -> str:
        """The id of the run's last job."""
        return str(self.record(run_id)["jobs"][-1]["id"])

    def record(self, run_id: str) -> dict[str, Any]:
        body = self.client("s3").get_object(Bucket="outputs", Key=f"runs/{run_id}/batch.json")["Body"]
        record: dict[str, Any] = json.loads(body.read())
        return record


@pytest.fixture(scope="session", autouse=True)
def _models_are_parsed_once() -> Iterator[None]:
    """botocore parses megabytes of JSON for each session, and each command makes one."""
    from botocore.loaders import JSONFileLoader

    with pytest.MonkeyPatch.context() as patch:
        load = functools.cache(JSONFileLoader().load_file)
        patch.setattr(JSONFileLoader, "load_file", lambda self, path: load(path))
        yield


@pytest.fixture
def deployed(s3: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    import boto3
    import urllib3

    urllib3.request("POST", f"{s3_server}/moto-api/config", json={"batch": {"use_docker": False}}, timeout=PATIENCE)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    clients: dict[str, Any] = {}

    def client(service: str) -> Any:
        clients.setdefault(service, boto3.client(service))
        return clients[service]

    ec2, batch = client("ec2"), client("batch")
    subnet = ec2.describe_subnets()["Subnets"][0]
    policy = {"Version": "2012-10-17", "Statement": []}
    role = client("iam").create_role(RoleName="job", AssumeRolePolicyDocument=json.dumps(policy))["Role"]["Arn"]
    group = ec2.create_security_group(GroupName="none", Description="none", VpcId=subnet["VpcId"])["GroupId"]
    client("logs").create_log_group(logGroupName=LOG_GROUP)
    client("ecr").create_repository(repositoryName="pagefleet-dev")
    media = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media, "config": {"digest": "sha256:0"}, "layers": []}
    for target in ("cpu", "gpu"):
        tag = f"{target}-abc123"
        client("ecr").put_image(repositoryName="pagefleet-dev", imageManifest=json.dumps(manifest), imageTag=tag)
    resources = {"maxvCpus": 64, "subnets": [subnet["SubnetId"]], "securityGroupIds": [group]}
    queues, definitions = {}, {}
    for kind, vcpus, memory in (("cpu", 4, 8192), ("gpu", 4, 14336)):
        environment = batch.create_compute_environment(
            computeEnvironmentName=kind,
            type="MANAGED",
            state="ENABLED",
            serviceRole=role,
            computeResources={"type": "FARGATE_SPOT", **resources},
        )
        queue = batch.create_job_queue(
            jobQueueName=f"{kind}-queue",
            state="ENABLED",
            priority=1,
            computeEnvironmentOrder=[{"order": 1, "computeEnvironment": environment["computeEnvironmentArn"]}],
        )
        queues[kind] = {"name": f"{kind}-queue", "arn": queue["jobQueueArn"]}
        definition = batch.register_job_definition(
            jobDefinitionName=f"ocr-{kind}",
            type="container",
            retryStrategy={"attempts": 3, "evaluateOnExit": RULES},
            containerProperties={
                "image": "pagefleet",
                "vcpus": vcpus,
                "memory": memory,
                "environment": [
                    {"name": "PAGEFLEET_REVISION", "value": "0123456789"},
                    {"name": "PAGEFLEET_PROGRESS_SECONDS", "value": "0.1"},
                ],
                "logConfiguration": {"logDriver": "awslogs", "options": {"awslogs-group": LOG_GROUP}},
            },
        )
        definitions[f"ocr-{kind}"] = {
            "name": f"ocr-{kind}",
            "arn": definition["jobDefinitionArn"],
            "queue": kind,
            "vcpus": vcpus,
            "memory": memory,
            "gpus": int(kind == "gpu"),
            "image": f"{REPOSITORY}:{kind}-abc123",
            "spot": True,
            "instance_types": ["g6.xlarge", "g5.xlarge"] if kind == "gpu" else ["fargate"],
        }
    description = {
        "schema": 1,
        "stack": "dev",
        "region": "us-east-1",
        "account": "123456789012",
        "buckets": {"inputs": "inputs", "outputs": "outputs"},
        "log_group": LOG_GROUP,
        "image": {"repository": REPOSITORY, "tag": "abc123", "engines": {"cpu": "rapidocr", "gpu": "paddleocr-vl"}},
        "queues": queues,
        "job_definitions": definitions,
        "network": {"mode": "public", "vpc": subnet["VpcId"], "subnets": [subnet["SubnetId"]]},
        "idle_monthly_usd": {"nat_gateway": 0.0, "image_storage": 0.4},
    }
    jobs = HeldJobs(monkeypatch)
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    agent = Agent(batch, client("logs"), environment, tell=jobs.tell)
    stack = Deployed(client, description, agent, jobs, Aws("us-east-1"))
    stack.publish()
    return stack
