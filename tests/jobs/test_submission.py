"""A job is submitted once: AWS Batch takes no client token, so an answer that is lost must not make two of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import aws as aws_module
from jobs import batch as batch_module
from jobs.aws import Aws, NoAnswer, Throttled, Unreachable
from tests.faults.proxy import faulty_proxy
from tests.jobs.conftest import Deployed
from tests.jobs.test_batch import pagefleet
from tests.jobs.test_cli import COLOUR

SUBMIT = "/v1/submitjob"
LIST = "/v1/listjobs"


class Faults:
    """What goes wrong with requests to AWS Batch, and which came."""

    def __init__(self) -> None:
        self.planned: dict[str, list[str | None]] = {}  # by path; the last one stays
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, number: int, method: str, path: str) -> str | None:
        with self._lock:
            self.asked.append(path)
            planned = self.planned.get(path, [None])
            return planned.pop(0) if len(planned) > 1 else planned[0]


@pytest.fixture
def faults(deployed: Deployed, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """AWS Batch behind a proxy; nobody waits between looks."""
    monkeypatch.setattr(batch_module, "LOOKS", (0.0,) * 3)
    deployed.upload(tmp_path, {"a.png": "read", "b.png": "read"})
    faults = Faults()
    with faulty_proxy(s3_server, faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BATCH", proxy)
        yield faults


def ids(deployed: Deployed, run_id: str) -> list[str]:
    """All jobs of a run that AWS Batch has."""
    queue = deployed.description["queues"]["cpu"]["arn"]
    filters = [{"name": "JOB_NAME", "values": [f"pagefleet-{run_id}"]}]
    found = deployed.client("batch").list_jobs(jobQueue=queue, filters=filters)["jobSummaryList"]
    return [job["jobId"] for job in found if ":" not in job["jobId"]]


def test_a_job_whose_submission_was_not_answered_is_taken_over(faults: Faults, deployed: Deployed) -> None:
    for lost in ("lost", "lost_error", "cut"):
        faults.asked.clear()
        faults.planned[SUBMIT] = [lost]
        submitted = pagefleet("submit", "a.png", "b.png", "--shards", "2", "--run-id", lost, *COLOUR)
        assert submitted.exit_code == 0, submitted.output
        assert ids(deployed, lost) == [deployed.job(lost)]
        assert faults.asked.count(SUBMIT) == 1


def test_a_job_that_is_listed_late_is_waited_for(
    faults: Faults, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.batch.models import BatchBackend

    faults.planned[SUBMIT] = ["lost"]
    real = BatchBackend.list_jobs
    looks: list[int] = []

    def late(backend: BatchBackend, *arguments: Any, **named: Any) -> Any:
        found = real(backend, *arguments, **named)
        if found:
            looks.append(len(found))
        return found if len(looks) > 1 else []

    with monkeypatch.context() as patch:
        patch.setattr(BatchBackend, "list_jobs", late)
        submitted = pagefleet("submit", "a.png", "--run-id", "late", *COLOUR)
    assert submitted.exit_code == 0, submitted.output
    assert looks == [1, 1]
    assert ids(deployed, "late") == [deployed.job("late")]


def test_a_job_that_is_not_found_is_not_submitted_again(faults: Faults, deployed: Deployed) -> None:
    faults.planned[SUBMIT] = ["error"]
    submitted = pagefleet("submit", "a.png", "--run-id", "unknown", *COLOUR)
    assert submitted.exit_code == 1
    assert "it is not known whether AWS Batch has taken the job of run unknown" in submitted.stderr
    assert (
        "`pagefleet watch unknown --stack dev`; if there is none then, submit it with --run-id unknown once more"
        in (submitted.stderr)
    )
    assert faults.asked.count(SUBMIT) == 1
    assert ids(deployed, "unknown") == []
    faults.planned.clear()
    assert pagefleet("watch", "unknown").exit_code == 2
    assert pagefleet("submit", "a.png", "--run-id", "unknown", *COLOUR).exit_code == 0
    assert len(ids(deployed, "unknown")) == 1
    other = pagefleet("submit", "a.png", "--run-id", "Unknown", *COLOUR)  # for the filter of ListJobs the same name
    assert other.exit_code == 0, other.output


def test_a_job_of_a_command_that_died_is_found_by_the_next(faults: Faults, deployed: Deployed) -> None:
    faults.planned = {SUBMIT: ["lost"], LIST: [None, None, "denied"]}
    submitted = pagefleet("submit", "a.png", "b.png", "--shards", "2", "--run-id", "found", *COLOUR)
    assert submitted.exit_code == 1, submitted.output
    faults.planned.clear()
    assert "is live" in pagefleet("submit", "a.png", "--run-id", "found", *COLOUR).stderr
    assert pagefleet("watch", "found", "--wait-minutes", "0").exit_code == 5
    (job,) = ids(deployed, "found")
    record = deployed.record("found")["jobs"][0]
    assert (record["id"], record["shards"], record["kind"], record["resumed_after"]) == (job, 2, "ocr-cpu", 0)
    assert faults.asked.count(SUBMIT) == 1


def test_a_resume_whose_answer_is_lost_makes_one_job(faults: Faults, deployed: Deployed) -> None:
    keys = [f"{number}.png" for number in range(4)]
    assert pagefleet("submit", *keys, "--shards", "4", "--run-id", "again", *COLOUR).exit_code == 0
    first = deployed.job("again")
    deployed.client("s3").put_object(Bucket="outputs", Key="runs/again/documents/0.png.json", Body=b"{}")
    for shard in range(4):
        deployed.jobs.tell(f"{first}:{shard}", "FAILED", {"statusReason": "the machine was gone"})

    faults.planned[SUBMIT] = ["lost"]
    assert pagefleet("resume", "again").exit_code == 0
    second = deployed.job("again")
    assert sorted(ids(deployed, "again")) == sorted([first, second])

    for shard in range(3):
        deployed.jobs.tell(f"{second}:{shard}", "FAILED", {"statusReason": "the machine was gone"})
    faults.planned = {SUBMIT: ["lost"], LIST: [None, None, "denied"]}  # one look a queue
    lost = pagefleet("resume", "again", "--retry-failed")
    assert lost.exit_code == 1
    assert "if there is none then, `pagefleet resume` once more" in lost.stderr
    assert len(ids(deployed, "again")) == 3
    faults.planned.clear()
    live = pagefleet("resume", "again", "--retry-failed")
    assert live.exit_code == 2
    assert "run again is live (RUNNABLE)" in live.stderr
    third = deployed.record("again")["jobs"][-1]
    assert third["id"] in set(ids(deployed, "again")) - {first, second}
    assert (third["shards"], third["numbers"], third["resumed_after"], third["retry_failed"]) == (3, [1, 2, 3], 1, True)
    assert len(ids(deployed, "again")) == 3


def test_only_what_aws_has_not_done_is_asked_for_again(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    request = {"jobName": "x", "jobQueue": "cpu-queue", "jobDefinition": "ocr-cpu"}
    faults.planned[SUBMIT] = ["throttled", "throttled", None]
    assert Aws("us-east-1", slept.append).call_once("batch", "submit_job", **request)["jobId"]
    assert (len(slept), faults.asked.count(SUBMIT)) == (2, 3)
    faults.planned[SUBMIT] = ["throttled"]
    with pytest.raises(Throttled, match="throttles batch submit_job past 10 attempts"):
        Aws("us-east-1", slept.append).call_once("batch", "submit_job", **request)
    assert faults.asked.count(SUBMIT) == 13
    faults.planned[SUBMIT] = ["reset"]
    with pytest.raises(NoAnswer, match="AWS gives no answer to batch submit_job"):
        Aws("us-east-1", slept.append).call_once("batch", "submit_job", **request)
    assert faults.asked.count(SUBMIT) == 14
    monkeypatch.setattr(aws_module, "ATTEMPTS", 3)
    monkeypatch.setenv("AWS_ENDPOINT_URL_BATCH", "http://127.0.0.1:9")
    slept.clear()
    with pytest.raises(Unreachable):
        Aws("us-east-1", slept.append).call_once("batch", "submit_job", **request)
    assert len(slept) == 2
