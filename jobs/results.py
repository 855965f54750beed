"""A run's folder as a Python object, for notebooks and for the other modules here.

from jobs import open_run

run = open_run("out/samples")              # or "s3://outputs/runs/20261121-153000-k3f9"
for document in run.documents():
    print(document.name, document.status, document.markdown[:60])
frame = run.to_pandas()                    # needs pandas
"""

from __future__ import annotations

import difflib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from jobs.errors import JobError, UsageError
from jobs.summary import Summary
from jobs.wording import shown, typed
from worker import layout
from worker.contract import Failure, Page, Receipt, Result, Run, RunPaths, Task
from worker.decode import parse_pages
from worker.errors import DocumentError
from worker.outcomes import read_outcome
from worker.pipeline import join_markdown
from worker.receipts import read_receipts
from worker.storage import NoBucket, NotFound, Storage, open_storage, to_uri

if TYPE_CHECKING:
    import pandas

COMPARED = 10_000  # names of documents, with one that no document has
READERS = 16  # results read at the same time, so that S3's latency is hidden


@dataclass(frozen=True)
class Document:
    """One source document of a run, and what became of it. `outcome` is None where nothing has (yet)."""

    name: str
    uri: str
    outcome: Result | Failure | None
    parts: int | None = None  # how many tasks read it, where more than one did

    @property
    def status(self) -> str:
        """ok, partial, failed or unaccounted."""
        return self.outcome.status if self.outcome else "unaccounted"

    @property
    def markdown(self) -> str:
        """Empty where the document could not be read."""
        return self.outcome.extracted_markdown if isinstance(self.outcome, Result) else ""

    @property
    def pages(self) -> list[Page]:
        return self.outcome.pages if isinstance(self.outcome, Result) else []

    @property
    def mean_confidence(self) -> float | None:
        """Over the lines that have one."""
        known = [line.confidence for page in self.pages for line in page.lines if line.confidence is not None]
        return sum(known) / len(known) if known else None

    @property
    def message(self) -> str:
        """Why it failed, or what the reader should know."""
        if isinstance(self.outcome, Failure):
            return f"{self.outcome.code}: {self.outcome.message}"
        return "; ".join(self.outcome.warnings) if self.outcome else "no outcome yet"

    def row(self) -> dict[str, Any]:
        """The document as a row of `results.parquet`."""
        outcome = self.outcome
        result = outcome if isinstance(outcome, Result) else None
        failure = outcome if isinstance(outcome, Failure) else None
        return {
            "name": self.name,
            "source_image": self.uri,
            "status": self.status,
            "code": failure.code.value if failure else None,
            "message": failure.message if failure else None,
            "pages": len(self.pages),
            "lines": sum(len(page.lines) for page in self.pages),
            "mean_confidence": self.mean_confidence,
            "markdown": result.extracted_markdown if result else None,
            "warnings": result.warnings if result else [],
            "engine": result.meta.engine if result else None,
            "model": result.meta.model if result else None,
            "revision": result.meta.revision if result else None,
            "seconds": result.meta.seconds if result else None,
            "timestamp": failure.timestamp if failure else result.meta.timestamp if result else None,
        }


class RunFolder:
    """Reads a run's folder. Of what has an outcome a hash is kept in memory, documents never."""

    def __init__(self, storage: Storage, uri: str) -> None:
        """Raises: UsageError where there is no run."""
        self.storage = storage
        self.paths = RunPaths(uri)
        try:
            self.run = Run.model_validate_json(storage.read(self.paths.run))
        except NoBucket as error:
            raise JobError(error.message) from error
        except NotFound as error:
            raise UsageError(f"there is no run at {shown(uri)}: it has no run.json") from error
        except DocumentError as error:
            raise JobError(error.message) from error
        except ValidationError as error:
            raise JobError(f"{self.paths.run} cannot be understood by this version of pagefleet: {error}") from error

    @property
    def uri(self) -> str:
        return self.paths.base

    def tasks(self, shard: int) -> list[Task]:
        lines = self.storage.read(self.paths.shard(shard)).splitlines()
        return [Task.model_validate_json(line) for line in lines]

    def documents(self) -> Iterator[Document]:
        """Every document that was planned, exactly once; parts of one are put together."""
        with ThreadPoolExecutor(READERS) as pool:
            ahead: deque[Future[Document]] = deque()
            for tasks in self._by_document():
                ahead.append(pool.submit(self._document, tasks))
                if len(ahead) >= 2 * READERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def document(self, name: str) -> Document:
        """One document by its name in the run, or by its URI.

        Raises: UsageError where the run has no such document.
        """
        parts: list[Task] = []
        names: list[str] = []
        for shard in range(self.run.counts.shards):
            tasks = self.tasks(shard)
            parts += [task for task in tasks if name in (task.name, task.uri)]
            if parts and len(parts) == (parts[0].parts or 1):
                return self._document(sorted(parts, key=lambda task: task.part or 0))
            names += [task.name for task in tasks[: COMPARED - len(names)]]
        last = name.rpartition("/")[2]
        alike = [other for other in names if other.rpartition("/")[2] == last] or difflib.get_close_matches(name, names)
        meant = f": did you mean {' or '.join(dict.fromkeys(alike[:3]))}?" if alike else ";"
        raise UsageError(f"run {self.run.id} has no document {name}{meant} `results.jsonl` lists all names")

    def open_tasks(self, *, retry_failed: bool = False) -> dict[int, int]:
        """How many tasks of each shard have no outcome yet; shards without such are left out."""
        counts: dict[int, int] = {}
        attempts: dict[int, list[tuple[int, int]]] = {}
        for file in self.receipt_files() if retry_failed else ():
            attempts.setdefault(file[0], []).append(file)
        for shard in range(self.run.counts.shards):
            open_ = sum(
                hash(self.paths.result(task)) not in self._existing
                and (retry_failed or hash(self.paths.failure(task)) not in self._existing)
                for task in self.tasks(shard)
            )
            if retry_failed:
                open_ += sum(receipt.outcome == "partial" for receipt in self._last_receipts(attempts.get(shard, [])))
            if open_:
                counts[shard] = open_
        return counts

    def outcome(self, task: Task) -> Result | Failure | None:
        if not {hash(self.paths.result(task)), hash(self.paths.failure(task))} & self._existing:
            return None
        return read_outcome(self.storage, self.paths, task)

    def receipt_files(self) -> list[tuple[int, int]]:
        """(shard, attempt) of every receipts file."""
        names = (entry.uri.rpartition("/")[2] for entry in self.storage.list(self.paths.file("receipts/")))
        pairs = (name.removesuffix(".jsonl").split("-") for name in names)
        return sorted((int(shard), int(attempt)) for shard, attempt in pairs)

    def receipts(self) -> Iterator[list[Receipt]]:
        """The receipts of each shard attempt."""
        for shard, attempt in self.receipt_files():
            yield read_receipts(self.storage, self.paths.receipts(shard, attempt))

    @property
    def last_attempt(self) -> int:
        """The highest number of an attempt that any shard has had; 0 before the first."""
        return max((attempt for _, attempt in self.receipt_files()), default=0)

    @property
    def summary(self) -> Summary:
        """What `collect` came to.

        Raises: UsageError before the run was collected.
        """
        try:
            return Summary.model_validate_json(self.storage.read(self.paths.file("summary.json")))
        except NotFound as error:
            raise UsageError(
                f"run {self.run.id} has no summary yet: `pagefleet collect {typed(self.uri)}` makes it"
            ) from error

    def to_pandas(self) -> pandas.DataFrame:
        """One row a document, the columns of `results.parquet`. Needs pandas, which comes with the extra `notebook`."""
        try:
            import pandas
        except ImportError as error:
            raise UsageError("to_pandas needs pandas: `.venv/bin/pip install pandas`") from error
        return pandas.DataFrame([document.row() for document in self.documents()])

    # ---- helpers

    @cached_property
    def _existing(self) -> set[int]:
        """Hashes of the URIs of all outcomes, found with one listing each instead of a question a task."""
        return {
            hash(entry.uri)
            for folder in ("documents/", "failures/", "parts/")
            for entry in self.storage.list(self.paths.file(folder))
            if entry.uri.endswith(".json")
        }

    def refresh(self) -> None:
        """Forgets what was found: more may have been written since."""
        self.__dict__.pop("_existing", None)

    def _last_receipts(self, files: Iterable[tuple[int, int]]) -> Iterable[Receipt]:
        """The last receipt of each task in these files, which are in the order of their attempts."""
        receipts = (receipt for file in files for receipt in read_receipts(self.storage, self.paths.receipts(*file)))
        return {receipt.task: receipt for receipt in receipts}.values()

    def _by_document(self) -> Iterator[list[Task]]:
        """The tasks of each document together: parts are dealt to several shards."""
        waiting: dict[str, list[Task]] = {}
        for shard in range(self.run.counts.shards):
            for task in self.tasks(shard):
                if task.part is None:
                    yield [task]
                    continue
                parts = waiting.setdefault(task.name, [])
                parts.append(task)
                if len(parts) == task.parts:
                    yield sorted(waiting.pop(task.name), key=lambda part: part.part or 0)
        yield from waiting.values()  # a shard is missing parts; their document is unaccounted for

    def _document(self, tasks: list[Task]) -> Document:
        first = tasks[0]
        if first.part is None:
            return Document(first.name, first.uri, self.outcome(first))
        outcomes = [self.outcome(task) for task in tasks]
        complete = [outcome for outcome in outcomes if outcome is not None]
        if len(complete) < (first.parts or 0):
            return Document(first.name, first.uri, None, first.parts)
        outcome = assemble(tasks, complete, self.run.options.keep_furniture)
        return Document(first.name, first.uri, outcome, first.parts)


def open_run(location: str, storage: Storage | None = None) -> RunFolder:
    """Opens a run's folder: a local path or an `s3://` URI.

    Raises: UsageError where there is no run.
    """
    return RunFolder(storage or open_storage(), to_uri(location).rstrip("/"))


def read_results(path: Path) -> Iterator[tuple[str, Result | Failure | None]]:
    """(name, outcome) of each line of a run's `results.jsonl`; None for a document without an outcome."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            name, status = record.pop("name"), record["status"]
            if status == "unaccounted":
                yield name, None
            else:
                yield name, (Failure if status == "failed" else Result).model_validate(record)


def assemble(tasks: list[Task], outcomes: list[Result | Failure], keep_furniture: bool) -> Result | Failure:
    """One outcome from those of a document's parts, as if it had been read in one piece.

    The pages of a part that failed stay, as failed pages; a document of which every part failed has failed.
    """
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if not results:
        return failures[0]
    pages: list[Page] = []
    warnings: list[str] = []
    for task, outcome in zip(tasks, outcomes, strict=True):
        if isinstance(outcome, Result):
            pages += outcome.pages
            warnings += outcome.warnings
        else:
            numbers = _numbers(task)
            pages += [
                Page(number=number, width=0, height=0, status="failed", error=outcome.message) for number in numbers
            ]
            warnings.append(f"pages {task.pages} failed: {outcome.code}: {outcome.message}")
    meta = results[0].meta
    if (meta.model_extra or {}).get("markdown_by") == "layout":
        pages = layout.compose(pages, keep_furniture=keep_furniture)
    return Result(
        source_image=results[0].source_image,
        extracted_markdown=join_markdown(pages),
        warnings=warnings,
        meta=meta.model_copy(
            update={
                "seconds": round(sum(result.meta.seconds for result in results), 3),
                "timestamp": max(result.meta.timestamp for result in results),
                "attempt": max(result.meta.attempt for result in results),
            }
        ),
        status="ok" if all(page.status != "failed" for page in pages) else "partial",
        pages=pages,
    )


def _numbers(task: Task) -> Iterable[int]:
    return [number for first, last in parse_pages(task.pages or "1") for number in range(first, last + 1)]
