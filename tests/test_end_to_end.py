"""Whole runs over the worst that people, disks and networks have to offer: each document gets its right outcome, the
rest is unharmed, and nothing is written outside the run's folder."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs import open_run
from tests import corpus
from tests.conftest import RunOnDisk, draw, ended, worker_environment
from tests.faults.proxy import faulty_proxy
from tests.jobs.test_cli import COLOUR, pagefleet
from worker.contract import ExitCode, Failure, Options, Result, Task
from worker.storage import path_uri


def outcomes(run: Path | str) -> dict[str, str]:
    """By document: ok, partial, unaccounted, or the failure's code."""
    return {
        document.name: document.outcome.code.value if isinstance(document.outcome, Failure) else document.status
        for document in open_run(str(run)).documents()
    }


def test_every_document_of_the_corpus_gets_its_outcome(tmp_path: Path) -> None:
    expected = corpus.write(tmp_path / "in")
    (tmp_path / "keys").write_text("".join(f"in/{name}\n" for name in expected))
    before = sorted(tmp_path.rglob("*"))
    arguments = ("--keys-file", "keys", "--out", "out", "--no-report", "--workers", "2")
    done = pagefleet("run", *arguments, *COLOUR, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    told = outcomes(tmp_path / "out")
    for name, wanted in expected.items():
        if isinstance(wanted, int):
            document = open_run(str(tmp_path / "out")).document(name)
            assert told[name] == "ok", (name, document.message)
            assert len(document.pages) == wanted, name
        else:
            assert told[name] == wanted.value, name
    after = sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "out"))
    assert after == before


def test_a_decoder_that_dies_hangs_or_eats_memory_costs_that_document(tmp_path: Path) -> None:
    faults = {"segfault": "decoder_crashed", "hang": "timeout", "memory": "too_large", "garbage": "decoder_crashed"}
    tasks = []
    for name in faults:
        (tmp_path / name).write_bytes(corpus.faulty(name))
        tasks.append(Task(uri=path_uri(tmp_path / name), name=name))
        picture = draw(tmp_path / f"after-{name}.png")
        tasks.append(Task(uri=path_uri(picture), name=picture.name))
    options = Options(page_timeout=6, decode_memory=512)  # none but the one that hangs takes as long
    run = RunOnDisk(tmp_path / "run", [tasks], options=options)
    done = run.work(PAGEFLEET_DECODER="tests.worker.faulty_decoder")
    assert done.returncode == ExitCode.OK, done.stderr
    assert run.outcomes() == faults | {f"after-{name}.png": "ok" for name in faults}


def test_a_storage_that_throttles_is_ridden_out(s3: Any, s3_server: str, tmp_path: Path) -> None:
    for number in range(12):
        s3.upload_file(str(draw(tmp_path / "a.png")), "inputs", f"scans/{number:02d}.png")
    s3.upload_file(str(draw(tmp_path / "a.png")), "inputs", "scans/forbidden.png")
    faults = {3: "slow_down", 9: "reset", 14: "cut", 20: "error", 27: "slow_down", 35: "reset", 44: "cut"}

    def fault(number: int, method: str, path: str) -> str | None:
        return "denied" if "forbidden.png" in path and method == "GET" and "/inputs/" in path else faults.get(number)

    with faulty_proxy(s3_server, fault) as proxy:
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        environment["AWS_ENDPOINT_URL"] = proxy
        arguments = ("run", "s3://inputs/scans/", "--out", "s3://outputs/runs/one", "--no-report", *COLOUR)
        done = pagefleet(*arguments, cwd=tmp_path, **environment)
    assert done.returncode == 3, done.stderr
    told = outcomes("s3://outputs/runs/one")
    assert told.pop("forbidden.png") == "access_denied"
    assert told == {f"{number:02d}.png": "ok" for number in range(12)}
    assert not list(tmp_path.glob("tmp*"))


def test_a_storage_that_stays_away_is_tried_again_later(s3: Any, tmp_path: Path) -> None:
    s3.upload_file(str(draw(tmp_path / "a.png")), "inputs", "a.png")
    run = RunOnDisk(tmp_path / "run", [[Task(uri="s3://inputs/a.png", name="a.png")]])
    gone = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    done = run.work(**gone | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert done.returncode == ExitCode.TRY_AGAIN, done.stderr
    assert "cannot be reached" in done.stderr
    assert run.outcomes() == {"a.png": "none"}
    back = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    assert run.work(attempt=2, **back).returncode == ExitCode.OK
    assert run.outcomes() == {"a.png": "ok"}


def test_a_full_disk_is_told_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails half-way, as it would there."""
    for number in range(6):
        draw(tmp_path / f"in/{number}.png")
    tasks = [Task(uri=path_uri(path), name=path.name) for path in sorted((tmp_path / "in").iterdir())]
    run = RunOnDisk(tmp_path / "run", [tasks])
    process = subprocess.Popen(
        [sys.executable, "-m", "worker"],
        env=worker_environment(PAGEFLEET_RUN_URI=run.paths.base),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)),
    )
    done = ended(process)
    assert done.returncode == ExitCode.TRY_AGAIN, done.stderr
    assert "no space left for" in done.stderr
    assert "free some, then resume the run" in done.stderr
    assert not list(run.folder.rglob(".pagefleet-*"))
    assert pagefleet("resume", str(run.folder), "--no-report", cwd=tmp_path).returncode == 0
    assert set(outcomes(run.folder).values()) == {"ok"}


def test_memory_does_not_grow_with_the_length_of_a_document_or_a_run(tmp_path: Path) -> None:
    def peak(name: str, documents: dict[str, bytes]) -> int:
        """Of the worker, in MB."""
        tasks = []
        for file, data in documents.items():
            path = tmp_path / name / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            tasks.append(Task(uri=path_uri(path), name=file))
        run = RunOnDisk(tmp_path / f"run-{name}", [tasks], options=Options(dpi=72))
        process = run.start()
        assert process.stdout
        assert process.stderr
        said = process.stdout.read() + process.stderr.read()
        process.stdout.close()
        process.stderr.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == ExitCode.OK, said
        assert set(run.outcomes().values()) == {"ok"}
        return usage.ru_maxrss // 1024

    picture = draw(tmp_path / "a.png").read_bytes()
    short, long = peak("short", {"a.pdf": corpus.text_pdf(30)}), peak("long", {"a.pdf": corpus.text_pdf(300)})
    few, many = (
        peak(name, {f"{n}.png": picture for n in range(count)}) for name, count in (("few", 100), ("many", 1000))
    )
    assert long < short + 40
    assert many < few + 40


def test_page_ranges_of_one_document_are_read_by_several_workers(tmp_path: Path) -> None:
    (tmp_path / "book.pdf").write_bytes(corpus.text_pdf(23))
    arguments = (
        "run",
        "book.pdf",
        "--out",
        "out",
        "--pages-per-task",
        "5",
        "--workers",
        "2",
        "--no-report",
        "--dpi",
        "72",
    )
    assert pagefleet(*arguments, *COLOUR, cwd=tmp_path).returncode == 0
    result = Result.model_validate_json((tmp_path / "out/documents/book.pdf.json").read_bytes())
    assert [page.number for page in result.pages] == list(range(1, 24))
    assert {receipt.shard for receipts in open_run(str(tmp_path / "out")).receipts() for receipt in receipts} == {0, 1}
