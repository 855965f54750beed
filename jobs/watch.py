"""Watching a run on Batch: its shards by state, documents done, pages a second, spend, and why it waits.

What has ended is asked for once: a poll costs as many requests as there are shards and receipts that still change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobs.batch import BatchRun, Child, JobRecord, count_states
from jobs.cost import Cost, run_cost
from jobs.doctor import reasons_of_batch, why_waiting
from jobs.errors import CliExit
from jobs.summary import format_seconds, format_usd
from jobs.wording import plural
from worker.contract import Result
from worker.receipts import read_receipts

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

INTERVAL = 15.0  # seconds between polls
POLL_SHARE = 4.0  # and at least as many times what the poll took: a run of 10,000 shards is asked less often
COST_SECONDS = 60.0  # between looks at the prices
LISTED = 10  # failed shards


@dataclass
class Snapshot:
    """A run at one moment."""

    run_id: str
    status: str  # of the job; "forgotten" where Batch no longer knows it
    states: dict[str, int]  # shards by state
    tasks: int
    ended: int = 0  # tasks, of which
    failed: int = 0
    pages: int = 0
    pages_per_second: float | None = None
    seconds: float = 0.0  # from the job's submission to now, or to its end
    cost: Cost | None = None
    retried: int = 0  # attempts beyond the first
    failed_shards: list[tuple[int, str]] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # why RUNNABLE shards don't start

    @property
    def has_ended(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "forgotten")

    @property
    def exit_code(self) -> CliExit:
        """How `pagefleet watch` ends."""
        if not self.has_ended:
            return CliExit.OK
        if self.ended < self.tasks:
            return CliExit.UNACCOUNTED
        return CliExit.SOME_FAILED if self.failed else CliExit.OK


class Watch:
    """Looks at a run again and again. `clock` is in seconds, `now` the time of day."""

    def __init__(
        self,
        run: BatchRun,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._run = run
        self._clock = clock
        self._sleep = sleep
        self._now = now
        self._sizes: dict[str, int] = {}  # of receipts that were read
        self._ended: dict[tuple[int, int], dict[str, tuple[bool, int]]] = {}  # by shard and attempt
        self._cost: tuple[float, Cost | None] | None = None

    def follow(
        self, show: Callable[[Snapshot], None], interval: float = INTERVAL, wait: float | None = None
    ) -> Snapshot:
        """Shows a snapshot after each poll, until the job has ended, or `wait` seconds are over."""
        deadline = None if wait is None else self._clock() + wait
        while True:
            began = self._clock()
            snapshot = self.look()
            show(snapshot)
            if snapshot.has_ended:
                return snapshot
            pause = max(interval, POLL_SHARE * (self._clock() - began))
            if deadline is not None:
                left = deadline - self._clock()
                if left <= 0:
                    return snapshot
                pause = min(pause, left)
            self._sleep(pause)

    def look(self) -> Snapshot:
        run, now = self._run, self._now()
        job, status = run.current()
        children = run.children(job) if status else []
        snapshot = Snapshot(
            run_id=run.id,
            status=status or "forgotten",
            states=count_states(children),
            tasks=run.folder.run.counts.tasks,
            seconds=(_ended(children) or now).timestamp() - job.submitted.timestamp(),
            retried=sum(max(0, len(child.attempts) - 1) for child in children),
            failed_shards=[(child.shard, why_failed(child)) for child in children if child.status == "FAILED"],
        )
        self._count_receipts(snapshot, job, children, now)
        snapshot.cost = self._price(last=snapshot.has_ended)
        waiting = [child for child in children if child.status == "RUNNABLE"]
        if any(child.status in ("STARTING", "RUNNING") for child in children):
            snapshot.waiting = reasons_of_batch(waiting)
        elif waiting:
            snapshot.waiting = why_waiting(run.aws, job, waiting)
        return snapshot

    def _count_receipts(self, snapshot: Snapshot, job: JobRecord, children: list[Child], now: datetime) -> None:
        storage, paths = self._run.folder.storage, self._run.folder.paths
        for entry in storage.list(paths.file("receipts/")):
            if self._sizes.get(entry.uri) == entry.size:  # a receipts file only grows
                continue
            self._sizes[entry.uri] = entry.size
            shard, _, attempt = entry.uri.rpartition("/")[2].removesuffix(".jsonl").partition("-")
            self._ended[int(shard), int(attempt)] = {
                receipt.task: (receipt.outcome == "failed", receipt.pages)
                for receipt in read_receipts(storage, entry.uri)
            }
        if snapshot.has_ended:
            self._find_unreceipted(snapshot.tasks)
        last: dict[str, tuple[bool, int]] = {}
        for _, ended in sorted(self._ended.items(), key=lambda item: item[0][1]):
            last |= ended
        snapshot.ended = len(last)
        snapshot.failed = sum(failed for failed, _ in last.values())
        snapshot.pages = sum(pages for _, pages in last.values())
        starts = [attempt.started for child in children for attempt in child.attempts[:1] if attempt.started]
        stops = [attempt.stopped or now for child in children for attempt in child.attempts[-1:]]
        if starts and stops and max(stops) > min(starts):
            pages = sum(
                pages
                for (_, attempt), ended in self._ended.items()
                if attempt > job.resumed_after
                for _, pages in ended.values()
            )
            snapshot.pages_per_second = pages / (max(stops) - min(starts)).total_seconds()

    def _find_unreceipted(self, tasks: int) -> None:
        """A worker that is killed has not written its last receipts: what it read is told by the outcomes alone."""
        folder = self._run.folder
        known = {task for ended in self._ended.values() for task in ended}
        if len(known) >= tasks:
            return
        folder.refresh()
        for shard in range(folder.run.counts.shards):
            for task in folder.tasks(shard):
                outcome = folder.outcome(task) if task.key not in known else None
                if isinstance(outcome, Result):
                    self._ended.setdefault((shard, outcome.meta.attempt), {})[task.key] = False, len(outcome.pages)
                elif outcome:
                    self._ended.setdefault((shard, outcome.attempt), {})[task.key] = True, 0

    def _price(self, *, last: bool) -> Cost | None:
        if last or self._cost is None or self._clock() - self._cost[0] >= COST_SECONDS:
            self._cost = self._clock(), run_cost(self._run, self._now())
        return self._cost[1]


def why_failed(child: Child) -> str:
    """In a line: after how many attempts, and what AWS says of the last."""
    last = child.attempts[-1] if child.attempts else None
    parts = [f"exit {last.exit_code}" if last and last.exit_code is not None else ""]
    parts += dict.fromkeys([last.reason if last else "", child.reason])
    said = ", ".join(part for part in parts if part) or "AWS does not say why"
    return f"after {plural(len(child.attempts), 'attempt')}: {said}" if child.attempts else said


def line(snapshot: Snapshot) -> str:
    """A snapshot for a log."""
    shards = ", ".join(f"{count:,} {state}" for state, count in snapshot.states.items()) or snapshot.status
    parts = [shards, f"{snapshot.ended:,}/{snapshot.tasks:,} tasks, {plural(snapshot.pages, 'page')}"]
    if snapshot.pages_per_second:
        parts.append(f"{snapshot.pages_per_second:.2f} pages/s")
    if snapshot.failed:
        parts.append(f"{snapshot.failed:,} failed")
    if snapshot.retried:
        parts.append(f"{snapshot.retried:,} retried")
    if snapshot.cost:
        parts.append(format_usd(snapshot.cost.usd))
    return f"{format_seconds(max(0.0, snapshot.seconds))}: " + "; ".join(parts)


def table(snapshot: Snapshot) -> RenderableType:
    """A snapshot for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_header=False)
    rows = [
        ("run", f"{snapshot.run_id}, {snapshot.status} after {format_seconds(max(0.0, snapshot.seconds))}"),
        ("shards", ", ".join(f"{count:,} {state}" for state, count in snapshot.states.items()) or "–"),
        ("tasks", f"{snapshot.ended:,} of {snapshot.tasks:,}, {snapshot.failed:,} failed"),
        ("pages", f"{snapshot.pages:,}"),
        ("pages/s", f"{snapshot.pages_per_second:.2f}" if snapshot.pages_per_second else "–"),
        ("retries", f"{snapshot.retried:,}"),
        ("spend", f"{format_usd(snapshot.cost.usd)} ({snapshot.cost.prices})" if snapshot.cost else "–"),
    ]
    for name, value in rows:
        grid.add_row(Text(name, style="dim"), Text(value))
    return Group(grid, *(Text(note) for note in notes(snapshot)))


def notes(snapshot: Snapshot) -> list[str]:
    """Why it waits, and which shards failed."""
    told = [f"waiting: {reason}" for reason in snapshot.waiting]
    told += [f"shard {shard} failed {why}" for shard, why in snapshot.failed_shards[:LISTED]]
    if len(snapshot.failed_shards) > LISTED:
        told.append(f"… and {plural(len(snapshot.failed_shards) - LISTED, 'more failed shard')}")
    return told


def show_on(console: Console) -> Callable[[Snapshot], None]:
    """Prints lines, and notes when they change: for logs, where nothing can be drawn over."""
    from rich.text import Text

    before: list[str] = []

    def show(snapshot: Snapshot) -> None:
        console.print(Text(line(snapshot)), soft_wrap=True)
        if (told := notes(snapshot)) != before:
            before[:] = told
            for note in told:
                console.print(Text(f"  {note}"), soft_wrap=True)

    return show


def _ended(children: list[Child]) -> datetime | None:
    """When the last shard ended; None while there are others."""
    stops = [attempt.stopped for child in children for attempt in child.attempts[-1:] if attempt.stopped]
    return max(stops) if stops and all(child.has_ended for child in children) else None
