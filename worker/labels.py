"""What came of a dataset's rows, as rows: the checkpoint parts below `labels/`, one a shard.

A part holds the rows of its shard that have a task, in their order; `jobs.dataset` joins them to the dataset's own
columns. The types are those that OCRStorageItem has in a file (ocr/data/schemas/storage.py of the GitHub repository
Wchoi189/upstageailab-ocr-recsys-competition-ocr-2): polygons are list<list<list<double>>>, texts and labels
list<string>, metadata a struct.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from worker.contract import Failure, Page, Result, RunPaths, Task
from worker.outcomes import read_outcome
from worker.scratch import Scratch
from worker.storage import Storage, file_errors

if TYPE_CHECKING:
    import pyarrow

READERS = 16  # results read at the same time
ROWS = 500  # that are turned into a table at a time


def part_schema() -> pyarrow.Schema:
    """Of a part: `row`, and the columns of the labelled set that the reading decides."""
    import pyarrow as pa

    metadata = pa.struct(
        [
            ("row", pa.int64()),  # of the dataset, from 0
            ("duplicate_of", pa.int64()),  # the earlier row with the same image, whose reading this is
            ("source", pa.string()),  # URI that was read
            ("unit", pa.string()),  # what a text is: word, line or page; null where there is none
            ("engine", pa.string()),
            ("model", pa.string()),
            ("revision", pa.string()),
            ("rotation", pa.int32()),  # degrees clockwise that make the image upright; polygons are turned back
            ("pages", pa.int32()),  # of the source, whose first is read
            ("seconds", pa.float64()),
            ("attempt", pa.int32()),
            ("timestamp", pa.timestamp("us", tz="UTC")),
            ("code", pa.string()),  # of a failure
            ("error", pa.string()),
            ("warnings", pa.list_(pa.string())),
            ("details", pa.string()),  # JSON: what the engine tells of the page
        ]
    )
    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("width", pa.int64(), nullable=False),
            pa.field("height", pa.int64(), nullable=False),
            pa.field("polygons", pa.list_(pa.list_(pa.list_(pa.float64()))), nullable=False),
            pa.field("texts", pa.list_(pa.string()), nullable=False),
            pa.field("labels", pa.list_(pa.string()), nullable=False),
            pa.field("metadata", metadata, nullable=False),
            pa.field("confidences", pa.list_(pa.float64()), nullable=False),
            pa.field("status", pa.string(), nullable=False),
        ]
    )


def write_part(storage: Storage, paths: RunPaths, shard: int, tasks: list[Task]) -> None:
    """Writes the part of a shard whose tasks have ended, from their outcomes."""
    import pyarrow as pa
    import pyarrow.parquet

    with file_errors(tempfile.gettempdir()), Scratch() as scratch:
        path = scratch / "part.parquet"
        with pa.parquet.ParquetWriter(path, part_schema(), compression="zstd", write_page_checksum=True) as part:
            for table in tables(storage, paths, tasks):
                part.write_table(table)
        storage.upload(paths.labels(shard), path)


def tables(storage: Storage, paths: RunPaths, tasks: list[Task]) -> Iterator[pyarrow.Table]:
    """What has become of the tasks so far, a bounded number of rows at a time."""
    import pyarrow as pa

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(tasks), ROWS):
            some = tasks[start : start + ROWS]
            outcomes = pool.map(lambda task: read_outcome(storage, paths, task), some)
            rows = [_row(task, outcome) for task, outcome in zip(some, outcomes, strict=True)]
            yield pa.Table.from_pylist(rows, part_schema())


def _row(task: Task, outcome: Result | Failure | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"row": task.row, "source": task.uri}
    row: dict[str, Any] = {"row": task.row, "width": 0, "height": 0, "metadata": metadata, "status": "failed"}
    row |= {"polygons": [], "texts": [], "labels": [], "confidences": []}
    if outcome is None:
        metadata["error"] = "no outcome yet"
        return row | {"status": "unaccounted"}
    if isinstance(outcome, Failure):
        metadata |= {"code": outcome.code.value, "error": outcome.message}
        metadata |= {"attempt": outcome.attempt, "timestamp": outcome.timestamp}
        return row
    page, meta = outcome.pages[0], outcome.meta
    width, height = page.scaled_from or _decoded_size(page)
    metadata |= {"engine": meta.engine, "model": meta.model, "revision": meta.revision, "rotation": page.rotation}
    metadata |= {"pages": meta.source_pages or 1, "seconds": meta.seconds, "attempt": meta.attempt}
    metadata |= {"timestamp": meta.timestamp, "warnings": outcome.warnings, "unit": _unit(page)}
    if page.engine:
        metadata["details"] = json.dumps(page.engine, ensure_ascii=False)
    row |= {"width": width, "height": height, "status": page.status}
    if page.lines:
        row["texts"] = [line.text for line in page.lines]
        row["labels"] = [line.role.value if line.role else "text" for line in page.lines]
        row["confidences"] = [line.confidence for line in page.lines]
        row["polygons"] = [list(to_image(line.polygon or [], page)) for line in page.lines]
    elif page.markdown.strip():  # of an engine that doesn't say where on the page a text is
        row |= {"texts": [page.markdown], "labels": ["text"], "confidences": [None], "polygons": [[]]}
    return row


def _unit(page: Page) -> str | None:
    if page.lines:
        return str((page.engine or {}).get("unit", "line"))
    return "page" if page.markdown.strip() else None


def to_image(polygon: Iterable[tuple[int, int]], page: Page) -> Iterator[list[float]]:
    """A polygon of the upright page in pixels of the image: as decoded by its EXIF tag, before any scaling."""
    width, height = _decoded_size(page)
    full_width, full_height = page.scaled_from or (width, height)
    for x, y in polygon:
        match page.rotation:
            case 90:
                x, y = y, height - x
            case 180:
                x, y = width - x, height - y
            case 270:
                x, y = width - y, x
        yield [x * full_width / width, y * full_height / height]


def _decoded_size(page: Page) -> tuple[int, int]:
    """Width and height before the page was turned upright."""
    return (page.height, page.width) if page.rotation in (90, 270) else (page.width, page.height)
