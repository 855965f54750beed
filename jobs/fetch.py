"""Bringing a run home: what lies in its folder in S3, and the logs of its shards."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.aws import AwsError, chunks
from jobs.batch import BatchRun, Child
from jobs.errors import JobError, UsageError
from jobs.results import open_run
from jobs.watch import why_failed
from worker.contract import RunPaths
from worker.scratch import Scratch
from worker.storage import LocalStorage, Storage, path_uri

COPIERS = 16
LOGGED_SHARDS = 50  # failed ones, whose logs are brought along
SHOWN_SHARDS = 20  # in a message
STREAMS = 100  # that one FilterLogEvents takes
FOLLOW_SECONDS = 5.0
LATE = 10_000  # milliseconds that CloudWatch may be late with a line

_FOLDERS_OF_DOCUMENTS = ("documents/", "parts/", "labels/", "results.")


@dataclass(frozen=True)
class LogLine:
    shard: int
    time: datetime
    text: str


def check_out(run: BatchRun, out: Path) -> None:
    """Raises: UsageError where something else than an earlier copy of the run is already."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: choose another --out")
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        there = open_run(str(out)).run.id
    except JobError as error:
        raise UsageError(f"{out} is not empty and holds no copy of a run: choose another --out") from error
    if there != run.id:
        raise UsageError(f"{out} holds a copy of run {there}: choose another --out")


def download(storage: Storage, paths: RunPaths, out: Path, *, documents: bool = True) -> int:
    """Copies a run's folder into a local one; without `documents` all but the results. Returns the number of files.

    The copy is a run's folder as any other. Raises: JobError for a name that leads out of it.
    """
    root = paths.file("")
    wanted = [
        entry.uri
        for entry in storage.list(root)
        if documents or not entry.uri.removeprefix(root).startswith(_FOLDERS_OF_DOCUMENTS)
    ]
    for folder in ("failures", "logs"):  # of an earlier copy: what failed then may have been read since
        shutil.rmtree(out / folder, ignore_errors=True)
    copy_files(storage, root, wanted, out)
    return len(wanted)


def copy_files(storage: Storage, root: str, wanted: Sequence[str], out: Path) -> None:
    """Copies what lies below `root` into a folder, under the same names.

    Raises: JobError for a name that leads out of the folder.
    """
    for uri in wanted:
        name = uri.removeprefix(root)
        if not name or ".." in name.split("/") or not (out / name).resolve().is_relative_to(out.resolve()):
            raise JobError(f"{uri} would be written outside of {out}: nothing of a run has such a name; remove it")
    local = LocalStorage()
    with Scratch() as scratch, ThreadPoolExecutor(COPIERS) as pool:

        def copy(uri: str) -> None:
            fetched = storage.fetch(uri, scratch)
            local.upload(path_uri(out / uri.removeprefix(root)), fetched.path)
            if fetched.temporary:
                fetched.path.unlink()

        for _ in pool.map(copy, wanted):
            pass


def save_logs(run: BatchRun, out: Path) -> int:
    """Writes `logs/<shard>.log` for shards that failed, each attempt's lines after the other. Returns how many."""
    failed = [child for child in run.children() if child.status == "FAILED"][:LOGGED_SHARDS]
    for child in failed:
        path = out / "logs" / f"{child.shard:05d}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"shard {child.shard} failed {why_failed(child)}\n")
            file.writelines(f"{_stamp(line.time)} {line.text}\n" for line in read_logs(run, [child]))
    return len(failed)


def read_logs(run: BatchRun, children: Iterable[Child], since: int = 0) -> Iterator[LogLine]:
    """The lines of all attempts of these shards, by time. `since` is in milliseconds since 1970."""
    shards = {stream: child.shard for child in children for stream in child.log_streams}
    for streams in chunks(list(shards), STREAMS):
        for event in _events(run, streams, since):
            told = datetime.fromtimestamp(event["timestamp"] / 1000, UTC)
            yield LogLine(shards[event["logStreamName"]], told, event["message"].rstrip("\n"))


def follow_logs(run: BatchRun, shard: int | None, sleep: Callable[[float], None] = time.sleep) -> Iterator[LogLine]:
    """Lines as they come, until the job has ended."""
    seen: set[LogLine] = set()
    since = 0
    while True:
        ended = run.status() in (None, "SUCCEEDED", "FAILED")
        lines = list(read_logs(run, choose_shards(run, shard), since))
        for line in lines:
            if line not in seen:
                yield line
        if ended:
            return
        if lines:
            newest = max(line.time for line in lines)
            since = int(newest.timestamp() * 1000) - LATE
            seen = {line for line in {*seen, *lines} if line.time.timestamp() * 1000 >= since}
        sleep(FOLLOW_SECONDS)


def choose_shards(run: BatchRun, shard: int | None) -> list[Child]:
    """All shards of the last job, or one. Raises: UsageError for one that the job doesn't have."""
    children = run.children()
    if shard is None:
        return children
    found = [child for child in children if child.shard == shard]
    if children and not found:
        has = ", ".join(str(child.shard) for child in children[:SHOWN_SHARDS])
        more = ", …" if len(children) > SHOWN_SHARDS else ""
        raise UsageError(f"the last job of run {run.id} has no shard {shard}: it has {has}{more}")
    return found


def show(line: LogLine) -> str:
    return f"{_stamp(line.time)} [{line.shard}] {line.text}"


def _events(run: BatchRun, streams: list[str], since: int) -> Iterator[dict[str, Any]]:
    """One missing stream, of a container that has not said anything, makes CloudWatch refuse them all."""
    try:
        for page in run.aws.pages(
            "logs", "filter_log_events", logGroupName=run.record.log_group, logStreamNames=streams, startTime=since
        ):
            yield from page["events"]
    except AwsError as error:
        if error.code != "ResourceNotFoundException":
            raise
        if len(streams) > 1:
            for stream in streams:
                yield from _events(run, [stream], since)


def _stamp(when: datetime) -> str:
    return f"{when:%Y-%m-%dT%H:%M:%S}Z"
