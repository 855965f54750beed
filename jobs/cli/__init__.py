"""`pagefleet`: the command line. Each command says what to do and leaves the doing to the other modules, which it
imports when it runs, so that `--help` answers at once."""

from __future__ import annotations

import itertools
import logging
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from jobs.cli import batch, dataset, image, workflow
from jobs.cli.bench import bench_command
from jobs.cli.options import engine_options, note_unchanged
from jobs.cli.tables import show_table
from jobs.errors import CliExit, JobError
from jobs.wording import have, plural, shown, typed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from jobs.plan import Plan
    from jobs.results import Document, RunFolder
    from jobs.summary import Summary
    from worker.contract import Options

TABLE_ROWS = 60  # documents shown at the end of a run; results.jsonl has them all


class _Group(click.Group):
    """Turns our exceptions into a message and an exit code, and takes no empty argument."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        for before, argument in itertools.pairwise([str(name), *rest]):
            if not argument or re.fullmatch("--[a-z-]+=", argument):  # it would mean the current folder, or the default
                after = argument or before
                raise click.UsageError(f"what follows {after} is empty: is a variable of the shell not set?", ctx)
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with its whole first sentence, which click would cut."""
        listed = [self.commands[name] for name in self.list_commands(ctx) if not self.commands[name].hidden]
        with formatter.section("Commands"):
            formatter.write_dl([(str(command.name), command.get_short_help_str(limit=1_000)) for command in listed])

    def invoke(self, ctx: click.Context) -> Any:
        from worker.errors import BadRequest, BadSetup, DocumentError, WorkerError

        try:
            return super().invoke(ctx)
        except JobError as error:
            _fail(str(error), error.exit_code)
        except DocumentError as error:
            _fail(error.message, CliExit.RUN_FAILED)
        except WorkerError as error:
            asked_wrongly = isinstance(error, BadRequest) and not isinstance(error, BadSetup)
            _fail(str(error), CliExit.USAGE if asked_wrongly else CliExit.RUN_FAILED)


class _Notes(logging.Handler):
    """What `jobs` has to say in the midst of its work."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"note: {record.getMessage()}", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pagefleet", message="%(prog)s %(version)s")
def main() -> None:
    """Read piles of images and PDFs: text, layout, confidences and a report.

    \b
    pagefleet run samples --out out/samples
    """
    logging.getLogger("jobs").handlers = [_Notes()]


@main.command("run")
@click.argument("inputs", metavar="INPUT...", nargs=-1)
@click.option("--keys-file", metavar="FILE", help="A list of keys, URIs or paths, one per line.")
@click.option("--out", metavar="DIR", help="The run's folder, local or s3://…  [default: runs/RUN-ID]")
@click.option("--engine", default="rapidocr", show_default=True, help="See `pagefleet engines`.")
@click.option(
    "--engine-option", "engine_options", metavar="K=V", multiple=True, help="An engine's own: docs/engines.md."
)
@click.option(
    "--model",
    metavar="FOLDER|S3-URI|HUB-ID@COMMIT",
    help="Other weights for a vision model's engine.  [default: the engine's]",
)
@click.option("--lang", help="Language of the documents, where the engine wants to know.")
@click.option("--pages", metavar="RANGES", help="Only these pages of each document: 1-3,7")
@click.option(
    "--pages-per-task", type=click.IntRange(1), metavar="N", help="Cut longer documents into tasks of N pages."
)
@click.option("--dpi", type=click.IntRange(36, 1200), default=200, show_default=True, help="Of rendered PDF pages.")
@click.option(
    "--max-pixels", type=click.IntRange(1), default=200_000_000, show_default=True, help="Refuse larger images."
)
@click.option(
    "--longest-side",
    type=click.IntRange(64),
    metavar="PIXELS",
    help="Scale larger pages down.  [default: the engine's]",
)
@click.option("--keep-furniture", is_flag=True, help="Keep running heads, feet and page numbers in the text.")
@click.option("--page-timeout", type=float, default=120.0, show_default=True, help="Seconds to decode one page.")
@click.option(
    "--decode-memory", type=click.IntRange(256), default=3072, show_default=True, help="MiB for decoding one document."
)
@click.option("--workers", type=click.IntRange(1), help="Worker processes.  [default: one for four CPUs]")
@click.option("--shards", type=click.IntRange(1, 10_000), help="How many pieces the run is dealt into.")
@dataset.options
@click.option("--no-report", is_flag=True, help="Don't write report.html.")
@click.option("--dry-run", is_flag=True, help="Show the plan, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, progress on standard error.")
def run_command(inputs: tuple[str, ...], **given: Any) -> None:
    """Read documents on this machine.

    INPUT is a file, a folder, a glob, an s3:// key, or an s3:// prefix that ends in a slash.

    \b
    pagefleet run samples --out out/samples
    pagefleet run 'scans/*.pdf' --pages 1-3 --dry-run
    pagefleet run s3://bucket/scans/ --out s3://bucket/runs/first
    pagefleet run --dataset train.parquet --image-column image --resume
    """
    from jobs import local
    from jobs.plan import Sharding
    from jobs.runner import RunnerOptions, share_cpus
    from worker.engines.options import service_options
    from worker.settings import available_cpus
    from worker.storage import open_storage, to_uri

    labelling = dataset.dataset_request(given | {"inputs": inputs}, to_uri)
    if not inputs and not given["keys_file"] and not labelling:
        raise click.UsageError("name at least one INPUT, --keys-file or --dataset")
    if given["resume"] and not given["out"] and not labelling:
        raise click.UsageError("--resume needs --out, the folder of the run that is to go on")
    workers, threads = share_cpus(available_cpus(), given["workers"])
    request = local.Request(
        inputs=inputs,
        keys_file=given["keys_file"],
        engine=given["engine"],
        options=_options(given),
        sharding=Sharding(given["shards"], workers, given["pages"], given["pages_per_task"]),
        dataset=labelling,
    )
    storage, out = open_storage(), local.out_uri(given["out"], labelling)
    if given["resume"] and not given["dry_run"] and (found := local.find_run(storage, out)):
        dataset.check_same(found, labelling, request.engine, () if given["keys_file"] else inputs)
        note_unchanged(found.run, request.options, request.sharding, labelling)
        _resume(found, given | {"retry_failed": False}, service_options(request.options.engine_options))
    local.check_out(storage, out)
    plan = local.plan_run(storage, request, out)
    if given["dry_run"]:
        into = shown(out) if given["out"] or labelling else None  # else the run itself makes up a name
        from jobs.cost import estimate_charge
        from jobs.summary import format_usd

        estimate = estimate_charge(plan, request.options)
        more = {"estimate": estimate} if estimate else {}
        _show_plan(plan, into, f"{local.RUNS}/", request.engine, as_json=given["as_json"], **more)
        if estimate and not given["as_json"]:
            click.echo(f"would be charged {format_usd(estimate['usd'])}: {estimate['basis']}")
        return
    folder = local.start_run(storage, request, plan, out)
    runner = RunnerOptions(workers=workers, threads=threads)
    try:
        _read_and_finish(folder, list(range(plan.shards)), runner, len(plan.tasks), given)
    except local.Refused:
        if not any(folder.receipts()):
            local.discard(folder)
        raise


@main.command("resume")
@click.argument("directory", metavar="RUN")
@click.option("--retry-failed", is_flag=True, help="Read failed and partly failed documents again, too.")
@click.option(
    "--engine-option",
    "service",
    metavar="K=V",
    multiple=True,
    help="Where a service is now, or how it is asked: base_url=URL, rate=1, …",
)
@click.option("--workers", type=click.IntRange(1), help="Worker processes.  [default: one for four CPUs]")
@click.option("--no-report", is_flag=True, help="Don't write report.html.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, progress on standard error.")
@batch.stack_option
@batch.region_option
def resume_command(directory: str, *, service: tuple[str, ...], stack: str, region: str | None, **given: Any) -> None:
    """Read what a stopped run has left; what has a result is not read again.

    RUN is a run's folder, or the id of a run on AWS, which goes on there.

    \b
    pagefleet resume out/samples
    pagefleet resume out/samples --retry-failed
    """
    changed = engine_options(service)
    if batch.is_on_batch(directory):
        batch.resume(
            directory,
            retry_failed=given["retry_failed"],
            service=changed,
            stack=stack,
            region=region,
            as_json=given["as_json"],
        )
        return
    from jobs.results import open_run

    _resume(open_run(directory), given, changed)


def _resume(folder: RunFolder, given: dict[str, Any], service: dict[str, Any]) -> NoReturn:
    from jobs.local import change_service, check_aws
    from jobs.runner import RunnerOptions, share_cpus
    from worker.settings import available_cpus

    workers, threads = share_cpus(available_cpus(), given["workers"])
    change_service(folder, service)
    left = folder.open_tasks(retry_failed=given["retry_failed"])
    runner = RunnerOptions(
        workers=workers,
        threads=threads,
        resumed_after=max(1, folder.last_attempt),  # even where an attempt died before its first receipt
        retry_failed=given["retry_failed"],
    )
    if left:
        uris = (task.uri for task in folder.tasks(min(left)))
        check_aws(folder.storage, folder.run.engine, folder.run.options, uris)
    _read_and_finish(folder, sorted(left), runner, sum(left.values()), given)


@main.command("collect")
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
def collect_command(directory: str, as_json: bool) -> None:
    """Reconcile a run's plan with its outcomes; write results.jsonl, results.parquet, summary.json and summary.md.

    \b
    pagefleet collect out/samples
    """
    from jobs.collect import collect
    from jobs.results import open_run

    folder = open_run(directory)
    table = _Table()
    summary = collect(folder, table.add)
    _tell(folder, summary, table, as_json=as_json, report=False)


@main.command("report")
@click.argument("directory", metavar="DIR")
def report_command(directory: str) -> None:
    """Write report.html, a run to look through in a browser. The run must have been collected.

    \b
    pagefleet report out/samples
    """
    from jobs.local import write_report_file
    from jobs.results import open_run

    folder = open_run(directory)
    click.echo(shown(write_report_file(folder, folder.summary)))


@main.command("show")
@click.argument("directory", metavar="DIR")
@click.argument("document", metavar="DOCUMENT")
def show_command(directory: str, document: str) -> None:
    """Print what was read of one document, as markdown; DOCUMENT is its name in the run, or its URI.

    \b
    pagefleet show out/samples receipt.jpg
    """
    from jobs.results import open_run

    found = open_run(directory).document(document)
    if found.status in ("failed", "unaccounted"):
        raise JobError(f"{found.name} has no text: {found.message}")
    if found.outcome and found.message:
        click.echo(f"{found.name}: {found.message}", err=True)
    if found.pages and all(page.status == "blank" for page in found.pages):
        click.echo(f"{found.name}: {plural(len(found.pages), 'blank page')}, no text", err=True)
    click.echo(found.markdown, nl=False)


@main.command("engines")
def engines_command() -> None:
    """List the engines: where each runs, its licence, whether it is installed, and what it needs to be given.

    \b
    pagefleet engines
    """
    from textwrap import fill

    from worker.engines import ENGINES, missing_modules, missing_programs

    for name, info in ENGINES.items():
        modules, programs = missing_modules(name), missing_programs(name)
        ways = "; ".join([info.install] * bool(modules) + [info.programs[program] for program in programs])
        installed = f"no ({', '.join(modules + programs)} missing): {ways}" if ways else "yes"
        told = {"runs on": info.runs_on, "licence": info.licence, "installed": installed, "needs": info.needs}
        click.echo(name)
        for what, text in told.items():
            if text:
                click.echo(
                    fill(text, 80, initial_indent=f"  {what:11}", subsequent_indent=" " * 13, break_on_hyphens=False)
                )


# ---- what the commands share


def _read_and_finish(folder: RunFolder, shards: list[int], runner: Any, tasks: int, given: dict[str, Any]) -> NoReturn:
    from jobs import local

    for warning in folder.run.warnings:
        click.echo(f"note: {warning}", err=True)
    try:
        reasons = local.read(folder, shards, runner, _console(stderr=True), tasks)
    except local.Interrupted as error:
        if given["as_json"]:
            _show_json(local.finish(folder, report=False), _files(folder, report=False))
        _fail(str(error), CliExit.UNACCOUNTED)
    table = _Table()
    summary = local.finish(folder, report=not given["no_report"], on_document=table.add, warnings=reasons)
    _tell(folder, summary, table, as_json=given["as_json"], report=not given["no_report"], reasons=reasons)


def _tell(
    folder: RunFolder, summary: Summary, table: _Table, *, as_json: bool, report: bool, reasons: Sequence[str] = ()
) -> NoReturn:
    """Shows how a run ended, and ends the command accordingly. `reasons` are why shards gave up."""
    files = _files(folder, report=report)
    if as_json:
        _show_json(summary, files)
    else:
        table.show(_console())
        click.echo()
        for name, file in files.items():
            click.echo(f"{'labels' if name == 'pseudo_labels' else name.partition('.')[2]:8} {shown(file)}")
    documents = summary.documents
    if documents.unaccounted:
        _fail(
            f"{have(documents.unaccounted, 'document')} no outcome: `pagefleet resume {typed(folder.uri)}` reads "
            + "; ".join(["it" if documents.unaccounted == 1 else "them", *reasons]),
            CliExit.UNACCOUNTED,
        )
    if documents.failed or documents.partial:
        if not documents.failed:
            told = f"{plural(documents.partial, 'document')} failed in part"
        else:
            told = f"{plural(documents.failed, 'document')} failed"
            told += f" and {documents.partial:,} in part" if documents.partial else ""
        _fail(f"{told}: see {shown(folder.paths.file('summary.md'))}", CliExit.SOME_FAILED)
    sys.exit(CliExit.OK)


def _files(folder: RunFolder, *, report: bool) -> dict[str, str]:
    """URIs of what was written for a reader of the run, by name."""
    names = ["results.jsonl", "results.parquet", "summary.md", *(["report.html"] if report else [])]
    files = {name: folder.paths.file(name) for name in names if folder.storage.exists(folder.paths.file(name))}
    return files | ({"pseudo_labels": folder.paths.file(folder.run.dataset.output)} if folder.run.dataset else {})


def _show_json(summary: Summary, files: dict[str, str]) -> None:
    where = {name.replace(".", "_"): file for name, file in files.items()}
    click.echo(_json(summary.model_dump(mode="json") | {"files": where}))


class _Table:
    """The documents of a run as a table, in constant memory: the first ones, and the first that went wrong."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, ...]] = []
        self._count = 0

    def add(self, document: Document) -> None:
        self._count += 1
        if len(self._rows) >= TABLE_ROWS and (document.status == "ok" or len(self._rows) >= 2 * TABLE_ROWS):
            return
        row = document.row()
        self._rows.append(
            (
                document.name,
                str(row["pages"] or ""),
                str(row["lines"] or ""),
                f"{row['mean_confidence']:.3f}" if row["mean_confidence"] is not None else "",
                f"{row['seconds']:.1f}" if row["seconds"] is not None else "",
                f"{document.status}: {document.message}" if document.message else document.status,
            )
        )

    def show(self, console: Console) -> None:
        figures = ("pages", "lines", "confidence", "seconds")
        show_table(console, ("document", *figures, "outcome"), self._rows, right=figures)
        if self._count > len(self._rows):
            console.print(f"… and {self._count - len(self._rows):,} more")


def _show_plan(plan: Plan, out: str | None, below: str, engine: str, *, as_json: bool, **more: Any) -> None:
    """`out` is None of a new folder below `below`."""
    if as_json:
        click.echo(
            _json(
                {
                    "engine": engine,
                    "out": out,
                    "root": plan.root,
                    "documents": plan.documents,
                    "tasks": len(plan.tasks),
                    "shards": plan.shards,
                    "warnings": plan.warnings,
                    **more,
                }
            )
        )
        return

    click.echo(
        f"would read {plural(plan.documents, 'document')} as {plural(len(plan.tasks), 'task')} "
        f"in {plural(plan.shards, 'shard')} with {engine}"
    )
    click.echo(f"into {out or f'a new folder below {below}'}")
    for uri, name, pages, part, parts in itertools.islice(plan.tasks, 20):
        path = shown(uri).encode("utf-8", "backslashreplace").decode()
        more_of_it = (f"  pages {pages}" if pages else "") + (f"  (part {part} of {parts})" if part else "")
        click.echo(f"  {name}  ←  {path}{more_of_it}")
    if len(plan.tasks) > 20:
        click.echo(f"  … and {len(plan.tasks) - 20:,} more")
    for warning in plan.warnings:
        click.echo(f"note: {warning}")


def _options(given: dict[str, Any]) -> Options:
    from worker.contract import Options
    from worker.decode import parse_pages

    if given["pages"]:
        try:
            parse_pages(given["pages"])
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--pages") from error
    return Options(
        dpi=given["dpi"],
        max_pixels=given["max_pixels"],
        longest_side=given["longest_side"],
        lang=given["lang"],
        keep_furniture=given["keep_furniture"],
        page_timeout=given["page_timeout"],
        decode_memory=given["decode_memory"],
        engine_options=dataset.implied_options(given) | engine_options(given["engine_options"], given["model"]),
    )


def _json(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = 1000  # a file or a pipe wraps nothing
    return console


def _fail(message: str, code: CliExit) -> NoReturn:
    click.echo(f"pagefleet: {message}", err=True)
    sys.exit(code)


main.add_command(bench_command)
batch.register(main)
main.add_command(workflow.workflow)
main.add_command(image.image)
