"""After a crash: the rest of the shard is read by child processes, so that no document can sink it.

The tasks that were in flight are read first, one at a time; one that kills the worker again has failed. A child that
dies costs no attempt of the shard, so any number of such documents is dealt with in one.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from typing import Literal

from worker.contract import ExitCode, FailureCode, Marker, Receipt, RunPaths, Task
from worker.marker import read_marker
from worker.outcomes import Ended, write_failure
from worker.receipts import ReceiptLog, parse_line, print_line
from worker.settings import Settings
from worker.storage import Storage

log = logging.getLogger(__name__)

UNSEEN_DEATHS = 4  # of a document's readers, supervisor and all, before it is blamed: a machine may die beside it
_FINAL = (ExitCode.BAD_REQUEST, ExitCode.TRY_AGAIN, ExitCode.DRAINED)  # not the fault of a document


class Supervisor:
    """Runs the worker for one shard as children, in turns: the suspects, then the rest."""

    def __init__(
        self,
        settings: Settings,
        storage: Storage,
        paths: RunPaths,
        tasks: list[Task],
        ended: Ended,
        receipts: ReceiptLog,
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._paths = paths
        self._tasks = {task.key: task for task in tasks}
        self._ended = ended
        self._receipts = receipts
        self._child: subprocess.Popen[str] | None = None
        self._draining = False

    def drain(self) -> None:
        """Passes the request on; safe to call from a signal handler."""
        self._draining = True
        if child := self._child:  # which may end, and be forgotten, at this moment
            child.send_signal(signal.SIGTERM)

    def run(self, marker: Marker) -> ExitCode:
        """From the marker that a crash left, to the end of the shard."""
        seen = False  # whether we were there when the worker died: then nothing but what it read is to blame
        while not self._draining:
            suspects = self._judge(marker, seen)
            marker = Marker(attempt=self._settings.attempt, suspects=suspects, isolated=bool(suspects))
            self._storage.write(self._marker_uri, marker.to_json().encode())
            self._receipts.flush()
            code = self._run_child("suspects" if suspects else "rest")
            if code in _FINAL or (code == ExitCode.OK and not suspects):
                return ExitCode(code)
            marker, seen = Marker(attempt=self._settings.attempt), True
            if code != ExitCode.OK:
                marker = read_marker(self._storage, self._marker_uri) or marker
                if not marker.in_flight:
                    log.error("the worker ends with %d before it reads anything", code)
                    return ExitCode.CRASHED
        return ExitCode.DRAINED

    def _judge(self, marker: Marker, seen: bool) -> dict[str, int]:
        """Those in flight at the crash, with their count of crashes; whoever was alone in flight has failed."""
        suspects = {key: count for key, count in marker.suspects.items() if self._is_open(key)}
        for key in marker.in_flight:
            if not self._is_open(key):
                continue
            suspects[key] = suspects.get(key, 0) + 1
            if marker.isolated and (seen or suspects[key] >= UNSEEN_DEATHS):
                task = self._tasks[key]
                message = (
                    f"the worker died {suspects.pop(key)} times while it read this document, the last time nothing else"
                )
                failure = self._paths.failure(task)
                receipt = write_failure(
                    self._settings, self._storage, failure, task, FailureCode.WORKER_CRASHED, message
                )
                self._ended.note(receipt)
                self._receipts.add(receipt)
        return suspects

    def _is_open(self, key: str) -> bool:
        return key in self._tasks and not self._ended(self._tasks[key])

    def _run_child(self, phase: Literal["suspects", "rest"]) -> int:
        """The child's exit code, as a shell would give it: 128 + signal."""
        log.info("reading %s in a process of its own", "the suspects of a crash" if phase == "suspects" else "the rest")
        environment = {
            **os.environ,
            "PAGEFLEET_SUPERVISED": phase,
            "PAGEFLEET_DRAIN_SECONDS": str(0.8 * self._settings.drain_seconds),  # it must be gone before we are
        }
        command = [sys.executable, "-P", "-m", "worker"]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, encoding="utf-8", errors="replace"
        ) as self._child:
            if self._draining:
                self._child.send_signal(signal.SIGTERM)
            assert self._child.stdout
            for line in self._child.stdout:
                said = parse_line(line)
                if isinstance(said, Receipt):
                    self._ended.note(said)
                    self._receipts.add(said)
                elif said:
                    print_line(line.rstrip("\n"))
        code = self._child.returncode
        self._child = None
        return 128 - code if code < 0 else code

    @property
    def _marker_uri(self) -> str:
        return self._paths.marker(self._settings.shard)
