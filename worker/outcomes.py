"""Outcomes of tasks: where they go, which of them earlier attempts left, and those that no pipeline lives to write."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

from worker.contract import Failure, FailureCode, Receipt, Result, RunPaths, Task
from worker.errors import BadRequest
from worker.receipts import read_receipts
from worker.settings import Settings
from worker.storage import NotFound, Storage, uri_path


class RunPlaces:
    """In a run's folder."""

    def __init__(self, paths: RunPaths) -> None:
        self.result = paths.result
        self.failure = paths.failure
        self._markdown = paths.markdown

    def text(self, task: Task) -> str | None:
        """A part has no markdown of its own: `collect` writes the document's."""
        return self._markdown(task.name) if task.part is None else None


class OnePlace:
    """Where the one-document form wants it; an output that ends in a slash is a folder."""

    def __init__(self, output: str, source: str) -> None:
        """Raises: BadRequest where a folder is asked for and the source has no name to use in it."""
        self._output = output
        if output.endswith("/"):
            name = uri_path(source).name if source.startswith("file://") else source.rpartition("/")[2]
            if not name:
                raise BadRequest(f"{source} names no document")
            self._output += quote(f"{name}.json") if output.startswith("file://") else f"{name}.json"

    def result(self, task: Task) -> str:
        return self._output

    def failure(self, task: Task) -> str:
        return self._output.removesuffix(".json") + ".failure.json"

    def text(self, task: Task) -> str | None:
        return None


class Ended:
    """Tells whether earlier attempts have ended a task, from their receipts, or else by looking for the outcome.

    Where failed documents are to be read again, a failure from before the run was resumed doesn't count, nor does a
    partial result.
    """

    def __init__(self, settings: Settings, storage: Storage, paths: RunPaths) -> None:
        self._settings = settings
        self._storage = storage
        self._paths = paths
        self._receipts: dict[str, Receipt] = {}
        for attempt in range(1, settings.attempt + 1):
            for receipt in read_receipts(storage, paths.receipts(settings.shard, attempt)):
                self._receipts[receipt.task] = receipt

    def __call__(self, task: Task) -> bool:
        if self.by_receipt(task):
            return True
        again = self._settings.retry_failed
        result, failure = self._paths.result(task), self._paths.failure(task)
        if self._storage.exists(result):
            if not again or task.key not in self._receipts:
                return True
            return Result.model_validate_json(self._storage.read(result)).meta.attempt > self._settings.resumed_after
        if not self._storage.exists(failure):
            return False
        return not again or (
            Failure.model_validate_json(self._storage.read(failure)).attempt > self._settings.resumed_after
        )

    def note(self, receipt: Receipt) -> None:
        """A task has ended since."""
        self._receipts[receipt.task] = receipt

    def by_receipt(self, task: Task) -> bool:
        """The same without asking storage; False where there is no receipt."""
        receipt = self._receipts.get(task.key)
        if receipt is None:
            return False
        again = self._settings.retry_failed and receipt.attempt <= self._settings.resumed_after
        return receipt.outcome == "ok" or not again


def read_outcome(storage: Storage, paths: RunPaths, task: Task) -> Result | Failure | None:
    """What became of a task; a result wins over a failure that a later attempt made good."""
    try:
        return Result.model_validate_json(storage.read(paths.result(task)))
    except NotFound:
        pass
    try:
        return Failure.model_validate_json(storage.read(paths.failure(task)))
    except NotFound:
        return None


def write_failure(
    settings: Settings, storage: Storage, uri: str, task: Task, code: FailureCode, message: str
) -> Receipt:
    """Records a failure that no pipeline lives to record, and returns its receipt."""
    now = datetime.now(UTC)
    failure = Failure(
        source_image=task.uri,
        code=code,
        message=message,
        attempt=settings.attempt,
        timestamp=now.replace(microsecond=0),
    )
    storage.write(uri, failure.to_json().encode())
    return Receipt(
        task=task.key,
        uri=task.uri,
        outcome="failed",
        code=code,
        message=message,
        seconds=0,
        pages=0,
        shard=settings.shard,
        attempt=settings.attempt,
        timestamp=now,
    )
