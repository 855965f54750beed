"""Local and S3 storage behave alike, and say in the same words what went wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.faults.proxy import faulty_proxy
from worker.errors import BadRequest
from worker.storage import (
    ATTEMPTS,
    AccessDenied,
    LocalStorage,
    NotFound,
    S3Storage,
    StorageFull,
    Unavailable,
    open_storage,
    path_uri,
    split_s3,
    to_uri,
    uri_path,
)

NAMES = ["plain.png", "with space.png", "a+b,c.png", "per%2Fcent.png", "hash#1?.png", "한국어/영수증.png", "ünï.png"]


@pytest.fixture(params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty place of either kind."""
    if request.param == "local":
        return path_uri(tmp_path / "place")
    request.getfixturevalue("s3")
    return "s3://outputs/place"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read(base: str, name: str, tmp_path: Path) -> None:
    storage = open_storage()
    uri = path_uri(uri_path(base) / name) if base.startswith("file") else f"{base}/{name}"
    storage.write(uri, b"first")
    storage.write(uri, b"second")
    assert storage.exists(uri)
    assert storage.read(uri) == b"second"
    assert [(entry.uri, entry.size) for entry in storage.list(base + "/")] == [(uri, 6)]
    fetched = storage.fetch(uri, tmp_path)
    assert (fetched.path.read_bytes(), fetched.size) == (b"second", 6)
    assert fetched.etag
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    assert list(storage.list(base + "/")) == []


def test_of_two_who_create_one_wins(base: str) -> None:
    storage = open_storage()
    assert storage.create(f"{base}/claims/1", b"mine")
    assert not storage.create(f"{base}/claims/1", b"theirs")
    assert storage.read(f"{base}/claims/1") == b"mine"
    assert [entry.uri for entry in storage.list(f"{base}/")] == [f"{base}/claims/1"]


def test_a_creation_whose_answer_was_lost_is_known_again(s3: Any) -> None:
    storage = open_storage()
    storage.write("s3://outputs/claim", b"mine")  # as if the answer to the first request had been lost
    assert storage.create("s3://outputs/claim", b"mine")


def test_two_requests_at_once_are_told_apart_by_asking_again(s3: Any) -> None:
    from botocore.exceptions import ClientError

    class Busy:
        answers = iter(["ConditionalRequestConflict", "PreconditionFailed"])

        def put_object(self, **_: Any) -> None:
            raise ClientError({"Error": {"Code": next(self.answers)}}, "PutObject")

        def get_object(self, **asked: Any) -> Any:
            return s3.get_object(**asked)

    slept: list[float] = []
    s3.put_object(Bucket="outputs", Key="claim", Body=b"theirs")
    assert not S3Storage(Busy(), slept.append).create("s3://outputs/claim", b"mine")  # type: ignore[arg-type]
    assert len(slept) == 1


def test_upload(base: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    open_storage().upload(f"{base}/a/b", tmp_path / "file")
    assert open_storage().read(f"{base}/a/b") == b"x" * 10_000


def test_missing(base: str, tmp_path: Path) -> None:
    storage = open_storage()
    for call in (storage.read, lambda uri: storage.fetch(uri, tmp_path)):
        with pytest.raises(NotFound, match=r"place/gone\.png does not exist"):
            call(f"{base}/gone.png")
    assert list(storage.list(f"{base}/gone/")) == []
    assert not list(tmp_path.glob("tmp*"))  # no half download stays


def test_missing_bucket(s3: Any) -> None:
    with pytest.raises(NotFound, match="there is no bucket no-such-bucket-here"):
        open_storage().read("s3://no-such-bucket-here/key")


def test_lists_more_than_one_page(s3: Any) -> None:
    from moto.s3.models import s3_backends

    keys = [f"many/{number:04d}" for number in range(1005)]
    for key in [*keys, "many/folder/"]:
        s3_backends["123456789012"]["aws"].put_object("inputs", key, b"")  # a thousand requests would take seconds
    assert [split_s3(entry.uri)[1] for entry in open_storage().list("s3://inputs/many/")] == keys


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = path_uri(tmp_path / "a")
    LocalStorage().write(uri, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        LocalStorage().write(uri, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert LocalStorage().read(uri) == b"old"


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageFull, match=r"no space left for .*/a: free some, then resume the run"):
        LocalStorage().write(path_uri(tmp_path / "a"), b"x")


def test_what_is_not_a_file_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "fifo")
    for name in ("folder", "loop", "x" * 300, "folder/../folder", "fifo"):
        with pytest.raises(NotFound):
            LocalStorage().fetch(path_uri(tmp_path) + "/" + name, tmp_path)


def test_listing_follows_links_but_not_for_ever(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder/nowhere").symlink_to(tmp_path / "gone")
    found = [uri_path(entry.uri).relative_to(tmp_path) for entry in LocalStorage().list(path_uri(tmp_path))]
    assert list(map(str, found)) == ["a", "elsewhere/b", "fifo", "folder/link/b", "folder/nowhere"]


def test_a_place_that_cannot_be_written_to_is_told() -> None:
    with pytest.raises(BadRequest, match="/proc/here cannot be written to"):
        LocalStorage().write("file:///proc/here/run.json", b"")


def test_uris_of_what_a_person_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert to_uri("s3://bucket/a b+%2F#?.png") == "s3://bucket/a b+%2F#?.png"
    assert uri_path(to_uri("a b#?%2F.png")) == tmp_path / "a b#?%2F.png"
    assert to_uri("folder/") == path_uri(tmp_path / "folder") + "/"
    assert to_uri("file:///tmp/a b.png") == "file:///tmp/a%20b.png"
    odd = os.fsdecode(b"/tmp/\xff\xfe.png")
    assert str(uri_path(to_uri(odd))) == odd
    for wrong in ("s3://", "https://example.org/a.png", "gs://b/k"):
        with pytest.raises(BadRequest, match=wrong):
            to_uri(wrong)
    with pytest.raises(BadRequest, match="is empty"):
        to_uri("")
    with pytest.raises(BadRequest):
        open_storage().read("ftp://a/b")


class TestThrottled:
    """Behind a proxy that fails now and then, as S3 does."""

    @pytest.fixture(autouse=True)
    def prepared(self, s3: Any) -> None:
        s3.put_object(Bucket="inputs", Key="a.bin", Body=b"x" * 100_000)

    @pytest.mark.parametrize("wrong", ["slow_down", "error", "reset", "cut"])
    def test_a_passing_fault_is_ridden_out(
        self, s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
    ) -> None:
        _no_waiting(monkeypatch)
        with faulty_proxy(s3_server, lambda number, *_: wrong if number in (1, 2, 4, 6) else None) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
            storage = S3Storage(sleep=lambda _: None)
            assert storage.read("s3://inputs/a.bin") == b"x" * 100_000
            assert storage.fetch("s3://inputs/a.bin", tmp_path).size == 100_000
            storage.write("s3://outputs/b.bin", b"y")
            assert storage.exists("s3://outputs/b.bin")

    @pytest.mark.parametrize("wrong", ["slow_down", "reset", "cut"])
    def test_a_lasting_one_is_told(
        self, s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
    ) -> None:
        _no_waiting(monkeypatch)
        with faulty_proxy(s3_server, lambda *_: wrong) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
            with pytest.raises(Unavailable, match=r"a\.bin"):
                S3Storage(sleep=lambda _: None).fetch("s3://inputs/a.bin", tmp_path)

    @pytest.mark.parametrize(("wrong", "said"), [("slow_down", "AWS throttles requests for"), ("error", "answers 500")])
    def test_whether_a_key_exists_is_not_asked_for_twice_as_long(
        self, s3_server: str, monkeypatch: pytest.MonkeyPatch, wrong: str, said: str
    ) -> None:
        _no_waiting(monkeypatch)
        asked: list[str] = []

        def fault(number: int, method: str, path: str) -> str:
            asked.append(method)
            return wrong

        with faulty_proxy(s3_server, fault) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
            with pytest.raises(Unavailable, match=said):
                S3Storage(sleep=lambda _: None).exists("s3://inputs/a.bin")
        assert asked == ["HEAD"] * ATTEMPTS

    def test_a_denied_key_is_that_keys_fault(self, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with faulty_proxy(s3_server, lambda *_: "denied") as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
            with pytest.raises(AccessDenied, match="missing keys too"):
                S3Storage().read("s3://inputs/a.bin")

    def test_an_endpoint_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _no_waiting(monkeypatch)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(Unavailable, match="cannot be reached"):
            S3Storage(sleep=lambda _: None).read("s3://inputs/a.bin")


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(BadRequest, match="AWS_PROFILE"):
        S3Storage().read("s3://inputs/a.bin")


def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore's own backoff, without the waiting."""
    import botocore.retries.standard

    monkeypatch.setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *_: 0)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "NoSuchKey", NotFound),
        (403, "AccessDenied", AccessDenied),
        (403, "InvalidObjectState", AccessDenied),
        (400, "KMS.DisabledException", AccessDenied),
        (400, "InvalidRequest", AccessDenied),
        (400, "XMinioInvalidObjectName", NotFound),
        (403, "RequestTimeTooSkewed", BadRequest),
        (403, "InvalidAccessKeyId", BadRequest),
        (400, "ExpiredToken", Unavailable),
        (429, "TooManyRequests", Unavailable),
        (503, "SlowDown", Unavailable),
        (500, "InternalError", Unavailable),
    ],
)
def test_what_an_error_of_s3_means(status: int, code: str, expected: type[Exception]) -> None:
    from botocore.exceptions import ClientError

    class Refusing:
        def get_object(self, **_: str) -> None:
            response = {"Error": {"Code": code, "Message": "so"}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(response, "GetObject")  # type: ignore[arg-type]

    with pytest.raises(expected, match=r"s3://inputs/a\.bin|credentials"):
        S3Storage(Refusing()).read("s3://inputs/a.bin")  # type: ignore[arg-type]
