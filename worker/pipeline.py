"""The stages of a worker: fetch → decode → engine → write, each in threads of its own, joined by bounded queues.

The engine is never idle while there is work; memory is bounded by the queues, whatever the shard holds.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from worker import layout
from worker.contract import Failure, FailureCode, Meta, Options, Page, Receipt, Result, Task
from worker.decode import BadPage, Decoder
from worker.engines import Engine, PageImage, PageText
from worker.errors import BadRequest, DocumentError, WorkerError
from worker.marker import InFlight
from worker.scratch import Scratch
from worker.settings import Settings
from worker.storage import Fetched, Storage
from worker.wording import plural

log = logging.getLogger(__name__)

WINDOW = 32  # documents in flight: enough to hide storage latency behind an engine of 20 small documents a second
FETCHERS = 8
WRITERS = 8
DECODERS = 2
SCRATCH_BYTES = 4 << 30  # of downloads that wait for a decoder
QUEUE_BYTES = 192 << 20  # of decoded pages that wait for the engine: some sixteen A4 pages at 200 DPI
TRACEBACK_CHARACTERS = 2000


class Places(Protocol):
    """Where a task's outcome goes: a run's folder, or the one place of the one-document form."""

    def result(self, task: Task) -> str: ...

    def failure(self, task: Task) -> str: ...

    def text(self, task: Task) -> str | None:
        """Where the markdown goes besides; None where it doesn't."""
        ...


class Receipts(Protocol):
    def add(self, receipt: Receipt) -> None: ...

    def count_page(self) -> None: ...

    def expect_pages(self, pages: int) -> None: ...


@dataclass
class Job:
    """What one pipeline works with."""

    settings: Settings
    options: Options
    engine: Engine
    engine_name: str
    storage: Storage
    places: Places
    receipts: Receipts
    in_flight: InFlight | None = None
    skip: Callable[[Task], bool] = lambda task: False  # whether an earlier attempt has ended the task
    window: int = WINDOW


class EngineStuck(WorkerError):
    """The engine did not come back in time. Its thread can't be stopped: only the process's end helps."""

    def __init__(self, tasks: list[Task], seconds: float) -> None:
        super().__init__(
            f"the engine did not answer within {seconds:.0f} s; in hand: {', '.join(t.key for t in tasks)}"
        )
        self.tasks = tasks


class Pipeline:
    """Reads tasks until all have ended, until `drain`, or until something breaks that is no document's fault."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._draining = threading.Event()
        self._broken: BaseException | None = None
        self._room = threading.BoundedSemaphore(job.window)
        self._fetched: queue.SimpleQueue[_Document | None] = queue.SimpleQueue()
        self._pages = _PageQueue(QUEUE_BYTES)
        self._disk = _DiskBudget(SCRATCH_BYTES)
        self._scratch: Scratch | None = None
        self._calls: dict[int, tuple[float, list[Task]]] = {}  # by engine thread: since when, and with which tasks
        self._counting = threading.Lock()
        self.left_over = 0  # tasks that were admitted or seen but have no outcome, because of a drain

    def drain(self) -> None:
        """Admits no more; documents of which the engine has been given a page are finished, the others left. Safe to
        call from a signal handler."""
        self._draining.set()

    def discard(self) -> None:
        """Removes the downloads, where the process is about to end before `run` returns."""
        if self._scratch:
            self._scratch.remove()

    def run(self, tasks: Iterable[Task]) -> None:
        """Raises: TryAgain, EngineStuck, or whatever broke a stage. Documents that fail are no exception."""
        source = _Locked(tasks)
        decoders = min(DECODERS, self._job.settings.threads)
        try:
            self._scratch = Scratch(self._job.settings.scratch)
            with (
                self._scratch as scratch,
                ThreadPoolExecutor(WRITERS, thread_name_prefix="write") as self._writers,
            ):
                fetching = self._start(FETCHERS, "fetch", lambda: self._fetch(source, scratch))
                decoding = self._start(decoders, "decode", self._decode)
                reading = self._start(self._job.engine.concurrency, "engine", self._read)
                self._join(fetching)
                for _ in decoding:
                    self._fetched.put(None)
                self._join(decoding)
                self._pages.close()
                self._join(reading)
        finally:
            self._pages.close()
        if self._broken:
            raise self._broken
        for _ in source:
            self.left_over += 1

    # ---- stages, each the body of its threads

    def _fetch(self, source: Iterator[Task], scratch: Path) -> None:
        while not self._stopping:
            if not self._room.acquire(timeout=0.2):
                continue
            task = next(source, None)
            if task is None:
                self._room.release()
                return
            try:
                if self._job.skip(task):
                    self._room.release()
                    continue
            except DocumentError as error:  # of the outputs, not of the document
                raise BadRequest(f"the run's own files cannot be looked up: {error.message}") from error
            document = _Document(task, self._job)
            if self._job.in_flight:
                self._job.in_flight.add(task.key)
            try:
                self._disk.wait_for_room(lambda: self._stopping)
                with document.at_work():
                    document.fetched = self._job.storage.fetch(task.uri, scratch)
                self._disk.take(document.fetched)
            except DocumentError as error:
                self._end(document, error)
            except (WorkerError, MemoryError):
                raise
            except Exception as error:  # the task boundary: whatever it is, it costs this document alone
                document.fail(FailureCode.NOT_FOUND, error)
                self._end(document)
            else:
                self._fetched.put(document)

    def _decode(self) -> None:
        job = self._job
        longest_side = min(job.options.longest_side or job.engine.longest_side, job.engine.longest_side)
        with Decoder(job.options, longest_side=longest_side, module=job.settings.decoder) as decoder:
            while (document := self._fetched.get()) is not None:
                if self._stopping:
                    self._abandon(document)
                else:
                    self._decode_one(decoder, document)

    def _decode_one(self, decoder: Decoder, document: _Document) -> None:
        assert document.fetched is not None
        try:
            if document.fetched.size == 0:
                raise DocumentError(FailureCode.EMPTY, f"{document.task.uri} holds 0 bytes")
            with document.at_work():
                pages = decoder.pages(str(document.fetched.path), document.task.pages)
            document.warnings += pages.warnings
            document.source_pages = pages.total
            self._job.receipts.expect_pages(pages.asked)
            while True:
                with document.at_work():
                    item = next(pages, None)
                if item is None:
                    break
                if self._broken:
                    return self._abandon(document)
                if self._draining.is_set() and document.give_up():
                    break
                if isinstance(item, BadPage):
                    document.fail_page(item.number, item.code, item.message)
                elif item.blank:
                    document.add_page(_page(item.image, "blank"))
                else:
                    if self._job.in_flight:
                        self._job.in_flight.ensure_written(document.task.key)
                    document.expect_page()
                    self._pages.put(document, item.image)
                    continue
                self._job.receipts.count_page()
        except DocumentError as error:
            document.error = error
        except (WorkerError, MemoryError):
            raise
        except Exception as error:  # the task boundary, as above
            document.fail(FailureCode.DECODER_CRASHED, error)
        finally:
            self._release_file(document)
        if document.close():
            self._settle(document)

    def _read(self) -> None:
        engine = self._job.engine
        while taken := self._pages.take(engine.batch_size):
            batch = []
            for document, image in taken:
                if not (self._draining.is_set() and document.give_up()) and document.begin():
                    batch.append((document, image))
                elif document.answered():
                    self._settle(document)
            texts = self._read_batch(batch) if batch else []
            for (document, image), text in zip(batch, texts, strict=True):
                document.add_text(image, text)
                self._job.receipts.count_page()
                if document.answered():
                    self._settle(document)

    def _read_batch(self, batch: Sequence[tuple[_Document, PageImage]]) -> list[PageText | Exception]:
        """One text or exception a page: an engine that raises on a batch is asked again page by page."""
        me = threading.get_ident()
        self._calls[me] = (time.monotonic(), [document.task for document, _ in batch])
        try:
            with ExitStack() as work:
                for document, _ in batch:
                    work.enter_context(document.at_work(len(batch)))
                texts = self._job.engine.read([image for _, image in batch])
            if len(texts) != len(batch):
                raise ValueError(f"the engine returned {plural(len(texts), 'text')} for {plural(len(batch), 'page')}")
            return list(texts)
        except (WorkerError, MemoryError):
            raise
        except Exception as error:
            if len(batch) == 1:
                return [error]
        finally:
            del self._calls[me]
        return [text for one in batch for text in self._read_batch([one])]

    def _write(self, document: _Document) -> None:
        job, task = self._job, document.task
        try:
            outcome = document.outcome()
            record = outcome.to_json().encode()
        except Exception as error:  # the task boundary, as above
            document.fail(FailureCode.ENGINE_ERROR, error)
            outcome = document.outcome()
            record = outcome.to_json().encode()
        receipt = document.receipt(outcome)
        if isinstance(outcome, Result):
            text = job.places.text(task)
            if text is not None:  # before the result, whose presence means "done"
                job.storage.write(text, outcome.extracted_markdown.encode())
            job.storage.write(job.places.result(task), record)
            if job.settings.retry_failed:
                job.storage.delete(job.places.failure(task))
        elif job.settings.retry_failed and job.storage.exists(job.places.result(task)):
            # It was read in part before, and that is better than nothing.
            receipt = receipt.model_copy(update={"outcome": "partial", "code": None})
        else:
            job.storage.write(job.places.failure(task), record)
        job.receipts.add(receipt)
        if job.in_flight:
            job.in_flight.remove(task.key)

    # ---- what the stages share

    @property
    def _stopping(self) -> bool:
        return self._draining.is_set() or self._broken is not None

    def _settle(self, document: _Document) -> None:
        """For a document of which no page is on its way any more."""
        if document.given_up:
            self._abandon(document)
        else:
            self._end(document)

    def _end(self, document: _Document, error: DocumentError | None = None) -> None:
        document.error = document.error or error
        self._writers.submit(self._guarded, lambda: self._write(document), self._room.release)

    def _release_file(self, document: _Document) -> None:
        if document.fetched:
            self._disk.release(document.fetched)
        document.fetched_release()

    def _abandon(self, document: _Document) -> None:
        self._release_file(document)
        with self._counting:
            self.left_over += 1
        self._room.release()

    def _start(self, count: int, name: str, body: Callable[[], None]) -> list[threading.Thread]:
        threads = [
            threading.Thread(target=self._guarded, args=(body,), name=f"{name}-{index}", daemon=True)
            for index in range(count)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _guarded(self, body: Callable[[], None], finally_: Callable[[], None] | None = None) -> None:
        """Runs a stage's body; what it raises stops all stages and is raised again by `run`."""
        try:
            body()
        except BaseException as error:
            if self._broken is None:
                self._broken = error
            self._pages.close(discard=True)
        finally:
            if finally_:
                finally_()

    def _join(self, threads: list[threading.Thread]) -> None:
        """Waits in slices, so that signals are handled and a stuck engine is found."""
        limit = self._job.options.engine_timeout
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                now = time.monotonic()
                for since, tasks in list(self._calls.values()):
                    if now - since > limit:
                        raise EngineStuck(tasks, limit)


class _Document:
    """A task on its way through the stages. Pages arrive from decoder and engine threads, in any order."""

    def __init__(self, task: Task, job: Job) -> None:
        self.task = task
        self.fetched: Fetched | None = None
        self.error: DocumentError | None = None
        self.warnings: list[str] = []
        self.source_pages: int | None = None  # whether they are asked for or not
        self.given_up = False  # by a drain, before the engine was given a page of it
        self._job = job
        self._seconds = 0.0  # of work on it; waiting for others doesn't count
        self._pages: list[Page] = []
        self._codes: list[FailureCode] = []
        self._begun = False  # the engine has been given a page of it
        self._open = 1  # pages with the engine, and one for the decoder that may bring more
        self._lock = threading.Lock()
        self._trace: str | None = None
        self._written_by_engine = False
        self._size: int | None = None
        self._etag: str | None = None

    @contextmanager
    def at_work(self, share: int = 1) -> Iterator[None]:
        """Counts the time inside as work on this document; `share` documents have it in common."""
        started = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._seconds += (time.monotonic() - started) / share

    def expect_page(self) -> None:
        with self._lock:
            self._open += 1

    def begin(self) -> bool:
        """The engine is about to be given a page; False where the document was given up instead."""
        with self._lock:
            self._begun = not self.given_up
            return self._begun

    def give_up(self) -> bool:
        """Whether no page of it goes to the engine, since none has yet. What is begun is finished."""
        with self._lock:
            self.given_up = not self._begun
            return self.given_up

    def close(self) -> bool:
        """The decoder brings no more pages; whether the document has ended by that."""
        return self.answered()

    def answered(self) -> bool:
        """The engine has answered for one page; whether the document has ended by that."""
        with self._lock:
            self._open -= 1
            return self._open == 0

    def add_page(self, page: Page) -> None:
        with self._lock:
            self._pages.append(page)

    def fail_page(
        self,
        number: int,
        code: FailureCode,
        message: str,
        image: PageImage | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        width, height = (image.width, image.height) if image else (0, 0)
        page = Page(number=number, width=width, height=height, status="failed", error=_scrub(message), engine=details)
        page.scaled_from = image.scaled_from if image else None
        with self._lock:
            self._codes.append(code)
            self._pages.append(page)

    def add_text(self, image: PageImage, text: PageText | Exception) -> None:
        try:
            if isinstance(text, Exception):
                raise text
            if text.error is not None:
                self.fail_page(image.number, FailureCode.ENGINE_ERROR, text.error, image, text.details)
                return
            page = Page(
                number=image.number,
                width=text.width,
                height=text.height,
                status="ok",
                rotation=text.rotation,
                markdown=text.markdown or "",
                lines=text.lines,
                engine=text.details,
                scaled_from=image.scaled_from,
            )
        except Exception as error:  # raised by the engine, or what it returned is no text of a page
            self._trace = _tail(error)
            self.fail_page(image.number, FailureCode.ENGINE_ERROR, f"{type(error).__name__}: {error}", image)
        else:
            if text.markdown is not None:
                self._written_by_engine = True
            self.add_page(page)
            with self._lock:
                self.warnings += [
                    f"page {image.number}: {warning}" for warning in (text.details or {}).get("warnings", [])
                ]

    def fail(self, code: FailureCode, error: Exception) -> None:
        """Ends the document for a reason that nobody foresaw."""
        self._trace = _tail(error)
        self._pages.clear()
        self.error = DocumentError(code, _scrub(f"{type(error).__name__}: {error}"))

    def fetched_release(self) -> None:
        """Remembers what the record needs of the source and frees its disk space."""
        if self.fetched:
            self._size, self._etag = self.fetched.size, self.fetched.etag
            if self.fetched.temporary:
                self.fetched.path.unlink(missing_ok=True)
            self.fetched = None

    def outcome(self) -> Result | Failure:
        """The record of a document that has ended. Exactly one of the two, whatever happened."""
        job = self._job
        pages = sorted(self._pages, key=lambda page: page.number)
        now = datetime.now(UTC).replace(microsecond=0)
        failed = [page for page in pages if page.status == "failed"]
        if self.error or not pages or len(failed) == len(pages):
            if self.error:
                code, message = self.error.code, self.error.message
            elif not pages:
                code, message = FailureCode.EMPTY, f"{self.task.uri} has no pages"
            else:
                code, message = self._codes[0], failed[0].error or "unknown"
                if len(failed) > 1:
                    message = f"all of its {len(failed)} pages failed; page {failed[0].number}: {message}"
            return Failure(
                source_image=self.task.uri,
                code=code,
                message=message,
                attempt=job.settings.attempt,
                timestamp=now,
                traceback=self._trace,
            )
        if not self._written_by_engine:
            pages = layout.compose(pages, keep_furniture=job.options.keep_furniture)
        return Result(
            source_image=self.task.uri,
            extracted_markdown=join_markdown(pages),
            warnings=self.warnings + [f"page {page.number} failed: {page.error}" for page in failed],
            meta=Meta(
                model=job.engine.model,
                revision=job.engine.revision,
                engine=job.engine_name,
                runtime=job.settings.runtime,
                timestamp=now,
                seconds=round(self._seconds, 3),
                worker=job.settings.version,
                etag=self._etag,
                attempt=job.settings.attempt,
                source_pages=self.source_pages if self.source_pages != len(pages) else None,
                markdown_by="engine" if self._written_by_engine else "layout",
            ),
            status="partial" if failed else "ok",
            pages=pages,
        )

    def receipt(self, outcome: Result | Failure) -> Receipt:
        failed = isinstance(outcome, Failure)
        return Receipt(
            task=self.task.key,
            uri=self.task.uri,
            outcome="failed" if isinstance(outcome, Failure) else outcome.status,
            code=outcome.code if isinstance(outcome, Failure) else None,
            message=outcome.message if isinstance(outcome, Failure) else None,
            seconds=round(self._seconds, 3),
            pages=len(self._pages),
            failed_pages=len(self._codes) if not failed else len(self._pages),
            bytes=self._size,
            shard=self._job.settings.shard,
            attempt=self._job.settings.attempt,
            timestamp=datetime.now(UTC),
        )


def join_markdown(pages: Iterable[Page]) -> str:
    """A document's markdown: its pages' texts, a blank line between them."""
    return "\n\n".join(page.markdown.strip("\n") for page in pages if page.markdown.strip()) + "\n"


def _tail(error: Exception) -> str:
    return _scrub("".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:])


def _scrub(text: str) -> str:
    """What JSON can hold: a library's message may carry halves of characters."""
    return text.encode("utf-8", "backslashreplace").decode()


def _page(image: PageImage, status: Literal["ok", "blank"]) -> Page:
    return Page(
        number=image.number, width=image.width, height=image.height, status=status, scaled_from=image.scaled_from
    )


@dataclass
class _PageQueue:
    """Pages that wait for the engine, bounded by their bytes. One page always fits."""

    limit: int
    _bytes: int = 0
    _items: deque[tuple[_Document, PageImage]] = field(default_factory=deque)
    _closed: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def put(self, document: _Document, image: PageImage) -> None:
        """Waits for room; a page that comes after `close(discard=True)` is dropped."""
        size = image.pixels.nbytes
        with self._changed:
            while self._items and self._bytes + size > self.limit and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._items.append((document, image))
                self._bytes += size
                self._changed.notify_all()

    def take(self, most: int) -> list[tuple[_Document, PageImage]]:
        """At least one page, at most `most`; none when the queue is closed and empty."""
        with self._changed:
            while not self._items and not self._closed:
                self._changed.wait()
            taken = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            self._bytes -= sum(image.pixels.nbytes for _, image in taken)
            self._changed.notify_all()
            return taken

    def close(self, *, discard: bool = False) -> None:
        with self._changed:
            self._closed = True
            if discard:
                self._items.clear()
                self._bytes = 0
            self._changed.notify_all()


class _DiskBudget:
    """Downloads that wait for a decoder, bounded by their bytes. One document always fits."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._changed = threading.Condition()

    def wait_for_room(self, given_up: Callable[[], bool]) -> None:
        with self._changed:
            while self._bytes > self._limit and not given_up():
                self._changed.wait(0.2)

    def take(self, fetched: Fetched) -> None:
        with self._changed:
            self._bytes += fetched.size if fetched.temporary else 0

    def release(self, fetched: Fetched) -> None:
        with self._changed:
            self._bytes -= fetched.size if fetched.temporary else 0
            self._changed.notify_all()


class _Locked:
    """An iterator that several threads may draw from."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        with self._lock:
            return next(self._tasks)
