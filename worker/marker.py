"""The marker of a shard names the tasks in flight, so that a worker that dies leaves its suspects' names behind.

It is written before a page reaches the engine, once for many tasks: whoever needs a task marked writes all that are
in flight by then.
"""

from __future__ import annotations

import threading

from worker.contract import Marker
from worker.errors import DocumentError, TryAgain
from worker.storage import NotFound, Storage


class InFlight:
    """The tasks in flight, and the marker that names them. Thread-safe."""

    def __init__(self, storage: Storage, uri: str, marker: Marker) -> None:
        self._storage = storage
        self._uri = uri
        self._marker = marker.model_copy(update={"in_flight": []})
        self._tasks: dict[str, None] = {}  # a dict keeps the order of admission
        self._written: set[str] = set()
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def add(self, task: str) -> None:
        with self._lock:
            self._tasks[task] = None

    def remove(self, task: str) -> None:
        """Lets the marker name the task until it is next written: a task with an outcome is no suspect."""
        with self._lock:
            self._tasks.pop(task, None)

    def ensure_written(self, task: str) -> None:
        """Returns when the marker in storage names the task."""
        with self._writing:
            with self._lock:
                if task in self._written:
                    return
                tasks = list(self._tasks)
            self._write(tasks)
            with self._lock:
                self._written = set(tasks)

    def clear(self) -> None:
        """At an orderly end nothing is in flight: whatever the end was, no document is to blame for it."""
        with self._writing:
            if not self._written:
                return
            try:
                self._write([])
            except (TryAgain, DocumentError):  # a full disk lets nothing be written, but deleted
                self._storage.delete(self._uri)

    def _write(self, tasks: list[str]) -> None:
        self._storage.write(self._uri, self._marker.model_copy(update={"in_flight": tasks}).to_json().encode())


def read_marker(storage: Storage, uri: str) -> Marker | None:
    """The marker that an earlier attempt left; None where there is none."""
    try:
        return Marker.model_validate_json(storage.read(uri))
    except NotFound:
        return None
