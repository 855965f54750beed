"""Progress of a run: one live bar on a terminal, a plain line every few seconds where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from jobs.summary import format_seconds
from jobs.wording import plural
from worker.contract import Receipt
from worker.receipts import ProgressNews

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

PLAIN_SECONDS = 5.0  # between plain lines
_UNHEARD = suppress(OSError, SystemExit)  # rich ends the thread when nobody reads any more; the run goes on


class Progress:
    """Counts what the workers tell and shows it on `console`, which is standard error."""

    def __init__(self, console: Console, tasks: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._total = tasks
        self._clock = clock
        self._started = clock()
        self._last_line = self._started
        self._bar: Bar | None = None
        self._ended_pages = 0  # of tasks that have ended
        self._told_pages = 0  # of all, as far as the workers have told
        self._opened = 0  # documents
        self._expected = 0  # their pages
        self.ended = 0
        self.failed = 0

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar
            from rich.table import Column

            note = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True))
            rest = BarColumn(bar_width=None, table_column=Column(ratio=1))  # what the note leaves of the line
            self._bar = Bar(note, rest, console=self._console, transient=True, expand=True)
            self._bar.add_task("", total=1.0, note="starting")
            with _UNHEARD:
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            with _UNHEARD:
                self._bar.stop()

    def receipt(self, receipt: Receipt) -> None:
        """A task ended."""
        self.ended += 1
        self.failed += receipt.outcome == "failed"
        self._ended_pages += receipt.pages
        self._show()

    def news(self, news: ProgressNews) -> None:
        """Pages were read, of documents that may not have ended."""
        self._told_pages += news.pages
        self._opened += news.opened
        self._expected += news.expected
        self._show()

    def log(self, line: str) -> None:
        self._print(line)

    @property
    def pages(self) -> int:
        return max(self._ended_pages, self._told_pages)

    @property
    def share(self) -> float:
        """How much of the work is done, from 0 to 1: by pages, as documents not opened yet are like those that were."""
        if self.ended == self._total:
            return 1.0
        if not self._opened or not self._expected:
            return self.ended / self._total
        mean = self._expected / self._opened
        total = max(self._expected, self._ended_pages) + max(0, self._total - max(self._opened, self.ended)) * mean
        return min(1.0, self.pages / total)

    @property
    def note(self) -> str:
        """Documents, pages, pages/s, failures and time left."""
        elapsed = max(self._clock() - self._started, 1e-3)
        parts = [
            f"{self.ended:,}/{self._total:,} tasks, {plural(self.pages, 'page')}, {self.pages / elapsed:.2f} pages/s"
        ]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if 0 < self.share < 1:
            parts.append(f"{format_seconds(elapsed / self.share - elapsed)} left")
        return ", ".join(parts)

    def _show(self) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.share, note=self.note)
        elif self._clock() - self._last_line >= PLAIN_SECONDS:
            self._last_line = self._clock()
            self._print(self.note)

    def _print(self, line: str) -> None:
        from rich.text import Text  # not for `pagefleet --help`

        with _UNHEARD:
            self._console.print(Text(line), soft_wrap=True)
