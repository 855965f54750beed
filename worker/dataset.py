"""Datasets of images in parquet files: opened, and read row by row, wherever they lie.

A row's image has an address of its own, `parquet+s3://bucket/set.parquet#column=image&root=…&row=17`, so that a row is
a document like any other. Parquet: https://parquet.apache.org/docs/file-format/
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
import threading
import weakref
from bisect import bisect_right
from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlencode

from worker.contract import FailureCode
from worker.errors import BadRequest, DocumentError
from worker.storage import Fetched, NotFound, Storage, file_errors, path_uri, to_uri, uri_path

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

PREFIX = "parquet+"
BUFFER = 4 << 20  # bytes of a column that are read at a time
BATCH = 16  # rows of images that are decoded at a time
SAMPLES, SAMPLE = 16, 1 << 14  # pieces of a file, and bytes of each
KEPT = 4  # batches that stay in memory: tasks come nearly in the order of rows


class ParquetSet:
    """An open parquet file. Close it when done."""

    def __init__(self, storage: Storage, uri: str) -> None:
        """Raises: BadRequest where it is no parquet file, DocumentError where it can't be read."""
        import pyarrow as pa
        import pyarrow.parquet

        self.uri = uri
        self._file = storage.open(uri)
        try:
            # Not buffered ahead: that would read a column of images as a whole, over all row groups.
            self.parquet = pa.parquet.ParquetFile(self._file, buffer_size=BUFFER, pre_buffer=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            self._file.close()
            raise BadRequest(f"{uri} is not a parquet file, or is damaged: {error}") from error

    @property
    def rows(self) -> int:
        return int(self.parquet.metadata.num_rows)

    @property
    def schema(self) -> pyarrow.Schema:
        return self.parquet.schema_arrow

    def fingerprint(self) -> str:
        """Of its footer, which holds the schema and sizes, places and statistics of all columns, and of samples."""
        size = self._file.seek(-8, os.SEEK_END) + 8
        footer = int.from_bytes(self._file.read(4), "little")  # the file ends in its length and "PAR1"
        self._file.seek(size - 8 - footer)
        told = hashlib.blake2b(f"{size} ".encode() + self._file.read(footer), digest_size=16)
        last = max(0, size - SAMPLE)
        for place in sorted({last * number // SAMPLES for number in range(SAMPLES + 1)}):
            self._file.seek(place)
            told.update(self._file.read(SAMPLE))
        return told.hexdigest()

    def close(self) -> None:
        self.parquet.close()
        self._file.close()

    def __enter__(self) -> ParquetSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def column_kind(schema: pyarrow.Schema, column: str) -> Literal["path", "bytes", "struct"]:
    """What a column of images holds: paths or URIs, embedded files, or both as Hugging Face's `datasets` writes them,
    `struct<bytes: binary, path: string>`.

    Raises: BadRequest where there is no such column, or it holds something else.
    """
    import pyarrow as pa

    if schema.names.count(column) != 1:
        raise BadRequest(f"there is no column {column}: name the one with the images; it has {', '.join(schema.names)}")
    type_ = schema.field(column).type
    if is_text(type_):
        return "path"
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_):
        return "bytes"
    if pa.types.is_struct(type_) and {"bytes", "path"} & {field.name for field in type_}:
        return "struct"
    raise BadRequest(f"column {column} is of type {type_}: neither paths nor images, nor a struct of bytes and path")


def is_text(type_: pyarrow.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(type_):
        return is_text(type_.value_type)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def image_uri(path: str | None, root: str) -> str:
    """Where a path of a dataset leads: URIs and absolute paths stay, relative ones start from `root`, a folder's URI.

    Raises: DocumentError for what is no path, and for a scheme that can't be read.
    """
    if not path:
        raise DocumentError(FailureCode.NOT_FOUND, "the row names no image")
    try:
        if "://" in path or os.path.isabs(path):
            return to_uri(path)
        if "\0" in path:
            raise BadRequest(f"{path!r} holds a NUL character, which no key or path has")
        if root.startswith("file://"):
            return path_uri(uri_path(root) / path)
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        key = f"{prefix.rstrip('/')}/{path}".removeprefix("/")
        if {".", ".."} & set(path.split("/")):  # meant as in a folder; else a key is taken as it stands
            key = posixpath.normpath("/" + key).removeprefix("/")
        return f"s3://{bucket}/{key}"
    except BadRequest as error:
        raise DocumentError(FailureCode.NOT_FOUND, str(error)) from error


def row_uri(dataset: str, column: str, row: int, root: str) -> str:
    """The address of a row's image, whatever the column holds."""
    return f"{_address(dataset, column, root)}{row}"


@lru_cache(maxsize=1)
def _address(dataset: str, column: str, root: str) -> str:
    """What the rows' addresses have in common."""
    return f"{PREFIX}{dataset}#{urlencode({'column': column, 'root': root})}&row="


class RowImages:
    """Fetches the images of rows. Thread-safe; fastest where rows are asked for in their order."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._column: _Column | None = None  # the one that was read last: a run has one

    def fetch(self, uri: str, folder: Path) -> Fetched:
        """As of `Storage`."""
        dataset, _, fragment = uri.removeprefix(PREFIX).rpartition("#")
        given = {name: values[0] for name, values in parse_qs(fragment, keep_blank_values=True).items()}
        try:
            column, row, root = given["column"], int(given["row"]), given["root"]
        except (KeyError, ValueError) as error:
            raise NotFound(uri, ": it does not say which row of which column") from error
        with self._lock:
            if self._column is None or self._column.of != (dataset, column):
                self._column = _Column(self._storage, dataset, column)
            value = self._column.value(row)
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if not isinstance(value, bytes):
            return self._storage.fetch(image_uri(value, root), folder)
        with file_errors(uri):
            descriptor, name = tempfile.mkstemp(dir=folder)
            with open(descriptor, "wb") as file:
                file.write(value)
        return Fetched(Path(name), len(value), None, temporary=True)


class _Column:
    """One column of a dataset, read forwards in small batches; going back starts anew at the row's group."""

    def __init__(self, storage: Storage, dataset: str, column: str) -> None:
        self.of = (dataset, column)
        self._set = ParquetSet(storage, dataset)
        weakref.finalize(self, self._set.close)  # a storage, which holds us, has no end of its own
        groups = [self._set.parquet.metadata.row_group(number).num_rows for number in range(self._group_count)]
        self._starts = [sum(groups[:number]) for number in range(len(groups))]
        self._kept: deque[tuple[int, Any]] = deque(maxlen=KEPT)
        self._batches: Any = iter(())
        self._next = -1  # row that the next batch begins with; nothing is begun

    def value(self, row: int) -> Any:
        """Raises: DocumentError where there is no such row, or it is damaged; BadRequest where the file is another."""
        import pyarrow as pa

        dataset, column = self.of
        if not 0 <= row < self._set.rows:
            raise NotFound(f"row {row} of {dataset}")
        for start, values in self._kept:
            if start <= row < start + len(values):
                return values[row - start].as_py()
        group = bisect_right(self._starts, row) - 1
        try:
            if not self._starts[group] <= self._next <= row:
                self._kept.clear()
                self._next = self._starts[group]
                self._batches = self._set.parquet.iter_batches(
                    BATCH, row_groups=range(group, self._group_count), columns=[column], use_threads=False
                )
            while self._next <= row:
                values = next(self._batches).column(0)
                self._kept.append((self._next, values))
                self._next += len(values)
        except (pa.ArrowException, OSError, StopIteration) as error:
            self._next = -1
            why = str(error) or "its group ends before it"
            raise DocumentError(FailureCode.CORRUPT, f"row {row} of {dataset} cannot be read: {why}") from error
        except BaseException:  # of storage: the reader has ended with it
            self._next = -1
            raise
        start, values = self._kept[-1]
        return values[row - start].as_py()

    @property
    def _group_count(self) -> int:
        return int(self._set.parquet.metadata.num_row_groups)
