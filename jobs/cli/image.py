"""`pagefleet image`: the tag that the worker's image has in this checkout, and what it is a hash of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jobs.errors import JobError


@click.group("image")
def image() -> None:
    """Tell the tag of the worker's image, a hash of what goes into it. Needs a checkout of the repository.

    \b
    pagefleet image tag --target cpu
    pagefleet image inputs
    """


@image.command("tag")
@click.option("--target", help="As the registry has it, for one target of worker/Dockerfile: cpu or gpu.")
def tag_command(target: str | None) -> None:
    """Print the tag.

    \b
    pagefleet image tag --target cpu
    """
    tag = ask_checkout("image_tag")
    from infra_pulumi.image import TARGETS  # there, since it was asked

    if target and target not in TARGETS:
        raise click.BadParameter(f"{target!r} is none of {', '.join(TARGETS)}", param_hint="--target")
    click.echo(f"{target}-{tag}" if target else tag)


@image.command("inputs")
def inputs_command() -> None:
    """Print what the tag is a hash of: a line for each file, as sha256sum prints it.

    \b
    pagefleet image inputs
    """
    for name, content in ask_checkout("image_inputs"):
        click.echo(f"{content}  {name}")


def ask_checkout(function: str) -> Any:
    """What the module that the Pulumi program asks too says of the checkout that it is from.

    Raises: JobError where this package is from no checkout, or git can't list its files.
    """
    try:
        from infra_pulumi import image
    except ImportError as error:
        raise JobError(
            "`pagefleet image` hashes what the image is built from: install pagefleet from a checkout (make run)"
        ) from error
    try:
        return getattr(image, function)(Path(image.__file__).parent.parent)
    except (OSError, RuntimeError) as error:
        raise JobError(str(error)) from error
