"""What a run came to, in numbers: the record behind `summary.json`, `summary.md` and the head of the report.
`Tally` adds it up from one outcome at a time, in constant memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from worker.contract import Failure, FailureCode, Page, Record, Result, Run

HISTOGRAM_BINS = 20

_RETRY = "`pagefleet resume {place} --retry-failed`"

_NEXT_STEPS: dict[FailureCode, str] = {
    FailureCode.NOT_FOUND: (
        f"Check the key for typing errors and that the object still exists, then run {_RETRY}. A key list names files; "
        "folders and globs are arguments of `pagefleet run`."
    ),
    FailureCode.ACCESS_DENIED: f"Allow the worker to read this object (bucket policy, KMS key), then run {_RETRY}.",
    FailureCode.EMPTY: f"The source has no bytes or no pages: upload it again, then run {_RETRY}.",
    FailureCode.UNSUPPORTED_FORMAT: (
        f"Save it as PDF, PNG, JPEG, WebP, TIFF, GIF, BMP, HEIC or AVIF, then run {_RETRY}, or leave it out."
    ),
    FailureCode.CORRUPT: f"The file is damaged or cut short: upload it again from its source, then run {_RETRY}.",
    FailureCode.ENCRYPTED: f"Remove the password, then run {_RETRY}.",
    FailureCode.TOO_LARGE: "Scale the image down or split it, or start a run with a larger `--max-pixels`.",
    FailureCode.TIMEOUT: f"Run {_RETRY} when the machine is less busy, or split the document with `--pages-per-task`.",
    FailureCode.DECODER_CRASHED: f"The file crashes its decoder: save it anew in another program, then run {_RETRY}.",
    FailureCode.ENGINE_ERROR: f"Read the message and traceback; run {_RETRY}, or read it with another `--engine`.",
    FailureCode.WORKER_CRASHED: (
        f"It ended the worker twice, most often for lack of memory: give it more and run {_RETRY}, or split it."
    ),
    FailureCode.NO_SUCH_PAGE: "Ask for pages that the document has (`--pages`), in a new run.",
}
_NEXT_STEP_UNACCOUNTED = "Nothing was written about it: run `pagefleet resume {place}`, which reads what is missing."


def next_steps(place: str) -> dict[str, str]:
    """What to do about documents of each failure code, and of "unaccounted" ones. `place` is the run's folder, as it is
    typed in a command."""
    steps = {str(code): step for code, step in _NEXT_STEPS.items()} | {"unaccounted": _NEXT_STEP_UNACCOUNTED}
    return {code: step.replace("{place}", place) for code, step in steps.items()}


class DocumentCounts(Record):
    """`total` is the sum of the others."""

    total: int = 0
    ok: int = 0
    partial: int = 0
    failed: int = 0
    unaccounted: int = 0  # planned, but neither a result nor a failure was found


class PageCounts(Record):
    """Pages of results; `total` is the sum of the others. Pages of failed documents are unknown and not counted."""

    total: int = 0
    ok: int = 0
    blank: int = 0
    failed: int = 0


class Summary(Record):
    """`summary.json`. Seconds are wall time; `confidence_histogram` counts lines in bins of 0.05 from 0 to 1."""

    run_id: str
    engine: str
    model: str | None = None  # absent where no document was read
    created: datetime
    finished: datetime | None = None  # absent where nothing has ended
    documents: DocumentCounts
    pages: PageCounts
    lines: int
    mean_confidence: float | None = None  # over lines; absent where the engine has no confidences
    confidence_histogram: list[int]
    seconds: float | None = None
    pages_per_second: float | None = None
    failures_by_code: dict[str, int] = {}
    bytes: int | None = None  # of the sources
    versions: dict[str, str] = {}
    warnings: list[str] = []
    cost: dict[str, Any] | None = None

    def to_markdown(self, place: str) -> str:
        """`summary.md`: the numbers as a table, failures by code, warnings. Ends with a newline.

        `place` is the run's folder, as it is typed in a command.
        """
        documents, pages = self.documents, self.pages
        steps = next_steps(place)
        rows = [
            ("engine", self.engine + (f" ({self.model})" if self.model else "")),
            ("created", f"{self.created:%Y-%m-%d %H:%M:%S %Z}".rstrip()),
            ("finished", f"{self.finished:%Y-%m-%d %H:%M:%S %Z}".rstrip() if self.finished else "–"),
            ("documents", _counts(documents.total, documents.model_dump(exclude={"total"}))),
            ("pages", _counts(pages.total, pages.model_dump(exclude={"total"}))),
            ("lines", f"{self.lines:,}"),
            ("mean confidence", "–" if self.mean_confidence is None else f"{self.mean_confidence:.3f}"),
            ("time", "–" if self.seconds is None else format_seconds(self.seconds)),
            ("pages per second", "–" if self.pages_per_second is None else f"{self.pages_per_second:.2f}"),
        ]
        if self.bytes is not None:
            rows.append(("read", format_bytes(self.bytes)))
        if self.cost is not None:
            rows.append(("cost", format_cost(self.cost)))
        parts = [f"## Run `{self.run_id}`", _table(("", ""), rows)]
        if self.failures_by_code:
            failures = [(f"`{code}`", f"{count:,}", steps[code]) for code, count in self.failures_by_code.items()]
            parts += ["### Failures", _table(("code", "documents", "what to do"), failures)]
        if documents.unaccounted:
            parts.append(f"**{documents.unaccounted:,} unaccounted for.** {steps['unaccounted']}")
        if self.warnings:
            parts += ["### Warnings", "\n".join(f"- {_one_line(warning)}" for warning in self.warnings)]
        return "\n\n".join(parts) + "\n"


class Tally:
    """Adds outcomes up. Each document is added once, in any order; page-range parts are put together before."""

    def __init__(self) -> None:
        self.documents = DocumentCounts()
        self.pages = PageCounts()
        self._codes: Counter[FailureCode] = Counter()
        self._histogram = [0] * HISTOGRAM_BINS
        self._lines = 0
        self._confident_lines = 0
        self._confidence = 0.0
        self._model: str | None = None
        self._first: datetime | None = None
        self._last: datetime | None = None

    def add(self, outcome: Result | Failure | None) -> None:
        """None is a document that was planned and of which nothing was found."""
        self.documents.total += 1
        if outcome is None:
            self.documents.unaccounted += 1
        elif isinstance(outcome, Failure):
            self.documents.failed += 1
            self._codes[outcome.code] += 1
            self._span(outcome.timestamp, outcome.timestamp)
        else:
            if outcome.status == "ok":
                self.documents.ok += 1
            else:
                self.documents.partial += 1
            self._model = self._model or outcome.meta.model
            self._span(outcome.meta.timestamp - timedelta(seconds=outcome.meta.seconds), outcome.meta.timestamp)
            for page in outcome.pages:
                self._add_page(page)

    def summary(
        self,
        run: Run,
        *,
        seconds: float | None = None,
        bytes: int | None = None,
        warnings: Iterable[str] = (),
        cost: dict[str, Any] | None = None,
    ) -> Summary:
        """The numbers so far. Without `seconds`, time runs from the first document's admission to the last one's end;
        a run that was interrupted and resumed is better told by its receipts. `warnings` follow the run's own."""
        if seconds is None and self._first and self._last:
            seconds = (self._last - self._first).total_seconds()
        return Summary(
            run_id=run.id,
            engine=run.engine,
            model=self._model,
            created=run.created,
            finished=self._last,
            documents=self.documents.model_copy(),
            pages=self.pages.model_copy(),
            lines=self._lines,
            mean_confidence=self._confidence / self._confident_lines if self._confident_lines else None,
            confidence_histogram=list(self._histogram),
            seconds=seconds,
            pages_per_second=self.pages.total / seconds if seconds else None,
            failures_by_code={str(code): count for code, count in self._codes.most_common()},
            bytes=bytes,
            versions=dict(run.versions),
            warnings=[*run.warnings, *warnings],
            cost=cost,
        )

    def _add_page(self, page: Page) -> None:
        self.pages.total += 1
        if page.status == "ok":
            self.pages.ok += 1
        elif page.status == "blank":
            self.pages.blank += 1
        else:
            self.pages.failed += 1
        self._lines += len(page.lines)
        for line in page.lines:
            if line.confidence is not None:
                self._confident_lines += 1
                self._confidence += line.confidence
                self._histogram[min(int(line.confidence * HISTOGRAM_BINS + 1e-9), HISTOGRAM_BINS - 1)] += 1

    def _span(self, start: datetime, end: datetime) -> None:
        self._first = start if self._first is None else min(self._first, start)
        self._last = end if self._last is None else max(self._last, end)


def page_confidence(page: Page) -> float | None:
    """Mean over the lines that have one."""
    known = [line.confidence for line in page.lines if line.confidence is not None]
    return sum(known) / len(known) if known else None


def format_seconds(seconds: float) -> str:
    """ "3.2 s", "4 min 05 s", "2 h 07 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_bytes(size: int) -> str:
    """Decimal units, as storage is billed: "812 B", "3.4 MB"."""
    power = min((len(str(size)) - 1) // 3, 4)
    return f"{size / 1000**power:.1f} {('', 'k', 'M', 'G', 'T')[power]}B" if power else f"{size} B"


def format_cost(cost: dict[str, Any]) -> str:
    """ "$0.12 ($1.20 per 1,000 pages; Spot price history)", of a `Summary.cost`."""
    per_page = cost.get("usd_per_1000_pages")
    notes = [*([f"{format_usd(per_page)} per 1,000 pages"] if per_page is not None else []), cost.get("prices", "")]
    told = "; ".join(note for note in notes if note)
    return format_usd(cost["usd"]) + (f" ({told})" if told else "")


def format_usd(usd: float) -> str:
    """Cents, and below ten cents as many digits as tell something: "$12.30", "$0.0042"."""
    return f"${usd:,.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.2g}" if usd >= 0.0001 else "less than $0.0001"


def _counts(total: int, parts: dict[str, int]) -> str:
    told = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count)
    return f"{total:,}" + (f" ({told})" if told else "")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())
