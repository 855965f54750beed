"""IAM policy documents, in as few words as they can be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulumi

Statement = dict[str, Any]
Conditions = Mapping[str, Mapping[str, Any]]


def allow(
    actions: Sequence[str], resources: Sequence[pulumi.Input[str]], conditions: Conditions | None = None
) -> Statement:
    statement: Statement = {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}
    return {**statement, "Condition": conditions} if conditions else statement


def allow_unnamed(actions: Sequence[str], conditions: Conditions | None = None) -> Statement:
    """For actions that AWS defines no resource for, or whose resource has no name before it exists."""
    return allow(actions, ["*"], conditions)


def trust(
    principal: Mapping[str, pulumi.Input[str]], conditions: Conditions | None = None, action: str = "sts:AssumeRole"
) -> pulumi.Output[str]:
    statement: Statement = {"Effect": "Allow", "Action": action, "Principal": principal}
    return document({**statement, "Condition": conditions} if conditions else statement)


def document(*statements: Statement) -> pulumi.Output[str]:
    return pulumi.Output.json_dumps({"Version": "2012-10-17", "Statement": list(statements)})


def below(bucket_arn: pulumi.Input[str], keys: str) -> pulumi.Output[str]:
    """ARN of a bucket's objects whose key matches the pattern."""
    return pulumi.Output.format("{0}/{1}", bucket_arn, keys)


def list_below(bucket_arn: pulumi.Input[str], pattern: str) -> Statement:
    """May list the bucket, by a prefix that matches the pattern or by none at all: names of all keys, not contents.

    `IfExists`: a HEAD of a missing key is answered with 404 only to who may list, and carries no prefix; nor does a
    listing of the whole bucket, which no condition can tell from it.
    """
    return allow(["s3:ListBucket"], [bucket_arn], {"StringLikeIfExists": {"s3:prefix": pattern}})
