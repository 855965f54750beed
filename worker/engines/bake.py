"""`python -m worker.engines.bake ENGINE`: fetches the weights that a preset pins into HF_HOME, when the image is built.

At run time the hub isn't asked (HF_HUB_OFFLINE): what was pinned is what reads, whatever the hub holds by then.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from worker.engines import check_engine
from worker.engines.presets import PRESETS
from worker.errors import BadRequest

NOTHING = "none"  # an image without weights
# What transformers loads, and the licences that must travel along; repositories hold the same weights in other formats,
# and in folders other versions of them.
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md", "*LICEN[CS]E*", "*NOTICE*"]
UNWANTED = ["*/*"]


def bake(engine: str) -> Path | None:
    """Returns the folder of the weights; None where the engine has none of its own to fetch.

    Raises: BadRequest where there is no such engine, or its weights can't be had.
    """
    if preset := PRESETS.get(engine):
        return fetch(preset.hub_id, preset.revision)
    if engine != NOTHING:
        check_engine(engine)
    return None


def fetch(hub_id: str, revision: str) -> Path:
    """The weights of one commit of a repository on the hub, in the hub's own cache.

    Raises: BadRequest where `revision` names no commit, or the hub doesn't give the files.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise BadRequest(f"{hub_id} needs the libraries of requirements/gpu.txt: build target gpu ({error})") from error
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise BadRequest(f"{hub_id} is pinned to {revision!r}: name a commit, 40 hexadecimal digits; branches move")
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except OSError as error:  # all that the hub's client raises, refusals of the hub included
        raise BadRequest(f"the hub doesn't give {hub_id} at {revision}: {error}") from error
    if not any(folder.glob("*.safetensors")):
        raise BadRequest(f"{hub_id} has no .safetensors at {revision}: pin a commit that has")
    return folder


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m worker.engines.bake ENGINE", file=sys.stderr)
        return BadRequest.exit_code
    (engine,) = arguments
    try:
        folder = bake(engine)
    except BadRequest as error:
        print(f"ENGINE={engine}: {error}", file=sys.stderr)
        return error.exit_code
    if folder:
        print(f"{engine}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:,.1f} MB in {folder}")
    else:
        print(f"{engine}: no weights to fetch")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
