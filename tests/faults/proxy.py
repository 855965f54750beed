"""A proxy before an S3 server that answers badly now and then, as S3 does: 503 SlowDown, a reset, a cut body."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.faults.http import Handler, serving

Fault = Callable[[int, str, str], str | None]  # (number of the request, method, path) → what goes wrong

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
THROTTLED = b'{"__type": "TooManyRequestsException", "message": "Too many requests"}'
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@contextmanager
def faulty_proxy(upstream: str, fault: Fault) -> Iterator[str]:
    """Yields the proxy's address. Faults: "slow_down", "throttled", "denied", "error" (500), "reset", "cut" (half of
    the body); and once the server has done what it was asked for, "lost" (a reset) and "lost_error" (500).
    """
    target = urlsplit(upstream)
    count = 0
    lock = threading.Lock()

    class Proxy(Handler):
        def _serve(self) -> None:
            nonlocal count
            with lock:
                count += 1
                wrong = fault(count, self.command, self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if wrong == "reset":
                return self.reset()
            if wrong in _ANSWERS:
                status, kind, answer = _ANSWERS[wrong]
                return self._answer(status, {"Content-Type": kind}, answer)
            connection = http.client.HTTPConnection(target.hostname or "", target.port)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            data = response.read()
            headers = {key: value for key, value in response.getheaders() if key.lower() not in _HOP}
            connection.close()
            if wrong == "lost":
                return self.reset()
            if wrong == "lost_error":
                return self._answer(500, {}, b"")
            if wrong == "cut":
                self.send_response(response.status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                return self.reset()
            self._answer(response.status, headers, data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    with serving(Proxy) as address:
        yield address


_ANSWERS = {
    "slow_down": (503, "application/xml", SLOW_DOWN),
    "throttled": (429, "application/json", THROTTLED),
    "denied": (403, "application/xml", DENIED),
    "error": (500, "application/xml", b""),
}
_HOP = {"content-length", "connection", "transfer-encoding", "keep-alive", "date", "server"}
