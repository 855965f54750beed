"""Storage: local folders and S3 behind one small interface, addressed by URI.

`file://` URIs are percent-encoded as in RFC 8089; `s3://bucket/key` URIs hold the key as it is, never encoded.
"""

from __future__ import annotations

import errno
import io
import os
import random
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar, cast
from urllib.parse import quote_from_bytes, unquote_to_bytes

from worker.aws import EXPIRED, THROTTLED, no_bucket, refused_credentials, throttled, unreachable, wrong_setup
from worker.contract import FailureCode
from worker.errors import BadRequest, BadSetup, DocumentError, TryAgain

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef, ListObjectsV2OutputTypeDef

    from worker.dataset import RowImages

T = TypeVar("T")

ATTEMPTS = 8  # of one call to S3, the first included
_TEMPORARY = ".pagefleet-"  # prefix of files that are being written


@dataclass(frozen=True)
class Entry:
    """An object or file that `list` found. `size` is in bytes."""

    uri: str
    size: int


@dataclass(frozen=True)
class Fetched:
    """A document on local disk. `temporary` files belong to the caller, who deletes them."""

    path: Path
    size: int
    etag: str | None
    temporary: bool


class NotFound(DocumentError):
    def __init__(self, uri: str, hint: str = "") -> None:
        super().__init__(FailureCode.NOT_FOUND, f"{uri} does not exist{hint}")


class NoBucket(NotFound):
    def __init__(self, uri: str) -> None:
        DocumentError.__init__(self, FailureCode.NOT_FOUND, no_bucket(split_s3(uri)[0]))


class AccessDenied(DocumentError):
    def __init__(self, uri: str, hint: str = "") -> None:
        super().__init__(FailureCode.ACCESS_DENIED, f"access to {uri} is denied{hint}")


class Unavailable(TryAgain):
    """Storage did not answer, past its retries."""


class StorageFull(TryAgain):
    """No space is left for a result or for a download."""


class Storage(Protocol):
    """What worker and jobs need of storage. All raise `NotFound`, `AccessDenied`, `Unavailable` or `StorageFull`."""

    def read(self, uri: str) -> bytes: ...

    def write(self, uri: str, data: bytes) -> None:
        """Writes whole or not at all; an existing object is replaced."""
        ...

    def create(self, uri: str, data: bytes) -> bool:
        """As `write`, where there is nothing yet. False, and nothing written, where somebody else was first.

        Of two callers at the same time one wins; `data` must tell them apart.
        """
        ...

    def upload(self, uri: str, path: Path) -> None:
        """As `write`, from a file of any size."""
        ...

    def fetch(self, uri: str, folder: Path) -> Fetched:
        """The document as a local file: itself where it is local, else a download into `folder`."""
        ...

    def open(self, uri: str) -> BinaryIO:
        """To be read in pieces, wherever they lie: of an object in S3 only what is read is downloaded."""
        ...

    def exists(self, uri: str) -> bool: ...

    def list(self, uri: str) -> Iterator[Entry]:
        """Everything whose URI starts with `uri`, always in the same order. A local `uri` must be a folder."""
        ...

    def delete(self, uri: str) -> None:
        """Deleting what does not exist is no error."""
        ...


def open_storage() -> Storage:
    """Storage for `file://` and `s3://` URIs; clients are made at first use, from the usual AWS environment."""
    return _ByScheme()


def to_uri(location: str) -> str:
    """The URI of a path or URI as a person types it; a slash at its end is kept.

    Raises: BadRequest for a scheme that is not supported, an S3 URI without a bucket, or nothing at all.
    """
    if not location:
        raise BadRequest("a path or URI is empty; the current folder is .")
    if "\0" in location:
        raise BadRequest(f"{location!r} holds a NUL character, which no key or path has")
    scheme = location.partition("://")[0] if "://" in location else ""
    if scheme == "s3":
        if not location.removeprefix("s3://").strip("/"):
            raise BadRequest(f"{location} names no bucket; write s3://BUCKET/KEY")
        return location
    if scheme == "file":
        return path_uri(uri_path(location)) + ("/" if location.endswith("/") else "")
    if scheme in ("http", "https", "gs", "az", "azure", "abfs"):
        raise BadRequest(f"{location}: {scheme}:// is not supported; give a local path or s3://BUCKET/KEY")
    return path_uri(Path(location)) + ("/" if location.endswith("/") else "")


def path_uri(path: Path) -> str:
    """The URI of a path, which need not exist."""
    return "file://" + quote_from_bytes(os.fsencode(os.path.abspath(path)))


def uri_path(uri: str) -> Path:
    """The path of a `file://` URI; names that are not UTF-8 come through too."""
    return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


class LocalStorage:
    """Files. Writing goes through a temporary file in the same folder, so that a reader never sees half of one."""

    def read(self, uri: str) -> bytes:
        with file_errors(uri):
            return uri_path(uri).read_bytes()

    def write(self, uri: str, data: bytes) -> None:
        with self._replacing(uri) as temporary:
            temporary.write_bytes(data)

    def create(self, uri: str, data: bytes) -> bool:
        with self._beside(uri) as temporary:
            temporary.write_bytes(data)
            try:
                os.link(temporary, uri_path(uri))
            except FileExistsError:
                return False
        return True

    def upload(self, uri: str, path: Path) -> None:
        import shutil

        with self._replacing(uri) as temporary:
            shutil.copyfile(path, temporary)

    def fetch(self, uri: str, folder: Path) -> Fetched:
        path = uri_path(uri)
        with file_errors(uri):
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
                raise NotFound(
                    uri, " as a file: it is a folder" if stat.S_ISDIR(status.st_mode) else " as a regular file"
                )
            open(path, "rb").close()  # tells a forbidden one before a decoder is bothered
        return Fetched(path, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}", temporary=False)

    def open(self, uri: str) -> BinaryIO:
        path = self.fetch(uri, Path()).path
        with file_errors(uri):
            return open(path, "rb")

    def exists(self, uri: str) -> bool:
        with file_errors(uri):
            return uri_path(uri).exists()

    def list(self, uri: str) -> Iterator[Entry]:
        yield from self._walk(uri_path(uri), frozenset())

    def delete(self, uri: str) -> None:
        with file_errors(uri):
            uri_path(uri).unlink(missing_ok=True)

    def _walk(self, folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        """Links are followed, but not to a folder `above`, without end; one that leads nowhere is an entry."""
        try:
            here = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise BadRequest(f"cannot list {folder}: {error.strerror}") from error
        known = above | {(here.st_dev, here.st_ino)}
        for entry in entries:
            if entry.name.startswith(_TEMPORARY):
                continue
            try:
                status = entry.stat()
            except OSError:
                if entry.is_symlink():  # it leads nowhere: whoever reads it says so
                    yield Entry(path_uri(Path(entry.path)), 0)
                continue  # else it has gone since
            if not stat.S_ISDIR(status.st_mode):
                yield Entry(path_uri(Path(entry.path)), status.st_size)
            elif (status.st_dev, status.st_ino) not in known:
                yield from self._walk(Path(entry.path), known)

    @contextmanager
    def _replacing(self, uri: str) -> Iterator[Path]:
        """A file beside the one that it becomes, so that a reader never sees half of it."""
        with self._beside(uri) as temporary:
            yield temporary
            os.replace(temporary, uri_path(uri))

    @contextmanager
    def _beside(self, uri: str) -> Iterator[Path]:
        """A file in the same folder, which is gone afterwards unless it was moved."""
        path = uri_path(uri)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise BadRequest(f"{path.parent} cannot be written to: {error.strerror}") from error
        with file_errors(uri):
            temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{random.getrandbits(48):012x}")
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)


class S3Storage:
    """Objects in S3. Request errors that may pass are retried by botocore, broken downloads by us, both with jitter."""

    def __init__(self, client: S3Client | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self._made = client
        self._making = threading.Lock()
        self._sleep = sleep

    def read(self, uri: str) -> bytes:
        bucket, key = split_s3(uri)

        def read() -> bytes:
            body = self._client.get_object(Bucket=bucket, Key=key)["Body"]
            with _body_errors():
                return body.read()

        return self._call(uri, read)

    def write(self, uri: str, data: bytes) -> None:
        bucket, key = split_s3(uri)
        self._call(
            uri, lambda: self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=_content_type(key))
        )

    def create(self, uri: str, data: bytes) -> bool:
        """https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html"""
        from botocore.exceptions import ClientError

        bucket, key = split_s3(uri)

        def put() -> bool:
            try:
                self._client.put_object(
                    Bucket=bucket, Key=key, Body=data, ContentType=_content_type(key), IfNoneMatch="*"
                )
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                if code == "ConditionalRequestConflict":  # another request for this key is being decided
                    raise _Again(f"another writer is at work: {error}") from error
                if code != "PreconditionFailed":
                    raise
                return False
            return True

        # Where an answer was lost, botocore has asked again, and what is there is ours.
        return self._call(uri, put) or self.read(uri) == data

    def upload(self, uri: str, path: Path) -> None:
        bucket, key = split_s3(uri)
        extra = {"ContentType": _content_type(key)}
        self._call(uri, lambda: self._client.upload_file(str(path), bucket, key, ExtraArgs=extra))

    def fetch(self, uri: str, folder: Path) -> Fetched:
        bucket, key = split_s3(uri)
        descriptor, name = tempfile.mkstemp(dir=folder)
        os.close(descriptor)
        path = Path(name)

        def download() -> Fetched:
            answer = self._client.get_object(Bucket=bucket, Key=key)
            with open(path, "wb") as file, _body_errors():
                for chunk in answer["Body"].iter_chunks(1 << 20):
                    file.write(chunk)
            return Fetched(path, path.stat().st_size, answer.get("ETag", "").strip('"') or None, temporary=True)

        try:
            return self._call(uri, download)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def open(self, uri: str) -> BinaryIO:
        bucket, key = split_s3(uri)
        head = self._call(uri, partial(self._head, bucket, key, known={}))

        def read(start: int, size: int) -> bytes:
            """Raises: BadRequest where the object is another one by now."""
            piece = f"bytes={start}-{start + size - 1}"

            def get() -> bytes:
                body = self._client.get_object(Bucket=bucket, Key=key, Range=piece, IfMatch=head["ETag"])["Body"]
                with _body_errors():
                    return body.read()

            return self._call(uri, get)

        return cast(BinaryIO, _Pieces(read, head["ContentLength"]))

    def exists(self, uri: str) -> bool:
        bucket, key = split_s3(uri)
        try:
            self._call(uri, partial(self._head, bucket, key, known={404}))
        except NotFound:
            return False
        return True

    def list(self, uri: str) -> Iterator[Entry]:
        bucket, prefix = split_s3(uri)
        token: dict[str, Any] = {}
        while True:
            page = self._call(uri, partial(self._list_page, bucket, prefix, token))
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):  # the consoles' folder placeholders
                    yield Entry(f"s3://{bucket}/{item['Key']}", item["Size"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, uri: str) -> None:
        bucket, key = split_s3(uri)
        with suppress(NotFound):
            self._call(uri, lambda: self._client.delete_object(Bucket=bucket, Key=key))

    def _head(self, bucket: str, key: str, known: Container[int]) -> HeadObjectOutputTypeDef:
        """HEAD is answered without a body, that would say what is wrong: GET is, for a status that isn't `known`, nor
        S3's own fault, for which GET would be tried as often again."""
        from botocore.exceptions import ClientError

        try:
            return self._client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status < 500 and status not in known:
                self._client.get_object(Bucket=bucket, Key=key)["Body"].close()
            raise

    def _list_page(self, bucket: str, prefix: str, token: dict[str, Any]) -> ListObjectsV2OutputTypeDef:
        return self._client.list_objects_v2(Bucket=bucket, Prefix=prefix, **token)

    @property
    def _client(self) -> S3Client:
        with self._making:  # one for all threads
            if self._made is None:
                import boto3
                from botocore.config import Config

                config = Config(
                    # exponential backoff with full jitter
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    connect_timeout=5,
                    read_timeout=30,
                    max_pool_connections=32,
                    user_agent_extra="pagefleet",
                )
                self._made = boto3.session.Session().client("s3", config=config)
            return self._made

    def _call(self, uri: str, call: Callable[[], T]) -> T:
        """Calls S3 and says in our words what went wrong.

        botocore retries requests; a body that breaks off while it is read is ours to ask for again, as is a conflict.
        """
        from boto3.exceptions import S3UploadFailedError
        from botocore import exceptions as aws

        for attempt in range(1, ATTEMPTS + 1):
            try:
                with file_errors(uri):
                    return call()
            except _Again as error:
                if attempt == ATTEMPTS:
                    raise Unavailable(f"{uri}, at each of {ATTEMPTS} attempts: {error}") from error
                self._sleep(random.uniform(0, min(20.0, 0.1 * 2**attempt)))
            except aws.ClientError as error:
                raise _translated(error, uri) from error
            except S3UploadFailedError as error:
                cause = error.__context__
                known = isinstance(cause, aws.ClientError)
                raise (_translated(cause, uri) if known else Unavailable(f"{uri}: {error}")) from error
            except aws.ParamValidationError as error:
                raise NotFound(uri, f": {error}") from error
            except (aws.CredentialRetrievalError, aws.MetadataRetrievalError) as error:
                raise Unavailable(wrong_setup(error) or f"{uri}: {error}; try again later") from error
            except (aws.BotoCoreError, ValueError) as error:
                if said := wrong_setup(error):
                    raise BadSetup(said) from error
                if not isinstance(error, aws.BotoCoreError):
                    raise
                raise Unavailable(unreachable(uri, error)) from error
        raise AssertionError("unreachable")


class _Pieces(io.RawIOBase):
    """A file of which each read is a request of its own."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        if wanted:
            buffer[:wanted] = self._read(self._position, wanted)
            self._position += wanted
        return wanted


class _Again(Exception):
    """Something that botocore does not ask for again."""


@contextmanager
def _body_errors() -> Iterator[None]:
    from botocore import exceptions as aws

    try:
        yield
    except (aws.HTTPClientError, aws.IncompleteReadError, ConnectionError) as error:
        raise _Again(f"the download breaks off: {error}") from error


class _ByScheme:
    """Hands each URI to the storage of its scheme."""

    def __init__(self) -> None:
        self._by_scheme: dict[str, Storage] = {"file": LocalStorage(), "s3": S3Storage()}
        self._rows: RowImages | None = None
        self._making = threading.Lock()

    def read(self, uri: str) -> bytes:
        return self._of(uri).read(uri)

    def write(self, uri: str, data: bytes) -> None:
        self._of(uri).write(uri, data)

    def create(self, uri: str, data: bytes) -> bool:
        return self._of(uri).create(uri, data)

    def upload(self, uri: str, path: Path) -> None:
        self._of(uri).upload(uri, path)

    def fetch(self, uri: str, folder: Path) -> Fetched:
        if not uri.startswith("parquet+"):
            return self._of(uri).fetch(uri, folder)
        with self._making:
            if self._rows is None:
                from worker.dataset import RowImages

                self._rows = RowImages(self)
        return self._rows.fetch(uri, folder)

    def open(self, uri: str) -> BinaryIO:
        return self._of(uri).open(uri)

    def exists(self, uri: str) -> bool:
        return self._of(uri).exists(uri)

    def list(self, uri: str) -> Iterator[Entry]:
        return self._of(uri).list(uri)

    def delete(self, uri: str) -> None:
        self._of(uri).delete(uri)

    def _of(self, uri: str) -> Storage:
        scheme = uri.partition("://")[0]
        if scheme not in self._by_scheme:
            raise BadRequest(f"{uri} is neither a file:// nor an s3:// URI")
        return self._by_scheme[scheme]


@contextmanager
def file_errors(uri: str) -> Iterator[None]:
    """Says in our words what a file operation on behalf of `uri` ran into."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(uri) from error
    except PermissionError as error:
        raise AccessDenied(uri) from error
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise NotFound(uri, f" as a file: {error.strerror}") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise NotFound(uri, f" as a file: {error.strerror}") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = f" (for {error.filename})" if error.filename else ""
            raise StorageFull(f"no space left for {uri}{where}: free some, then resume the run") from error
        if error.errno is None or isinstance(error, (ConnectionError, TimeoutError)):
            raise  # of a library, not of a file
        raise Unavailable(f"{uri}: {error.strerror}; try again when the disk is back") from error


# Errors of S3 that no rule below tells: what they mean, and what they say besides S3's own words.
_DOCUMENT_ERRORS = {
    "InvalidObjectState": "it is archived: restore it first",
    "InvalidRequest": "S3 refuses the request, as it does for objects under a customer's key (SSE-C)",
    "MethodNotAllowed": "S3 refuses the request, as it does for a deleted version",
}


def _translated(error: Any, uri: str) -> Exception:
    told = error.response.get("Error", {})
    code, message = told.get("Code", ""), told.get("Message", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in ("NoSuchKey", "NoSuchBucket", "NotFound", "404") or status == 404:
        return NoBucket(uri) if code == "NoSuchBucket" else NotFound(uri)
    if status == 412:  # only `open` asks on a condition that ends here
        return BadRequest(
            f"{uri} has been replaced while it was read: put the old one back and resume the run, or start a new one"
        )
    if said := refused_credentials(code):
        return Unavailable(said) if code in EXPIRED else BadSetup(said)
    if code == "RequestTimeTooSkewed":
        return BadRequest(f"{uri}: this machine's clock is wrong: {message}")
    if code in _DOCUMENT_ERRORS or code.startswith("KMS."):
        return AccessDenied(
            uri, f": {_DOCUMENT_ERRORS.get(code, 'its encryption key cannot be used')} ({code}: {message})"
        )
    if status == 403 or code in ("AccessDenied", "AllAccessDisabled", "403"):
        return AccessDenied(uri, "; S3 answers so for missing keys too, where listing the bucket is not allowed")
    if code in THROTTLED or status == 429 or code == "503":  # without a body: HEAD's "503 Slow Down"
        return Unavailable(throttled(f"requests for {uri}", ATTEMPTS))
    if status >= 500 or status == 408 or code == "RequestTimeout":
        return Unavailable(f"{uri}: S3 answers {code or status} past {ATTEMPTS} attempts; try again later")
    if 400 <= status < 500:  # of this request alone: asking again would be answered alike
        return NotFound(uri, f" for S3, which answers {code or status}: {message}")
    return Unavailable(f"{uri}: {error}")


def _content_type(key: str) -> str:
    """So that a browser shows results instead of downloading them."""
    types = {".json": "application/json", ".jsonl": "application/x-ndjson", ".md": "text/markdown; charset=utf-8"}
    types |= {".html": "text/html; charset=utf-8", ".parquet": "application/vnd.apache.parquet"}
    return types.get(os.path.splitext(key)[1], "application/octet-stream")
