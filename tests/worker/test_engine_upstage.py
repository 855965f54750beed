"""The engine `upstage` against a server that speaks its documented protocol, on good days and bad ones."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import draw
from tests.faults.services import (
    KEY,
    Asked,
    FaultyService,
    Reply,
    Script,
    SetClock,
    engine_at,
    faulty_service,
    json_reply,
    read_at,
)
from worker.contract import ExitCode, Options, Result
from worker.engines import EngineSettings, PageImage, PageText
from worker.engines.upstage import UpstageEngine
from worker.errors import BadRequest, TryAgain
from worker.remote import Clock


def vertices(*corners: tuple[int, int]) -> dict[str, Any]:
    return {"vertices": [{"x": x, "y": y} for x, y in corners]}


def box(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return vertices((x, y), (x + width, y), (x + width, y + height), (x, y + height))


def answer(width: int = 200, height: int = 100) -> dict[str, Any]:
    """As console.upstage.ai documents it."""
    words = [
        {"id": 0, "text": "Print", "confidence": 0.9, "boundingBox": box(20, 10, 50, 20)},
        {"id": 1, "text": "the", "confidence": 0.8, "boundingBox": box(80, 12, 30, 18)},
        {"id": 2, "text": "words", "confidence": 0.7, "boundingBox": box(120, 10, 60, 20)},
        {"id": 3, "text": "hello,", "confidence": 0.99, "boundingBox": box(20, 50, 60, 20)},
    ]
    page = {"id": 0, "width": width, "height": height, "text": "Print the words \nhello,", "words": words}
    return {
        "apiVersion": "1.1",
        "confidence": 0.9,
        "metadata": {"pages": [{"page": 1, "width": width, "height": height}]},
        "mimeType": "multipart/form-data",
        "modelVersion": "ocr-260930",
        "numBilledPages": 1,
        "pages": [page | {"confidence": 0.9}],
    }


def good(*_: Any) -> Reply:
    return json_reply(answer(), x_upstage_request_id="up-77")


def page(width: int = 200, height: int = 100, number: int = 1) -> PageImage:
    return PageImage(number, np.full((height, width, 3), number, np.uint8))


def engine(service: FaultyService, clock: SetClock, **options: Any) -> UpstageEngine:
    return engine_at(service, clock, UpstageEngine, **options)


def read(script: Script, image: PageImage | None = None, **options: Any) -> tuple[PageText, FaultyService, SetClock]:
    return read_at(script, image or page(), UpstageEngine, **options)


def test_a_request_is_as_documented_and_words_become_lines() -> None:
    text, service, _ = read(good, price_per_page="0.0015")
    (asked,) = service.asked
    assert (asked.method, asked.path) == ("POST", "/v1/document-digitization")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.form["model"][2] == b"ocr"
    name, kind, data = asked.form["document"]
    assert (name, kind) == ("page.png", "image/png")
    assert np.array_equal(np.asarray(Image.open(BytesIO(data))), page().pixels)
    assert text.error is None
    assert text.markdown is None
    assert [(line.text, line.confidence, line.polygon) for line in text.lines] == [
        ("Print the words", 0.8, [(20, 10), (180, 10), (180, 30), (20, 30)]),
        ("hello,", 0.99, [(20, 50), (80, 50), (80, 70), (20, 70)]),
    ]
    assert text.details == {
        "model": "ocr-260930",
        "request": "up-77",
        "resent": 0,
        "billed_pages": 1,
        "cost": 0.0015,
    }


def test_words_by_themselves() -> None:
    text, _, _ = read(good, unit="word")
    assert [line.text for line in text.lines] == ["Print", "the", "words", "hello,"]
    assert [line.confidence for line in text.lines] == [0.9, 0.8, 0.7, 0.99]
    assert text.lines[1].polygon == [(80, 12), (110, 12), (110, 30), (80, 30)]
    assert text.markdown == "Print the words\nhello,"


def test_places_are_those_of_our_page_whatever_size_upstage_saw() -> None:
    text, _, _ = read(good, page(400, 50))
    assert text.lines[1].polygon == [(40, 25), (160, 25), (160, 35), (40, 35)]


def test_a_slanted_line_has_a_slanted_outline() -> None:
    said = answer()
    said["pages"][0]["words"] = [
        {"text": "up", "confidence": 1, "boundingBox": vertices((10, 60), (40, 30), (50, 40), (20, 70))},
        {"text": "hill", "confidence": 1, "boundingBox": vertices((50, 20), (65, 5), (75, 15), (60, 30))},
    ]
    said["pages"][0]["text"] = "up hill"
    text, _, _ = read(lambda *_: json_reply(said))
    assert text.lines[0].polygon == [(10, 60), (65, 5), (75, 15), (20, 70)]


def test_words_that_are_not_those_of_the_text_stay_by_themselves() -> None:
    said = answer()
    said["pages"][0]["text"] = "Something else"
    text, _, _ = read(lambda *_: json_reply(said))
    assert [line.text for line in text.lines] == ["Print", "the", "words", "hello,"]


def test_what_is_odd_about_a_word_costs_no_page() -> None:
    """It has been paid for."""
    said = answer()
    first, second, third, fourth = said["pages"][0]["words"]
    del first["boundingBox"]
    second["confidence"] = 1.0000001
    third["boundingBox"] = {"vertices": [{"x": "left"}]}
    third["confidence"] = "good"
    fourth["boundingBox"] = None
    fourth["confidence"] = -0.1
    text, _, _ = read(lambda *_: json_reply(said))
    assert text.error is None
    assert [(line.text, line.confidence, line.polygon) for line in text.lines] == [
        ("Print the words", 0.9, [(80, 12), (110, 12), (110, 30), (80, 30)]),
        ("hello,", None, None),
    ]


@pytest.mark.parametrize(("kept", "lines"), [(0, ["Print the words", "hello,"]), (2, ["Print the", "words", "hello,"])])
def test_text_without_words_is_not_lost(kept: int, lines: list[str]) -> None:
    said = answer()
    del said["pages"][0]["words"][kept:]
    text, _, _ = read(lambda *_: json_reply(said))
    assert [line.text for line in text.lines] == lines
    assert text.lines[-1].polygon is None


def test_no_text_at_all() -> None:
    said = answer()
    said["pages"][0] |= {"text": "", "words": []}
    text, _, _ = read(lambda *_: json_reply(said))
    assert (text.error, text.lines) == (None, [])


@pytest.mark.parametrize(
    "fault",
    [
        json_reply({"error": "too_many_requests"}, 429, Retry_After="2"),
        Reply(status=500),
        Reply(status=503),
        Reply(cut=True),
        Reply([b"<html>"]),
    ],
    ids=["429", "500", "503", "reset", "html"],
)
def test_a_fault_that_passes_costs_a_second_request(fault: Reply) -> None:
    text, service, clock = read(lambda number, _: fault if number == 1 else good())
    assert text.error is None
    assert text.details
    assert text.details["resent"] == 1
    assert len(service.asked) == 2
    assert max(clock.slept) >= (2 if fault.status == 429 else 0.5)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (json_reply({"error": {"message": "unsupported image"}}, 415), "refuses the page: 415: .*unsupported image"),
        (json_reply([]), "makes no sense"),
        (json_reply({"pages": []}), "makes no sense"),
        (json_reply({"pages": [{"words": [{"text": "x"}]}]}), "makes no sense"),
        (json_reply({"pages": [{"words": [{"text": "x", "boundingBox": {"vertices": "here"}}]}]}), "makes no sense"),
    ],
)
def test_what_is_final_costs_one_request_and_that_page(fault: Reply, says: str) -> None:
    text, service, _ = read(lambda *_: fault)
    assert text.error is not None
    assert re.search(says, text.error), text.error
    assert len(service.asked) == 1


CHOKES = {
    "500": json_reply({"error": "oops"}, 500, x_upstage_request_id="up-9"),
    "503": Reply(status=503),
    "reset": Reply(cut=True),
    "html": Reply([b"<html>back soon</html>"], headers={"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("fault", CHOKES)
def test_a_page_that_upstage_chokes_on_fails_where_others_are_read_meanwhile(fault: str) -> None:
    """Which costs nothing."""
    clock = SetClock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        assert reader.read([page(number=2)])[0].error is None

    with faulty_service(lambda _, asked: CHOKES[fault] if asked.image.size == (13, 13) else good()) as service:
        reader = engine(service, clock, attempts="3")
        reader._service.clock = Clock(clock.now, sleep)
        (text,) = reader.read([page(13, 13)])
        reader.close()
    assert text.error is not None
    assert "Upstage could not read the page in 3 tries, while it reads others" in text.error
    assert ("(request up-9)" in text.error) == (fault == "500")
    assert len(service.asked) == 3 + 2
    assert not any(asked.is_control for asked in service.asked)


@pytest.mark.parametrize("fault", CHOKES)
def test_a_page_that_upstage_chokes_on_alone_fails_where_a_page_of_ours_is_read(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Which is paid for, in place of the page that wasn't."""
    caplog.set_level(logging.INFO)
    text, service, _ = read(
        lambda _, asked: good() if asked.is_control else CHOKES[fault], attempts="3", price_per_page="2"
    )
    assert text.error is not None
    assert "Upstage could not read the page in 3 tries, while it reads others" in text.error
    assert [asked.is_control for asked in service.asked] == [False, False, True, False]
    assert "Upstage has billed 1 page, 2.00 $" in caplog.text
    assert text.details
    assert (text.details["billed_pages"], text.details["cost"]) == (1, 2.0)


def test_a_page_that_is_read_after_one_of_ours_costs_both() -> None:
    text, _, _ = read(
        lambda number, _: Reply(status=500) if number == 1 else good(), attempts="2", price_per_page="0.1"
    )
    assert text.error is None
    assert text.details
    assert (text.details["billed_pages"], text.details["cost"]) == (2, 0.2)


def test_two_pages_during_maintenance_do_not_vouch_for_each_other() -> None:
    """What a proxy says with status 200 is no answer of Upstage's."""
    clock = SetClock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        reader._service.clock = Clock(clock.now, clock.sleep)
        with pytest.raises(TryAgain):
            reader.read([page(number=2)])

    with faulty_service(lambda *_: CHOKES["html"]) as service:
        reader = engine(service, clock, attempts="2")
        reader._service.clock = Clock(clock.now, sleep)
        with pytest.raises(TryAgain, match=r"reads neither the page .* nor one of ours that it could"):
            reader.read([page()])
        reader.close()


@pytest.mark.parametrize("fault", [*CHOKES, "odd"])
def test_an_outage_is_no_document_s_fault(fault: str) -> None:
    """Whatever it answers with; and that others were read before it began tells nothing."""
    out = False

    def script(_: int, asked: Asked) -> Reply:
        if asked.is_control and fault == "odd":
            return json_reply({"pages": []})
        return CHOKES.get(fault, CHOKES["503"]) if out else good()

    with faulty_service(script) as service:
        reader = engine(service, SetClock(), attempts="3")
        for _ in range(3):
            assert reader.read([page()])[0].error is None
        out = True
        with pytest.raises(TryAgain, match=r"reads neither the page .* nor one of ours that it could"):
            reader.read([page()])
        reader.close()


def test_an_upstage_that_is_silent_for_all_is_no_document_s_fault() -> None:
    with pytest.raises(TryAgain, match=r"reads neither the page .* nor one of ours that it could"):
        read(lambda *_: Reply(hang=True), attempts="2", timeout="0.05")


def test_an_account_without_credit_ends_the_run_though_only_a_page_of_ours_meets_it() -> None:
    with pytest.raises(BadRequest, match="the account has no credit"):
        read(lambda _, asked: Reply(status=402 if asked.is_control else 500))


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_ends_the_run_and_is_not_told(status: int) -> None:
    echo = json_reply({"error": {"message": f"invalid key {KEY}"}}, status)
    with pytest.raises(BadRequest, match="set UPSTAGE_API_KEY") as raised:
        read(lambda *_: echo)
    assert KEY not in str(raised.value)
    assert raised.value.exit_code == ExitCode.BAD_REQUEST


def test_a_service_that_is_away_is_no_document_s_fault() -> None:
    with pytest.raises(TryAgain, match="does not answer after 6 tries: 429"):
        read(lambda *_: json_reply({}, 429))


def test_the_rate_is_kept_whatever_the_threads_do() -> None:
    clock = SetClock()
    with faulty_service(lambda number, _: Reply(status=500) if number % 5 == 0 else good()) as service:
        reader = engine(service, clock, rate="2", concurrency="4")
        with ThreadPoolExecutor(4) as pool:
            texts = list(pool.map(lambda number: reader.read([page(number=number)])[0], range(20)))
        reader.close()
    assert all(text.error is None for text in texts)
    assert len(service.asked) == 24  # twenty pages, four faults
    assert clock.time - 1000 >= (len(service.asked) - 1) / 2


def test_a_page_that_is_too_large_as_png_is_sent_as_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = PageImage(1, np.random.default_rng(1).integers(0, 255, (300, 300, 3), np.uint8))
    monkeypatch.setattr("worker.engines.upstage.MOST_BYTES", 200_000)
    _, service, _ = read(good, noise)
    assert service.asked[0].form["document"][:2] == ("page.jpeg", "image/jpeg")
    monkeypatch.setattr("worker.engines.upstage.MOST_BYTES", 1000)
    text, service, _ = read(good, noise)
    assert text.error is not None
    assert "more than the 50 MB" in text.error
    assert service.asked == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs a key: set UPSTAGE_API_KEY"),
        ({"api_key": KEY}, "looks like a secret"),
        ({"key_secret": KEY}, "looks like a secret"),
        ({"key_secret": "arn:aws:s3:::bucket"}, "must be the ARN of a secret"),
        ({"unit": "page"}, "must be one of line, word"),
        ({"page_deadline": "900"}, "must be less than the 600 s of `engine_timeout`"),
        ({"rate": "0"}, "must be a number of at least 0.01"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, str], says: str) -> None:
    with pytest.raises(BadRequest, match=says) as raised:
        UpstageEngine(EngineSettings(1, options=options))
    assert KEY not in str(raised.value)


def test_the_key_comes_from_secrets_manager(s3_server: str, s3: Any) -> None:
    import boto3

    client = boto3.client("secretsmanager")
    plain = client.create_secret(Name="plain", SecretString=f"{KEY}\n")["ARN"]
    fields = client.create_secret(Name="fields", SecretString=json.dumps({"UPSTAGE_API_KEY": f"{KEY}\n"}))["ARN"]
    other = client.create_secret(Name="other", SecretString=json.dumps({"key": "x"}))["ARN"]
    empty = client.create_secret(Name="empty")["ARN"]
    binary = client.create_secret(Name="binary", SecretBinary=KEY.encode())["ARN"]
    client.close()
    for arn in (plain, fields):
        _, service, _ = read(good, key_secret=arn)
        assert service.asked[0].headers["authorization"] == f"Bearer {KEY}"
    for arn in (other, binary):
        with pytest.raises(BadRequest, match="the key alone, as text, or JSON with the field UPSTAGE_API_KEY"):
            read(good, key_secret=arn)
    with pytest.raises(BadRequest, match="cannot be read: ResourceNotFoundException; does it exist, has it a value"):
        read(good, key_secret=empty)


def test_without_credentials_the_secret_is_not_read_later_either(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    with pytest.raises(BadRequest, match="there are no AWS credentials here"):
        read(good, key_secret="arn:aws:secretsmanager:us-east-1:123456789012:secret:upstage")


# ---- through the worker


def test_the_worker_pays_for_each_page_once(make_run: Any, tmp_path: Path) -> None:
    """Faults of all sorts, one page that fails for good: no page that was answered is asked for again."""
    answered: Counter[bytes] = Counter()

    def script(number: int, asked: Asked) -> Reply:
        data = asked.form["document"][2]
        if asked.image.size == (122, 80):
            return json_reply({"error": "no"}, 422)
        if number % 4 == 0:
            return json_reply({}, 429, Retry_After="0.01")
        answered[data] += 1
        return good()

    with faulty_service(script) as service:
        options = Options(engine_options={"base_url": service.url, "rate": "1000", "price_per_page": "0.01"})
        run = make_run({"a.tiff": ["read"] * 5, "b.png": "read"}, engine="upstage", options=options)
        draw(tmp_path / "in/b.png", "read", (300, 80))
        done = run.work(UPSTAGE_API_KEY=KEY)
    assert done.returncode == ExitCode.OK, done.stderr
    assert run.outcomes() == {"a.tiff": "partial", "b.png": "ok"}
    assert set(answered.values()) == {1}
    assert len(answered) == 5
    result = run.outcome(run.tasks[0][0])
    assert isinstance(result, Result)
    assert [page.status for page in result.pages] == ["ok", "ok", "failed", "ok", "ok"]
    assert result.pages[0].engine
    assert result.pages[0].engine["cost"] == 0.01
    assert result.meta.revision == "ocr-260930"
    assert "Upstage has billed 5 pages, 0.05 $" in done.stderr
    written = "".join(path.read_text() for path in run.folder.rglob("*") if path.is_file())
    assert KEY not in written + done.stdout + done.stderr


def test_a_wrong_key_ends_the_worker_with_64(make_run: Any) -> None:
    with faulty_service(lambda *_: json_reply({"error": f"bad key {KEY}"}, 401)) as service:
        run = make_run({"a.png": "read"}, engine="upstage", options=Options(engine_options={"base_url": service.url}))
        done = run.work(UPSTAGE_API_KEY=KEY)
    assert done.returncode == ExitCode.BAD_REQUEST
    assert "Upstage refuses: the key is wrong or missing" in done.stderr
    assert KEY not in done.stderr
    assert run.outcomes() == {"a.png": "none"}


def test_the_last_page_of_a_shard_fails_where_upstage_chokes_on_it(make_run: Any, tmp_path: Path) -> None:
    """And the shard ends; in an outage it does not, and blames nobody."""
    out = True

    def script(_: int, asked: Asked) -> Reply:
        return Reply(status=500) if out or asked.image.size == (13, 13) else good()

    with faulty_service(script) as service:
        options = Options(engine_options={"base_url": service.url, "attempts": "1", "rate": "1000"})
        run = make_run({"a.png": "read", "z.png": "read"}, engine="upstage", options=options)
        draw(tmp_path / "in/z.png", "read", (13, 13))
        assert run.work(UPSTAGE_API_KEY=KEY).returncode == ExitCode.TRY_AGAIN
        assert run.outcomes() == {"a.png": "none", "z.png": "none"}
        out = False
        done = run.work(attempt=2, UPSTAGE_API_KEY=KEY)
    assert done.returncode == ExitCode.OK, done.stderr
    assert run.outcomes() == {"a.png": "ok", "z.png": "engine_error"}
    assert "while it reads others: 500" in run.outcome(run.tasks[0][1]).message
