"""One shard of a run, or one document: what was asked for, what earlier attempts left, and the pipeline in between.

A first attempt looks nothing up. A later one skips what has an outcome; one that follows a crash is supervised.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from pydantic import TypeAdapter, ValidationError

from worker.contract import ExitCode, FailureCode, Marker, Options, Run, RunPaths, Task
from worker.dataset import PREFIX, ParquetSet
from worker.engines import Engine, EngineSettings, build_engine
from worker.engines.presets import forbidden_to_label
from worker.errors import BadRequest, DocumentError, TryAgain
from worker.labels import write_part
from worker.marker import InFlight, read_marker
from worker.outcomes import Ended, OnePlace, RunPlaces, write_failure
from worker.pipeline import EngineStuck, Job, Pipeline
from worker.receipts import ReceiptLog
from worker.settings import Settings
from worker.storage import Storage, to_uri
from worker.supervisor import Supervisor

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 3.0  # of the time to drain, kept for receipts and the marker


class Drain:
    """SIGTERM's way to whatever is running: admit no more, finish what is in flight, and be gone when time is up."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asked = threading.Event()
        self._changing = threading.Lock()
        self._how: Callable[[], None] = lambda: None
        self._last: Callable[[], None] = lambda: None
        threading.Thread(target=self._wait, name="drain", daemon=True).start()

    def ask(self) -> None:
        """Starts draining. Takes no lock that the main thread might hold, so that a signal handler may call it."""
        self._asked.set()

    def use(self, how: Callable[[], None], last: Callable[[], None]) -> None:
        """From now on draining means calling `how` at once, and `last` before the process ends for lack of time."""
        with self._changing:
            self._how, self._last = how, last
            asked = self._asked.is_set()
        if asked:
            how()

    def _wait(self) -> None:
        self._asked.wait()
        with self._changing:
            how = self._how
        how()
        time.sleep(max(0.0, self._seconds - FAREWELL_SECONDS))
        log.warning("time to drain is up: what is in hand is given up, a later attempt reads it again")
        farewell = threading.Thread(target=self._last, daemon=True)  # storage may not answer
        farewell.start()
        farewell.join(FAREWELL_SECONDS)
        os._exit(ExitCode.DRAINED)  # threads inside an engine can't be stopped in another way


def read_shard(settings: Settings, storage: Storage, drain: Drain) -> ExitCode:
    """Reads what is left of a shard, and of a dataset's rows writes down what came of them.

    Raises: WorkerError with the exit code that the process must end with.
    """
    assert settings.run_uri
    paths = RunPaths(to_uri(settings.run_uri))
    settings = _with_number(settings, storage)
    run, tasks = _load(storage, paths, settings.shard)
    ended = Ended(settings, storage, paths) if settings.attempt > 1 else None
    if run.dataset is None or settings.supervised or not tasks:
        return _read_tasks(settings, storage, drain, paths, run, tasks, ended)
    part = paths.labels(settings.shard)
    outdated = ended is None or not all(map(ended, tasks))
    if ended and outdated:
        storage.write(part, b"")  # what it says will not be true any more; jobs on AWS may delete nothing here
    code = _read_tasks(settings, storage, drain, paths, run, tasks, ended)
    if code is ExitCode.OK and (outdated or not storage.exists(part)):
        write_part(storage, paths, settings.shard, tasks)
    return code


def _read_tasks(
    settings: Settings,
    storage: Storage,
    drain: Drain,
    paths: RunPaths,
    run: Run,
    tasks: list[Task],
    ended: Ended | None,
) -> ExitCode:
    own_receipts = None if settings.supervised else paths.receipts(settings.shard, settings.attempt)
    receipts = ReceiptLog(storage, own_receipts, progress_seconds=settings.progress_seconds)
    receipts.flush()  # the attempt has begun: a resumed run counts on from it
    marker = Marker(attempt=settings.attempt)
    if ended:
        left = read_marker(storage, paths.marker(settings.shard))
        if left and (left.in_flight or left.suspects) and not settings.supervised:
            supervisor = Supervisor(settings, storage, paths, tasks, ended, receipts)
            drain.use(supervisor.drain, receipts.flush)
            try:
                return supervisor.run(left)
            finally:
                receipts.flush()
        if left and settings.supervised == "suspects":
            marker = left
            tasks = [task for task in tasks if task.key in marker.suspects]
        tasks = [task for task in tasks if not ended.by_receipt(task)]
    if not tasks:
        return ExitCode.OK  # without building an engine for nothing
    _check_dataset(run, tasks, storage)
    engine = _engine(run.engine, settings, run.options)
    _check_licence(run, engine)
    job = Job(
        settings=settings,
        options=run.options,
        engine=engine,
        engine_name=run.engine,
        storage=storage,
        places=RunPlaces(paths),
        receipts=receipts,
        in_flight=InFlight(storage, paths.marker(settings.shard), marker),
    )
    if ended:
        job.skip = ended
    if settings.supervised == "suspects":
        job.window = 1
    return _read(job, tasks, receipts, drain)


def read_document(settings: Settings, storage: Storage, drain: Drain) -> ExitCode:
    """The one-document form: reads `INPUT_S3_URI`, writes its result to `OUTPUT_S3_URI`.

    Raises: BadRequest where the document failed, with `<output>.failure.json` written: nobody else is there to notice.
    """
    assert settings.input_uri
    assert settings.output_uri
    task = Task(uri=to_uri(settings.input_uri), name="document")
    places = OnePlace(to_uri(settings.output_uri), task.uri)
    receipts = ReceiptLog(storage, None, progress_seconds=settings.progress_seconds)
    options = Options()
    engine = _engine(settings.engine, settings, options)
    job = Job(settings, options, engine, settings.engine, storage, places, receipts, window=1)
    try:
        code = _read(job, [task], receipts, drain)
    except EngineStuck:
        code = ExitCode.CRASHED  # its receipt tells of it, as of any failure
    if receipts.failed:
        raise BadRequest(f"{task.uri} could not be read: {receipts.failed[0].message}; see {places.failure(task)}")
    if code is ExitCode.OK:
        storage.delete(places.failure(task))  # of an earlier attempt
    return code


def _with_number(settings: Settings, storage: Storage) -> Settings:
    """With the shard's own number, where an array reads only some of a run's shards."""
    if not settings.shards_uri:
        return settings
    uri = to_uri(settings.shards_uri)
    try:
        number = TypeAdapter(list[int]).validate_json(storage.read(uri))[settings.shard]
    except DocumentError as error:
        raise BadRequest(f"the list of shards cannot be read: {error.message}") from error
    except (ValidationError, IndexError) as error:
        raise BadRequest(f"{uri} names no shard for index {settings.shard}: {error}") from error
    return replace(settings, shard=number)


def _load(storage: Storage, paths: RunPaths, shard: int) -> tuple[Run, list[Task]]:
    """Raises: BadRequest where there is no such run or shard, or it can't be understood."""
    try:
        run = Run.model_validate_json(storage.read(paths.run))
        lines = storage.read(paths.shard(shard)).splitlines()
        return run, [Task.model_validate_json(line) for line in lines]
    except DocumentError as error:
        raise BadRequest(f"no shard {shard} of a run at {paths.base}: {error.message}") from error
    except ValidationError as error:
        raise BadRequest(
            f"the run at {paths.base} cannot be understood by this version of the worker: {error}"
        ) from error


def _engine(name: str, settings: Settings, options: Options) -> Engine:
    return build_engine(
        name,
        EngineSettings(
            threads=settings.threads,
            timeout=options.engine_timeout,
            lang=options.lang,
            options=options.engine_options,
            api_keys=settings.api_keys,
        ),
    )


def _check_dataset(run: Run, tasks: list[Task], storage: Storage) -> None:
    """Raises: BadRequest where images lie in a dataset that is another by now: they would be read for nothing."""
    if run.dataset is None or not any(task.uri.startswith(PREFIX) for task in tasks):
        return
    try:
        with ParquetSet(storage, run.dataset.uri) as opened:
            same = opened.fingerprint() == run.dataset.fingerprint
    except DocumentError as error:
        raise BadRequest(f"the dataset of the run cannot be read any more: {error.message}") from error
    if not same:
        raise BadRequest(
            f"{run.dataset.uri} has changed since the run was planned: put the old one back and resume the run, or "
            "start a new one"
        )


def _check_licence(run: Run, engine: Engine) -> None:
    """Raises: BadRequest where the model must not label data. What a server holds is known only now."""
    if run.dataset is None or run.dataset.accepted_licence:
        return
    preset = forbidden_to_label(run.engine, run.options.engine_options | {"model": engine.model})
    if preset:
        engine.close()
        raise BadRequest(
            f"{engine.model}, which {run.engine} would read with, must not label data that other models are trained on "
            f"({preset.licence.name}: {preset.licence.limits}): start a new run with another model; or, where the "
            "labels are for something else or its owner allows it, with --accept-licence"
        )


def _read(job: Job, tasks: list[Task], receipts: ReceiptLog, drain: Drain) -> ExitCode:
    """Closes the engine, however it ends."""
    close = job.engine.close
    try:
        return _run_pipeline(job, tasks, receipts, drain)
    except EngineStuck:
        close = partial(_discard, job.engine)  # a call of it still runs: the rest ends with the process
        raise
    finally:
        close()


def _discard(engine: Engine) -> None:
    """Deletes what an engine has downloaded for this process alone, whether or not it is in use."""
    if discard := getattr(engine, "discard", None):
        discard()


def _run_pipeline(job: Job, tasks: list[Task], receipts: ReceiptLog, drain: Drain) -> ExitCode:
    pipeline = Pipeline(job)

    def last() -> None:
        receipts.flush()
        if job.in_flight:
            job.in_flight.clear()
        pipeline.discard()
        _discard(job.engine)

    drain.use(pipeline.drain, last)
    try:
        pipeline.run(tasks)
    except EngineStuck as error:
        if job.window == 1:  # alone in flight, so it is to blame
            for task in error.tasks:
                uri = job.places.failure(task)
                receipts.add(write_failure(job.settings, job.storage, uri, task, FailureCode.TIMEOUT, str(error)))
        raise
    except TryAgain:
        if job.in_flight:
            with suppress(TryAgain, DocumentError):  # the same trouble may keep the marker from being cleared
                job.in_flight.clear()
        raise
    finally:
        receipts.flush()
    if job.in_flight:
        job.in_flight.clear()
    if pipeline.left_over:
        log.warning("drained, with %d tasks left to a later attempt", pipeline.left_over)
        return ExitCode.DRAINED
    return ExitCode.OK
