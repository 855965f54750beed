"""Engines for tests, named to the worker as `tests.faults.engines:Class`. What a page makes them do is its colour."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from worker.contract import Line
from worker.engines import EngineSettings, PageImage, PageText
from worker.errors import BadRequest, TryAgain

log = logging.getLogger(__name__)

COLOURS = {
    "raise": (200, 0, 0),
    "kill": (0, 0, 200),
    "hang": (200, 0, 200),
    "garbage": (0, 200, 200),
    "segfault": (120, 60, 0),
    "slow": (0, 120, 0),
    "kill_once": (90, 90, 220),
    "read": (40, 40, 40),
}


class Colour:
    """Reads no text: one line a page, which says the page's size and what its colour asks for."""

    name = "colour"
    model = "colour-test"
    revision = "1"
    batch_size = 1
    concurrency = 1
    longest_side = 4000

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        log, gate = settings.options.get("log"), settings.options.get("gate")
        self._log = Path(log) if log else None  # tells which pages were read, to find those read twice
        self._gate = Path(gate) if gate else None  # how many of them may be: more are held in hand until it says so

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        return [self._read(page) for page in pages]

    def close(self) -> None:
        pass

    def _read(self, page: PageImage) -> PageText:
        action = _action(page)
        if self._log:
            with open(self._log, "a") as log:
                log.write(f"{page.width}x{page.height} {action}\n")
            while self._gate and self._log.read_text().count("\n") > int(self._gate.read_text()):
                time.sleep(0.01)
        if action == "raise":
            raise RuntimeError("this page is red")
        if action == "kill" or (action == "kill_once" and _first_time(self.settings)):
            _die(signal.SIGKILL)
        if action == "segfault":
            _die(signal.SIGSEGV)
        if action == "hang":
            threading.Event().wait()
        if action == "slow":
            time.sleep(0.1)
        if action == "garbage":
            return PageText(width=-1, height=page.height, rotation=45)
        top = page.height // 2 - 5  # in the middle: at the top it would be taken for a running head
        box = [(10, top), (page.width - 10, top), (page.width - 10, top + 10), (10, top + 10)]
        line = Line(text=f"{action} {page.width}x{page.height}", confidence=0.5, polygon=box)
        return PageText(width=page.width, height=page.height, lines=[line])


class Batched(Colour):
    """Sees several pages in a call, and fails them all when one is red."""

    batch_size = 4
    concurrency = 2


class Parallel(Colour):
    """Reads a page while it hangs on another."""

    concurrency = 2


class TooFew(Colour):
    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        return []


class Unspeakable(Colour):
    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        raise RuntimeError("bad \udcff")


class Unwritable(Colour):
    """What it tells of a page is nothing that JSON knows."""

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        return [PageText(page.width, page.height, details={"model": object()}) for page in pages]


class Telling(Colour):
    """Tells of each page what it knows, also where it could not read it to its end."""

    def _read(self, page: PageImage) -> PageText:
        if _action(page) == "raise":
            return PageText(page.width, page.height, error="cut short", details={"text": "half of"})
        return replace(super()._read(page), details={"warnings": ["read by another"]})


class Chatty(Colour):
    """Prints where the worker's receipts go."""

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        print("loading weights 100%", flush=True)
        return super().read(pages)


class Parting(Colour):
    """Notes how it is let go; a red page finds its service away, a turquoise one is refused by it."""

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        for page in pages:
            if (action := _action(page)) in ("raise", "garbage"):
                raise TryAgain("the service is away") if action == "raise" else BadRequest("the key is wrong")
        return super().read(pages)

    def close(self) -> None:
        self._note("closed")

    def discard(self) -> None:
        self._note("discarded")

    def _note(self, how: str) -> None:
        with open(self.settings.options["parting"], "a") as file:
            file.write(f"{how}\n")


class Unbuildable(Colour):
    def __init__(self, settings: EngineSettings) -> None:
        raise RuntimeError("no such device")


class Away(Colour):
    """Needs a server that isn't there."""

    def __init__(self, settings: EngineSettings) -> None:
        log.warning("waiting for the server")
        log.warning("still waiting")
        raise TryAgain("the server is not ready; is it running?")


class DiesAtStart(Colour):
    def __init__(self, settings: EngineSettings) -> None:
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def _action(page: PageImage) -> str:
    """What the colour in the middle of the page stands for; any other is read."""
    pixel = page.pixels[page.height // 2, page.width // 2].astype(int)
    return next((name for name, colour in COLOURS.items() if abs(pixel - colour).max() < 20), "read")


def _die(number: int) -> None:
    os.kill(os.getpid(), number)
    threading.Event().wait()  # a signal may take a moment, in which the page would be answered for


def _first_time(settings: EngineSettings) -> bool:
    try:
        Path(settings.options["once"]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
