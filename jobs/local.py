"""A run on this machine, from the inputs to the report: the steps behind `pagefleet run` and `pagefleet resume`."""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from jobs.aws import Aws, AwsError, Credentials, NoAnswer, Throttled, Unreachable
from jobs.collect import collect
from jobs.dataset import DatasetRequest, check_licence, dataset_name, plan_dataset
from jobs.errors import JobError, UsageError
from jobs.plan import Plan, Sharding, describe_run, find_inputs, make_plan, new_run_id, read_keys_file, write_plan
from jobs.progress import Progress
from jobs.results import Document, RunFolder, read_results
from jobs.runner import Runner, RunnerOptions, last_error
from jobs.summary import Summary
from jobs.wording import plural, shown, typed
from worker import __version__
from worker.contract import ExitCode, Options, RunPaths
from worker.decode import Decoder
from worker.engines import check_engine, check_options
from worker.engines.options import SERVICE_OPTIONS, refuse_secrets
from worker.engines.presets import PRESETS
from worker.errors import DocumentError
from worker.scratch import Scratch
from worker.settings import Settings
from worker.storage import NotFound, Storage, file_errors, to_uri, uri_path
from worker.versions import library_versions

if TYPE_CHECKING:
    from rich.console import Console


REASONS = 3  # why shards gave up, told at the end: the commonest
RUNS = "runs"  # below the current folder, where runs go unless told otherwise


@dataclass(frozen=True)
class Request:
    """What `pagefleet run` was asked for."""

    inputs: tuple[str, ...]
    keys_file: str | None
    engine: str
    options: Options
    sharding: Sharding
    dataset: DatasetRequest | None = None  # instead of inputs


class Refused(UsageError):
    """The worker says that the request itself is wrong: trying again can't help."""


class Interrupted(JobError):
    """A person or the system asked to stop; what is left can be resumed."""


def check_out(storage: Storage, out: str) -> None:
    """Raises: UsageError where something is already, where a new run is to go."""
    if storage.exists(RunPaths(out).run):
        raise UsageError(
            f"{shown(out)} already holds a run: go on with `pagefleet resume {typed(out)}`, or choose another --out"
        )
    if out.startswith("file://"):
        path = uri_path(out)
        if path.exists() and not (
            path.is_dir() and all(child.is_dir() and not any(child.iterdir()) for child in path.iterdir())
        ):
            raise UsageError(f"{shown(out)} exists and is not an empty folder: choose another --out")


def plan_run(storage: Storage, request: Request, out: str) -> Plan:
    """Raises: UsageError where there is nothing to read; BadRequest where there is no such engine here, or it has no
    such options or lacks one."""
    if request.dataset:  # before anything is said of what to install
        check_licence(request.engine, request.options.engine_options, accept=request.dataset.accept_licence)
    check_engine(request.engine)
    check_options(request.engine, request.options, Settings.from_environment(os.environ).api_keys)
    if request.dataset:
        plan = plan_dataset(storage, request.dataset, request.engine, request.options.engine_options)
        check_aws(storage, request.engine, request.options, (uri for uri, *_ in islice(plan.tasks, 1)))
        return plan
    warnings: list[str] = []

    def uris() -> Iterator[str]:
        yield from find_inputs(storage, request.inputs, leave_out=out, warnings=warnings)
        if request.keys_file:
            yield from read_keys_file(request.keys_file)

    with page_counter(storage, request.options) as count_pages:
        plan = make_plan(
            uris(),
            request.sharding,
            count_pages=count_pages,
            asked_for=[*request.inputs, *filter(None, [request.keys_file])],
            warnings=warnings,
        )
    check_aws(storage, request.engine, request.options, (uri for uri, *_ in plan.tasks))
    plan.warnings = warnings + plan.warnings
    return plan


def check_aws(storage: Storage, engine: str, options: Options, uris: Iterable[str]) -> None:
    """Whether AWS can be asked at all for sources, weights and a key, before each worker loads its engine to find out.

    Raises: BadSetup or Credentials without credentials that AWS takes; TryAgain or AwsError where it is not reached;
    DocumentError where the weights' bucket can't be listed.
    """
    in_s3 = next((uri for uri in uris if uri.startswith("s3://")), None)
    if in_s3:
        with suppress(DocumentError):  # of that document alone, or a bucket that may be read but not listed
            next(iter(storage.list(in_s3)), None)
    model, secret = (str(options.engine_options.get(name, "")) for name in ("model", "key_secret"))
    if model.startswith("s3://") and (engine in PRESETS or engine == "vllm"):
        next(iter(storage.list(model)), None)
    if engine == "upstage" and len(place := secret.split(":")) == 7 and place[2] == "secretsmanager":
        try:
            Aws(place[3]).call("secretsmanager", "get_secret_value", SecretId=secret)
        except (Credentials, Throttled, Unreachable, NoAnswer):
            raise
        except AwsError:
            pass  # of that secret: the engine says what it must be


def start_run(storage: Storage, request: Request, plan: Plan, out: str) -> RunFolder:
    """Writes the plan into a new run's folder."""
    paths = RunPaths(out)
    run_id = out.rpartition("/")[2] if _is_run_id(out.rpartition("/")[2]) else new_run_id()
    write_plan(storage, paths, plan, describe_run(plan, run_id, request.engine, request.options, versions()))
    return RunFolder(storage, out)


def change_service(folder: RunFolder, options: Mapping[str, Any]) -> None:
    """Has a run go on with a service that is elsewhere, or is to be asked in another way.

    Raises: UsageError for an option that decides what is read; BadRequest for what the engine does not take.
    """
    run = folder.run
    has = run.options.engine_options
    changed = {name: value for name, value in options.items() if has.get(name) != value}
    if others := sorted(changed.keys() - set(SERVICE_OPTIONS)):
        raise UsageError(
            f"the run at {shown(folder.uri)} is read as it was planned: its engine's option {others[0]} can't be "
            f"changed, only {', '.join(SERVICE_OPTIONS)}; start a new run"
        )
    if not changed:
        return
    new = run.options.model_copy(update={"engine_options": has | changed})
    refuse_secrets(new.engine_options)
    check_options(run.engine, new)
    if run.dataset:
        check_licence(run.engine, new.engine_options, accept=run.dataset.accepted_licence is not None)
    folder.run = run.model_copy(update={"options": new})
    folder.storage.write(folder.paths.run, folder.run.to_json().encode())


def read(folder: RunFolder, shards: list[int], options: RunnerOptions, console: Console, tasks: int) -> list[str]:
    """Runs the workers for these shards, with progress on `console`. Returns why shards gave up, each reason once.

    Raises: Interrupted after Ctrl-C or SIGTERM, when the workers have drained; Refused where a worker says that the
    request itself is wrong.
    """
    with Progress(console, tasks) as progress:
        runner = Runner(
            folder.uri, options, on_receipt=progress.receipt, on_progress=progress.news, on_log=progress.log
        )
        with _stop_on_signal(runner, progress) as stopped:
            ends = runner.run(shards)
    wrong = next((end for end in ends if end.exit_code == ExitCode.BAD_REQUEST), None)
    if wrong:
        raise Refused(f"the worker refuses the run: {_last_message(wrong.stderr)}")
    if stopped() and not (len(ends) == len(shards) and all(end.ok for end in ends)):
        raise Interrupted(
            f"stopped after {progress.ended:,} of {plural(tasks, 'task')}. "
            f"`pagefleet resume {typed(folder.uri)}` reads the rest"
        )
    reasons: Counter[str] = Counter()
    for end in ends:
        if not end.ok:
            why = f"after {plural(end.attempts, 'attempt')} (exit {end.exit_code}): {_last_message(end.stderr)}"
            progress.log(f"shard {end.shard} gave up {why}")
            reasons[why] += 1
    return [f"{plural(count, 'shard')} gave up {why}" for why, count in reasons.most_common(REASONS)]


def discard(folder: RunFolder) -> None:
    """Removes a run of which nothing was read, its folder too, so that its place can be used again."""
    for entry in list(folder.storage.list(folder.paths.file(""))):
        folder.storage.delete(entry.uri)
    if folder.uri.startswith("file://"):
        path = uri_path(folder.uri)
        directories = [below for below, _, _ in os.walk(path, topdown=False)]
        if path.parent == Path(RUNS).absolute():
            directories.append(RUNS)
        for directory in directories:
            with suppress(OSError):  # of one in which there is something else
                os.rmdir(directory)


def finish(
    folder: RunFolder,
    *,
    report: bool,
    on_document: Callable[[Document], None] = lambda document: None,
    warnings: Sequence[str] = (),
) -> Summary:
    """Collects, and writes the report."""
    summary = collect(folder, on_document, warnings=warnings)
    if report:
        write_report_file(folder, summary)
    return summary


def write_report_file(folder: RunFolder, summary: Summary) -> str:
    """Writes `report.html` into the run's folder and returns its URI. Reads `results.jsonl`, as `collect` wrote it."""
    from jobs.images import PageImages
    from jobs.report import write_report

    uri = folder.paths.file("report.html")
    with (
        file_errors(tempfile.gettempdir()),
        Scratch() as scratch,
        PageImages(folder.storage, folder.run.options) as images,
    ):
        path = scratch / "report.html"
        try:
            results = folder.storage.fetch(folder.paths.file("results.jsonl"), scratch).path
        except NotFound as error:
            raise UsageError(
                f"the run at {shown(folder.uri)} has no results.jsonl to make a report of: `pagefleet collect "
                f"{typed(folder.uri)}` writes it, where this is no copy fetched with --no-documents"
            ) from error
        with open(path, "wb") as file:
            write_report(file, summary, lambda: read_results(results), images, place=typed(folder.uri))
        folder.storage.upload(uri, path)
    return uri


def out_uri(out: str | None, dataset: DatasetRequest | None = None) -> str:
    """Where a run goes: as asked, or `runs/<run id>` below the current folder; `runs/<name>` of a dataset, so that the
    same command with `--resume` finds it again."""
    return to_uri(out or f"{RUNS}/{dataset_name(dataset.uri) if dataset else new_run_id()}").rstrip("/")


def find_run(storage: Storage, out: str) -> RunFolder | None:
    """The run that is there already; None where none is."""
    return RunFolder(storage, out) if storage.exists(RunPaths(out).run) else None


def versions() -> dict[str, str]:
    """Of the program and of the libraries that decide what is read."""
    found = {"pagefleet": __version__, **library_versions()}
    if revision := os.environ.get("PAGEFLEET_REVISION"):
        found["git"] = revision
    return found


@contextmanager
def page_counter(storage: Storage, options: Options) -> Iterator[Callable[[str], int]]:
    """Counts pages in a child process that is started when the first document asks."""
    decoder: Decoder | None = None
    with Scratch() as scratch:

        def count(uri: str) -> int:
            nonlocal decoder
            decoder = decoder or Decoder(options, longest_side=64)
            fetched = storage.fetch(uri, scratch)
            try:
                return decoder.count(str(fetched.path))
            finally:
                if fetched.temporary:
                    fetched.path.unlink(missing_ok=True)

        try:
            yield count
        finally:
            if decoder:
                decoder.close()


@contextmanager
def _stop_on_signal(runner: Runner, progress: Progress) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM drains the workers, the second ends them."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) == 1:
            progress.log("stopping: the workers finish what they have in hand (again to stop at once)")
            runner.stop()
        else:
            runner.stop(signal.SIGKILL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_message(stderr: Sequence[str]) -> str:
    return last_error(stderr) or (stderr[-1] if stderr else "it said nothing")


def _is_run_id(name: str) -> bool:
    parts = name.split("-")
    return [len(part) for part in parts] == [8, 6, 4] and (parts[0] + parts[1]).isdecimal()
