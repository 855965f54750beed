"""What a workflow hands over of a run: a folder to look at, and an archive of results as large as a workflow should
carry. The rest stays in S3, and is named by its URIs."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from jobs.fetch import copy_files
from jobs.summary import format_bytes
from jobs.wording import plural
from worker.contract import RunPaths
from worker.storage import Entry, Storage

RESULTS_BYTES = 500_000_000  # artifacts are for looking at; `pagefleet fetch` brings everything
ARCHIVE, LEFT_OUT = "results.zip", "left-out.txt"

_TO_LOOK_AT = ("report.html", "summary.md", "summary.json", "logs")


@dataclass(frozen=True)
class Packed:
    """Two folders of files whose names any artifact store takes, and what did not fit into them."""

    report: Path
    results: Path
    left_out: int  # files
    left_out_bytes: int


def pack(
    storage: Storage,
    paths: RunPaths,
    fetched: Path,
    out: Path,
    limit: int = RESULTS_BYTES,
    labelled: str | None = None,
) -> Packed:
    """Makes `report/` and `results/` below `out`. `fetched` is a copy of the run without its documents; `labelled` is
    the name of its labelled set, where it has one.

    The results are one archive, since documents' names hold what GitHub refuses in an artifact (": ? *"), of at most
    `limit` bytes before they are compressed. What is fetched counts first and is always in it, but for the labelled
    set; then come that, the other tables, and documents by name, each whole: its JSON with its markdown.
    """
    report, results = out / "report", out / "results"
    for folder in (report, results):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for name in _TO_LOOK_AT:
        if (fetched / name).exists():
            shutil.move(fetched / name, report / name)
    there = {path.relative_to(fetched).as_posix(): path for path in fetched.rglob("*") if path.is_file()}
    taken = sum(path.stat().st_size for name, path in there.items() if name != labelled)
    chosen, left_out = _choose(_results(storage, paths, labelled), limit - taken)
    root, omitted = paths.file(""), {entry.uri for entry in left_out}
    copy_files(storage, root, [entry.uri for entry in chosen if entry.uri.removeprefix(root) not in there], fetched)
    with zipfile.ZipFile(results / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in fetched.rglob("*") if path.is_file()):
            name = path.relative_to(fetched).as_posix()
            if paths.file(name) not in omitted:
                archive.write(path, name)
    if left_out:
        (results / LEFT_OUT).write_text("".join(f"{entry.uri}\n" for entry in left_out), encoding="utf-8")
    return Packed(report, results, len(left_out), sum(entry.size for entry in left_out))


def left_out_note(packed: Packed, run: str) -> str:
    """Empty where everything fitted. `run` is how it is named to a command."""
    if not packed.left_out:
        return ""
    return (
        f"**Not in the artifact: {plural(packed.left_out, 'file')} ({format_bytes(packed.left_out_bytes)})**; "
        f"its `{LEFT_OUT}` has their URIs. `pagefleet fetch {run}` brings everything."
    )


def _results(storage: Storage, paths: RunPaths, labelled: str | None) -> list[list[Entry]]:
    """What belongs together, in the order in which it is taken."""
    root = paths.file("")
    tables: list[list[Entry]] = []
    documents: dict[str, list[Entry]] = {}
    for entry in storage.list(root):
        name = entry.uri.removeprefix(root)
        if name.startswith("documents/"):
            documents.setdefault(name.rpartition(".")[0], []).append(entry)
        elif name == labelled:
            tables.insert(0, [entry])
        elif name.startswith("results."):
            tables.append([entry])
    return [*tables, *(documents[name] for name in sorted(documents))]


def _choose(groups: list[list[Entry]], limit: int) -> tuple[list[Entry], list[Entry]]:
    chosen: list[Entry] = []
    left_out: list[Entry] = []
    for group in groups:
        size = sum(entry.size for entry in group)
        if size <= limit:
            limit -= size
            chosen += group
        else:
            left_out += group
    return chosen, left_out
