"""The image's tag changes exactly when the image does, on any checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from infra_pulumi.image import INPUTS, TARGETS, baked_engines, has_vllm, image_inputs, image_tag
from tests.conftest import ROOT
from worker.engines import ENGINES

DOCKERFILE = (ROOT / "worker" / "Dockerfile").read_text(encoding="utf-8")
INPUT_FILES = (
    "worker/a.py",
    "worker/engines/b.py",
    "requirements/base.txt",
    "requirements/gpu.txt",
    "requirements/vllm.txt",
    ".dockerignore",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in (*INPUT_FILES, "docs/c.md", "tests/worker/t.py"):
        _write(root / name, f"{name}\nsecond line\n".encode())
    for command in (["init", "-q"], ["add", "-A"]):
        _git(root, *command)
    return root


@pytest.mark.parametrize("name", INPUT_FILES)
def test_one_byte_of_what_goes_in_changes_it(tree: Path, name: str) -> None:
    before = image_tag(tree)
    (tree / name).write_bytes((tree / name).read_bytes() + b"\n")
    assert image_tag(tree) != before


def test_one_byte_of_any_file_of_the_real_worker_changes_it(tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    files = [name for name in tracked.decode().split("\0") if name and (ROOT / name).is_file()]
    for name in files:
        if name.startswith(INPUTS):
            _write(tmp_path / name, (ROOT / name).read_bytes())
    tag = image_tag(tmp_path)
    assert tag == image_tag(ROOT)
    assert {name for name in files if name.startswith("worker/")} <= {name for name, _ in image_inputs(ROOT)}
    for path in (tmp_path / "worker").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            assert image_tag(tmp_path) != tag, path
            path.write_bytes(content)
    assert image_tag(tmp_path) == tag


def test_a_new_name_or_a_missing_file_changes_it(tree: Path) -> None:
    tags = [image_tag(tree)]
    _git(tree, "mv", "worker/a.py", "worker/z.py")
    tags.append(image_tag(tree))
    (tree / "worker/z.py").unlink()
    tags.append(image_tag(tree))
    assert len(set(tags)) == 3


def test_nothing_else_does(tree: Path) -> None:
    before = image_tag(tree)
    others = ("docs/c.md", "tests/worker/t.py", "jobs/new.py", "infra_pulumi/new.py", "requirements/dev.txt")
    for name in (*others, "workers.py", "worker_notes/a.py", "README.md", "pyproject.toml", ".github/workflows/w.yml"):
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


def test_a_clone_has_the_same_whatever_it_does_to_line_endings_and_modes(tree: Path, tmp_path: Path) -> None:
    _git(tree, "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-qm", "all")
    clone = tmp_path / "elsewhere" / "clone"
    _git(tmp_path, "clone", "-q", "-c", "core.autocrlf=true", str(tree), str(clone))
    assert b"\r\n" in (clone / "worker/a.py").read_bytes()
    for path in clone.rglob("*.py"):
        path.chmod(0o700)
    assert image_tag(clone) == image_tag(tree)
    worktree = tmp_path / "worktree"
    _git(tree, "worktree", "add", "-q", str(worktree))
    assert image_tag(worktree) == image_tag(tree)


def test_names_that_git_would_quote_count_too(tree: Path) -> None:
    tags = [image_tag(tree)]
    for content in (b"a", b"b"):
        _write(tree / "worker/견본 쪽.txt", content)
        _git(tree, "add", "worker")
        tags.append(image_tag(tree))
    assert len(set(tags)) == 3


def test_an_unpacked_archive_has_the_tag_of_its_commit(tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    for name in reversed(INPUT_FILES):
        _write(archive / name, (tree / name).read_bytes())
    _write(archive / "worker/__pycache__/a.pyc", b"\0")
    assert image_tag(archive) == image_tag(tree)


def test_half_a_tree_has_no_tag(tmp_path: Path) -> None:
    _write(tmp_path / "worker/a.py", b"")
    with pytest.raises(FileNotFoundError, match=r"base\.txt"):
        image_tag(tmp_path)


def test_where_git_refuses_there_is_no_tag(tree: Path) -> None:
    (tree / ".git/HEAD").write_text("nonsense")
    with pytest.raises(RuntimeError, match="git can't list"):
        image_tag(tree)


# ---- the Dockerfile itself


def test_all_that_is_copied_is_hashed_and_not_ignored() -> None:
    sources = {source for _, names, _ in _copies(DOCKERFILE) for source in names}
    assert {"worker", "requirements/base.txt", "requirements/gpu.txt", "requirements/vllm.txt"} <= sources
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*"  # all is kept out but what is named
    let_in = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    for source in sources:
        assert any(source == name or source.startswith(f"{name}/") for name in INPUTS), source
        assert any(source == name or source.startswith(f"{name}/") for name in let_in), source
    assert not any(fnmatch(name, pattern) for name, _ in image_inputs(ROOT) for pattern in patterns[1:])


def test_modes_of_the_checkout_do_not_get_into_the_image() -> None:
    assert all(any(flag.startswith("--chmod=") for flag in flags) for flags, _, _ in _copies(DOCKERFILE))


def test_a_target_for_each_name_in_the_registry_and_a_base_that_is_pinned() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M)
    assert {*TARGETS} <= {name for _, name in stages}
    addresses = [base for base, _ in stages if base not in {name for _, name in stages} and "$" not in base]
    assert len(addresses) == 1
    assert re.fullmatch(r"python:3\.11[\w.-]*@sha256:[0-9a-f]{64}", addresses[0])


def test_weights_are_fetched_with_no_more_code_than_is_copied_for_it(tmp_path: Path) -> None:
    stage = DOCKERFILE.partition(" AS gpu-weights\n")[2].partition("\nFROM ")[0]
    for _, names, target in _copies(stage):
        for name in names:
            (tmp_path / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / target)
    bake = [sys.executable, "-P", "-m", "worker.engines.bake", "none"]
    baked = subprocess.run(
        bake, cwd="/", env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (baked.returncode, baked.stdout, baked.stderr) == (0, "none: no weights to fetch\n", "")


@pytest.mark.parametrize("choice", ["with", "without"])
def test_the_gpu_image_has_vllm_where_the_dockerfile_says_so(choice: str, tmp_path: Path) -> None:
    stages = {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M)}
    assert {"gpu-without-vllm", "gpu-with-vllm"} <= stages.keys()
    assert stages["gpu-weights"] == "gpu-${VLLM}-vllm"
    assert not has_vllm(ROOT)  # nobody pulls it who has not asked for it
    chosen, lines = re.subn(r"^ARG VLLM=without$", f"ARG VLLM={choice}", DOCKERFILE, flags=re.M)
    assert lines == 1
    assert chosen.index(f"ARG VLLM={choice}\n") < chosen.index("\nFROM ")  # elsewhere no FROM would know of it
    _write(tmp_path / "worker/Dockerfile", chosen.encode())
    assert has_vllm(tmp_path) == (choice == "with")


def test_vllm_runs_on_the_torch_that_the_image_has_anyway() -> None:
    """Otherwise it would bring another one along, with a CUDA of its own."""
    ours, its = _locked("gpu"), _locked("vllm")
    shared = {name for name in ours if name.startswith(("torch", "triton", "nvidia-"))}
    assert {"torch", "torchvision", "triton", "nvidia-cublas", "nvidia-cudnn-cu13"} <= shared
    assert {name: ours[name] for name in shared} == {name: its.get(name) for name in shared}


def _locked(name: str) -> dict[str, str]:
    """Versions by package of a lock."""
    lock = (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9][\w.-]*)==([^\s;]+)", lock, re.M))


def _copies(text: str) -> Iterator[tuple[list[str], list[str], str]]:
    """Flags, sources and target of each COPY."""
    for line in re.findall(r"^COPY (.*)$", text.replace("\\\n", " "), re.M):
        words = line.split()
        flags = [word for word in words if word.startswith("--")]
        yield flags, words[len(flags) : -1], words[-1]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


def test_each_target_s_weights_are_those_of_the_dockerfile(tmp_path: Path) -> None:
    assert baked_engines(ROOT).keys() == set(TARGETS)
    assert all(engine in ENGINES for engine in baked_engines(ROOT).values())
    dockerfile = tmp_path / "worker/Dockerfile"
    dockerfile.parent.mkdir()
    dockerfile.write_text("FROM a AS gpu-weights\nARG ENGINE=lighton\nFROM b AS cpu\nARG ENGINE=none\nARG TAG=\n")
    assert baked_engines(tmp_path) == {"gpu": "lighton", "cpu": "none"}
