"""Where images lie: one repository whose tags never change, and one for the build's cache, which always does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pulumi
import pulumi_aws as aws

from infra_pulumi.place import Place


class Registry(pulumi.ComponentResource):
    repository: aws.ecr.Repository
    cache: aws.ecr.Repository
    engines: Mapping[str, str]  # by target: whose weights its image brings along
    vllm: bool  # whether the GPU image has it
    tag: str  # of the tree: each target of its Dockerfile is `<target>-<tag>`

    def __init__(
        self,
        place: Place,
        *,
        tag: str,
        engines: Mapping[str, str],
        vllm: bool,
        protect: bool,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("pagefleet:aws:Registry", f"{place.prefix}-registry", None, opts)
        self.tag = tag
        self.engines = engines
        self.vllm = vllm
        self.repository = aws.ecr.Repository(
            f"{place.prefix}-worker",
            image_tag_mutability="IMMUTABLE",
            image_scanning_configuration=aws.ecr.RepositoryImageScanningConfigurationArgs(scan_on_push=True),
            force_delete=not protect,
            opts=pulumi.ResourceOptions(parent=self, protect=protect),
        )
        # Every tag names a state of the tree that a job definition uses, or that a revert will ask for: only what
        # has none may go.
        self._drop_untagged(f"{place.prefix}-worker", self.repository, days=7)
        self.cache = aws.ecr.Repository(
            f"{place.prefix}-cache",
            image_tag_mutability="MUTABLE",
            force_delete=True,
            opts=pulumi.ResourceOptions(parent=self),
        )
        self._drop_untagged(f"{place.prefix}-cache", self.cache, days=1)
        self.register_outputs({"repository": self.repository.repository_url})

    def image(self, target: Literal["cpu", "gpu"]) -> pulumi.Output[str]:
        """What jobs run: the image of one target of worker/Dockerfile."""
        return pulumi.Output.concat(self.repository.repository_url, f":{target}-{self.tag}")

    def _drop_untagged(self, name: str, repository: aws.ecr.Repository, days: int) -> None:
        rule = {
            "rulePriority": 1,
            "description": f"Untagged images go after {days} days",
            "selection": {
                "tagStatus": "untagged",
                "countType": "sinceImagePushed",
                "countUnit": "days",
                "countNumber": days,
            },
            "action": {"type": "expire"},
        }
        aws.ecr.LifecyclePolicy(
            name,
            repository=repository.name,
            policy=pulumi.Output.json_dumps({"rules": [rule]}),
            opts=pulumi.ResourceOptions(parent=self),
        )
