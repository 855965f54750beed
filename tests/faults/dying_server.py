"""`python -m tests.faults.dying_server PORT LIVES`: an OpenAI-compatible server that dies on purpose.

LIVES is a folder. Each start leaves a file there. What it does in its n-th life is the n-th word of the file `script`:
`die`: at once; `mute`: it never answers; a number: answers that many pages, and dies at the next; `poison`: dies of a
page of 13 by 13 pixels, after all others that it waits for have come; `live`: answers all.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(port: int, lives: Path) -> None:
    life = len(list(lives.glob("life-*")))
    (lives / "begun").write_text(str(os.getpid()))
    (lives / "begun").rename(lives / f"life-{life}")  # never half written, whenever we are killed
    print("hello from the server", flush=True)  # where the worker's receipts must not be disturbed
    script = (lives / "script").read_text().split()
    act = script[min(life, len(script) - 1)]
    if act == "die":
        sys.exit(3)
    if act == "mute":
        signal.pause()

    serve(act, life, port)


def serve(act: str, life: int, port: int) -> None:
    import base64
    import threading
    from io import BytesIO

    from PIL import Image

    from tests.faults.services import Asked, Reply, faulty_service, stream

    def answer(number: int, asked: Asked) -> Reply:
        if act == "poison":
            data = asked.json["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2]
            poisoned = Image.open(BytesIO(base64.b64decode(data))).size == (13, 13)
            if life == 0:
                together.wait()
        else:
            poisoned = act != "live" and number > int(act)
        if poisoned:
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()  # a signal may take a moment
        if act == "poison" and life == 0:
            threading.Event().wait()  # in hand when the server dies
        return stream([f"life {life}"])

    together = threading.Barrier(8)

    with faulty_service(answer, port=port):
        signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
