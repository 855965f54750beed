"""A server program beside the worker: started, watched, started again when it dies, and stopped with the worker."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from worker.errors import TryAgain
from worker.wording import plural

log = logging.getLogger(__name__)

RESTARTS = 5
STOP_SECONDS = 10.0  # from SIGTERM to SIGKILL
POLL_SECONDS = 0.5
# In which a server that answers no more must have gone: vLLM outlives its engine by a second or two.
DYING_SECONDS = 30.0


class ServerLost(TryAgain):
    """The server does not come up, or has died too often."""


class Beside:
    """A server and the thread that watches it. Its output goes to standard error: standard output is the worker's."""

    def __init__(
        self,
        command: Sequence[str],
        ready: Callable[[], bool],
        *,
        start_seconds: float,
        environment: Mapping[str, str] | None = None,
        restarts: int = RESTARTS,
    ) -> None:
        """`ready` tells whether the server answers; `start_seconds` is how long it may take to, each time; `restarts`
        is how often it is started again in a row."""
        self._command = [sys.executable, "-P", "-m", "worker.tether", *command]
        self._ready = ready
        self._start_seconds = start_seconds
        self._environment = environment
        self._restarts = restarts
        self.starts = 0  # so far; the number of the life that the server is in
        self._deaths = 0  # in a row; see `vouch`
        self._process: subprocess.Popen[bytes] | None = None
        self._up = threading.Event()  # it answers, or never will
        self._stopping = threading.Event()
        self._lost: str | None = None
        # All starts are this one thread's: the kernel ends a program with the thread that has started it.
        self._thread = threading.Thread(target=self._watch, name="beside", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until the server answers. Raises: ServerLost."""
        until = time.monotonic() + seconds
        while not self._up.wait(max(0.0, until - time.monotonic())) or self._has_died():
            if time.monotonic() >= until:
                raise ServerLost(f"{self._name} does not answer within {seconds:.0f} s; see its output above")
            time.sleep(POLL_SECONDS)  # until the thread that watches has seen it, too
        if self._lost:
            raise ServerLost(self._lost)

    def settle(self, seconds: float) -> None:
        """As `wait`, where a connection to it has just broken: it may take a moment until its death is seen. One that
        neither answers nor goes is stopped."""
        until = time.monotonic() + seconds
        gone = time.monotonic() + DYING_SECONDS
        process = self._process
        self._stopping.wait(POLL_SECONDS)
        while process and process is self._process and self._lingers(process) and time.monotonic() < until:
            if time.monotonic() >= gone:
                log.warning("%s neither answers nor goes: stopped", self._name)
                self._end(process)
                break
            self._stopping.wait(POLL_SECONDS)
        self.wait(max(0.0, until - time.monotonic()))

    def vouch(self) -> None:
        """To be called where the server has done its work: deaths before that don't count."""
        self._deaths = 0

    def restart(self, life: int, seconds: float) -> None:
        """Ends a server that doesn't do its work, unless it is another one by now, and waits as `settle`."""
        process = self._process
        if process and self.starts == life and process.poll() is None:
            log.warning("%s doesn't do its work: stopped", self._name)
            self._end(process)
        self.settle(seconds)

    def stop(self) -> None:
        """Ends the server, and waits for its end."""
        self._stopping.set()
        if self._process:
            self._end(self._process)
        self._thread.join(2 * STOP_SECONDS)

    def _lingers(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it was up, and runs, but doesn't answer any more."""
        return self._up.is_set() and process.poll() is None and not self._ready()

    def _has_died(self) -> bool:
        return self._lost is None and self._process is not None and self._process.poll() is not None

    @property
    def _name(self) -> str:
        return " ".join(self._command[4:6])

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self.starts += 1  # before there is a process: none is taken for an earlier one
            try:
                process = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr.fileno(),
                    start_new_session=True,  # a signal to the worker's group is not for the server: pages are in hand
                )
            except OSError as error:
                self._give_up(f"{self._name} cannot be started: {error}")
                return
            self._process = process
            if self._stopping.is_set():
                self._end(process)
            came_up = self._await(process)
            code = process.wait()
            with suppress(ProcessLookupError):  # its own children may outlive it, with the card's memory in their hands
                os.killpg(process.pid, signal.SIGKILL)
            if self._stopping.is_set():
                return
            self._up.clear()
            if code == 127 and not came_up:
                self._give_up(f"{self._name} cannot be started: there is no such program")
                return
            self._deaths += 1
            if self._deaths > self._restarts:
                self._give_up(
                    f"{self._name} has died {plural(self._deaths, 'time')} in a row, the last time with code {code}"
                )
                return
            log.warning("%s died with code %d; start %d of %d", self._name, code, self._deaths, self._restarts)

    def _await(self, process: subprocess.Popen[bytes]) -> bool:
        """Until it answers, has died, or has had its time; one that has is killed."""
        for _ in range(max(1, int(self._start_seconds / POLL_SECONDS))):
            if process.poll() is not None or self._stopping.is_set():
                return False
            if self._ready():
                self._up.set()
                return True
            self._stopping.wait(POLL_SECONDS)
        log.warning("%s does not answer within %.0f s", self._name, self._start_seconds)
        self._end(process)
        return False

    def _give_up(self, why: str) -> None:
        log.error("%s", why)
        self._lost = why
        self._up.set()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(STOP_SECONDS)
                return
