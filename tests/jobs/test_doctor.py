"""What keeps a stack from working is found, and what AWS refuses is told, each with what to do next."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from jobs import aws as aws_module
from jobs.aws import Aws, AwsError, Credentials, Denied
from jobs.batch import BatchRecord, JobRecord, open_batch_run
from jobs.cli import main
from jobs.doctor import Check, check_stack, why_waiting
from jobs.errors import JobError
from jobs.stack import load_stack, parse_stack
from jobs.watch import Watch
from tests.jobs.conftest import Deployed
from tests.jobs.test_batch import pagefleet
from tests.jobs.test_cli import COLOUR
from worker import storage as storage_module
from worker.storage import open_storage

Break = Callable[[Deployed], Any]


def checks(deployed: Deployed) -> dict[str, Check]:
    return {check.name: check for check in check_stack(deployed.aws, "dev")}


@pytest.fixture
def quotas(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the emulator says of quotas, by code; it knows none by itself."""
    from moto.servicequotas.models import ServiceQuotasBackend

    values = {"L-3819A6DF": 64.0, "L-36FBB829": 128.0}
    answer = lambda self, service_code, quota_code: {"Value": values[quota_code]}  # noqa: E731
    monkeypatch.setattr(ServiceQuotasBackend, "get_service_quota", answer)
    return values


def test_a_healthy_stack_has_nothing_wrong(deployed: Deployed, quotas: dict[str, float]) -> None:
    found = checks(deployed)
    assert {name: check.detail for name, check in found.items() if check.ok is not True} == {}
    assert found["quota All G and VT Spot Instance Requests"].detail == "64 vCPUs: 16 shards at the same time"
    assert {
        "credentials",
        "stack",
        "image cpu",
        "image gpu",
        "queue cpu",
        "queue gpu",
        "subnets",
        "bucket inputs",
    } <= found.keys()
    told = pagefleet("doctor")
    assert (told.exit_code, told.stdout.splitlines()[-1]) == (0, "no fault of stack dev was found")


def _no_image(deployed: Deployed) -> None:
    deployed.client("ecr").batch_delete_image(repositoryName="pagefleet-dev", imageIds=[{"imageTag": "gpu-abc123"}])


def _disable_queue(deployed: Deployed) -> None:
    deployed.client("batch").update_job_queue(jobQueue="gpu-queue", state="DISABLED")


def _disable_environment(deployed: Deployed) -> None:
    deployed.client("batch").update_compute_environment(computeEnvironment="gpu", state="DISABLED")


def _no_queue(deployed: Deployed) -> None:
    deployed.description["queues"]["gpu"]["arn"] += "-gone"
    deployed.publish()


def _no_subnet(deployed: Deployed) -> None:
    deployed.description["network"]["subnets"] = ["subnet-0123456789abcdef0"]
    deployed.publish()


def _no_bucket(deployed: Deployed) -> None:
    deployed.client("s3").delete_bucket(Bucket="inputs")


def _other_account(deployed: Deployed) -> None:
    deployed.description["account"] = "999999999999"
    deployed.publish()


@pytest.mark.parametrize(
    ("break_it", "name", "detail", "fix"),
    [
        (_no_image, "image gpu", "there is no image pagefleet-dev:gpu-abc123", "the workflow `deploy`"),
        (
            _disable_queue,
            "queue gpu",
            "gpu-queue is DISABLED",
            "update-job-queue --job-queue gpu-queue --state ENABLED",
        ),
        (_disable_environment, "compute environment gpu", "it is DISABLED", "update-compute-environment"),
        (_no_queue, "queue gpu", "there is no queue", "pulumi up"),
        (_no_subnet, "subnets", "are gone", "pulumi refresh"),
        (_no_bucket, "bucket inputs", "it does not exist", "pulumi up"),
        (_other_account, "account", "999999999999", "AWS_PROFILE"),
    ],
)
def test_each_fault_is_found_with_its_fix(
    deployed: Deployed, quotas: dict[str, float], break_it: Break, name: str, detail: str, fix: str
) -> None:
    break_it(deployed)
    found = checks(deployed)
    assert found[name].ok is False
    assert detail in found[name].detail
    assert fix in found[name].fix
    assert [check.name for check in found.values() if check.ok is False] == [name]


def test_a_small_quota_is_told_with_the_command_that_raises_it(deployed: Deployed, quotas: dict[str, float]) -> None:
    quotas["L-3819A6DF"] = 0
    done = pagefleet("doctor")
    assert done.exit_code == 1
    assert "BAD quota All G and VT Spot Instance Requests: 0 vCPUs, one shard asks for 4" in done.stdout
    assert "request-service-quota-increase --service-code ec2 --quota-code L-3819A6DF" in done.stdout


def gpu_job(deployed: Deployed) -> JobRecord:
    pagefleet("submit", "a.png", "--run-id", "gpu", "--on", "gpu", *COLOUR)
    return BatchRecord.model_validate(deployed.record("gpu")).job


def test_watch_says_why_a_job_waits(deployed: Deployed, quotas: dict[str, float]) -> None:
    job = gpu_job(deployed)
    run = open_batch_run(open_storage(), "s3://outputs/runs/gpu", deployed.aws)
    (told,) = Watch(run).look().waiting
    assert "nothing is wrong" in told

    held = deployed.jobs.job(job.id)
    held.job_stopped_reason = "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - CE(s) cannot meet the requirement"
    (told,) = Watch(run).look().waiting
    assert "offer larger ones" in told
    held.status = "RUNNING"
    assert Watch(run).look().waiting == []
    held.status, held.job_stopped_reason = "RUNNABLE", None

    quotas["L-3819A6DF"] = 2
    _disable_environment(deployed)
    _disable_queue(deployed)
    told = "\n".join(Watch(run).look().waiting)
    assert "gpu-queue is DISABLED" in told
    assert "compute environment gpu: it is DISABLED" in told
    assert "2 vCPUs, one shard asks for 4" in told
    assert "waiting: queue: gpu-queue is DISABLED" in pagefleet("watch", "gpu", "--once").stdout.replace("\n", " ")


def test_a_compute_environment_that_is_too_small_is_told(deployed: Deployed, quotas: dict[str, float]) -> None:
    job = gpu_job(deployed).model_copy(update={"vcpus": 96})
    assert any("its maximum is 64 vCPUs, one shard asks for 96" in told for told in why_waiting(deployed.aws, job, []))


# ---- the stack description


def test_a_wrong_description_is_told_by_field(deployed: Deployed) -> None:
    del deployed.description["buckets"]["outputs"]
    deployed.description["job_definitions"]["ocr-cpu"]["vcpus"] = "many"
    deployed.publish()
    done = pagefleet("runs")
    assert done.exit_code == 1
    assert "buckets.outputs: Field required" in done.stderr
    assert "job_definitions.ocr-cpu.vcpus" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is not JSON"), ('{"schema": 2}', "has schema 2"), ("[]", "has schema None")]
)
def test_a_description_of_another_kind_is_refused(text: str, said: str) -> None:
    with pytest.raises(JobError, match=said):
        parse_stack(text, "/pagefleet/dev")


def test_what_a_newer_program_adds_is_passed_over(deployed: Deployed) -> None:
    deployed.description["news"] = deployed.description["buckets"]["more"] = "x"
    deployed.publish()
    stack = load_stack(deployed.aws, "dev")
    assert stack.run_uri("one") == "s3://outputs/runs/one"


def test_idle_cost_is_the_stacks_own(deployed: Deployed) -> None:
    done = pagefleet("cost", "--idle")
    assert "image storage" in done.stdout
    assert "$0.40" in done.stdout.splitlines()[-1]


# ---- what AWS refuses


@contextmanager
def answering(code: str, status: int = 400) -> Iterator[str]:
    """A server that answers everything with an error of AWS."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if "form" in self.headers["Content-Type"]:  # STS, EC2
                error = f"<Error><Code>{code}</Code><Message>{code} it is</Message></Error>"
                return self._answer("text/xml", f"<ErrorResponse>{error}</ErrorResponse>")
            self._answer("application/x-amz-json-1.1", json.dumps({"__type": code, "message": f"{code} it is"}))

        def do_GET(self) -> None:  # S3
            self._answer("application/xml", f"<Error><Code>{code}</Code><Message>{code} it is</Message></Error>")

        do_PUT = do_HEAD = do_GET

        def _answer(self, kind: str, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("ExpiredTokenException", "the AWS credentials have expired: run `aws sso login`"),
        ("UnrecognizedClientException", "AWS refuses the credentials"),
        ("AccessDeniedException", "AWS denies ssm get_parameter to these credentials"),
        ("ThrottlingException", "AWS throttles ssm get_parameter"),
        ("InternalServerError", "AWS answers ssm get_parameter with InternalServerError"),
    ],
)
def test_what_aws_refuses_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, code: str, said: str) -> None:
    monkeypatch.setattr(aws_module, "ATTEMPTS", 1)
    with answering(code) as endpoint:
        environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        done = CliRunner().invoke(main, ["runs", "--region", "us-east-1"], env=environment)
    assert done.exit_code == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_kinds_of_refusal_are_told_apart(s3: Any) -> None:
    with answering("AccessDeniedException", 403) as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(Denied):
            Aws("us-east-1").call("batch", "describe_jobs", jobs=["x"])
    with pytest.raises(AwsError, match="is refused"):
        Aws("us-east-1").call("batch", "describe_jobs", jobs="x")


def test_without_credentials_or_region(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(Credentials, match="there are no AWS credentials"):
        Aws("us-east-1").call("ssm", "get_parameter", Name="x")
    (check,) = check_stack(Aws("us-east-1"), "dev")
    assert "set AWS_PROFILE, or run `aws sso login`" in check.detail
    assert check.fix == "mend that, as it says, then `pagefleet doctor` again"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(Credentials, match="set AWS_REGION"):
        Aws().call("ssm", "get_parameter", Name="x")


def test_a_stack_that_is_not_deployed(deployed: Deployed) -> None:
    *_, stack = check_stack(deployed.aws, "nowhere")
    assert stack.ok is False
    assert "docs/bootstrap.md" in stack.fix


def test_an_aws_that_cannot_be_reached(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_module, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    done = pagefleet("doctor")
    assert done.exit_code == 1
    assert "AWS cannot be reached" in done.stdout


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("ExpiredToken", 400, "the AWS credentials have expired: run `aws sso login`"),
        ("InvalidAccessKeyId", 403, "AWS refuses the credentials (InvalidAccessKeyId): check AWS_PROFILE"),
        ("AccessDenied", 403, "access to s3://outputs/runs/one/run.json is denied"),
        ("SlowDown", 503, "AWS throttles requests for s3://outputs/runs/one/run.json past"),
        ("NoSuchBucket", 404, "there is no bucket outputs: check its name"),
    ],
)
@pytest.mark.parametrize("command", ["watch", "resume"])
def test_what_s3_refuses_is_told_in_a_line(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, command: str, code: str, status: int, said: str
) -> None:
    monkeypatch.setattr(storage_module, "ATTEMPTS", 1)
    with answering(code, status) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        done = pagefleet(command, "one")
    assert done.exit_code == 1, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_a_stack_whose_buckets_are_gone(deployed: Deployed) -> None:
    deployed.client("s3").delete_bucket(Bucket="outputs")
    for command in (["submit", "a.png", *COLOUR], ["watch", "one"], ["runs"]):
        done = pagefleet(*command)
        assert done.exit_code == 1, done.output
        assert "outputs" in done.stderr
        assert "bucket" in done.stderr
