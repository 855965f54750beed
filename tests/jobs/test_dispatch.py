"""The form of a workflow: what was typed becomes the arguments of one command, or a list of what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.dispatch import Form, parse_keys, parse_minutes
from jobs.errors import UsageError


def arguments(tmp_path: Path, **fields: str) -> list[str]:
    (tmp_path / "repository/lists").mkdir(parents=True, exist_ok=True)
    (tmp_path / "repository/lists/keys.txt").write_text("a.png\n")
    (tmp_path / "secret").write_text("key")
    (tmp_path / "repository/link").unlink(missing_ok=True)
    (tmp_path / "repository/link").symlink_to(tmp_path / "secret")
    return Form(**{"stack": "dev"} | fields).arguments(tmp_path / "repository", tmp_path)


def test_fields_become_arguments(tmp_path: Path) -> None:
    given = arguments(
        tmp_path, keys=" a.png\n\nb c.png \n", engine=" rapidocr", shards="3", options="--dpi=300 --keep-furniture"
    )
    file = str(tmp_path / "keys.txt")
    assert given == [
        *("--stack", "dev", "--keys-file", file, "--engine=rapidocr", "--shards", "3", "--dpi=300", "--keep-furniture")
    ]
    assert Path(file).read_text() == " a.png\nb c.png \n"  # nothing is trimmed: a key may begin with a space


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"prefix": "s3://inputs/scans/"}, "--prefix=s3://inputs/scans/"),
        ({"dataset": "sets/train.parquet", "options": "--image-column scan"}, "--dataset=sets/train.parquet"),
        ({"prefix": "--out=x"}, "--prefix=--out=x"),
    ],
)
def test_other_sources(tmp_path: Path, fields: dict[str, str], wanted: str) -> None:
    assert wanted in arguments(tmp_path, **fields)


def test_a_file_of_the_repository(tmp_path: Path) -> None:
    path = str((tmp_path / "repository/lists/keys.txt").resolve())
    assert arguments(tmp_path, keys_file="lists/keys.txt")[2:] == ["--keys-file", path]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "nothing to read"),
        ({"keys": "[]"}, "keys: the list is empty"),
        ({"keys": '["a", 3]'}, "the JSON list holds something that is no key"),
        ({"keys": '["a\\n::stop-commands::x"]'}, "has control characters"),
        ({"keys": "a\r::error::x\nb"}, "has control characters"),
        ({"keys": "a", "prefix": "b/"}, "keys and prefix are filled in: choose one"),
        ({"prefix": "s3://b/\n::stop-commands::x"}, "is no name of anything in S3"),
        ({"keys_file": "../secret"}, "is not inside the repository"),
        ({"keys_file": "link"}, "is not inside the repository"),
        ({"keys_file": ".git/config"}, "is not inside the repository"),
        ({"keys_file": "/proc/self/environ"}, "is not inside the repository"),
        ({"keys_file": "none.txt"}, "the repository has no file 'none.txt'"),
        ({"keys": "a", "shards": "0"}, "shards: '0' is no number"),
        ({"keys": "a", "stack": "dev --out x"}, "is no stack's name"),
        ({"keys": "a", "stack": "dev-eu"}, "is no stack's name"),
        ({"keys": "a", "options": "--keys-file /etc/passwd"}, "'--keys-file' is none of"),
        ({"keys": "a", "engine": "x\n::error::y"}, "is no engine's name"),
        ({"keys": "a", "options": "more.png"}, "'more.png' is none of"),
        ({"keys": "a", "options": "--dpi"}, "--dpi needs a value"),
        ({"keys": "a", "options": "--lang 'ko"}, "No closing quotation"),
        ({"keys": "a", "options": "--lang 'k\no'"}, "the value of --lang has control characters"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, fields: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match="the form cannot be submitted") as raised:
        arguments(tmp_path, **fields)
    assert said in str(raised.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        arguments(tmp_path, stack="Dev", shards="x", options="--out y")
    for field in ("stack:", "nothing to read", "shards:", "options:"):
        assert field in str(raised.value)


def test_keys_in_the_one_line_of_a_web_form() -> None:
    assert parse_keys('["a.png", "b \\"c\\".png"]') == ["a.png", 'b "c".png']
    assert parse_keys("[x] (copy)/a.png") == ["[x] (copy)/a.png"]
    assert parse_keys("a.png\r\nb.png") == ["a.png", "b.png"]


@pytest.mark.parametrize("text", ["", "-1", "331", "1e2", "an hour", "٣"])
def test_minutes_that_nobody_can_wait(text: str) -> None:
    with pytest.raises(UsageError, match="is no number from 0 to 330"):
        parse_minutes(text)
