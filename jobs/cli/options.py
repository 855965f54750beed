"""Options that several commands take, as they are typed."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click


def engine_options(pairs: Sequence[str], model: str | None = None) -> dict[str, str]:
    """K=V as often as given, and `--model`. Raises: click.BadParameter for what is of another form."""
    options = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not key or not separator:
            raise click.BadParameter(f"{key!r} is not of the form K=V", param_hint="--engine-option")
        options[key] = value
    if model:
        options["model"] = os.path.abspath(model) if os.path.isdir(model) else model
    return options
