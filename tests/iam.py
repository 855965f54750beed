"""Whether IAM policies allow a request: as AWS decides it, for as much of the language as policies here use.

The emulator's own evaluator ignores conditions and most resources. What this one doesn't know, it refuses to judge.
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]

_ELEMENTS = {"Sid", "Effect", "Action", "Resource", "Condition"}


def allows(
    policies: Iterable[Document],
    action: str,
    resource: str,
    context: Mapping[str, str] | None = None,
    boundary: Document | None = None,
) -> bool:
    """An explicit Deny wins; else an Allow is needed, and another one of the boundary where there is one."""
    policies = list(policies)
    asked = action, resource, {key.lower(): value for key, value in (context or {}).items()}
    if any(_says(policy, "Deny", *asked) for policy in [*policies, *([boundary] if boundary else [])]):
        return False
    within = boundary is None or _says(boundary, "Allow", *asked)
    return within and any(_says(policy, "Allow", *asked) for policy in policies)


def _says(policy: Document, effect: str, action: str, resource: str, context: Mapping[str, str]) -> bool:
    return any(
        statement["Effect"] == effect and _applies(statement, action, resource, context)
        for statement in _list(policy["Statement"])
    )


def _applies(statement: Document, action: str, resource: str, context: Mapping[str, str]) -> bool:
    if unknown := statement.keys() - _ELEMENTS:
        raise NotImplementedError(f"elements {sorted(unknown)} of a statement")
    return (
        any(_like(pattern.lower(), action.lower()) for pattern in _list(statement["Action"]))
        and any(_like(pattern, resource) for pattern in _list(statement["Resource"]))
        and all(
            _holds(operator, key.lower(), _list(wanted), context)
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _holds(operator: str, key: str, wanted: Sequence[str], context: Mapping[str, str]) -> bool:
    """Any of the values will do. A key that the request lacks fails, unless the operator ends in `IfExists`."""
    name = operator.removesuffix("IfExists")
    if name not in _OPERATORS:
        raise NotImplementedError(f"condition operator {operator}")
    if key not in context:
        return name != operator
    return any(_OPERATORS[name](value, context[key]) for value in wanted)


def _like(pattern: str, text: str) -> bool:
    """`*` stands for any characters, slashes and colons included, `?` for one."""
    parts = (".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


def _arn_like(pattern: str, arn: str) -> bool:
    """Each of the six parts by itself, so that `*` does not reach over a colon; only the last may hold some."""
    patterns, parts = pattern.split(":", 5), arn.split(":", 5)
    return len(patterns) == len(parts) == 6 and all(map(_like, patterns, parts))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


_OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda wanted, value: wanted == value,
    "StringLike": _like,
    "ArnEquals": _arn_like,  # AWS treats both alike
    "ArnLike": _arn_like,
    "Bool": lambda wanted, value: wanted.lower() == value.lower(),
}
