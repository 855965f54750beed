"""The self-test: reads a bundled page with this installation's engine, through the real pipeline, and compares the
text with the truth. What it prints tells which versions an image holds."""

from __future__ import annotations

import difflib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from worker.contract import ExitCode, Options, Receipt, Result, Task
from worker.engines import Engine, EngineSettings, build_engine
from worker.errors import DocumentError, WorkerError
from worker.outcomes import OnePlace
from worker.pipeline import Job, Pipeline
from worker.receipts import print_line
from worker.scratch import Scratch
from worker.settings import Settings
from worker.storage import open_storage, path_uri
from worker.versions import library_versions

PAGE = Path(__file__).parent / "sample" / "page.pdf"
TRUTH = PAGE.with_suffix(".txt")
ENOUGH = 0.95  # of letters and digits, as difflib's ratio: a model may take a dot for a comma, not read something else


def self_test(settings: Settings) -> ExitCode:
    """Prints one JSON object on standard output. OK, or CRASHED where the page isn't read, or not as it stands."""
    started = time.monotonic()
    report: dict[str, Any] = {"ok": False, "pagefleet": settings.version, "engine": settings.engine}
    try:
        engine = build_engine(settings.engine, EngineSettings(threads=settings.threads))
        report |= {"model": engine.model, "revision": engine.revision, "device": getattr(engine, "device", None)}
        text = _read(settings, engine)
        alike = _likeness(text, TRUTH.read_text(encoding="utf-8"))
        report |= {"ok": alike >= ENOUGH, "likeness": round(alike, 3)}
        if not report["ok"]:
            report |= {"error": f"what was read is not what {PAGE.name} says", "text": text}
        engine.close()
    except (WorkerError, DocumentError) as error:
        report["error"] = str(error)
    report |= {
        "seconds": round(time.monotonic() - started, 1),
        "memory_mib": _peak_memory(),
        "libraries": library_versions(),
    }
    print_line(json.dumps(report, ensure_ascii=False))
    return ExitCode.OK if report["ok"] else ExitCode.CRASHED


class _Receipts:
    """Keeps what the pipeline tells, since standard output is for the report."""

    def __init__(self) -> None:
        self.ended: list[Receipt] = []

    def add(self, receipt: Receipt) -> None:
        self.ended.append(receipt)

    def count_page(self) -> None: ...

    def expect_pages(self, pages: int) -> None: ...


def _read(settings: Settings, engine: Engine) -> str:
    """Raises: DocumentError with the failure's message; WorkerError as the pipeline does."""
    storage, receipts = open_storage(), _Receipts()
    task = Task(uri=path_uri(PAGE), name=PAGE.name)
    with Scratch(settings.scratch) as folder:
        places = OnePlace(path_uri(folder / "result.json"), task.uri)
        Pipeline(Job(settings, Options(), engine, settings.engine, storage, places, receipts, window=1)).run([task])
        (receipt,) = receipts.ended
        if receipt.code:
            raise DocumentError(receipt.code, receipt.message or receipt.code)
        return Result.model_validate_json(storage.read(places.result(task))).extracted_markdown


def _likeness(text: str, truth: str) -> float:
    """1 where letters and digits are the same in the same order, whatever the markup and the line breaks."""
    read, true = ("".join(filter(str.isalnum, each)) for each in (text, truth))
    return difflib.SequenceMatcher(None, read, true, autojunk=False).ratio()


def _peak_memory() -> int:
    """MiB that this process and its largest child held at most; getrusage(2) counts KiB, on macOS bytes."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(each).ru_maxrss for each in who) // unit
