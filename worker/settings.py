"""What the worker is told by its environment; nobody else in the worker reads it.

The variables are the contract with whoever starts the worker: AWS Batch, the local runner, a person.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from worker import __version__
from worker.errors import BadRequest

API_KEYS = ("OPENAI_API_KEY", "UPSTAGE_API_KEY")


@dataclass(frozen=True)
class Settings:
    run_uri: str | None = None  # PAGEFLEET_RUN_URI: the run's folder
    shard: int = 0  # AWS_BATCH_JOB_ARRAY_INDEX
    attempt: int = 1  # AWS_BATCH_JOB_ATTEMPT, plus PAGEFLEET_ATTEMPT_OFFSET where a run is resumed
    input_uri: str | None = None  # INPUT_S3_URI, the one-document form
    output_uri: str | None = None  # OUTPUT_S3_URI, likewise
    engine: str = "rapidocr"  # PAGEFLEET_ENGINE, of the one-document form; a run names its own
    resumed_after: int = 0  # PAGEFLEET_ATTEMPT_OFFSET: the last attempt before a person resumed the run
    retry_failed: bool = False  # PAGEFLEET_RETRY_FAILED=1: read again what had failed before that
    supervised: Literal["suspects", "rest"] | None = None  # PAGEFLEET_SUPERVISED: see worker.supervisor
    threads: int = 1  # PAGEFLEET_THREADS; default: the CPUs this process may use
    runtime: str = "local"  # "batch" where AWS_BATCH_JOB_ID is set
    version: str = __version__  # with +g<revision> from PAGEFLEET_REVISION
    scratch: str | None = None  # TMPDIR; downloads go there
    decoder: str = "worker.decoding"  # PAGEFLEET_DECODER: the module that is run to decode documents
    drain_seconds: float = 20.0  # PAGEFLEET_DRAIN_SECONDS, from SIGTERM to the end
    progress_seconds: float = 30.0  # PAGEFLEET_PROGRESS_SECONDS between progress lines on standard output
    api_keys: Mapping[str, str] = field(default_factory=dict, repr=False)  # those of API_KEYS that are set, by variable

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Raises: BadRequest, naming the variable whose value is wrong."""
        revision = environment.get("PAGEFLEET_REVISION", "")
        offset = _integer(environment, "PAGEFLEET_ATTEMPT_OFFSET", 0, 0)
        supervised = environment.get("PAGEFLEET_SUPERVISED") or None
        if supervised not in (None, "suspects", "rest"):
            raise BadRequest(f"PAGEFLEET_SUPERVISED is {supervised!r}; the worker sets it for its own children")
        return cls(
            run_uri=environment.get("PAGEFLEET_RUN_URI") or None,
            shard=_integer(environment, "AWS_BATCH_JOB_ARRAY_INDEX", 0, 0),
            attempt=_integer(environment, "AWS_BATCH_JOB_ATTEMPT", 1, 1) + offset,
            input_uri=environment.get("INPUT_S3_URI") or None,
            output_uri=environment.get("OUTPUT_S3_URI") or None,
            engine=environment.get("PAGEFLEET_ENGINE") or "rapidocr",
            resumed_after=offset,
            retry_failed=environment.get("PAGEFLEET_RETRY_FAILED", "") == "1",
            supervised=supervised,  # type: ignore[arg-type]
            threads=_integer(environment, "PAGEFLEET_THREADS", available_cpus(), 1),
            runtime="batch" if environment.get("AWS_BATCH_JOB_ID") else "local",
            version=__version__ + (f"+g{revision[:7]}" if revision else ""),
            scratch=environment.get("TMPDIR") or None,
            decoder=environment.get("PAGEFLEET_DECODER") or "worker.decoding",
            drain_seconds=_seconds(environment, "PAGEFLEET_DRAIN_SECONDS", 20.0),
            progress_seconds=_seconds(environment, "PAGEFLEET_PROGRESS_SECONDS", 30.0),
            api_keys={name: key for name in API_KEYS if (key := environment.get(name, "").strip())},
        )


def available_cpus() -> int:
    """CPUs this process may use: its affinity, and the quota of its control group where there is one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        # cgroup v2: "<quota µs> <period µs>", or "max <period>"; https://docs.kernel.org/admin-guide/cgroup-v2.html
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, round(int(quota) / int(period))))


def _integer(environment: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) < least:
        raise BadRequest(f"{name} is {text!r}; it must be a whole number of at least {least}")
    return int(text)


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise BadRequest(f"{name} is {text!r}; it must be a number of seconds")
    return value
