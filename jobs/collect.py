"""Collect: reconciles the plan with results, failures and receipts, and writes what a reader of the run wants in one
piece: `results.jsonl`, `results.parquet`, `summary.json`, `summary.md`, and the documents that were read in parts."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from jobs.dataset import write_labels
from jobs.errors import UsageError
from jobs.results import Document, RunFolder
from jobs.summary import Summary, Tally
from jobs.wording import typed
from worker.contract import Receipt, Result, Task
from worker.scratch import Scratch
from worker.storage import file_errors

if TYPE_CHECKING:
    import pyarrow

LISTED = 50  # documents that summary.md names; results.jsonl has them all
ROWS = 1_000  # of a row group of results.parquet


def collect(
    folder: RunFolder,
    on_document: Callable[[Document], None] = lambda document: None,
    cost: dict[str, Any] | None = None,
    warnings: Iterable[str] = (),
) -> Summary:
    """Writes the files above and returns the summary. `on_document` sees every document, in the results' order, and the
    summary tells `warnings` after the run's own.

    `cost` is what the run cost on AWS (`jobs.cost.Cost`); without it what an earlier collect knew is kept.
    """
    import pyarrow as pa
    import pyarrow.parquet

    folder.refresh()
    tally = Tally()
    troubled: list[Document] = []
    troubles = 0
    with file_errors(tempfile.gettempdir()), Scratch() as scratch:
        lines_path, table_path = scratch / "results.jsonl", scratch / "results.parquet"
        with open(lines_path, "w", encoding="utf-8") as lines, pa.parquet.ParquetWriter(table_path, _schema()) as table:
            rows: list[dict[str, Any]] = []
            for document in folder.documents():
                _write_assembled(folder, document)
                lines.write(_json_line(document))
                rows.append(document.row())
                if len(rows) == ROWS:
                    table.write_table(pa.Table.from_pylist(rows, _schema()))
                    rows.clear()
                tally.add(document.outcome)
                if document.status != "ok":
                    troubles += 1
                    if len(troubled) < LISTED:
                        troubled.append(document)
                on_document(document)
            table.write_table(pa.Table.from_pylist(rows, _schema()))
        folder.storage.upload(folder.paths.file("results.jsonl"), lines_path)
        folder.storage.upload(folder.paths.file("results.parquet"), table_path)
    seconds, size = _from_receipts(folder.receipts())
    cost = cost or _known_cost(folder)
    if cost and tally.pages.total:
        cost |= {"usd_per_1000_pages": cost["usd"] / tally.pages.total * 1000}
    summary = tally.summary(folder.run, seconds=seconds, bytes=size, cost=cost, warnings=warnings)
    folder.storage.write(folder.paths.file("summary.json"), (summary.model_dump_json(indent=1) + "\n").encode())
    markdown = summary.to_markdown(typed(folder.uri)) + _listed(troubled, troubles)
    folder.storage.write(folder.paths.file("summary.md"), markdown.encode())
    if folder.run.dataset:  # last: where the dataset has gone, all else is there
        markdown += _labelled(write_labels(folder), folder.run.dataset.output)
        folder.storage.write(folder.paths.file("summary.md"), markdown.encode())
    return summary


def _known_cost(folder: RunFolder) -> dict[str, Any] | None:
    """AWS forgets a job after some days; its cost stays."""
    try:
        return folder.summary.cost
    except UsageError:
        return None


def _write_assembled(folder: RunFolder, document: Document) -> None:
    """A document that was read in parts gets the files that any other has."""
    if document.parts is None or document.outcome is None:
        return
    task = Task(uri=document.uri, name=document.name)
    result, failure = folder.paths.result(task), folder.paths.failure(task)
    if isinstance(document.outcome, Result):
        folder.storage.write(folder.paths.markdown(document.name), document.markdown.encode())
        folder.storage.write(result, document.outcome.to_json().encode())
        folder.storage.delete(failure)  # of an earlier collect
    else:
        folder.storage.write(failure, document.outcome.to_json().encode())


def _json_line(document: Document) -> str:
    """The record as it lies in the run's folder, behind the document's name."""
    record: dict[str, Any] = {"name": document.name}
    if document.outcome is None:
        record |= {"source_image": document.uri, "status": document.status}
    else:
        record |= json.loads(document.outcome.to_json())
    return json.dumps(record, ensure_ascii=False) + "\n"


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("name", pa.string(), nullable=False),
            pa.field("source_image", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            ("code", pa.string()),
            ("message", pa.string()),
            pa.field("pages", pa.int32(), nullable=False),
            pa.field("lines", pa.int32(), nullable=False),
            ("mean_confidence", pa.float64()),
            ("markdown", pa.string()),
            ("warnings", pa.list_(pa.string())),
            ("engine", pa.string()),
            ("model", pa.string()),
            ("revision", pa.string()),
            ("seconds", pa.float64()),
            ("timestamp", pa.timestamp("us", tz="UTC")),
        ]
    )


def _from_receipts(attempts: Iterable[list[Receipt]]) -> tuple[float | None, int | None]:
    """Wall seconds in which any worker had work (the night before a `resume` doesn't count), and bytes of sources."""
    spans: list[tuple[datetime, datetime]] = []
    sizes: dict[str, int] = {}
    for receipts in attempts:
        starts = [receipt.timestamp - timedelta(seconds=receipt.seconds) for receipt in receipts]
        if starts:
            spans.append((min(starts), max(receipt.timestamp for receipt in receipts)))
        sizes |= {receipt.uri: receipt.bytes for receipt in receipts if receipt.bytes is not None}
    if not spans:
        return None, None
    seconds, until = 0.0, datetime.min.replace(tzinfo=spans[0][0].tzinfo)
    for start, end in sorted(spans):
        seconds += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    return seconds, sum(sizes.values())


def _listed(troubled: list[Document], troubles: int) -> str:
    """The documents that want attention, for summary.md."""
    if not troubled:
        return ""
    rows = [f"| {_cell(document.name)} | {document.status} | {_cell(document.message)} |" for document in troubled]
    more = [f"\n… and {troubles - len(troubled):,} more, in `results.jsonl`."] if troubles > len(troubled) else []
    return (
        "\n".join(["\n### Documents to look at\n", "| document | outcome | why |", "| --- | --- | --- |", *rows, *more])
        + "\n"
    )


def _labelled(counts: dict[str, int], name: str) -> str:
    """The rows of the labelled set, for summary.md."""
    told = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    return f"\n### Labelled rows\n\n{sum(counts.values()):,} ({told}), in `{name}`.\n"


def _cell(text: str) -> str:
    """A cell of a table that shows what a document is called, whatever markdown or HTML that would be."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", " ".join(text.split())[:300])
