"""The tag of the image: a hash of what goes into it, so that it changes exactly when the image does.

It depends on the tracked files alone: not on the order of a listing, on line endings, caches or anything untracked.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

INPUTS = ("worker", "requirements/base.txt")  # files and folders, relative to the repository's root
TAG_LENGTH = 16  # hexadecimal digits: 64 bits


def image_tag(root: Path) -> str:
    """Tag of the image that would be built from the tree below `root`.

    Raises: FileNotFoundError where an input is missing, RuntimeError where git can't list a repository.
    """
    for name in INPUTS:
        if not (root / name).exists():
            raise FileNotFoundError(f"{root / name} goes into the image and is missing: check out the whole repository")
    names = sorted(_tracked(root) if (root / ".git").exists() else _present(root))
    tree = hashlib.sha256()
    for name in names:
        if (root / name).is_file():  # a tracked file may be deleted and not yet committed
            content = hashlib.sha256(_normalised((root / name).read_bytes())).hexdigest()
            tree.update(f"{content} {name}\n".encode())
    return tree.hexdigest()[:TAG_LENGTH]


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


def _normalised(content: bytes) -> bytes:
    """Text with LF line ends; what has a NUL byte early on is binary, as git decides it."""
    return content if b"\0" in content[:8000] else content.replace(b"\r\n", b"\n")
