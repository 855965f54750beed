"""The contract between the worker and whoever runs it: records, paths, exit codes, failure codes.

Everything a run folder holds is one of the models below. The JSON Schema of `Result`, `Failure`, `Receipt`, `Task`
and `Run` is generated into `docs/schema.json`; readers of other languages can rely on it.
"""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

SCHEMA_VERSION = 1


class ExitCode(IntEnum):
    """How a worker process ends; `evaluateOnExit` and the local runner act on it."""

    OK = 0
    CRASHED = 1
    BAD_REQUEST = 64  # EX_USAGE of sysexits.h: trying again can't help
    TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: storage or engine unreachable past its retries
    DRAINED = 143  # 128 + SIGTERM: stopped on request, work is left


class FailureCode(StrEnum):
    """Why a document has no result."""

    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    EMPTY = "empty"
    UNSUPPORTED_FORMAT = "unsupported_format"
    CORRUPT = "corrupt"
    ENCRYPTED = "encrypted"
    TOO_LARGE = "too_large"
    TIMEOUT = "timeout"
    DECODER_CRASHED = "decoder_crashed"
    ENGINE_ERROR = "engine_error"
    WORKER_CRASHED = "worker_crashed"
    NO_SUCH_PAGE = "no_such_page"


class Role(StrEnum):
    """What a line is on its page. A line without a role is body text."""

    TITLE = "title"
    HEADING = "heading"
    LIST_ITEM = "list_item"
    TABLE = "table"
    PAGE_HEADER = "page_header"
    PAGE_FOOTER = "page_footer"
    PAGE_NUMBER = "page_number"

    @property
    def is_furniture(self) -> bool:
        """Running heads, feet and page numbers: left out of the markdown unless asked for."""
        return self in (Role.PAGE_HEADER, Role.PAGE_FOOTER, Role.PAGE_NUMBER)


class Record(BaseModel):
    """Base of all records: unless a record says otherwise, keys we don't know are refused, so that a typing error is
    found."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    def to_json(self) -> str:
        """One line of JSON; absent optional values are left out."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


Point = tuple[int, int]

# A relative path without empty, "." or ".." segments: whatever a plan says, all is written inside the run's folder.
_SAFE_NAME = r"^(?:[^/.]|\.[^/.]|\.\.[^/])[^/]*(?:/(?:[^/.]|\.[^/.]|\.\.[^/])[^/]*)*$"


class Line(Record):
    """One recognised line. `polygon` is in pixels of the upright page, clockwise from the line's top left."""

    text: str
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None  # absent where the engine has none
    polygon: list[Point] | None = None
    role: Role | None = None


class Page(Record):
    """One page of a result. Lines are in reading order; `markdown` is what they say, without page furniture."""

    number: Annotated[int, Field(ge=1)]
    width: Annotated[
        int, Field(ge=0)
    ]  # pixels of the upright page as the engine saw it; 0 where it could not be decoded
    height: Annotated[int, Field(ge=0)]
    status: Literal["ok", "blank", "failed"]
    rotation: Literal[0, 90, 180, 270] = 0  # degrees clockwise that made the decoded page upright
    markdown: str = ""
    lines: list[Line] = []
    error: str | None = None  # only of a failed page
    # Width and height of the image as it was decoded upright by its EXIF tag, where it was scaled down for the engine:
    # `width` and `height` are then smaller, and so are all polygons.
    scaled_from: tuple[int, int] | None = None
    engine: dict[str, Any] | None = None  # what the engine tells of this page: tokens, stop reason, retries


class Meta(Record):
    """How a result came to be. `model`, `runtime` and `timestamp` are read by tools older than this schema."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str
    runtime: str  # "local" or "batch"
    timestamp: datetime
    engine: str
    revision: str | None = None
    seconds: float  # of work: fetching, decoding, reading; waiting for other documents doesn't count
    worker: str  # version of this package and git revision
    etag: str | None = None
    attempt: int = 1
    source_pages: int | None = None  # of the whole document, where only some were asked for


class Result(Record):
    """A document that was read. The first three keys and `meta` are the v0 contract and stay."""

    source_image: str
    extracted_markdown: str
    warnings: list[str] = []
    meta: Meta
    schema_version: Annotated[int, Field(alias="schema")] = SCHEMA_VERSION
    status: Literal["ok", "partial"]
    pages: list[Page]


class Failure(Record):
    """A document that could not be read."""

    source_image: str
    schema_version: Annotated[int, Field(alias="schema")] = SCHEMA_VERSION
    status: Literal["failed"] = "failed"
    code: FailureCode
    message: str
    attempt: int
    timestamp: datetime
    traceback: str | None = None  # its tail


class Task(Record):
    """One row of a shard: a document, or a part of one.

    `name` is where the outcome lies below `documents/`, `failures/` or `parts/`; see `RunPaths`.
    `pages` are 1-based inclusive ranges such as "1-3,7"; absent means all. `part` counts from 1 to `parts`.
    """

    uri: str
    name: Annotated[str, Field(pattern=_SAFE_NAME)]
    pages: str | None = None
    part: int | None = None
    parts: int | None = None
    row: int | None = None  # of the dataset, from 0, where the run reads one

    @property
    def key(self) -> str:
        """Unique within a run."""
        return self.name if self.part is None else f"{self.name}/{self.part:05d}"


class Options(Record):
    """How a run reads; the same for each of its tasks."""

    dpi: Annotated[int, Field(ge=36, le=1200)] = 200  # of rendered PDF pages
    max_pixels: Annotated[int, Field(ge=1)] = 200_000_000  # an image with more is refused (`too_large`)
    longest_side: Annotated[int, Field(ge=64)] | None = None  # of a page, pixels; absent: the engine's own limit
    lang: str | None = None
    keep_furniture: bool = False
    page_timeout: Annotated[float, Field(gt=0)] = 120.0  # seconds to decode one page
    decode_memory: Annotated[int, Field(ge=256)] = 3072  # MiB of address space of a decoding process
    engine_timeout: Annotated[float, Field(gt=0)] = 600.0  # seconds for one call of the engine
    engine_options: dict[str, Any] = {}


class Counts(Record):
    documents: int
    tasks: int
    shards: int


class Dataset(Record):
    """The parquet file whose rows a run labels: one image a row, `batch_size` rows a shard."""

    uri: str
    rows: int
    fingerprint: str  # of its footer, and of samples of what it holds
    addresses: str  # hash of all rows' image URIs in their order
    image_column: str
    image_root: str  # URI of the folder that relative paths start from
    batch_size: int
    output: Annotated[str, Field(pattern=r"^[^/]*_pseudo_labels\.parquet$")]  # the labelled set, in the run's folder
    accepted_licence: str | None = None  # of an engine that forbids training on its output, where a person accepted it


class Run(Record):
    """`run.json`: what was asked for, and with which versions.

    A worker may be older than what plans its run: keys that it does not know here are notes, which it passes over. What
    changes how a run is read is an option, a task's key, or a higher `schema`, which it refuses.
    """

    model_config = ConfigDict(extra="ignore")

    id: str
    schema_version: Annotated[int, Field(alias="schema", le=SCHEMA_VERSION)] = SCHEMA_VERSION
    created: datetime
    engine: str
    options: Options
    root: str  # the inputs' common root; names are keys below it
    counts: Counts
    pages: str | None = None  # of each document, where not all were asked for
    pages_per_task: int | None = None  # where longer documents were cut
    versions: dict[str, str] = {}
    warnings: list[str] = []  # of the plan: duplicates dropped, names that had to be changed
    dataset: Dataset | None = None


class Receipt(Record):
    """One line a worker appends for each task that it ended."""

    task: str  # Task.key
    uri: str
    outcome: Literal["ok", "partial", "failed"]
    code: FailureCode | None = None
    message: str | None = None
    seconds: float
    pages: int  # pages that ended in this task, failed and blank ones included
    failed_pages: int = 0
    bytes: int | None = None  # size of the source
    shard: int
    attempt: int
    timestamp: datetime


class Marker(Record):
    """`markers/<shard>.json`: the tasks in flight, so that a crash leaves its suspects' names.

    `suspects` maps a task's key to how often a worker died while it was in flight.
    """

    attempt: int
    in_flight: list[str] = []
    suspects: dict[str, int] = {}
    isolated: bool = False  # suspects are being read one at a time: whatever is in flight is the culprit


class RunPaths:
    """URIs of everything inside a run's folder; `base` is its own, without a trailing slash."""

    def __init__(self, base: str) -> None:
        self.base = base.rstrip("/")
        self._encode = base.startswith("file://")  # s3:// URIs hold keys as they are

    @property
    def run(self) -> str:
        return self.file("run.json")

    def shard(self, shard: int) -> str:
        return self.file(f"shards/{shard:05d}.jsonl")

    def result(self, task: Task) -> str:
        """Where the task's result lies: a whole document's beside its markdown, a part's in a room of its own."""
        return self.file(f"documents/{task.name}.json" if task.part is None else f"{_part(task)}.json")

    def failure(self, task: Task) -> str:
        return self.file(f"failures/{task.name}.json" if task.part is None else f"{_part(task)}.failed.json")

    def markdown(self, name: str) -> str:
        return self.file(f"documents/{name}.md")

    def marker(self, shard: int) -> str:
        return self.file(f"markers/{shard:05d}.json")

    def labels(self, shard: int) -> str:
        """What came of a shard's rows, where the run reads a dataset."""
        return self.file(f"labels/{shard:05d}.parquet")

    def receipts(self, shard: int, attempt: int) -> str:
        return self.file(f"receipts/{shard:05d}-{attempt}.jsonl")

    def numbers(self, resumed_after: int) -> str:
        """A JSON list for `PAGEFLEET_SHARDS`: the shard of each index of the job that resumes the run."""
        return self.file(f"numbers/{resumed_after:05d}.json")

    def file(self, name: str) -> str:
        """Anything in the run's folder, such as `summary.json`, or one of its folders, such as `documents/`."""
        return f"{self.base}/{quote(name)}" if self._encode else f"{self.base}/{name}"


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the records in a run's folder; `docs/schema.json` holds it."""
    records: list[type[BaseModel]] = [Run, Task, Result, Failure, Receipt, Marker]
    _, schema = models_json_schema([(record, "serialization") for record in records], title="Pagefleet run folder")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _part(task: Task) -> str:
    return f"parts/{task.name}/{task.part:05d}-of-{task.parts:05d}"
