"""What slow storage costs: the same shard read as it is, and with 100 ms added to every storage call.

    python benchmarks/storage_latency.py FOLDER [--documents 48] [--delay 0.1]

Both legs run in processes of their own, one after the other, with the engine loaded before the clock starts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.plan import Sharding, describe_run, find_inputs, make_plan, write_plan
from worker.contract import Marker, Options, RunPaths
from worker.engines import EngineSettings, build_engine
from worker.marker import InFlight
from worker.outcomes import RunPlaces
from worker.pipeline import Job, Pipeline
from worker.receipts import ReceiptLog
from worker.settings import Settings, available_cpus
from worker.storage import open_storage, path_uri


class Delayed:
    """Storage that answers later. The calls are counted."""

    def __init__(self, delay: float) -> None:
        self._storage = open_storage()
        self._delay = delay
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._storage, name)

        def delayed(*arguments: Any) -> Any:
            self.calls += 1
            time.sleep(self._delay)
            return call(*arguments)

        return delayed


def leg(folder: str, documents: int, delay: float, engine_name: str) -> dict[str, float]:
    settings, options = Settings(threads=available_cpus()), Options()
    found = list(find_inputs(open_storage(), [folder], warnings=[]))
    uris = [uri for uri, _ in zip(itertools.cycle(found), range(documents), strict=False)]
    with tempfile.TemporaryDirectory() as out:
        paths = RunPaths(path_uri(Path(out)))
        plan = make_plan(dict.fromkeys(uris), Sharding(1))
        write_plan(open_storage(), paths, plan, describe_run(plan, "benchmark", engine_name, options, {}))
        tasks = [
            task.model_copy(update={"name": f"{number}/{task.name}"})
            for number, task in zip(range(documents), itertools.cycle(next(plan.by_shard())), strict=False)
        ]
        storage: Any = Delayed(delay)
        engine = build_engine(engine_name, EngineSettings(threads=settings.threads))
        receipts = ReceiptLog(storage, paths.receipts(0, 1), progress_seconds=1e9)
        in_flight = InFlight(storage, paths.marker(0), Marker(attempt=1))
        job = Job(settings, options, engine, engine_name, storage, RunPlaces(paths), receipts, in_flight)
        started = time.monotonic()
        Pipeline(job).run(tasks)
        receipts.flush()
        in_flight.clear()
        seconds = time.monotonic() - started
        pages = sum(receipt["pages"] for receipt in _receipts(out))
    return {"seconds": seconds, "pages_per_second": pages / seconds, "calls": storage.calls}


def _receipts(out: str) -> Iterator[dict[str, Any]]:
    with open(Path(out, "receipts/00000-1.jsonl"), encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--delay", type=float, default=0.1)
    parser.add_argument("--engine", default="rapidocr")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--leg", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.leg is not None:
        told = leg(given.folder, given.documents, given.leg, given.engine)
        print("\n" + json.dumps(told))
        return
    speeds: dict[float, list[float]] = {0.0: [], given.delay: []}
    for delay in [*speeds] * given.repeats:
        command = [sys.executable, *sys.argv, "--leg", str(delay)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        speeds[delay].append(told["pages_per_second"])
        print(f"+{delay * 1000:3.0f} ms a call: {told['pages_per_second']:.3f} pages/s, {told['calls']} calls")
    plain, delayed = (max(values) for values in speeds.values())
    print(f"ratio: {delayed / plain:.3f} (best of {given.repeats} each)")


if __name__ == "__main__":
    main()
