"""`python -m worker --self-test`: says in one line which versions read the bundled page, and whether they do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE, worker_environment
from worker import __version__
from worker.settings import Settings


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker", *arguments]
    given = worker_environment(**environment)
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=PATIENCE)


def report(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    (line,) = ended.stdout.splitlines()
    told = json.loads(line)
    assert isinstance(told, dict)
    return told


def test_the_page_is_read_and_the_versions_are_told(tmp_path: Path) -> None:
    ended = run("--self-test", PAGEFLEET_REVISION="0123456789", TMPDIR=str(tmp_path))
    told = report(ended)
    assert ended.returncode == 0, ended.stderr
    assert told["ok"]
    assert told["pagefleet"] == f"{__version__}+g0123456"
    assert (told["engine"], told["model"], told["device"]) == ("rapidocr", "PP-OCRv6-small", "cpu")
    assert told["revision"].startswith("rapidocr-")
    assert {"python", "rapidocr", "pypdfium2"} <= told["libraries"].keys()
    assert list(tmp_path.iterdir()) == []


def test_an_image_without_weights_has_the_engine_that_needs_none() -> None:
    assert Settings.from_environment({"PAGEFLEET_ENGINE": "none"}).engine == "rapidocr"


def test_an_engine_that_reads_something_else_fails() -> None:
    ended = run("--self-test", PAGEFLEET_ENGINE="tests.faults.engines:Colour")
    told = report(ended)
    assert ended.returncode == 1
    assert (told["ok"], told["model"]) == (False, "colour-test")
    assert told["text"].startswith("read ")
    assert "is not what page.pdf says" in told["error"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PAGEFLEET_ENGINE": "tesseract"}, "unknown engine 'tesseract'"),
        ({"PAGEFLEET_DECODER": "worker.no_such_module"}, "decoding process doesn't start"),
    ],
)
def test_what_is_wrong_with_an_installation_is_told(environment: dict[str, str], message: str) -> None:
    ended = run("--self-test", **environment)
    told = report(ended)
    assert ended.returncode == 1
    assert not told["ok"]
    assert message in told["error"]
    assert "python" in told["libraries"]


def test_other_arguments_are_refused() -> None:
    ended = run("--selftest")
    assert ended.returncode == 64
    assert "no arguments but --self-test" in ended.stderr
