"""The plan of a run: which documents there are, what they are called in the run's folder, and who reads which.

A million keys pass through here, so tasks are light tuples until they are written.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import os
import random
import stat
import unicodedata
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from jobs.errors import UsageError
from jobs.wording import plural, shown
from worker.contract import Counts, Dataset, Options, Run, RunPaths, Task
from worker.decode import LAST_PAGE, format_pages, parse_pages
from worker.engines.options import refuse_secrets
from worker.errors import DocumentError
from worker.storage import Storage, path_uri, split_s3, to_uri, uri_path

# What a folder, a prefix or a glob is searched for. Whatever is named itself is read, or fails, by its content.
SUFFIXES = {".pdf", ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".dib"}
SUFFIXES |= {".heic", ".heif", ".hif", ".avif"}
MANY_PAGED = {".pdf", ".tif", ".tiff"}
MAX_SHARDS = 10_000  # children of an AWS Batch array job
MAX_SEGMENT_BYTES = 200  # of a name: file systems take 255, and suffixes such as ".json" are added
MAX_NAME_BYTES = 800  # S3 keys take 1,024, and the run's folder comes before
TASKS_PER_SHARD = 1_000  # unless told otherwise: a process is renewed and a retry repeats little
WRITERS = 16  # shards written at the same time: 10,000 of them, one after the other, would take S3 ten minutes

PageCount = Callable[[str], int]
# uri, name, pages, part, parts
PlannedTask = tuple[str, str, str | None, int | None, int | None]


@dataclass
class Plan:
    """What will be read, in the order it was asked for."""

    root: str
    tasks: Collection[PlannedTask]
    documents: int
    shards: int
    warnings: list[str] = field(default_factory=list)
    dataset: Dataset | None = None
    pages: str | None = None
    pages_per_task: int | None = None

    def by_shard(self) -> Iterator[list[Task]]:
        """The tasks of each shard. They are dealt round, so that neighbours, which often are alike, are shared out."""
        tasks = list(self.tasks)
        for number in range(self.shards):
            yield [
                Task(uri=uri, name=name, pages=pages, part=part, parts=parts)
                for uri, name, pages, part, parts in tasks[number :: self.shards]
            ]


@dataclass(frozen=True)
class Sharding:
    """How tasks are cut and dealt."""

    shards: int | None = None
    at_least: int = 1  # where `shards` is open: as many as workers read at the same time
    pages: str | None = None
    pages_per_task: int | None = None


def find_inputs(
    storage: Storage, inputs: Sequence[str], *, leave_out: str | None = None, warnings: list[str]
) -> Iterator[str]:
    """The URIs that inputs stand for: files, folders, globs, `s3://` keys and prefixes.

    `leave_out` is a folder's URI (the run's own, when it lies inside an input). What a folder holds besides documents
    is told in `warnings`.

    Raises: UsageError for a local input that doesn't exist.
    """
    for location in inputs:
        if location.startswith("s3://"):
            found = _expand_s3(storage, to_uri(location), warnings)
        else:
            found = _expand_local(storage, location, warnings)
        for uri in found:
            if leave_out is None or not uri.startswith(leave_out + "/"):
                yield uri


def find_below(storage: Storage, prefix: str, warnings: list[str]) -> Iterator[str]:
    """The URIs of all documents that begin with an `s3://` prefix, which need not end at a slash."""
    yield from _documents(((entry.uri, entry.uri) for entry in storage.list(prefix)), prefix, warnings)


def read_keys_file(path: str, resolve: Callable[[str], str] = to_uri) -> Iterator[str]:
    """The URIs of a key list: one key, URI or path a line; blank lines are passed over, nothing is trimmed.

    Raises: UsageError where the file can't be read or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as lines:
            for line in lines:
                key = line.rstrip("\r\n")
                if key.strip():
                    yield resolve(key)
    except OSError as error:
        raise UsageError(f"cannot read the key list {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the key list {path} is not UTF-8 text: {error}") from error


def make_plan(
    uris: Iterable[str],
    sharding: Sharding,
    *,
    count_pages: PageCount | None = None,
    asked_for: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Plan:
    """Names every document, drops duplicates, and cuts long documents where `pages_per_task` asks for it.

    `count_pages` tells a document's pages; where it raises DocumentError, the document stays whole and fails when it
    is read. `asked_for`, as it was typed, and `warnings` of finding the URIs are told where there is none.

    Raises: UsageError where nothing is to be read.
    """
    unique: dict[str, None] = {}
    asked = 0
    for uri in uris:
        unique[uri] = None
        asked += 1
    duplicates = asked - len(unique)
    documents = list(unique)
    del unique
    if not documents:
        where = ", ".join(asked_for) or "what was asked for"
        raise UsageError("; ".join([f"nothing to read: there is no document in {where}", *warnings]))
    root = _common_root(documents)
    names, changed = _name_all(documents, len(root))
    tasks: list[PlannedTask] = []
    plan = Plan(
        root=_root_uri(root),
        tasks=tasks,
        documents=len(documents),
        shards=1,
        pages=sharding.pages,
        pages_per_task=sharding.pages_per_task,
    )
    for uri, name in zip(documents, names, strict=True):
        ranges = _cut(uri, sharding, count_pages)
        if len(ranges) == 1:
            tasks.append((uri, name, ranges[0], None, None))
        else:
            tasks.extend((uri, name, pages, part, len(ranges)) for part, pages in enumerate(ranges, 1))
    if duplicates:
        plan.warnings.append(f"{plural(duplicates, 'duplicate input')}: each document is read once")
    if changed:
        plan.warnings.append(
            f"{plural(changed, 'document')} named differently from the key: see `name` and `uri` in shards/"
        )
    wanted = sharding.shards or max(sharding.at_least, -(-len(tasks) // TASKS_PER_SHARD))
    plan.shards = min(wanted, len(tasks), MAX_SHARDS)
    return plan


def write_plan(storage: Storage, paths: RunPaths, plan: Plan, run: Run) -> None:
    """Writes the shards, and `run.json` last: a folder without it holds no run."""

    def write(number: int, tasks: list[Task]) -> None:
        storage.write(paths.shard(number), "".join(task.to_json() + "\n" for task in tasks).encode())

    try:
        with ThreadPoolExecutor(WRITERS) as pool:
            ahead: deque[Future[None]] = deque()
            for number, tasks in enumerate(plan.by_shard()):
                ahead.append(pool.submit(write, number, tasks))
                if len(ahead) >= 2 * WRITERS:
                    ahead.popleft().result()
            for future in ahead:
                future.result()
        storage.write(paths.run, run.to_json().encode())
    except BaseException:  # Ctrl-C too: half a plan would be in the way of the next run
        for number in range(plan.shards):
            storage.delete(paths.shard(number))
        raise


def known_pages(uri: str, ranges: str | None) -> int | None:
    """Pages of a task, as far as it tells by itself: None of a document that may have any number of them."""
    many = PurePosixPath(uri).suffix.lower() in MANY_PAGED | {""}
    if not ranges:
        return None if many else 1
    pages = parse_pages(ranges)
    return None if pages[-1][1] == LAST_PAGE else sum(last - first + 1 for first, last in pages)


def describe_run(plan: Plan, run_id: str, engine: str, options: Options, versions: dict[str, str]) -> Run:
    """Raises: BadRequest where an engine's option is a secret, which a run's record would tell."""
    refuse_secrets(options.engine_options)
    return Run(
        id=run_id,
        created=datetime.now(UTC).replace(microsecond=0),
        engine=engine,
        options=options,
        root=plan.root,
        counts=Counts(documents=plan.documents, tasks=len(plan.tasks), shards=plan.shards),
        pages=plan.pages,
        pages_per_task=plan.pages_per_task,
        versions=versions,
        warnings=plan.warnings,
        dataset=plan.dataset,
    )


def lies_apart(run: Run, location: str) -> bool:
    """Whether no document of a run can be among those that an input stands for, a URI or a path as it was typed."""
    stem = location[: min((location.find(mark) for mark in "*?[" if mark in location), default=len(location))]
    uri = to_uri(stem if stem == location else stem[: stem.rfind("/") + 1] or ".")
    folder, root = uri.rstrip("/") + "/", run.root.rstrip("/") + "/"
    above = uri if uri.startswith("s3://") and split_s3(uri)[1] else folder  # `--prefix` may end within a name
    return bool(run.root) and not (folder.startswith(root) or root.startswith(above))


def new_run_id() -> str:
    """Sortable by time, and unlikely to be given twice: 20261121-153000-k3f9."""
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{''.join(random.choices(letters, k=4))}"


# ---- inputs


def _expand_s3(storage: Storage, uri: str, warnings: list[str]) -> Iterator[str]:
    _, key = split_s3(uri)
    if not key or key.endswith("/"):
        yield from _documents(((entry.uri, entry.uri) for entry in storage.list(uri)), uri, warnings)
        return
    entries = storage.list(uri)
    first = next(entries, None)
    if first and first.uri == uri:
        yield uri
    elif next(storage.list(uri + "/"), None):
        yield from _expand_s3(storage, uri + "/", warnings)
    elif any(mark in key for mark in "*?["):
        stem = uri[: min(uri.find(mark) for mark in "*?[" if mark in uri)]
        found = [entry.uri for entry in storage.list(stem) if fnmatch.fnmatchcase(entry.uri, uri)]
        yield from _documents(((found_uri, found_uri) for found_uri in found), uri, warnings)
    else:
        yield uri  # there is no such key: the worker says so, as of any other document


def _expand_local(storage: Storage, location: str, warnings: list[str]) -> Iterator[str]:
    path = uri_path(to_uri(location))
    try:
        status = path.stat()
    except OSError as error:
        status = None
        if not any(mark in location for mark in "*?["):
            raise UsageError(f"there is no file or folder {location}: {error.strerror}") from error
    if status and stat.S_ISDIR(status.st_mode):
        yield from _documents(_visible(storage, path_uri(path), warnings), location, warnings)
    elif status:
        yield path_uri(path)
    else:
        import glob

        found = sorted(match for match in glob.glob(location, recursive=True) if os.path.isfile(match))
        if not found:
            raise UsageError(f"no file matches {location}")
        yield from _documents(((path_uri(Path(match)), match) for match in found), location, warnings)


def _visible(storage: Storage, folder: str, warnings: list[str]) -> Iterator[tuple[str, str]]:
    """What a folder holds, but hidden files and folders, which are counted."""
    hidden = 0
    for entry in storage.list(folder):
        if any(part.startswith(".") for part in uri_path(entry.uri.removeprefix(folder)).parts):
            hidden += 1
        else:
            yield entry.uri, entry.uri
    if hidden:
        where = shown(folder).encode("utf-8", "backslashreplace").decode()
        warnings.append(
            f"passed over in {where}: {plural(hidden, 'hidden file')}; name a file to have it read all the same"
        )


def _documents(found: Iterable[tuple[str, str]], where: str, warnings: list[str]) -> Iterator[str]:
    """Those that look like documents; the others are counted."""
    passed: dict[str, int] = {}
    for uri, name in found:
        suffix = PurePosixPath(name).suffix.lower()
        if not suffix or suffix in SUFFIXES:
            yield uri
        else:
            passed[suffix] = passed.get(suffix, 0) + 1
    if passed:
        most = sorted(passed.items(), key=lambda item: -item[1])[:8]
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in most)
        where = where.encode("utf-8", "backslashreplace").decode()
        warnings.append(f"passed over in {where}, by their suffix: {kinds}; name a file to have it read all the same")


# ---- names


def _segments(uri: str) -> list[str]:
    scheme, _, rest = uri.partition("://")
    if scheme == "file":
        rest = str(uri_path(uri))
    return [scheme, *rest.split("/")]


def _common_root(uris: Sequence[str]) -> list[str]:
    """The longest folder that all lie in: its segments, those of the scheme and the bucket included."""
    # The common prefix of the smallest and the largest is that of all.
    low, high = (_segments(uri)[:-1] for uri in (min(uris), max(uris)))
    return [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False))]


def _root_uri(root: list[str]) -> str:
    """The URI of the common root; empty where the inputs have none."""
    scheme, *segments = root or [""]
    if scheme == "file":
        return path_uri(Path("/".join(segments) or "/"))
    return f"{scheme}://{'/'.join(segments)}" if scheme else ""


def _name_all(uris: Sequence[str], root: int) -> tuple[list[str], int]:
    """Each document's name, a relative path of its own, and how many differ from their keys below the root.

    Names are distinct on case-insensitive and normalising file systems too. Sorted hashes find those that aren't, as a
    set of a million names would take 150 MB.

    Raises: UsageError where two inputs can't be told apart.
    """
    import numpy as np

    names: list[str] = []
    hashes = np.empty(len(uris), np.uint64)
    changed = 0
    for number, uri in enumerate(uris):
        segments = _segments(uri)[root:]
        name = "/".join(
            [*(safe_segment(segment, folder=True) for segment in segments[:-1]), safe_segment(segments[-1])]
        )
        if len(name.encode()) > MAX_NAME_BYTES:
            head = name.encode()[: MAX_NAME_BYTES - MAX_SEGMENT_BYTES - 16].decode(errors="ignore").rstrip("/.")
            name = f"{head}~{hashlib.sha1(name.encode()).hexdigest()[:8]}/{name.rpartition('/')[2]}"
        names.append(name)
        hashes[number] = _hash(name)
        changed += name != "/".join(segments)
    known, counts = np.unique(hashes, return_counts=True)
    first: set[int] = set()
    for number in np.flatnonzero(np.isin(hashes, known[counts > 1])).tolist():
        if (hash_ := int(hashes[number])) not in first:
            first.add(hash_)
            continue
        names[number] = _marked(names[number], uris[number])
        marked = _hash(names[number])
        if marked in first or known[min(int(np.searchsorted(known, marked)), len(known) - 1)] == marked:
            raise UsageError(f"{uris[number]} cannot be told from another input by any name; rename it")
        first.add(marked)
        changed += 1
    return names, changed


def _hash(name: str) -> int:
    key = (
        name.lower() if name.isascii() else unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    )
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def _marked(name: str, uri: str) -> str:
    """The name with a mark that the URI decides: the same in every plan."""
    mark = hashlib.sha1(uri.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}~{mark}.{suffix}" if dot and "/" not in suffix else f"{name}~{mark}"


def safe_segment(segment: str, *, folder: bool = False) -> str:
    """A segment that every file system takes, and that stays below the folder it is put in."""
    if segment in ("", ".", ".."):
        return "_" + "%2E" * len(segment)
    if segment.isprintable() and "\\" not in segment:
        safe = segment
    else:
        plain = (char.isprintable() and char != "\\" for char in segment)
        safe = "".join(
            char if keep else quote(char, safe="", errors="surrogateescape")
            for char, keep in zip(segment, plain, strict=True)
        )
    if folder and safe.lower().endswith((".json", ".md")):
        safe += "_"  # beside `a.pdf`, whose result is `a.pdf.json`, there may be a folder of that name
    encoded = safe.encode("utf-8", "surrogateescape")
    if len(encoded) > MAX_SEGMENT_BYTES:
        mark = hashlib.sha1(encoded).hexdigest()[:8]
        _, dot, suffix = safe.rpartition(".")
        tail = f"~{mark}.{suffix}" if dot and len(suffix) <= 8 else f"~{mark}"
        safe = encoded[: MAX_SEGMENT_BYTES - len(tail.encode())].decode("utf-8", "ignore") + tail
    return safe


# ---- parts


def _cut(uri: str, sharding: Sharding, count_pages: PageCount | None) -> list[str | None]:
    """The page ranges of a document's tasks: one, unless it is longer than a task may be."""
    if sharding.pages_per_task is None or count_pages is None:
        return [sharding.pages]
    if PurePosixPath(uri).suffix.lower() in SUFFIXES - MANY_PAGED:
        return [sharding.pages]  # not fetched for nothing; under such a name a long document is read in one piece
    try:
        total = count_pages(uri)
    except DocumentError:
        return [sharding.pages]
    wanted = [
        number
        for first, last in (parse_pages(sharding.pages) if sharding.pages else [(1, total)])
        for number in range(first, min(last, total) + 1)
    ]
    if len(wanted) <= sharding.pages_per_task:
        return [sharding.pages]
    size = sharding.pages_per_task
    parts = (wanted[start : start + size] for start in range(0, len(wanted), size))
    return [format_pages(parse_pages(",".join(map(str, part)))) for part in parts]
