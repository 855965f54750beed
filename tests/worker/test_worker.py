"""The worker as a process, as AWS Batch and the local runner start it: what it leaves behind, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, RunOnDisk, draw, ended, wait_for, worker_environment
from worker.contract import ExitCode, Failure, Options, Receipt, Result, Task
from worker.storage import path_uri

MakeRun = Callable[..., RunOnDisk]


def results(run: RunOnDisk) -> int:
    """How many documents are written so far."""
    return len(list((run.folder / "documents").glob("*.json")))


def test_a_shard_ends_in_results_markdown_and_receipts(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read", "deep/b.tiff": ["read", "read"]})
    done = run.work()
    assert done.returncode == ExitCode.OK, done.stderr
    result = run.outcome(run.tasks[0][0])
    assert isinstance(result, Result)
    assert result.extracted_markdown == "read 120x80\n"
    assert (result.meta.model, result.meta.runtime, result.meta.attempt) == ("colour-test", "local", 1)
    assert (run.folder / "documents/a.png.md").read_text() == "read 120x80\n"
    deep = run.outcome(run.tasks[0][1])
    assert isinstance(deep, Result)
    assert [(page.number, page.width, page.status) for page in deep.pages] == [(1, 120, "ok"), (2, 121, "ok")]
    receipts = run.receipts()
    assert {(receipt.task, receipt.outcome, receipt.pages) for receipt in receipts} == {
        ("a.png", "ok", 1),
        ("deep/b.tiff", "ok", 2),
    }
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        json.loads(receipt.to_json()) for receipt in receipts
    ]


def test_first_keys_of_a_result_are_those_of_the_first_version(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read"})
    run.work()
    record = json.loads((run.folder / "documents/a.png.json").read_text())
    assert list(record)[:4] == ["source_image", "extracted_markdown", "warnings", "meta"]
    assert {"model", "runtime", "timestamp"} <= set(record["meta"])
    assert record["schema"] == 1


def test_a_blank_page_never_reaches_the_engine(make_run: MakeRun, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = make_run({"a.png": "read"}, options=Options(engine_options={"log": str(log)}))
    from PIL import Image

    Image.new("RGB", (120, 80), "white").save(tmp_path / "in/a.png")
    assert run.work().returncode == ExitCode.OK
    result = run.outcome(run.tasks[0][0])
    assert isinstance(result, Result)
    assert [page.status for page in result.pages] == ["blank"]
    assert not log.exists()


@pytest.mark.parametrize("engine", ["Colour", "Batched"])
def test_an_engine_that_raises_on_a_page_costs_that_page(make_run: MakeRun, engine: str) -> None:
    run = make_run(
        {"a.tiff": ["read", "raise", "read"], "b.png": "raise", "c.png": "read", "d.png": "garbage"},
        engine=f"tests.faults.engines:{engine}",
    )
    assert run.work().returncode == ExitCode.OK
    assert run.outcomes() == {"a.tiff": "partial", "b.png": "engine_error", "c.png": "ok", "d.png": "engine_error"}
    partial, failure = run.outcome(run.tasks[0][0]), run.outcome(run.tasks[0][1])
    assert isinstance(partial, Result)
    assert isinstance(failure, Failure)
    assert [page.status for page in partial.pages] == ["ok", "failed", "ok"]
    assert partial.pages[1].error == "RuntimeError: this page is red"
    assert partial.extracted_markdown == "read 120x80\n\nread 122x80\n"
    assert "this page is red" in failure.message
    assert failure.traceback
    assert failure.traceback.rstrip().endswith("RuntimeError: this page is red")


def test_an_engine_that_answers_for_too_few_pages_is_an_error(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read"}, engine="tests.faults.engines:TooFew")
    assert run.work().returncode == ExitCode.OK
    failure = run.outcome(run.tasks[0][0])
    assert isinstance(failure, Failure)
    assert "0 texts for 1 page" in failure.message


def test_a_missing_and_a_broken_document_cost_themselves_alone(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run({"a.png": "read", "gone.png": "read", "empty.png": "read", "junk.png": "read"})
    (tmp_path / "in/gone.png").unlink()
    (tmp_path / "in/empty.png").write_bytes(b"")
    (tmp_path / "in/junk.png").write_bytes(b"junk" * 100)
    assert run.work().returncode == ExitCode.OK
    assert run.outcomes() == {
        "a.png": "ok",
        "gone.png": "not_found",
        "empty.png": "empty",
        "junk.png": "unsupported_format",
    }


def test_a_document_that_kills_the_worker_fails_and_all_others_are_read(make_run: MakeRun, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    names = {f"{number:02d}.png": "read" for number in range(40)}
    run = make_run(names | {"07.png": "kill", "23.png": "segfault", "38.png": "kill"})
    first = run.work(attempt=1, TMPDIR=str(scratch))
    assert first.returncode in (137, 139)
    assert len(list(scratch.iterdir())) == 1
    second = run.work(attempt=2, TMPDIR=str(scratch))
    assert second.returncode == ExitCode.OK, second.stderr
    assert list(scratch.iterdir()) == []
    bad = {"07.png": "worker_crashed", "23.png": "worker_crashed", "38.png": "worker_crashed"}
    assert run.outcomes() == {name: bad.get(name, "ok") for name in names}
    assert run.work(attempt=3).returncode == ExitCode.OK
    assert run.receipts(attempt=3) == []


def test_a_document_that_was_only_near_a_crash_is_read(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(
        {"a.png": "read", "b.png": "kill_once", "c.png": "read"},
        options=Options(engine_options={"once": str(tmp_path / "once")}),
    )
    assert run.work(attempt=1).returncode == 137
    marker = run.marker()
    assert marker
    assert "b.png" in marker.in_flight
    assert run.work(attempt=2).returncode == ExitCode.OK
    assert run.outcomes() == {"a.png": "ok", "b.png": "ok", "c.png": "ok"}


def test_an_engine_that_hangs_costs_that_document(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read", "b.png": "hang", "c.png": "read"}, options=Options(engine_timeout=1.5))
    assert run.work(attempt=1).returncode == ExitCode.CRASHED
    assert run.work(attempt=2).returncode == ExitCode.OK
    assert run.outcomes() == {"a.png": "ok", "b.png": "timeout", "c.png": "ok"}


def test_an_engine_that_dies_at_once_is_not_blamed_on_documents(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read"}, engine="tests.faults.engines:DiesAtStart")
    assert run.work(attempt=1).returncode == 137
    assert run.work(attempt=2).returncode == 137
    assert run.outcomes() == {"a.png": "none"}


def test_killed_at_any_moment_nothing_is_lost_or_read_twice(make_run: MakeRun, tmp_path: Path) -> None:
    names = {f"{number:02d}.png": "read" for number in range(12)}
    log, gate = tmp_path / "log", tmp_path / "gate"
    run = make_run(names, options=Options(engine_options={"log": str(log), "gate": str(gate)}))

    def seen() -> tuple[int, int]:
        """Pages that the engine was given, documents that are written."""
        return len(log.read_text().splitlines()) if log.exists() else 0, results(run)

    for attempt, read in ((1, 2), (2, 6)):
        gate.write_text(str(read + attempt - 1))  # with those that were in hand at a kill, and are read twice
        process = run.start(attempt=attempt)
        wait_for(lambda wanted=(read + attempt, read): seen() == wanted, seen, process)  # type: ignore[misc]
        process.kill()
        ended(process)
    gate.write_text("100")
    assert run.work(attempt=3).returncode == ExitCode.OK
    assert run.outcomes() == dict.fromkeys(names, "ok")
    assert seen() == (len(names) + 2, len(names))  # the page in hand at each kill, and no more


def test_sigterm_drains(make_run: MakeRun) -> None:
    names = {f"{number:02d}.png": "slow" for number in range(60)}
    run = make_run(names)
    process = run.start()
    wait_for(lambda: results(run) >= 2, lambda: results(run), process)
    process.terminate()
    done = ended(process)
    assert done.returncode == ExitCode.DRAINED, done.stderr
    read = [name for name, outcome in run.outcomes().items() if outcome == "ok"]
    assert 2 <= len(read) < len(names)
    assert {receipt.task for receipt in run.receipts()} == set(read)
    assert {Receipt.model_validate_json(line).task for line in done.stdout.splitlines()} == set(read)
    marker = run.marker()
    assert marker
    assert marker.in_flight == []  # an orderly end leaves no suspects
    assert run.work(attempt=2).returncode == ExitCode.OK
    assert run.outcomes() == dict.fromkeys(names, "ok")
    assert not {receipt.task for receipt in run.receipts(attempt=2)} & set(read)


def test_sigterm_gives_up_what_does_not_end_in_time(make_run: MakeRun, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = Options(engine_options={"log": str(log)})
    run = make_run({"a.png": "read", "b.png": "hang"}, options=options, engine="tests.faults.engines:Parallel")
    process = run.start(PAGEFLEET_DRAIN_SECONDS="0.3")
    wait_for(lambda: results(run) == 1 and "hang" in log.read_text(), run.outcomes, process)
    process.terminate()
    done = ended(process)
    assert done.returncode == ExitCode.DRAINED, done.stderr
    assert "time to drain is up" in done.stderr
    assert run.outcomes() == {"a.png": "ok", "b.png": "none"}


@pytest.mark.parametrize(
    ("action", "code", "parting"),
    [
        ("read", ExitCode.OK, "closed\n"),
        ("raise", ExitCode.TRY_AGAIN, "closed\n"),
        ("garbage", ExitCode.BAD_REQUEST, "closed\n"),
        ("hang", ExitCode.CRASHED, "discarded\n"),
    ],
)
def test_an_engine_is_let_go_however_the_worker_ends(
    make_run: MakeRun, tmp_path: Path, action: str, code: ExitCode, parting: str
) -> None:
    seconds = 1.5 if action == "hang" else PATIENCE
    options = Options(engine_options={"parting": str(tmp_path / "parting")}, engine_timeout=seconds)
    run = make_run({"a.png": action}, options=options, engine="tests.faults.engines:Parting")
    done = run.work()
    assert done.returncode == code, done.stderr
    assert (tmp_path / "parting").read_text() == parting


def test_what_was_downloaded_is_deleted_when_the_time_to_drain_is_up(make_run: MakeRun, tmp_path: Path) -> None:
    log, parting = tmp_path / "log", tmp_path / "parting"
    options = Options(engine_options={"log": str(log), "parting": str(parting)})
    run = make_run({"a.png": "hang"}, options=options, engine="tests.faults.engines:Parting")
    process = run.start(PAGEFLEET_DRAIN_SECONDS="0")
    wait_for(lambda: log.exists() and "hang" in log.read_text(), log.exists, process)
    process.terminate()
    done = ended(process)
    assert done.returncode == ExitCode.DRAINED, done.stderr
    assert parting.read_text() == "discarded\n"


def test_work_that_is_given_up_again_and_again_is_no_suspect(make_run: MakeRun, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = make_run({"a.tiff": ["slow"] * 12}, options=Options(engine_options={"log": str(log)}))
    for attempt in range(1, 6):
        log.write_text("")
        process = run.start(attempt=attempt, PAGEFLEET_DRAIN_SECONDS="0")
        wait_for(lambda: "slow" in log.read_text(), log.read_text, process)
        process.terminate()
        done = ended(process)
        assert done.returncode == ExitCode.DRAINED, done.stderr
        marker = run.marker()
        assert marker
        assert (marker.in_flight, marker.suspects) == ([], {})
    assert run.work(attempt=6).returncode == ExitCode.OK
    assert run.outcomes() == {"a.tiff": "ok"}


def test_a_drain_among_suspects_keeps_them(make_run: MakeRun) -> None:
    run = make_run({"a.png": "kill", "b.tiff": ["slow"] * 20, "c.png": "read"})
    assert run.work(attempt=1).returncode == 137
    marker = run.marker()
    assert marker
    suspects = set(marker.in_flight)
    process = run.start(attempt=2)
    wait_for(lambda: (run.marker() or marker).isolated, run.marker, process)
    process.terminate()
    done = ended(process)
    assert done.returncode == ExitCode.DRAINED, done.stderr
    left = run.marker()
    assert left
    assert set(left.suspects) <= suspects
    assert run.work(attempt=3).returncode == ExitCode.OK
    assert run.outcomes() == {"a.png": "worker_crashed", "b.tiff": "ok", "c.png": "ok"}


def test_sigterm_reaches_a_supervised_worker(make_run: MakeRun, tmp_path: Path) -> None:
    names = {f"{number:02d}.png": "slow" for number in range(30)}
    run = make_run({"a.png": "kill_once"} | names, options=Options(engine_options={"once": str(tmp_path / "once")}))
    assert run.work(attempt=1).returncode == 137
    before = results(run)
    process = run.start(attempt=2)
    wait_for(lambda: results(run) >= before + 2, lambda: (before, results(run)), process)
    process.terminate()
    done = ended(process)
    assert done.returncode == ExitCode.DRAINED, done.stderr
    assert run.work(attempt=3).returncode == ExitCode.OK
    assert set(run.outcomes().values()) == {"ok"}


def test_what_failed_is_read_again_only_when_asked(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run({"a.png": "read", "b.png": "raise", "c.tiff": ["read", "raise"]})
    run.work()
    draw(tmp_path / "in/b.png", "read")
    assert run.work(attempt=1, PAGEFLEET_ATTEMPT_OFFSET="1").returncode == ExitCode.OK
    assert run.outcomes() == {"a.png": "ok", "b.png": "engine_error", "c.tiff": "partial"}
    run.work(attempt=1, PAGEFLEET_ATTEMPT_OFFSET="2", PAGEFLEET_RETRY_FAILED="1")
    assert run.outcomes() == {"a.png": "ok", "b.png": "ok", "c.tiff": "partial"}
    assert {receipt.task for receipt in run.receipts(attempt=3)} == {"b.png", "c.tiff"}


def test_a_partial_result_is_better_than_a_retry_that_fails(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run({"a.tiff": ["read", "raise"]})
    run.work()
    (tmp_path / "in/a.tiff").unlink()
    done = run.work(attempt=1, PAGEFLEET_ATTEMPT_OFFSET="1", PAGEFLEET_RETRY_FAILED="1")
    assert done.returncode == ExitCode.OK
    assert run.outcomes() == {"a.tiff": "partial"}
    assert [receipt.outcome for receipt in run.receipts(attempt=2)] == ["partial"]


def test_what_times_out_again_is_told_once(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read", "b.png": "hang"}, options=Options(engine_timeout=1.5))
    run.work(attempt=1)
    run.work(attempt=2)
    assert run.outcomes() == {"a.png": "ok", "b.png": "timeout"}
    again = {"PAGEFLEET_ATTEMPT_OFFSET": "2", "PAGEFLEET_RETRY_FAILED": "1"}
    assert run.work(attempt=1, **again).returncode == ExitCode.CRASHED
    assert run.work(attempt=2, **again).returncode == ExitCode.OK
    assert run.outcomes() == {"a.png": "ok", "b.png": "timeout"}
    assert [receipt.code for receipt in run.receipts(attempt=4)] == ["timeout"]


def test_a_decoder_that_does_not_start_is_not_blamed_on_documents(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read", "b.png": "read"})
    done = run.work(PAGEFLEET_DECODER="no.such.module")
    assert done.returncode == ExitCode.TRY_AGAIN, done.stderr
    assert "the decoding process doesn't start" in done.stderr
    assert run.outcomes() == {"a.png": "none", "b.png": "none"}
    assert run.work(attempt=2).returncode == ExitCode.OK


@pytest.mark.parametrize("engine", ["Unspeakable", "Unwritable"])
def test_what_json_cannot_hold_costs_the_page(make_run: MakeRun, engine: str) -> None:
    run = make_run({"a.png": "read"}, engine=f"tests.faults.engines:{engine}")
    assert run.work().returncode == ExitCode.OK
    assert run.outcomes() == {"a.png": "engine_error"}


def test_a_uri_that_nothing_can_open_costs_itself_alone(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read"})
    odd = Task(uri="file:///tmp/a%00b.png", name="odd.png")
    run = RunOnDisk(run.folder, [[odd, *run.tasks[0]]])
    assert run.work().returncode == ExitCode.OK
    assert run.outcomes() == {"odd.png": "not_found", "a.png": "ok"}


def test_a_module_beside_the_documents_is_not_run(make_run: MakeRun, tmp_path: Path) -> None:
    from jobs.runner import Runner, RunnerOptions

    run = make_run({"a.png": "read"})
    (tmp_path / "worker.py").write_text("raise SystemExit('hijacked')")
    options = RunnerOptions(workers=1, threads=1, environment=worker_environment())
    runner = Runner(run.paths.base, options, on_receipt=print, on_progress=print, on_log=print)
    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        assert [end.exit_code for end in runner.run([0])] == [ExitCode.OK]
    finally:
        os.chdir(here)
    assert run.outcomes() == {"a.png": "ok"}


def test_names_that_ascii_cannot_write_are_told(make_run: MakeRun) -> None:
    run = make_run({"영수증.png": "read"})
    done = run.work(PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == ExitCode.OK, done.stderr
    assert [receipt.task for receipt in run.receipts()] == ["영수증.png"]


def test_receipts_that_were_lost_are_made_up_for_by_looking(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read", "b.png": "raise"})
    run.work()
    (run.folder / "receipts/00000-1.jsonl").unlink()
    assert run.work(attempt=2).returncode == ExitCode.OK
    assert run.receipts(attempt=2) == []


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "PAGEFLEET_RUN_URI"),
        ({"PAGEFLEET_RUN_URI": "{tmp}/nowhere"}, "no shard 0 of a run at"),
        ({"PAGEFLEET_RUN_URI": "ftp://somewhere/else"}, "ftp"),
        ({"PAGEFLEET_RUN_URI": "{run}", "AWS_BATCH_JOB_ARRAY_INDEX": "7"}, "no shard 7"),
        ({"PAGEFLEET_RUN_URI": "{run}", "AWS_BATCH_JOB_ARRAY_INDEX": "x"}, "AWS_BATCH_JOB_ARRAY_INDEX is 'x'"),
        ({"PAGEFLEET_RUN_URI": "{run}", "PAGEFLEET_THREADS": "0"}, "PAGEFLEET_THREADS is '0'"),
        (
            {"INPUT_S3_URI": "{tmp}/in/a.png", "OUTPUT_S3_URI": "{tmp}/o.json", "PAGEFLEET_ENGINE": "nix"},
            "unknown engine 'nix'",
        ),
    ],
)
def test_a_wrong_request_is_told_and_not_tried_again(
    make_run: MakeRun, tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    run = make_run({"a.png": "read"})
    filled = {name: value.format(tmp=tmp_path, run=run.folder) for name, value in environment.items()}
    done = _work(**filled)
    assert done.returncode == ExitCode.BAD_REQUEST, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_of_a_run_that_a_newer_version_planned_notes_are_passed_over_and_wishes_refused(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read"})
    path = run.folder / "run.json"
    planned = json.loads(path.read_bytes())
    for newer, said in (
        ({"schema": 2}, "should be less than or equal to 1"),
        ({"options": {"deskew": True}}, "options.deskew"),
    ):
        path.write_text(json.dumps(planned | newer))
        refused = run.work()
        assert refused.returncode == ExitCode.BAD_REQUEST
        assert "cannot be understood by this version of the worker" in refused.stderr
        assert said in refused.stderr
    path.write_text(json.dumps(planned | {"pages": "1-3", "planned_by": "somebody"}))
    assert run.work().returncode == ExitCode.OK
    assert run.outcomes() == {"a.png": "ok"}


def test_an_engine_that_cannot_be_built_is_a_crash_with_its_traceback(make_run: MakeRun) -> None:
    done = make_run({"a.png": "read"}, engine="tests.faults.engines:Unbuildable").work()
    assert done.returncode == ExitCode.CRASHED
    assert "RuntimeError: no such device" in done.stderr


class TestOneDocument:
    """`INPUT_S3_URI` and `OUTPUT_S3_URI`: the form that the first version had."""

    def work(self, source: str, output: str) -> subprocess.CompletedProcess[str]:
        return _work(INPUT_S3_URI=source, OUTPUT_S3_URI=output, PAGEFLEET_ENGINE="tests.faults.engines:Colour")

    def test_reads_it(self, tmp_path: Path) -> None:
        source = draw(tmp_path / "a b#1.png")
        done = self.work(path_uri(source), (tmp_path / "out/result.json").as_uri())
        assert done.returncode == ExitCode.OK, done.stderr
        result = Result.model_validate_json((tmp_path / "out/result.json").read_bytes())
        assert result.extracted_markdown == "read 120x80\n"
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["result.json"]

    def test_an_output_that_ends_in_a_slash_is_a_folder(self, tmp_path: Path) -> None:
        source = draw(tmp_path / "a.png")
        assert self.work(str(source), f"{tmp_path.as_uri()}/out/").returncode == ExitCode.OK
        assert (tmp_path / "out/a.png.json").exists()

    def test_a_name_cannot_lead_out_of_the_folder(self, tmp_path: Path) -> None:
        draw(tmp_path / "..%2Fout.png")
        assert self.work(path_uri(tmp_path / "..%2Fout.png"), f"{tmp_path.as_uri()}/out/").returncode == ExitCode.OK
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["..%2Fout.png.json"]

    def test_a_success_removes_the_failure_before_it(self, tmp_path: Path) -> None:
        source = draw(tmp_path / "a.png", "raise")
        self.work(str(source), str(tmp_path / "o.json"))
        draw(tmp_path / "a.png", "read")
        assert self.work(str(source), str(tmp_path / "o.json")).returncode == ExitCode.OK
        assert not (tmp_path / "o.failure.json").exists()

    def test_says_why_it_failed(self, tmp_path: Path) -> None:
        source = draw(tmp_path / "a.png", "raise")
        done = self.work(str(source), str(tmp_path / "out/result.json"))
        assert done.returncode == ExitCode.BAD_REQUEST
        assert "this page is red" in done.stderr
        failure = Failure.model_validate_json((tmp_path / "out/result.failure.json").read_bytes())
        assert failure.code == "engine_error"
        assert not (tmp_path / "out/result.json").exists()


def test_a_worker_imports_no_heavy_library_before_its_engine() -> None:
    heavy = ("numpy", "cv2", "rapidocr", "boto3", "PIL", "torch")
    script = f"import sys, worker.shard; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], env=worker_environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


class TestSomeShards:
    """An array whose indices stand for other shards, as where only some of a run are resumed."""

    def test_the_index_finds_the_shard_also_after_a_crash(self, make_run: MakeRun, tmp_path: Path) -> None:
        run = make_run({"a.png": "read", "b.png": "kill", "c.png": "read"})
        first, *rest = run.tasks[0]
        run = RunOnDisk(tmp_path / "two", [[first], rest])
        (tmp_path / "numbers.json").write_text("[1]")
        numbers = {"PAGEFLEET_SHARDS": path_uri(tmp_path / "numbers.json")}
        assert run.work(shard=0, attempt=1, **numbers).returncode == 137
        assert run.work(shard=0, attempt=2, **numbers).returncode == ExitCode.OK
        assert run.outcomes() == {"a.png": "none", "b.png": "worker_crashed", "c.png": "ok"}
        assert {receipt.shard for receipt in run.receipts(shard=1, attempt=2)} == {1}
        assert run.receipts(shard=0, attempt=2) == []

    @pytest.mark.parametrize(
        ("numbers", "said"),
        [("[]", "names no shard for index 0"), ("{}", "names no shard"), (None, "the list of shards cannot be read")],
    )
    def test_a_list_that_is_of_no_use_is_refused(
        self, make_run: MakeRun, tmp_path: Path, numbers: str | None, said: str
    ) -> None:
        run = make_run({"a.png": "read"})
        if numbers:
            (tmp_path / "numbers.json").write_text(numbers)
        done = run.work(PAGEFLEET_SHARDS=path_uri(tmp_path / "numbers.json"))
        assert done.returncode == ExitCode.BAD_REQUEST
        assert said in done.stderr


def _work(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker"]
    given = worker_environment(**environment)
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=PATIENCE)
