"""The engine `openai`, in this process, against servers that have bad days. Time stands still: only sleep moves it."""

from __future__ import annotations

import itertools
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.conftest import PATIENCE
from tests.faults.engines import Colour
from tests.faults.services import (
    KEY,
    Asked,
    FaultyService,
    Reply,
    Script,
    SetClock,
    engine_at,
    event,
    faulty_service,
    json_reply,
    nobody,
    read_at,
    stream,
)
from worker.engines import EngineSettings, PageImage, PageText
from worker.engines.openai_server import OpenAiEngine
from worker.errors import BadRequest, TryAgain
from worker.remote import Clock
from worker.settings import API_KEYS

NOTHING = Reply(status=500)


def page(width: int = 60, height: int = 40, number: int = 1) -> PageImage:
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = number % 250
    return PageImage(number, pixels)


def engine(service: FaultyService, clock: SetClock, **options: Any) -> OpenAiEngine:
    return engine_at(service, clock, OpenAiEngine, **options)


def read(script: Script, image: PageImage | None = None, **options: Any) -> tuple[PageText, FaultyService, SetClock]:
    return read_at(script, image or page(), OpenAiEngine, **options)


def in_turn(*replies: Reply | Callable[[], Reply]) -> Script:
    """The last one for ever."""

    def script(number: int, _: Asked) -> Reply:
        reply = replies[min(number, len(replies)) - 1]
        return reply if isinstance(reply, Reply) else reply()

    return script


def test_a_page_becomes_markdown_and_tells_how_it_was_read() -> None:
    text, service, clock = read(in_turn(stream(["# Bis", "cuits\n\n", "2 cups\u2028flour"])), page(60, 40))
    assert text.error is None
    assert text.markdown == "# Biscuits\n\n2 cups\u2028flour"
    assert (text.width, text.height) == (60, 40)
    assert text.details is not None
    prompt = text.details.pop("prompt")
    assert prompt.startswith("any/markdown/")
    assert text.details == {
        "model": "tiny@abc",
        "revision": None,
        "prompt_tokens": 77,
        "tokens": 5,
        "stop": "end",
        "temperature": 0.0,
        "retries": 0,
        "resent": 0,
        "request": "req-1",
    }
    (asked,) = service.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    body = asked.json
    assert (body["model"], body["temperature"], body["stream"], body["max_tokens"]) == ("tiny", 0.0, True, 8192)
    image, prompt = body["messages"][0]["content"]
    assert "word for word" in prompt["text"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(asked.image), page(60, 40).pixels)
    assert clock.slept == []


def test_a_preset_decides_prompt_cap_size_and_parser() -> None:
    text, service, _ = read(
        in_turn(stream(["Total(100,200),(500,400)", "12.50(600,200),(900,400)"])),
        page(1000, 500),
        preset="hunyuan",
        task="spotting",
        model="tiny",
    )
    assert text.markdown is None
    assert [(line.text, line.polygon) for line in text.lines] == [
        ("Total", [(100, 100), (500, 100), (500, 200), (100, 200)]),
        ("12.50", [(600, 100), (900, 100), (900, 200), (600, 200)]),
    ]
    body = service.asked[0].json
    assert body["messages"][0] == {"role": "system", "content": ""}
    assert body["messages"][1]["content"][1]["text"] == "检测并识别图片中的文字，将文本坐标格式化输出。"
    assert (body["max_tokens"], body["repetition_penalty"]) == (16_384, 1.08)
    assert text.details
    assert text.details["prompt"].startswith("hunyuan/spotting/")


def test_pages_are_scaled_down_to_what_the_model_looks_at() -> None:
    _, service, _ = read(in_turn(stream(["x"])), page(2000, 1500), preset="paddleocr-vl", model="tiny")
    width, height = service.asked[0].image.size
    assert width * height <= 2_822_400
    assert width / height == pytest.approx(4 / 3, rel=0.01)


@pytest.mark.parametrize(
    "fault",
    [
        json_reply({"error": "slow down"}, 429, Retry_After="3"),
        Reply(status=500),
        Reply(status=503),
        Reply(cut=True),
        stream(["half a wo"], finish=None, cut=True),
        stream(["half a wo"], finish=None),
        Reply([b"data: {garb\n\n"], headers={"Content-Type": "text/event-stream"}),
        Reply([b"<html>oops</html>"], headers={"Content-Type": "application/json"}),
        Reply([event({"error": {"message": "engine died"}})], headers={"Content-Type": "text/event-stream"}),
        json_reply({"choices": "none"}),
        Reply([b"no gzip"], headers={"Content-Encoding": "gzip"}),
    ],
    ids=["429", "500", "503", "reset", "cut", "unfinished", "garbage", "html", "error", "odd", "gzip"],
)
def test_a_fault_that_passes_costs_a_second_request(fault: Reply) -> None:
    text, service, clock = read(in_turn(fault, stream(["all well"])))
    assert (text.error, text.markdown) == (None, "all well")
    assert text.details
    assert text.details["resent"] == 1
    assert len(service.asked) == 2
    assert len(clock.slept) == 1


def test_retry_after_is_honoured_in_seconds_and_as_a_date() -> None:
    busy = json_reply({}, 429, Retry_After="7")
    _, _, clock = read(in_turn(busy, stream(["x"])))
    assert 7 <= clock.slept[0] <= 7.7
    past = json_reply({}, 503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")
    _, _, clock = read(in_turn(past, stream(["x"])))
    assert clock.slept[0] <= 1
    with pytest.raises(TryAgain, match="429"):
        read(in_turn(json_reply({}, 429, Retry_After="4000")))  # longer than a page may take: not now


def test_waits_grow_and_end() -> None:
    with faulty_service(in_turn(json_reply({}, 429))) as service:
        clock = SetClock()
        reader = engine(service, clock)
        with pytest.raises(TryAgain, match=r"does not answer after 6 tries: 429"):
            reader.read([page()])
        reader.close()
    assert len(service.asked) == 6
    for number, slept in enumerate(clock.slept):
        assert 2**number / 2 <= slept <= 2**number


CHOKES = {
    "500": json_reply({"error": {"message": "CUDA error"}}, 500),
    "502": Reply(status=502),
    "503": Reply(status=503),
    "504": Reply(status=504),
    "reset": Reply(cut=True),
    "half": stream(["half a wo"], finish=None, cut=True),
}


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("fault", CHOKES)
def test_a_server_that_chokes_on_a_page_costs_that_page(fault: str, attempts: int) -> None:
    """That it isn't away shows a page of ours, which it is asked for before the last try."""
    text, service, _ = read(
        lambda _, asked: stream(["CONT"], finish="length") if asked.is_control else CHOKES[fault], attempts=attempts
    )
    assert text.error is not None
    tries = max(attempts, 2)
    assert f"in {tries} tries, while it reads others" in text.error
    assert [asked.is_control for asked in service.asked] == [False] * (tries - 1) + [True, False]
    assert service.asked[-2].json["max_tokens"] == 16


@pytest.mark.parametrize("fault", [*CHOKES.values(), stream([], finish=None, hang=True)], ids=[*CHOKES, "silent"])
def test_an_outage_is_no_document_s_fault_though_models_are_listed(fault: Reply) -> None:
    """A gateway answers for itself, whatever is behind it."""
    with pytest.raises(TryAgain, match=r"reads neither the page .* nor one of ours"):
        read(in_turn(fault), attempts=3, timeout=0.05)


def test_a_stream_that_ends_after_an_outage_began_says_nothing_of_it() -> None:
    """It was asked for before: what is asked now is not answered."""
    clock, failed, begun = SetClock(), threading.Event(), threading.Event()

    def old() -> Iterator[str]:
        begun.set()
        failed.wait(PATIENCE)
        yield "fine"

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        failed.set()
        assert other.result(PATIENCE).markdown == "fine"

    with (
        faulty_service(lambda number, _: stream(old()) if number == 1 else Reply(status=502)) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        reader = engine(service, clock, attempts=2)
        reader._service.clock = Clock(clock.now, sleep)
        other = pool.submit(lambda: reader.read([page(number=2)])[0])
        assert begun.wait(PATIENCE)
        with pytest.raises(TryAgain, match=r"reads neither the page .* nor one of ours"):
            reader.read([page()])
        reader.close()


def test_an_outage_that_ends_before_the_last_try_costs_nothing() -> None:
    text, service, _ = read(in_turn(Reply(status=502), Reply(status=502), stream(["fine"])), attempts=3)
    assert text.markdown == "fine"
    assert [asked.is_control for asked in service.asked] == [False, False, True, False]


@pytest.mark.parametrize("busy", [json_reply({}, 429), json_reply({}, 529), json_reply({}, 503, Retry_After="1")])
def test_a_server_that_is_busy_says_nothing_of_the_page(busy: Reply) -> None:
    with pytest.raises(TryAgain, match="does not answer after 3 tries"):
        read(lambda _, asked: stream(["fine"]) if asked.is_control else busy, attempts=3)


@pytest.mark.parametrize("seconds", [300, 599])
def test_a_page_whose_time_is_up_is_asked_for_once_more_where_others_are_read(seconds: float) -> None:
    """None of its tries may have fallen into a time in which the server was there."""
    clock = SetClock()

    def script(_: int, asked: Asked) -> Reply:
        if asked.is_control:
            return stream(["CONTROL"])
        clock.time += seconds - 0.01
        return Reply(cut=True)

    with faulty_service(script) as service:
        reader = engine(service, clock, page_deadline=seconds)
        (text,) = reader.read([page()])
        reader.close()
    assert "in 2 tries, while it reads others" in str(text.error)
    assert [asked.is_control for asked in service.asked[:2]] == [False, True]


def test_a_server_that_goes_silent_until_the_page_s_time_is_up_is_no_document_s_fault() -> None:
    clock = SetClock()

    def script(*_: Any) -> Reply:
        clock.time += 299.99
        return stream([], finish=None, hang=True)

    with faulty_service(script) as service:
        reader = engine(service, clock, timeout=0.05)
        with pytest.raises(TryAgain, match=r"reads neither the page .* nor one of ours"):
            reader.read([page()])
        reader.close()


def test_a_server_that_dies_half_way_is_no_document_s_fault() -> None:
    dead = False

    def script(number: int, _: Asked) -> Reply:
        nonlocal dead
        dead = number > 1
        return Reply(cut=True) if dead else stream(["fine"])

    with faulty_service(script, lambda: Reply(cut=True) if dead else json_reply({"data": [{"id": "tiny"}]})) as service:
        reader = engine(service, SetClock())
        assert reader.read([page()])[0].markdown == "fine"
        with pytest.raises(TryAgain, match=r"reads neither the page .* nor one of ours"):
            reader.read([page()])
        reader.close()


def test_nobody_there(caplog: pytest.LogCaptureFixture) -> None:
    clock = SetClock()
    says = r"is not ready after 120 s: .*is it running, and is that its address\?"
    with nobody() as service, pytest.raises(TryAgain, match=says):
        engine(service, clock)
    assert clock.time >= 1119
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [re.sub(r".*, for (\d+ s) by now and up to 120 s;.*", r"\1", line) for line in told] == [
        *("4 s", "34 s", "64 s", "94 s")
    ]
    assert told[0] == (
        f"waiting for the server at {service.url} ([Errno 111] Connection refused), for 4 s by now and up to 120 s; "
        "--engine-option ready=SECONDS"
    )


def test_a_server_that_is_still_loading_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    health = itertools.chain([Reply(status=503), Reply(cut=True)], itertools.repeat(None))
    clock = SetClock()
    with faulty_service(
        in_turn(stream(["x"])), lambda: next(health) or json_reply({"data": [{"id": "tiny"}]})
    ) as service:
        reader = engine(service, clock)
        assert reader.model == "tiny"
        reader.close()
    assert clock.slept == [1.0, 1.0]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "set OPENAI_API_KEY"), (403, "set OPENAI_API_KEY"), (404, "model"), (308, "another")]
)
def test_what_every_page_would_meet_ends_the_run(status: int, hint: str) -> None:
    echo = json_reply({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status)
    with pytest.raises(BadRequest, match=hint) as raised:
        read(in_turn(echo))
    assert KEY not in str(raised.value)
    assert raised.value.exit_code == 64


def test_a_page_that_is_refused_is_not_sent_again() -> None:
    text, service, _ = read(in_turn(json_reply({"error": {"message": f"image too large for {KEY}"}}, 413)))
    assert text.error is not None
    assert "413" in text.error
    assert "image too large" in text.error
    assert KEY not in text.error
    assert len(service.asked) == 1


def test_parameters_that_a_server_does_not_take_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def script(number: int, asked: Asked) -> Reply:
        odd = {"repetition_penalty", "stream_options"} & asked.json.keys()
        if odd:
            return json_reply({"detail": f"Unexpected fields in the request: {odd}"}, 422)
        return stream(["fine"])

    with faulty_service(script) as service:
        reader = engine(service, SetClock(), preset="hunyuan", model="tiny")
        assert reader.read([page()])[0].markdown == "fine"
        assert reader.read([page()])[0].markdown == "fine"
        reader.close()
    assert len(service.asked) == 3  # it learns once
    assert "takes no repetition_penalty, stream_options" in caplog.text


REFUSALS = {
    "openai": {"error": {"message": "Unsupported value.", "type": "invalid_request_error", "param": "temperature"}},
    "fastapi": {"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs are not permitted", "input": 0}]},
    "vllm": {
        "error": {
            "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'temperature'), 'msg': 'Extra inputs are not "
            "permitted', 'input': {'top_k': 5}}]"
        }
    },
    "plain": "temperature is not supported",
}


@pytest.mark.parametrize("server", REFUSALS)
def test_a_temperature_that_was_not_sent_is_not_in_the_record(server: str) -> None:
    def script(_: int, asked: Asked) -> Reply:
        assert "stream_options" in asked.json
        return json_reply(REFUSALS[server], 400) if "temperature" in asked.json else stream(["fine"])

    text, service, _ = read(script)
    assert text.markdown == "fine"
    assert len(service.asked) == 2
    assert text.details
    assert "temperature" not in text.details


@pytest.mark.parametrize(
    "refusal",
    [
        {"detail": [{"loc": ["body", "model"], "msg": "Field required", "input": {"temperature": 0, "top_k": 1}}]},
        {"error": {"message": "[{'loc': ('body', 'model'), 'msg': 'Field required', 'input': {'temperature': 0}}]"}},
        {"error": {"message": "image too large"}, "request": {"temperature": 0, "stream_options": {}}},
        {"error": {"message": "no_temperature_here"}},
    ],
)
def test_what_a_refusal_only_sends_back_is_not_left_out(refusal: dict[str, Any]) -> None:
    text, service, _ = read(in_turn(json_reply(refusal, 400), stream(["fine"])))
    assert text.error is not None
    assert "refuses the page: 400" in text.error
    assert len(service.asked) == 1


def test_the_cap_has_another_name_with_some_providers() -> None:
    def script(number: int, asked: Asked) -> Reply:
        if "max_tokens" in asked.json:
            said = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return json_reply({"error": {"message": said}}, 400)
        assert asked.json["max_completion_tokens"] == 8192
        return stream(["fine"])

    assert read(script)[0].markdown == "fine"


def test_a_server_that_does_not_stream() -> None:
    whole = {"model": "m", "choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}
    text, _, _ = read(in_turn(json_reply(whole)))
    assert text.markdown == "fine"


def test_a_loop_is_cut_early_and_the_page_tried_warmer() -> None:
    def script(number: int, _: Asked) -> Reply:
        return stream(itertools.repeat("la ")) if number == 1 else stream(["the song"])

    text, service, _ = read(script)
    assert (text.error, text.markdown) == (None, "the song")
    assert service.gone.wait(PATIENCE)  # we have left: the server may stop
    assert [asked.json["temperature"] for asked in service.asked] == [0.0, 0.3]
    assert text.details
    assert (text.details["retries"], text.details["temperature"], text.details["stop"]) == (1, 0.3, "end")


def test_a_page_that_always_loops_fails_and_keeps_what_was_read() -> None:
    text, service, _ = read(lambda *_: stream(itertools.chain(["Dear Sir, "], itertools.repeat("yes no "))), raw="yes")
    assert text.error is not None
    assert "repeats itself, in each of 3 attempts" in text.error
    assert "fallback=rapidocr" in text.error
    assert text.details
    assert text.details["text"].strip() == "Dear Sir, yes no"
    assert text.details["raw"].startswith("Dear Sir, yes no yes no ")
    assert len(service.asked) == 3


def test_a_fallback_that_was_asked_for_reads_what_the_model_can_not() -> None:
    text, _, _ = read(lambda *_: stream(itertools.repeat("la ")), fallback="tests.faults.engines:Colour")
    assert text.error is None
    assert text.markdown == "read 60x40\n"
    assert text.details
    assert text.details["fallback"] == {
        "engine": "tests.faults.engines:Colour",
        "model": "colour-test",
        "revision": "1",
    }
    assert "read by tests.faults.engines:Colour instead: the model repeats itself" in text.details["warnings"][0]


def test_a_fallback_reads_as_many_pages_at_a_time_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """One, though the engine before it reads eight; and it is built with what is left for it of a call."""
    built: list[EngineSettings] = []
    room: list[bool] = []

    class OneAtATime(Colour):
        def __init__(self, settings: EngineSettings) -> None:
            super().__init__(settings)
            built.append(settings)

        def read(self, pages: Sequence[PageImage]) -> list[PageText]:
            room.append(reader._fallback._turns.acquire(blocking=False))
            return super().read(pages)

    monkeypatch.setattr("tests.faults.engines.Colour", OneAtATime)
    with faulty_service(lambda *_: stream(["so far"], finish="content_filter")) as service:
        reader = engine(service, SetClock(), fallback="tests.faults.engines:Colour")
        texts = [reader.read([page()])[0] for _ in range(2)]
        reader.close()
    assert all(text.error is None for text in texts)
    assert room == [False, False]
    (settings,) = built
    assert (settings.timeout, settings.api_keys) == (300.0, dict.fromkeys(API_KEYS, KEY))


def test_a_text_without_end_is_stopped_at_the_cap() -> None:
    text, service, _ = read(
        lambda *_: stream(f"{number} " for number in itertools.count()), max_new_tokens=100
    )  # a server that knows no cap
    assert text.error is not None
    assert "does not end within 100 tokens" in text.error
    assert service.gone.wait(PATIENCE)
    capped, _, _ = read(lambda *_: stream(["so far"], finish="length"), max_new_tokens=100)
    assert capped.error is not None
    assert capped.details
    assert (capped.details["stop"], capped.details["text"]) == ("length", "so far")


@pytest.mark.parametrize("late", [0, 1000])
def test_a_text_that_has_ended_is_whole_though_the_server_holds_the_line(late: float) -> None:
    clock = SetClock()

    def ended() -> Iterator[bytes]:
        yield event({"choices": [{"index": 0, "delta": {"content": "fine"}, "finish_reason": "stop"}]})
        clock.time += late

    held = Reply(ended(), headers={"Content-Type": "text/event-stream"}, hang=True)
    with faulty_service(lambda *_: held) as service:
        reader = engine(service, clock, timeout=1.5)  # longer than the text takes, even if the server is slow
        (text,) = reader.read([page()])
        reader.close()
    assert (text.error, text.markdown) == (None, "fine")
    assert len(service.asked) == 1


def test_a_page_has_a_deadline() -> None:
    clock = SetClock()

    def dripping() -> Iterator[str]:
        while True:
            clock.time += 100
            yield "drop"

    with faulty_service(lambda *_: stream(f"{text} {n}, " for n, text in enumerate(dripping()))) as service:
        reader = engine(service, clock)
        (text,) = reader.read([page()])
        reader.close()
    assert text.error is not None
    assert "was not done within 300 s" in text.error
    assert len(service.asked) == 1
    assert text.details
    assert text.details["text"].startswith("drop 0, ")


def test_a_page_s_deadline_is_for_all_attempts_at_it() -> None:
    """And it is the page's: that no time is left to ask again doesn't end the run."""
    clock = SetClock()

    def script(number: int, _: Asked) -> Reply:
        clock.time += 301
        return stream(["half"], finish="length")

    with faulty_service(script) as service:
        reader = engine(service, clock)
        (text,) = reader.read([page()])
        reader.close()
    assert text.error is not None
    assert "was not done within 300 s" in text.error
    assert len(service.asked) == 1


def test_halves_of_characters_are_put_together_or_replaced() -> None:
    halves = [rb'data: {"choices": [{"delta": {"content": "%s"}}]}' % half for half in (rb"\ud83d", rb"\ude00 \ud83d")]
    end = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}'
    reply = Reply([b"\n\n".join([*halves, end, b""])], headers={"Content-Type": "text/event-stream"})
    text, _, _ = read(lambda *_: reply, raw="yes")
    assert text.markdown == "😀 \ufffd"
    assert text.details
    assert text.details["raw"] == "😀 \ufffd"


def test_what_the_server_ends_by_itself_fails() -> None:
    text, _, _ = read(in_turn(stream(["so"], finish="content_filter")))
    assert text.error == "the server ended the text: content_filter"


def test_a_page_that_no_processor_takes_is_not_sent() -> None:
    text, service, _ = read(in_turn(stream(["x"])), page(4000, 10), preset="hunyuan", model="tiny")
    assert text.error is not None
    assert "4000x10 is too long and narrow" in text.error
    assert service.asked == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": ""}, "needs the server's address"),
        ({"base_url": "localhost:8000"}, "must be the address of a server"),
        ({"base_url": f"http://user:{KEY}@localhost/v1"}, "a key goes into the environment"),
        ({"api_key": KEY}, "looks like a secret"),
        ({"preset": "nobody"}, "must be one of hunyuan"),
        ({"preset": "hunyuan", "task": "sing"}, "must be one of markdown, text, spotting"),
        ({"fallback": "nobody"}, "unknown engine 'nobody'"),
        ({"fallback": "openai"}, "fallback=openai: that engine needs options of its own"),
        ({"fallback": "vllm"}, "fallback=vllm: that engine needs options of its own"),
        ({"fallback": "upstage"}, "fallback=upstage: that engine needs options of its own"),
        ({"page_deadline": "600"}, "page_deadline is '600'; it must be less than the 600 s of `engine_timeout`"),
        ({"concurrency": "0"}, "a number of at least 1"),
        ({"colour": "red"}, "has no option 'colour'; it has: attempts, base_url"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, str], says: str) -> None:
    with pytest.raises(BadRequest, match=says) as raised:
        OpenAiEngine(EngineSettings(1, options={"base_url": "http://127.0.0.1:1/v1", **options}))
    assert KEY not in str(raised.value)


def test_which_model() -> None:
    for held, options, model in [
        (["a", "tencent/HunyuanOCR"], {"preset": "hunyuan"}, "tencent/HunyuanOCR"),
        (["a", "b"], {"model": "c"}, "c"),
        (["a"], {"preset": "hunyuan"}, "a"),
    ]:
        listed = {"data": [{"id": name} for name in held]}
        with faulty_service(in_turn(NOTHING), lambda listed=listed: json_reply(listed)) as service:
            reader = engine(service, SetClock(), **options)
            assert reader.model == model
            reader.close()
    with (
        faulty_service(in_turn(NOTHING), lambda: json_reply({"data": [{"id": "a"}, {"id": "b"}]})) as service,
        pytest.raises(BadRequest, match=r"say which model to use, .*it has a, b"),
    ):
        engine(service, SetClock())


def test_the_key_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = json_reply({"error": f"busy, {KEY}"}, 429, Retry_After="1")
    text, _, _ = read(in_turn(echo, stream(["x"])))
    assert "busy, …" in caplog.text
    assert KEY not in caplog.text
    assert KEY not in repr(text)
    assert KEY not in repr(EngineSettings(1, api_keys={"OPENAI_API_KEY": KEY}))
