"""`python -m worker.engines.bake ENGINE`: fetches the weights that a preset pins into HF_HOME, when the image is built.

At run time the hub isn't asked (HF_HUB_OFFLINE): what was pinned is what reads, whatever the hub holds by then.
"""

from __future__ import annotations

import sys
from pathlib import Path

from worker.engines import check_engine
from worker.engines.checkpoint import fetch_checkpoint
from worker.engines.presets import PRESETS
from worker.errors import BadRequest, WorkerError

NOTHING = "none"  # an image without weights


def bake(engine: str) -> Path | None:
    """Returns the folder of the weights; None where the engine has none of its own to fetch.

    Raises: BadRequest where there is no such engine here, or the hub refuses; TryAgain where it can't be reached.
    """
    if engine != NOTHING:
        check_engine(engine)
    return fetch_checkpoint(PRESETS[engine]).folder if engine in PRESETS else None


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m worker.engines.bake ENGINE", file=sys.stderr)
        return BadRequest.exit_code
    (engine,) = arguments
    try:
        folder = bake(engine)
    except WorkerError as error:
        print(f"ENGINE={engine}: {error}", file=sys.stderr)
        return error.exit_code
    if folder:
        print(f"{engine}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:,.1f} MB in {folder}")
    else:
        print(f"{engine}: no weights to fetch")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
