"""AWS as the runner of Batch jobs uses it: clients that are made when first needed, and what AWS refuses, told in our
words with what to do next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from jobs.errors import CliExit, JobError

T = TypeVar("T")

ATTEMPTS = 10  # of one request: botocore retries what is throttled, and slows down

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_INVALID = {"InvalidClientTokenId", "UnrecognizedClientException", "InvalidSignatureException", "AuthFailure"}
_INVALID |= {"SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken"}
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"}
_THROTTLED = {"Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown"}


class AwsError(JobError):
    """AWS answers with an error, or not at all. `code` is AWS's own, empty where nothing came back."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Denied(AwsError):
    """The credentials are good, but do not allow this."""


class Credentials(AwsError):
    """There are no credentials, or they are no longer good: nothing else can be asked."""

    exit_code = CliExit.RUN_FAILED


class Aws:
    """Clients of one region. Thread-safe."""

    def __init__(self, region: str | None = None) -> None:
        """Without a `region` the one of the environment or the profile counts."""
        self.region = region
        self._session: Any = None
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def call(self, service: str, operation: str, **arguments: Any) -> Any:
        """One request, such as `call("batch", "describe_jobs", jobs=[…])`.

        Raises: AwsError, Denied or Credentials.
        """
        return self._told(f"{service} {operation}", lambda: getattr(self._client(service), operation)(**arguments))

    def pages(self, service: str, operation: str, **arguments: Any) -> Iterator[Any]:
        """The pages of an answer that comes in several; raises as `call`."""
        what = f"{service} {operation}"
        pages = iter(self._told(what, lambda: self._client(service).get_paginator(operation).paginate(**arguments)))
        while True:
            page = self._told(what, lambda: next(pages, None))
            if page is None:
                return
            yield page

    def _client(self, service: str) -> Any:
        import boto3
        from botocore.config import Config

        with self._lock:
            if service not in self._clients:
                self._session = self._session or boto3.Session(region_name=self.region)
                config = Config(retries={"mode": "standard", "max_attempts": ATTEMPTS}, connect_timeout=10)
                self._clients[service] = self._session.client(service, config=config)
            return self._clients[service]

    def _told(self, what: str, request: Callable[[], T]) -> T:
        from botocore import exceptions as aws

        try:
            return request()
        except aws.ClientError as error:
            raise _translated(error, what) from error
        except aws.NoRegionError as error:
            raise Credentials("no AWS region is set: set AWS_REGION, or give --region") from error
        except aws.ProfileNotFound as error:
            raise Credentials(f"{error}: correct AWS_PROFILE, or add it with `aws configure sso`") from error
        except (
            aws.NoCredentialsError,
            aws.PartialCredentialsError,
            aws.TokenRetrievalError,
            aws.SSOError,
            aws.CredentialRetrievalError,
        ) as error:
            raise Credentials(
                f"there are no AWS credentials ({error}): set AWS_PROFILE, or run `aws sso login`"
            ) from error
        except (aws.HTTPClientError, aws.ConnectionError) as error:
            raise AwsError(f"AWS cannot be reached for {what}: {error}; check the network and --region") from error
        except aws.ParamValidationError as error:
            raise AwsError(f"{what} is refused: {error}") from error


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _translated(error: Any, what: str) -> AwsError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    message = str(error.response.get("Error", {}).get("Message", "")).strip().rstrip(".")
    if code in _EXPIRED:
        return Credentials("the AWS credentials have expired: run `aws sso login`, then the same command again", code)
    if code in _INVALID:
        return Credentials(f"AWS refuses the credentials ({code}): check AWS_PROFILE", code)
    if code in _DENIED:
        return Denied(f"AWS denies {what} to these credentials: {message}; use the operator role", code)
    if code in _THROTTLED:
        return AwsError(f"AWS throttles {what} past {ATTEMPTS} attempts: try again in a minute", code)
    if code == "NoSuchBucket":
        bucket = error.response["Error"].get("BucketName", "")
        return AwsError(f"there is no bucket {bucket} ({what}): `pulumi up` makes those of a stack", code)
    return AwsError(f"AWS answers {what} with {code}: {message}", code)
