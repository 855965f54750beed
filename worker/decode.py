"""The decode stage: documents on disk become RGB pages, in a child process (`worker.decoding`) with a limit on time
and memory, so that a document that crashes, hangs or bloats its decoder costs that document alone."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from worker.contract import FailureCode, Options
from worker.engines import PageImage
from worker.errors import DocumentError, TryAgain
from worker.wording import plural

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Ranges = list[tuple[int, int]]

LAST_PAGE = sys.maxsize  # stands for the open end of "5-"
MAX_DEATHS = 3  # pages of one document that may take a child with them
DOCUMENTS_PER_CHILD = 500  # bounds what libraries leak
START_TIMEOUT = 60.0  # seconds
MAX_HEADER = 1 << 16  # bytes; a longer one is not ours
PIPE_SIZE = 1 << 20  # bytes; /proc/sys/fs/pipe-max-size allows this much without privileges


@dataclass(frozen=True)
class DecodedPage:
    image: PageImage
    blank: bool  # nothing but paper, conservatively: a page with one printed digit isn't blank


@dataclass(frozen=True)
class BadPage:
    """A page that can't be decoded inside a document that can."""

    number: int  # 1-based
    code: FailureCode
    message: str


def parse_pages(text: str) -> Ranges:
    """Parse "1-3,7,10-" into sorted, disjoint, 1-based inclusive ranges; "10-" runs to the end. Raises ValueError."""
    ranges: Ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:(-)\s*([0-9]{1,9})?)?\s*", part)
        if match is None:
            raise ValueError(f"{part.strip()!r} is neither a page nor a range: write, say, 1-3,7,10-")
        first = int(match[1])
        last = int(match[3]) if match[3] else LAST_PAGE if match[2] else first
        if not 1 <= first <= last:
            raise ValueError(f"{part.strip()!r}: pages count from 1, and a range from its lower end")
        ranges.append((first, last))
    merged: Ranges = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


class Decoder:
    """One child process that decodes documents one after the other, replaced when it dies and after many documents.

    Used by one thread at a time. The child starts at once, while the caller goes on.
    """

    def __init__(self, options: Options, *, longest_side: int, module: str = "worker.decoding") -> None:
        """`longest_side`: pixels, of the pages that come out. `module` is run as the child: see `worker.decoding`."""
        self._timeout = options.page_timeout
        self._settings = {
            "parent": os.getpid(),
            "dpi": options.dpi,
            "max_pixels": options.max_pixels,
            "longest_side": longest_side,
            "memory": options.decode_memory,
        }
        self._module = module
        self._child: _Child | None = self._start()

    def pages(self, path: str, pages: str | None = None) -> Pages:
        """Open the file and give its pages in order, one at a time; `pages` as in `parse_pages`, default all.

        Raises DocumentError, here or on the way, where nothing of the document can be decoded. A page that kills the
        child becomes a BadPage and the next one is decoded in a new child. Leaving the iteration early, or calling this
        again, costs a restart of the child.
        """
        return Pages(self, path, None if pages is None else parse_pages(pages))

    def count(self, path: str) -> int:
        """Number of pages (PDF pages, TIFF frames, 1 of other images), without decoding any. Raises DocumentError."""
        return self._open(path)[1].total

    def close(self) -> None:
        """Kill the child; it has nothing to lose."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> _Child:
        return _Child(self._module, self._settings, self._timeout)

    def _open(self, path: str) -> tuple[_Child, _Opened]:
        """A child that has the document open. One that suffers from what it did before is replaced by a new one."""
        retry = True
        while True:
            if self._child is not None and (self._child.busy or self._child.documents >= DOCUMENTS_PER_CHILD):
                self.close()
            if self._child is None:
                self._child = self._start()
            child = self._child
            try:
                return child, child.open(path)
            except TryAgain:  # it did not start: perhaps the machine was short of memory at that moment
                self.close()
                if not retry:
                    raise
                retry = False
            except _ChildDied as death:
                self.close()
                if death.certain or not child.worn:
                    raise DocumentError(death.code, f"while opening the document, {death}") from death


class Pages(Iterator[DecodedPage | BadPage]):
    """The pages of one document, as they are decoded. `total` counts the document's own, `asked` those that come."""

    def __init__(self, decoder: Decoder, path: str, ranges: Ranges | None) -> None:
        self._decoder = decoder
        self._path = path
        self._child, opened = decoder._open(path)
        self.total = opened.total
        self.warnings = opened.warnings  # such as pages asked for that don't exist
        wanted = [(1, self.total)] if ranges is None else self._existing(ranges)
        self.asked = sum(last - first + 1 for first, last in wanted)
        self._pages = self._stream(wanted)
        self._child.read(wanted)

    def __next__(self) -> DecodedPage | BadPage:
        return next(self._pages)

    def _existing(self, ranges: Ranges) -> Ranges:
        has = plural(self.total, "page")
        missing = [(max(first, self.total + 1), last) for first, last in ranges if self.total < last < LAST_PAGE]
        wanted = [(first, min(last, self.total)) for first, last in ranges if first <= self.total]
        if not wanted:
            raise DocumentError(FailureCode.NO_SUCH_PAGE, f"{_missing(ranges)}: the document has {has}")
        if missing:
            self.warnings.append(f"{_missing(missing)}: the document has {has}")
        return wanted

    def _stream(self, left: Ranges) -> Iterator[DecodedPage | BadPage]:
        single = left[0][0] == left[-1][1]
        delivered = deaths = 0
        while left:
            number = left[0][0]
            try:
                page = self._child.page(number)
            except _ChildDied as death:
                self._decoder.close()
                if death.certain or not self._child.worn:
                    deaths += 1
                    left = _without_first(left)
                    if single or (deaths == MAX_DEATHS and not delivered):
                        raise DocumentError(death.code, f"at page {number}, {death}") from death
                    yield BadPage(number, death.code, f"at page {number}, {death}")
                if deaths == MAX_DEATHS:
                    message = f"not tried, because {plural(deaths, 'page')} before it failed, the last one so: {death}"
                    yield from (BadPage(number, death.code, message) for a, b in left for number in range(a, b + 1))
                    return
                if left:
                    self._child, _ = self._decoder._open(self._path)
                    self._child.read(left)
                continue
            left = _without_first(left)
            if isinstance(page, DecodedPage):
                delivered += 1
            elif single:
                raise DocumentError(page.code, page.message)
            yield page


def format_pages(ranges: Ranges) -> str:
    """The inverse of `parse_pages`."""
    return ",".join(str(a) if a == b else f"{a}-" if b == LAST_PAGE else f"{a}-{b}" for a, b in ranges)


@dataclass(frozen=True)
class _Opened:
    total: int
    warnings: list[str]


class _ChildDied(Exception):
    """The child is of no use any more; `code` is what that means for the document in its hands.

    `certain`: a new child would fare no better, so that the document needn't be tried again with one.
    """

    def __init__(self, code: FailureCode, message: str, *, certain: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.certain = certain


# Children are started by one thread that lives as long as this process: the kernel sends the signal that ties a child
# to its parent when the *thread* that started it ends (prctl(2), PR_SET_PDEATHSIG).
_starter = ThreadPoolExecutor(1, "decoder-starter")


class _Child:
    """The process, its pipes, and the state of the conversation; `worker.decoding.main` describes the frames."""

    def __init__(self, module: str, settings: dict[str, int], timeout: float) -> None:
        self.documents = 0  # opened so far
        self.busy = False  # it has not yet delivered all it was asked for
        self._settings = settings
        self._timeout = timeout
        self._delivered = 0  # pages, ever
        self._last = 0  # number of the last page asked for
        self._ready = False
        self._errors = tempfile.TemporaryFile(buffering=0)  # the child's stderr  # noqa: SIM115
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
            "OPENBLAS_NUM_THREADS": "1",  # each thread would reserve address space
        }
        # A process group of its own keeps a terminal's Ctrl-C away; -P keeps modules in the working directory out.
        command = [sys.executable, "-P", "-m", module, json.dumps(settings)]
        self._process = _starter.submit(
            subprocess.Popen, command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env=environment, process_group=0,
        ).result()  # fmt: skip
        self._requests = cast(io.FileIO, self._process.stdin)
        self._frames = cast(io.FileIO, self._process.stdout)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # the default size works too, with more switching between the processes
                fcntl.fcntl(self._frames, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self._poll = select.poll()
        self._poll.register(self._frames, select.POLLIN)

    @property
    def worn(self) -> bool:
        """Whether it has done anything before what it does now: then a crash needn't be this document's fault."""
        return self.documents > 1 or self._delivered > 0

    def open(self, path: str) -> _Opened:
        """Raises DocumentError where the child refuses the document, _ChildDied where it doesn't survive it."""
        self._await_ready()
        self.documents += 1
        self._errors.truncate(self._errors.seek(0))  # the child shares the position: what follows is of this document
        self._request(open=path)
        match self._header(time.monotonic() + self._timeout):
            case {"kind": "opened", "total": int(total), "warnings": list(warnings)}:
                return _Opened(total, warnings)
            case {"kind": "error", "code": str(code), "message": str(message)}:
                raise DocumentError(FailureCode(code), message)
        raise self._garbage()

    def read(self, ranges: Ranges) -> None:
        """Ask for these pages; `page` must then be called for each."""
        self.busy = True
        self._last = ranges[-1][1]
        self._request(read=ranges)

    def page(self, number: int) -> DecodedPage | BadPage:
        """The next page. The time limit runs only while we wait here, not while a full pipe makes the child wait."""
        deadline = time.monotonic() + self._timeout
        page: DecodedPage | BadPage
        header = self._header(deadline)
        if header.get("number") != number:
            raise self._garbage()
        match header:
            case {"kind": "page", "width": int(width), "height": int(height), "blank": bool(blank)}:
                whole = header.get("scaled_from")
                scaled_from = (int(whole[0]), int(whole[1])) if whole else None
                page = DecodedPage(PageImage(number, self._pixels(width, height, deadline), scaled_from), blank)
                self._delivered += 1
            case {"kind": "bad", "code": str(code), "message": str(message)}:
                page = BadPage(number, FailureCode(code), message)
            case _:
                raise self._garbage()
        self.busy = number != self._last
        return page

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._requests, self._frames, self._errors):
            file.close()

    def _await_ready(self) -> None:
        if self._ready:
            return
        try:
            self._ready = self._header(time.monotonic() + START_TIMEOUT) == {"kind": "ready"}
        except _ChildDied as death:
            raise TryAgain(f"the decoding process doesn't start: {death}") from death
        if not self._ready:
            raise TryAgain("the decoding process doesn't start: it is of another version than this one")

    def _request(self, **request: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died: reading its answer tells how
            self._requests.write(json.dumps(request).encode() + b"\n")

    def _header(self, deadline: float) -> dict[str, Any]:
        (length,) = struct.unpack(">I", self._receive(memoryview(bytearray(4)), deadline))
        if length > MAX_HEADER:
            raise self._garbage()
        try:
            header = json.loads(bytes(self._receive(memoryview(bytearray(length)), deadline)))
        except ValueError:
            raise self._garbage() from None
        if header == {"kind": "memory"}:
            raise self._out_of_memory()
        return header if isinstance(header, dict) else {}

    def _pixels(self, width: int, height: int, deadline: float) -> NDArray[np.uint8]:
        import numpy as np

        limit = self._settings["longest_side"]
        if not (1 <= width <= limit and 1 <= height <= limit):
            raise self._garbage()
        pixels = np.empty((height, width, 3), np.uint8)
        self._receive(memoryview(pixels.data).cast("B"), deadline)
        pixels.flags.writeable = False
        return pixels

    def _receive(self, into: memoryview, deadline: float) -> memoryview:
        """Fill the buffer from the pipe."""
        filled = 0
        while filled < len(into):
            left = deadline - time.monotonic()
            if left <= 0 or not self._poll.poll(left * 1000):
                message = f"the decoder took longer than {self._timeout:g} s: raise --page-timeout"
                raise _ChildDied(FailureCode.TIMEOUT, message, certain=True)
            count = self._frames.readinto(into[filled:])
            if not count:
                raise self._death()
            filled += count
        return into

    def _death(self) -> _ChildDied:
        """What its exit status and last words tell."""
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return _ChildDied(FailureCode.DECODER_CRASHED, "the decoder closed its output without an answer")
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4096))
        said = (self._errors.read() or b"").decode(errors="replace").strip()
        if re.search(r"bad_alloc|MemoryError|out of memory|cannot allocate memory", said, re.IGNORECASE):
            return self._out_of_memory()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        if status == -signal.SIGKILL:
            how += ", probably because the machine or container ran out of memory"
        last_words = f": {said.splitlines()[-1][:300]}" if said else ""
        return _ChildDied(FailureCode.DECODER_CRASHED, f"the decoder {how}{last_words}")

    def _out_of_memory(self) -> _ChildDied:
        message = f"the decoder needs more than {self._settings['memory']} MiB of memory: raise --decode-memory"
        return _ChildDied(FailureCode.TOO_LARGE, message)

    def _garbage(self) -> _ChildDied:
        return _ChildDied(FailureCode.DECODER_CRASHED, "the decoder gave a senseless answer")


def _missing(ranges: Ranges) -> str:
    one = len(ranges) == 1 and ranges[0][0] == ranges[0][1]
    return f"{'page' if one else 'pages'} {format_pages(ranges)} {'does' if one else 'do'}n't exist"


def _without_first(ranges: Ranges) -> Ranges:
    (first, last), *others = ranges
    return [(first + 1, last), *others] if first < last else others
