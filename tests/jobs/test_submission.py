"""A job is submitted once: AWS Batch takes no client token, so an answer that is lost must not make two of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

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
        self.meanwhile: dict[str, Callable[[], object]] = {}  # by path: what somebody else does just before, once
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, number: int, method: str, path: str) -> str | None:
        with self._lock:
            self.asked.append(path)
            if path in self.meanwhile:
                self.meanwhile.pop(path)()
            planned = self.planned.get(path, [None])
            return planned.pop(0) if len(planned) > 1 else planned[0]

    def lose(self, *command: str) -> Result:
        """Runs a command whose job is submitted, without it coming to know: neither answered, nor listed."""
        self.asked.clear()
        self.planned[SUBMIT] = ["lost"]
        self.meanwhile[SUBMIT] = lambda: self.planned.update({LIST: ["denied"]})
        done = pagefleet(*command)
        assert (done.exit_code, self.asked.count(SUBMIT)) == (1, 1), done.output
        self.planned.clear()
        return done


@pytest.fixture
def faults(deployed: Deployed, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """AWS Batch behind a proxy; nobody waits between looks."""
    monkeypatch.setattr(batch_module, "LOOKS", (0.0,) * 3)
    deployed.upload(tmp_path, {"a.png": "read", "b.png": "read"})
    faults = Faults()
    with faulty_proxy(s3_server, faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BATCH", proxy)
        yield faults


def ids(deployed: Deployed, run_id: str, queue: str = "cpu") -> list[str]:
    """All jobs of a run that AWS Batch has."""
    queue = deployed.description["queues"][queue]["arn"]
    filters = [{"name": "JOB_NAME", "values": [f"pagefleet-{run_id}"]}]
    found = deployed.client("batch").list_jobs(jobQueue=queue, filters=filters)["jobSummaryList"]
    return [job["jobId"] for job in found if ":" not in job["jobId"]]


def text(deployed: Deployed, path: str) -> str:
    """An object below `runs/`."""
    return str(deployed.client("s3").get_object(Bucket="outputs", Key=f"runs/{path}")["Body"].read(), "utf-8")


def put(deployed: Deployed, path: str, body: str) -> None:
    deployed.client("s3").put_object(Bucket="outputs", Key=f"runs/{path}", Body=body)


def send(deployed: Deployed, run_id: str, run: str | None = None) -> str:
    """Submits a job with a run's name, past the commands."""
    environment = [{"name": "PAGEFLEET_RUN_URI", "value": run or f"s3://outputs/runs/{run_id}"}]
    job = deployed.client("batch").submit_job(
        jobName=f"pagefleet-{run_id}",
        jobQueue="cpu-queue",
        jobDefinition="ocr-cpu",
        containerOverrides={"environment": environment},
    )
    return str(job["jobId"])


def reason(deployed: Deployed, job: str) -> str:
    return str(deployed.client("batch").describe_jobs(jobs=[job])["jobs"][0].get("statusReason"))


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
    faults.lose("submit", "a.png", "b.png", "--shards", "2", "--run-id", "found", *COLOUR)
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
    lost = faults.lose("resume", "again", "--retry-failed")
    assert "if there is none then, `pagefleet resume again --retry-failed` once more" in lost.stderr
    assert len(ids(deployed, "again")) == 3
    live = pagefleet("resume", "again", "--retry-failed")
    assert live.exit_code == 2
    assert "run again is live (RUNNABLE)" in live.stderr
    third = deployed.record("again")["jobs"][-1]
    assert third["id"] in set(ids(deployed, "again")) - {first, second}
    assert (third["shards"], third["numbers"], third["resumed_after"], third["retry_failed"]) == (3, [1, 2, 3], 1, True)
    assert len(ids(deployed, "again")) == 3


def test_a_lost_job_is_found_in_whatever_queue_it_waits(faults: Faults, deployed: Deployed) -> None:
    faults.lose("submit", "a.png", "b.png", "--run-id", "other", *COLOUR)
    (job,) = ids(deployed, "other")
    plan = text(deployed, "other/run.json")
    again = pagefleet("submit", "a.png", "--run-id", "other", "--engine", "paddleocr-vl")
    assert again.exit_code == 2, again.output
    assert f"run other is live: job {job} is RUNNABLE" in again.stderr
    assert ids(deployed, "other", "gpu") == []
    assert text(deployed, "other/run.json") == plan


def test_a_job_of_that_name_that_reads_another_folder_is_not_the_runs(faults: Faults, deployed: Deployed) -> None:
    foreign = send(deployed, "mine", run="s3://elsewhere/runs/mine")
    faults.planned[SUBMIT] = ["error"]
    assert pagefleet("submit", "a.png", "--run-id", "mine", *COLOUR).exit_code == 1
    assert ids(deployed, "mine") == [foreign]
    faults.planned.clear()
    assert pagefleet("submit", "a.png", "--run-id", "mine", *COLOUR).exit_code == 0
    deployed.jobs.tell(deployed.job("mine"), "FAILED", {"statusReason": "the machine was gone"})
    assert pagefleet("resume", "mine").exit_code == 0
    assert foreign not in [job["id"] for job in deployed.record("mine")["jobs"]]


def test_a_run_lives_as_long_as_any_of_its_jobs(faults: Faults, deployed: Deployed) -> None:
    assert pagefleet("submit", "a.png", "--run-id", "two", *COLOUR).exit_code == 0
    first, second = deployed.job("two"), send(deployed, "two")
    deployed.jobs.tell(second, "FAILED", {"statusReason": "the machine was gone"})
    record = deployed.record("two")
    record["jobs"] = [record["jobs"][0] | {"id": second, "submitted": "2099-01-01T00:00:00Z"}]  # without the first
    put(deployed, "two/batch.json", json.dumps(record))

    refused = pagefleet("resume", "two")
    assert refused.exit_code == 2, refused.output
    assert "run two is live (RUNNABLE)" in refused.stderr
    assert [job["id"] for job in deployed.record("two")["jobs"]] == [first, second]
    assert json.loads(pagefleet("runs", "--json").stdout)["runs"][0]["state"] == "RUNNABLE"
    watched = pagefleet("watch", "two", "--wait-minutes", "0")
    assert watched.exit_code == 5, watched.output
    assert "1 RUNNABLE" in watched.stdout

    deployed.jobs.tell(second, "RUNNABLE", {})
    assert pagefleet("cancel", "two").exit_code == 0
    for job in (first, second):
        assert reason(deployed, job) == "cancelled with pagefleet cancel"


def test_a_job_of_a_lost_resume_is_followed_and_cancelled(faults: Faults, deployed: Deployed) -> None:
    assert pagefleet("submit", "a.png", "--run-id", "lost", *COLOUR).exit_code == 0
    first = deployed.job("lost")
    deployed.jobs.tell(first, "FAILED", {"statusReason": "the machine was gone"})
    told = faults.lose("resume", "lost", "--retry-failed")
    assert "`pagefleet resume lost --retry-failed` once more" in told.stderr
    (job,) = set(ids(deployed, "lost")) - {first}
    for run in ("lost", "s3://outputs/runs/lost"):
        watched = pagefleet("watch", run, "--wait-minutes", "0")
        assert watched.exit_code == 5, watched.output
        assert "FAILED" not in watched.stdout
    assert pagefleet("cancel", "lost").exit_code == 0
    assert reason(deployed, job) == "cancelled with pagefleet cancel"
    assert deployed.job("lost") == first  # only who has the claim changes the record


def test_a_job_of_a_lost_submit_is_found_by_the_runs_address(
    faults: Faults, deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    faults.lose("submit", "a.png", "--run-id", "far", *COLOUR)
    (job,) = ids(deployed, "far")
    run = "s3://outputs/runs/far"
    assert json.loads(pagefleet("runs", "--json").stdout)["runs"][0]["state"] == "RUNNABLE"
    resumed = pagefleet("resume", run, "--no-report")
    assert resumed.exit_code == 2, resumed.output
    assert "run far is live (RUNNABLE)" in resumed.stderr
    for command in (["watch", "--wait-minutes", "0"], ["fetch", "--no-report"], ["cancel"]):
        deployed.client("s3").delete_object(Bucket="outputs", Key="runs/far/batch.json")
        done = pagefleet(command[0], run, *command[1:])
        assert done.exit_code == {"watch": 5, "fetch": 4, "cancel": 0}[command[0]], done.output
    assert reason(deployed, job) == "cancelled with pagefleet cancel"


def test_a_submitted_run_without_a_job_is_submitted_once_more(faults: Faults, deployed: Deployed) -> None:
    faults.planned[SUBMIT] = ["error"]
    assert pagefleet("submit", "a.png", "--run-id", "none", *COLOUR).exit_code == 1
    faults.planned.clear()
    deployed.description["stack"] = "prod"
    value = json.dumps(deployed.description | {"buckets": {"inputs": "inputs", "outputs": "others"}})
    deployed.client("ssm").put_parameter(Name="/pagefleet/prod", Value=value, Type="String")
    for command in ("watch", "fetch", "cancel", "resume"):
        for run in ("none", "s3://outputs/runs/none"):
            done = pagefleet(command, run)
            assert done.exit_code == 2, done.output
            assert "AWS Batch lists no job of run none in stack dev: submit it with --run-id none once more" in (
                done.stderr
            )
        done = pagefleet(command, "s3://outputs/runs/none", "--stack", "prod")
        assert done.exit_code == 2, done.output
        assert "is not a run of stack prod: name its own with --stack" in done.stderr
    assert json.loads(pagefleet("runs", "--json").stdout)["runs"][0]["state"] == "not submitted"


def test_who_only_reads_a_run_changes_no_record_of_somebody_else(faults: Faults, deployed: Deployed) -> None:
    faults.lose("submit", "a.png", "--run-id", "read", *COLOUR)
    assert pagefleet("watch", "read", "--wait-minutes", "0").exit_code == 5
    record = deployed.record("read")
    record["jobs"][0]["timeout"] = 4242
    deployed.client("s3").delete_object(Bucket="outputs", Key="runs/read/batch.json")
    faults.meanwhile[LIST] = lambda: put(deployed, "read/batch.json", json.dumps(record))
    assert pagefleet("watch", "read", "--wait-minutes", "0").exit_code == 5
    assert deployed.record("read") == record


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
