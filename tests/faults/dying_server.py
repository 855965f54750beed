"""`python -m tests.faults.dying_server PORT LIVES`: an OpenAI-compatible server that dies on purpose.

LIVES is a folder. Each start leaves a file there. What it does in its n-th life is the n-th word of the file `script`:
`die`: at once; `mute`: it never answers; a number: answers that many pages, and dies at the next; `live`: all of them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tests.faults.services import Asked, Reply, faulty_service, stream


def main(port: int, lives: Path) -> None:
    life = len(list(lives.glob("life-*")))
    (lives / f"life-{life}").write_text(str(os.getpid()))
    print("hello from the server", flush=True)  # where the worker's receipts must not be disturbed
    script = (lives / "script").read_text().split()
    act = script[min(life, len(script) - 1)]
    if act == "die":
        sys.exit(3)
    if act == "mute":
        signal.pause()

    def answer(number: int, _: Asked) -> Reply:
        if act != "live" and number > int(act):
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # a signal may take a moment
        return stream([f"life {life}"])

    with faulty_service(answer, port=port):
        signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
