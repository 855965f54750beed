"""How fast images are read: a plain loop over RapidOCR with its defaults beside this project's engine.

    python benchmarks/throughput.py IMAGE_FOLDER [--truth] [--repeats N] [--threads N] [--legs NAME,NAME]

Each leg runs in a process of its own, one after the other, and again for each repeat, so that a busy machine disturbs
all alike; loading the engine and a first page are left aside. Prints pages per second and processor time per page,
peak memory, and the character error rate of each leg's text against the first leg's and, with --truth, against
`NAME.csv` beside `NAME.jpg` (x1,y1,…,x4,y4,text: the form of ICDAR 2019 SROIE; its text is in capitals).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
Box = tuple[str, list[list[float]]]  # text and the corners of its polygon
Leg = dict[str, Any]  # what a leg's process reports: seconds, cpu_seconds, peak_mib, texts


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--truth", action="store_true", help="compare with NAME.csv beside each image")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument("--legs", default=",".join(LEGS), help=f"of {', '.join(LEGS)}; the first is compared with")
    arguments.add_argument("--leg", choices=LEGS, help=argparse.SUPPRESS)  # what a leg's own process is told
    options = arguments.parse_args()
    images = sorted(path for path in options.folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not images:
        sys.exit(f"{options.folder}: no images; give a folder of {' '.join(sorted(SUFFIXES))}")
    if options.leg:
        print(json.dumps(LEGS[options.leg](images, options.threads)))
        return

    print(_machine(options.threads))
    names = options.legs.split(",")
    runs: dict[str, list[Leg]] = {name: [] for name in names}
    for _ in range(options.repeats):
        for name in names:
            runs[name].append(_run(name, options.folder, options.threads))
    _report(images, runs, options.truth)


def default_loop(images: Sequence[Path], threads: int) -> Leg:
    """`RapidOCR()(path)`, one after the other, everything at its defaults; it uses all cores by itself."""
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "error"})

    def read(path: Path) -> list[Box]:
        result: Any = engine(path)
        return [] if result.txts is None else list(zip(result.txts, result.boxes.tolist(), strict=True))

    return _measure(images, read, map)


def our_engine(images: Sequence[Path], threads: int) -> Leg:
    """This project's engine, called from as many threads as it wants; images are decoded there, too."""
    import numpy as np
    from PIL import Image, ImageOps

    from worker.engines import EngineSettings, PageImage
    from worker.engines.rapidocr import RapidOcrEngine

    engine = RapidOcrEngine(EngineSettings(threads=threads))

    def read(path: Path) -> list[Box]:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        upright.thumbnail((engine.longest_side, engine.longest_side))
        (text,) = engine.read([PageImage(1, np.asarray(upright))])
        if text.error:
            raise RuntimeError(f"{path}: {text.error}")
        return [(line.text, [list(point) for point in line.polygon or []]) for line in text.lines]

    with ThreadPoolExecutor(engine.concurrency) as pool:
        return _measure(images, read, pool.map)


def worker(images: Sequence[Path], threads: int) -> Leg:
    """One worker from files to files: decoding in child processes, layout, results, markdown, receipts, marker."""
    from jobs.plan import Sharding, describe_run, make_plan, write_plan
    from worker.contract import Marker, Options, Result, RunPaths
    from worker.engines import EngineSettings
    from worker.engines.rapidocr import RapidOcrEngine
    from worker.marker import InFlight
    from worker.outcomes import RunPlaces
    from worker.pipeline import Job, Pipeline
    from worker.receipts import ReceiptLog
    from worker.settings import Settings
    from worker.storage import open_storage, path_uri

    engine = RapidOcrEngine(EngineSettings(threads=threads))
    settings, options, storage = Settings(threads=threads), Options(), open_storage()

    def read_all(paths: Sequence[Path], folder: Path) -> tuple[float, float, list[str]]:
        where = RunPaths(path_uri(folder))
        plan = make_plan(map(path_uri, paths), Sharding(1))
        write_plan(storage, where, plan, describe_run(plan, "benchmark", "rapidocr", options, {}))
        receipts = ReceiptLog(storage, where.receipts(0, 1), progress_seconds=1e9)
        in_flight = InFlight(storage, where.marker(0), Marker(attempt=1))
        tasks = list(plan.shard(0))
        job = Job(settings, options, engine, "rapidocr", storage, RunPlaces(where), receipts, in_flight)
        started, cpu_started = time.perf_counter(), _cpu_with_children()
        Pipeline(job).run(tasks)
        receipts.flush()
        in_flight.clear()
        seconds, cpu = time.perf_counter() - started, _cpu_with_children() - cpu_started
        results = (Result.model_validate_json(storage.read(where.result(task))) for task in tasks)
        lines = ([line for page in result.pages for line in page.lines] for result in results)
        return (
            seconds,
            cpu,
            [_flow([(line.text, [list(p) for p in line.polygon or []]) for line in each]) for each in lines],
        )

    with tempfile.TemporaryDirectory() as scratch:
        read_all(images[:1], Path(scratch, "first"))
        seconds, cpu, texts = read_all(images, Path(scratch, "all"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # benchmarks/memory.py has that of all processes
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak, "texts": texts}


def _cpu_with_children() -> float:
    """Of children, those that have ended: decoders have when the pipeline returns."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


LEGS: dict[str, Callable[[Sequence[Path], int], Leg]] = {
    "default": default_loop,
    "engine": our_engine,
    "worker": worker,
}


def _measure(images: Sequence[Path], read: Callable[[Path], list[Box]], apply: Callable[..., Iterable[Any]]) -> Leg:
    read(images[0])
    started, cpu_started = time.perf_counter(), time.process_time()
    texts = list(apply(read, images))
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "texts": [_flow(boxes) for boxes in texts],
    }


def _run(name: str, folder: Path, threads: int) -> Leg:
    command = [sys.executable, __file__, str(folder), "--leg", name, "--threads", str(threads)]
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    leg: Leg = json.loads(done.stdout.splitlines()[-1])
    return leg


def _report(images: Sequence[Path], runs: dict[str, list[Leg]], with_truth: bool) -> None:
    from jobs.accuracy import error_rate

    base = next(iter(runs))
    pace = {name: [len(images) / leg["seconds"] for leg in legs] for name, legs in runs.items()}
    columns = ["leg", "pages/s", "(each run)", f"x {base}", "cpu s/page", "peak MiB", f"CER to {base}"]
    rows = [columns + ["CER to truth"] * with_truth]
    truths = [_flow(_truth(path.with_suffix(".csv"))) for path in images] if with_truth else []
    for name, legs in runs.items():
        ratios = [ours / theirs for ours, theirs in zip(pace[name], pace[base], strict=True)]
        row = [
            name,
            f"{statistics.median(pace[name]):.2f}",
            " ".join(f"{value:.2f}" for value in pace[name]),
            f"{statistics.median(ratios):.2f}",
            f"{statistics.median(leg['cpu_seconds'] for leg in legs) / len(images):.2f}",
            str(max(leg["peak_mib"] for leg in legs)),
            f"{error_rate(zip(legs[0]['texts'], runs[base][0]['texts'], strict=True)):.2%}",
        ]
        rows.append(row + [f"{error_rate(zip(legs[0]['texts'], truths, strict=True)):.2%}"] * with_truth)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _flow(boxes: Sequence[Box]) -> str:
    """One string in a fixed order, rows from the top, each from the left: spaces and case are left aside."""
    rows: list[tuple[float, float, list[tuple[float, str]]]] = []
    for text, corners in sorted(boxes, key=lambda box: sum(y for _, y in box[1])):
        ys = [y for _, y in corners]
        middle, height = sum(ys) / len(ys), max(ys) - min(ys)
        cell = (min(x for x, _ in corners), text)
        if rows and middle - rows[-1][0] < min(height, rows[-1][1]) / 2:
            rows[-1][2].append(cell)
        else:
            rows.append((middle, height, [cell]))
    return re.sub(r"\s+", "", "".join(text for _, _, cells in rows for _, text in sorted(cells))).upper()


def _truth(path: Path) -> list[Box]:
    boxes: list[Box] = []
    for row in path.read_text(encoding="utf-8", errors="replace").splitlines():
        *numbers, text = row.split(",", 8)
        if len(numbers) == 8:
            values = [float(number) for number in numbers]
            boxes.append((text, [[x, y] for x, y in zip(values[::2], values[1::2], strict=True)]))
    return boxes


def _machine(threads: int) -> str:
    model = platform.processor() or platform.machine()
    flags = ""
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        model = (re.search(r"model name\s*: (.*)", text) or [model, model])[1]
        flags = " ".join(flag for flag in ("avx2", "avx512_bf16", "amx_bf16") if re.search(rf"\b{flag}\b", text))
    packages = ("rapidocr", "openvino", "onnxruntime", "opencv-python-headless", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{model} [{flags}], {threads} threads; Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    main()
