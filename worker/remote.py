"""Services that read pages over HTTP: what is tried again and when, whose fault a failure is, and how fast they may be
asked. One patience for all of them; what is sent and how an answer is read is the engines' own."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from worker.errors import BadRequest, TryAgain

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_SECONDS = 10.0
CALL_SHARE = 0.9  # of the time that a call of the engine may take: past it, nothing is waited for
PROBE_SECONDS = 10.0  # in which a service must tell that it is there
IDLE_SECONDS = 2.0  # after which a connection isn't used again: uvicorn, and so vLLM, closes it after five
EXCERPT = 300  # characters of an answer that go into a message
BUSY = frozenset({408, 425, 429, 529})  # statuses that say nothing of the page: too fast, or overloaded
WRONG_RUN = {
    301: "its address is another",
    302: "its address is another",
    307: "its address is another",
    308: "its address is another",
    401: "the key is wrong or missing",
    402: "the account has no credit",
    403: "the key may not do this",
    404: "there is no such address or model",
    405: "there is no such address",
}


@dataclass(frozen=True)
class Clock:
    """Time, for tests to set."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Patience:
    """How often and how long one page's request is tried. Seconds."""

    attempts: int = 6  # the first included
    first_wait: float = 1.0  # doubled each time; half of it is chance, so that many workers don't come back at once
    longest_wait: float = 60.0  # unless a `Retry-After` asks for more
    deadline: float = 300.0  # for all of it: what asks to wait past it has failed
    call: float = 540.0  # with what the page waits for that is not its own doing. Less than `Options.engine_timeout`


@dataclass
class Deadline:
    """When a page's time is up, by the service's clock."""

    own: float  # but for what it has had to wait for, which `extend` gives back
    latest: float  # whatever it has had to wait for

    @property
    def at(self) -> float:
        return min(self.own, self.latest)

    @property
    def cut(self) -> bool:
        """Whether waiting has taken of the page's own time: that this is up is then not the page's fault."""
        return self.own > self.latest

    def extend(self, seconds: float) -> None:
        self.own += seconds


class PageRefused(Exception):
    """This page can't be read by the service, however often it is asked. The message is for the page's record."""


class Unavailable(TryAgain):
    """The service did not answer, past its retries. No document's fault."""


class Answered(Exception):
    """An answer that is no success."""

    def __init__(self, response: httpx.Response, body: str) -> None:
        self.status = response.status_code
        self.body = body
        self.retry_after = seconds_to_wait(response.headers.get("retry-after"), datetime.now(UTC))
        self.request_id = request_id(response.headers)
        said = " ".join(body.split())
        told = f": {said[:EXCERPT]}" if said else ""
        super().__init__(f"{self.status}{told}" + (f" (request {self.request_id})" if self.request_id else ""))


class Broken(Exception):
    """An answer that broke off, or that makes no sense."""


@dataclass
class Service:
    """One service, and the threads that ask it. `key` is sent with each request and never told."""

    name: str  # in messages
    base_url: str
    key: str | None = field(default=None, repr=False)
    key_from: str = ""  # where it is set, for messages
    patience: Patience = field(default_factory=Patience)
    timeout: float = 120.0  # seconds without a byte
    connections: int = 16
    clock: Clock = field(default_factory=Clock)
    sent: int = field(default=0, init=False)  # requests so far; see `number`
    heard: int = field(default=0, init=False)  # the latest of them that a page's text has come of; see `hear`

    def __post_init__(self) -> None:
        """Raises: BadRequest for an address that is none, or that holds a secret, and for a key that can't be sent."""
        import httpx

        logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every request
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadRequest("base_url must be the address of a server, as in http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise BadRequest(f"base_url must be an address alone: a key goes into the environment ({self.key_from})")
        if self.key and not all("!" <= sign <= "~" for sign in self.key):  # a refusal of the header would tell it
            raise BadRequest(
                f"the key of {self.name} holds a space or another sign that no key has: see {self.key_from}"
            )
        self.base_url = self.base_url.rstrip("/")
        self._counting = threading.Lock()
        self.http = httpx.Client(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=PROBE_SECONDS,
            limits=httpx.Limits(max_connections=self.connections, keepalive_expiry=IDLE_SECONDS),
            trust_env=parts.hostname not in ("localhost", "127.0.0.1", "::1"),  # a proxy has no way to this machine
        )

    def close(self) -> None:
        self.http.close()

    def timeouts(self, until: float) -> httpx.Timeout:
        """For one request: neither silent for longer than agreed, nor under way for much longer than until then."""
        import httpx

        left = max(0.001, until - self.clock.now())
        return httpx.Timeout(min(self.timeout, left), connect=min(CONNECT_SECONDS, self.timeout), pool=None)

    def told(self, error: object) -> str:
        """A message without the key, which some services send back with their refusal."""
        text = str(error) or type(error).__name__
        return text.replace(self.key, "…") if self.key else text

    def wrong_run(self, error: Answered) -> BadRequest:
        """For a refusal that each page would meet."""
        why = f"{WRONG_RUN[error.status]} ({self.told(error)})" if error.status in WRONG_RUN else self.told(error)
        hint = f"; set {self.key_from}" if error.status in (401, 403) and self.key_from else ""
        return BadRequest(f"{self.name} refuses: {why}{hint}")

    def until(self) -> Deadline:
        """When the time for a page that begins now will be up."""
        now, patience = self.clock.now(), self.patience
        return Deadline(now + patience.deadline, now + max(patience.call, patience.deadline))

    def number(self) -> int:
        """Of a request, to be asked for when it is sent."""
        with self._counting:
            self.sent += 1
            return self.sent

    def hear(self, number: int) -> None:
        """To be called where a page's text has come of that request: pages that have failed before it was sent, and
        fail again, are then not the service's fault. One sent before may have been answered before an outage began."""
        with self._counting:
            self.heard = max(self.heard, number)

    def ask(
        self, send: Callable[[Deadline], T], until: Deadline, control: Callable[[Deadline], object]
    ) -> tuple[T, int]:
        """What `send` returns, and how often it was tried again. `send` gets the time by which it must be done, and
        extends it by what is not the page's.

        It raises `Answered`, `Broken` or `httpx.RequestError`. Answers of 4xx are final; all else is tried again.

        An outage is told from a page that the service chokes on before the last try: by another page that was asked
        for and answered since the try before, or else by `control`, which asks it for something that it can do, and
        raises as `send`. Only a page that fails once more after that is to blame.

        Raises: PageRefused, Unavailable, or BadRequest where each page would end like this one.
        """
        import httpx

        patience = self.patience
        tries, last, lives = 0, False, False
        while True:
            tries += 1
            wait = min(patience.longest_wait, patience.first_wait * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
            try:
                return send(until), tries - 1
            except Answered as error:
                if error.status in WRONG_RUN:
                    raise self.wrong_run(error) from error
                if error.status < 500 and error.status not in BUSY:
                    raise PageRefused(f"{self.name} refuses the page: {self.told(error)}") from error
                if error.retry_after is not None:
                    wait = max(wait, error.retry_after * random.uniform(1.0, 1.1))
                busy = error.status in BUSY or error.retry_after is not None
                failure: Exception = error
            except httpx.LocalProtocolError as error:
                raise BadRequest(f"{self.name} can't be asked: {self.told(error)}") from error
            except (httpx.RequestError, Broken) as error:
                busy = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                failure = error
            late = self.clock.now() + wait > until.at
            if late and not last:
                self.excuse(until)
            if last or (busy and (late or tries == patience.attempts)):
                break
            last = late or tries + 1 >= patience.attempts
            sent = self.sent
            if late:
                until.own = until.latest  # once more, in what is left of the call
            else:
                log.info("%s: %s; trying again in %.1f s", self.name, self.told(failure), wait)
                self.clock.sleep(wait)
            if last and not busy:
                if self.heard <= sent:
                    self._check_lives(control, until, failure)
                lives = True
        if lives and not busy:
            raise PageRefused(
                f"{self.name} could not read the page in {_tries(tries)}, while it reads others: {self.told(failure)}"
            ) from failure
        raise Unavailable(f"{self.name} does not answer after {_tries(tries)}: {self.told(failure)}") from failure

    def _check_lives(self, control: Callable[[Deadline], object], until: Deadline, failure: Exception) -> None:
        """Whether the service does what it can. Raises: Unavailable if not, for the page that has met `failure`, or
        BadRequest where it refuses that as it would any page."""
        by = max(until.latest, self.clock.now() + PROBE_SECONDS)
        if error := self.fails(control, Deadline(by, by)):
            raise Unavailable(
                f"{self.name} reads neither the page ({self.told(failure)}) nor one of ours that it could "
                f"({self.told(error)}): it is away"
            ) from error

    def fails(self, control: Callable[[Deadline], object], until: Deadline) -> Exception | None:
        """What the service fails with where it is asked for what it can do; None if it does it.

        Raises: BadRequest where it refuses that as it would any page.
        """
        import httpx

        try:
            control(until)
        except (Answered, Broken, httpx.RequestError) as error:
            if isinstance(error, Answered) and error.status in WRONG_RUN:
                raise self.wrong_run(error) from error
            return error
        return None

    def excuse(self, until: Deadline) -> None:
        """For a page whose time is up. Raises: Unavailable where it was the service that has taken it."""
        if until.cut:
            raise Unavailable(f"{self.name} was away for too long, or busy with other pages, to read this one")


class RateLimit:
    """A token bucket: at most `rate` requests a second over time, and `burst` at once. Shared by threads."""

    def __init__(self, rate: float, burst: int = 1, clock: Clock | None = None) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._free_at = self._clock.now() - burst / rate  # when the bucket would have been empty

    def wait(self) -> None:
        """Until it is this caller's turn; turns are given in the order of the calls."""
        with self._lock:
            now = self._clock.now()
            self._free_at = max(self._free_at, now - self._burst / self._rate) + 1 / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._clock.sleep(wait)


def _tries(count: int) -> str:
    return f"{count} {'try' if count == 1 else 'tries'}"


def check(response: httpx.Response) -> httpx.Response:
    """The response, where it is a success. Raises: Answered."""
    if response.is_success:
        return response
    raise Answered(response, response.read().decode(errors="replace"))


def request_id(headers: Mapping[str, str]) -> str | None:
    """What the service calls the request, for its support to find it."""
    return headers.get("x-request-id") or headers.get("x-upstage-request-id") or headers.get("request-id")


def seconds_to_wait(header: str | None, now: datetime) -> float | None:
    """Of a `Retry-After`: seconds, or a date (RFC 9110, 10.2.3). None where there is none that can be understood."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
