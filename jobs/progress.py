"""Progress of a run: one live bar on a terminal, a plain line every few seconds where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from jobs.summary import format_seconds
from worker.contract import Receipt

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

PLAIN_SECONDS = 5.0  # between plain lines


class Progress:
    """Counts what the workers tell and shows it. Writes to `console`, which is standard error."""

    def __init__(self, console: Console, documents: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._total = documents
        self._clock = clock
        self._started = clock()
        self._last_line = self._started
        self._bar: Bar | None = None
        self.documents = 0
        self.failed = 0
        self._ended_pages = 0  # of documents that have ended
        self._told_pages = 0  # of all, as far as the workers have told

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=True,
            )
            self._bar.add_task("", total=self._total, note="starting")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def receipt(self, receipt: Receipt) -> None:
        """A task ended."""
        self.documents += 1
        self.failed += receipt.outcome == "failed"
        self._ended_pages += receipt.pages
        self._show()

    def pages_told(self, pages: int) -> None:
        """So many more pages were read, of documents that may not have ended."""
        self._told_pages += pages
        self._show()

    def log(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, style="dim")

    @property
    def pages(self) -> int:
        return max(self._ended_pages, self._told_pages)

    @property
    def note(self) -> str:
        """Pages, pages/s, failures and time left, as the bar shows them."""
        elapsed = max(self._clock() - self._started, 1e-3)
        parts = [f"{self.pages:,} pages", f"{self.pages / elapsed:.2f} pages/s"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.documents and self.documents < self._total:
            parts.append(f"{format_seconds(elapsed / self.documents * (self._total - self.documents))} left")
        return ", ".join(parts)

    def _show(self) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.documents, note=self.note)
        elif self._clock() - self._last_line >= PLAIN_SECONDS:
            self._last_line = self._clock()
            self._console.print(f"{self.documents:,}/{self._total:,} documents, {self.note}", highlight=False)
