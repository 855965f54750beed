"""Where a model's files come from: a folder, an `s3://` prefix, or a commit of a repository on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from worker.engines.presets import Preset
from worker.errors import BadRequest, DocumentError, TryAgain

if TYPE_CHECKING:
    from worker.scratch import Scratch
    from worker.storage import Storage

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = "*.safetensors"
_BESIDE = {
    "processor": {"processor_config.json", "preprocessor_config.json"},
    "tokenizer": {"tokenizer.json", "tokenizer_config.json"},
}


@dataclass(frozen=True)
class Checkpoint:
    folder: Path  # with config.json, weights, tokenizer
    model: str  # what results call it
    revision: str  # a commit, or a digest of the files
    own: bool  # whether it is another than its preset's
    scratch: Scratch | None = None  # that the folder is, where it was downloaded for this process alone

    def discard(self) -> None:
        """Deletes what was downloaded for this process alone."""
        if self.scratch:
            self.scratch.remove()


def fetch_checkpoint(
    preset: Preset, model: str | None = None, revision: str | None = None, storage: Storage | None = None
) -> Checkpoint:
    """The preset's own checkpoint, or `model`: a folder, `s3://BUCKET/PREFIX/`, or ORG/NAME@COMMIT of the hub.

    Raises: BadRequest where there is no such thing; TryAgain where it can't be reached.
    """
    if model is None:
        return _from_hub(preset.hub_id, _commit(preset.hub_id, revision or preset.revision), own=False)
    if model.startswith("s3://") or Path(model).is_dir():
        if revision is not None:
            raise BadRequest(f"model {model} has no revisions: leave the option 'revision' out")
        if not model.startswith("s3://"):
            return _own(Path(model), model)
        return _download(model, storage)
    found = _HUB_ID.fullmatch(model)
    if not found or model.startswith("."):
        raise BadRequest(
            f"model {model}: there is no such folder; it may also be s3://BUCKET/PREFIX/ or ORG/NAME@COMMIT"
        )
    return _from_hub(found["id"], _commit(found["id"], found["revision"] or revision), own=found["id"] != preset.hub_id)


def _commit(hub_id: str, revision: str | None) -> str:
    """A branch or a tag may name other weights tomorrow, and then nobody could tell what had read a page."""
    if revision is None or not _COMMIT.fullmatch(revision):
        given = "no revision" if revision is None else f"revision {revision!r}"
        raise BadRequest(
            f"model {hub_id} is given with {given}: name a commit by its 40 hexadecimal digits, as in "
            f"model={hub_id}@COMMIT (https://huggingface.co/{hub_id}/commits/main)"
        )
    return revision


def _from_hub(hub_id: str, commit: str, *, own: bool) -> Checkpoint:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # Folders inside hold other versions (HunyuanOCR's v1.0/), drafts and ONNX.
        folder = snapshot_download(hub_id, revision=commit, ignore_patterns=["*/*", "*.bin", "*.pt", "*.pth"])
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise BadRequest(f"model {hub_id}@{commit} cannot be had: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        if constants.HF_HUB_OFFLINE:
            raise BadRequest(
                f"the weights of {hub_id}@{commit} are not here, and HF_HUB_OFFLINE forbids to download them: build an "
                "image that has them, or give them as --model FOLDER or --model s3://BUCKET/PREFIX/"
            ) from error
        raise TryAgain(
            f"model {hub_id}@{commit} cannot be downloaded: {error}; try again later, or give a copy of it as "
            "--model FOLDER or --model s3://BUCKET/PREFIX/"
        ) from error
    if own:
        _check_files(Path(folder), f"{hub_id}@{commit}")
    return Checkpoint(Path(folder), hub_id, commit, own)


def _own(folder: Path, model: str) -> Checkpoint:
    _check_files(folder, model)
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob(_WEIGHTS))]:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Checkpoint(folder, model, f"sha256:{digest.hexdigest()[:16]}", own=True)


def _check_files(folder: Path, model: str) -> None:
    """Raises: BadRequest where a file is missing that every checkpoint has, or weights are damaged."""
    from safetensors import SafetensorError, safe_open

    there = sorted(path.name for path in folder.iterdir() if path.is_file())
    if "config.json" not in there and "adapter_config.json" in there:
        raise BadRequest(f"model {model} is an adapter: merge it into its base model, and give what that makes")
    if "config.json" not in there:
        raise BadRequest(f"model {model} holds no checkpoint: it has no config.json, {_listed(there)}")
    if not any(folder.glob(_WEIGHTS)):
        raise BadRequest(f"model {model} holds no weights: it has no {_WEIGHTS}, {_listed(there)}")
    for what, names in _BESIDE.items():
        if not names & set(there):
            raise BadRequest(
                f"model {model} has no {what} ({' or '.join(sorted(names))}): copy the files from the model that it "
                f"was trained from; {_listed(there)}"
            )
    for index in folder.glob(f"{_WEIGHTS}.index.json"):
        try:
            parts = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadRequest(f"model {model}: {index.name} is damaged: {error}") from error
        if missing := sorted(parts - set(there)):
            raise BadRequest(f"model {model} lacks {len(missing)} of {len(parts)} files of weights: {missing[0]}")
    for path in sorted(folder.glob(_WEIGHTS)):
        try:
            with safe_open(path, framework="np"):
                pass
        except SafetensorError as error:
            raise BadRequest(
                f"model {model}: {path.name} is damaged or cut short, with {path.stat().st_size:,} bytes ({error}): "
                "copy it again"
            ) from error


def _listed(names: list[str]) -> str:
    if not names:
        return "nor any other file"
    return f"only {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _download(prefix: str, storage: Storage | None) -> Checkpoint:
    """The files directly below an s3:// prefix."""
    from worker.scratch import Scratch  # neither above: what fetches an image's weights does without
    from worker.storage import open_storage

    storage = storage or open_storage()
    base = prefix.rstrip("/") + "/"
    scratch = Scratch()
    folder = scratch.path
    try:
        names = []
        for entry in storage.list(base):
            names.append(name := entry.uri.removeprefix(base))
            if name and "/" not in name:
                storage.fetch(entry.uri, folder).path.rename(folder / name)
        if not any(folder.iterdir()):
            below = f"; below it is {names[0]}, and more" if any(names) else ""
            raise BadRequest(f"model {prefix}: nothing lies right below that prefix{below}")
        return replace(_own(folder, prefix), scratch=scratch)
    except BaseException as error:
        scratch.remove()
        if isinstance(error, DocumentError):
            raise BadRequest(f"model {prefix} cannot be had: {error.message}") from error
        raise
