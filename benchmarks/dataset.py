"""Time and memory of labelling a dataset but for the reading: planning, writing parts, collecting the labelled set.

    python benchmarks/dataset.py [--rows 1000000] [--words 10]

What an engine would have read is made up, so many words a row; everything else is what a run does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from worker.contract import Line, Meta, Page, Result, RunPaths, Task
from worker.storage import path_uri, uri_path

PLAN = """
import sys
from jobs.dataset import DatasetRequest, plan_dataset
from jobs.plan import describe_run, write_plan
from worker.contract import Options, RunPaths
from worker.storage import open_storage
dataset, out = sys.argv[1:]
storage = open_storage()
plan = plan_dataset(storage, DatasetRequest(dataset), "rapidocr", {})
write_plan(storage, RunPaths(out), plan, describe_run(plan, "x", "rapidocr", Options(), {}))
"""
PARTS = """
import sys
from jobs.results import open_run
from worker.labels import write_part
run = open_run(sys.argv[1])
for shard in range(run.run.counts.shards):
    write_part(run.storage, run.paths, shard, run.tasks(shard))
"""
JOIN = """
import sys
from jobs.dataset import write_labels
from jobs.results import open_run
write_labels(open_run(sys.argv[1]))
"""
COLLECT = """
import sys
from jobs.collect import collect
from jobs.results import open_run
collect(open_run(sys.argv[1]))
"""


def write_dataset(path: Path, rows: int) -> None:
    schema = pa.schema([("id", pa.string()), ("split", pa.string()), ("image_path", pa.string())])
    with pq.ParquetWriter(path, schema) as table:
        for start in range(0, rows, 100_000):
            numbers = range(start, min(start + 100_000, rows))
            images = [f"s3://a-bucket-of-scans/images/{number % 1000:03d}/img_{number:07d}.jpg" for number in numbers]
            columns = {"id": [f"img_{n}" for n in numbers], "split": ["train"] * len(numbers), "image_path": images}
            table.write_table(pa.table(columns, schema))


def write_results(paths: RunPaths, shard: int, words: int) -> None:
    """As a worker would have left them."""
    lines = [
        Line(
            text=f"word{number}",
            confidence=0.9,
            polygon=[(10, number), (90, number), (90, number + 9), (10, number + 9)],
        )
        for number in range(words)
    ]
    page = Page(number=1, width=1000, height=1400, status="ok", markdown="x", lines=lines)
    meta = Meta(model="ocr", runtime="local", timestamp=datetime.now(UTC), engine="upstage", seconds=0.5, worker="0")
    result = Result(source_image="-", extracted_markdown="x", meta=meta, status="ok", pages=[page])
    text = result.to_json()
    for line in uri_path(paths.shard(shard)).read_text().splitlines():
        task = Task.model_validate_json(line)
        path = uri_path(paths.result(task))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("word", f"{task.row}-"))


def measure(what: str, script: str, *arguments: str) -> None:
    """Runs it in a process of its own, and prints what it took."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", script, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    print(f"{what}: {time.monotonic() - started:.1f} s, of which processor {cpu:.1f} s; {memory:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        dataset, out = Path(scratch, "train.parquet"), path_uri(Path(scratch, "run"))
        write_dataset(dataset, given.rows)

        measure(f"plan of {given.rows:,} rows", PLAN, path_uri(dataset), out)
        shards = len(list(Path(scratch, "run/shards").iterdir()))
        for shard in range(shards):
            write_results(RunPaths(out), shard, given.words)
        measure(f"parts of {shards:,} shards, each of which a worker would write at its end", PARTS, out)
        measure("join of dataset and parts", JOIN, out)
        measure("collect: results.jsonl, results.parquet, summary, and the join", COLLECT, out)
        (labelled,) = Path(scratch, "run").glob("*_pseudo_labels.parquet")
        metadata = pq.read_metadata(labelled)
        print(f"labelled set: {metadata.num_rows:,} rows, {labelled.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
