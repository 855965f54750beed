"""A run on AWS Batch: submitted, resumed, cancelled, and asked for the state of its shards.

`batch.json` in the run's folder says which jobs read it, and all that is needed to ask for them later.
"""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any

from pydantic import Field, ValidationError

from jobs.aws import Aws, AwsError, Credentials, Denied, NoAnswer, chunks
from jobs.dataset import DatasetRequest, plan_dataset
from jobs.errors import JobError, UsageError
from jobs.local import change_service, page_counter, versions
from jobs.plan import (
    Plan,
    Sharding,
    describe_run,
    find_below,
    find_inputs,
    known_pages,
    make_plan,
    read_keys_file,
    write_plan,
)
from jobs.results import RunFolder, open_run
from jobs.stack import JobDefinition, Queue, Stack
from jobs.wording import plural, run_words
from worker.contract import Options, Record, Run, RunPaths
from worker.engines import ENGINES, check_options
from worker.engines.presets import PRESETS, presets_of
from worker.errors import DocumentError, TryAgain
from worker.storage import NotFound, Storage

log = logging.getLogger(__name__)

FILE = "batch.json"
IMAGE = "image"  # among a run's versions: which one its jobs take
ENDED = ("SUCCEEDED", "FAILED")
STATES = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")
DESCRIBED = 100  # jobs that one DescribeJobs takes
# An attempt that takes longer is stuck. The embedded engine reads a page in a second even on a slow vCPU; of vision
# models up to 200 s were told (HunyuanOCR, a page at a time). Starting covers the engine's load, not the image's pull.
PAGE_SECONDS = {"rapidocr": 30}
OTHER_PAGE_SECONDS = 240
STARTUP_SECONDS = 900
LEAST_TIMEOUT = 3600
# Seconds between looks for a job whose submission was not answered: AWS Batch lists it when it comes to it.
LOOKS = (1.0, 2.0, 4.0, 8.0, 15.0)
CLAIM = timedelta(minutes=10)  # for which a claim counts: far longer than 10,000 shards take to be written
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
    shards: Annotated[int, Field(ge=1)]  # how many; more than one is an array job
    numbers: list[int] | None = None  # of these shards, by the array's index; absent: the index itself
    timeout: int | None = None  # seconds of one attempt; absent: the definition's own
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

    def current(self, states: Mapping[str, str]) -> JobRecord:
        """The job that lives, of those whose states are told, or else the last one."""
        live = live_jobs(states)
        return next((job for job in reversed(self.jobs) if job.id in live), self.job)


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
    dataset: DatasetRequest | None = None  # instead of keys


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

    @property
    def words(self) -> str:
        """The run as it is named to a command."""
        return run_words(self.id, self.record.stack)

    def status(self) -> str | None:
        """Of the current job."""
        return self.current()[1]

    def current(self) -> tuple[JobRecord, str | None]:
        """The job that lives, or else the last one, and its status: None where Batch has forgotten it, as it does some
        days after a job's end."""
        states = self._states()
        job = self.record.current(states)
        return job, states.get(job.id)

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
        """Ends whatever job lives; its workers drain. False where all had ended before."""
        live = live_jobs(self._states())
        for job in live:
            self.aws.call("batch", "terminate_job", jobId=job, reason="cancelled with pagefleet cancel")
        return bool(live)

    def resume(self, stack: Stack, *, retry_failed: bool, service: Mapping[str, Any] | None = None) -> JobRecord | None:
        """Submits a job for the shards that have something left; None where none has. `service` are options of the
        engine that change (see `change_service`).

        Raises: UsageError where a job of the run lives, or somebody else is resuming it; JobError where it is not known
        whether AWS Batch has taken the job.
        """
        storage, paths = self.folder.storage, self.folder.paths
        with _claimed(storage, paths, self.id) as check_claim:
            self.record = read_record(storage, paths) or self.record  # of whoever resumed it just before
            found = with_lost_jobs(self.aws, self.folder, stack, self.record)
            if found and found != self.record:
                self.record = found
                _write_record(storage, paths, found)
            status = self.status()
            if status not in (None, *ENDED):
                raise UsageError(f"run {self.id} is live ({status}): follow it with `pagefleet watch {self.words}`")
            change_service(self.folder, service or {})
            self.folder.refresh()
            left = self.folder.open_tasks(retry_failed=retry_failed)
            if not left:
                return None
            resumed_after = max(1, self.folder.last_attempt)  # even where an attempt died before its first receipt
            numbers = sorted(left)
            if numbers == list(range(len(numbers))):
                numbers = []
            else:  # an array's indices begin at 0 and have no gaps
                storage.write(paths.numbers(resumed_after), (json.dumps(numbers) + "\n").encode())
            job = _submit(
                self.aws,
                paths,
                self.id,
                self.record.job.kind,
                stack,
                check_claim,
                known={job.id for job in self.record.jobs},
                shards=len(left),
                numbers=numbers or None,
                timeout=self.record.jobs[0].timeout,
                resumed_after=resumed_after,
                retry_failed=retry_failed,
            )
            self.record.jobs.append(job)
            _write_record(storage, paths, self.record)
            return job

    def _states(self) -> dict[str, str]:
        return job_states(self.aws, [job.id for job in self.record.jobs])


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


def check_weights(stack: Stack, kind: str, request: Request) -> None:
    """Whether a job will find its model, and vLLM where it is to run it: images hold the weights of one model, and
    download no others from a hub.

    Raises: UsageError.
    """
    options = request.options.engine_options
    if request.engine not in PRESETS and (request.engine != "vllm" or "command" in options):
        return
    target = kind.removeprefix("ocr-")
    if target == "cpu":
        raise UsageError(f"{request.engine} runs in the GPU image alone: leave out `--on cpu`")
    if request.engine == "vllm" and not stack.image.vllm:
        raise UsageError(
            f"the GPU image of stack {stack.stack} has no vLLM: set `ARG VLLM=with` in worker/Dockerfile and deploy, "
            "name the model's own engine instead, or a server that runs elsewhere with --engine openai"
        )
    preset = str(options.get("preset", "")) if request.engine == "vllm" else request.engine
    model = str(options.get("model", ""))
    if os.path.isdir(model) or model.startswith(("/", ".", "~")):
        raise UsageError(f"--model {model} lies on this machine: copy it to s3:// for a run on AWS")
    if not (preset or model):
        raise UsageError("engine vllm needs a model: --engine-option preset=NAME, or model=s3://BUCKET/PREFIX/")
    if model.startswith("s3://") or target not in stack.image.engines:
        return
    baked = stack.image.engines[target]
    if model or "revision" in options or preset != baked:
        wanted = model or preset
        raise UsageError(
            f"the GPU image of stack {stack.stack} holds the weights of {baked} as pinned, and jobs download none: for "
            f"{wanted} put the weights into the inputs bucket and give --model s3://{stack.buckets.inputs}/…/, or set "
            f"`ARG ENGINE=` in worker/Dockerfile to another engine and deploy"
        )


def plan_batch(storage: Storage, stack: Stack, request: Request) -> Plan:
    """Raises: UsageError where there is nothing to read; BadRequest where the engine has no such options."""
    check_options(request.engine, request.options)
    warnings = _licence_warnings(stack, request)
    if request.dataset:
        plan = plan_dataset(storage, request.dataset, request.engine, request.options.engine_options)
        plan.warnings = warnings + plan.warnings
        return plan
    to_input = partial(input_uri, stack)

    def uris() -> Iterator[str]:
        for key in request.keys:
            yield from find_inputs(storage, [to_input(key)], warnings=warnings)
        for prefix in request.prefixes:
            yield from find_below(storage, to_input(prefix), warnings)
        if request.keys_file:
            yield from read_keys_file(request.keys_file, to_input)

    with page_counter(storage, request.options) as count_pages:
        asked_for = [*map(to_input, (*request.keys, *request.prefixes)), *filter(None, [request.keys_file])]
        plan = make_plan(uris(), request.sharding, count_pages=count_pages, asked_for=asked_for, warnings=warnings)
    plan.warnings = warnings + plan.warnings
    return plan


def with_secret(options: Options, engine: str, stack: Stack) -> Options:
    """The options, with the stack's own secret as the source of Upstage's key where nothing else was named."""
    if engine == "upstage" and stack.upstage_secret:
        options.engine_options.setdefault("key_secret", stack.upstage_secret)
    return options


def input_uri(stack: Stack, key: str) -> str:
    """A key of the inputs bucket, or an `s3://` URI.

    Raises: UsageError for anything else.
    """
    uri = key if "://" in key else f"s3://{stack.buckets.inputs}/{key}"
    if not uri.startswith("s3://"):
        raise UsageError(f"{uri} is not in S3: a run on AWS reads s3:// keys. Upload it, or use `pagefleet run`")
    return uri


def _licence_warnings(stack: Stack, request: Request) -> list[str]:
    for preset in presets_of(request.engine, request.options.engine_options):
        if stack.region in preset.licence.excluded_regions:
            return [
                f"stack {stack.stack} is in {stack.region}, and {preset.name}'s licence ({preset.licence.name}) says: "
                f"{preset.licence.limits}. Use a stack elsewhere, or another engine, unless you have an agreement of "
                "your own"
            ]
    return []


def check_free(aws: Aws, storage: Storage, stack: Stack, run_id: str) -> None:
    """Raises: UsageError where the run exists already, saying whether it is live.

    A submit that broke off leaves a plan without a job, and may be done again. One that broke off after its job had
    been submitted is found by the job's name.
    """
    paths = RunPaths(stack.run_uri(run_id))
    record = read_record(storage, paths)
    # In all queues: it may have been submitted with another engine.
    found = [] if record else _jobs_of(aws, stack.queues.values(), paths, run_id)
    jobs = [job.id for job in record.jobs] if record else [str(job["jobId"]) for job in found]
    if not jobs:
        if next(iter(storage.list(paths.file("receipts/"))), None):
            raise UsageError(f"{paths.base} holds a run that was not read on AWS Batch: choose another --run-id")
        return
    states, words = job_states(aws, jobs), run_words(run_id, stack.stack)
    if live := live_jobs(states):
        raise UsageError(
            f"run {run_id} is live: job {live[0]} is {states[live[0]]}. Follow it with `pagefleet watch {words}`, "
            "or choose another --run-id"
        )
    raise UsageError(
        f"run {run_id} exists: go on with `pagefleet resume {words}` or `pagefleet fetch {words}`, "
        "or choose another --run-id"
    )


def submit(aws: Aws, storage: Storage, stack: Stack, run_id: str, kind: str, plan: Plan, request: Request) -> BatchRun:
    """Writes the run's folder and submits its job.

    Raises: UsageError where the run exists, or somebody else is submitting it; JobError where it is not known whether
    AWS Batch has taken the job.
    """
    paths = RunPaths(stack.run_uri(run_id))
    run = describe_run(
        plan,
        run_id,
        request.engine,
        request.options,
        {"pagefleet": versions()["pagefleet"], IMAGE: stack.definition(kind).image.partition("/")[2]},
    )
    with _claimed(storage, paths, run_id) as check_claim:
        check_free(aws, storage, stack, run_id)  # once more: somebody may have been done in the meantime
        write_plan(storage, paths, plan, run)
        timeout = attempt_timeout(plan, request.engine)
        job = _submit(aws, paths, run_id, kind, stack, check_claim, shards=plan.shards, timeout=timeout)
        record = BatchRecord(
            run=paths.base, stack=stack.stack, region=stack.region, log_group=stack.log_group, jobs=[job]
        )
        _write_record(storage, paths, record)
    return BatchRun(aws, RunFolder(storage, paths.base), record)


def attempt_timeout(plan: Plan, engine: str) -> int | None:
    """Seconds that one attempt of any shard may take, from the pages of the largest; None where they are unknown."""
    if plan.dataset:  # a shard is a batch of rows, a page each
        most = min(plan.dataset.batch_size, len(plan.tasks))
    else:
        by_shard = [0] * plan.shards
        for number, (uri, _, ranges, _, _) in enumerate(plan.tasks):
            pages = known_pages(uri, ranges)
            if pages is None:
                return None
            by_shard[number % plan.shards] += pages
        most = max(by_shard)
    return max(LEAST_TIMEOUT, STARTUP_SECONDS + most * PAGE_SECONDS.get(engine, OTHER_PAGE_SECONDS))


def open_batch_run(storage: Storage, location: str, aws: Aws | None = None, stack: Stack | None = None) -> BatchRun:
    """The run at an `s3://` URI, or that of which a local folder is a copy.

    Where a `stack` is given and no job is known to live, one is looked for: of a submit or a resume that broke off
    before it was written down.
    Raises: UsageError where there is no run, one that has no job, or one of another stack.
    """
    folder = open_run(location, storage)
    record = read_record(storage, folder.paths)
    if record and folder.uri != record.run:
        return open_batch_run(storage, record.run, aws, stack)
    if record is None and aws and stack and is_submitted(folder.run):
        if folder.uri != stack.run_uri(folder.run.id):
            raise UsageError(f"{location} is not a run of stack {stack.stack}: name its own with --stack")
        record = with_lost_jobs(aws, folder, stack, None)
        if record is None:
            raise UsageError(
                f"AWS Batch lists no job of run {folder.run.id} in stack {stack.stack}: submit it with --run-id "
                f"{folder.run.id} once more"
            )
        if not storage.create(folder.paths.file(FILE), _serialized(record)):
            record = read_record(storage, folder.paths)  # of whoever has the claim
    if record is None:
        raise UsageError(
            f"run {folder.run.id} at {location} was not submitted to AWS Batch: it has no {FILE}; "
            f"`pagefleet resume {location}` reads it here"
        )
    run = BatchRun(aws or Aws(record.region), folder, record)
    if stack and run.status() in (None, *ENDED):
        run.record = with_lost_jobs(run.aws, folder, stack, record) or record
    return run


def is_submitted(run: Run) -> bool:
    """Whether `submit` has planned the run, also where that broke off before there was a job."""
    return IMAGE in run.versions


def with_lost_jobs(aws: Aws, folder: RunFolder, stack: Stack, record: BatchRecord | None) -> BatchRecord | None:
    """The record with those jobs of the run that Batch knows and it lacks, since a command died before it was written.

    None where there is no record and no job.
    """
    known = {job.id for job in record.jobs} if record else set()
    kinds = {definition.name: kind for kind, definition in stack.job_definitions.items()}
    found = [
        _recovered(detail, folder, stack, kinds[name])
        for detail in _jobs_of(aws, stack.queues.values(), folder.paths, folder.run.id, known)
        if (name := detail["jobDefinition"].rpartition("/")[2].partition(":")[0]) in kinds
    ]
    if not found:
        return record
    record = record or BatchRecord(
        run=folder.uri, stack=stack.stack, region=stack.region, log_group=stack.log_group, jobs=[]
    )
    jobs = sorted([*record.jobs, *found], key=lambda job: job.submitted)
    return record.model_copy(update={"jobs": jobs})


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


def live_jobs(states: Mapping[str, str]) -> list[str]:
    """Those that have not ended, of jobs whose states are told."""
    return [job for job, status in states.items() if status not in ENDED]


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


@contextmanager
def _claimed(storage: Storage, paths: RunPaths, run_id: str) -> Iterator[Callable[[], None]]:
    """Keeps everybody else from submitting a job of this run. What it yields raises where the claim was lost.

    A claim is an object that only one can create. One that a killed process has left counts for `CLAIM`; after that the
    next object in the row takes its place, and whoever comes back late finds that it is no longer the last.
    """
    token = uuid.uuid4().hex
    claims = [entry.uri for entry in storage.list(paths.file("claims/"))]
    number = int(claims[-1].rpartition("/")[2].removesuffix(".json")) + 1 if claims else 1
    if claims and (left := _claim_time(storage, claims[-1]) + CLAIM - datetime.now(UTC)) > timedelta():
        minutes = max(1, round(left.total_seconds() / 60))
        raise UsageError(
            f"run {run_id} is being submitted by somebody else. If that was broken off, it can be done again in "
            f"{plural(minutes, 'minute')}, or at once under another --run-id"
        )
    claim = paths.file(f"claims/{number:04d}.json")
    if not storage.create(claim, json.dumps({"time": datetime.now(UTC).isoformat(), "token": token}).encode()):
        raise UsageError(f"run {run_id} is being submitted by somebody else: look again in a minute")

    def check() -> None:
        if [entry.uri for entry in storage.list(paths.file("claims/"))][-1:] != [claim]:
            raise JobError(f"run {run_id} was taken over, since this command stood still for long: nothing submitted")

    try:
        yield check
    finally:
        with suppress(TryAgain, DocumentError):  # it comes to its end by itself
            for uri in [*claims, claim]:
                storage.delete(uri)


def _claim_time(storage: Storage, uri: str) -> datetime:
    try:
        return datetime.fromisoformat(json.loads(storage.read(uri))["time"])
    except NotFound:  # given back since
        return datetime.min.replace(tzinfo=UTC)


def _recovered(detail: dict[str, Any], folder: RunFolder, stack: Stack, kind: str) -> JobRecord:
    """A job's record, from what Batch says of it."""
    environment = _environment(detail)
    shards = detail.get("arrayProperties", {}).get("size", 1)
    return JobRecord(
        **_hardware(stack.definition(kind)),
        id=detail["jobId"],
        name=detail["jobName"],
        queue=detail["jobQueue"],
        kind=kind,
        definition=detail["jobDefinition"],
        submitted=_time(detail["createdAt"]) or datetime.now(UTC),
        shards=shards,
        numbers=_read_numbers(folder.storage, environment.get("PAGEFLEET_SHARDS"), shards),
        timeout=detail.get("timeout", {}).get("attemptDurationSeconds"),
        resumed_after=int(environment.get("PAGEFLEET_ATTEMPT_OFFSET", 0)),
        retry_failed=bool(environment.get("PAGEFLEET_RETRY_FAILED")),
    )


def _read_numbers(storage: Storage, uri: str | None, shards: int) -> list[int] | None:
    """The numbers of a job's shards; None also where the file is gone, or is a later job's by now."""
    try:
        numbers: list[int] = json.loads(storage.read(uri)) if uri else []
    except NotFound:
        return None
    return numbers if len(numbers) == shards else None


def _hardware(definition: JobDefinition) -> dict[str, Any]:
    return definition.model_dump(include={"vcpus", "memory", "gpus", "spot", "instance_types"})


def _submit(
    aws: Aws,
    paths: RunPaths,
    run_id: str,
    kind: str,
    stack: Stack,
    check_claim: Callable[[], None],
    *,
    shards: int,
    known: Collection[str] = (),
    numbers: list[int] | None = None,
    timeout: int | None = None,
    resumed_after: int = 0,
    retry_failed: bool = False,
) -> JobRecord:
    """`known` are the ids of the jobs that the run has had so far."""
    definition: JobDefinition = stack.definition(kind)
    queue = stack.queues[definition.queue]
    environment = {"PAGEFLEET_RUN_URI": paths.base}
    if numbers:
        environment["PAGEFLEET_SHARDS"] = paths.numbers(resumed_after)
    if resumed_after:
        environment["PAGEFLEET_ATTEMPT_OFFSET"] = str(resumed_after)
    if retry_failed:
        environment["PAGEFLEET_RETRY_FAILED"] = "1"
    arguments: dict[str, Any] = {"arrayProperties": {"size": shards}} if shards > 1 else {}
    if timeout and definition.timeout and timeout < definition.timeout:
        arguments["timeout"] = {"attemptDurationSeconds": timeout}
    try:
        job_id = aws.call_once(  # SubmitJob has no client token: done twice, there are two jobs
            "batch",
            "submit_job",
            check_claim,
            jobName=job_name(run_id),
            jobQueue=queue.arn,
            jobDefinition=definition.arn,
            containerOverrides={"environment": [{"name": k, "value": v} for k, v in environment.items()]},
            **arguments,
        )["jobId"]
    except NoAnswer as error:
        log.warning("%s: looking for the job for %.0f s, so that there are not two", error, sum(LOOKS))
        job_id, listed = None, f"It lists none {sum(LOOKS):.0f} s later"
        try:
            job_id = _look_for_job(aws, queue, paths, run_id, known)
        except AwsError as unlisted:
            listed = f"Its jobs could not be listed since: {unlisted}"
        if job_id is None:
            words, failed = run_words(run_id, stack.stack), " --retry-failed" if retry_failed else ""
            again = f"`pagefleet resume {words}{failed}`" if resumed_after else f"submit it with --run-id {run_id}"
            raise JobError(
                f"it is not known whether AWS Batch has taken the job of run {run_id}: {error}. {listed}. Nothing was "
                f"asked for twice. Look again in some minutes, with `pagefleet watch {words}`; if there is none then, "
                f"{again} once more"
            ) from error
    return JobRecord(
        **_hardware(definition),
        id=job_id,
        name=job_name(run_id),
        queue=queue.arn,
        kind=kind,
        definition=definition.arn,
        submitted=datetime.now(UTC).replace(microsecond=0),
        shards=shards,
        numbers=numbers,
        timeout=timeout,
        resumed_after=resumed_after,
        retry_failed=retry_failed,
    )


def _write_record(storage: Storage, paths: RunPaths, record: BatchRecord) -> None:
    storage.write(paths.file(FILE), _serialized(record))


def _serialized(record: BatchRecord) -> bytes:
    return (record.model_dump_json(indent=1, by_alias=True) + "\n").encode()


def _look_for_job(aws: Aws, queue: Queue, paths: RunPaths, run_id: str, known: Collection[str]) -> str | None:
    """A job of the run that is new; its claim keeps everybody else from submitting one.

    Raises: AwsError where the last look failed.
    """
    failed: AwsError | None = None
    for pause in LOOKS:
        aws.sleep(pause)
        try:
            if new := _jobs_of(aws, [queue], paths, run_id, known):
                return str(new[0]["jobId"])
            failed = None
        except (Denied, Credentials):
            raise
        except AwsError as error:  # what has swallowed the answer may last
            failed = error
    if failed:
        raise failed
    return None


def _jobs_of(
    aws: Aws, queues: Iterable[Queue], paths: RunPaths, run_id: str, known: Collection[str] = ()
) -> list[dict[str, Any]]:
    """What Batch says of the jobs that read a run's folder, without those that are `known`.

    They are listed by name: the filter takes one for the same in upper case, and an array's children have its name.
    """
    name = job_name(run_id)
    filters = [{"name": "JOB_NAME", "values": [name]}]
    arns = dict.fromkeys(queue.arn for queue in queues)
    pages = (aws.pages("batch", "list_jobs", jobQueue=arn, filters=filters) for arn in arns)
    listed = (job for answer in pages for page in answer for job in page["jobSummaryList"])
    ids = [job["jobId"] for job in listed if job["jobName"] == name and ":" not in job["jobId"]]
    described = _describe(aws, [job for job in ids if job not in known])
    return [detail for detail in described if _environment(detail).get("PAGEFLEET_RUN_URI") == paths.base]


def _environment(detail: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in detail.get("container", {}).get("environment", [])}


def _describe(aws: Aws, ids: list[str]) -> Iterator[dict[str, Any]]:
    for some in chunks(ids, DESCRIBED):
        yield from aws.call("batch", "describe_jobs", jobs=some)["jobs"]


def _child_ids(job: JobRecord) -> list[str]:
    return [f"{job.id}:{index}" for index in range(job.shards)] if job.shards > 1 else [job.id]


def _child(detail: dict[str, Any], job: JobRecord) -> Child:
    attempts = [_attempt(attempt) for attempt in detail.get("attempts", [])]
    container = detail.get("container", {})
    if detail["status"] == "RUNNING" and (not attempts or attempts[-1].stopped):
        running = {"startedAt": detail.get("startedAt"), "container": container}  # Batch lists an attempt at its end
        attempts.append(_attempt(running))
    index = int(detail["jobId"].rpartition(":")[2]) if job.shards > 1 else 0
    return Child(
        shard=job.numbers[index] if job.numbers else index,
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
