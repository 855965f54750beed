"""What the README and the pages about AWS promise: their commands and options exist, their files are there."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from jobs.cli import main
from tests.conftest import ROOT
from worker.engines import ENGINES

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *(ROOT / f"docs/{name}.md" for name in ("bootstrap", "operations", "costs", "security"))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
COMMANDS = sorted(
    {
        line.partition(" #")[0].strip()
        for page in PAGES
        for line in re.findall(r"^pagefleet .*$", page.read_text(), re.MULTILINE)
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = main.commands[name]
    with click.Context(main) as parent:
        command.make_context(name, arguments, parent=parent)


def test_links_lead_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    local = [(page, link.partition("#")[0]) for page, link in links if "://" not in link]
    assert local
    assert [(page.name, link) for page, link in local if not (page.parent / link).exists()] == []


def test_make_targets_exist() -> None:
    assert {"run", "test"} <= TARGETS
    assert set(re.findall(r"`?make ([a-z-]+)`?", README)) <= TARGETS


def test_what_engines_say_to_install_is_locked_and_there() -> None:
    for info in ENGINES.values():
        targets = re.findall(r"`make ([a-z-]+)`", info.install)
        files = re.findall(r"--require-hashes -r (\S+)`", info.install)
        assert targets or files, info.install
        assert set(targets) <= TARGETS
        assert all((ROOT / name).is_file() for name in files)
