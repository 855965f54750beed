"""The local runner: worker processes, started and judged exactly as AWS Batch does it.

The same environment, the same exit codes, the same `evaluateOnExit` rules; shards are handed out as processes free up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import IO, Any

from worker.contract import ExitCode, Receipt
from worker.receipts import ProgressNews, parse_line

ATTEMPTS = 5
# What AWS Batch is told as `evaluateOnExit`: the first match decides.
RULES: tuple[tuple[str, str], ...] = (("1*", "RETRY"), ("75", "RETRY"), ("*", "EXIT"))
TAIL_LINES = 30  # of a worker's standard error, kept for the message when its shard fails


@dataclass
class ShardEnd:
    """How a shard ended after its last attempt."""

    shard: int
    attempts: int
    exit_code: int
    stderr: list[str]

    @property
    def ok(self) -> bool:
        return self.exit_code == ExitCode.OK


@dataclass(frozen=True)
class RunnerOptions:
    workers: int
    threads: int  # of each worker
    attempts: int = ATTEMPTS
    resumed_after: int = 0  # the last attempt of the run before this
    retry_failed: bool = False
    pause: float = 2.0  # seconds before an attempt that follows exit 75, doubled each time
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class Runner:
    """Runs the shards of one run. `on_receipt` and `on_progress` are called from several threads, one at a time."""

    def __init__(
        self,
        run_uri: str,
        options: RunnerOptions,
        *,
        on_receipt: Callable[[Receipt], None],
        on_progress: Callable[[ProgressNews], None],
        on_log: Callable[[str], None],
    ) -> None:
        self._run_uri = run_uri
        self._options = options
        self._on_receipt = on_receipt
        self._on_progress = on_progress
        self._on_log = on_log
        self._telling = threading.Lock()
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._lock = threading.RLock()  # a second signal may come while the first is handled
        self._stopping = threading.Event()

    def run(self, shards: list[int]) -> list[ShardEnd]:
        """Returns when every shard has ended, or all workers have drained after `stop`."""
        waiting = deque(shards)
        ends: list[ShardEnd] = []

        def serve() -> None:
            while not self._stopping.is_set():
                try:
                    shard = waiting.popleft()
                except IndexError:
                    return
                try:
                    ends.append(self._run_shard(shard))
                except Exception as error:  # such as no memory for another process: the other shards go on
                    ends.append(ShardEnd(shard, 0, ExitCode.CRASHED, [f"{type(error).__name__}: {error}"]))

        threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(self._options.workers, len(shards)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # in slices, so that Ctrl-C is handled
                thread.join(0.2)
        return sorted(ends, key=lambda end: end.shard)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Asks the workers to drain, or with SIGKILL ends them; hands out no more shards."""
        self._stopping.set()
        with self._lock:
            for process in self._processes.values():
                process.send_signal(number)

    def _run_shard(self, shard: int) -> ShardEnd:
        """As Batch would: attempts until the rules say EXIT, or there have been enough."""
        pause = self._options.pause
        for attempt in range(1, self._options.attempts + 1):
            code, stderr = self._run_worker(shard, attempt)
            action = next(action for pattern, action in RULES if fnmatchcase(str(code), pattern))
            end = ShardEnd(shard, attempt, code, stderr)
            if code == ExitCode.OK or action == "EXIT" or self._stopping.is_set():
                return end
            if attempt < self._options.attempts:
                error = last_error(stderr)
                why = f": {error}; trying again" if error else ", trying again"
                self._tell(self._on_log, f"shard {shard}: attempt {attempt} ended with {code}{why}")
                if code == ExitCode.TRY_AGAIN:
                    self._stopping.wait(pause)
                    pause *= 2
        return end

    def _run_worker(self, shard: int, attempt: int) -> tuple[int, list[str]]:
        """Exit code, as a shell would give it, and the tail of standard error."""
        environment = {
            **self._options.environment,
            "PAGEFLEET_RUN_URI": self._run_uri,
            "PAGEFLEET_ATTEMPT_OFFSET": str(self._options.resumed_after),
            "PAGEFLEET_RETRY_FAILED": "1" if self._options.retry_failed else "",
            "PAGEFLEET_THREADS": str(self._options.threads),
            "PAGEFLEET_PROGRESS_SECONDS": "0.5",
            "AWS_BATCH_JOB_ARRAY_INDEX": str(shard),
            "AWS_BATCH_JOB_ATTEMPT": str(attempt),
        }
        with self._lock:
            if self._stopping.is_set():
                return ExitCode.DRAINED, []
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "worker"],  # -P: a worker.py beside the documents is not ours
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C in the terminal reaches us alone; we ask the workers to drain
            )
            self._processes[shard] = process
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        with process:
            assert process.stdout
            assert process.stderr
            reader = threading.Thread(target=self._keep, args=(shard, process.stderr, tail), daemon=True)
            reader.start()
            for line in process.stdout:
                self._hear(line)
            code = process.wait()
            reader.join()
        with self._lock:
            del self._processes[shard]
        return (128 - code if code < 0 else code), [line.rstrip("\n") for line in tail]

    def _keep(self, shard: int, stderr: IO[str], tail: deque[str]) -> None:
        """Keeps the last lines, and tells warnings, such as that a server is away: those of the worker, and the first
        of anyone else, as libraries may repeat themselves."""
        warned = False
        for line in stderr:
            tail.append(line)
            ours = " WARNING worker." in line
            if (warning := _logged(line, "WARNING")) and (ours or not warned):
                warned = warned or not ours
                self._tell(self._on_log, f"shard {shard}: {warning}")

    def _hear(self, line: str) -> None:
        """A line of a worker's standard output: a receipt, or progress."""
        said = parse_line(line)
        if isinstance(said, Receipt):
            self._tell(self._on_receipt, said)
        elif said:
            self._tell(self._on_progress, said)

    def _tell(self, listener: Callable[[Any], None], what: object) -> None:
        with self._telling:
            listener(what)


def last_error(stderr: Sequence[str]) -> str | None:
    """What a worker said last of why it ends, without the log's time and name."""
    return next((said for line in reversed(stderr) if (said := _logged(line, "ERROR"))), None)


def _logged(line: str, level: str) -> str | None:
    """The message of a line that the worker's log has at that level."""
    return line.partition(f" {level} ")[2].partition(": ")[2].rstrip("\n") or None


def share_cpus(cpus: int, workers: int | None = None) -> tuple[int, int]:
    """Workers, as asked for or by default, and threads of each.

    An engine uses two to four threads well, and loads once a worker.
    """
    workers = workers or max(1, cpus // 4)
    return workers, max(1, cpus // workers)
