"""`vllm serve` beside the worker, on its GPU: the engine `openai` with a server of its own."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from worker.beside import Beside, ServerLost
from worker.engines import INSTALL_VLLM, EngineSettings
from worker.engines.checkpoint import Checkpoint, fetch_checkpoint
from worker.engines.openai_server import Answer, OpenAiEngine
from worker.engines.presets import Preset, presets_of
from worker.errors import BadRequest
from worker.remote import Answered, Broken, Clock, Deadline, PageRefused, Unavailable
from worker.settings import API_KEYS

START_SECONDS = 1200.0  # the weights' download included


class VllmEngine(OpenAiEngine):
    """Reads pages with a vision model that vLLM serves.

    Options: those of `openai` but `base_url`; `model`: a folder, `s3://BUCKET/PREFIX/` or name, instead of the preset's
    pinned weights; `port`; `start`: seconds that the server may take to come up; `server_args`: more arguments of `vllm
    serve`, or `command`: a whole command of another server, in which {model}, {name}, {revision} and {port} are filled
    in: {name} is what is asked for, {model} where its files are.
    """

    name = "vllm"
    attempts = 3  # of one request: a page that kills the server takes no more than three of its lives

    def __init__(self, settings: EngineSettings, clock: Clock | None = None) -> None:
        """Starts the server and waits for it. Raises: BadRequest where there is none to start, ServerLost."""
        self._configure(settings, clock or Clock())
        taker = self._taker
        weights = taker.text("model")
        own, more = taker.words("command"), taker.words("server_args")
        port = taker.integer("port", 0) or _free_port()
        start_seconds = taker.number("start", START_SECONDS)
        self.model = weights or self._preset.hub_id
        taker.done(None if self.model else "a model: --engine-option preset=NAME, or model=FOLDER")
        served = {name: value for name, value in settings.options.items() if name != "fallback"}
        if any(preset.alone_with_vllm for preset in presets_of(self.name, served)):
            self.concurrency = 1
        self.revision = None if weights else self._preset.revision
        command = own or [*_serve(self._preset, pinned=not weights), *more]
        self._downloaded = self._from_s3() if self.model.startswith("s3://") else None
        values = {
            "{model}": str(self._downloaded.folder) if self._downloaded else self.model,
            "{name}": self.model,
            "{revision}": self.revision or "main",
            "{port}": str(port),
        }
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._connect(self.base_url, None)
        self._lane = _Lane()
        self._mine = threading.local()  # `asked`: the page that this thread has asked for; `suspect`: see `_complete`
        environment = {name: value for name, value in os.environ.items() if name not in API_KEYS}
        command = [_filled(word, values) for word in command]
        self._server = Beside(command, self._alive, start_seconds=start_seconds, environment=environment)
        try:
            self._server.wait(start_seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._server.stop()
        self.discard()
        super().close()

    def discard(self) -> None:
        if self._downloaded:
            self._downloaded.discard()

    def _from_s3(self) -> Checkpoint:
        if not find_spec("safetensors"):
            raise BadRequest("engine vllm looks into weights from s3:// with safetensors: `make gpu` in the checkout")
        checkpoint = fetch_checkpoint(self._preset, self.model)
        self.revision = checkpoint.revision
        return checkpoint

    def _complete(self, image: str, temperature: float, until: Deadline) -> Answer:
        """As of any server; but the time in which it is started again is not the page's, and a page that it may have
        died of, or hang of, is asked alone, so that no other page is blamed.

        Raises: ServerLost or Unavailable, too, where the call's time is up before its turn comes, or where the server
        doesn't read a page of ours either.
        """
        import httpx

        came = self._clock.now()
        self._mine.asked = image
        alone = getattr(self._mine, "suspect", None) is image
        with self._lane.enter(alone=alone, seconds=self._left(until)):
            self._server.wait(self._left(until))
            if alone:
                self._prove(until)
            until.extend(self._clock.now() - came)
            unheard = False
            while True:
                life = self._server.starts
                try:
                    answer = super()._complete(image, temperature, until)
                    self._mine.suspect = None
                    self._server.vouch()
                    return answer
                except httpx.ConnectError:
                    if unheard:
                        raise
                    unheard = True  # it had died before
                    self._settle(until)
                except (httpx.NetworkError, httpx.RemoteProtocolError, Broken, Answered) as error:
                    if isinstance(error, Broken | Answered) and not self._has_lost(error, life):
                        raise
                    self._mine.suspect = image
                    try:
                        self._settle(until)  # before the next page's turn
                    except ServerLost:
                        if alone and not self._left(until):
                            raise PageRefused(f"the server dies of the page, which it had alone: {error}") from error
                        raise
                    raise

    def _control(self, until: Deadline) -> None:
        """The way to the server may be another page's alone, and it may just have died of that one: here it need only
        be there. Whether it reads is asked when the page is alone with it, which it is next."""
        while not self._alive():
            self._server.settle(self._left(until))
            if not self._left(until):
                raise ServerLost(f"{self._service.name} was away for all of a page's time")
        self._mine.suspect = self._mine.asked

    def _prove(self, until: Deadline) -> None:
        """Has the server read a page of ours before it is alone with one that it may not survive: what goes wrong then
        is the page's doing. vLLM may answer for itself while its engine hangs: it is started again, once.

        Raises: Unavailable or ServerLost where it doesn't read it, BadRequest where it reads none.
        """
        by = Deadline(until.latest, until.latest)
        life = self._server.starts
        failure = self._service.fails(super()._control, by)
        if failure and self._left(until):
            self._server.restart(life, self._left(until))
            failure = self._service.fails(super()._control, by)
        if failure:
            why = self._service.told(failure)
            raise Unavailable(f"{self._service.name} runs, but does not read even a page of ours: {why}") from failure
        self._server.vouch()

    def _alive(self) -> bool:
        import httpx

        try:
            self._models()
        except (httpx.RequestError, Answered, Broken):
            return False
        return True

    def _has_lost(self, error: Broken | Answered, life: int) -> bool:
        """Whether the answer tells that the server goes: vLLM's tells all that it has in hand when its engine dies. By
        now it may be in another life than when it was asked."""
        if isinstance(error, Answered) and error.status < 500:
            return False
        return not self._alive() or self._server.starts != life  # in this order: it may come up in between

    def _settle(self, until: Deadline) -> None:
        broke = self._clock.now()
        try:
            self._server.settle(self._left(until))
        finally:
            until.extend(self._clock.now() - broke)

    def _left(self, until: Deadline) -> float:
        """Seconds in which a page may still wait for the server, or for its turn."""
        return max(0.0, until.latest - self._clock.now())


class _Lane:
    """The way to the server: for many at a time, or for one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together = 0
        self._alone = 0  # who are or want to be

    @contextmanager
    def enter(self, *, alone: bool, seconds: float) -> Iterator[None]:
        """Raises: Unavailable where that isn't possible within so many seconds."""
        with self._changed:
            self._alone += alone
            free = (lambda: self._together == 0) if alone else (lambda: self._alone == 0)
            if not self._changed.wait_for(free, seconds):
                self._alone -= alone
                self._changed.notify_all()
                raise Unavailable(f"the server is busy with pages that it may have died of, for {seconds:.0f} s by now")
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._alone -= alone
                self._changed.notify_all()


def _serve(preset: Preset, *, pinned: bool) -> list[str]:
    """The command of vLLM's server, to be filled in. Offline it finds a name's pinned weights where the image has them.

    Raises: BadRequest where there is no vLLM.
    """
    if not shutil.which("vllm"):
        raise BadRequest(
            f"engine vllm: there is no program vllm here: {INSTALL_VLLM}. A GPU image has it if it is built with it "
            "(docs/image.md); a server that runs elsewhere is reached with --engine openai"
        )
    revision = ["--revision", "{revision}"] if pinned else []
    # vLLM would take float16 on a card without bfloat16, in which these write nonsense: better that it refuses.
    dtype = [] if preset.without_bf16 == "float16" else ["--dtype", "bfloat16"]
    served = ["--served-model-name", "{name}", "--host", "127.0.0.1", "--port", "{port}"]
    # The longest text that the card has memory for, where that is less than the model's own limit.
    return ["vllm", "serve", "{model}", *revision, *served, *dtype, "--max-model-len", "auto"]


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
