"""The tag of the image: a hash of what goes into it, so that it changes exactly when the image does.

It depends on the tracked files alone: not on the order of a listing, on line endings, caches or anything untracked. Nor
on modes, which worker/Dockerfile sets. What could be chosen when an image is built (its base, the weights it brings
along) is chosen in that file, so that the tree says it all. Every target of it has the same tag, after its own name.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

# Files and folders, relative to the repository's root: all that worker/Dockerfile copies, and what keeps files from it.
INPUTS = ("worker", "requirements/base.txt", "requirements/gpu.txt", "requirements/vllm.txt", ".dockerignore")
TARGETS = ("cpu", "gpu")  # of worker/Dockerfile; the registry's tags are `<target>-<tag>`
TAG_LENGTH = 16  # hexadecimal digits: 64 bits


def image_tag(root: Path) -> str:
    """Tag of the images that would be built from the tree below `root`.

    Raises: FileNotFoundError where an input is missing, RuntimeError where git can't list a repository.
    """
    lines = "".join(f"{content} {name}\n" for name, content in image_inputs(root))
    return hashlib.sha256(lines.encode()).hexdigest()[:TAG_LENGTH]


def image_inputs(root: Path) -> list[tuple[str, str]]:
    """What the tag is made of: names, in order, each with the SHA-256 of its content. Raises: as `image_tag`."""
    for name in INPUTS:
        if not (root / name).exists():
            raise FileNotFoundError(f"{root / name} goes into the image and is missing: check out the whole repository")
    names = sorted(set(_tracked(root) if (root / ".git").exists() else _present(root)))
    # A tracked file may be deleted and not yet committed.
    return [(name, _content(root / name)) for name in names if (root / name).is_file()]


def baked_engines(root: Path) -> dict[str, str]:
    """By target the engine whose weights its image brings along, as worker/Dockerfile says: nothing else is downloaded
    when an image runs. Raises: FileNotFoundError where the file is missing."""
    engines: dict[str, str] = {}
    target = ""
    for stage, engine in re.findall(
        r"^FROM \S+ AS (\S+)|^ARG ENGINE=(\S+)", (root / "worker/Dockerfile").read_text(), re.MULTILINE
    ):
        target = stage.partition("-")[0] or target
        if engine:
            engines[target] = engine
    return engines


def has_vllm(root: Path) -> bool:
    """Whether the GPU image brings vLLM along, as worker/Dockerfile says. Raises: as `baked_engines`."""
    return bool(re.search(r"^ARG VLLM=with$", (root / "worker/Dockerfile").read_text(), re.MULTILINE))


def _tracked(root: Path) -> Iterable[str]:
    listing = subprocess.run(["git", "ls-files", "-z", "--", *INPUTS], cwd=root, capture_output=True, check=False)
    if listing.returncode:
        # Hashing whatever lies there instead could name an image that nobody can build.
        raise RuntimeError(f"git can't list the files of {root}: {listing.stderr.decode(errors='replace').strip()}")
    return filter(None, listing.stdout.decode().split("\0"))


def _present(root: Path) -> Iterable[str]:
    """All files, of a tree that is no repository, such as an unpacked archive."""
    for name in INPUTS:
        top = root / name
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root).as_posix()


def _content(path: Path) -> str:
    """SHA-256 of text with LF line ends; what has a NUL byte early on is binary, as git decides it."""
    content = path.read_bytes()
    return hashlib.sha256(content if b"\0" in content[:8000] else content.replace(b"\r\n", b"\n")).hexdigest()
