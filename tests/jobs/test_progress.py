"""What a person sees while a run goes on."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from jobs.progress import Progress
from jobs.watch import Snapshot, show_on
from worker.contract import Receipt
from worker.receipts import ProgressNews


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def receipt(outcome: str, pages: int) -> Receipt:
    return Receipt.model_validate(
        {
            "task": "a",
            "uri": "u",
            "outcome": outcome,
            "seconds": 1,
            "pages": pages,
            "shard": 0,
            "attempt": 1,
            "timestamp": datetime.now(UTC),
        }
    )


def test_a_line_every_few_seconds_where_there_is_no_terminal() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress(Console(file=out, width=200), 4, clock) as progress:
        for _ in range(4):
            clock.now += 2.6
            progress.receipt(receipt("ok", 1))
    assert out.getvalue() == ("2/4 tasks, 2 pages, 0.38 pages/s, 5.2 s left\n4/4 tasks, 4 pages, 0.38 pages/s\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_told_is_printed_as_it_is(terminal: bool) -> None:
    out = io.StringIO()
    with Progress(Console(file=out, width=20, force_terminal=terminal, color_system=None), 1) as progress:
        progress.log("shard 1 gave up: [a]/scan:100:1  b.png is no image")
    assert "shard 1 gave up: [a]/scan:100:1  b.png is no image\n" in out.getvalue()


def test_what_aws_says_of_a_run_is_printed_as_it_is() -> None:
    out, failed = io.StringIO(), "exit 1, a :100: of  [them]"
    show_on(Console(file=out))(Snapshot("one", "FAILED", {"FAILED": 1}, 1, failed_shards=[(0, failed)]))
    assert out.getvalue() == f"0.0 s: 1 FAILED; 0/1 tasks, 0 pages\n  shard 0 failed {failed}\n"


def test_a_bar_on_a_terminal() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress(Console(file=out, width=100, force_terminal=True), 4, clock) as progress:
        clock.now = 10
        progress.receipt(receipt("failed", 0))
        progress.receipt(receipt("ok", 20))
        assert progress.note == "2/4 tasks, 20 pages, 2.00 pages/s, 1 failed, 10.0 s left"
    assert "2/4 tasks, 20 pages" in out.getvalue()


def test_time_left_of_one_long_document() -> None:
    clock = Clock()
    progress = Progress(Console(file=io.StringIO()), 1, clock)
    progress.news(ProgressNews(opened=1, expected=500))
    clock.now = 60
    progress.news(ProgressNews(pages=100))
    assert progress.note == "0/1 tasks, 100 pages, 1.67 pages/s, 4 min 00 s left"


def test_documents_not_opened_yet_are_taken_for_average_ones() -> None:
    clock = Clock()
    progress = Progress(Console(file=io.StringIO()), 10, clock)
    progress.news(ProgressNews(opened=2, expected=20, pages=10))
    assert progress.share == 0.1
    progress.receipt(receipt("ok", 10))
    assert progress.share == 0.1
    for _ in range(9):
        progress.receipt(receipt("ok", 10))
    assert progress.share == 1
