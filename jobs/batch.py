"""A run on AWS Batch: submitted, resumed, cancelled, and asked for the state of its shards.

`batch.json` in the run's folder says which jobs read it, and all that is needed to ask for them later.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, ValidationError

from jobs.aws import Aws, chunks
from jobs.errors import JobError, UsageError
from jobs.local import page_counter, versions
from jobs.plan import Plan, Sharding, describe_run, find_below, find_inputs, make_plan, read_keys_file, write_plan
from jobs.results import RunFolder, open_run
from jobs.stack import JobDefinition, Stack
from worker.contract import Options, Record, RunPaths
from worker.engines import ENGINES
from worker.engines.presets import PRESETS, licence_of
from worker.storage import NotFound, Storage

FILE = "batch.json"
ENDED = ("SUCCEEDED", "FAILED")
STATES = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")
DESCRIBED = 100  # jobs that one DescribeJobs takes
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # a job's name takes 128 of these characters


class JobRecord(Record):
    """One job of a run: the first, or that of a resume."""

    id: str
    name: str
    queue: str  # ARN
    kind: str  # key of the stack's job definitions
    definition: str  # ARN
    vcpus: float
    memory: int  # MiB
    gpus: int
    spot: bool
    instance_types: list[str]
    submitted: datetime
    shards: Annotated[int, Field(ge=1)]  # from 0; more than one is an array job
    resumed_after: int = 0
    retry_failed: bool = False


class BatchRecord(Record):
    """`batch.json`."""

    schema_version: Annotated[int, Field(alias="schema")] = 1
    run: str  # the run's folder in S3, also where this is a copy
    stack: str
    region: str
    log_group: str
    jobs: list[JobRecord]

    @property
    def job(self) -> JobRecord:
        """The one that was submitted last."""
        return self.jobs[-1]


@dataclass(frozen=True)
class Attempt:
    """One start of a shard's container. Times are absent where it hasn't come so far."""

    started: datetime | None
    stopped: datetime | None
    exit_code: int | None
    reason: str
    log_stream: str | None
    instance: str | None  # ARN of the ECS container instance; None on Fargate


@dataclass(frozen=True)
class Child:
    """One shard of a job, as Batch describes it."""

    shard: int
    status: str  # one of STATES
    reason: str
    attempts: tuple[Attempt, ...]

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def log_streams(self) -> list[str]:
        return [attempt.log_stream for attempt in self.attempts if attempt.log_stream]


@dataclass(frozen=True)
class Request:
    """What `pagefleet submit` was asked for. Keys without a scheme are keys of the stack's inputs bucket."""

    keys: tuple[str, ...]
    keys_file: str | None
    prefixes: tuple[str, ...]
    engine: str
    options: Options
    sharding: Sharding


class BatchRun:
    """A run's folder together with its jobs."""

    def __init__(self, aws: Aws, folder: RunFolder, record: BatchRecord) -> None:
        self.aws = aws
        self.folder = folder
        self.record = record
        self._ended: dict[str, list[Child]] = {}  # by job: nothing changes any more

    @property
    def id(self) -> str:
        return self.folder.run.id

    def status(self) -> str | None:
        """Of the last job; None where Batch has forgotten it, as it does some days after a job's end."""
        return job_states(self.aws, [self.record.job.id]).get(self.record.job.id)

    def children(self, job: JobRecord | None = None) -> list[Child]:
        """The shards of a job, the last one unless told otherwise; none where Batch has forgotten it."""
        job = job or self.record.job
        if job.id in self._ended:
            return self._ended[job.id]
        described = _describe(self.aws, _child_ids(job))
        children = sorted((_child(detail, job) for detail in described), key=lambda child: child.shard)
        if len(children) == job.shards and all(child.has_ended for child in children):
            self._ended[job.id] = children
        return children

    def cancel(self) -> bool:
        """Ends the job; its workers drain. False where it had ended before."""
        if self.status() in (None, *ENDED):
            return False
        self.aws.call("batch", "terminate_job", jobId=self.record.job.id, reason="cancelled with pagefleet cancel")
        return True

    def resume(self, stack: Stack, *, retry_failed: bool) -> JobRecord | None:
        """Submits a job for the shards that have something left; None where none has.

        Raises: UsageError where the run's job is still alive.
        """
        status = self.status()
        if status not in (None, *ENDED):
            raise UsageError(f"run {self.id} is live ({status}): follow it with `pagefleet watch {self.id}`")
        self.folder.refresh()
        left = self.folder.open_tasks(retry_failed=retry_failed)
        if not left:
            return None
        job = _submit(
            self.aws,
            self.folder.uri,
            self.id,
            self.record.job.kind,
            stack,
            # An array's indices begin at 0, so shards with nothing left run too; they end at once, without an engine.
            shards=max(left) + 1,
            resumed_after=max(1, self.folder.last_attempt),  # even where an attempt died before its first receipt
            retry_failed=retry_failed,
        )
        self.record.jobs.append(job)
        _write_record(self.folder.storage, self.folder.paths, self.record)
        return job


def check_run_id(run_id: str) -> None:
    """Raises: UsageError where a job could not be named after it."""
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(f"{run_id!r} is no run id: letters, digits, - and _, at most 100 of them")


def choose_definition(stack: Stack, engine: str, on: str | None) -> str:
    """The kind of job definition that reads with an engine: on a GPU where the engine needs one, unless told `on`.

    Raises: UsageError for an unknown engine, or a stack without such a definition.
    """
    if engine not in ENGINES and ":" not in engine:
        raise UsageError(f"unknown engine {engine!r}: `pagefleet engines` lists those there are")
    needs_gpu = engine in ENGINES and ENGINES[engine].runs_on.startswith("GPU")
    kind = f"ocr-{on or ('gpu' if needs_gpu else 'cpu')}"
    stack.definition(kind)
    return kind


def plan_batch(storage: Storage, stack: Stack, request: Request) -> Plan:
    """Raises: UsageError where there is nothing to read, or the model lies on this machine."""
    warnings = _licence_warnings(stack, request)
    model = str(request.options.engine_options.get("model", ""))
    if request.engine in PRESETS and (os.path.isdir(model) or model.startswith(("/", ".", "~"))):
        raise UsageError(f"--model {model} lies on this machine: copy it to s3:// for a run on AWS")

    def to_input(key: str) -> str:
        return key if "://" in key else f"s3://{stack.buckets.inputs}/{key}"

    def uris() -> Iterator[str]:
        for key in request.keys:
            yield from find_inputs(storage, [_in_s3(to_input(key))], warnings=warnings)
        for prefix in request.prefixes:
            yield from find_below(storage, _in_s3(to_input(prefix)), warnings)
        if request.keys_file:
            yield from map(_in_s3, read_keys_file(request.keys_file, to_input))

    with page_counter(storage, request.options) as count_pages:
        plan = make_plan(uris(), request.sharding, count_pages=count_pages)
    plan.warnings = warnings + plan.warnings
    return plan


def _licence_warnings(stack: Stack, request: Request) -> list[str]:
    licence = licence_of(request.engine, request.options.engine_options)
    if licence is None or stack.region not in licence.excluded_regions:
        return []
    return [
        f"stack {stack.stack} is in {stack.region}, and {request.engine}'s licence ({licence.name}) says: "
        f"{licence.limits}. Use a stack elsewhere, or another engine, unless you have an agreement of your own"
    ]


def check_free(aws: Aws, storage: Storage, stack: Stack, run_id: str, kind: str) -> None:
    """Raises: UsageError where the run exists already, saying whether it is live.

    A submit that broke off leaves a plan without a job, and may be done again. One that broke off after its job had
    been submitted is found by the job's name.
    """
    paths = RunPaths(stack.run_uri(run_id))
    record = read_record(storage, paths)
    queue = stack.queues[stack.definition(kind).queue].arn
    jobs = [job.id for job in record.jobs] if record else _jobs_named(aws, queue, job_name(run_id))
    if not jobs:
        if next(iter(storage.list(paths.file("receipts/"))), None):
            raise UsageError(f"{paths.base} holds a run that was not read on AWS Batch: choose another --run-id")
        return
    states = job_states(aws, jobs)
    live = [job for job, status in states.items() if status not in ENDED]
    if live:
        raise UsageError(
            f"run {run_id} is live: job {live[0]} is {states[live[0]]}. Follow it with `pagefleet watch {run_id}`, "
            "or choose another --run-id"
        )
    raise UsageError(
        f"run {run_id} exists: go on with `pagefleet resume {run_id}` or `pagefleet fetch {run_id}`, "
        "or choose another --run-id"
    )


def submit(aws: Aws, storage: Storage, stack: Stack, run_id: str, kind: str, plan: Plan, request: Request) -> BatchRun:
    """Writes the run's folder and submits its job."""
    paths = RunPaths(stack.run_uri(run_id))
    run = describe_run(
        plan,
        run_id,
        request.engine,
        request.options,
        {"pagefleet": versions()["pagefleet"], "image": f"{stack.image.name}:{stack.image.tag}"},
    )
    write_plan(storage, paths, plan, run)
    job = _submit(aws, paths.base, run_id, kind, stack, shards=plan.shards)
    record = BatchRecord(run=paths.base, stack=stack.stack, region=stack.region, log_group=stack.log_group, jobs=[job])
    _write_record(storage, paths, record)
    return BatchRun(aws, RunFolder(storage, paths.base), record)


def open_batch_run(storage: Storage, location: str, aws: Aws | None = None) -> BatchRun:
    """The run at an `s3://` URI, or that of which a local folder is a copy.

    Raises: UsageError where there is no run, or one that was never submitted.
    """
    folder = open_run(location, storage)
    record = read_record(storage, folder.paths)
    if record is None:
        raise UsageError(
            f"run {folder.run.id} at {location} was not submitted to AWS Batch: it has no {FILE}; "
            f"`pagefleet resume {location}` reads it here"
        )
    if folder.uri != record.run:
        return open_batch_run(storage, record.run, aws)
    return BatchRun(aws or Aws(record.region), folder, record)


def read_record(storage: Storage, paths: RunPaths) -> BatchRecord | None:
    """None where the run is none of Batch's."""
    try:
        return BatchRecord.model_validate_json(storage.read(paths.file(FILE)))
    except NotFound:
        return None
    except ValidationError as error:
        raise JobError(f"{paths.file(FILE)} cannot be understood by this version of pagefleet: {error}") from error


def job_states(aws: Aws, ids: Sequence[str]) -> dict[str, str]:
    """The status of each job that Batch still knows."""
    return {detail["jobId"]: detail["status"] for detail in _describe(aws, list(ids))}


def job_name(run_id: str) -> str:
    return f"pagefleet-{run_id}"


def count_states(children: Iterable[Child]) -> dict[str, int]:
    """In the order in which a job goes through them; those without a child are left out."""
    counts = Counter(child.status for child in children)
    return {state: counts[state] for state in STATES if counts[state]}


def console_links(record: BatchRecord) -> dict[str, str]:
    """Where a browser shows the job, and its logs."""
    base = f"https://{record.region}.console.aws.amazon.com"
    group = record.log_group.replace("/", "$252F")  # the console's own encoding: percent, then its sign as a dollar
    return {
        "console": f"{base}/batch/home?region={record.region}#jobs/detail/{record.job.id}",
        "logs": f"{base}/cloudwatch/home?region={record.region}#logsV2:log-groups/log-group/{group}",
    }


# ---- helpers


def _submit(
    aws: Aws,
    uri: str,
    run_id: str,
    kind: str,
    stack: Stack,
    *,
    shards: int,
    resumed_after: int = 0,
    retry_failed: bool = False,
) -> JobRecord:
    definition: JobDefinition = stack.definition(kind)
    queue = stack.queues[definition.queue]
    environment = {"PAGEFLEET_RUN_URI": uri}
    if resumed_after:
        environment["PAGEFLEET_ATTEMPT_OFFSET"] = str(resumed_after)
    if retry_failed:
        environment["PAGEFLEET_RETRY_FAILED"] = "1"
    arguments: dict[str, Any] = {"arrayProperties": {"size": shards}} if shards > 1 else {}
    answer = aws.call(
        "batch",
        "submit_job",
        jobName=job_name(run_id),
        jobQueue=queue.arn,
        jobDefinition=definition.arn,
        containerOverrides={"environment": [{"name": k, "value": v} for k, v in environment.items()]},
        **arguments,
    )
    return JobRecord(
        id=answer["jobId"],
        name=job_name(run_id),
        queue=queue.arn,
        kind=kind,
        definition=definition.arn,
        vcpus=definition.vcpus,
        memory=definition.memory,
        gpus=definition.gpus,
        spot=definition.spot,
        instance_types=definition.instance_types,
        submitted=datetime.now(UTC).replace(microsecond=0),
        shards=shards,
        resumed_after=resumed_after,
        retry_failed=retry_failed,
    )


def _write_record(storage: Storage, paths: RunPaths, record: BatchRecord) -> None:
    storage.write(paths.file(FILE), (record.model_dump_json(indent=1, by_alias=True) + "\n").encode())


def _jobs_named(aws: Aws, queue: str, name: str) -> list[str]:
    filters = [{"name": "JOB_NAME", "values": [name]}]
    pages = aws.pages("batch", "list_jobs", jobQueue=queue, filters=filters)
    return [job["jobId"] for page in pages for job in page["jobSummaryList"] if ":" not in job["jobId"]]


def _describe(aws: Aws, ids: list[str]) -> Iterator[dict[str, Any]]:
    for some in chunks(ids, DESCRIBED):
        yield from aws.call("batch", "describe_jobs", jobs=some)["jobs"]


def _child_ids(job: JobRecord) -> list[str]:
    return [f"{job.id}:{shard}" for shard in range(job.shards)] if job.shards > 1 else [job.id]


def _child(detail: dict[str, Any], job: JobRecord) -> Child:
    attempts = [_attempt(attempt) for attempt in detail.get("attempts", [])]
    container = detail.get("container", {})
    if detail["status"] == "RUNNING" and (not attempts or attempts[-1].stopped):
        running = {"startedAt": detail.get("startedAt"), "container": container}  # Batch lists an attempt at its end
        attempts.append(_attempt(running))
    return Child(
        shard=int(detail["jobId"].rpartition(":")[2]) if job.shards > 1 else 0,
        status=detail["status"],
        reason=str(detail.get("statusReason") or container.get("reason") or ""),
        attempts=tuple(attempts),
    )


def _attempt(detail: dict[str, Any]) -> Attempt:
    container = detail.get("container", {})
    return Attempt(
        started=_time(detail.get("startedAt")),
        stopped=_time(detail.get("stoppedAt")),
        exit_code=container.get("exitCode"),
        reason=str(container.get("reason") or detail.get("statusReason") or ""),
        log_stream=container.get("logStreamName"),
        instance=container.get("containerInstanceArn"),
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _in_s3(uri: str) -> str:
    if not uri.startswith("s3://"):
        raise UsageError(f"{uri} is not in S3: a run on AWS reads s3:// keys. Upload it, or use `pagefleet run`")
    return uri
