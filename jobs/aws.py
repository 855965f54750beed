"""AWS as the runner of Batch jobs uses it: clients that are made when first needed, and what AWS refuses, told in our
words with what to do next."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from jobs.errors import CliExit, JobError
from worker.aws import THROTTLED, no_bucket, refused_credentials, throttled, unreachable, wrong_setup

T = TypeVar("T")

ATTEMPTS = 10  # of one request: botocore retries what is throttled, and slows down

_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"}


class AwsError(JobError):
    """AWS answers with an error, or not at all. `code` is AWS's own, empty where nothing came back."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Denied(AwsError):
    """The credentials are good, but do not allow this."""


class Throttled(AwsError):
    """AWS has done nothing, as it is asked too often."""


class Unreachable(AwsError):
    """No connection was made: AWS has not heard of the request."""


class NoAnswer(AwsError):
    """AWS may have done what it was asked for: the answer was lost, or tells of an error on its side."""


class Credentials(AwsError):
    """There are no credentials or no region, or they are no longer good: nothing else can be asked."""

    exit_code = CliExit.RUN_FAILED


class Aws:
    """Clients of one region. Thread-safe."""

    def __init__(self, region: str | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        """Without a `region` the one of the environment or the profile counts."""
        self.region = region
        self.sleep = sleep
        self._session: Any = None
        self._clients: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()

    def call(self, service: str, operation: str, **arguments: Any) -> Any:
        """One request, such as `call("batch", "describe_jobs", jobs=[…])`.

        Raises: AwsError, Denied or Credentials.
        """
        return self._told(f"{service} {operation}", lambda: getattr(self._client(service), operation)(**arguments))

    def call_once(
        self, service: str, operation: str, check: Callable[[], None] = lambda: None, **arguments: Any
    ) -> Any:
        """As `call`, of what must not be done twice: asked again only where AWS has certainly done nothing.

        Each time `check` is called before; where it raises, nothing is asked for.
        Raises: as `call`; NoAnswer where it is not known whether it was done.
        """
        what = f"{service} {operation}"
        for attempt in range(1, ATTEMPTS + 1):
            check()
            try:
                return self._told(what, lambda: getattr(self._client(service, attempts=1), operation)(**arguments))
            except (Throttled, Unreachable):
                if attempt == ATTEMPTS:
                    raise
                self.sleep(random.uniform(0, min(20.0, 2.0**attempt)))
        raise AssertionError("unreachable")

    def pages(self, service: str, operation: str, **arguments: Any) -> Iterator[Any]:
        """The pages of an answer that comes in several; raises as `call`."""
        what = f"{service} {operation}"
        pages = iter(self._told(what, lambda: self._client(service).get_paginator(operation).paginate(**arguments)))
        while True:
            page = self._told(what, lambda: next(pages, None))
            if page is None:
                return
            yield page

    def _client(self, service: str, attempts: int | None = None) -> Any:
        import boto3
        from botocore.config import Config

        attempts = attempts or ATTEMPTS
        with self._lock:
            if (service, attempts) not in self._clients:
                self._session = self._session or boto3.Session(region_name=self.region)
                config = Config(retries={"mode": "standard", "total_max_attempts": attempts}, connect_timeout=10)
                self._clients[service, attempts] = self._session.client(service, config=config)
            return self._clients[service, attempts]

    def _told(self, what: str, request: Callable[[], T]) -> T:
        from botocore import exceptions as aws
        from botocore.parsers import ResponseParserError

        try:
            return request()
        except aws.ClientError as error:
            raise _translated(error, what) from error
        except (aws.EndpointConnectionError, aws.ConnectTimeoutError, aws.ProxyConnectionError) as error:
            raise Unreachable(unreachable(what, error)) from error
        except (aws.HTTPClientError, aws.ConnectionError, ResponseParserError) as error:
            raise NoAnswer(f"AWS gives no answer to {what}: {error}; check the network") from error
        except aws.ParamValidationError as error:
            raise AwsError(f"{what} is refused: {error}") from error
        except (aws.BotoCoreError, ValueError) as error:
            if said := wrong_setup(error):
                raise Credentials(said) from error
            raise


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _translated(error: Any, what: str) -> AwsError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    message = str(error.response.get("Error", {}).get("Message", "")).strip().rstrip(".")
    if said := refused_credentials(code):
        return Credentials(said, code)
    if code in _DENIED:
        return Denied(f"AWS denies {what} to these credentials: {message}; use the operator role", code)
    if code in THROTTLED:
        return Throttled(throttled(what, ATTEMPTS), code)
    if code == "NoSuchBucket":
        return AwsError(no_bucket(error.response["Error"].get("BucketName", "")), code)
    failed = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
    return (NoAnswer if failed else AwsError)(f"AWS answers {what} with {code}: {message}", code)
