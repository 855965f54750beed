"""What services that read pages have in common: how fast they are asked, and how long they want to be left alone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.faults.services import Reply, SetClock, faulty_service
from worker.engines.options import Taker, refuse_secrets
from worker.errors import BadRequest
from worker.remote import Clock, RateLimit, Service, seconds_to_wait

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("7", 7),
        ("1.5", 1.5),
        ("-3", 0),
        ("Tue, 24 Nov 2026 12:00:30 GMT", 30),
        ("Tue, 24 Nov 2026 14:00:30 +0200", 30),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("inf", None),
        ("nan", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert seconds_to_wait(header, NOW) == seconds


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    clock = SetClock()
    limit = RateLimit(4, burst=2, clock=Clock(clock.now, clock.sleep))
    for _ in range(6):
        limit.wait()
    assert clock.slept == pytest.approx([0.25] * 4)
    clock.time += 60  # what is not used is not saved up beyond the burst
    for _ in range(3):
        limit.wait()
    assert clock.slept == pytest.approx([0.25] * 5)


def test_options_are_taken_by_type() -> None:
    taker = Taker("x", {"a": "text", "b": "2.5", "c": 3, "d": "yes", "e": False, "f": ""})
    assert taker.text("a") == "text"
    assert taker.number("b", 1.0) == 2.5
    assert taker.integer("c", 1) == 3
    assert taker.flag("d")
    assert not taker.flag("e")
    assert not taker.flag("missing")
    assert taker.integer("absent", 7) == 7
    with pytest.raises(BadRequest, match=r"engine x has no option 'f'; it has: a, absent, b, c, d, e, missing"):
        taker.done()
    for name, value in [("integer", "2.5"), ("integer", "two"), ("number", "nan"), ("flag", "maybe")]:
        wrong = Taker("x", {"o": value})
        with pytest.raises(BadRequest, match="engine x: option o is"):
            wrong.flag("o") if name == "flag" else getattr(wrong, name)("o", 1)


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "API_KEY", "apikey", "api-key", "openai_apikey", "x-key", "key", "token", "hf_token", "password"),
        *("passwd", "client_secret", "secrets", "Authorization", "credential", "credentials"),
    ],
)
def test_secrets_are_no_options(name: str) -> None:
    with pytest.raises(BadRequest, match="looks like a secret") as raised:
        refuse_secrets({"max_new_tokens": 5, name: "sk-123"})
    assert "sk-123" not in str(raised.value)


def test_a_service_tells_its_key_to_nobody() -> None:
    service = Service("it", "http://127.0.0.1:1/v1", key="sk-123")
    assert "sk-123" not in repr(service)
    assert service.told(ValueError("bad key sk-123")) == "bad key …"
    service.close()


@pytest.mark.parametrize("key", ["sk-123\n", "sk 123", "sk-123\r\nX: y", "sk-é", "sk\u200b123"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_told(key: str) -> None:
    with pytest.raises(BadRequest, match=r"the key of it holds a space or another sign .*: see KEY") as raised:
        Service("it", "http://127.0.0.1:1/v1", key=key, key_from="KEY")
    assert key not in str(raised.value)


def test_a_request_that_can_not_be_sent_is_not_tried_again() -> None:
    clock = SetClock()
    service = Service("it", "http://127.0.0.1:1/v1", key="sk-123", clock=Clock(clock.now, clock.sleep))

    with (
        faulty_service(lambda *_: Reply()) as server,
        pytest.raises(BadRequest, match="can't be asked: Illegal header value") as raised,
    ):
        service.ask(lambda _: service.http.get(server.url, headers={"X": "sk-123\n"}), service.until(), lambda: True)
    service.close()
    assert "sk-123" not in str(raised.value)
    assert clock.slept == []


@pytest.mark.parametrize(
    "address", ["https://user:sk-123@host/v1", "https://sk-123@host", "https://host/v1?key=sk-123"]
)
def test_addresses_with_secrets_in_them_are_no_options(address: str) -> None:
    with pytest.raises(BadRequest, match="'base_url' must be an address alone") as raised:
        refuse_secrets({"base_url": address})
    assert "sk-123" not in str(raised.value)


def test_what_is_no_secret() -> None:
    refuse_secrets(
        {
            "base_url": "http://127.0.0.1:8000/v1",
            "max_new_tokens": 5,
            "tokens": "9",
            "monkey": "x",
            "model": "s3://bucket/models/mine",
            "prompt": "What? Who's a@b.c? See http://x/?y",
            "server_args": "--chat-template http://[x",
        }
    )


def test_where_a_secret_lies_is_none() -> None:
    refuse_secrets({"key_secret": "arn:aws:secretsmanager:us-east-1:1:secret:x", "max_new_tokens": "9"})
