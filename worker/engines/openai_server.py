"""Vision models behind an OpenAI-compatible server: vLLM, `transformers serve`, a provider. A page is one streamed chat
completion, so that a loop is cut where it begins to cost and a stream that breaks off is noticed."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from worker.engines import EngineSettings, PageImage, PageText
from worker.engines.fallback import Fallback
from worker.engines.guards import TEMPERATURES, control_page, repeating_tail
from worker.engines.options import Taker
from worker.engines.outputs import PARSERS
from worker.engines.presets import PRESETS, Licence, Preset, Prompt
from worker.errors import BadRequest
from worker.remote import BUSY, Answered, Broken, Clock, Deadline, PageRefused, Service, Unavailable, check, request_id

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
READY_SECONDS = 120.0
POLL_SECONDS = 1.0
TELL_SECONDS = 4.0  # of waiting for the server, before it is told why nothing is read ...
TELL_AGAIN_SECONDS = 30.0  # ... and from then on
CONTROL_TOKENS = 16  # of the answer to a page of ours: it need not be read to its end
CHECK_EVERY = 1000  # characters of new text after which a loop is looked for
CHARACTERS_PER_TOKEN = 32  # more than any tokeniser packs into one on average: a server that ignores the cap is stopped

# For a server that holds a model without a preset.
ANY = Preset(
    name="any",
    hub_id="",
    parameters="",
    revision="",
    min_transformers="",
    architecture="",
    prompts={
        "markdown": Prompt(
            "Transcribe this page to markdown, word for word, in reading order. Write tables as HTML and formulas as "
            "LaTeX. Add nothing, correct nothing, leave nothing out. Answer with the transcription alone.",
            "markdown",
        ),
        "text": Prompt(
            "Transcribe the text of this page word for word, line by line. Add nothing, correct nothing, leave nothing "
            "out. Answer with the transcription alone.",
            "text",
        ),
    },
    default_task="markdown",
    licence=Licence("the model's"),
    longest_side=2048,
    min_pixels=None,
    max_pixels=None,
    max_new_tokens=8192,
)

_OPTIONAL = ("top_k", "repetition_penalty", "stream_options", "temperature")  # parameters that not every server takes

_ECHO = re.compile(r"""["']?\binput["']?\s*[:=]""")  # from here on, an error tells what it was given


@dataclass
class Answer:
    """One completion as far as it has come."""

    text: str = ""
    stop: str | None = None  # "end", "length", "repetition", "deadline", or what else the server calls it
    model: str | None = None
    request: str | None = None
    temperature: float | None = None  # that it was asked for with; None if the server takes none
    usage: dict[str, int] = field(default_factory=dict)


class OpenAiEngine:
    """Reads pages with whatever vision model a server holds.

    Options: `base_url`; `preset`, `task`, `prompt`, `model`, `max_new_tokens`: what is asked; `concurrency`; `timeout`
    (seconds without a byte), `page_deadline` (seconds), `attempts` (of one request), `ready` (seconds to wait for the
    server); `fallback`: the engine that reads what the model can't; `raw`: keep its text in the result.
    """

    name = "openai"
    batch_size = 1  # a call that fails takes no other page's answer with it
    attempts = 6

    def __init__(self, settings: EngineSettings, clock: Clock | None = None) -> None:
        """Waits for the server. Raises: BadRequest for wrong options or a wrong key, Unavailable past the deadline."""
        self._configure(settings, clock or Clock())
        taker = self._taker
        base_url = taker.text("base_url") or ""
        model = taker.text("model")
        taker.done(None if base_url else "the server's address: --engine-option base_url=http://127.0.0.1:8000/v1")
        self._connect(base_url, settings.api_keys.get(KEY))
        try:
            self._wait_ready(model)
        except BaseException:
            self.close()
            raise

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        """One PageText per page, whatever the server says. Raises: Unavailable or BadRequest, which end the run."""
        return [self._read_page(page) for page in pages]

    def close(self) -> None:
        self._service.close()
        self._fallback.close()

    # ---- beginning

    def _configure(self, settings: EngineSettings, clock: Clock) -> None:
        """Takes the options that all servers have in common."""
        self._clock = clock
        self._taker = taker = Taker(self.name, settings.options)
        readable = [name for name, preset in PRESETS.items() if preset.chat_template]
        preset = taker.text("preset", choices=readable)
        self._preset = PRESETS[preset] if preset else ANY
        task = taker.text("task", self._preset.default_task, choices=list(self._preset.prompts))
        self._prompt = self._preset.prompts[task or self._preset.default_task]
        self._prompt_id = self._preset.prompt_id(task or self._preset.default_task)
        if own := taker.text("prompt"):
            preset_of_own = replace(self._preset, prompts={"own": Prompt(own, self._prompt.parser)})
            self._prompt, self._prompt_id = preset_of_own.prompts["own"], preset_of_own.prompt_id("own")
        self.longest_side = self._preset.longest_side
        self.concurrency = taker.integer("concurrency", 8, 1)
        self._max_tokens = taker.integer("max_new_tokens", self._preset.max_new_tokens, 1)
        self._timeout = taker.number("timeout", 120.0, 0.001)
        self._patience = taker.patience(
            settings.timeout, attempts=self.attempts, deadline=min(300.0, 0.5 * settings.timeout)
        )
        self._ready_seconds = taker.number("ready", READY_SECONDS)
        self._keep_raw = taker.flag("raw")
        self._fallback = Fallback(
            taker.text("fallback"), settings, writes_markdown=self._prompt.parser != "hunyuan-spotting"
        )
        self._dropped: set[str] = set()  # parameters that the server doesn't take
        self._dropping = threading.Lock()

    def _connect(self, base_url: str, key: str | None) -> None:
        self._service = Service(
            name=f"the server at {base_url}",
            base_url=base_url,
            key=key,
            key_from=KEY,
            patience=self._patience,
            timeout=self._timeout,
            connections=self.concurrency,
            clock=self._clock,
        )

    def _wait_ready(self, model: str | None) -> None:
        """Until the server answers, and tells which models it has."""
        import httpx

        began = self._clock.now()
        until, tell = began + self._ready_seconds, began + TELL_SECONDS
        while True:
            try:
                self.model, self.revision = self._chosen(model, self._models())
                return
            except Answered as error:
                if error.status < 500 and error.status not in BUSY:
                    raise self._service.wrong_run(error) from error
                failure: Exception = error
            except (httpx.RequestError, Broken) as error:
                failure = error
            now = self._clock.now()
            if now + POLL_SECONDS > until:
                raise Unavailable(
                    f"{self._service.name} is not ready after {self._ready_seconds:.0f} s: "
                    f"{self._service.told(failure)}; is it running, and is that its address?"
                ) from failure
            if now >= tell:
                tell = now + TELL_AGAIN_SECONDS
                log.warning(
                    "waiting for %s (%s), for %.0f s by now and up to %.0f s; --engine-option ready=SECONDS",
                    *(self._service.name, self._service.told(failure), now - began, self._ready_seconds),
                )
            self._clock.sleep(POLL_SECONDS)

    def _models(self) -> list[str]:
        """Names of the models that the server holds, as far as it tells. Raises as `_complete`."""
        http, base = self._service.http, self._service.base_url
        health = http.get(f"{base.removesuffix('/v1')}/health")
        if health.status_code >= 500:  # a provider has no such address; vLLM says 503 until its engine runs
            check(health)
        try:
            listed = check(http.get(f"{base}/models")).json()
            return [str(entry["id"]) for entry in listed["data"]]
        except Answered as error:
            # A provider may have no list; `transformers serve` fails to make one where nothing was ever downloaded.
            if error.status in (404, 405) or (error.status >= 500 and health.is_success):
                return []
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise Broken(f"its list of models makes no sense: {error}") from error

    def _chosen(self, model: str | None, held: list[str]) -> tuple[str, str | None]:
        """The model to ask for, and its revision where that is known."""
        if not model and self._preset.hub_id in held:
            model = self._preset.hub_id
        if not model and len(held) == 1:
            model = held[0]
        if not model:
            there = f"it has {', '.join(held[:10])}" if held else "it lists none"
            raise BadRequest(f"{self._service.name}: say which model to use, --engine-option model=NAME; {there}")
        return model, None

    # ---- reading

    def _read_page(self, page: PageImage) -> PageText:
        details: dict[str, Any] = {"model": self.model, "revision": self.revision, "prompt": self._prompt_id}
        if max(page.width, page.height) > self._preset.max_aspect * min(page.width, page.height):
            error = f"a page of {page.width}x{page.height} is too long and narrow for the model"
            return self._fallback.read(page, error, details)
        image = _data_uri(page, self._preset.max_pixels)
        until = self._service.until()
        resent, so_far = 0, ""
        for retry, temperature in enumerate(TEMPERATURES):
            try:
                answer, again = self._service.ask(partial(self._complete, image, temperature), until, self._control)
            except PageRefused as refused:
                return self._fallback.read(page, str(refused), details)
            resent += again
            details |= {"model": answer.model or self.model, **answer.usage, "stop": answer.stop}
            details |= {"temperature": answer.temperature} if answer.temperature is not None else {}
            details |= {"retries": retry, "resent": resent}
            details |= {"request": answer.request} if answer.request else {}
            so_far = answer.text or so_far
            if answer.stop not in ("length", "repetition"):
                break
        if answer.stop == "deadline":
            self._service.excuse(until)
        if self._keep_raw:
            details["raw"] = answer.text
        if answer.stop == "end":
            return self._parsed(page, answer.text, details)
        if so_far:
            details["text"] = so_far[: repeating_tail(so_far)]  # what was read is not lost
        return self._fallback.read(page, self._why(answer.stop, retry + 1), details)

    def _why(self, stop: str | None, attempts: int) -> str:
        """Why a page has no text, and what to do."""
        if stop == "repetition":
            return f"the model repeats itself, in each of {attempts} attempts; try --engine-option fallback=rapidocr"
        if stop == "length":
            return (
                f"the model's text does not end within {self._max_tokens:,} tokens, in {attempts} attempts; "
                "try --engine-option max_new_tokens=N with a larger N"
            )
        if stop == "deadline":
            return (
                f"the model was not done within {self._patience.deadline:g} s; "
                "try --engine-option page_deadline=N with a larger N"
            )
        return f"the server ended the text: {stop}"

    def _parsed(self, page: PageImage, text: str, details: dict[str, Any]) -> PageText:
        output = PARSERS[self._prompt.parser](text, page.width, page.height)
        if output.warnings:
            details["warnings"] = list(output.warnings)
        return PageText(page.width, page.height, lines=output.lines, markdown=output.markdown, details=details)

    def _complete(self, image: str, temperature: float, until: Deadline) -> Answer:
        """One request. Raises: Answered, Broken, httpx.RequestError."""
        return self._request(image, temperature, self._max_tokens, until)

    def _control(self, until: Deadline) -> None:
        """Has the server begin to read a page of ours: that it lists its models tells of a gateway, not of what is
        behind it. Raises: as `_complete`."""
        if self._request(_data_uri(control_page(), None), 0.0, CONTROL_TOKENS, until).stop == "deadline":
            raise Broken("there was no time left to ask for another page")

    def _request(self, image: str, temperature: float, max_tokens: int, until: Deadline) -> Answer:
        while True:
            body = self._body(image, temperature, max_tokens)
            try:
                answer = self._stream(body, until.at)
                answer.temperature = body.get("temperature")
                return answer
            except Answered as error:
                if error.status not in (400, 422) or not self._drop(error.body, body):
                    raise

    def _body(self, image: str, temperature: float, max_tokens: int) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": image}}]
        if self._prompt.text:
            content.append({"type": "text", "text": self._prompt.text})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self._preset.system is not None:
            messages.insert(0, {"role": "system", "content": self._preset.system})
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._preset.generation,
        }
        if "max_tokens" in self._dropped:
            body["max_completion_tokens"] = body["max_tokens"]
        return {name: value for name, value in body.items() if name not in self._dropped}

    def _drop(self, said: str, body: dict[str, Any]) -> bool:
        """Leaves out from now on what the server says it doesn't take; whether anything changes by that."""
        words = _named(said)
        named = {name for name in _OPTIONAL if name in body and name in words}
        if "max_tokens" in body and "max_completion_tokens" in words:
            named.add("max_tokens")
        with self._dropping:
            new = named - self._dropped
            self._dropped |= named
        if new:
            log.warning("%s takes no %s: done without", self._service.name, ", ".join(sorted(new)))
        return bool(named)

    def _stream(self, body: dict[str, Any], until: float) -> Answer:
        import httpx

        if self._clock.now() >= until:
            return Answer(stop="deadline")
        service = self._service
        url, timeout = f"{service.base_url}/chat/completions", service.timeouts(until)
        number = service.number()
        with service.http.stream("POST", url, json=body, timeout=timeout) as response:
            check(response)
            answer = Answer(request=request_id(response.headers))
            try:
                if response.headers.get("content-type", "").startswith("application/json"):
                    answer.text = _whole(_take(answer, _json(response.read())))  # a server that doesn't stream
                else:
                    self._follow(answer, response, until)
            except httpx.RequestError as error:
                if answer.stop is None:  # else only the count of tokens is lost
                    late = isinstance(error, httpx.ReadTimeout) and self._clock.now() + 0.05 >= until
                    if not late or not answer.text:  # a page is slow that some text of has come
                        raise
                    answer.stop = "deadline"
        if answer.stop is None:
            raise Broken(f"the stream broke off after {len(answer.text):,} characters")
        if answer.stop in ("end", "length") and repeating_tail(answer.text) is not None:
            answer.stop = "repetition"
        service.hear(number)
        return answer

    def _follow(self, answer: Answer, response: httpx.Response, until: float) -> None:
        """Reads the stream to its end, or to where it makes no sense to read on."""
        parts: list[str] = []
        size = checked = 0
        try:
            for event in _events(response):
                parts.append(_take(answer, event))
                size += len(parts[-1])
                if answer.stop is None and self._clock.now() > until:
                    answer.stop = "deadline"
                    return
                if size - checked >= CHECK_EVERY:
                    checked = size
                    if repeating_tail("".join(parts)) is not None:
                        answer.stop = "repetition"
                        return
                if size > CHARACTERS_PER_TOKEN * self._max_tokens:
                    answer.stop = "length"
                    return
        finally:
            answer.text = _whole("".join(parts))


def _named(said: str) -> set[str]:
    """Words of a refusal, without what it sends back of the request: OpenAI's `error.message`, FastAPI's `detail`, as
    text or as pydantic's list of errors, which vLLM writes into its message, each with the refused `input`."""
    try:
        refusal: Any = json.loads(said)
    except ValueError:
        refusal = said
    error = refusal.get("error", refusal) if isinstance(refusal, dict) else refusal
    told = [error.get(name) for name in ("message", "param", "detail")] if isinstance(error, dict) else [error]
    texts: list[str] = []
    for part in told:
        for each in part if isinstance(part, list) else [part]:
            texts.append(str([each.get("loc"), each.get("msg")] if isinstance(each, dict) else each or ""))
    return {word for text in texts for word in re.findall(r"\w+", _ECHO.split(text)[0])}


def _data_uri(page: PageImage, max_pixels: int | None) -> str:
    """The page as PNG, which keeps what it shows; scaled down to what the model would look at anyway."""
    from PIL import Image

    picture = Image.fromarray(page.pixels)
    if max_pixels and page.width * page.height > max_pixels:
        scale = (max_pixels / (page.width * page.height)) ** 0.5
        picture = picture.resize(
            (max(1, int(page.width * scale)), max(1, int(page.height * scale))), Image.Resampling.LANCZOS
        )
    file = BytesIO()
    picture.save(file, "png", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _events(response: httpx.Response) -> Iterator[Any]:
    """JSON of the server-sent events, to `[DONE]` or the stream's end."""
    for line in _lines(response):
        name, _, value = line.strip().partition(b":")
        if name == b"data":
            if value.strip() == b"[DONE]":
                return
            yield _json(value)


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Ended by line feeds alone: httpx would end them at signs that JSON may hold, too, such as U+2028."""
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    yield rest


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise Broken(f"the answer is no JSON: {data[:100]!r}") from error


def _whole(text: str) -> str:
    """With the halves of characters put together that JSON may have parted, and those that are alone replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _take(answer: Answer, event: Any) -> str:
    """Notes what an event tells, and returns its text. Raises: Broken where it is an error, or nothing known."""
    try:
        if error := event.get("error"):
            raise Broken(f"the server broke off: {str(error)[:200]}")
        answer.model = event.get("model") or answer.model
        if usage := event.get("usage"):
            names = {"prompt_tokens": "prompt_tokens", "completion_tokens": "tokens"}
            answer.usage = {ours: usage[name] for name, ours in names.items() if isinstance(usage.get(name), int)}
        text = ""
        for choice in (event.get("choices") or [])[:1]:
            if reason := choice.get("finish_reason"):
                answer.stop = "end" if reason == "stop" else str(reason)
            text = (choice.get("delta") or choice.get("message") or {}).get("content") or ""
        if not isinstance(text, str):
            raise TypeError(f"its text is {type(text).__name__}")
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise Broken(f"the answer makes no sense: {error}") from error
    return text
