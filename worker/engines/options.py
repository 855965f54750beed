"""An engine's own options, as `--engine-option K=V` or a run's JSON gives them: taken by name and type, or refused."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from worker.errors import BadRequest
from worker.remote import CALL_SHARE, Patience

_SECRET = re.compile(r"api[-_]?key|authorization|credential|passw|secret|token$|(?:^|[-_])key$", re.IGNORECASE)

# Where, how fast and how patiently a service is asked, and what it charges: what is read does not depend on them.
SERVICE_OPTIONS = (
    *("base_url", "key_secret", "concurrency", "rate", "timeout", "page_deadline", "attempts", "ready"),
    *("price_per_page", "start", "port"),
)


def service_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an engine's options that a run that goes on takes over."""
    return {name: value for name, value in options.items() if name in SERVICE_OPTIONS}


def refuse_secrets(options: Mapping[str, Any]) -> None:
    """A run's options are written where others read them: no secret belongs there.

    Raises: BadRequest, without telling the value.
    """
    for name, value in options.items():
        if _SECRET.search(name) and not str(value).startswith("arn:"):  # where a secret lies is none
            raise BadRequest(
                f"option {name!r} looks like a secret, and a run's options are stored in the clear: set it in the "
                "environment instead (see `pagefleet engines`)"
            )
        if _holds_secret(str(value)):
            raise BadRequest(
                f"option {name!r} must be an address alone, without a user or a query: a run's options are stored in "
                "the clear, and a key goes into the environment instead (see `pagefleet engines`)"
            )


def _holds_secret(value: str) -> bool:
    """Whether it is an address with more in it than a place."""
    try:
        parts = urlsplit(value.strip())
    except ValueError:
        return False
    return bool(parts.scheme and parts.netloc and ("@" in parts.netloc or parts.query or parts.fragment))


class Trial(dict[str, Any]):
    """Options that an engine is given to see whether it takes them, and for nothing else."""


class OptionsTaken(Exception):
    """Ends the building of an engine that has taken all options of a trial."""


class Taker:
    """Takes options one by one; `done` refuses those that nobody took, and tells what is lacking. All raise BadRequest.

    An engine does nothing costly before `done`, which ends a trial.
    """

    def __init__(self, engine: str, options: Mapping[str, Any]) -> None:
        self._engine = engine
        self._options = dict(options)
        self._trial = isinstance(options, Trial)
        self._known: list[str] = []
        refuse_secrets(options)

    def text(self, name: str, default: str | None = None, choices: Sequence[str] = ()) -> str | None:
        value = self._take(name)
        if value is None:
            return default
        if choices and value not in choices:
            raise self._wrong(name, value, f"one of {', '.join(choices)}")
        return str(value)

    def words(self, name: str) -> list[str]:
        """As a shell would part them."""
        value = self.text(name, "")
        try:
            return shlex.split(value or "")
        except ValueError as error:
            raise self._wrong(name, value, f"words as in a shell: {error}") from error

    def number(self, name: str, default: float, least: float = 0.0) -> float:
        value = self._take(name)
        try:
            number = default if value is None else float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not least <= number < float("inf"):
            raise self._wrong(name, value, f"a number of at least {least:g}")
        return number

    def integer(self, name: str, default: int, least: int = 0) -> int:
        number = self.number(name, default, least)
        if number != int(number):
            raise self._wrong(name, number, "a whole number")
        return int(number)

    def flag(self, name: str) -> bool:
        value = str(self._take(name) or "no").lower()
        if value not in ("yes", "no", "true", "false", "1", "0"):
            raise self._wrong(name, value, "yes or no")
        return value in ("yes", "true", "1")

    def patience(self, timeout: float, *, attempts: int, deadline: float) -> Patience:
        """Of the options `attempts` and `page_deadline`, where a call of the engine may take `timeout` seconds."""
        deadline, call = self.number("page_deadline", deadline, 0.001), CALL_SHARE * timeout
        if deadline > call:
            most = f"at most {call:g}, of the {timeout:g} s of `engine_timeout`"
            raise self._wrong("page_deadline", f"{deadline:g}", most)
        return Patience(self.integer("attempts", attempts, 1), deadline=deadline, call=call)

    def done(self, lacking: str | None = None) -> None:
        if unknown := sorted(self._options):
            known = ", ".join(sorted(self._known)) or "none"
            raise BadRequest(f"engine {self._engine} has no option {unknown[0]!r}; it has: {known}")
        if lacking:
            raise BadRequest(f"engine {self._engine} needs {lacking}")
        if self._trial:
            raise OptionsTaken

    def _take(self, name: str) -> Any:
        self._known.append(name)
        return self._options.pop(name, None)

    def _wrong(self, name: str, value: Any, wanted: str) -> BadRequest:
        return BadRequest(f"engine {self._engine}: option {name} is {value!r}; it must be {wanted}")
