"""The command line as a person uses it: exit codes, messages, files, and the examples in its help."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from PIL import Image

from jobs import local, open_run
from jobs.cli import batch, main
from jobs.plan import Sharding
from jobs.summary import Summary
from tests.conftest import PATIENCE, ROOT, draw, draw_frames, ended, wait_for, worker_environment
from tests.faults.services import faulty_service, nobody, stream
from worker.contract import Failure, Options, Result
from worker.storage import open_storage, to_uri

COLOUR = ("--engine", "tests.faults.engines:Colour")


def pagefleet(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        cwd=cwd,
        env=worker_environment(**environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a few pictures in `in`."""
    draw(tmp_path / "in/a.png")
    draw(tmp_path / "in/deep/한국어 b+c,%2F#.png")
    draw_frames(tmp_path / "in/c.tiff", ["read", "read"])
    return tmp_path


def test_a_run_leaves_what_the_readme_promises(folder: Path) -> None:
    done = pagefleet("run", "in", "--out", "out", "--workers", "1", *COLOUR, cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["document", "pages", "lines", "confidence", "seconds", "outcome"]
    assert rows[1][:4] == ["a.png", "1", "1", "0.500"]
    assert ["html", "out/report.html"] in rows
    names = {str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*") if path.is_file()}
    assert names == {
        "run.json",
        "shards/00000.jsonl",
        "documents/a.png.json",
        "documents/a.png.md",
        "documents/c.tiff.json",
        "documents/c.tiff.md",
        "documents/deep/한국어 b+c,%2F#.png.json",
        "documents/deep/한국어 b+c,%2F#.png.md",
        "markers/00000.json",
        "receipts/00000-1.jsonl",
        "results.jsonl",
        "results.parquet",
        "summary.json",
        "summary.md",
        "report.html",
    }
    records = [json.loads(line) for line in (folder / "out/results.jsonl").read_text().splitlines()]
    assert {record["name"]: record["status"] for record in records} == {
        "a.png": "ok",
        "c.tiff": "ok",
        "deep/한국어 b+c,%2F#.png": "ok",
    }
    table = pyarrow.parquet.read_table(folder / "out/results.parquet").to_pylist()
    assert [row["name"] for row in table] == [record["name"] for record in records]
    assert table[0]["markdown"] == "read 120x80\n"
    summary = Summary.model_validate_json((folder / "out/summary.json").read_bytes())
    assert (summary.documents.ok, summary.pages.total, summary.lines) == (3, 4, 4)
    assert summary.bytes == sum(path.stat().st_size for path in (folder / "in").rglob("*") if path.is_file())


def test_json_is_one_object_on_standard_output(folder: Path) -> None:
    done = pagefleet("run", "in", "--out", "out", "--json", "--no-report", *COLOUR, cwd=folder)
    told = json.loads(done.stdout)
    assert told["documents"]["ok"] == 3
    assert told["files"]["results_jsonl"].endswith("out/results.jsonl")
    assert not (folder / "out/report.html").exists()


def test_failed_documents_are_listed_and_the_rest_is_read(folder: Path) -> None:
    draw(folder / "in/red.png", "raise")
    draw_frames(folder / "in/half.tiff", ["read", "raise"])
    (folder / "in/junk.pdf").write_bytes(b"junk")
    done = pagefleet("run", "in", "--out", "out", *COLOUR, cwd=folder)
    assert done.returncode == 3
    assert "2 documents failed and 1 in part" in done.stderr
    assert "engine_error" in done.stdout
    summary = (folder / "out/summary.md").read_text()
    assert "| junk.pdf | failed | unsupported_format" in summary
    assert "| half.tiff | partial | page 2 failed" in summary
    assert "Documents to look at" in summary
    fixed = draw(folder / "in/red.png", "read")
    assert fixed.exists()
    again = pagefleet("resume", "out", "--retry-failed", cwd=folder)
    assert again.returncode == 3
    assert {document.name: document.status for document in open_run(str(folder / "out")).documents()} == {
        "a.png": "ok",
        "c.tiff": "ok",
        "deep/한국어 b+c,%2F#.png": "ok",
        "half.tiff": "partial",
        "junk.pdf": "failed",
        "red.png": "ok",
    }
    assert not (folder / "out/failures/red.png.json").exists()
    assert "1 document failed and 1 in part: see out/summary.md" in again.stderr
    (folder / "in/half.tiff").unlink()
    done = pagefleet("run", "in", "--out", "whole", "--no-report", *COLOUR, cwd=folder)
    assert "pagefleet: 1 document failed: see whole/summary.md" in done.stderr


def test_a_document_in_parts_is_put_together_as_if_read_in_one_piece(folder: Path) -> None:
    draw_frames(folder / "long/book.tiff", ["read"] * 7)
    whole = pagefleet("run", "long", "--out", "whole", *COLOUR, cwd=folder)
    parts = pagefleet("run", "long", "--out", "parts", "--pages-per-task", "3", "--workers", "2", *COLOUR, cwd=folder)
    assert (whole.returncode, parts.returncode) == (0, 0), parts.stderr
    one, other = (
        Result.model_validate_json((folder / out / "documents/book.tiff.json").read_bytes())
        for out in ("whole", "parts")
    )
    assert one.extracted_markdown == other.extracted_markdown
    assert one.pages == other.pages
    assert len(list((folder / "parts/parts/book.tiff").iterdir())) == 3
    assert (folder / "parts/documents/book.tiff.md").read_text() == one.extracted_markdown


def test_pages_of_a_part_that_failed_stay_in_the_document(folder: Path) -> None:
    draw_frames(folder / "long/book.tiff", ["read", "read", "raise", "raise", "read"])
    done = pagefleet("run", "long", "--out", "out", "--pages-per-task", "2", *COLOUR, cwd=folder)
    assert done.returncode == 3
    result = Result.model_validate_json((folder / "out/documents/book.tiff.json").read_bytes())
    assert [page.status for page in result.pages] == ["ok", "ok", "failed", "failed", "ok"]
    assert [page.number for page in result.pages] == [1, 2, 3, 4, 5]
    draw_frames(folder / "long/book.tiff", ["read"] * 5)
    assert pagefleet("resume", "out", "--retry-failed", cwd=folder).returncode == 0
    result = Result.model_validate_json((folder / "out/documents/book.tiff.json").read_bytes())
    assert {page.status for page in result.pages} == {"ok"}


def test_a_run_that_goes_on_says_which_new_options_it_does_not_take_over(folder: Path) -> None:
    log = f"log={folder / 'log'}"
    first = ("run", "in", "--out", "out", "--no-report", "--lang", "ko", "--engine-option", log, *COLOUR)
    first += ("--shards", "9")  # of which it has a use for three
    assert pagefleet(*first, cwd=folder).returncode == 0
    again = pagefleet(*first, "--resume", "--dpi", "200", cwd=folder)
    assert (again.returncode, again.stderr.count("note: ")) == (0, 0), again.stderr
    others = ("--dpi", "100", "--lang", "en", "--engine-option", "log=other", "--resume")
    others += ("--pages", "1-3", "--pages-per-task", "2", "--shards", "2")
    again = pagefleet("run", "in", "--out", "out", "--no-report", *others, *COLOUR, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (
        "note: the run goes on as it was planned, without the new --dpi (it has 200), --lang (it has ko), "
        f"--engine-option log (it has {folder / 'log'}), --pages (its run.json names none), "
        "--pages-per-task (its run.json names none), --shards (it has 3)" in again.stderr
    )
    elsewhere = pagefleet("run", "elsewhere", "--out", "out", "--resume", *COLOUR, cwd=folder)
    assert elsewhere.returncode == 2
    assert "run at out reads documents below in, not elsewhere: choose another --out for" in elsewhere.stderr
    in_part = pagefleet("run", "in", "elsewhere", "--out", "out", "--resume", "--no-report", *COLOUR, cwd=folder)
    assert in_part.returncode == 0, in_part.stderr
    assert "note: the run at out reads documents below in, not elsewhere: choose another --out" in in_part.stderr


@pytest.mark.parametrize("again", [("resume", "out"), ("run", "in", "--out", "out", "--engine", "openai", "--resume")])
def test_a_run_goes_on_with_a_server_that_has_moved(folder: Path, again: tuple[str, ...]) -> None:
    with nobody() as service:  # planned for it, and left before it was asked
        options = Options(engine_options={"base_url": service.url, "max_new_tokens": "99"})
    request = local.Request((str(folder / "in"),), None, "openai", options, Sharding())
    storage, out = open_storage(), to_uri(str(folder / "out"))
    local.start_run(storage, request, local.plan_run(storage, request, out), out)
    (folder / "in/c.tiff").unlink()
    with faulty_service(lambda *_: stream(["moved"])) as service:
        moved = ("--engine-option", f"base_url={service.url}", "--no-report")
        if again[0] == "resume":
            done = pagefleet(*again, *moved, "--engine-option", "task=text", cwd=folder)
            assert done.returncode == 2
            assert "option task can't be changed, only base_url" in done.stderr
            done = pagefleet(*again, *moved, "--engine-option", "ready=soon", cwd=folder)
            assert done.returncode == 2
            assert service.asked == []
        done = pagefleet(*again, *moved, cwd=folder)
        assert done.returncode == 3, done.stderr
        assert "note: " not in done.stderr
        assert len(service.asked) == 2
        assert service.asked[0].json["max_tokens"] == 99
    assert open_run(str(folder / "out")).run.options.engine_options["base_url"] == service.url


def test_selected_pages(folder: Path) -> None:
    draw_frames(folder / "long/book.tiff", ["read"] * 5)
    assert pagefleet("run", "long", "--out", "out", "--pages", "2-3,5,9", *COLOUR, cwd=folder).returncode == 0
    result = Result.model_validate_json((folder / "out/documents/book.tiff.json").read_bytes())
    assert [page.number for page in result.pages] == [2, 3, 5]
    assert "9" in result.warnings[0]
    pagefleet("run", "long", "--out", "none", "--pages", "8-9", *COLOUR, cwd=folder)
    assert Failure.model_validate_json((folder / "none/failures/book.tiff.json").read_bytes()).code == "no_such_page"


def test_a_dry_run_touches_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = pagefleet("run", "in", "--out", "out", "--workers", "1", "--dry-run", *COLOUR, cwd=folder)
    assert done.returncode == 0
    assert "would read 3 documents as 3 tasks in 1 shard with" in done.stdout
    assert done.stdout.splitlines()[1:] == [
        "into out",
        "  a.png  ←  in/a.png",
        "  c.tiff  ←  in/c.tiff",
        "  deep/한국어 b+c,%2F#.png  ←  in/deep/한국어 b+c,%2F#.png",
    ]
    as_json = pagefleet("run", "in", "--dry-run", "--json", *COLOUR, cwd=folder)
    assert json.loads(as_json.stdout)["documents"] == 3
    assert json.loads(as_json.stdout)["out"] is None
    assert "into a new folder below runs/" in pagefleet("run", "in", "--dry-run", *COLOUR, cwd=folder).stdout
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_tells_what_a_service_would_charge(folder: Path) -> None:
    priced = ("--engine", "upstage", "--engine-option", "price_per_page=0.01", "--dry-run")
    done = pagefleet("run", "in", *priced, cwd=folder, UPSTAGE_API_KEY="k")
    assert done.returncode == 0, done.stderr
    told = "about 12 pages at $0.01; 1 document of unknown length, taken for 10 pages each"
    assert done.stdout.splitlines()[-1] == f"would be charged $0.12: {told}"
    done = pagefleet("run", "in/a.png", *priced, "--json", cwd=folder, UPSTAGE_API_KEY="k")
    assert json.loads(done.stdout)["estimate"] == {"pages": 1, "usd": 0.01, "basis": "1 page at $0.01"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "name at least one INPUT"),
        (["run", ""], "what follows run is empty"),
        (["run", "in", "--out", ""], "what follows --out is empty"),
        (["run", "in", "--out="], "what follows --out= is empty"),
        (["run", "in", "--keys-file", ""], "what follows --keys-file is empty"),
        (["run", "in", "--dataset", ""], "what follows --dataset is empty"),
        (["submit", "in", "--prefix", ""], "what follows --prefix is empty"),
        (["resume", ""], "what follows resume is empty"),
        (["show", "", "x"], "what follows show is empty"),
        (["run", "gone.png"], "there is no file or folder gone.png"),
        (["run", "*.gone"], "no file matches"),
        (["run", "--keys-file", "gone"], "cannot read the key list gone"),
        (["run", "in", "--pages", "3-1"], "Invalid value for --pages: '3-1': pages count from 1"),
        (["run", "in", "--engine", "nix"], "unknown engine 'nix'"),
        (["run", "in", "--engine", "nix:Engine"], "there is no module nix"),
        (["run", "in", "--engine-option", "x"], "K=V"),
        (["run", "in", "--lang", "ru", "--dry-run"], "can't read language 'ru'"),
        (["run", "in", "--engine-option", "foo=bar"], "engine rapidocr has no option 'foo'; it has: backend"),
        (["run", "in", "--engine", "openai", "--engine-option", "foo=bar", "--dry-run"], "no option 'foo'; it has: "),
        (["run", "in", "--engine", "openai", "--engine-option", "timeout=soon"], "it must be a number of at least"),
        (["run", "in", "--engine", "openai", "--dry-run"], "engine openai needs the server's address"),
        (["run", "in", "--engine", "upstage", "--dry-run"], "engine upstage needs a key: set UPSTAGE_API_KEY"),
        (["run", "in", "--dpi", "7"], "--dpi"),
        (["run", "in", "--out", "in"], "exists and is not an empty folder"),
        (["run", "https://example.org/a.png"], "https:// is not supported"),
        (["run", "empty"], "nothing to read: there is no document in empty\n"),
        (["run", "notes"], "no document in notes; passed over in notes, by their suffix: 1 .txt; name a file to have"),
        (["run", "--keys-file", "notes/keys.txt"], "there is no document in notes/keys.txt\n"),
        (["run", "in", "--out", "s3://"], "names no bucket"),
        (["resume", "in"], "there is no run at in:"),
        (["collect", "gone"], "there is no run at"),
        (["show", "gone", "x"], "there is no run at"),
    ],
)
def test_wrong_usage_is_told_in_a_line(folder: Path, arguments: list[str], said: str) -> None:
    (folder / "empty").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes/keys.txt").touch()
    before = sorted(folder.rglob("*"))
    done = pagefleet(*arguments, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["resume", "watch", "fetch", "cancel", "logs", "cost"])
def test_a_mistyped_folder_is_told_before_what_is_missing_of_aws(folder: Path, command: str) -> None:
    done = pagefleet(command, "nowhere", cwd=folder, AWS_CONFIG_FILE="none")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first == "note: there is no folder nowhere here, so it is taken for the id of a run on AWS"
    assert second.startswith("pagefleet: no AWS region is set")


def test_show_says_that_a_document_is_blank_and_which_name_was_meant(folder: Path) -> None:
    Image.new("RGB", (120, 80), "white").save(folder / "in/blank.png")
    assert pagefleet("run", "in", "--out", "out", "--no-report", *COLOUR, cwd=folder).returncode == 0
    blank = pagefleet("show", "out", "blank.png", cwd=folder)
    assert (blank.returncode, blank.stdout.strip()) == (0, "")
    assert blank.stderr == "blank.png: 1 blank page, no text\n"
    for asked, meant in (("in/a.png", "a.png"), ("blnk.png", "blank.png or a.png")):
        done = pagefleet("show", "out", asked, cwd=folder)
        assert done.returncode == 2
        assert f"has no document {asked}: did you mean {meant}? `results.jsonl` lists" in done.stderr
    assert "did you mean" not in pagefleet("show", "out", "xyz", cwd=folder).stderr


def test_a_run_that_is_there_is_not_written_over(folder: Path) -> None:
    pagefleet("run", "in", "--out", "out", "--no-report", *COLOUR, cwd=folder)
    done = pagefleet("run", "in", "--out", "out", *COLOUR, cwd=folder)
    assert done.returncode == 2
    assert "`pagefleet resume out`" in done.stderr


def test_what_the_worker_refuses_is_wrong_usage_and_leaves_nothing(folder: Path) -> None:
    refused = ("--engine", "upstage", "--engine-option", "key_secret=arn:aws:iam::123456789012:role/no:secret")
    done = pagefleet("run", "in", "--out", "out", *refused, cwd=folder)
    assert done.returncode == 2
    assert not (folder / "out").exists()
    assert "the worker refuses the run: " in done.stderr
    assert pagefleet("run", "in", *refused, cwd=folder).returncode == 2
    assert not (folder / "runs").exists()
    assert "Traceback" not in done.stderr
    assert pagefleet("run", "in", "--out", "out", "--no-report", *COLOUR, cwd=folder).returncode == 0


def test_a_run_whose_worker_keeps_dying_is_unaccounted_for_and_can_be_resumed(folder: Path) -> None:
    done = pagefleet("run", "in", "--out", "out", "--engine", "tests.faults.engines:DiesAtStart", cwd=folder)
    assert done.returncode == 4
    assert "gave up after 5 attempts (exit 137)" in done.stderr.replace("\n", " ")
    assert "`pagefleet resume out` reads them" in done.stderr
    why = "1 shard gave up after 5 attempts (exit 137)"
    assert f"reads them; {why}: " in done.stderr
    told = (folder / "out/summary.md").read_text()
    assert "run `pagefleet resume out`, which reads" in told
    assert f"### Warnings\n\n- {why}: " in told
    run = (folder / "out/run.json").read_text().replace("DiesAtStart", "Colour")
    (folder / "out/run.json").write_text(run)
    assert pagefleet("resume", "out", cwd=folder).returncode == 0


@pytest.mark.parametrize("terminal", [{}, {"FORCE_COLOR": "1"}], ids=["pipe", "terminal"])
def test_a_run_whose_listener_has_gone_goes_on(folder: Path, terminal: dict[str, str]) -> None:
    for number in range(30):
        draw(folder / f"in/{number:02d}.png")
    command = [sys.executable, "-m", "jobs.cli", "run", "in", "--out", "out", "--shards", "2", "--no-report", *COLOUR]
    environment = worker_environment(**terminal)
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=-1)
    assert process.stderr
    assert process.stdout
    process.stderr.close()
    process.stdout.close()
    process.wait(timeout=PATIENCE)
    assert {document.status for document in open_run(str(folder / "out")).documents()} == {"ok"}


def test_a_run_whose_terminal_goes_away_goes_on(folder: Path) -> None:
    ours, its_own = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "run", "in", "--out", "out", "--no-report", *COLOUR],
        cwd=folder,
        env=worker_environment(TERM="xterm"),
        stdout=subprocess.DEVNULL,
        stderr=its_own,
    )
    os.close(its_own)
    shown = b""
    while b"starting" not in shown:  # the bar is drawn before a worker is started
        assert select.select([ours], [], [], PATIENCE)[0], shown
        shown += os.read(ours, 1000)
    os.close(ours)
    assert process.wait(timeout=PATIENCE) == 0
    assert {document.status for document in open_run(str(folder / "out")).documents()} == {"ok"}


@pytest.mark.parametrize("json_too", [(), ("--json",)], ids=["", "json"])
def test_ctrl_c_drains_and_prints_the_command_that_resumes(folder: Path, json_too: tuple[str, ...]) -> None:
    for number in range(40):
        draw(folder / f"in/{number:02d}.png", "slow")
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "run", "in", "--out", "out", *COLOUR, *json_too],
        cwd=folder,
        env=worker_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    read = lambda: len(list((folder / "out/documents").glob("*.json")))  # noqa: E731
    wait_for(lambda: read() >= 2, read, process)
    process.send_signal(signal.SIGINT)
    drained = ended(process)
    assert drained.returncode == 4, drained.stderr
    assert "`pagefleet resume out` reads the rest" in drained.stderr
    if json_too:
        told = json.loads(drained.stdout)
        assert told["documents"]["total"] == 43
        assert told["documents"]["ok"] >= 2
        assert set(told["files"]) == {"results_jsonl", "results_parquet", "summary_md"}
    assert "Traceback" not in drained.stderr
    done = pagefleet("resume", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert Summary.model_validate_json((folder / "out/summary.json").read_bytes()).documents.ok == 43


def test_key_lists_may_name_what_is_not_there(folder: Path) -> None:
    (folder / "keys").write_text("in/a.png\n\nin/gone.png\nin/a.png\nin/deep\n")
    done = pagefleet("run", "--keys-file", "keys", "--out", "out", *COLOUR, cwd=folder)
    assert done.returncode == 3
    assert "1 duplicate input:" in done.stderr
    documents = open_run(str(folder / "out")).documents()
    assert {document.name: document.message.partition(":")[0] for document in documents} == {
        "a.png": "",
        "gone.png": "not_found",
        "deep": "not_found",
    }
    assert "in/deep does not exist as a file: it is a folder" in done.stdout
    assert "A key list names files; folders and globs are arguments" in (folder / "out/summary.md").read_text()


def test_everything_works_on_s3(s3: Any, folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    keys = ["scans/a.png", "scans/b c+d,%2F#.png", "scans/한국어/e.png", "scans//lead.png", "scans/../up.png"]
    for key in keys:
        s3.upload_file(str(folder / "in/a.png"), "inputs", key)
    s3.upload_file(str(draw_frames(folder / "book.tiff", ["read"] * 5)), "inputs", "scans/book.tiff")
    arguments = (
        "run",
        "s3://inputs/scans/",
        "--out",
        "s3://outputs/runs/one",
        "--pages-per-task",
        "2",
        "--shards",
        "3",
    )
    done = pagefleet(*arguments, *COLOUR, cwd=folder, **environment)
    assert done.returncode == 0, done.stderr
    assert "s3://outputs/runs/one/report.html" in done.stdout
    run = open_run("s3://outputs/runs/one")
    assert {document.uri for document in run.documents()} == {
        f"s3://inputs/{key}" for key in [*keys, "scans/book.tiff"]
    }
    assert run.summary.pages.total == 10
    assert all(entry.uri.startswith("s3://outputs/runs/one/") for entry in run.storage.list("s3://outputs/"))
    assert pagefleet("resume", "s3://outputs/runs/one", cwd=folder, **environment).returncode == 0
    shown = pagefleet("show", "s3://outputs/runs/one", "book.tiff", cwd=folder, **environment)
    assert shown.stdout.startswith("read 120x80\n\nread 121x80")
    assert "already holds a run" in pagefleet(*arguments, cwd=folder, **environment).stderr


def test_open_run_gives_typed_documents_and_a_frame(folder: Path) -> None:
    pagefleet("run", "in", "--out", "out", "--no-report", *COLOUR, cwd=folder)
    run = open_run(str(folder / "out"))
    first = next(iter(run.documents()))
    assert (first.name, first.status, first.pages[0].lines[0].text) == ("a.png", "ok", "read 120x80")
    frame = run.to_pandas()
    assert list(frame["name"]) == ["a.png", "c.tiff", "deep/한국어 b+c,%2F#.png"]
    assert frame["lines"].sum() == 4
    assert run.document("c.tiff").pages[1].width == 121


def test_collect_and_report_can_be_run_again(folder: Path) -> None:
    pagefleet("run", "in", "--out", "out", "--no-report", *COLOUR, cwd=folder)
    (folder / "out/documents/a.png.json").unlink()
    done = pagefleet("collect", "out", cwd=folder)
    assert done.returncode == 4
    assert "1 document has no outcome" in done.stderr
    assert pagefleet("report", "out", cwd=folder).stdout == "out/report.html\n"
    assert pagefleet("resume", "out", cwd=folder).returncode == 4  # the receipt says that it was read
    (folder / "out/receipts/00000-1.jsonl").unlink()
    assert pagefleet("resume", "out", cwd=folder).returncode == 0


def listed(name: str) -> str:
    """What `pagefleet engines` says of one, on a line."""
    lines = CliRunner().invoke(main, ["engines"]).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    told = itertools.takewhile(lambda line: line.startswith(" "), lines[lines.index(name) + 1 :])
    return " ".join(" ".join(told).split())


def test_engines_are_listed_with_what_their_licences_forbid() -> None:
    assert "not for use in the EU, the UK or South Korea; its output may not improve other models" in listed("hunyuan")
    assert "firms under 2 million $ of revenue" in listed("chandra")
    assert "licence Apache-2.0 installed" in listed("lighton")


def test_engines_are_listed_with_what_only_their_user_has() -> None:
    assert "needs UPSTAGE_API_KEY in the environment, or --engine-option key_secret=ARN" in listed("upstage")
    assert "needs --engine-option base_url=ADDRESS" in listed("openai")
    assert "needs" not in listed("rapidocr")


def test_vllm_is_installed_where_its_program_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "installed no (vllm missing): install vLLM into an environment of its own and put its" in listed("vllm")
    (tmp_path / "vllm").touch(0o755)
    assert "installed yes needs --engine-option preset=NAME" in listed("vllm")


def test_a_folder_of_weights_is_found_from_wherever_the_worker_runs(folder: Path) -> None:
    (folder / "weights").mkdir()
    done = pagefleet("run", "in/a.png", "--out", "out", "--model", "weights", "--no-report", *COLOUR, cwd=folder)
    assert done.returncode == 0, done.stderr
    options = json.loads((folder / "out/run.json").read_text())["options"]
    assert options["engine_options"] == {"model": str(folder / "weights")}


# ---- the examples in the help


def _commands() -> list[click.Command]:
    return [main, *main.commands.values()]


def _examples(command: click.Command) -> list[str]:
    return re.findall(r"^\s*(pagefleet .*)$", command.help or "", re.M)


@pytest.mark.parametrize("command", _commands(), ids=lambda command: command.name)
def test_help_has_an_example(command: click.Command) -> None:
    assert _examples(command)


def test_the_help_lists_each_command_with_its_whole_sentence() -> None:
    listed = " ".join(CliRunner().invoke(main, ["--help"]).stdout.partition("Commands:")[2].split())
    assert "doctor Look for what would keep a run from working: credentials, stack, image, queues, quotas" in listed
    assert "..." not in listed
    assert "workflow" not in listed


def test_the_examples_in_the_help_work(s3: Any, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    (tmp_path / "samples").mkdir()
    for name in ("receipt.jpg", "blank.png"):
        shutil.copy(ROOT / "samples" / name, tmp_path / "samples")
    (tmp_path / "scans").mkdir()
    shutil.copy(ROOT / "samples/paper.pdf", tmp_path / "scans")
    pyarrow.parquet.write_table(pyarrow.table({"image": ["samples/blank.png"]}), tmp_path / "train.parquet")
    s3.create_bucket(Bucket="bucket")
    s3.upload_file(str(ROOT / "samples/blank.png"), "bucket", "scans/blank.png")
    done: set[str] = set()
    local = [command for command in _commands() if command not in batch.COMMANDS]  # the others: test_batch.py
    for example in (example for command in local for example in _examples(command)):
        if example not in done:
            done.add(example)
            ended = pagefleet(*shlex.split(example)[1:], cwd=tmp_path, **environment)
            assert ended.returncode == 0, f"{example}\n{ended.stderr}"
    assert "THE CORNER PANTRY" in (tmp_path / "out/samples/documents/receipt.jpg.md").read_text()
