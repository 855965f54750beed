"""What others rely on: names, paths, codes, and the JSON Schema of the records."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from tests.conftest import ROOT
from worker.contract import ExitCode, FailureCode, Line, Meta, Page, Result, RunPaths, Task, json_schema


def test_the_schema_in_docs_is_that_of_the_models() -> None:
    written = json.loads((ROOT / "docs/schema.json").read_text())
    assert written == json_schema(), "run `make schema`"


def test_exit_codes_are_those_that_batch_is_told() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "CRASHED": 1,
        "BAD_REQUEST": 64,
        "TRY_AGAIN": 75,
        "DRAINED": 143,
    }


def test_failure_codes_are_one_closed_list() -> None:
    assert {code.value for code in FailureCode} == {
        "not_found",
        "access_denied",
        "empty",
        "unsupported_format",
        "corrupt",
        "encrypted",
        "too_large",
        "timeout",
        "decoder_crashed",
        "engine_error",
        "worker_crashed",
        "no_such_page",
    }


def test_a_result_is_written_as_documented() -> None:
    meta = Meta(
        model="m",
        runtime="batch",
        timestamp=datetime(2026, 11, 21, 15, 30, tzinfo=UTC),
        engine="e",
        seconds=1.8,
        worker="0.1.0",
    )
    line = Line(text="2 cups flour", confidence=0.98, polygon=[(88, 120), (410, 118), (411, 152), (89, 154)])
    page = Page(number=1, width=1240, height=1754, status="ok", markdown="2 cups flour", lines=[line])
    result = Result(
        source_image="s3://inputs/a.png", extracted_markdown="2 cups flour\n", meta=meta, status="ok", pages=[page]
    )
    record = json.loads(result.to_json())
    assert record["schema"] == 1
    assert record["meta"]["timestamp"] == "2026-11-21T15:30:00Z"
    assert record["pages"][0]["lines"] == [
        {"text": "2 cups flour", "confidence": 0.98, "polygon": [[88, 120], [410, 118], [411, 152], [89, 154]]}
    ]
    assert Result.model_validate_json(result.to_json()) == result
    for wrong in (1.2, -0.1):
        with pytest.raises(ValidationError):
            Line(text="x", confidence=wrong)


def test_paths_of_a_run() -> None:
    s3, local = RunPaths("s3://out/runs/r1/"), RunPaths("file:///tmp/r%201")
    whole, part = Task(uri="u", name="a%2F b#.pdf"), Task(uri="u", name="a.pdf", pages="1-9", part=2, parts=12)
    assert s3.result(whole) == "s3://out/runs/r1/documents/a%2F b#.pdf.json"
    assert local.result(whole) == "file:///tmp/r%201/documents/a%252F%20b%23.pdf.json"
    assert s3.failure(whole) == "s3://out/runs/r1/failures/a%2F b#.pdf.json"
    assert s3.result(part) == "s3://out/runs/r1/parts/a.pdf/00002-of-00012.json"
    assert s3.failure(part) == "s3://out/runs/r1/parts/a.pdf/00002-of-00012.failed.json"
    assert (s3.shard(3), s3.receipts(3, 2)) == (
        "s3://out/runs/r1/shards/00003.jsonl",
        "s3://out/runs/r1/receipts/00003-2.jsonl",
    )


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/."])
def test_a_task_cannot_lead_out_of_the_runs_folder(name: str) -> None:
    with pytest.raises(ValidationError):
        Task(uri="u", name=name)


@pytest.mark.parametrize("name", ["a", "a/b", ".a", "..a", "...", "a..b/c d+e,%2F#?", "한국어/영수증.png"])
def test_odd_names_are_names(name: str) -> None:
    assert Task(uri="u", name=name).name == name
