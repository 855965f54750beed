"""The image's tag changes exactly when the image does, on any checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infra_pulumi.image import image_tag


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("worker/a.py", "worker/engines/b.py", "requirements/base.txt", "docs/c.md", "tests/worker/t.py"):
        _write(root / name, f"{name}\nsecond line\n".encode())
    for command in (["init", "-q"], ["add", "-A"]):
        _git(root, *command)
    return root


@pytest.mark.parametrize("name", ["worker/a.py", "worker/engines/b.py", "requirements/base.txt"])
def test_one_byte_of_what_goes_in_changes_it(tree: Path, name: str) -> None:
    before = image_tag(tree)
    (tree / name).write_bytes((tree / name).read_bytes() + b"\n")
    assert image_tag(tree) != before


def test_a_new_name_or_a_missing_file_changes_it(tree: Path) -> None:
    tags = [image_tag(tree)]
    _git(tree, "mv", "worker/a.py", "worker/z.py")
    tags.append(image_tag(tree))
    (tree / "worker/z.py").unlink()
    tags.append(image_tag(tree))
    assert len(set(tags)) == 3


def test_nothing_else_does(tree: Path) -> None:
    before = image_tag(tree)
    for name in ("docs/c.md", "tests/worker/t.py", "jobs/new.py", "infra_pulumi/new.py", "requirements/dev.txt"):
        _write(tree / name, b"other\n")
        _git(tree, "add", name)
    for name in ("worker/notes.txt", "worker/__pycache__/a.cpython-311.pyc"):  # untracked
        _write(tree / name, b"\0")
    assert image_tag(tree) == before


def test_line_endings_do_not_matter_in_text_and_do_in_the_rest(tree: Path) -> None:
    before = image_tag(tree)
    text = tree / "worker/a.py"
    text.write_bytes(text.read_bytes().replace(b"\n", b"\r\n"))
    assert image_tag(tree) == before
    binary = tree / "worker/weights.bin"
    tags = []
    for content in (b"\0\r\n", b"\0\n"):
        _write(binary, content)
        _git(tree, "add", "worker/weights.bin")
        tags.append(image_tag(tree))
    assert tags[0] != tags[1]


def test_an_unpacked_archive_has_the_tag_of_its_commit(tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    for name in ("requirements/base.txt", "worker/engines/b.py", "worker/a.py"):  # another order
        _write(archive / name, (tree / name).read_bytes())
    _write(archive / "worker/__pycache__/a.pyc", b"\0")
    assert image_tag(archive) == image_tag(tree)


def test_half_a_tree_has_no_tag(tmp_path: Path) -> None:
    _write(tmp_path / "worker/a.py", b"")
    with pytest.raises(FileNotFoundError, match=r"base\.txt"):
        image_tag(tmp_path)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)
