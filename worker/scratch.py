"""Folders for what one process downloads: gone with its orderly end, and where it was killed, when the next is made.

Whoever uses one holds a lock on it that the kernel lets go with the process, so that no process id is ever compared.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

log = logging.getLogger(__name__)

# What a file system without such locks says, as NFS may be: nobody else can take a folder there for left, then.
NO_LOCKS = frozenset({errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP})


class Scratch:
    """A new folder, below `root` or where temporary files go; also a context manager that removes it.

    Removes those that killed processes of this user on this machine have left there.
    Raises: OSError where none can be made.
    """

    def __init__(self, root: str | None = None) -> None:
        _sweep(Path(root or tempfile.gettempdir()))
        self._lock: int | None = None
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_prefix(), dir=root))
            try:
                self._lock = _lock(self.path)
            except FileNotFoundError:
                continue  # swept between the two
            except OSError as error:
                if error.errno in NO_LOCKS:
                    return
                self.remove()
                raise
            if self._lock is not None and self.path.exists():
                return
            self._release()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Safe to call again, and from another thread while files are still in use."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _prefix() -> str:
    """With the machine's name: on a disk that machines share, each may keep its locks to itself."""
    return f"pagefleet-scratch-{re.sub(r'[^A-Za-z0-9.]', '_', platform.node())}-"


def _sweep(root: Path) -> None:
    with suppress(OSError):
        for path in root.glob(f"{_prefix()}*"):
            with suppress(OSError):
                if path.stat(follow_symlinks=False).st_uid == os.geteuid() and (lock := _lock(path)) is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(lock)
                    gone = not path.exists()
                    log.info("%s %s, which a killed process has left", "removed" if gone else "could not remove", path)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder until it is closed or its process ends, and that no child inherits; None where
    another holds it.

    Raises: OSError where it is no folder any more, or can't be locked at all.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor
