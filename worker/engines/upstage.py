"""Upstage's Document OCR: a paid service that reads words, with polygons and confidences.

Protocol: https://console.upstage.ai/api/parse/document-ocr, as of September 2026.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from worker.contract import Line, Point
from worker.engines import EngineSettings, PageImage, PageText
from worker.engines.guards import control_page
from worker.engines.options import Taker
from worker.errors import BadRequest
from worker.layout.text import escape
from worker.remote import Broken, Clock, Deadline, PageRefused, RateLimit, Service, Unavailable, check, request_id
from worker.wording import plural

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

KEY = "UPSTAGE_API_KEY"
BASE_URL = "https://api.upstage.ai/v1"
MODEL = "ocr"  # an alias that moves: results name the model that it stood for
REQUESTS_PER_SECOND = 3.0  # what Upstage grants an account
TIMEOUT = 190.0  # Upstage gives up by itself after 180 s
MOST_BYTES = 50 * 10**6
LONGEST_SIDE = 8000  # well within its 100 million pixels a page
JPEG_QUALITY = 95


def _or_none(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    """Nothing in place of what makes no sense: the rest of the answer has been paid for, too."""
    try:
        return parse(value)
    except ValidationError:
        return None


class _Vertex(BaseModel):
    x: FiniteFloat = 0.0
    y: FiniteFloat = 0.0


class _Box(BaseModel):
    vertices: list[_Vertex]  # clockwise from the word's own top left


class _Word(BaseModel):
    text: str
    confidence: Annotated[Annotated[float, Field(ge=0, le=1)] | None, WrapValidator(_or_none)] = None
    box: Annotated[_Box | None, WrapValidator(_or_none), Field(alias="boundingBox")] = None


class _Page(BaseModel):
    width: Annotated[float, Field(gt=0)]
    height: Annotated[float, Field(gt=0)]
    text: str = ""  # all words, in rows
    words: list[_Word] = []


class _Answer(BaseModel):
    """What we use of it."""

    pages: Annotated[list[_Page], Field(min_length=1)]
    model: Annotated[str, Field(alias="modelVersion")]
    billed: Annotated[int, Field(alias="numBilledPages", ge=0)] = 1


class UpstageEngine:
    """Reads pages at Upstage, and pays for each.

    Options: `unit`: what a line of the result is, a `line` or a `word`; `rate`: requests a second, of this worker;
    `concurrency`; `timeout`, `page_deadline` (seconds), `attempts`; `price_per_page`: what Upstage charges you, in
    dollars, to have costs counted; `key_secret`: ARN of a secret in AWS Secrets Manager, instead of UPSTAGE_API_KEY;
    `model`, `base_url`.
    """

    name = "upstage"
    batch_size = 1  # a call that fails takes no other page's answer with it: that has been paid for
    longest_side = LONGEST_SIDE

    def __init__(self, settings: EngineSettings, clock: Clock | None = None) -> None:
        """Raises: BadRequest for wrong options, or where there is no key."""
        taker = Taker(self.name, settings.options)
        self._by_word = taker.text("unit", "line", choices=("line", "word")) == "word"
        self.concurrency = taker.integer("concurrency", 3, 1)
        self.model = taker.text("model") or MODEL
        self.revision: str | None = None  # the model that answered last
        self._price = taker.number("price_per_page", 0.0)
        self._rate = RateLimit(taker.number("rate", REQUESTS_PER_SECOND, 0.01), clock=clock)
        secret = taker.text("key_secret")
        patience = taker.patience(settings.timeout, attempts=6, deadline=min(500.0, 0.8 * settings.timeout))
        base_url, timeout = taker.text("base_url") or BASE_URL, taker.number("timeout", TIMEOUT, 0.001)
        key = settings.api_keys.get(KEY)
        taker.done(None if key or secret else f"a key: set {KEY}, or --engine-option key_secret=ARN of a secret")
        if secret:
            key = _read_secret(secret)
        self._service = Service(
            name="Upstage",
            base_url=base_url,
            key=key,
            key_from=f"{KEY}, or the secret that key_secret names",
            patience=patience,
            timeout=timeout,
            connections=self.concurrency,
            clock=clock or Clock(),
        )
        self._billed = 0
        self._counting = threading.Lock()

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        """One PageText per page. Raises: Unavailable or BadRequest, which end the run."""
        return [self._read_page(page) for page in pages]

    def close(self) -> None:
        if self._billed:
            cost = f", {self._billed * self._price:,.2f} $" if self._price else ""
            log.info("Upstage has billed %s%s", plural(self._billed, "page"), cost)
        self._service.close()

    def _read_page(self, page: PageImage) -> PageText:
        details: dict[str, Any] = {"model": self.model} | ({"unit": "word"} if self._by_word else {})
        try:
            send = partial(self._send, *_encoded(page), details)
            answer, details["resent"] = self._service.ask(send, self._service.until(), partial(self._control, details))
        except PageRefused as error:
            return PageText(page.width, page.height, error=self._service.told(error), details=details)
        self._count(answer, details)
        return self._text(page, answer.pages[0], details)

    def _send(self, data: bytes, kind: str, details: dict[str, Any], until: Deadline) -> _Answer:
        """One request. Raises: Answered, Broken, httpx.RequestError, PageRefused."""
        self._rate.wait()
        number = self._service.number()
        response = check(
            self._service.http.post(
                f"{self._service.base_url}/document-digitization",
                files={"document": (f"page.{kind}", data, f"image/{kind}")},
                data={"model": self.model},
                timeout=self._service.timeouts(until.at),
            )
        )
        request = request_id(response.headers)
        details |= {"request": request} if request else {}
        answer = _understood(response)
        self._service.hear(number)
        return answer

    def _control(self, details: dict[str, Any], until: Deadline) -> None:
        """Has a page of ours read. It is paid for, as there is nothing to ask that isn't, but only where another page
        was not read and so is not paid for: its record tells the cost. Raises: as `_send`, but Broken for all that
        makes no sense."""
        try:
            self._count(self._send(*_encoded(control_page()), {}, until), details)
        except PageRefused as error:
            raise Broken(str(error)) from error

    def _count(self, answer: _Answer, details: dict[str, Any]) -> None:
        """What the page has cost, beside what it has before, and which model read it."""
        details["model"] = self.revision = answer.model
        details["billed_pages"] = details.get("billed_pages", 0) + answer.billed
        if self._price:
            details["cost"] = round(details["billed_pages"] * self._price, 6)
        with self._counting:
            self._billed += answer.billed

    def _text(self, page: PageImage, read: _Page, details: dict[str, Any]) -> PageText:
        rows = read.text.split("\n")
        if self._by_word:
            lines = [_line([word], page, read) for word in read.words]
            text = "\n".join(escape(row.strip()) for row in rows)
            return PageText(page.width, page.height, lines=lines, markdown=text, details=details)
        grouped, left = _in_rows(read.words, rows)
        lines = [_line(words, page, read) for words in grouped] + [Line(text=row) for row in left]
        return PageText(page.width, page.height, lines=lines, details=details)


def _understood(response: httpx.Response) -> _Answer:
    """Raises: Broken where it is no JSON, as what a proxy says during maintenance: nobody bills that. PageRefused where
    it is JSON that makes no sense: that has been paid for, and is not asked for again."""
    try:
        return _Answer.model_validate_json(response.content)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise Broken(f"the answer is no JSON: {response.text[:100]!r}") from error
        why = f"{plural(error.error_count(), 'error')}, such as {error.errors()[0]['msg']}"
        raise PageRefused(f"Upstage's answer makes no sense ({why}): {response.text[:100]!r}") from error


def _encoded(page: PageImage) -> tuple[bytes, str]:
    """The page as PNG; as JPEG where that would be more than Upstage takes. Raises: PageRefused if that is, too."""
    from PIL import Image

    picture = Image.fromarray(page.pixels)
    write: list[tuple[str, Callable[[BytesIO], None]]] = [
        ("png", lambda file: picture.save(file, "png", compress_level=1)),
        ("jpeg", lambda file: picture.save(file, "jpeg", quality=JPEG_QUALITY)),
    ]
    for kind, save in write:
        file = BytesIO()
        save(file)
        if file.tell() <= MOST_BYTES:
            return file.getvalue(), kind
    raise PageRefused(f"a page of {page.width}x{page.height} takes more than the 50 MB that Upstage accepts")


def _in_rows(words: list[_Word], rows: list[str]) -> tuple[list[list[_Word]], list[str]]:
    """Words by the rows of the page's text, which holds the same words in the same order, each by itself if not; and
    what of the text comes after the last word."""
    left = iter(words)
    grouped = []
    after: list[str] = []
    for row in rows:
        taken: list[_Word] = []
        rest = row.strip()
        while rest:
            word = next(left, None)
            if word is None:
                after.append(rest)
                break
            if not word.text or not rest.startswith(word.text):
                return [[word] for word in words], []
            taken.append(word)
            rest = rest[len(word.text) :].lstrip()
        if taken:
            grouped.append(taken)
    return (grouped, after) if next(left, None) is None else ([[word] for word in words], [])


def _line(words: list[_Word], page: PageImage, read: _Page) -> Line:
    """Words side by side as a line; its confidence is the mean over its characters."""
    known = [(word.confidence, len(word.text)) for word in words if word.confidence is not None]
    characters = sum(count for _, count in known)
    confidence = sum(score * count for score, count in known) / characters if characters else None
    return Line(
        text=" ".join(word.text for word in words),
        confidence=None if confidence is None else round(confidence, 4),
        polygon=_outline(words, page, read),
    )


def _outline(words: list[_Word], page: PageImage, read: _Page) -> list[Point] | None:
    """The rectangle around words that lies as they do, clockwise from its top left; one word's own corners. In pixels
    of the page, whatever size Upstage has seen it in. None where no word has a place."""
    boxes = [word.box.vertices for word in words if word.box and len(word.box.vertices) == 4]
    if not boxes:
        return None
    across, down = page.width / read.width, page.height / read.height
    points = [(corner.x * across, corner.y * down) for box in boxes for corner in box]
    if len(boxes) > 1:
        (x0, y0), (x1, y1) = points[0], points[-3]  # top left of the first word, top right of the last
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        ux, uy = (x1 - x0) / length, (y1 - y0) / length  # along the line; (-uy, ux) is down
        xs, ys = [x * ux + y * uy for x, y in points], [y * ux - x * uy for x, y in points]
        corners = ((min(xs), min(ys)), (max(xs), min(ys)), (max(xs), max(ys)), (min(xs), max(ys)))
        points = [(x * ux - y * uy, x * uy + y * ux) for x, y in corners]
    return [(round(min(max(x, 0), page.width)), round(min(max(y, 0), page.height))) for x, y in points]


def _read_secret(arn: str) -> str:
    """The key that a secret holds, plain or as JSON with the field UPSTAGE_API_KEY.

    Raises: BadRequest, or Unavailable where a later attempt may succeed.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    parts = arn.split(":")
    if len(parts) < 7 or parts[2] != "secretsmanager":
        raise BadRequest(f"key_secret must be the ARN of a secret in AWS Secrets Manager, not {arn!r}")
    try:
        answer = boto3.client("secretsmanager", region_name=parts[3]).get_secret_value(SecretId=arn)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        message = f"the secret {arn} cannot be read: {code}"
        if code in ("ThrottlingException", "InternalServiceError"):
            raise Unavailable(message) from error
        raise BadRequest(f"{message}; does it exist, has it a value, and may this worker's role read it?") from error
    except NoCredentialsError as error:
        raise BadRequest(f"the secret {arn} cannot be read: there are no AWS credentials here") from error
    except BotoCoreError as error:
        raise Unavailable(f"the secret {arn} cannot be read: {error}") from error
    held = str(answer.get("SecretString", ""))  # none of a binary one
    try:
        fields = json.loads(held)
    except ValueError:
        fields = {KEY: held}
    key = fields.get(KEY) if isinstance(fields, dict) else None
    if not isinstance(key, str) or not key.strip():
        raise BadRequest(f"the secret {arn} must hold the key alone, as text, or JSON with the field {KEY}")
    return key.strip()
