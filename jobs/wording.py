"""How messages count things, and name places."""

from __future__ import annotations

import shlex
from pathlib import Path

from worker.wording import plural as plural


def have(count: int, noun: str) -> str:
    """ "1 document has", "1,200 documents have"."""
    return f"{plural(count, noun)} {'has' if count == 1 else 'have'}"


def shown(uri: str) -> str:
    """A URI as a person would type it: local paths relative to here where they are below."""
    if not uri.startswith("file://"):
        return uri
    from worker.storage import uri_path  # not for `pagefleet --help`

    path = uri_path(uri)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def typed(uri: str) -> str:
    """The same as a word of a command."""
    return shlex.quote(shown(uri))


def run_words(run_id: str, stack: str) -> str:
    """A run on AWS as words of a command, good in any shell: which stack is taken where none is named, its environment
    says."""
    return f"{run_id} --stack {stack}"
