"""Exceptions of the command line, each with the exit code that it means."""

from __future__ import annotations

from enum import IntEnum


class CliExit(IntEnum):
    """How `pagefleet` ends."""

    OK = 0  # everything was read
    RUN_FAILED = 1
    USAGE = 2
    SOME_FAILED = 3  # some documents failed, wholly or in part; each is listed
    UNACCOUNTED = 4  # some documents have no outcome yet
    STILL_RUNNING = 5  # the time to wait is over, and the run goes on


class JobError(Exception):
    """Ends the command. The message says what happened, to what, and what to do next."""

    exit_code = CliExit.RUN_FAILED


class UsageError(JobError):
    exit_code = CliExit.USAGE
