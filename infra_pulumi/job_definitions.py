"""What a job is: image, resources, role, when to try again. Reading and training, each on GPU and on CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from infra_pulumi.identity import Identity
from infra_pulumi.logs import Logs
from infra_pulumi.network import Network
from infra_pulumi.place import Place
from infra_pulumi.registry import Registry
from infra_pulumi.settings import JobSettings, Settings

ATTEMPTS = 5
EXIT_CRASHED = "1*"  # 1, 137 and 139; and 143, drained after SIGTERM
EXIT_TRY_AGAIN = "75"
SPOT_END = {"EC2": "Host EC2*", "FARGATE": "Your Spot Task was interrupted*"}  # how each words a Spot interruption
OPEN_FILES = 65536


@dataclass(frozen=True)
class JobDefinition:
    """A definition, and what the stack description tells of it."""

    resource: aws.batch.JobDefinition
    queue: str
    size: JobSettings
    gpus: int
    image: pulumi.Output[str]
    instance_types: tuple[str, ...]


class JobDefinitions(pulumi.ComponentResource):
    definitions: dict[str, JobDefinition]

    def __init__(
        self,
        place: Place,
        settings: Settings,
        *,
        network: Network,
        registry: Registry,
        identity: Identity,
        logs: Logs,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("pagefleet:aws:JobDefinitions", f"{place.prefix}-jobs", None, opts)
        self._place = place
        self._network = network
        self._registry = registry
        self._identity = identity
        self._log_group = logs.jobs.name
        self._gpu_types = settings.compute.gpu_instance_types
        jobs, secret = settings.jobs, settings.upstage_secret_arn
        self.definitions = {
            "ocr-gpu": self._gpu("ocr-gpu", jobs.ocr_gpu, identity.job_role_arn),
            "ocr-cpu": self._cpu("ocr-cpu", jobs.ocr_cpu, identity.job_role_arn, secret),
            "train-gpu": self._gpu("train-gpu", jobs.train_gpu, identity.training_role_arn),
            "train-cpu": self._cpu("train-cpu", jobs.train_cpu, identity.training_role_arn),
        }
        self.register_outputs({name: definition.resource.arn for name, definition in self.definitions.items()})

    def _gpu(self, name: str, size: JobSettings, role: pulumi.Output[str]) -> JobDefinition:
        properties = self._properties(name, size, role, gpus=1)
        linux = {"initProcessEnabled": True, "sharedMemorySize": size.shared_memory or 64}
        resource = self._definition(name, "EC2", size, {**properties, "linuxParameters": linux})
        return JobDefinition(resource, "gpu", size, 1, self._registry.image("gpu"), self._gpu_types)

    def _cpu(self, name: str, size: JobSettings, role: pulumi.Output[str], secret: str | None = None) -> JobDefinition:
        properties = {
            **self._properties(name, size, role, gpus=0),
            "secrets": [{"name": "UPSTAGE_API_KEY", "valueFrom": secret}] if secret else [],
            "networkConfiguration": {"assignPublicIp": "ENABLED" if self._network.assign_public_ip else "DISABLED"},
            "fargatePlatformConfiguration": {"platformVersion": "LATEST"},
            "runtimePlatform": {"operatingSystemFamily": "LINUX", "cpuArchitecture": "X86_64"},
        }
        resource = self._definition(name, "FARGATE", size, properties)
        return JobDefinition(resource, "cpu", size, 0, self._registry.image("cpu"), ("fargate",))

    def _properties(self, name: str, size: JobSettings, role: pulumi.Output[str], gpus: int) -> dict[str, Any]:
        requirements = [("VCPU", size.vcpus), ("MEMORY", size.memory), ("GPU", gpus)]
        environment = {
            "AWS_REGION": self._place.region,  # ECS tells containers on EC2 nothing of it
            "AWS_DEFAULT_REGION": self._place.region,
        }
        return {
            "image": self._registry.image("gpu" if gpus else "cpu"),
            "jobRoleArn": role,
            "executionRoleArn": self._identity.execution_role_arn,
            "resourceRequirements": [{"type": kind, "value": str(value)} for kind, value in requirements if value],
            "environment": [{"name": key, "value": value} for key, value in sorted(environment.items())],
            "ulimits": [{"name": "nofile", "softLimit": OPEN_FILES, "hardLimit": OPEN_FILES}],
            "logConfiguration": {
                "logDriver": "awslogs",
                "options": {
                    "awslogs-group": self._log_group,
                    "awslogs-region": self._place.region,
                    "awslogs-stream-prefix": name,
                },
            },
        }

    def _definition(
        self, name: str, platform: str, size: JobSettings, properties: Mapping[str, Any]
    ) -> aws.batch.JobDefinition:
        return aws.batch.JobDefinition(
            f"{self._place.prefix}-{name}",
            type="container",
            platform_capabilities=[platform],
            container_properties=pulumi.Output.json_dumps(properties),
            retry_strategy=aws.batch.JobDefinitionRetryStrategyArgs(
                attempts=ATTEMPTS, evaluate_on_exits=evaluate_on_exit(platform)
            ),
            timeout=aws.batch.JobDefinitionTimeoutArgs(attempt_duration_seconds=size.timeout_minutes * 60),
            propagate_tags=True,
            opts=pulumi.ResourceOptions(parent=self),
        )


def evaluate_on_exit(platform: str) -> list[aws.batch.JobDefinitionRetryStrategyEvaluateOnExitArgs]:
    """Five rules, the most that Batch takes; the first match decides. What matches none is tried again, so the last
    one matches all."""
    rule = aws.batch.JobDefinitionRetryStrategyEvaluateOnExitArgs
    return [
        rule(action="RETRY", on_status_reason=SPOT_END[platform]),
        rule(action="RETRY", on_reason="CannotPullContainerError*"),
        rule(action="RETRY", on_exit_code=EXIT_CRASHED),
        rule(action="RETRY", on_exit_code=EXIT_TRY_AGAIN),
        rule(action="EXIT", on_reason="*"),
    ]
