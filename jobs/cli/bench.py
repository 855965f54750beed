"""`pagefleet bench`: measures an engine on this machine, and says it as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobs.cli.options import engine_options
from jobs.cli.tables import show_table
from jobs.wording import plural

if TYPE_CHECKING:
    from jobs.bench import Bench


@click.command("bench")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option("--engine", default="rapidocr", show_default=True, help="See `pagefleet engines`.")
@click.option(
    "--engine-option", "engine_options", metavar="K=V", multiple=True, help="An engine's own: docs/engines.md."
)
@click.option("--model", metavar="FOLDER|S3-URI|HUB-ID@COMMIT", help="Other weights.  [default: the engine's]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where a model runs.  [default: the GPU, if any]")
@click.option("--lang", help="Language of the documents, where the engine wants to know.")
@click.option("--pages", type=click.IntRange(1), default=50, show_default=True, help="How many pages are read at most.")
@click.option("--dpi", type=click.IntRange(36, 1200), default=200, show_default=True, help="Of rendered PDF pages.")
@click.option("--hourly-usd", type=click.FloatRange(0, min_open=True), help="What this machine costs an hour.")
@click.option("--instance", metavar="TYPE", help="Which EC2 instance this machine is, for its price.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, progress on standard error.")
def bench_command(inputs: tuple[str, ...], **given: Any) -> None:
    """Measure an engine on this machine: speed, memory, errors where the true text is known, and cost.

    INPUT is a file, a folder, a glob or an s3:// key; without one the samples are read. The true text of NAME is looked
    for in truth/NAME.txt and NAME.txt beside it. What a machine was not measured for is not told.

    \b
    pagefleet bench scans/ --pages 200 --hourly-usd 0.34
    """
    import sys

    from jobs.bench import Request, bench
    from worker.contract import Options
    from worker.storage import open_storage

    request = Request(
        engine=given["engine"],
        options=Options(
            dpi=given["dpi"], lang=given["lang"], engine_options=engine_options(given["engine_options"], given["model"])
        ),
        inputs=inputs,
        device=given["device"],
        pages=given["pages"],
        usd_per_hour=given["hourly_usd"],
        instance=given["instance"],
    )
    with click.progressbar(length=request.pages, label="reading", file=sys.stderr) as bar:

        def progress(done: int, of: int) -> None:
            bar.length = of
            bar.update(done - bar.pos)

        found = bench(open_storage(), request, progress)
    if given["as_json"]:
        click.echo(found.to_json())
    else:
        _show(found)


def _show(found: Bench) -> None:
    from rich.console import Console

    show_table(Console(), ("", ""), _rows(found))
    for note in found.notes:
        click.echo(f"note: {note}", err=True)


def _rows(found: Bench) -> list[tuple[str, str]]:
    from jobs.bench import missing_price

    pages = f"{found.pages} ({found.failed_pages} failed, {found.blank_pages} blank ones left out)"
    rows = [
        ("engine", found.engine + "".join(f" {key}={value}" for key, value in found.options.items())),
        ("model", found.model),
        ("revision", found.revision or "unknown"),
        ("device", found.device),
        ("machine", found.machine),
        ("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
        ("pages", pages),
        ("pages/s", f"{found.pages_per_second:.3g}"),
        ("tokens/s", "not told" if found.tokens_per_second is None else f"{found.tokens_per_second:.4g}"),
        ("seconds a page", f"median {found.page_seconds_median:.3g}, 95 % below {found.page_seconds_p95:.3g}"),
        ("peak memory", f"{found.peak_memory_mib:,} MiB"),
    ]
    if found.peak_gpu_memory_mib is not None:
        rows.append(("peak GPU memory", f"{found.peak_gpu_memory_mib:,} MiB"))
    if found.character_error_rate is not None:
        rows.append(
            (
                "character errors",
                f"{found.character_error_rate:.2%} in {plural(found.documents_with_truth, 'document')}",
            )
        )
    if found.price:
        price = found.price
        spot = "" if price.spot_usd_per_1000_pages is None else f", about {price.spot_usd_per_1000_pages:.3g} on Spot"
        rows.append(("$ per 1,000 pages", f"{price.usd_per_1000_pages:.3g}{spot} ({price.source})"))
    else:
        rows.append(("$ per 1,000 pages", missing_price(found.engine)))
    return rows
