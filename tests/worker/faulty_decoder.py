"""A decoding process that misbehaves at the page that a document of `tests.corpus.faulty` names; run in the place of
`worker.decoding`, whose interface and limits it shares."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from worker import decoding


def segfault() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    while True:
        time.sleep(1)


def memory() -> None:
    """More than any limit, a piece at a time."""
    hoard = []
    while True:
        hoard.append(bytearray(32 << 20))


def bad_alloc() -> None:
    """What a C++ library does where Python would raise MemoryError."""
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def exit() -> None:
    os._exit(0)


def garbage() -> None:
    os.write(FRAMES[0], b"Hello, World!\n")


def stutter() -> None:
    """The right kind of frame at the wrong time."""
    decoding.send(FRAMES[0], kind="ready")


def print_to_stdout() -> None:
    """Harmless: the pipe to the parent isn't stdout any more."""
    print("Hello, World!", flush=True)
    os.write(1, b"Hello, World!\n" * 1000)
    os.read(0, 1)


def worn_out() -> None:
    """Crashes in a process that has rendered a page before, not in a new one."""
    if RENDERED:
        segfault()


FAULTS = [segfault, abort, killed, hang, memory, bad_alloc, exit, garbage, stutter, print_to_stdout, worn_out]
FRAMES: list[int] = []
RENDERED: list[int] = []


class FaultyPdf(decoding.PdfDocument):
    def __init__(self, path: str, settings: decoding.Settings) -> None:
        marks = re.findall(rb"%FAULT (\w+) (\d+)", Path(path).read_bytes())
        faults = {fault.__name__: fault for fault in FAULTS}
        self._faults = {int(page): faults[name.decode()] for name, page in marks}
        if 0 in self._faults:
            self._faults[0]()
        super().__init__(path, settings)

    def page(self, number: int) -> Any:
        if number in self._faults:
            self._faults[number]()
        RENDERED.append(number)
        return super().page(number)


if __name__ == "__main__":
    if "startup" in os.environ.get("FAULT", ""):
        sys.exit("no luck today")
    send = decoding.send

    def remember(fd: int, *pixels: Any, **header: Any) -> None:
        FRAMES[:] = [fd]
        send(fd, *pixels, **header)

    decoding.send = remember
    decoding.PdfDocument = FaultyPdf  # type: ignore[misc]
    decoding.main()
