"""A model that really reads, behind a real server process: `transformers serve`, started as `vllm` starts its own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from jobs.accuracy import error_rate
from jobs.cli import main
from jobs.results import open_run
from tests.conftest import PATIENCE, ROOT, RunOnDisk
from tests.rendering import draw_card, fresh_strings
from worker.contract import ExitCode, Options, Result, Task
from worker.engines import EngineSettings, PageImage
from worker.engines.openai_server import OpenAiEngine
from worker.engines.vllm_server import VllmEngine
from worker.storage import path_uri

MISREAD = 0.1  # of the characters: the model is tiny, and a server that mixes up pages gets nearly all of them wrong
TINY = ROOT / "tests/assets/tiny-hunyuan"
ASKED = {"preset": "hunyuan", "task": "text", "max_new_tokens": "24"}


@pytest.fixture(scope="module")
def server() -> Iterator[VllmEngine]:
    """The engine with its server."""
    program = f"{shlex.quote(sys.executable)} -m tests.serve_on_cpu"
    command = f"env HF_HUB_OFFLINE=1 {program} serve {{model}} --host 127.0.0.1 --port {{port}}"
    options = {**ASKED, "model": str(TINY), "command": command, "start": str(PATIENCE)}
    engine = VllmEngine(EngineSettings(1, options=options))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def asked(server: VllmEngine) -> dict[str, str]:
    """Options that reach the same server through the engine `openai`."""
    return {**ASKED, "model": server.model, "base_url": server.base_url, "concurrency": "2"}


def pages(texts: list[str]) -> list[PageImage]:
    return [PageImage(number, np.asarray(draw_card(text))) for number, text in enumerate(texts, 1)]


def test_the_server_beside_the_worker_reads(server: VllmEngine) -> None:
    texts = fresh_strings(3, seed=1)
    read = server.read(pages(texts))
    assert error_rate((text.markdown or "", truth) for text, truth in zip(read, texts, strict=True)) <= MISREAD
    details = read[0].details
    assert details
    assert details["prompt"].startswith("hunyuan/text/")
    assert (details["stop"], details["retries"]) == ("end", 0)
    assert details["tokens"] > 1
    assert details["prompt_tokens"] > 10
    assert details["request"]


def test_pages_are_read_side_by_side(asked: dict[str, str]) -> None:
    texts = fresh_strings(6, seed=5)
    engine = OpenAiEngine(EngineSettings(1, options=asked))
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda page: engine.read([page])[0], pages(texts)))
    engine.close()
    assert error_rate((text.markdown or "", truth) for text, truth in zip(read, texts, strict=True)) <= MISREAD


def test_a_text_longer_than_the_cap_is_not_passed_off_as_read(asked: dict[str, str]) -> None:
    engine = OpenAiEngine(EngineSettings(1, options={**asked, "max_new_tokens": "2"}))
    (text,) = engine.read(pages(["ABCDEFGH"]))
    engine.close()
    assert text.error is not None
    assert "does not end within 2 tokens" in text.error


def test_the_worker_reads_through_it(asked: dict[str, str], tmp_path: Path) -> None:
    texts = fresh_strings(3, seed=3)
    tasks = []
    for text in texts:
        path = tmp_path / "in" / f"{text}.png"
        path.parent.mkdir(exist_ok=True)
        draw_card(text).save(path)
        tasks.append(Task(uri=path_uri(path), name=path.name))
    run = RunOnDisk(tmp_path / "run", [tasks], options=Options(engine_options=asked), engine="openai")
    done = run.work(OPENAI_API_KEY="sk-secret")
    assert done.returncode == ExitCode.OK, done.stderr
    results = [run.outcome(task) for task in tasks]
    read = [result.extracted_markdown.strip() for result in results if isinstance(result, Result)]
    assert error_rate(zip(read, texts, strict=True)) <= MISREAD
    written = "".join(path.read_text() for path in run.folder.rglob("*") if path.is_file())
    assert "sk-secret" not in written + done.stdout + done.stderr


def test_the_command_line_reads_through_it(asked: dict[str, str], tmp_path: Path) -> None:
    texts = fresh_strings(3, seed=4)
    for text in texts:
        draw_card(text).save(tmp_path / f"{text}.png")
    options = [part for name, value in asked.items() for part in ("--engine-option", f"{name}={value}")]
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["run", str(tmp_path), "--out", str(out), "--engine", "openai", *options])
    assert done.exit_code == 0, done.output
    read = [(document.markdown.strip(), Path(document.name).stem) for document in open_run(str(out)).documents()]
    assert len(read) == len(texts)
    assert error_rate(read) <= MISREAD


def test_a_secret_among_the_options_is_refused_before_it_is_written(tmp_path: Path) -> None:
    draw_card("ABC").save(tmp_path / "a.png")
    out = tmp_path / "out"
    given = ["--engine", "openai", "--engine-option", "api_key=sk-secret"]
    done = CliRunner().invoke(main, ["run", str(tmp_path), "--out", str(out), *given])
    assert done.exit_code != 0
    assert "looks like a secret" in done.output
    assert "sk-secret" not in done.output
    assert not list(out.rglob("*.json*"))
