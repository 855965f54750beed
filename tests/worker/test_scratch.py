"""Folders for downloads: what a killed process leaves is removed, and what is in use is not."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import worker_environment
from worker.scratch import Scratch

HOLDS = """
import signal, subprocess, sys
from worker.scratch import Scratch
with Scratch(sys.argv[1]) as folder:
    (folder / "download").write_bytes(bytes(1000))
    child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    print(folder, child.pid, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(root: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that uses a folder, as does a child of it, which outlives it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(root)],
        env=worker_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    folder, child = process.stdout.readline().split()
    try:
        yield process, Path(folder)
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.communicate("")


def test_a_folder_is_gone_at_the_end(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, folder):
        assert (folder / "download").exists()
        process.communicate("")
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_leaves_goes_with_the_next_folder(tmp_path: Path) -> None:
    """Though its child lives on; and what a living one uses stays, as does what was never ours."""
    (tmp_path / "pagefleet-scratch-other-host-x1").mkdir()
    (tmp_path / "theirs").mkdir()
    with holder(tmp_path) as (killed, left), holder(tmp_path) as (_, used):
        assert len({left, used}) == 2
        killed.kill()
        killed.wait()
        assert (left / "download").exists()
        link = left.with_name(f"{left.name}-link")
        link.symlink_to(used)
        with Scratch(str(tmp_path)) as mine:
            assert not left.exists()
            assert (used / "download").exists()
            assert {path.name for path in tmp_path.iterdir()} == {
                *(mine.name, used.name, link.name, "theirs", "pagefleet-scratch-other-host-x1")
            }


def test_what_another_user_has_left_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Scratch(str(tmp_path))
    left._release()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with Scratch(str(tmp_path)):
        assert left.path.exists()
    monkeypatch.undo()
    with Scratch(str(tmp_path)):
        assert not left.path.exists()


def test_where_there_are_no_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")  # as NFS says it of a folder

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Scratch(str(tmp_path)) as first, Scratch(str(tmp_path)) as second:
        assert first.is_dir()
        assert second.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_locked_for_another_reason_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process would take it for left there."""

    def refuse(path: object, flags: int, *_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            Scratch(str(tmp_path))


def test_a_folder_that_is_swept_before_it_is_locked_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    swept: list[Path] = []

    def late(descriptor: int, operation: int) -> None:
        if not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with Scratch(str(tmp_path)) as folder:
        assert folder.is_dir()
        assert folder not in swept


def test_no_folder_can_be_made_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Scratch(str(tmp_path / "gone"))
