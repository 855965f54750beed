"""The pipeline around an engine whose calls the test holds back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.conftest import PATIENCE, RunOnDisk, wait_for
from tests.faults.engines import Colour
from worker.engines import EngineSettings, PageImage, PageText
from worker.outcomes import RunPlaces
from worker.pipeline import Job, Pipeline
from worker.receipts import ReceiptLog
from worker.settings import Settings

MakeRun = Callable[..., RunOnDisk]


class Held(Colour):
    """Three calls at a time, as a service; none comes back before it is let go."""

    concurrency = 3

    def __init__(self) -> None:
        super().__init__(EngineSettings(threads=1))
        self.asked: list[int] = []  # the pages' numbers
        self.go = threading.Semaphore(0)

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        self.asked += [page.number for page in pages]
        assert self.go.acquire(timeout=2 * PATIENCE)
        return super().read(pages)


def drained(run: RunOnDisk, engine: Held, calls: int, queued: int, go_first: int = 0) -> Pipeline:
    """Drains when that many calls run and that many pages wait, lets all calls go and waits for the end."""
    settings = replace(Settings.from_environment({}), runtime="local")
    receipts = ReceiptLog(run.storage, None, progress_seconds=1000)
    places = RunPlaces(run.paths)
    pipeline = Pipeline(Job(settings, run.options, engine, "colour", run.storage, places, receipts))
    running = threading.Thread(target=pipeline.run, args=(run.tasks[0],), daemon=True)
    running.start()
    for _ in range(go_first):
        engine.go.release()
    seen = lambda: (len(engine.asked), len(pipeline._pages._items))  # noqa: E731
    wait_for(lambda: seen() == (calls, queued), seen)
    pipeline.drain()
    for _ in range(100):
        engine.go.release()
    running.join(PATIENCE)
    assert not running.is_alive()
    return pipeline


def test_a_drain_waits_for_the_calls_that_run_and_begins_no_other(make_run: MakeRun) -> None:
    names = {f"{number:02d}.png": "read" for number in range(40)}
    run, engine = make_run(names), Held()
    pipeline = drained(run, engine, calls=3, queued=29)  # 32 documents are in flight
    assert len(engine.asked) == 3
    assert pipeline.left_over == 37
    assert sorted(run.outcomes().values()) == ["none"] * 37 + ["ok"] * 3


def test_a_document_that_was_begun_is_finished(make_run: MakeRun) -> None:
    run, engine = make_run({"a.tiff": ["read"] * 6}), Held()
    engine.concurrency = 1
    pipeline = drained(run, engine, calls=2, queued=4, go_first=1)
    assert sorted(engine.asked) == [1, 2, 3, 4, 5, 6]
    assert pipeline.left_over == 0
    assert run.outcomes() == {"a.tiff": "ok"}
