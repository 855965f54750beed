"""What a workflow hands over of a run: as much as it should carry, and where the rest is."""

from __future__ import annotations

import zipfile
from pathlib import Path

from jobs.artifacts import left_out_note, pack
from worker.contract import RunPaths
from worker.storage import LocalStorage, path_uri

FILES = {
    "documents/a.png.json": 50,
    "documents/a.png.md": 10,
    "documents/b: c?.pdf.json": 500,
    "documents/b: c?.pdf.md": 10,
    "documents/c.png.json": 20,
    "documents/c.png.md": 10,
    "results.jsonl": 30,
    "results.parquet": 30,
    "receipts/00000-1.jsonl": 5,
}
FETCHED = ("report.html", "summary.md", "summary.json", "logs/00000.log", "failures/x: y.json", "set_labels.parquet")


def make(folder: Path, names: dict[str, int]) -> Path:
    for name, size in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    return folder


def test_documents_are_taken_whole_as_long_as_there_is_room(tmp_path: Path) -> None:
    run, fetched = make(tmp_path / "run", FILES), make(tmp_path / "fetched", dict.fromkeys(FETCHED, 1))
    make(tmp_path / "out/report", {"old.html": 1})  # of an earlier try
    packed = pack(LocalStorage(), RunPaths(path_uri(run)), fetched, tmp_path / "out", limit=160)
    seen = {path.relative_to(packed.report).as_posix() for path in packed.report.rglob("*") if path.is_file()}
    assert seen == {"report.html", "summary.md", "summary.json", "logs/00000.log"}
    with zipfile.ZipFile(packed.results / "results.zip") as archive:
        assert set(archive.namelist()) == {
            *("results.jsonl", "results.parquet", "failures/x: y.json", "set_labels.parquet"),
            *("documents/a.png.json", "documents/a.png.md", "documents/c.png.json", "documents/c.png.md"),
        }
    left = (packed.results / "left-out.txt").read_text().splitlines()
    assert left == [path_uri(run / f"documents/b: c?.pdf.{kind}") for kind in ("json", "md")]
    note = left_out_note(packed, "first")
    assert note.startswith("**Not in the artifact: 2 files (510 B)**")
    assert "`pagefleet fetch first`" in note


def test_a_labelled_set_and_whatever_else_was_fetched_count_too(tmp_path: Path) -> None:
    labelled = {"set_labels.parquet": 100}
    run = make(tmp_path / "run", FILES | labelled)
    for limit, names in (
        (110, {"run.json", "set_labels.parquet"}),
        (109, {"run.json", "results.jsonl", "results.parquet", "documents/c.png.json", "documents/c.png.md"}),
    ):
        fetched = make(tmp_path / f"fetched-{limit}", {"report.html": 1000, "run.json": 10} | labelled)
        packed = pack(LocalStorage(), RunPaths(path_uri(run)), fetched, tmp_path / "out", limit, "set_labels.parquet")
        with zipfile.ZipFile(packed.results / "results.zip") as archive:
            assert set(archive.namelist()) == names
            assert sum(entry.file_size for entry in archive.infolist()) <= limit
        left = (packed.results / "left-out.txt").read_text().splitlines()
        assert (path_uri(run / "set_labels.parquet") in left) == (limit < 110)


def test_nothing_is_said_of_what_fits(tmp_path: Path) -> None:
    run, fetched = make(tmp_path / "run", FILES), make(tmp_path / "fetched", dict.fromkeys(FETCHED, 1))
    packed = pack(LocalStorage(), RunPaths(path_uri(run)), fetched, tmp_path / "out")
    assert left_out_note(packed, "first") == ""
    assert [path.name for path in packed.results.iterdir()] == ["results.zip"]
