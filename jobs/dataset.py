"""Pseudo-labelling: a parquet dataset of images becomes a run, and the run's outcomes a labelled dataset.

A shard is a batch of consecutive rows. Rows stream, twice where duplicates are looked for: of each only a hash stays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from jobs.errors import JobError, UsageError
from jobs.plan import MAX_SHARDS, Plan, PlannedTask, safe_segment
from jobs.results import RunFolder
from jobs.wording import plural
from worker import __version__
from worker.contract import Dataset, Task
from worker.dataset import ParquetSet, column_kind, image_uri, is_text, row_uri
from worker.engines.presets import forbidden_to_label
from worker.errors import BadRequest, BadSetup, DocumentError
from worker.labels import part_schema, tables
from worker.scratch import Scratch
from worker.storage import NoBucket, NotFound, Storage, file_errors

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

ROW_GROUP = 1_000  # rows of the labelled set
AHEAD = 4  # parts read ahead, so that S3's latency is hidden
# Bytes of images in one row group. It is read from its start for any of its rows, a page at a time; but pyarrow writes
# pages, and dictionaries, of 1,024 values of any size.
LARGE_GROUP = 1 << 28
DEFAULT_SPLIT = "train"  # of a dataset without one: the default of the format's own model


@dataclass(frozen=True)
class DatasetRequest:
    """What `pagefleet run|submit --dataset` was asked for. `uri` is a file's."""

    uri: str
    image_column: str = "image_path"
    image_root: str | None = None  # URI of a folder; None: that of the dataset
    batch_size: int = 500
    accept_licence: bool = False
    in_s3: bool = False  # the images have to be


def output_name(uri: str) -> str:
    """The labelled set's file name: `train.parquet` becomes `train_pseudo_labels.parquet`."""
    return f"{dataset_name(uri)}_pseudo_labels.parquet"


def dataset_name(uri: str) -> str:
    """The file's name without its extension, also as a file name here."""
    name = uri.rpartition("/")[2]
    name = unquote(name) if uri.startswith("file://") else name
    return safe_segment(name.removesuffix(".parquet") or "dataset")


def plan_dataset(storage: Storage, request: DatasetRequest, engine: str, engine_options: Mapping[str, Any]) -> Plan:
    """A run over a dataset's rows. What is the matter with single rows they tell when they are read.

    Raises: UsageError where the dataset can't be labelled: it is missing, empty or no parquet file, it has no such
    column, or the engine's licence forbids it.
    """
    accepted = check_licence(engine, engine_options, accept=request.accept_licence)
    try:
        with ParquetSet(storage, request.uri) as opened:
            kind = column_kind(opened.schema, request.image_column)
            for name in ("id", "split", "width", "height"):
                _check_column(opened.schema, name)
            rows, fingerprint = opened.rows, opened.fingerprint()
            group = _largest_group(opened, request.image_column)
    except (BadSetup, NoBucket):
        raise
    except (BadRequest, DocumentError) as error:
        raise UsageError(f"the dataset cannot be used: {error}") from error
    if not rows:
        raise UsageError(f"nothing to read: {request.uri} has no rows")
    warnings: list[str] = []
    batch_size = max(request.batch_size, -(-rows // MAX_SHARDS))
    if batch_size > request.batch_size:
        warnings.append(
            f"a run has at most {MAX_SHARDS:,} batches: they have {batch_size:,} rows each instead of "
            f"{request.batch_size:,}"
        )
    if kind != "path" and group > LARGE_GROUP:
        warnings.append(
            f"a row group of {request.uri} holds {group / 1e9:.1f} GB of images, which a worker may have to hold in "
            "memory: write the file with smaller ones (pyarrow: `row_group_size=100`)"
        )
    dataset = Dataset(
        uri=request.uri,
        rows=rows,
        fingerprint=fingerprint,
        addresses="",
        image_column=request.image_column,
        image_root=request.image_root or request.uri.rpartition("/")[0],
        batch_size=batch_size,
        output=output_name(request.uri),
        accepted_licence=accepted,
    )
    images = _Images(storage, dataset)
    duplicates, dataset.addresses = images.compare()
    if duplicates:
        name = f"{plural(len(duplicates), 'row')} {'names' if len(duplicates) == 1 else 'name'}"
        warnings.append(f"{name} the image of an earlier row: it is read once, for all of them")
    if request.in_s3 and kind == "path" and not any(uri.startswith("s3://") for uri, _ in images):
        raise UsageError(
            f"no row of {request.uri} names an image in S3, and a run on AWS reads nothing else: upload them, and say "
            "with --image-root where to"
        )
    tasks = rows - len(duplicates)
    return _DatasetPlan(
        root=request.uri,
        tasks=_RowTasks(images, duplicates, tasks),
        documents=tasks,
        shards=-(-rows // batch_size),
        warnings=warnings,
        dataset=dataset,
    )


def check_licence(engine: str, options: Mapping[str, Any], *, accept: bool) -> str | None:
    """The licence that a person has accepted, where one forbids training on what is read: that of the engine's model,
    of the model that it asks a server for, or of the one that it falls back to.

    Raises: UsageError where it was not accepted.
    """
    preset = forbidden_to_label(engine, options)
    if preset is None:  # as far as names tell: of a server that chooses the model itself, the worker learns it
        return "of whichever model reads" if accept else None
    if not accept:
        raise UsageError(
            f"{preset.name} must not label data that other models are trained on ({preset.licence.name}: "
            f"{preset.licence.limits}): choose another --engine; or, where the labels are for something else or its "
            "owner allows it, say so with --accept-licence, which is recorded in the run and in the labelled set"
        )
    return f"{preset.name}: {preset.licence.name} ({preset.licence.limits})"


def write_labels(folder: RunFolder) -> dict[str, int]:
    """Joins the dataset with what came of its rows: one row an input row, in their order, into the run's folder.
    Returns how many rows have which status.

    Raises: JobError where the dataset isn't the one that was planned any more.
    """
    import pyarrow as pa
    import pyarrow.parquet

    dataset = folder.run.dataset
    assert dataset
    counts: dict[str, int] = {}
    told = {"run": folder.run.id, "engine": folder.run.engine, "dataset": dataset.uri, "pagefleet": __version__}
    if dataset.accepted_licence:
        told["accepted_licence"] = dataset.accepted_licence
    schema = labels_schema().with_metadata({"pagefleet": json.dumps(told, ensure_ascii=False)})
    with (
        file_errors(tempfile.gettempdir()),
        Scratch() as scratch,
        _open_again(folder.storage, dataset) as opened,
    ):
        path = scratch / "labels.parquet"
        join = _Join(folder, dataset, opened)
        with pa.parquet.ParquetWriter(path, schema, compression="zstd") as labelled:
            for table in join.tables():
                for item in table.column("status").value_counts().to_pylist():
                    counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]
                labelled.write_table(table, row_group_size=ROW_GROUP)
        folder.storage.upload(folder.paths.file(dataset.output), path)
    return counts


def labels_schema() -> pyarrow.Schema:
    """Of the labelled set; `docs/datasets.md` describes each column."""
    import pyarrow as pa

    part = part_schema()
    own = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image_path", pa.string()),
        pa.field("image_filename", pa.string()),
    ]
    return pa.schema(own + [part.field(name) for name in part.names if name != "row"])


# ---- planning


class _DatasetPlan(Plan):
    """Shards are consecutive rows: a part of the labelled set each."""

    def by_shard(self) -> Iterator[list[Task]]:
        assert self.dataset
        assert isinstance(self.tasks, _RowTasks)
        tasks: list[Task] = []
        shard = 0
        for row, (uri, name, pages, _, _) in self.tasks.rows():
            while row >= (shard + 1) * self.dataset.batch_size:  # one may consist of duplicates alone
                yield tasks
                tasks, shard = [], shard + 1
            tasks.append(Task(uri=uri, name=name, pages=pages, row=row))
        yield tasks
        for _ in range(shard + 1, self.shards):
            yield []


class _RowTasks(Collection[PlannedTask]):
    """The tasks of a dataset, read from it each time they are asked for: those of a million rows need no memory."""

    def __init__(self, images: _Images, duplicates: dict[int, int], count: int) -> None:
        self._images = images
        self._duplicates = duplicates
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[PlannedTask]:
        return (task for _, task in self.rows())

    def __contains__(self, task: object) -> bool:
        return any(task == own for own in self)

    def rows(self) -> Iterator[tuple[int, PlannedTask]]:
        for row, (uri, file) in enumerate(self._images):
            if row not in self._duplicates:
                yield row, (uri, self._images.task_name(row, file), "1", None, None)  # a row is one image


class _Images:
    """(URI, file name) of each row's image, from a stream that begins anew with each iteration."""

    def __init__(self, storage: Storage, dataset: Dataset) -> None:
        self._storage = storage
        self._dataset = dataset

    def __iter__(self) -> Iterator[tuple[str, str]]:
        with _open_again(self._storage, self._dataset) as opened:
            embedded = column_kind(opened.schema, self._dataset.image_column) != "path"
            for row, path in enumerate(_paths(opened, self._dataset.image_column)):
                yield self._image(row, path, embedded=embedded)

    def _image(self, row: int, path: str | None, *, embedded: bool) -> tuple[str, str]:
        dataset = self._dataset
        if not embedded:
            with suppress(DocumentError):  # the row's address says the same when it is fetched
                uri = image_uri(path, dataset.image_root)
                return uri, _uri_file(uri)
        address = row_uri(dataset.uri, dataset.image_column, row, dataset.image_root)
        return address, file_name(path) if embedded else ""

    def task_name(self, row: int, file: str) -> str:
        """Where the outcome lies: distinct by the row, in a folder for each shard."""
        name = f"{row // self._dataset.batch_size:05d}/{row:08d}"
        return f"{name}-{safe_segment(file)}" if file else name

    def compare(self) -> tuple[dict[int, int], str]:
        """For each row whose image an earlier row has, by its URI: the first such row; and a hash of all URIs.

        Embedded images are not compared, which would mean reading them all.
        """
        import numpy as np

        digests = np.zeros((self._dataset.rows, 2), np.uint64)
        for row, (uri, _) in enumerate(self):
            digest = hashlib.blake2b(uri.encode("utf-8", "surrogateescape"), digest_size=16).digest()
            digests[row] = np.frombuffer(digest, np.uint64)
        return _first_of_equals(digests), hashlib.blake2b(digests.tobytes(), digest_size=16).hexdigest()


def _uri_file(uri: str) -> str:
    """The file name of an image, the same for all paths that lead to it."""
    return file_name(unquote(uri) if uri.startswith("file://") else uri)


def file_name(path: str | None) -> str:
    """The last part of a path or URI, as it stands; empty where there is none."""
    return path.rstrip("/").rpartition("/")[2] if path else ""


def _first_of_equals(digests: NDArray[np.uint64]) -> dict[int, int]:
    import numpy as np

    order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
    same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    firsts: dict[int, int] = {}
    for place in np.flatnonzero(same).tolist():
        before, row = int(order[place]), int(order[place + 1])
        firsts[row] = firsts.get(before, before)
    return firsts


def _paths(opened: ParquetSet, column: str) -> Iterator[str | None]:
    """The path of each row, as far as it has one, without reading embedded images."""
    path_column = _path_column(opened.schema, column)
    if path_column is None:
        yield from (None for _ in range(opened.rows))
        return
    for batch in _batches(opened, [path_column], ROW_GROUP):
        yield from _path_array(batch, column).to_pylist()


def _path_column(schema: pyarrow.Schema, column: str) -> str | None:
    kind = column_kind(schema, column)
    if kind == "struct" and any(field.name == "path" for field in schema.field(column).type):
        return f"{column}.path"
    return column if kind == "path" else None


def _path_array(batch: pyarrow.Table, column: str) -> pyarrow.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute

    values = batch.column(column)
    if pa.types.is_struct(values.type):
        values = pa.compute.struct_field(values, "path")
    return values.cast(pa.string())


def _batches(opened: ParquetSet, columns: list[str], size: int) -> Iterator[pyarrow.Table]:
    """Tables of exactly `size` rows, but the last one."""
    import pyarrow as pa

    waiting: list[Any] = []
    rows = 0
    try:
        for batch in opened.parquet.iter_batches(size, columns=columns, use_threads=False):
            waiting.append(batch)
            rows += batch.num_rows
            while rows >= size:
                table = pa.Table.from_batches(waiting)
                yield table.slice(0, size)
                rest = table.slice(size)
                waiting, rows = rest.to_batches(), rest.num_rows
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{opened.uri} is damaged: {error}") from error
    if rows:
        yield pa.Table.from_batches(waiting)


def _check_column(schema: pyarrow.Schema, name: str) -> None:
    """Raises: BadRequest for a column of ours that holds something else, or is there twice."""
    import pyarrow as pa

    if name not in schema.names:
        return
    if schema.names.count(name) > 1:
        raise BadRequest(f"there are several columns {name}: rename all but one")
    type_ = schema.field(name).type
    if not (is_text(type_) or pa.types.is_integer(type_) or pa.types.is_floating(type_)):
        raise BadRequest(f"column {name} is of type {type_}, neither text nor numbers: rename it")


def _largest_group(opened: ParquetSet, column: str) -> int:
    """Bytes of the image column in the row group that has most of it."""
    metadata = opened.parquet.metadata
    sizes = [0]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(index) for index in range(group.num_columns))
        sizes.append(
            sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.partition(".")[0] == column)
        )
    return max(sizes)


def _open_again(storage: Storage, dataset: Dataset) -> ParquetSet:
    """Raises: JobError where it is another file by now."""
    try:
        opened = ParquetSet(storage, dataset.uri)
    except (BadRequest, DocumentError) as error:
        raise JobError(f"the dataset of the run cannot be read any more: {error}") from error
    if opened.fingerprint() != dataset.fingerprint:
        opened.close()
        raise _changed(dataset)
    return opened


def _changed(dataset: Dataset) -> JobError:
    return JobError(
        f"{dataset.uri} has changed since the run was planned, and its rows cannot be told any more: put the old one "
        "back, or start a new run"
    )


# ---- joining


class _Join:
    """The labelled set, a shard after the other."""

    def __init__(self, folder: RunFolder, dataset: Dataset, opened: ParquetSet) -> None:
        self._folder = folder
        self._dataset = dataset
        self._opened = opened
        self._images = _Images(folder.storage, dataset)

    def tables(self) -> Iterator[pyarrow.Table]:
        duplicates, addresses = self._images.compare()
        if addresses != self._dataset.addresses:
            raise _changed(self._dataset)
        schema, column = self._opened.schema, self._dataset.image_column
        wanted = [name for name in ("id", "split", "width", "height") if name in schema.names]
        path_column = _path_column(schema, column)
        wanted += [path_column] if path_column and path_column not in wanted else []
        shards = range(self._folder.run.counts.shards)
        parts = _ahead(self._part, shards)
        given = _batches(self._opened, wanted, self._dataset.batch_size) if wanted else None
        for shard, part in zip(shards, parts, strict=True):
            first = shard * self._dataset.batch_size
            rows = range(first, min(first + self._dataset.batch_size, self._dataset.rows))
            yield self._joined(rows, next(given) if given else None, part, duplicates)

    def _joined(
        self, rows: range, given: pyarrow.Table | None, part: pyarrow.Table, duplicates: dict[int, int]
    ) -> pyarrow.Table:
        import pyarrow as pa
        import pyarrow.compute as pc

        paths = self._image_paths(rows, given)
        copied = [row for row in rows if row in duplicates]
        if copied:
            copies = self._copies(copied, duplicates, dict(zip(rows, paths, strict=True)))
            part = pa.concat_tables([part, copies]).sort_by("row")
        columns = {name: part.column(name) for name in part.column_names if name != "row"}
        for name in ("width", "height"):  # of an image that could not be read the dataset may know
            if given is not None and name in given.column_names and pa.types.is_integer(given.schema.field(name).type):
                told = pc.fill_null(given.column(name).cast(pa.int64()), 0)
                columns[name] = pc.if_else(pc.equal(columns[name], 0), told, columns[name])
        numbers = pa.chunked_array([pa.array(rows, pa.int64()).cast(pa.string())])
        if given is not None and "id" in given.column_names:  # where rows have ids, a number may be another row's
            numbers = pc.binary_join_element_wise("row", numbers, "-")
        columns["id"] = self._text(given, "id", numbers)
        columns["split"] = self._text(given, "split", pa.chunked_array([pa.array([DEFAULT_SPLIT] * len(rows))]))
        columns["image_path"] = pa.array(paths, pa.string())
        columns["image_filename"] = pa.array([file_name(path) or None for path in paths], pa.string())
        schema = labels_schema()
        return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)

    def _image_paths(self, rows: range, given: pyarrow.Table | None) -> list[str | None]:
        """As in the dataset; of an embedded image without a path, the address of its row."""
        dataset = self._dataset
        column = dataset.image_column
        kind = column_kind(self._opened.schema, column)
        has_paths = given is not None and column in given.column_names
        paths = _path_array(given, column).to_pylist() if has_paths else [None] * len(rows)
        if kind == "path":
            return list(paths)
        return [
            path or row_uri(dataset.uri, column, row, dataset.image_root) for row, path in zip(rows, paths, strict=True)
        ]

    @staticmethod
    def _text(given: pyarrow.Table | None, name: str, default: Any) -> Any:
        """A column of the dataset as text; the default where it is missing or null."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if given is None or name not in given.column_names:
            return default
        return pc.coalesce(given.column(name).cast(pa.string()), default)

    def _copies(self, rows: list[int], duplicates: dict[int, int], paths: dict[int, str | None]) -> pyarrow.Table:
        """What came of rows whose image an earlier row has: its reading, under their own numbers."""
        import pyarrow as pa

        tasks: dict[int, Task] = {}
        for row in rows:
            first, uri = duplicates[row], image_uri(paths[row], self._dataset.image_root)
            tasks[first] = Task(uri=uri, name=self._images.task_name(first, _uri_file(uri)), pages="1", row=first)
        folder = self._folder
        read = {
            told["row"]: told
            for table in tables(folder.storage, folder.paths, list(tasks.values()))
            for told in table.to_pylist()
        }
        copies = []
        for row in rows:
            told = read[duplicates[row]]
            copies.append(told | {"row": row, "metadata": told["metadata"] | {"row": row, "duplicate_of": told["row"]}})
        return pa.Table.from_pylist(copies, part_schema())

    def _part(self, shard: int) -> pyarrow.Table:
        """A shard's part; of one that has none, or a damaged one, what its outcomes tell."""
        import pyarrow as pa
        import pyarrow.parquet

        folder = self._folder
        tasks, uri = folder.tasks(shard), folder.paths.labels(shard)
        try:
            data = folder.storage.read(uri)
            if data:  # else it was taken back, because tasks were read again
                part = pa.parquet.read_table(pa.BufferReader(data), page_checksum_verification=True)
                if part.schema.equals(part_schema()) and part.column("row").to_pylist() == [task.row for task in tasks]:
                    return part
                log.warning("%s is not the part of these rows: they are taken from their outcomes", uri)
        except NotFound:
            pass
        except (pa.ArrowException, OSError) as error:
            log.warning("%s is damaged (%s): its rows are taken from their outcomes", uri, error)
        return pa.concat_tables([part_schema().empty_table(), *tables(folder.storage, folder.paths, tasks)])


def _ahead(make: Callable[[int], pyarrow.Table], numbers: Iterable[int]) -> Iterator[pyarrow.Table]:
    """In order, a few made ahead."""
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[Future[pyarrow.Table]] = deque()
        for number in numbers:
            waiting.append(pool.submit(make, number))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
