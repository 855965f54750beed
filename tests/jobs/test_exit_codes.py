"""One cause, one exit code and one message, whichever command meets it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from jobs import aws as aws_module
from jobs.cli import main
from jobs.plan import Sharding, describe_run, make_plan, write_plan
from tests.conftest import draw
from tests.jobs.conftest import Deployed
from tests.jobs.test_doctor import answering
from worker import storage as storage_module
from worker.contract import Options, RunPaths
from worker.storage import open_storage

# Those that look at a stack, then at a run's folder in S3, and those that see S3 alone.
OF_A_STACK = (
    "submit a.png",
    "runs",
    "cost --idle",
    "workflow images",
)
OF_A_RUN = (
    "watch one",
    "fetch one",
    "resume one",
    "cancel one",
    "logs one",
    "cost one",
    "workflow wait one",
    "workflow collect one",
)
OF_A_FOLDER = (
    "watch s3://outputs/runs/one",
    "resume s3://outputs/runs/one",
    "collect s3://outputs/runs/one",
    "report s3://outputs/runs/one",
    "show s3://outputs/runs/one a.png",
)
SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:upstage"
OF_SOURCES = (
    "run s3://inputs/a.png",
    "run s3://inputs/scans/",
    "run --keys-file keys",
    "run --dataset s3://inputs/train.parquet",
    "run in --out s3://outputs/runs/one",
    "run in --engine hunyuan --model s3://inputs/weights/",
    f"run in --engine upstage --engine-option key_secret={SECRET}",
    "run --dataset train.parquet --image-root s3://inputs",
    "resume weights",
    "resume key",
    "bench in --engine hunyuan --engine-option model=s3://inputs/weights/",
    f"bench in --engine upstage --engine-option key_secret={SECRET}",
    "bench s3://inputs/a.png",
    "workflow unlock --backend s3://outputs",
)
ALL = (*OF_A_STACK, *OF_A_RUN, *OF_A_FOLDER, *OF_SOURCES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one, with a document and a key list; nothing is asked for twice."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "in/a.png")
    (tmp_path / "keys").write_text("s3://inputs/a.png\n")
    pyarrow.parquet.write_table(pyarrow.table({"image_path": ["a.png"]}), tmp_path / "train.parquet")
    plan_run(tmp_path / "weights", "hunyuan", {"model": "s3://inputs/weights/"})
    plan_run(tmp_path / "key", "upstage", {"key_secret": SECRET})
    for module in (aws_module, storage_module):
        monkeypatch.setattr(module, "ATTEMPTS", 1)
    return tmp_path


def plan_run(out: Path, engine: str, options: dict[str, Any]) -> None:
    """A run of the document, of which nothing has been read."""
    plan = make_plan(["file:///gone/a.png"], Sharding())
    run = describe_run(plan, "one", engine, Options(engine_options=options), {})
    write_plan(open_storage(), RunPaths(out.as_uri()), plan, run)


def check(commands: Sequence[str], code: int, said: str) -> None:
    """Each command ends with the code, and its last line is the message; `doctor` ends with 1, and says it too."""
    wrong = {}
    for command in commands:
        done = CliRunner().invoke(main, command.split(), catch_exceptions=False)
        last = done.stderr.splitlines()[-1] if done.stderr else ""
        if done.exit_code != code or not re.fullmatch(f"pagefleet: {said}", last):
            wrong[command] = (done.exit_code, last)
    assert wrong == {}
    place = " --stack prod" if commands[0].endswith("--stack prod") else ""
    doctor = CliRunner().invoke(main, f"doctor{place}".split(), catch_exceptions=False)
    if set(commands) & {*OF_A_STACK, OF_A_STACK[0] + place} and "bucket" not in said:
        assert doctor.exit_code == 1
        assert re.search(f"^BAD .+: {said}$", doctor.stdout, re.M), doctor.stdout


@pytest.fixture
def aws(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Credentials of a kind, and an AWS at this address."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "PAGEFLEET_STACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    return lambda address: monkeypatch.setenv("AWS_ENDPOINT_URL", address)


def test_no_credentials(aws: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    aws("http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    said = r"there are no AWS credentials \(Unable to locate credentials\): set AWS_PROFILE, or run `aws sso login`"
    check(ALL, 1, said)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("ExpiredToken", 400, "the AWS credentials have expired: run `aws sso login`, then the same command again"),
        ("SlowDown", 503, "AWS throttles .+ past 1 attempts: try again in a minute"),
    ],
)
def test_what_aws_refuses(aws: Callable[[str], None], code: str, status: int, said: str) -> None:
    with answering(code, status) as address:
        aws(address)
        check(ALL if code == "ExpiredToken" else ("submit a.png", "watch one", *OF_A_FOLDER, *OF_SOURCES), 1, said)


def test_an_aws_that_is_not_there(aws: Callable[[str], None]) -> None:
    aws("http://127.0.0.1:9")
    check(ALL, 1, "AWS cannot be reached for .+; check the network, the region and AWS_ENDPOINT_URL")


def test_credentials_an_address_and_a_region_that_are_none(
    aws: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = ("runs", "workflow wait one", "report s3://outputs/runs/one", "run --dataset s3://inputs/train.parquet")
    with answering("InvalidToken", 403) as address:
        aws(address)
        check(some, 1, r"AWS refuses the credentials \(InvalidToken\): check AWS_PROFILE")
    aws("127.0.0.1:9")
    check(some, 1, "Invalid endpoint: 127.0.0.1:9: correct AWS_ENDPOINT_URL, such as https://HOST")
    aws("http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "us_east")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us_east")
    check(some, 1, "the AWS region is none: .+ Correct AWS_REGION or --region")


def test_a_stack_that_is_not_deployed(deployed: Deployed, folder: Path) -> None:
    said = "stack prod is not deployed in us-east-1: there is no SSM parameter /pagefleet/prod. Deploy it with .+"
    check([f"{command} --stack prod" for command in (*OF_A_STACK, *OF_A_RUN)], 2, said)


def test_no_such_run(deployed: Deployed, folder: Path) -> None:
    said = "there is no run at .+: it has no run.json"
    check((*OF_A_RUN, *OF_A_FOLDER), 2, said)
    check(("resume in", "collect in", "report in", "show in a.png", "watch in"), 2, said)


def test_a_bucket_that_is_missing(deployed: Deployed, folder: Path) -> None:
    said = "there is no bucket {}: check its name; `pulumi up` makes those of a stack"
    named = ("run s3://gone/a.png", "run s3://gone/scans/", "run --dataset s3://gone/train.parquet", "bench s3://gone/")
    named += ("run in --engine hunyuan --model s3://gone/weights/",)
    named += ("submit s3://gone/a.png", "submit --prefix s3://gone/", "submit --dataset s3://gone/train.parquet")
    check(named, 1, said.format("gone"))
    deployed.client("s3").delete_bucket(Bucket="outputs")
    of_a_stack = ("submit a.png", "runs", "run in --out s3://outputs/runs/one")
    check((*of_a_stack, *OF_A_RUN[:2], *OF_A_FOLDER), 1, said.format("outputs"))
