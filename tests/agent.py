"""Takes AWS Batch's place: runs the worker for each child of a job, as Batch would, with what Batch holds about it.

It knows the job by Batch's API alone: environment of the definition and container overrides, retry rules, log group.
An emulator says at once that a job has succeeded; one in this process (`HeldJobs`) can be made to tell what happens.
By hand, against any emulator that the environment points to: `python -m tests.agent JOB-ID [ROLE-ARN]`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import pytest

from tests.conftest import worker_environment
from worker.contract import Receipt
from worker.receipts import parse_line

SPOT_REASON = "Host EC2 (instance i-0123456789abcdef0) terminated."
EXIT_REASON = "Essential container in task exited"


@dataclass
class Attempt:
    """How one start of a child ended. A code as a shell gives it."""

    exit_code: int
    status_reason: str
    action: str  # of the retry rules: RETRY or EXIT; empty where it succeeded


@dataclass
class Agent:
    """`faults` are signals for (index, attempt), sent one after the other once the worker has begun to read.

    `during` is called with the same once a document has ended, while the worker stands still; the log has what it said.
    """

    batch: Any  # client
    logs: Any  # client
    environment: Mapping[str, str]  # credentials and endpoint, as the job role would have them
    faults: Mapping[tuple[int, int], Sequence[signal.Signals]] = field(default_factory=dict)
    tell: Callable[[str, str, dict[str, Any]], None] = lambda job, status, attempt: None
    during: Callable[[int, int], None] | None = None

    def run(self, job_id: str) -> dict[int, list[Attempt]]:
        """All children of a job, or the job itself where it is no array: by index, how they ended."""
        return {index: self.run_child(job_id, index) for index in range(self.size(job_id))}

    def size(self, job_id: str) -> int:
        return int(self._describe(job_id).get("arrayProperties", {}).get("size", 1))

    def run_child(self, job_id: str, index: int) -> list[Attempt]:
        array = "size" in self._describe(job_id).get("arrayProperties", {})
        child = f"{job_id}:{index}" if array else job_id
        if why := self._terminated(job_id):
            self.tell(child, "FAILED", {"statusReason": why})
            return []
        detail = self._describe(child)
        (definition,) = self.batch.describe_job_definitions(jobDefinitions=[detail["jobDefinition"]])["jobDefinitions"]
        retry = definition.get("retryStrategy", {})
        attempts: list[Attempt] = []
        while not attempts or (attempts[-1].action == "RETRY" and len(attempts) < retry.get("attempts", 1)):
            number = len(attempts) + 1
            stream = detail["container"].get("logStreamName")
            stream = stream or f"{definition['jobDefinitionName']}/default/{child}-{number}"
            stream = stream.replace(":", "-")  # CloudWatch allows no colon, which the emulator puts in
            started = _now()
            self.tell(child, "RUNNING", {"startedAt": started, "container": {"logStreamName": stream}})
            more = {"AWS_BATCH_JOB_ARRAY_INDEX": str(index)} if array else {}
            code = self._work(detail, more, index, number, partial(self._log, definition, stream))
            signals = self.faults.get((index, number), ())
            reason = self._terminated(job_id) or (SPOT_REASON if signal.SIGKILL in signals else EXIT_REASON)
            action = "" if code == 0 else _action(retry.get("evaluateOnExit", []), code, reason)
            if self._terminated(job_id):
                action = "EXIT"
            attempts.append(Attempt(code, reason, action))
            ended = {"exitCode": code, "logStreamName": stream}
            status = "SUCCEEDED" if code == 0 else "FAILED"
            if action == "RETRY" and number < retry.get("attempts", 1):
                status = "RUNNABLE"
            record = {"startedAt": started, "stoppedAt": _now(), "container": ended, "statusReason": reason}
            self.tell(child, status, record)
        return attempts

    def _work(
        self,
        detail: dict[str, Any],
        more: dict[str, str],
        index: int,
        attempt: int,
        log: Callable[[list[str]], None],
    ) -> int:
        held = {pair["name"]: pair["value"] for pair in detail["container"]["environment"]}
        environment = worker_environment(
            **{**self.environment, **held, **more},
            AWS_BATCH_JOB_ATTEMPT=str(attempt),
            **({} if "AWS_BATCH_JOB_ID" in held else {"AWS_BATCH_JOB_ID": detail["jobId"]}),
        )
        with subprocess.Popen(
            [sys.executable, "-m", "worker"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            said: list[str] = []  # what is not in the log yet
            reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
            reader.start()
            assert process.stdout
            reached = False
            for number, line in enumerate(process.stdout):
                said.append(line)
                if number == 0:
                    for one in self.faults.get((index, attempt), ()):
                        process.send_signal(one)
                if self.during and not reached and isinstance(parse_line(line), Receipt):
                    reached = True
                    process.send_signal(signal.SIGSTOP)
                    log([said.pop(0) for _ in range(len(said))])
                    self.during(index, attempt)
                    if self._terminated(detail["jobId"]):
                        process.send_signal(signal.SIGTERM)
                    process.send_signal(signal.SIGCONT)
            code = process.wait()
            reader.join()
        log(said)
        return 128 - code if code < 0 else code

    def _log(self, definition: dict[str, Any], stream: str, said: list[str]) -> None:
        options = definition["containerProperties"].get("logConfiguration", {}).get("options", {})
        group = options.get("awslogs-group", "/aws/batch/job")
        with suppress(self.logs.exceptions.ResourceAlreadyExistsException):
            self.logs.create_log_stream(logGroupName=group, logStreamName=stream)
        events = [{"timestamp": _now(), "message": line.rstrip("\n")} for line in said if line.strip()]
        if events:
            self.logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)

    def _terminated(self, job_id: str) -> str:
        """Why the job was ended by TerminateJob, while it runs; empty where it wasn't."""
        job = self._describe(job_id.partition(":")[0])
        return str(job.get("statusReason") or "") if job["status"] not in ("SUCCEEDED", "FAILED") else ""

    def _describe(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.batch.describe_jobs(jobs=[job_id])["jobs"][0]
        return found


class HeldJobs:
    """Jobs of the emulator in this process, which don't end by themselves as long as they are held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from moto.batch_simple.models import BatchSimpleBackend

        self.held = True
        self.on_submit: Callable[[str], None] = lambda job: None
        finish = BatchSimpleBackend._mark_job_as_finished

        def hold(backend: Any, include_start_attempt: bool, job: Any) -> None:
            if not self.held:
                finish(backend, include_start_attempt, job)
                return
            backend.backend._jobs[job.job_id] = job
            job.status = "RUNNABLE"
            if ":" not in job.job_id:
                self.on_submit(job.job_id)

        monkeypatch.setattr(BatchSimpleBackend, "_mark_job_as_finished", hold)

    def tell(self, job_id: str, status: str, attempt: dict[str, Any]) -> None:
        """What Batch would say of a child from now on."""
        job = self.job(job_id)
        job.status = status
        job.job_stopped_reason = attempt.get("statusReason") if status == "FAILED" else None
        if "stoppedAt" in attempt:
            job.attempts.append(attempt)
        job.log_stream_name = attempt.get("container", {}).get("logStreamName")
        parent = self.job(job_id.partition(":")[0])
        if parent is not job:
            states = {child.status for child in parent._child_jobs}
            ended = states <= {"SUCCEEDED", "FAILED"}
            parent.status = ("FAILED" if "FAILED" in states else "SUCCEEDED") if ended else "PENDING"

    def forget(self, job_id: str) -> None:
        """As Batch does some days after a job's end."""
        from moto.batch.models import batch_backends

        del batch_backends["123456789012"]["us-east-1"]._jobs[job_id]

    @staticmethod
    def job(job_id: str) -> Any:
        from moto.batch.models import batch_backends

        return batch_backends["123456789012"]["us-east-1"]._jobs[job_id]


def assume(role: str) -> dict[str, str]:
    """The environment's AWS settings, with temporary credentials of a role."""
    import boto3

    given = boto3.client("sts").assume_role(RoleArn=role, RoleSessionName="agent")["Credentials"]
    return {
        **{name: value for name, value in os.environ.items() if name.startswith("AWS_")},
        "AWS_ACCESS_KEY_ID": given["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
        "AWS_SESSION_TOKEN": given["SessionToken"],
    }


def _action(rules: Sequence[Mapping[str, str]], code: int, status_reason: str) -> str:
    """The first rule of which all conditions hold; RETRY where none does, as Batch has it."""
    for rule in rules:
        seen = {"onExitCode": str(code), "onStatusReason": status_reason, "onReason": ""}
        if all(fnmatchcase(seen[key], rule[key]) for key in seen if key in rule):
            return rule["action"].upper()
    return "RETRY"


def _now() -> int:
    return int(time.time() * 1000)


def _main(job_id: str, role: str | None = None) -> None:
    import boto3

    own = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    agent = Agent(boto3.client("batch"), boto3.client("logs"), assume(role) if role else own)
    for shard, attempts in agent.run(job_id).items():
        print(shard, *(f"{attempt.exit_code} {attempt.action}" for attempt in attempts))


if __name__ == "__main__":
    _main(*sys.argv[1:])
