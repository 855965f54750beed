"""Runs on AWS Batch, on an emulator of it: nothing is read twice, nothing is lost, and a person is told what to do."""

from __future__ import annotations

import json
import re
import shlex
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from jobs import batch as batch_module
from jobs import open_run
from jobs.batch import Request, attempt_timeout, open_batch_run, plan_batch
from jobs.cli import main
from jobs.cli.batch import COMMANDS
from jobs.errors import UsageError
from jobs.fetch import follow_logs
from jobs.plan import Plan, Sharding
from jobs.stack import load_stack
from jobs.summary import Summary
from jobs.watch import Snapshot, Watch
from tests.agent import SPOT_REASON, assume
from tests.conftest import PATIENCE
from tests.jobs.conftest import Deployed
from tests.jobs.test_cli import COLOUR, _examples
from worker.contract import Dataset, ExitCode, Options, RunPaths
from worker.storage import open_storage


def pagefleet(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def objects(deployed: Deployed, prefix: str = "") -> set[str]:
    pages = deployed.client("s3").get_paginator("list_objects_v2").paginate(Bucket="outputs", Prefix=prefix)
    return {entry["Key"] for page in pages for entry in page.get("Contents", [])}


def awkward(number: int) -> str:
    """Keys as people make them."""
    shapes = ("a b", "1+1=2", "한국어 문서", "100%2Fhalf", "it's, #1 & co?", "[x] (copy)", "Ü ß", "plain")
    return f"inbox/{shapes[number % len(shapes)]}/{number:02d} {shapes[number % len(shapes)]}.png"


def test_forty_awkward_keys_are_read_by_an_array_whose_children_are_killed(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = {awkward(number): "slow" if number % 4 in (1, 2) else "read" for number in range(40)}
    deployed.upload(tmp_path, pictures)
    (tmp_path / "keys").write_text("".join(f"{key}\n" for key in pictures))
    submitted = pagefleet(
        "submit", "--keys-file", str(tmp_path / "keys"), "--shards", "4", "--run-id", "forty", "--json", *COLOUR
    )
    assert submitted.exit_code == 0, submitted.output
    told = json.loads(submitted.stdout)
    assert told["job"] == deployed.job("forty")
    assert told["console"].endswith(told["job"])
    assert deployed.agent.size(told["job"]) == 4

    run = open_batch_run(open_storage(), "s3://outputs/runs/forty", deployed.aws)
    deployed.agent.faults = {
        (1, 1): [signal.SIGTERM],
        (1, 2): [signal.SIGTERM, signal.SIGKILL],
        (2, 1): [signal.SIGKILL],
    }
    shards = iter(range(4))
    attempts = {}

    def work(seconds: float) -> None:
        shard = next(shards)
        attempts[shard] = [attempt.exit_code for attempt in deployed.agent.run_child(told["job"], shard)]

    seen: list[Snapshot] = []
    last = Watch(run, sleep=work).follow(seen.append)
    assert attempts == {0: [0], 1: [ExitCode.DRAINED, 137, 0], 2: [137, 0], 3: [0]}
    assert [snapshot.states.get("SUCCEEDED", 0) for snapshot in seen] == [0, 1, 2, 3, 4]
    assert seen[0].waiting
    assert (last.ended, last.failed, last.pages, last.retried) == (40, 0, 40, 3)
    assert last.cost
    assert last.cost.usd > 0

    monkeypatch.chdir(tmp_path)
    fetched = pagefleet("fetch", "forty", "--out", "out")
    assert fetched.exit_code == 0, fetched.output
    home = open_run(str(tmp_path / "out"))
    assert {(document.uri, document.status) for document in home.documents()} == {
        (f"s3://inputs/{key}", "ok") for key in pictures
    }
    assert {document.outcome.meta.runtime for document in home.documents()} == {"batch"}  # type: ignore[union-attr]
    summary = Summary.model_validate_json((tmp_path / "out/summary.json").read_bytes())
    assert summary.documents.ok == 40
    assert summary.cost
    assert summary.cost["usd_per_1000_pages"] == pytest.approx(summary.cost["usd"] * 25)
    assert "| cost | " in (tmp_path / "out/summary.md").read_text()
    assert "<dt>cost</dt>" in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out/results.jsonl").read_text().count("\n") == 40
    next_one = pagefleet("submit", "--prefix", "s3://inputs/inbox", "--dry-run", *COLOUR)
    assert "(run forty)" in next_one.stdout  # its rate was measured


def test_one_shard_is_a_plain_job(deployed: Deployed, tmp_path: Path) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})
    assert pagefleet("submit", "a.png", "--run-id", "one", *COLOUR).exit_code == 0
    detail = deployed.client("batch").describe_jobs(jobs=[deployed.job("one")])["jobs"][0]
    assert "arrayProperties" not in detail
    deployed.agent.run(deployed.job("one"))
    watched = pagefleet("watch", "one", "--interval", "0")
    assert watched.exit_code == 0, watched.output
    assert "1 SUCCEEDED; 1/1 tasks, 1 page;" in watched.stdout


def test_watching_can_be_broken_off(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})
    pagefleet("submit", "a.png", "--run-id", "one", *COLOUR)

    late = pagefleet("watch", "one", "--wait-minutes", "0")
    assert late.exit_code == 5
    assert "run one goes on: `pagefleet watch one --stack dev`" in late.stderr

    def ctrl_c(watch: Watch, *_: object) -> None:
        watch.look()
        raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "follow", ctrl_c)
    stopped = pagefleet("watch", "one")
    assert stopped.exit_code == 0
    assert "the run goes on: `pagefleet watch one --stack dev`" in stopped.stdout
    once = json.loads(pagefleet("watch", "one", "--once", "--json").stdout)
    assert (once["status"], once["states"], once["tasks"], once["cost"]) == ("RUNNABLE", {"RUNNABLE": 1}, 1, None)


def test_a_dry_run_shows_plan_and_estimate_and_leaves_nothing(deployed: Deployed, tmp_path: Path) -> None:
    deployed.upload(tmp_path, {f"scans/{number}.png": "read" for number in range(3)})
    done = pagefleet("submit", "--prefix", "s3://inputs/scans/", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "would read 3 documents" in done.stdout
    assert "about 3 pages" in done.stdout
    assert "into a new folder below s3://outputs/runs/" in done.stdout
    assert "  0.png  ←  s3://inputs/scans/0.png" in done.stdout
    told = json.loads(pagefleet("submit", "scans/0.png", "--dry-run", "--json").stdout)
    assert told["estimate"]["usd"] > 0
    assert objects(deployed) == set()


def test_a_model_that_may_not_be_used_where_the_stack_is_is_warned_of(deployed: Deployed, tmp_path: Path) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})
    stack = load_stack(deployed.aws, "dev")

    def warnings(region: str, engine: str, **options: str) -> list[str]:
        request = Request(("a.png",), None, (), engine, Options(engine_options=options), Sharding(None, 1, None, None))
        return plan_batch(open_storage(), stack.model_copy(update={"region": region}), request).warnings

    for region, engine in (("eu-west-1", "hunyuan"), ("ap-northeast-2", "hunyuan-1.0")):
        (warning,) = warnings(region, engine)
        assert warning.startswith(f"stack dev is in {region}, and {engine}'s licence (Tencent Hunyuan")
        assert "not for use in the EU, the UK or South Korea" in warning
    assert warnings("eu-west-2", "openai:Engine", preset="hunyuan")
    assert warnings("eu-west-2", "lighton", fallback="hunyuan")
    assert warnings("eu-west-2", "vllm", model="s3://models/HunyuanOCR/")
    assert warnings("us-east-1", "hunyuan") == warnings("eu-west-1", "glm-ocr") == []


def test_weights_for_a_run_on_aws_come_with_the_image_or_from_s3(deployed: Deployed, tmp_path: Path) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})
    submit = ("submit", "a.png", "--engine", "hunyuan", "--run-id", "own", "--model")
    refused = pagefleet(*submit, str(tmp_path))
    assert refused.exit_code == 2
    assert "lies on this machine: copy it to s3://" in refused.stderr
    for wrong in (
        submit[:-1],
        (*submit, "tencent/HunyuanOCR"),
        ("submit", "a.png", "--engine", "lighton", "--dry-run"),
    ):
        refused = pagefleet(*wrong)
        assert refused.exit_code == 2
        assert "holds the weights of paddleocr-vl as pinned, and jobs download none" in refused.stderr
        assert "--model s3://inputs/…/" in refused.stderr
    assert "leave out `--on cpu`" in pagefleet("submit", "a.png", "--engine", "paddleocr-vl", "--on", "cpu").stderr
    assert pagefleet("submit", "a.png", "--engine", "paddleocr-vl", "--dry-run").exit_code == 0
    assert pagefleet(*submit, "s3://inputs/models/mine/").exit_code == 0
    run = json.loads(deployed.client("s3").get_object(Bucket="outputs", Key="runs/own/run.json")["Body"].read())
    assert run["options"]["engine_options"] == {"model": "s3://inputs/models/mine/"}


def test_a_run_with_vllm_needs_an_image_that_has_it(deployed: Deployed, tmp_path: Path) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})

    def submit(*options: str) -> Result:
        return pagefleet(*("submit", "a.png", "--engine", "vllm", "--dry-run"), *options)

    baked = ("--engine-option", "preset=paddleocr-vl")
    refused = submit(*baked)
    assert refused.exit_code == 2
    assert "GPU image of stack dev has no vLLM: set `ARG VLLM=with` in worker/Dockerfile and deploy" in refused.stderr
    assert submit("--engine-option", "command=serve {port}", "--engine-option", "model=a").exit_code == 0
    deployed.description["image"]["vllm"] = True
    deployed.publish()
    assert submit(*baked).exit_code == 0
    assert submit(*baked, "--engine-option", "model=s3://inputs/models/mine/").exit_code == 0
    for wrong, says in (
        ((), "engine vllm needs a model: --engine-option preset=NAME"),
        (("--engine-option", "preset=lighton"), "holds the weights of paddleocr-vl as pinned, and jobs download none"),
        ((*baked, "--engine-option", "model=PaddlePaddle/PaddleOCR-VL"), "for PaddlePaddle/PaddleOCR-VL put the"),
        ((*baked, "--engine-option", f"model={tmp_path}"), "lies on this machine: copy it to s3://"),
        ((*baked, "--on", "cpu"), "leave out `--on cpu`"),
    ):
        refused = submit(*wrong)
        assert refused.exit_code == 2
        assert says in refused.stderr


def test_a_run_id_is_submitted_once(deployed: Deployed, tmp_path: Path) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})
    first = ("submit", "a.png", "--run-id", "once", *COLOUR)
    assert pagefleet(*first).exit_code == 0
    job = deployed.job("once")
    again = pagefleet(*first)
    assert again.exit_code == 2
    assert f"run once is live: job {job} is RUNNABLE" in again.stderr
    assert "`pagefleet watch once --stack dev`" in again.stderr

    other = pagefleet(*first, "--resume", "--on", "gpu", "--pages", "2", "--shards", "7")
    assert (
        "note: the run goes on as it was planned, without the new --pages (its run.json names none), --on (it has cpu)"
        in (other.stderr)
    )
    for elsewhere in ("s3://elsewhere/", "s3://inputs2/"):
        other = pagefleet("submit", "--prefix", elsewhere, "--run-id", "once", "--resume", *COLOUR)
        assert other.exit_code == 2
        assert f"reads documents below s3://inputs, not {elsewhere}" in other.stderr

    deployed.client("s3").delete_object(Bucket="outputs", Key="runs/once/batch.json")  # as if it had broken off
    assert "run once is live" in pagefleet(*first).stderr

    deployed.agent.run(job)
    ended = pagefleet(*first)
    assert ended.exit_code == 2
    assert "`pagefleet resume once --stack dev`" in ended.stderr
    queue = deployed.description["queues"]["cpu"]["arn"]
    jobs = deployed.client("batch").list_jobs(jobQueue=queue, filters=[{"name": "JOB_NAME", "values": ["pagefleet-*"]}])
    assert len(jobs["jobSummaryList"]) == 1


def test_a_submit_that_broke_off_before_its_job_can_be_done_again(deployed: Deployed, tmp_path: Path) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})
    arn = deployed.description["job_definitions"]["ocr-cpu"]["arn"]
    deployed.description["job_definitions"]["ocr-cpu"]["arn"] = arn.replace("ocr-cpu", "gone")
    deployed.publish()
    failed = pagefleet("submit", "a.png", "--run-id", "half", *COLOUR)
    assert failed.exit_code == 1
    assert "AWS answers batch submit_job" in failed.stderr
    assert "runs/half/run.json" in objects(deployed)
    deployed.description["job_definitions"]["ocr-cpu"]["arn"] = arn
    deployed.publish()
    assert pagefleet("submit", "a.png", "--run-id", "half", *COLOUR).exit_code == 0


def test_what_a_dead_shard_left_is_told_and_resumed_on_batch(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deployed.upload(tmp_path, {f"{number:02d}.png": "slow" for number in range(24)} | {"bad.png": "raise"})
    keys = [f"{number:02d}.png" for number in range(24)]
    assert pagefleet("submit", *keys, "bad.png", "--shards", "2", "--run-id", "dead", *COLOUR).exit_code == 0
    assert pagefleet("resume", "dead").exit_code == 2
    job = deployed.job("dead")
    deployed.agent.faults = {(1, attempt): [signal.SIGKILL] for attempt in (1, 2, 3)}
    attempts = deployed.agent.run(job)
    assert [attempt.exit_code for attempt in attempts[1]] == [137, 137, 137]

    watched = pagefleet("watch", "dead", "--interval", "0")
    assert watched.exit_code == 4
    assert f"shard 1 failed after 3 attempts: exit 137, {SPOT_REASON}" in watched.stdout
    assert "`pagefleet resume dead --stack dev` reads them" in watched.stderr
    fetched = pagefleet("fetch", "dead", "--out", "out", "--no-report")
    assert fetched.exit_code == 4
    assert "`pagefleet resume out` reads them" in fetched.stderr
    assert "`pagefleet resume s3://outputs/runs/dead`" in (tmp_path / "out/summary.md").read_text()
    log = (tmp_path / "out/logs/00001.log").read_text()
    assert log.startswith("shard 1 failed after 3 attempts")
    before = Summary.model_validate_json((tmp_path / "out/summary.json").read_bytes())
    assert before.documents.unaccounted > 0

    deployed.agent.faults = {}
    resumed = pagefleet("resume", "out")
    assert resumed.exit_code == 0, resumed.output
    assert deployed.job("dead") != job
    deployed.agent.run(deployed.job("dead"))
    assert pagefleet("watch", "dead", "--interval", "0").exit_code == 3  # bad.png
    assert pagefleet("fetch", "dead", "--out", "out", "--no-report").exit_code == 3
    after = Summary.model_validate_json((tmp_path / "out/summary.json").read_bytes())
    assert (after.documents.ok, after.documents.failed) == (24, 1)
    assert after.cost
    assert before.cost
    assert after.cost["usd"] > before.cost["usd"]

    assert "nothing is left" in pagefleet("resume", "dead").stdout
    assert json.loads(pagefleet("resume", "dead", "--json").stdout)["job"] is None
    deployed.upload(tmp_path, {"bad.png": "read"})
    assert pagefleet("resume", "dead", "--retry-failed").exit_code == 0
    deployed.agent.run(deployed.job("dead"))
    assert pagefleet("fetch", "dead", "--out", "out", "--no-report").exit_code == 0
    listed = json.loads(pagefleet("runs", "--json").stdout)["runs"]
    assert [(row["run"], row["state"], row["documents"]["ok"]) for row in listed] == [("dead", "collected", 25)]


def test_a_summary_can_be_fetched_without_the_documents(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deployed.upload(tmp_path, {"a.png": "read"})
    pagefleet("submit", "a.png", "gone.png", "--run-id", "one", *COLOUR)
    deployed.agent.run(deployed.job("one"))
    fetched = pagefleet("fetch", "one", "--out", "out", "--no-documents")
    assert fetched.exit_code == 3
    assert "not_found" in fetched.stdout
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"summary.json", "summary.md", "report.html", "failures/gone.png.json", "run.json", "batch.json"} <= names
    assert not any(name.startswith(("documents/", "results.")) for name in names)


def test_a_key_that_leads_out_of_the_folder_is_not_written(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deployed.upload(tmp_path, {"a.png": "read"})
    pagefleet("submit", "a.png", "--run-id", "one", *COLOUR)
    deployed.agent.run(deployed.job("one"))
    deployed.client("s3").put_object(Bucket="outputs", Key="runs/one/../../../evil", Body=b"x")
    fetched = pagefleet("fetch", "one", "--out", "deep/er/out", "--no-report")
    assert fetched.exit_code == 1
    assert "would be written outside" in fetched.stderr
    assert not list(tmp_path.rglob("evil"))


def test_a_copy_is_not_mixed_with_something_else(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deployed.upload(tmp_path, {"a.png": "read"})
    for run in ("one", "two"):
        pagefleet("submit", "a.png", "--run-id", run, *COLOUR)
        deployed.agent.run(deployed.job(run))
    assert pagefleet("fetch", "one", "--out", "out", "--no-report").exit_code == 0
    other = pagefleet("fetch", "two", "--out", "out", "--no-report")
    assert other.exit_code == 2
    assert "out holds a copy of run one" in other.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    assert "holds no copy of a run" in pagefleet("fetch", "two", "--out", "mine").stderr
    assert "is a file" in pagefleet("fetch", "two", "--out", "mine/file").stderr


def test_one_document_is_read_by_the_deployed_definition_without_a_run(deployed: Deployed, tmp_path: Path) -> None:
    deployed.upload(tmp_path, {"a b.png": "read"})
    environment = {
        "INPUT_S3_URI": "s3://inputs/a b.png",
        "OUTPUT_S3_URI": "s3://outputs/legacy/a.json",
        "PAGEFLEET_ENGINE": "tests.faults.engines:Colour",
    }
    job = deployed.client("batch").submit_job(
        jobName="legacy",
        jobQueue="cpu-queue",
        jobDefinition="ocr-cpu",
        containerOverrides={"environment": [{"name": name, "value": value} for name, value in environment.items()]},
    )["jobId"]
    assert [attempt.exit_code for attempt in deployed.agent.run(job)[0]] == [0]
    result = json.loads(deployed.client("s3").get_object(Bucket="outputs", Key="legacy/a.json")["Body"].read())
    assert (result["source_image"], result["meta"]["runtime"]) == ("s3://inputs/a b.png", "batch")


def test_an_emulator_that_ends_jobs_at_once_will_do(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the commands are tried against what the Pulumi program deployed."""
    monkeypatch.chdir(tmp_path)
    deployed.jobs.held = False
    deployed.upload(tmp_path, {"a.png": "read", "b.png": "read"})
    assert pagefleet("submit", "a.png", "b.png", "--shards", "2", "--run-id", "quick", *COLOUR).exit_code == 0
    assert pagefleet("watch", "quick").exit_code == 4
    deployed.agent.tell = lambda job, status, attempt: None
    deployed.agent.environment = assume("arn:aws:iam::123456789012:role/job")
    assert "AWS_SESSION_TOKEN" in deployed.agent.environment
    assert {attempts[-1].exit_code for attempts in deployed.agent.run(deployed.job("quick")).values()} == {0}
    assert pagefleet("watch", "quick").exit_code == 0
    assert pagefleet("fetch", "quick", "--no-report").exit_code == 0
    assert pagefleet("logs", "quick").exit_code == 0


def test_what_to_do_next_names_the_stack(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed.description["stack"] = "prod"
    value = json.dumps(deployed.description)
    deployed.client("ssm").put_parameter(Name="/pagefleet/prod", Value=value, Type="String")
    monkeypatch.setenv("PAGEFLEET_STACK", "prod")
    assert "stack prod has no runs so far: `pagefleet submit` starts one" in pagefleet("runs").stderr
    submitted = pagefleet("submit", "a.png", "--run-id", "one", *COLOUR).stdout
    assert "`pagefleet watch one --stack prod`, then `pagefleet fetch one --stack prod`" in submitted
    assert "`pagefleet watch one --stack prod`" in pagefleet("submit", "a.png", "--run-id", "one", *COLOUR).stderr
    assert "`pagefleet watch one --stack prod`" in pagefleet("resume", "one").stderr
    assert "`pagefleet watch one --stack prod`" in pagefleet("watch", "one", "--wait-minutes", "0").stderr
    nothing = pagefleet("cost", "one")
    assert nothing.exit_code == 1
    assert "run one has cost nothing so far: no shard has started" in nothing.stderr
    deployed.jobs.tell(deployed.job("one"), "FAILED", {})
    assert "`pagefleet fetch one --stack prod` brings" in pagefleet("cancel", "one").stderr
    assert "`pagefleet resume one --stack prod` reads it" in pagefleet("watch", "one").stderr
    of_dev = pagefleet("submit", "a.png", "--run-id", "two", "--stack", "dev", *COLOUR).stdout
    assert "`pagefleet watch two --stack dev`, then `pagefleet fetch two --stack dev`" in of_dev


@pytest.mark.parametrize("when", ["before its claim", "between its claim and its job"])
def test_of_two_submits_at_the_same_time_one_submits(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})
    others: list[Result] = []
    stage = {"before its claim": "describe_run", "between its claim and its job": "write_plan"}[when]
    real = getattr(batch_module, stage)

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(batch_module, stage, real)
        others.append(pagefleet("submit", "a.png", "--run-id", "race", *COLOUR))
        return real(*arguments)

    monkeypatch.setattr(batch_module, stage, interrupted)
    mine = pagefleet("submit", "a.png", "--run-id", "race", *COLOUR)
    (other,) = others
    winner, loser = (other, mine) if when == "before its claim" else (mine, other)
    assert (winner.exit_code, loser.exit_code) == (0, 2), mine.output + other.output
    assert ("run race is live" if winner is other else "is being submitted by somebody else") in loser.stderr
    queue = deployed.description["queues"]["cpu"]["arn"]
    jobs = deployed.client("batch").list_jobs(jobQueue=queue, filters=[{"name": "JOB_NAME", "values": ["pagefleet-*"]}])
    assert len(jobs["jobSummaryList"]) == 1
    assert not objects(deployed, "runs/race/claims/")


def test_many_threads_submit_a_run_once(deployed: Deployed, tmp_path: Path) -> None:
    """All are past every look at the folder when they meet at the claim."""
    deployed.upload(tmp_path, {"a.png": "read"})
    storage, paths = open_storage(), RunPaths("s3://outputs/runs/race")
    together, entered = threading.Barrier(4), []

    class Meeting:
        """Storage in which a claim waits for the others, and creation is atomic, as in S3."""

        lock = threading.Lock()

        def create(self, uri: str, data: bytes) -> bool:
            together.wait(PATIENCE)
            with self.lock:
                return storage.create(uri, data)

        def __getattr__(self, name: str) -> Any:
            return getattr(storage, name)

    def claim() -> None:
        try:
            with batch_module._claimed(Meeting(), paths, "race"):  # type: ignore[arg-type]
                entered.append(True)
                done.wait(PATIENCE)
        except UsageError:
            refused.release()

    done, refused = threading.Event(), threading.Semaphore(0)
    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        assert refused.acquire(timeout=PATIENCE)
    done.set()
    for thread in threads:
        thread.join()
    assert len(entered) == 1


def test_a_claim_that_a_killed_process_left_counts_for_some_minutes(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})
    left = {"time": datetime.now(UTC).isoformat(), "token": "x"}
    deployed.client("s3").put_object(Bucket="outputs", Key="runs/killed/claims/0001.json", Body=json.dumps(left))
    refused = pagefleet("submit", "a.png", "--run-id", "killed", *COLOUR)
    assert refused.exit_code == 2
    assert re.search("it can be done again in (9|10) minutes", refused.stderr)
    left["time"] = (datetime.now(UTC) - timedelta(minutes=11)).isoformat()
    deployed.client("s3").put_object(Bucket="outputs", Key="runs/killed/claims/0001.json", Body=json.dumps(left))
    taken_over = pagefleet("submit", "a.png", "--run-id", "killed", *COLOUR)
    assert taken_over.exit_code == 0, taken_over.output
    assert not objects(deployed, "runs/killed/claims/")


def test_who_stood_still_for_long_submits_nothing(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})
    real = batch_module.write_plan

    def taken_over(*arguments: Any) -> None:
        real(*arguments)
        deployed.client("s3").put_object(Bucket="outputs", Key="runs/slow/claims/0002.json", Body=b"{}")

    monkeypatch.setattr(batch_module, "write_plan", taken_over)
    late = pagefleet("submit", "a.png", "--run-id", "slow", *COLOUR)
    assert late.exit_code == 1
    assert "was taken over" in late.stderr
    assert "runs/slow/batch.json" not in objects(deployed)


def test_resume_submits_only_the_shards_that_have_something_left(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deployed.upload(tmp_path, {f"{number}.png": "read" for number in range(6)})
    keys = [f"{number}.png" for number in range(6)]
    assert pagefleet("submit", *keys, "--shards", "6", "--run-id", "sparse", *COLOUR).exit_code == 0
    first = deployed.job("sparse")
    for shard in (0, 1, 3, 5):
        deployed.agent.run_child(first, shard)
    for shard in (2, 4):
        deployed.jobs.tell(f"{first}:{shard}", "FAILED", {"statusReason": "the machine was gone"})

    refused = pagefleet("resume", "sparse", "--engine-option", "task=other")
    assert refused.exit_code == 2
    assert "option task can't be changed" in refused.stderr
    resumed = pagefleet("resume", "sparse", "--engine-option", "rate=2")
    assert resumed.exit_code == 0, resumed.output
    assert open_run("s3://outputs/runs/sparse").run.options.engine_options == {"rate": "2"}
    second = deployed.job("sparse")
    assert "2 shards" in resumed.stdout
    assert deployed.agent.size(second) == 2
    assert {number: len(attempts) for number, attempts in deployed.agent.run(second).items()} == {0: 1, 1: 1}
    watched = pagefleet("watch", "sparse", "--interval", "0")
    assert watched.exit_code == 0, watched.output
    assert "6/6 tasks" in watched.stdout
    assert {line.split()[1] for line in pagefleet("logs", "sparse").stdout.splitlines()} == {"[2]", "[4]"}
    assert "has no shard 3: it has 2, 4" in pagefleet("logs", "sparse", "--shard", "3").stderr
    assert pagefleet("fetch", "sparse", "--out", "out", "--no-report").exit_code == 0
    receipts = {path.name for path in (tmp_path / "out/receipts").iterdir()}
    assert receipts == {*(f"0000{shard}-1.jsonl" for shard in (0, 1, 3, 5)), "00002-2.jsonl", "00004-2.jsonl"}


def test_one_shard_that_is_left_is_a_plain_job(deployed: Deployed, tmp_path: Path) -> None:
    deployed.upload(tmp_path, {"a.png": "read", "b.png": "read"})
    assert pagefleet("submit", "a.png", "b.png", "--shards", "2", "--run-id", "last", *COLOUR).exit_code == 0
    deployed.agent.run_child(deployed.job("last"), 0)
    deployed.jobs.tell(f"{deployed.job('last')}:1", "FAILED", {"statusReason": "the machine was gone"})
    assert pagefleet("resume", "last").exit_code == 0
    assert [attempt.exit_code for attempt in deployed.agent.run(deployed.job("last"))[0]] == [0]
    assert pagefleet("watch", "last").exit_code == 0


def test_an_attempt_at_a_batch_of_rows_may_take_as_long_as_a_full_one() -> None:
    rows = [(f"s3://inputs/{row}.png", f"{row}", "1", None, None) for row in range(81)]
    dataset = Dataset(
        uri="s3://inputs/train.parquet",
        rows=81,
        fingerprint="",
        addresses="",
        image_column="image_path",
        image_root="s3://inputs",
        batch_size=80,
        output="train_pseudo_labels.parquet",
    )
    plan = Plan("s3://inputs/train.parquet", rows, documents=81, shards=2, dataset=dataset)
    assert attempt_timeout(plan, "lighton") == 900 + 80 * 240


def test_an_attempt_may_take_as_long_as_its_pages_do(deployed: Deployed, tmp_path: Path) -> None:
    definition = deployed.description["job_definitions"]["ocr-cpu"]
    definition["timeout"] = 6 * 3600
    deployed.publish()

    def timeout(run_id: str, pages: int, *more: str) -> int | None:
        keys = tmp_path / run_id
        keys.write_text("".join(f"{number}.png\n" for number in range(pages)))
        done = pagefleet("submit", "--keys-file", str(keys), "--run-id", run_id, *(more or COLOUR))
        assert done.exit_code == 0, done.output
        (detail,) = deployed.client("batch").describe_jobs(jobs=[deployed.job(run_id)])["jobs"]
        seconds: int | None = detail.get("timeout", {}).get("attemptDurationSeconds")
        return seconds

    assert timeout("few", 3) == 3600
    assert timeout("some", 40) == 900 + 40 * 240
    assert timeout("shared", 40, "--shards", "2", *COLOUR) == 900 + 20 * 240
    assert timeout("parts", 20, "--pages", "1-2", *COLOUR) == 900 + 40 * 240
    assert timeout("quick", 200, "--engine", "rapidocr") == 900 + 200 * 30
    assert timeout("many", 90) is None  # the definition's own, which is the most
    keys = tmp_path / "long"
    keys.write_text("a.pdf\n")  # of as many pages as it may have
    assert pagefleet("submit", "--keys-file", str(keys), "--run-id", "long", *COLOUR).exit_code == 0
    assert deployed.record("long")["jobs"][0]["timeout"] is None


def test_a_run_is_cancelled_while_it_is_read_and_resumed_later(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [f"{number:02d}.png" for number in range(80)]  # a shard has more than a worker takes in hand at once
    deployed.upload(tmp_path, {key: "read" if number % 2 else "slow" for number, key in enumerate(keys)})
    assert pagefleet("submit", *keys, "--shards", "2", "--run-id", "live", *COLOUR).exit_code == 0
    cancelled: list[Result] = []
    deployed.agent.during = lambda index, attempt: cancelled.append(pagefleet("cancel", "live"))
    attempts = deployed.agent.run(deployed.job("live"))
    assert [done.exit_code for done in cancelled] == [0]
    assert [attempt.exit_code for attempt in attempts[0]] == [ExitCode.DRAINED]
    assert attempts[1] == []  # never started
    watched = pagefleet("watch", "live")
    assert watched.exit_code == 4, watched.output
    assert "cancelled with pagefleet cancel" in watched.stdout
    read = len([key for key in objects(deployed, "runs/live/documents/") if key.endswith(".json")])
    assert 0 < read < 40  # what was in hand

    deployed.agent.during = None
    assert pagefleet("resume", "live").exit_code == 0
    deployed.agent.run(deployed.job("live"))
    assert pagefleet("fetch", "live", "--out", "out", "--no-report").exit_code == 0
    receipts = [line for path in (tmp_path / "out/receipts").iterdir() for line in path.read_text().splitlines()]
    assert len(receipts) == 80  # nothing was read twice


def test_logs_are_followed_while_the_worker_speaks(deployed: Deployed, tmp_path: Path) -> None:
    keys = [f"{number}.png" for number in range(3)]
    deployed.upload(tmp_path, dict.fromkeys(keys, "read"))
    assert pagefleet("submit", *keys, "--run-id", "talk", *COLOUR).exit_code == 0
    started, seen = threading.Event(), threading.Event()

    def hold(index: int, attempt: int) -> None:
        started.set()
        assert seen.wait(PATIENCE)

    deployed.agent.during = hold
    run = open_batch_run(open_storage(), "s3://outputs/runs/talk", deployed.aws)
    agent = threading.Thread(target=deployed.agent.run, args=(deployed.job("talk"),))
    agent.start()
    states, told = [], []
    for line in follow_logs(run, None, sleep=lambda _: (agent.join if seen.is_set() else started.wait)(PATIENCE)):
        states.append(run.status())
        told.append(line.text)
        seen.set()
    agent.join()
    assert states[0] == "RUNNING"  # the first lines come before the end
    assert states[-1] == "SUCCEEDED"
    receipts = [json.loads(text)["task"] for text in told if text.startswith('{"task"')]
    assert sorted(receipts) == keys


def test_cancel_ends_a_live_run_once(deployed: Deployed, tmp_path: Path) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})
    pagefleet("submit", "a.png", "--run-id", "one", *COLOUR)
    cancelled = pagefleet("cancel", "one")
    assert cancelled.exit_code == 0, cancelled.output
    detail = deployed.client("batch").describe_jobs(jobs=[deployed.job("one")])["jobs"][0]
    assert detail["statusReason"] == "cancelled with pagefleet cancel"
    deployed.jobs.tell(deployed.job("one"), "FAILED", {})
    again = pagefleet("cancel", "one")
    assert again.exit_code == 1
    assert "is not live" in again.stderr


def test_hundreds_of_shards_are_asked_for_in_portions(deployed: Deployed, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("".join(f"{number}.png\n" for number in range(230)))
    pagefleet("submit", "--keys-file", str(tmp_path / "keys"), "--shards", "230", "--run-id", "many", *COLOUR)
    run = open_batch_run(open_storage(), "s3://outputs/runs/many", deployed.aws)
    assert [child.shard for child in run.children()] == list(range(230))
    for shard in range(230):
        deployed.jobs.tell(f"{run.record.job.id}:{shard}", "FAILED", {"statusReason": "no such luck"})
    last = Watch(run).look()
    assert (last.status, last.states, last.exit_code) == ("FAILED", {"FAILED": 230}, 4)
    assert last.failed_shards[229] == (229, "no such luck")


def test_logs_are_printed_by_shard_and_followed_to_the_end(deployed: Deployed, tmp_path: Path) -> None:
    pagefleet(
        "submit", "a.png", "b.png", "--shards", "2", "--run-id", "two", "--engine", "tests.faults.engines:Unbuildable"
    )
    deployed.agent.run(deployed.job("two"))
    attempts = deployed.jobs.job(f"{deployed.job('two')}:0").attempts
    attempts.append({"startedAt": 1, "stoppedAt": 2, "container": {"logStreamName": "never/written"}})
    both = pagefleet("logs", "two")
    assert both.exit_code == 0, both.output
    assert {line.split()[1] for line in both.stdout.splitlines()} >= {"[0]", "[1]"}
    one = pagefleet("logs", "two", "--shard", "1", "--follow")
    assert "no such device" in one.stdout
    assert "[0]" not in one.stdout
    assert "has no shard 7" in pagefleet("logs", "two", "--shard", "7").stderr


def test_a_forgotten_job_is_no_obstacle(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deployed.upload(tmp_path, {"a.png": "read"})
    pagefleet("submit", "a.png", "--run-id", "old", *COLOUR)
    deployed.agent.run(deployed.job("old"))
    assert pagefleet("fetch", "old", "--no-report").exit_code == 0
    known = json.loads((tmp_path / "runs/old/summary.json").read_text())["cost"]
    deployed.jobs.forget(deployed.job("old"))
    assert pagefleet("watch", "old").exit_code == 0
    assert pagefleet("fetch", "old", "--no-report").exit_code == 0
    assert json.loads((tmp_path / "runs/old/summary.json").read_text())["cost"] == known
    assert "AWS Batch has forgotten the jobs of run old: what it had cost" in pagefleet("cost", "old").stderr
    assert json.loads(pagefleet("runs", "--json").stdout)["runs"][0]["state"] == "collected"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["submit"], 2, "name at least one KEY"),
        (["submit", "a.png", "--run-id", "a/b"], 2, "is no run id"),
        (["submit", "a.png", "--engine", "nix"], 2, "unknown engine 'nix'"),
        (["submit", "a.png", "--engine", "upstage", "--engine-option", "unti=word"], 2, "has no option 'unti'"),
        (["submit", "a.png", "--engine-option", "foo=bar", "--dry-run"], 2, "has no option 'foo'"),
        (["submit", "--prefix", "s3://inputs/none/"], 2, "there is no document in s3://inputs/none/"),
        (["submit", "--keys-file", "gone"], 2, "cannot read the key list"),
        (["submit", "file:///a.png"], 2, "is not in S3"),
        (["submit", "s3://gone/a.png"], 1, "there is no bucket gone"),
        (["submit", "a.png", "--stack", "prod"], 2, "stack prod is not deployed"),
        (["watch", "none"], 2, "there is no run at s3://outputs/runs/none"),
        (["fetch", "none"], 2, "there is no run at"),
        (["resume", "none"], 2, "there is no run at"),
        (["cancel", "none"], 2, "there is no run at"),
        (["cost"], 2, "name a RUN, or give --idle"),
        (["watch", "s3://outputs/runs/none"], 2, "there is no run at"),
    ],
)
def test_wrong_usage_is_told_in_a_line(deployed: Deployed, arguments: list[str], code: int, said: str) -> None:
    done = pagefleet(*arguments)
    assert done.exit_code == code, done.output
    assert said in done.stderr.replace("\n", " ")
    assert objects(deployed) == set()


def test_a_run_of_this_machine_is_not_batchs(deployed: Deployed, tmp_path: Path) -> None:
    deployed.upload(tmp_path, {"a.png": "read"})
    arguments = ("run", "s3://inputs/a.png", "--out", "s3://outputs/runs/local", "--no-report", *COLOUR)
    assert pagefleet(*arguments).exit_code == 0
    over = pagefleet("submit", "a.png", "--run-id", "local")
    assert over.exit_code == 2
    assert "holds a run that was not read on AWS Batch" in over.stderr
    watched = pagefleet("watch", "local")
    assert watched.exit_code == 2
    assert "was not submitted to AWS Batch" in watched.stderr
    assert pagefleet("resume", "s3://outputs/runs/local", "--no-report").exit_code == 0


def test_the_examples_in_the_help_work(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deployed.upload(tmp_path, {"scans/receipt.jpg": "read", "scans/paper.pdf": "read"})
    pyarrow.parquet.write_table(pyarrow.table({"image_path": ["../scans/receipt.jpg"]}), tmp_path / "train.parquet")
    deployed.client("s3").upload_file(str(tmp_path / "train.parquet"), "inputs", "sets/train.parquet")
    for command in COMMANDS:
        for example in _examples(command):
            words = shlex.split(example)[1:]
            done = pagefleet(*words, *(COLOUR if command.name == "submit" else ()))
            if command.name == "doctor":  # the emulator knows no quotas, which is no fault
                assert "BAD" not in done.stdout
            assert done.exit_code == 0, f"{example}\n{done.output}"
            if command.name == "submit" and "--run-id" in words:
                deployed.agent.run(deployed.job(words[words.index("--run-id") + 1]))
            if command.name == "fetch":  # cancel, which comes next, wants a live run
                deployed.jobs.tell(deployed.job("first"), "RUNNABLE", {})
    assert (tmp_path / "out/first/documents/receipt.jpg.md").exists()
