"""`--dataset` of `pagefleet run` and `pagefleet submit`: the options of a run that labels a parquet dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs.wording import shown

if TYPE_CHECKING:
    from jobs.dataset import DatasetRequest
    from jobs.results import RunFolder
    from worker.contract import Dataset

F = TypeVar("F", bound=Callable[..., Any])

IMAGE_COLUMN = "image_path"
BATCH_SIZE = 500
MAX_BATCH_SIZE = 10_000  # a part is held in memory as a whole
# That choose what to read in a run without a dataset, or how to deal it out.
_OTHERS = {
    "inputs": "INPUT",
    "keys": "KEY",
    "prefixes": "--prefix",
    "keys_file": "--keys-file",
    "pages": "--pages",
    "pages_per_task": "--pages-per-task",
    "shards": "--shards",
}
_REMOTE = ("openai", "vllm", "upstage")
_OWN = {
    "image_column": "--image-column",
    "image_root": "--image-root",
    "batch_size": "--batch-size",
    "accept_licence": "--accept-licence",
}

_OPTIONS = (
    click.option(
        "--dataset", metavar="PARQUET", help="Label the images of a parquet file, local or s3://…, row by row."
    ),
    click.option(
        "--image-column", metavar="NAME", help=f"With paths, URIs or embedded images.  [default: {IMAGE_COLUMN}]"
    ),
    click.option("--image-root", metavar="DIR", help="Where relative paths start.  [default: the dataset's folder]"),
    click.option(
        "--batch-size",
        type=click.IntRange(1, MAX_BATCH_SIZE),
        help=f"Rows of a checkpoint part.  [default: {BATCH_SIZE}]",
    ),
    click.option(
        "--concurrency", type=click.IntRange(1), metavar="N", help="Requests at a time, of an engine that sends any."
    ),
    click.option("--resume", is_flag=True, help="Where there is such a run already, go on with it as it was planned."),
    click.option(
        "--accept-licence", is_flag=True, help="Label although the engine's licence forbids training on its output."
    ),
)


def options(command: F) -> F:
    """Adds them to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def dataset_request(
    given: dict[str, Any], to_uri: Callable[[str], str], *, in_s3: bool = False
) -> DatasetRequest | None:
    """What was asked for; None where it was no dataset. `to_uri` tells what a location stands for.

    Raises: click.UsageError where other options don't go with it.
    """
    if not given["dataset"]:
        if lone := [option for name, option in _OWN.items() if given[name]]:
            raise click.UsageError(f"{lone[0]} is for a run over a --dataset")
        return None
    if others := [option for name, option in _OTHERS.items() if given.get(name)]:
        raise click.UsageError(f"{others[0]} does not go with --dataset: each of its rows is read, one image a row")
    from jobs.dataset import DatasetRequest

    return DatasetRequest(
        uri=to_uri(given["dataset"]),
        image_column=given["image_column"] or IMAGE_COLUMN,
        image_root=to_uri(given["image_root"]).rstrip("/") if given["image_root"] else None,
        batch_size=given["batch_size"] or BATCH_SIZE,
        accept_licence=given["accept_licence"],
        in_s3=in_s3,
    )


def implied_options(given: dict[str, Any]) -> dict[str, str]:
    """The engine's own options that others stand for; --engine-option may say otherwise.

    Raises: click.UsageError where the engine has no such option.
    """
    engine, implied = given["engine"], {}
    if given["concurrency"]:
        if engine not in _REMOTE and ":" not in engine:
            raise click.UsageError(f"--concurrency is for engines that send requests ({', '.join(_REMOTE)})")
        implied["concurrency"] = str(given["concurrency"])
    if given["dataset"] and engine == "upstage":
        implied["unit"] = "word"  # as it was labelled: lines are put together for people to read
    return implied


def check_same(folder: RunFolder, request: DatasetRequest | None, engine: str, inputs: Sequence[str]) -> None:
    """Notes which inputs a run that is to go on has none of.

    Raises: UsageError where it reads something else than was asked for.
    """
    from jobs.errors import UsageError
    from jobs.plan import lies_apart

    place, elsewhere = shown(folder.uri), "--out" if "out" in click.get_current_context().params else "--run-id"
    has, wanted = _told(folder.run.dataset, folder.run.engine), _told(request, engine)
    if has != wanted:
        raise UsageError(f"the run at {place} reads {has}, not {wanted}: choose another {elsewhere} for a new run")
    if apart := [location for location in inputs if lies_apart(folder.run, location)]:
        told = (
            f"the run at {place} reads documents below {shown(folder.run.root)}, not {', '.join(apart)}: choose "
            f"another {elsewhere} for a new run"
        )
        if len(apart) == len(inputs):
            raise UsageError(told)
        click.echo(f"note: {told}", err=True)  # no more than that: the run had the same input, if it holds no document


def _told(dataset: Dataset | DatasetRequest | None, engine: str) -> str:
    what = f"column {dataset.image_column} of {shown(dataset.uri)}" if dataset else "documents"
    return f"{what} with {engine}"
