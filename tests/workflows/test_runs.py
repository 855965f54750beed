"""The workflows that read documents, run for real: whatever is typed into the form, a person gets what was read."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.jobs.conftest import Deployed
from tests.workflows.conftest import Act, Ran, make_role

COLOUR = "tests.faults.engines:Colour"
AWKWARD = (
    'inbox/it\'s "quoted".png',
    "inbox/$(touch {canary}).png",
    "inbox/`touch {canary}`.png",
    "inbox/; touch {canary} #.png",
    "inbox/한국어 문서: 제1장?.png",
    "inbox/${{ github.token }} && touch {canary}.png",
    " --leading, a | b.png",
)


def form(**fields: str) -> dict[str, Any]:
    """What the form sends where nothing else is filled in."""
    return {"stack": "dev", "engine": COLOUR, "wait-minutes": "4"} | {
        name.replace("_", "-"): text for name, text in fields.items()
    }


def results(ran: Ran, run: str) -> dict[str, Any]:
    """What the artifact's `results.jsonl` tells, by key."""
    with zipfile.ZipFile(ran.artifacts / f"results-{run}" / "results.zip") as archive:
        rows = [json.loads(line) for line in archive.read("results.jsonl").decode().splitlines()]
    return {row["source_image"].removeprefix("s3://inputs/"): row for row in rows}


def test_awkward_keys_are_read_and_none_is_run(
    act: Act, deployed: Deployed, batch: Callable[[], None], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    keys = [key.replace("{canary}", str(canary)) for key in AWKWARD]
    deployed.upload(tmp_path, dict.fromkeys(keys, "read"))
    batch()
    ran = act.run("ocr", inputs=form(keys="\r\n".join(["", *keys, " "]), options="--dpi 300 --lang='ko $(id)'"))
    assert ran.jobs == {"ocr": "success"}, ran.log
    assert not canary.exists()
    run = ran.outputs["run"]
    assert {key: row["status"] for key, row in results(ran, run).items()} == dict.fromkeys(keys, "ok")
    assert {"report.html", "summary.md", "summary.json"} <= ran.artifact(f"report-{run}")
    with zipfile.ZipFile(ran.artifacts / f"results-{run}" / "results.zip") as archive:
        assert "documents/inbox/한국어 문서: 제1장?.png.md" in archive.namelist()
        asked = json.loads(archive.read("run.json"))
    assert (asked["options"]["dpi"], asked["options"]["lang"]) == (300, "ko $(id)")
    told = ran.summary.index(f"## Submitted: run `{run}`"), ran.summary.index("| documents | 7 (7 ok) |")
    assert told[0] < told[1]
    assert "[collect](https://github.com/acme/pagefleet/actions/workflows/collect.yml)" in ran.summary
    assert "| pages per second |" in ran.summary
    assert "| cost | " in ran.summary


def test_what_fails_fails_the_workflow_with_artifacts_and_can_be_resumed(
    act: Act, deployed: Deployed, batch: Callable[[], None], tmp_path: Path
) -> None:
    deployed.upload(tmp_path, {"a.png": "read", "b.png": "raise"})
    batch()
    ran = act.run("ocr", inputs=form(keys='["a.png", "b.png", "gone | `x`.png"]'))
    assert ran.jobs == {"ocr": "failure"}
    run = ran.outputs["run"]
    assert {key: row["status"] for key, row in results(ran, run).items()} == {
        "a.png": "ok",
        "b.png": "failed",
        "gone | `x`.png": "failed",
    }
    assert f"::error::run {run}: 2 documents failed: " in ran.log
    assert "report.html" in ran.artifact(f"report-{run}")
    assert "| documents | 3 (1 ok, 2 failed) |" in ran.summary
    assert "| gone \\| \\`x\\`.png | failed | not_found: " in ran.summary
    assert "| `engine_error` | 1 |" in ran.summary
    assert "[resume](https://github.com/acme/pagefleet/actions/workflows/resume.yml)" in ran.summary

    deployed.upload(tmp_path, {"b.png": "read", "gone | `x`.png": "read"})
    mended = act.run("resume", inputs={"stack": "dev", "run": run, "retry-failed": "true", "wait-minutes": "4"})
    assert mended.jobs == {"resume": "success"}, mended.log
    assert {row["status"] for row in results(mended, run).values()} == {"ok"}
    assert "| documents | 3 (3 ok) |" in mended.summary


def test_a_run_outlives_its_workflow_and_is_collected(
    act: Act, deployed: Deployed, batch: Callable[[], None], tmp_path: Path
) -> None:
    deployed.upload(tmp_path, {f"scans/{number}.png": "read" for number in range(3)})
    ran = act.run("ocr", inputs=form(prefix="s3://inputs/scans/", wait_minutes="0.001"))
    assert ran.jobs == {"ocr": "failure"}
    run = ran.outputs["run"]
    assert ran.outputs["ended"] == "false"
    assert f"**Run `{run}` is still going on.**" in ran.summary
    assert f"::warning::run {run} is still going on" in ran.log
    assert not list(ran.artifacts.iterdir())

    deployed.agent.run(deployed.job(run))
    collected = act.run("collect", inputs={"stack": "dev", "run": run})
    assert collected.jobs == {"collect": "success"}, collected.log
    assert len(results(collected, run)) == 3
    assert "| documents | 3 (3 ok) |" in collected.summary


def test_a_dataset_comes_back_labelled(act: Act, deployed: Deployed, batch: Callable[[], None], tmp_path: Path) -> None:
    deployed.upload(tmp_path, {"sets/a.png": "read", "sets/b.png": "read"})
    pyarrow.parquet.write_table(pyarrow.table({"scan": ["b.png", "a.png"], "id": [7, 8]}), tmp_path / "train.parquet")
    deployed.client("s3").upload_file(str(tmp_path / "train.parquet"), "inputs", "sets/train.parquet")
    batch()
    ran = act.run("ocr", inputs=form(dataset="s3://inputs/sets/train.parquet", options="--image-column scan"))
    assert ran.jobs == {"ocr": "success"}, ran.log
    with zipfile.ZipFile(ran.artifacts / f"results-{ran.outputs['run']}" / "results.zip") as archive:
        labelled = pyarrow.parquet.read_table(io.BytesIO(archive.read("train_pseudo_labels.parquet")))
    assert labelled.column("id").to_pylist() == ["7", "8"]
    assert "`train_pseudo_labels.parquet`" in ran.summary


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keys": "\n  \n"}, "nothing to read: fill in keys, prefix, keys-file or dataset"),
        (
            {"keys": "a.png", "shards": "many", "options": "--out=/etc"},
            "shards: 'many' is no number from 1 to 10,000; options: '--out' is none of --engine-option",
        ),
    ],
)
def test_a_form_that_is_wrong_submits_nothing(act: Act, deployed: Deployed, fields: dict[str, str], said: str) -> None:
    ran = act.run("ocr", inputs=form(**fields))
    assert ran.jobs == {"ocr": "failure"}
    assert f"::error::the form cannot be submitted. {said}" in ran.log
    assert ran.steps["Submit"] == "failure"
    assert ran.steps.get("Wait") is None
    queue = deployed.description["queues"]["cpu"]["arn"]
    assert not deployed.client("batch").list_jobs(jobQueue=queue, jobStatus="RUNNABLE")["jobSummaryList"]


def test_a_stack_whose_role_is_not_told_is_not_reached_by_that_of_another(act: Act) -> None:
    assert "AWS_OPERATOR_ROLE" in act.variables
    ran = act.run("ocr", inputs=form(keys="a.png", stack="prod"))
    assert ran.jobs == {"ocr": "failure"}
    assert ran.steps.get("Submit") is None


def test_what_aws_refuses_is_told(act: Act, deployed: Deployed, s3_server: str, tmp_path: Path) -> None:
    import urllib3

    deployed.upload(tmp_path, {"a.png": "read"})
    little = [{"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}]
    act.variables["AWS_OPERATOR_ROLE"] = make_role(deployed, "weak", little)
    urllib3.request("POST", f"{s3_server}/moto-api/reset-auth", body="1")  # who asks for credentials has none yet
    try:
        ran = act.run("ocr", inputs=form(keys="a.png"))
    finally:
        urllib3.request("POST", f"{s3_server}/moto-api/reset-auth", body="inf")
    assert ran.jobs == {"ocr": "failure"}
    assert "::error::AWS denies ssm get_parameter to these credentials" in ran.log
    assert "use the operator role" in ran.log
