"""Whether a stack can read at all: one bundled document through its real queue, held against its true text."""

from __future__ import annotations

import difflib
from pathlib import Path

from jobs.errors import UsageError
from jobs.stack import Stack
from worker.storage import Storage

LEAST_LIKENESS = 0.9  # the embedded engine reads the samples at 0.95 and above; a broken image reads none of it


def upload_sample(storage: Storage, stack: Stack, run_id: str, document: Path) -> str:
    """Puts a document where a run's worker may read it and an operator may write: into the run's own folder."""
    if not document.is_file():
        raise UsageError(f"there is no document {document}: name one of samples/")
    uri = f"{stack.run_uri(run_id)}/source/{document.name}"
    storage.upload(uri, document)
    return uri


def likeness(read: str, truth: str) -> float:
    """From 0 to 1, of the words in their order; spaces and line ends don't count."""
    return difflib.SequenceMatcher(None, " ".join(read.split()), " ".join(truth.split()), autojunk=False).ratio()
