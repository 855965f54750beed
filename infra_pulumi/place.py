"""Where a stack lies: its name, account, partition and region, and the names and ARNs that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra_pulumi.settings import Settings


@dataclass(frozen=True)
class Place:
    stack: str
    region: str
    account: pulumi.Output[str]
    partition: pulumi.Output[str]

    @classmethod
    def of(cls, settings: Settings) -> Place:
        return cls(
            stack=settings.stack,
            region=settings.region,
            account=aws.get_caller_identity_output().account_id,
            partition=aws.get_partition_output().partition,
        )

    @property
    def prefix(self) -> str:
        """Every physical name begins with it; Pulumi appends a random part."""
        return f"pagefleet-{self.stack}"

    @property
    def path(self) -> str:
        """Name of what has a path: log groups, the parameter."""
        return f"/pagefleet/{self.stack}"

    def arn(self, service: str, resource: pulumi.Input[str]) -> pulumi.Output[str]:
        """ARN of something in this account and region; IAM's have no region."""
        region = "" if service == "iam" else self.region
        return pulumi.Output.format("arn:{0}:{1}:{2}:{3}:{4}", self.partition, service, region, self.account, resource)
