"""Receipts: one line for each task that ended, in the run's folder and on standard output."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass

from worker.contract import Receipt
from worker.errors import TryAgain
from worker.storage import NotFound, Storage

PROGRESS = "progress"  # the key that tells a line of progress on standard output from a receipt
FLUSH_SECONDS = 10.0  # between writes of the receipts file, which grows by being written anew: S3 cannot append


_printing = threading.Lock()
_stdout = 1  # the file descriptor of our lines


@dataclass(frozen=True)
class ProgressNews:
    """What has happened since the last line of progress."""

    pages: int = 0  # that ended
    opened: int = 0  # documents
    expected: int = 0  # pages of these


class ReceiptLog:
    """Collects the receipts of one shard attempt. Thread-safe."""

    def __init__(self, storage: Storage, uri: str | None, *, progress_seconds: float) -> None:
        """Without a `uri` they go to standard output alone."""
        self._storage = storage
        self._uri = uri
        self._lines: list[str] = []
        self._written = -1  # lines; an attempt that has ended nothing leaves an empty file, so that it is counted
        self._flushed = time.monotonic()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._progress_seconds = progress_seconds
        self._news = ProgressNews()  # since it was last told
        self._told = time.monotonic()

    @property
    def failed(self) -> list[Receipt]:
        return [receipt for line in self._lines if (receipt := Receipt.model_validate_json(line)).outcome == "failed"]

    def add(self, receipt: Receipt) -> None:
        line = receipt.to_json()
        with self._lock:
            self._lines.append(line)
        print_line(line)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def count_page(self) -> None:
        """A page has ended: tells so now and then, since one document may have thousands."""
        self._tell(pages=1)

    def expect_pages(self, pages: int) -> None:
        """A document was opened, and that many pages will come of it."""
        self._tell(opened=1, expected=pages)

    def flush(self) -> None:
        with self._writing:
            self._flushed = time.monotonic()
            with self._lock:
                lines = list(self._lines)
            if self._uri and len(lines) != self._written:
                self._storage.write(self._uri, "".join(line + "\n" for line in lines).encode())
                self._written = len(lines)

    def _tell(self, **more: int) -> None:
        with self._lock:
            self._news = ProgressNews(**{key: value + more.get(key, 0) for key, value in asdict(self._news).items()})
            now = time.monotonic()
            if now - self._told < self._progress_seconds:
                return
            self._told = now
            news, self._news = self._news, ProgressNews()
        print_line(json.dumps({PROGRESS: asdict(news)}))


def read_receipts(storage: Storage, uri: str) -> list[Receipt]:
    """The receipts of one shard attempt; none where the attempt wrote none."""
    try:
        data = storage.read(uri)
    except NotFound:
        return []
    return [Receipt.model_validate_json(line) for line in data.splitlines()]


def take_standard_output() -> None:
    """Keeps standard output for lines of ours: what libraries print goes to standard error from now on."""
    global _stdout
    sys.stdout.flush()
    _stdout = os.dup(1)
    os.dup2(2, 1)


def print_line(line: str) -> None:
    """Whole lines only, whichever threads print."""
    data = line.encode() + b"\n"
    with _printing:
        try:
            while data:
                data = data[os.write(_stdout, data) :]
        except BrokenPipeError as error:
            raise TryAgain("whoever started this worker has gone: it stops, and what is left can be resumed") from error


def parse_line(line: str) -> Receipt | ProgressNews | None:
    """What a worker says in a line of its standard output; None where it is nothing of ours."""
    try:
        record = json.loads(line)
        return ProgressNews(**record[PROGRESS]) if PROGRESS in record else Receipt.model_validate(record)
    except (ValueError, TypeError):
        return None
