"""The runs of a stack: found by their ids, listed with state and counts, and asked how fast they were."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from jobs.aws import Aws, AwsError
from jobs.batch import BatchRecord, is_submitted, job_states, read_record, with_lost_jobs
from jobs.errors import UsageError
from jobs.results import RunFolder
from jobs.stack import Stack
from jobs.summary import Summary
from worker.storage import Storage

READERS = 16
LOOKED_AT = 10  # runs that are asked for a measured rate
LEAST_PAGES = 20  # that a run must have read to tell a rate


@dataclass(frozen=True)
class RunRow:
    """One run of a list. `state` is Batch's, "collected" once there is a summary, or "forgotten"."""

    id: str
    state: str
    created: datetime
    engine: str
    documents: int
    record: BatchRecord | None
    summary: Summary | None


def list_runs(aws: Aws, storage: Storage, stack: Stack, limit: int | None = None) -> list[RunRow]:
    """The newest first, as far as their ids tell."""
    ids = sorted(_run_ids(aws, stack), reverse=True)[:limit]
    with ThreadPoolExecutor(READERS) as pool:
        opened = [found for found in pool.map(lambda run_id: _open(aws, storage, stack, run_id), ids) if found]
    states = job_states(aws, [job.id for _, record, _ in opened if record for job in record.jobs])
    rows = []
    for folder, record, summary in opened:
        state = states.get(record.current(states).id, "forgotten") if record else "not submitted"
        if summary and state in ("SUCCEEDED", "forgotten"):
            state = "collected"
        run = folder.run
        rows.append(RunRow(run.id, state, run.created, run.engine, run.counts.documents, record, summary))
    return rows


def measured_rate(aws: Aws, storage: Storage, stack: Stack, engine: str, kind: str) -> tuple[float, str] | None:
    """Pages a second of one shard, and the run that tells: the newest of this engine on this kind of hardware."""
    try:
        rows = list_runs(aws, storage, stack, LOOKED_AT)
    except AwsError:
        return None  # an estimate is no reason to fail
    for row in rows:
        if row.engine != engine or row.record is None or row.record.job.kind != kind or row.summary is None:
            continue
        seconds = (row.summary.cost or {}).get("seconds")
        if seconds and row.summary.pages.total >= LEAST_PAGES:
            return row.summary.pages.total / seconds, f"run {row.id}"
    return None


def _run_ids(aws: Aws, stack: Stack) -> Iterator[str]:
    for page in aws.pages("s3", "list_objects_v2", Bucket=stack.buckets.outputs, Prefix="runs/", Delimiter="/"):
        for prefix in page.get("CommonPrefixes", []):
            yield prefix["Prefix"].removeprefix("runs/").rstrip("/")


def _open(
    aws: Aws, storage: Storage, stack: Stack, run_id: str
) -> tuple[RunFolder, BatchRecord | None, Summary | None] | None:
    try:
        folder = RunFolder(storage, stack.run_uri(run_id))
    except UsageError:
        return None  # a submit that broke off before its plan was whole
    try:
        summary = folder.summary
    except (UsageError, ValidationError):
        summary = None
    record = read_record(storage, folder.paths)
    if record is None and is_submitted(folder.run):
        record = with_lost_jobs(aws, folder, stack, None)
    return folder, record, summary
