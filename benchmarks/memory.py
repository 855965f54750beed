"""Peak memory of a worker over long runs, all its processes together: a 600-page PDF, and 2,000 small images.

    python benchmarks/memory.py [--pages 600] [--images 2000] [--dpi 200]

Prints the peak, and the mean of each tenth of the run, which shows whether memory grows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.plan import Sharding, describe_run, find_inputs, make_plan, write_plan
from tests import corpus
from worker.contract import Options, RunPaths
from worker.storage import open_storage, path_uri


def measure(folder: Path, out: Path, options: Options) -> None:
    """Reads the folder with one worker and prints what it took."""
    storage, paths = open_storage(), RunPaths(path_uri(out))
    plan = make_plan(find_inputs(storage, [str(folder)], warnings=[]), Sharding(1))
    write_plan(storage, paths, plan, describe_run(plan, "benchmark", "rapidocr", options, {}))
    environment = {**os.environ, "PAGEFLEET_RUN_URI": paths.base, "AWS_BATCH_JOB_ATTEMPT": "1"}
    started = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "worker"], env=environment, stdout=subprocess.DEVNULL) as worker:
        samples = []
        while worker.poll() is None:
            samples.append(_tree_memory(worker.pid))
            time.sleep(0.2)
    seconds = time.monotonic() - started
    size = max(1, len(samples) // 10)
    tenths = [sum(part) / len(part) for part in (samples[i : i + size] for i in range(0, len(samples), size))]
    print(f"  {plan.documents} documents in {seconds:.0f} s, exit {worker.returncode}; peak {max(samples):.0f} MB")
    print("  mean of each tenth, MB: " + " ".join(f"{value:.0f}" for value in tenths))


def _tree_memory(pid: int) -> float:
    """Resident memory of a process and its descendants in MB, from /proc; shared pages count once for each."""
    try:
        status = Path(f"/proc/{pid}/statm").read_text().split()
        children = [
            child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except OSError:
        return 0.0
    own = int(status[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return own + sum(_tree_memory(int(child)) for child in children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=600)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--dpi", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("pdf", "images"):
            Path(scratch, name).mkdir()
        if given.pages:
            Path(scratch, "pdf", "book.pdf").write_bytes(corpus.text_pdf(given.pages))
            print(f"a PDF of {given.pages} pages at {given.dpi} DPI")
            measure(Path(scratch, "pdf"), Path(scratch, "out-pdf"), Options(dpi=given.dpi))
        for number in range(given.images):
            width, height = 200 + number * 7 % 400, 80 + number * 13 % 200
            image = corpus.text_image(f"No. {number:05d}  {number / 7:.2f}", (width, height))
            image.save(Path(scratch, "images", f"{number:05d}.png"))
        if given.images:
            print(f"{given.images} images of 200 to 600 by 80 to 280 pixels")
            measure(Path(scratch, "images"), Path(scratch, "out-images"), Options())


if __name__ == "__main__":
    main()
