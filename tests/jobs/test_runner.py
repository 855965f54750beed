"""The local runner judges workers as AWS Batch would."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from jobs.runner import RULES, Runner, RunnerOptions, share_cpus
from tests.conftest import RunOnDisk, wait_for, worker_environment
from tests.faults.services import nobody
from worker.contract import ExitCode, Options, Receipt
from worker.receipts import ProgressNews

MakeRun = Callable[..., RunOnDisk]


class Heard:
    """What a runner told."""

    def __init__(self) -> None:
        self.receipts: list[Receipt] = []
        self.pages = 0
        self.expected = 0
        self.log: list[str] = []

    def on_progress(self, news: ProgressNews) -> None:
        self.pages += news.pages
        self.expected += news.expected


def runner(run: RunOnDisk, heard: Heard, **options: Any) -> Runner:
    given = {"workers": 1, "threads": 1, "pause": 0.01, "environment": worker_environment(), **options}
    return Runner(
        run.paths.base,
        RunnerOptions(**given),
        on_receipt=heard.receipts.append,
        on_progress=heard.on_progress,
        on_log=heard.log.append,
    )


def split(run: RunOnDisk) -> RunOnDisk:
    """The same run with a shard for each task."""
    return RunOnDisk(run.folder, [[task] for task in run.tasks[0]], options=run.options, engine=run.engine)


def test_shards_are_handed_out_and_receipts_heard(make_run: MakeRun) -> None:
    run = split(make_run({f"{number}.png": "read" for number in range(5)}))
    heard = Heard()
    ends = runner(run, heard, workers=2).run([0, 1, 2, 4])
    assert [(end.shard, end.attempts, end.exit_code) for end in ends] == [(n, 1, ExitCode.OK) for n in (0, 1, 2, 4)]
    assert {receipt.task for receipt in heard.receipts} == {"0.png", "1.png", "2.png", "4.png"}


def test_a_crash_is_tried_again_until_all_is_read(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read", "b.png": "kill", "c.png": "read"})
    heard = Heard()
    (end,) = runner(run, heard).run([0])
    assert (end.attempts, end.exit_code) == (2, ExitCode.OK)
    assert run.outcomes() == {"a.png": "ok", "b.png": "worker_crashed", "c.png": "ok"}
    assert heard.log == ["shard 0: attempt 1 ended with 137, trying again"]
    assert sum(receipt.task == "b.png" for receipt in heard.receipts) == 1


def test_there_are_only_so_many_attempts(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read"}, engine="tests.faults.engines:DiesAtStart")
    (end,) = runner(run, Heard(), attempts=3).run([0])
    assert (end.attempts, end.exit_code, end.ok) == (3, 137, False)


def test_why_an_attempt_is_not_the_last_is_told_at_once(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read"}, engine="tests.faults.engines:Away")
    heard = Heard()
    runner(run, heard, attempts=2, pause=0.0).run([0])
    assert heard.log == [
        "shard 0: waiting for the server",
        "shard 0: attempt 1 ended with 75: the server is not ready; is it running?; trying again",
        "shard 0: waiting for the server",
    ]


def test_that_a_server_is_waited_for_is_told_again_and_again(make_run: MakeRun) -> None:
    heard = Heard()
    with nobody() as service:
        options = Options(engine_options={"base_url": service.url, "ready": "70"})
        run = make_run({"a.png": "read"}, engine="tests.faults.services:SwiftOpenAi", options=options)
        runner(run, heard, attempts=1).run([0])
    away = f"the server at {service.url} ([Errno 111] Connection refused)"
    assert heard.log == [
        f"shard 0: waiting for {away}, for {seconds} s by now and up to 70 s; --engine-option ready=SECONDS"
        for seconds in (4, 34, 64)
    ]


def test_a_wrong_request_is_not_tried_again(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read"}, engine="nix")
    (end,) = runner(run, Heard()).run([0])
    assert (end.attempts, end.exit_code) == (1, ExitCode.BAD_REQUEST)
    assert "unknown engine 'nix'" in end.stderr[-1]


def test_attempts_of_a_resumed_run_go_on_counting(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read"})
    runner(run, Heard(), resumed_after=3).run([0])
    assert [receipt.attempt for receipt in run.receipts(attempt=4)] == [4]


def test_stop_drains(make_run: MakeRun) -> None:
    run = split(make_run({f"{number}.png": "slow" for number in range(20)}))
    heard = Heard()
    it = runner(run, heard)
    thread = threading.Thread(target=lambda: (wait_for(lambda: bool(heard.receipts), lambda: heard.log), it.stop()))
    thread.start()
    ends = it.run(list(range(20)))
    thread.join()
    assert len(ends) < 20
    assert {end.exit_code for end in ends} <= {ExitCode.OK, ExitCode.DRAINED}


def test_what_an_engine_prints_is_no_receipt(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read"}, engine="tests.faults.engines:Chatty")
    heard = Heard()
    assert runner(run, heard).run([0])[0].ok
    assert [receipt.task for receipt in heard.receipts] == ["a.png"]
    assert heard.log == []


def test_what_an_engine_prints_does_not_upset_the_supervisor(make_run: MakeRun) -> None:
    run = make_run({"a.png": "read", "b.png": "kill", "c.png": "read"}, engine="tests.faults.engines:Chatty")
    (end,) = runner(run, Heard()).run([0])
    assert (end.attempts, end.exit_code) == (2, ExitCode.OK)
    assert run.outcomes() == {"a.png": "ok", "b.png": "worker_crashed", "c.png": "ok"}


def test_pages_of_a_long_document_are_told_before_it_ends(make_run: MakeRun) -> None:
    run = make_run({"a.tiff": ["slow"] * 12}, options=Options())
    heard = Heard()
    runner(run, heard).run([0])
    assert 0 < heard.pages <= 12
    assert heard.expected == 12


def test_rules_end_with_a_catch_all() -> None:
    assert RULES[-1] == ("*", "EXIT")
    assert len(RULES) <= 5


@pytest.mark.parametrize(("cpus", "expected"), [(1, (1, 1)), (2, (1, 2)), (4, (1, 4)), (8, (2, 4)), (64, (16, 4))])
def test_share_cpus(cpus: int, expected: tuple[int, int]) -> None:
    assert share_cpus(cpus) == expected
