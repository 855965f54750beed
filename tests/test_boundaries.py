"""Which package imports what of which other: `docs/architecture.md` says it, and this holds it true."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT

PACKAGES = {"worker", "jobs", "infra_pulumi"}


def imported(package: str) -> Iterator[tuple[str, str, str]]:
    """(file, module, name) of what a package imports of the others, wherever in a file."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom):
                assert node.module
                assert not node.level, f"{path} imports by a relative name"
                pairs = [(node.module, alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                pairs = [(alias.name, "") for alias in node.names]
            else:
                continue
            for module, name in pairs:
                if module.partition(".")[0] in PACKAGES - {package}:
                    is_module = module in PACKAGES and find_spec(f"{module}.{name}")
                    yield str(path.relative_to(ROOT)), f"{module}.{name}" if is_module else module, name


@pytest.mark.parametrize("package", ["worker", "infra_pulumi"])
def test_these_know_no_other(package: str) -> None:
    assert list(imported(package)) == []


def test_jobs_imports_what_the_architecture_says() -> None:
    (row,) = re.findall(r"^\| `jobs/` \|.*\|(.*)\|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    found = {re.sub(r"^(worker\.engines)\..*", r"\1", module) for _, module, _ in imported("jobs")}
    assert found == set(re.findall(r"`([a-z_.]+)`", row))
    assert {file for file, _, name in imported("jobs") if name == "build_engine"} == {"jobs/bench.py"}
