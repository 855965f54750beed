"""The judge of policies that other tests rely on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.iam import allows


def policy(**more: Any) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::docs/*", **more}
    return {"Version": "2012-10-17", "Statement": [statement]}


def asks(
    *policies: dict[str, Any], action: str = "s3:GetObject", resource: str = "arn:aws:s3:::docs/a/b", **context: str
) -> bool:
    named = {key.replace("__", ":"): value for key, value in context.items()}
    return allows(policies, action, resource, named)


def test_nothing_is_allowed_unless_a_statement_says_so() -> None:
    assert not asks()
    assert asks(policy())
    assert not asks(policy(), action="s3:PutObject")
    assert not asks(policy(), resource="arn:aws:s3:::docs")
    assert not asks(policy(), resource="arn:aws:s3:::documents/a")
    assert asks(policy(Action=["s3:PutObject", "s3:GetObject"], Resource=["x", "arn:aws:s3:::docs/*"]))


def test_wildcards() -> None:
    assert asks(policy(Action="S3:get*"))  # actions know no case
    assert not asks(policy(Resource="arn:aws:s3:::DOCS/*"))  # resources do
    assert asks(policy(Resource="arn:aws:s3:::docs/?/b"))
    assert not asks(policy(Resource="arn:aws:s3:::docs/?"))
    assert not asks(policy(Resource="arn:aws:s3:::docs/[ab]/b"))  # no wildcard
    assert asks(policy(Resource="*"))
    assert asks(policy(), resource="arn:aws:s3:::docs/영수증\n+.png")


def test_a_denial_wins() -> None:
    denied = policy(Effect="Deny", Resource="arn:aws:s3:::docs/a/*")
    assert not asks(policy(), denied)
    assert not asks(denied, policy())
    assert asks(policy(), denied, resource="arn:aws:s3:::docs/b")


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ({"StringEquals": {"aws:x": "one"}}, "one", True),
        ({"StringEquals": {"aws:x": ["two", "one"]}}, "one", True),
        ({"StringEquals": {"AWS:X": "one"}}, "one", True),
        ({"StringEquals": {"aws:x": "o*"}}, "one", False),
        ({"StringEquals": {"aws:x": "one"}}, None, False),
        ({"StringEqualsIfExists": {"aws:x": "one"}}, None, True),
        ({"StringEqualsIfExists": {"aws:x": "one"}}, "two", False),
        ({"StringLike": {"aws:x": "o?e*"}}, "one and more", True),
        ({"StringLike": {"aws:x": "runs/*"}}, "training/a", False),
        ({"StringLikeIfExists": {"aws:x": "runs/*"}}, "", False),
        ({"ArnLike": {"aws:x": "arn:aws:ecs:us-east-1:1:*"}}, "arn:aws:ecs:us-east-1:1:task/a:b", True),
        ({"ArnLike": {"aws:x": "arn:aws:ecs:*:task/a"}}, "arn:aws:ecs:us-east-1:1:task/a", False),
        ({"ArnEquals": {"aws:x": "arn:aws:iam::1:role/a"}}, "arn:aws:iam::1:role/b", False),
        ({"Bool": {"aws:x": "false"}}, "False", True),
        ({"Bool": {"aws:x": "false"}}, "true", False),
        ({"Bool": {"aws:x": "false"}, "StringEquals": {"aws:x": "true"}}, "false", False),
    ],
)
def test_conditions(condition: dict[str, Any], value: str | None, holds: bool) -> None:
    context = {} if value is None else {"aws__x": value}
    assert asks(policy(Condition=condition), **context) is holds


def test_a_boundary_takes_away_and_gives_nothing() -> None:
    resource = "arn:aws:s3:::docs/a"
    assert allows([policy()], "s3:GetObject", resource, boundary=policy(Action="*", Resource="*"))
    assert not allows([policy()], "s3:GetObject", resource, boundary=policy(Resource="arn:aws:s3:::other/*"))
    assert not allows([], "s3:GetObject", resource, boundary=policy())


@pytest.mark.parametrize("unknown", [{"NotAction": "*"}, {"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}])
def test_what_it_does_not_know_it_does_not_judge(unknown: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError):
        asks(policy(**unknown))
