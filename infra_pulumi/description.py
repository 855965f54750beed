"""The stack description: all that the command line needs to know of a stack, as a parameter and as an output."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_aws as aws

from infra_pulumi.compute import Compute
from infra_pulumi.job_definitions import JobDefinition, JobDefinitions
from infra_pulumi.logs import Logs
from infra_pulumi.network import Network
from infra_pulumi.place import Place
from infra_pulumi.registry import Registry
from infra_pulumi.storage import Storage

SCHEMA = 1
# US dollars a month of 730 hours, at $0.045 and $0.005 an hour: AWS list prices of us-east-1, August 2026. Elsewhere up
# to half as much again. https://aws.amazon.com/vpc/pricing/
NAT_GATEWAY = 32.85
PUBLIC_ADDRESS = 3.65


class StackDescription(pulumi.ComponentResource):
    value: pulumi.Output[Any]
    parameter: aws.ssm.Parameter

    def __init__(
        self,
        place: Place,
        *,
        network: Network,
        storage: Storage,
        registry: Registry,
        compute: Compute,
        definitions: JobDefinitions,
        logs: Logs,
        secret: pulumi.Input[str] | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("pagefleet:aws:StackDescription", f"{place.prefix}-description", None, opts)
        description = {
            "schema": SCHEMA,
            "stack": place.stack,
            "region": place.region,
            "account": place.account,
            "buckets": {"inputs": storage.inputs.bucket, "outputs": storage.outputs.bucket},
            "log_group": logs.jobs.name,
            "image": {
                "repository": registry.repository.repository_url,
                "tag": registry.tag,
                "engines": dict(registry.engines),
                "vllm": registry.vllm,
                "cache": registry.cache.repository_url,
            },
            "queues": {kind: {"name": queue.name, "arn": queue.arn} for kind, queue in compute.queues.items()},
            "job_definitions": {name: _told(definition) for name, definition in definitions.definitions.items()},
            **({} if secret is None else {"upstage_secret": secret}),
            "network": {"mode": network.mode, "vpc": network.vpc_id, "subnets": network.subnet_ids},
            "idle_monthly_usd": {
                "nat_gateway": NAT_GATEWAY if network.mode == "private" else 0.0,
                "public_address": PUBLIC_ADDRESS if network.mode == "private" else 0.0,
            },
        }
        self.value = pulumi.Output.from_input(description)
        self.parameter = aws.ssm.Parameter(
            f"{place.prefix}-description",
            name=place.path,
            type="String",
            insecure_value=pulumi.Output.json_dumps(description),  # holds no secret, so that a preview may show it
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.register_outputs({"parameter": self.parameter.name})


def _told(definition: JobDefinition) -> dict[str, Any]:
    return {
        "name": definition.resource.name,
        "arn": definition.resource.arn,
        "queue": definition.queue,
        "vcpus": definition.size.vcpus,
        "memory": definition.size.memory,
        "gpus": definition.gpus,
        "image": definition.image,
        "timeout": definition.size.timeout_minutes * 60,
        "spot": True,
        "instance_types": list(definition.instance_types),
    }
