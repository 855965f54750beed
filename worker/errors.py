"""Exceptions of the worker: each carries the exit code of the process, or the failure code of the document."""

from __future__ import annotations

from worker.contract import ExitCode, FailureCode


class WorkerError(Exception):
    """Ends the worker process. The message says what happened, to what, and what to do next."""

    exit_code = ExitCode.CRASHED


class BadRequest(WorkerError):
    """The request itself is wrong: trying again can't help."""

    exit_code = ExitCode.BAD_REQUEST


class BadSetup(BadRequest):
    """There are no AWS credentials, or AWS refuses them: nothing of what was asked for is wrong."""


class TryAgain(WorkerError):
    """Something outside is unreachable or full; a later attempt may succeed."""

    exit_code = ExitCode.TRY_AGAIN


class DocumentError(Exception):
    """Ends one task with a failure record; the shard goes on."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
