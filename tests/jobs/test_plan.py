"""What inputs stand for, what documents are called, and how tasks are dealt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import UsageError
from jobs.plan import Plan, Sharding, describe_run, find_inputs, lies_apart, make_plan, new_run_id, read_keys_file
from tests.conftest import draw
from worker.contract import FailureCode, Options, Task
from worker.errors import BadRequest, DocumentError
from worker.storage import open_storage, path_uri, uri_path


def plan(*uris: str, **sharding: Any) -> Plan:
    return make_plan(uris, Sharding(**sharding))


def names(*uris: str) -> list[str]:
    return [task[1] for task in plan(*uris).tasks]


def test_inputs_that_hold_none_of_a_runs_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = describe_run(
        plan(path_uri(Path("in/x/a.png")), path_uri(Path("in/x/b.png"))), "one", "rapidocr", Options(), {}
    )
    for location in ("in", "in/", ".", "in/x/*.png", "*/x/a.png", "in/x/a.png", str(tmp_path), "../*"):
        assert not lies_apart(run, location), location
    for location in ("out", "in/y", "in/y/*.png", "in/x2", "in/x2/*.png", "i", "s3://in/x/", "/nowhere"):
        assert lies_apart(run, location), location
    run = describe_run(plan("s3://inputs/scans/a.png"), "one", "rapidocr", Options(), {})
    for key in ("", "/", "/*/a.png", "/sc", "/scans", "/scans/", "/scans/*", "/scans/a.png", "/scans/b"):
        assert not lies_apart(run, f"s3://inputs{key}"), key
    for uri in ("s3://inputs2/", "s3://inputs2/scans/", "s3://input", "s3://inputs/sc/", "s3://inputs/scans2/a.png"):
        assert lies_apart(run, uri), uri
    mixed = describe_run(plan("s3://one/a.png", "file:///tmp/a.png"), "one", "rapidocr", Options(), {})
    assert not lies_apart(mixed, "s3://two/")


class TestNames:
    def test_are_keys_below_the_common_root(self) -> None:
        assert names("s3://b/scans/2024/a.png", "s3://b/scans/b.pdf") == ["2024/a.png", "b.pdf"]
        assert plan("s3://b/scans/2024/a.png", "s3://b/scans/b.pdf").root == "s3://b/scans"
        assert names("s3://b/scans/only.png") == ["only.png"]
        assert names("file:///tmp/in/a%20b.png", "file:///tmp/in/c/d.png") == ["a b.png", "c/d.png"]

    def test_of_several_buckets_begin_with_the_bucket(self) -> None:
        assert names("s3://one/a.png", "s3://two/a.png") == ["one/a.png", "two/a.png"]
        assert names("s3://one/a.png", "file:///tmp/a.png") == ["s3/one/a.png", "file/_/tmp/a.png"]

    def test_keep_the_extension_so_that_stems_may_repeat(self) -> None:
        assert names("s3://b/a.pdf", "s3://b/a.png", "s3://b/a") == ["a.pdf", "a.png", "a"]

    @pytest.mark.parametrize(
        ("key", "name"),
        [
            ("a,b c+d.png", "a,b c+d.png"),
            ("a%2Fb.png", "a%2Fb.png"),
            ("#1?.png", "#1?.png"),
            ("영수증 1.png", "영수증 1.png"),
            ("../../etc/passwd", "_%2E%2E/_%2E%2E/etc/passwd"),
            ("./a.png", "_%2E/a.png"),
            ("/lead.png", "_/lead.png"),
            ("a//b.png", "a/_/b.png"),
            ("tab\there\n.png", "tab%09here%0A.png"),
            ("back\\slash.png", "back%5Cslash.png"),
            ("a.json/b.png", "a.json_/b.png"),
            ("a.JSON/b.png", "a.JSON_/b.png"),
            ("x" * 300 + ".png", "x" * 187 + "~"),
        ],
    )
    def test_of_awkward_keys_stay_inside_the_run(self, key: str, name: str) -> None:
        given = names("s3://b/" + key, "s3://b/anchor.png")[0]
        assert given.startswith(name)
        assert len(given.encode()) < 255
        Task(uri="s3://b/x", name=given)  # the contract refuses what would lead out of the run's folder

    def test_of_very_long_keys_are_cut_and_stay_apart(self) -> None:
        folder = "/".join(["x" * 90] * 10)
        given = names(f"s3://b/{folder}/a.png", f"s3://b/{folder}y/a.png", "s3://b/anchor.png")
        assert len(set(given)) == 3
        assert all(len(name.encode()) <= 900 for name in given)
        assert all(name.endswith("/a.png") for name in given[:2])

    def test_that_would_collide_are_told_apart_always_in_the_same_way(self) -> None:
        uris = ("s3://b/A.png", "s3://b/a.png", "s3://b/ü.png", "s3://b/u\u0308.png", "s3://b//c.png", "s3://b/_/c.png")
        given = names(*uris)
        assert len({name.casefold() for name in given}) == 6
        assert given[0] == "A.png"
        assert given[1].startswith("a~")
        assert given[1].endswith(".png")
        assert given == names(*uris)

    def test_never_make_a_result_stand_where_a_folder_must(self) -> None:
        given = names("s3://b/a", "s3://b/a.json/b", "s3://b/a.md/b")
        assert not {f"{given[0]}.json", f"{given[0]}.md"} & {name.partition("/")[0] for name in given[1:]}

    def test_of_files_whose_names_are_not_utf8(self) -> None:
        assert plan("file:///tmp/%FF/a.png", "file:///tmp/%FF/b.png").root == "file:///tmp/%FF"
        assert names("file:///tmp/%FF.png", "file:///tmp/a.png") == ["%FF.png", "a.png"]


class TestInputs:
    def find(self, *inputs: str, **more: Any) -> tuple[list[str], list[str]]:
        warnings: list[str] = []
        found = list(find_inputs(open_storage(), inputs, warnings=warnings, **more))
        return [uri_path(uri).name if uri.startswith("file") else uri for uri in found], warnings

    def test_a_folder_is_searched_for_documents(self, tmp_path: Path) -> None:
        for name in ("b.PDF", "a.heic", "deep/c.tiff", "noext", "notes.txt", ".hidden.png", ".git/d.png"):
            draw(tmp_path / "x.png").rename(_made(tmp_path / "in" / name))
        found, warnings = self.find(str(tmp_path / "in"))
        assert found == ["a.heic", "b.PDF", "c.tiff", "noext"]
        assert any("1 .txt" in warning for warning in warnings)
        assert any("2 hidden files" in warning for warning in warnings)

    def test_the_runs_own_folder_is_left_out(self, tmp_path: Path) -> None:
        draw(tmp_path / "a.png")
        draw(tmp_path / "out/documents/b.png")
        assert self.find(str(tmp_path), leave_out=path_uri(tmp_path / "out"))[0] == ["a.png"]

    def test_files_are_taken_whatever_their_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("x")
        assert self.find(str(tmp_path / "a.txt"))[0] == ["a.txt"]

    def test_globs(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png", "deep/c.png", "d.pdf"):
            draw(tmp_path / "x.png").rename(_made(tmp_path / name))
        assert self.find(f"{tmp_path}/*.png")[0] == ["a.png", "b.png"]
        assert self.find(f"{tmp_path}/**/*.png")[0] == ["a.png", "b.png", "c.png"]
        draw(tmp_path / "w[1].png")
        assert self.find(f"{tmp_path}/w[1].png")[0] == ["w[1].png"]

    def test_what_is_not_there_is_told_at_once(self, tmp_path: Path) -> None:
        for missing in ("gone.png", "*.gone", "gone" * 100):
            with pytest.raises(UsageError, match="gone"):
                self.find(str(tmp_path / missing))

    def test_s3_keys_prefixes_and_globs(self, s3: Any) -> None:
        for key in ("scans/a.png", "scans/b/c.pdf", "scans/notes.txt", "scansional/d.png", "scans/w*.png", "one.png"):
            s3.put_object(Bucket="inputs", Key=key, Body=b"x")
        everything = ["s3://inputs/scans/a.png", "s3://inputs/scans/b/c.pdf", "s3://inputs/scans/w*.png"]
        assert self.find("s3://inputs/scans/")[0] == everything
        assert self.find("s3://inputs/scans")[0] == everything
        assert self.find("s3://inputs/one.png")[0] == ["s3://inputs/one.png"]
        assert self.find("s3://inputs/scans/w*.png")[0] == ["s3://inputs/scans/w*.png"]
        assert self.find("s3://inputs/scan*/?.png")[0] == ["s3://inputs/scans/a.png", "s3://inputs/scansional/d.png"]
        assert self.find("s3://inputs/gone.png")[0] == ["s3://inputs/gone.png"]  # fails when it is read
        assert len(self.find("s3://inputs")[0]) == 5


class TestKeysFile:
    def test_lines_are_taken_as_they_are(self, tmp_path: Path) -> None:
        lines = "\ufeffs3://b/a b.png\r\n\n  \ns3://b/trailing \ns3://b/한국어+%2F#.png\ns3://b/a b.png"
        (tmp_path / "keys").write_bytes(lines.encode())
        keys = list(read_keys_file(str(tmp_path / "keys")))
        assert keys == ["s3://b/a b.png", "s3://b/trailing ", "s3://b/한국어+%2F#.png", "s3://b/a b.png"]
        made = plan(*keys)
        assert made.documents == 3
        assert made.warnings == ["1 duplicate input: each document is read once"]

    def test_what_cannot_be_read_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot read the key list"):
            list(read_keys_file(str(tmp_path / "gone")))
        (tmp_path / "keys").write_bytes(b"s3://b/\xff.png\n")
        with pytest.raises(UsageError, match="not UTF-8"):
            list(read_keys_file(str(tmp_path / "keys")))
        (tmp_path / "keys").write_bytes(b"https://example.org/a.png\n")
        with pytest.raises(BadRequest, match="https:// is not supported"):
            list(read_keys_file(str(tmp_path / "keys")))
        with pytest.raises(UsageError, match="nothing to read"):
            plan()


class TestSharding:
    def test_every_task_is_in_exactly_one_shard(self) -> None:
        uris = [f"s3://b/{number}.png" for number in range(103)]
        made = plan(*uris, shards=10)
        shards = list(made.by_shard())
        assert sorted(task.uri for tasks in shards for task in tasks) == sorted(uris)
        sizes = list(map(len, shards))
        assert (made.shards, max(sizes) - min(sizes)) == (10, 1)

    def test_there_are_no_empty_shards_and_not_too_many(self) -> None:
        assert plan("s3://b/a.png", "s3://b/b.png", shards=10).shards == 2
        assert plan(*(f"s3://b/{number}" for number in range(2500))).shards == 3
        assert plan(*(f"s3://b/{number}" for number in range(12_000)), shards=20_000).shards == 10_000

    def test_long_documents_are_cut(self) -> None:
        lengths = {"s3://b/long.pdf": 7, "s3://b/short.pdf": 3}
        made = make_plan(lengths, Sharding(pages_per_task=3), count_pages=lengths.__getitem__)
        assert [(task[1], task[2], task[3], task[4]) for task in made.tasks] == [
            ("long.pdf", "1-3", 1, 3),
            ("long.pdf", "4-6", 2, 3),
            ("long.pdf", "7", 3, 3),
            ("short.pdf", None, None, None),
        ]
        assert made.documents == 2
        (shard,) = made.by_shard()
        assert len({task.key for task in shard}) == 4

    def test_selected_pages_are_cut_too(self) -> None:
        made = make_plan(["s3://b/a.pdf"], Sharding(pages="1-2,5-9", pages_per_task=3), count_pages=lambda _: 7)
        assert [task[2] for task in made.tasks] == ["1-2,5", "6-7"]
        assert plan("s3://b/a.pdf", pages="2-3").tasks[0][2] == "2-3"

    def test_a_document_that_cannot_be_counted_stays_whole(self) -> None:
        def count(uri: str) -> int:
            raise DocumentError(FailureCode.ENCRYPTED, "needs a password")

        assert make_plan(["s3://b/a.pdf"], Sharding(pages_per_task=3), count_pages=count).tasks[0][2] is None


def test_run_ids_sort_by_time_and_differ() -> None:
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) > 45
    assert [len(part) for part in ids[0].split("-")] == [8, 6, 4]


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
