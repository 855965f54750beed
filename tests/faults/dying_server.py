"""`python -m tests.faults.dying_server PORT LIVES`: an OpenAI-compatible server that dies on purpose.

LIVES is a folder. Each start leaves a file there. What it does in its n-th life is the n-th word of the file `script`:
`die`: at once; `mute`: it never answers; a number: answers that many pages, and dies at the next; `poison`: dies of a
page of 13 by 13 pixels, after all others that it waits for have come; `engine`: so, but as vLLM's server does when its
engine dies: it tells all whose pages it has in hand, says 503 of its health, and leaves with 0 when they have asked for
that; `stuck`: as `engine`, but it stays; `kills`: dies of a page of 13 by 13 pixels at once; `wedges`: reads nothing
more from such a page on, though it says that it is well; `wedged`: so from the beginning; `live`: answers all.
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
    import itertools
    import threading
    from io import BytesIO

    from PIL import Image

    from tests.faults.services import Asked, Reply, event, faulty_service, json_reply, stream

    def answer(number: int, asked: Asked) -> Reply:
        if act == "wedged" or wedged.is_set():
            return Reply(hang=True)
        if act in ("poison", "engine", "stuck", "kills", "wedges"):
            data = asked.json["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2]
            poisoned = Image.open(BytesIO(base64.b64decode(data))).size == (13, 13)
            if life == 0 and act not in ("kills", "wedges"):
                together.wait()
        else:
            poisoned = act != "live" and number > int(act)
        if poisoned and act == "wedges":
            wedged.set()
            return Reply(hang=True)
        if poisoned and act in ("engine", "stuck"):
            engine_dead.set()
        elif poisoned:
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()  # a signal may take a moment
        if act in ("poison", "engine", "stuck") and life == 0:
            engine_dead.wait()  # in hand when the server dies
        if engine_dead.is_set():
            dead = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}
            return Reply([event({"error": dead}), b"data: [DONE]\n\n"], headers={"Content-Type": "text/event-stream"})
        return stream([f"life {life}"])

    def health() -> Reply:
        if not engine_dead.is_set():
            return json_reply({"data": [{"id": "tiny"}]})
        if next(asked_for_health) >= (8 if life == 0 else 1) and act == "engine":  # each that was in hand has asked
            os._exit(0)
        return json_reply({}, 503)

    together = threading.Barrier(8)
    engine_dead, wedged = threading.Event(), threading.Event()
    asked_for_health = itertools.count()

    with faulty_service(answer, health, port=port):
        signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
