"""The form of the workflow `ocr`, checked as a whole before anything is submitted: what was typed may be anything."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import UsageError

MAX_WAIT = 330.0  # minutes: GitHub ends a job after six hours, and results have to be fetched by then
MAX_SHARDS = 10_000  # children of an array job

# Options of `pagefleet submit` that say how documents are read; the form has fields of its own for the rest.
READING_OPTIONS = (
    *("--engine-option", "--lang", "--pages", "--pages-per-task", "--dpi", "--max-pixels", "--longest-side"),
    *("--page-timeout", "--decode-memory", "--on"),
    *("--image-column", "--image-root", "--batch-size", "--concurrency"),  # of a dataset
)
FLAGS = ("--keep-furniture", "--accept-licence")


@dataclass(frozen=True)
class Form:
    """The fields as they were typed; an empty one was left out."""

    stack: str
    keys: str = ""
    prefix: str = ""
    keys_file: str = ""
    dataset: str = ""
    engine: str = ""
    options: str = ""
    shards: str = ""

    def arguments(self, repository: Path, scratch: Path) -> list[str]:
        """Of `pagefleet submit`. Keys go through a file below `scratch`: a list has no limit, a command line has.

        Raises: UsageError naming every field that is wrong.
        """
        wrong: list[str] = []
        arguments = ["--stack", self.stack]
        if not re.fullmatch(r"[a-z][a-z0-9]{0,19}", self.stack):
            wrong.append(f"stack: {self.stack!r} is no stack's name")
        try:
            arguments += self._source(repository, scratch)
        except ValueError as error:
            wrong.append(str(error))
        if not self.engine.isprintable():
            wrong.append(f"engine: {self.engine!r} is no engine's name")
        elif self.engine:
            arguments.append(f"--engine={self.engine.strip()}")
        if self.shards.strip():
            if re.fullmatch(r"\s*[0-9]{1,5}\s*", self.shards) and 1 <= int(self.shards) <= MAX_SHARDS:
                arguments += ["--shards", self.shards.strip()]
            else:
                wrong.append(f"shards: {self.shards!r} is no number from 1 to {MAX_SHARDS:,}")
        try:
            arguments += _options(self.options)
        except ValueError as error:
            wrong.append(f"options: {error}")
        if wrong:
            raise UsageError("the form cannot be submitted. " + "; ".join(wrong))
        return arguments

    def _source(self, repository: Path, scratch: Path) -> list[str]:
        """Raises: ValueError where not exactly one is given, or that one is of no use."""
        given = {
            name: text
            for name, text in (
                *(("keys", self.keys), ("prefix", self.prefix)),
                *(("keys-file", self.keys_file), ("dataset", self.dataset)),
            )
            if text.strip()
        }
        if not given:
            raise ValueError("nothing to read: fill in keys, prefix, keys-file or dataset")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are filled in: choose one")
        ((name, text),) = given.items()
        if name == "keys":
            path = scratch / "keys.txt"
            path.write_text("".join(f"{key}\n" for key in parse_keys(text)), encoding="utf-8")
            return ["--keys-file", str(path)]
        if name == "keys-file":
            return ["--keys-file", str(_inside(repository, text.strip()))]
        uri = text.strip()
        if not uri.isprintable():
            raise ValueError(f"{name}: {uri!r} is no name of anything in S3")
        return [f"--{name}={uri}"]


def parse_keys(text: str) -> list[str]:
    """Keys as they were typed: one a line, nothing trimmed, blank lines passed over. Or a JSON list of them, since the
    web form's field holds one line.

    Raises: ValueError where there is none, one has control characters, or a JSON list holds something else than keys.
    """
    keys = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    if len(keys) == 1 and keys[0].lstrip().startswith("["):
        try:
            listed = json.loads(keys[0])
        except ValueError:
            return keys  # a key may well begin with a bracket
        if isinstance(listed, list):
            if not all(isinstance(key, str) and key.strip() for key in listed):
                raise ValueError("keys: the JSON list holds something that is no key")
            keys = listed
    if not keys:
        raise ValueError("keys: the list is empty")
    if odd := [key for key in keys if re.search(r"[\x00-\x1f\x7f]", key)]:
        # A log that shows one would show it at the beginning of a line, where GitHub looks for commands.
        raise ValueError(f"keys: {odd[0]!r} has control characters")
    return keys


def parse_minutes(text: str) -> float:
    """Raises: UsageError for what is no number of minutes that a workflow can wait."""
    if not re.fullmatch(r"\s*[0-9]{1,3}(\.[0-9]{1,3})?\s*", text) or float(text) > MAX_WAIT:
        raise UsageError(f"wait-minutes: {text!r} is no number from 0 to {MAX_WAIT:.0f}")
    return float(text)


def _inside(repository: Path, name: str) -> Path:
    """A file of the repository, and no other of the runner's. Raises: ValueError."""
    path = (repository / name).resolve()
    if not path.is_relative_to(repository.resolve()) or ".git" in path.relative_to(repository.resolve()).parts:
        raise ValueError(f"keys-file: {name!r} is not inside the repository")
    if not path.is_file():
        raise ValueError(f"keys-file: the repository has no file {name!r}")
    return path


def _options(text: str) -> Iterator[str]:
    """Split as a shell would, and never shown to one. Raises: ValueError."""
    words = iter(shlex.split(text))
    for word in words:
        name, joined, value = word.partition("=")
        if name in FLAGS and not joined:
            yield name
            continue
        if name not in READING_OPTIONS:
            raise ValueError(f"{name!r} is none of {', '.join((*READING_OPTIONS, *FLAGS))}")
        if not joined and (value := next(words, "")) == "":
            raise ValueError(f"{name} needs a value")
        if not value.isprintable():
            raise ValueError(f"the value of {name} has control characters")
        yield f"{name}={value}"
