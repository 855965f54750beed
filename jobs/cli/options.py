"""Options that several commands take, as they are typed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from jobs.batch import BatchRecord
    from jobs.dataset import DatasetRequest
    from jobs.plan import Sharding
    from worker.contract import Options, Run


def note_unchanged(
    run: Run,
    options: Options,
    sharding: Sharding,
    dataset: DatasetRequest | None,
    record: BatchRecord | None = None,
) -> None:
    """Tells which options of the command line a run that goes on does not take over: it is read as it was planned."""
    from worker.engines.options import SERVICE_OPTIONS

    given = click.get_current_context().get_parameter_source
    kept = [
        f"--{name.replace('_', '-')} (it has {getattr(run.options, name)})"
        for name in type(options).model_fields
        if given(name) is ParameterSource.COMMANDLINE
        and name != "engine_options"
        and getattr(options, name) != getattr(run.options, name)
    ]
    has = run.options.engine_options
    kept += [
        f"--engine-option {name} (it has {has.get(name, 'none')})"
        for name, value in options.engine_options.items()
        if has.get(name) != value and name not in SERVICE_OPTIONS
    ]
    planned: dict[str, tuple[object, object]] = {
        "pages": (sharding.pages, run.pages),
        "pages_per_task": (sharding.pages_per_task, run.pages_per_task),
        "shards": (min(sharding.shards or run.counts.shards, run.counts.tasks), run.counts.shards),
    }
    if dataset and run.dataset:
        planned["batch_size"] = dataset.batch_size, run.dataset.batch_size
        planned["image_root"] = dataset.image_root, run.dataset.image_root
    if record:
        hardware = record.jobs[0].kind.removeprefix("ocr-")
        planned["on"] = click.get_current_context().params["on"], hardware
    kept += [  # a run.json of an older version does not tell of pages: what it names is all that is known
        f"--{name.replace('_', '-')} ({f'it has {has}' if has else 'its run.json names none'})"
        for name, (wanted, has) in planned.items()
        if given(name) is ParameterSource.COMMANDLINE and wanted != has
    ]
    if kept:
        click.echo(f"note: the run goes on as it was planned, without the new {', '.join(kept)}", err=True)


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
