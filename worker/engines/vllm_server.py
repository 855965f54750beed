"""`vllm serve` beside the worker, on its GPU: the engine `openai` with a server of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import socket

from worker.beside import Beside
from worker.engines import EngineSettings
from worker.engines.openai_server import Answer, OpenAiEngine
from worker.errors import BadRequest
from worker.remote import Clock
from worker.settings import API_KEYS

START_SECONDS = 1200.0  # the weights' download included
RESTART_SECONDS = 240.0  # a page in hand waits that long for the server to come back: less than the engine's timeout


class VllmEngine(OpenAiEngine):
    """Reads pages with a vision model that vLLM serves.

    Options: those of `openai` but `base_url`; `model`: a folder or name, instead of the preset's pinned weights;
    `port`; `start`: seconds that the server may take to come up; `server_args`: more arguments of `vllm serve`, or
    `command`: a whole command of another server, in which {model}, {revision} and {port} are filled in.
    """

    name = "vllm"

    def __init__(self, settings: EngineSettings, clock: Clock | None = None) -> None:
        """Starts the server and waits for it. Raises: BadRequest where there is none to start, ServerLost."""
        self._configure(settings, clock or Clock())
        taker = self._taker
        weights, own = taker.text("model"), taker.text("command")
        port = taker.integer("port", 0) or _free_port()
        start_seconds = taker.number("start", START_SECONDS)
        more = taker.text("server_args") or ""
        taker.done()
        self.model = weights or self._preset.hub_id
        self.revision = None if weights else self._preset.revision
        if not self.model:
            raise BadRequest("engine vllm needs a model: --engine-option preset=NAME, or model=FOLDER")
        command = _command(own, more, self.model, self.revision, port)
        self._connect(f"http://127.0.0.1:{port}/v1", None)
        environment = {name: value for name, value in os.environ.items() if name not in API_KEYS}
        self._server = Beside(command, self._alive, start_seconds=start_seconds, environment=environment)
        try:
            self._server.wait(start_seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._server.stop()
        super().close()

    def _complete(self, image: str, temperature: float, until: float) -> Answer:
        """As of any server; the time in which it is started again is not the page's."""
        asked = self._clock.now()
        self._server.wait(RESTART_SECONDS)
        return super()._complete(image, temperature, until + self._clock.now() - asked)


def _command(own: str | None, more: str, model: str, revision: str | None, port: int) -> list[str]:
    if own:
        values = {"{model}": model, "{revision}": revision or "main", "{port}": str(port)}
        return [_filled(word, values) for word in shlex.split(own)]
    if not shutil.which("vllm"):
        raise BadRequest(
            "engine vllm: there is no program vllm here; it is part of the GPU image, or `pip install vllm` on a "
            "machine with a GPU. A server that runs elsewhere is reached with --engine openai"
        )
    pinned = ["--revision", revision] if revision else []
    served = ["--served-model-name", model, "--host", "127.0.0.1", "--port", str(port)]
    return ["vllm", "serve", model, *pinned, *served, *shlex.split(more)]


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
