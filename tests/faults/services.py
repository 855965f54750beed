"""A server on loopback that answers as it is told, request by request: what services that read pages do on bad days.
And engines that ask it, in a time that stands still."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tests.faults.http import Handler, serving
from worker.engines import Engine, EngineSettings, PageImage, PageText
from worker.engines.guards import control_page
from worker.engines.openai_server import OpenAiEngine
from worker.remote import Clock
from worker.settings import API_KEYS

E = TypeVar("E", bound=Engine)

KEY = "sk-secret-0123456789"


@dataclass
class Asked:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, tuple[str | None, str, bytes]]:
        """Parts of a multipart body by name: file name, type, content."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        parts = message_from_bytes(head + self.body).get_payload()
        return {
            part.get_param("name", header="content-disposition"): (
                part.get_filename(),
                part.get_content_type(),
                part.get_payload(decode=True),
            )
            for part in parts
        }

    @property
    def image(self) -> Image.Image:
        """The page that Upstage or an OpenAI-compatible server is asked for."""
        if "multipart" in self.headers["content-type"]:
            return Image.open(BytesIO(self.form["document"][2]))
        url = next(part["image_url"]["url"] for part in self.json["messages"][-1]["content"] if "image_url" in part)
        return Image.open(BytesIO(base64.b64decode(url.partition(",")[2])))

    @property
    def is_control(self) -> bool:
        """Whether it is no document's page, but one of the engine's own."""
        return np.array_equal(np.asarray(self.image), control_page().pixels)


@dataclass
class Reply:
    """An answer. Pieces are sent one by one; `cut` resets the connection after them, `hang` leaves it open."""

    pieces: Iterable[bytes] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    hang: bool = False


Script = Callable[[int, Asked], Reply]  # number of the request among those for pages, from 1


@dataclass
class FaultyService:
    """The server's address, and what it was asked for pages so far."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)  # a client has left before the answer's end


@contextmanager
def faulty_service(script: Script, models: Callable[[], Reply] | None = None, port: int = 0) -> Iterator[FaultyService]:
    """Pages are what is POSTed; `models` answers GET, with one model named `tiny` unless told otherwise."""
    lock = threading.Lock()
    release = threading.Event()

    class Pages(Handler):
        def do_GET(self) -> None:
            self._answer(models() if models else json_reply({"data": [{"id": "tiny"}]}))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, body)
            with lock:
                service.asked.append(asked)
                number = len(service.asked)
            self._answer(script(number, asked))

        def _answer(self, reply: Reply) -> None:
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for piece in reply.pieces:
                    if piece:
                        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                if reply.hang:
                    release.wait()
                if reply.cut or reply.hang:
                    return self.reset()
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                service.gone.set()
                self.close_connection = True

    service = FaultyService("")
    with serving(Pages, port) as address:
        service.url = f"{address}/v1"
        try:
            yield service
        finally:
            release.set()


@contextmanager
def nobody() -> Iterator[FaultyService]:
    """An address where nobody listens, nor anybody else can."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield FaultyService(f"http://127.0.0.1:{held.getsockname()[1]}/v1")


def json_reply(value: Any, status: int = 200, **headers: str) -> Reply:
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply([json.dumps(value).encode()], status, {"Content-Type": "application/json", **headers})


def stream(texts: Iterable[str], finish: str | None = "stop", **more: Any) -> Reply:
    """A streamed chat completion as vLLM sends it, each text in an event of its own."""

    def events() -> Iterator[bytes]:
        for text in texts:
            yield event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        if finish:
            yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
            yield event({"choices": [], "usage": {"prompt_tokens": 77, "completion_tokens": 5}})
            yield b"data: [DONE]\n\n"

    pieces = list(events()) if isinstance(texts, list) else events()  # a list's may be sent again
    return Reply(pieces, headers={"Content-Type": "text/event-stream", "x-request-id": "req-1"}, **more)


def event(value: dict[str, Any]) -> bytes:
    said = {"id": "c1", "object": "chat.completion.chunk", "model": "tiny@abc", **value}
    return b"data: " + json.dumps(said, ensure_ascii=False).encode() + b"\n\n"


class SetClock:
    """A clock that stands still but for those who sleep."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept: list[float] = []
        self._lock = threading.Lock()

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self.time += seconds


class SwiftOpenAi(OpenAiEngine):
    """The engine `openai`, for which waiting takes no time."""

    def __init__(self, settings: EngineSettings) -> None:
        clock = SetClock()
        super().__init__(settings, Clock(clock.now, clock.sleep))


def engine_at(
    service: FaultyService, clock: SetClock, build: Callable[[EngineSettings, Clock], E], **options: Any
) -> E:
    """An engine that asks the service, with all keys there are."""
    settings = EngineSettings(1, options={"base_url": service.url, **options}, api_keys=dict.fromkeys(API_KEYS, KEY))
    return build(settings, Clock(clock.now, clock.sleep))


def read_at(
    script: Script, image: PageImage, build: Callable[[EngineSettings, Clock], E], **options: Any
) -> tuple[PageText, FaultyService, SetClock]:
    """Has a page read by a service that follows a script, and tells what happened."""
    clock = SetClock()
    with faulty_service(script) as service:
        reader = engine_at(service, clock, build, **options)
        try:
            (text,) = reader.read([image])
        finally:
            reader.close()
    return text, service, clock
