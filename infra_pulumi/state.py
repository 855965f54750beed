"""What of Pulumi's state bucket the roles of a stack may reach: the stack's own objects, and none of its neighbours'.

The layout is that of pulumi/pulumi, pkg/backend/diy: store.go, lock.go, meta.go, stack_tags.go, journal.go.
"""

from __future__ import annotations

import pulumi

from infra_pulumi.place import Place
from infra_pulumi.policies import Statement, allow, below


def reading(place: Place, bucket: pulumi.Input[str]) -> list[Statement]:
    """Enough for a preview, which takes no lock. Without `ListBucket` what is missing would be answered with 403."""
    return [
        allow(["s3:ListBucket"], [bucket]),
        allow(["s3:GetObject"], [below(bucket, ".pulumi/meta.yaml"), *_own(place, bucket)]),
    ]


def writing(place: Place, bucket: pulumi.Input[str]) -> list[Statement]:
    """The layout's version, `meta.yaml`, is written by whoever logs in to an empty bucket: a person."""
    return [*reading(place, bucket), allow(["s3:PutObject", "s3:DeleteObject"], _own(place, bucket))]


def _own(place: Place, bucket: pulumi.Input[str]) -> list[pulumi.Output[str]]:
    stack = f"{pulumi.get_project()}/{place.stack}"
    keys = [
        f"stacks/{stack}.*",  # .json, .json.gz, .json.bak, .pulumi-tags
        *(f"{kind}/{stack}/*" for kind in ("history", "backups", "journal", "locks/organization")),
    ]
    return [below(bucket, f".pulumi/{key}") for key in keys]
