"""The commands for runs on AWS: submit, watch, fetch, cancel, logs, runs, cost, doctor; and resume, where a run went
to AWS Batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from jobs.errors import CliExit, JobError, UsageError
from jobs.wording import have, plural

if TYPE_CHECKING:
    from jobs.batch import BatchRun
    from jobs.doctor import Check
    from jobs.stack import Stack
    from jobs.watch import Snapshot, Watch

# Of `run`, and not of `submit`, which takes all its other options over.
LOCAL_ONLY = {"inputs", "out", "workers", "no_report", "as_json"}

stack_option = click.option(
    "--stack",
    default="dev",
    show_default=True,
    envvar="PAGEFLEET_STACK",
    help="A deployed stack.  [$PAGEFLEET_STACK]",
)
region_option = click.option(
    "--region", envvar=["AWS_REGION", "AWS_DEFAULT_REGION"], help="Where it is deployed.  [$AWS_REGION]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


@click.command("submit")
@click.argument("keys", metavar="KEY...", nargs=-1)
@click.option("--prefix", "prefixes", metavar="S3-URI", multiple=True, help="All documents below an s3:// prefix.")
@click.option("--run-id", metavar="ID", help="The run's name.  [default: made of the time]")
@click.option("--on", type=click.Choice(["cpu", "gpu"]), help="Hardware.  [default: what the engine needs]")
@stack_option
@region_option
@json_option
def submit_command(keys: tuple[str, ...], **given: Any) -> None:
    """Read documents in S3 on AWS Batch.

    KEY is a key of the stack's inputs bucket, or an s3:// URI, also of a folder. The same --run-id is never submitted
    twice.

    \b
    pagefleet submit --stack dev scans/receipt.jpg scans/paper.pdf --run-id first
    pagefleet submit --stack dev --prefix s3://inputs/scans/ --dry-run
    pagefleet submit --stack dev --dataset sets/train.parquet --run-id train --resume
    """
    from functools import partial

    from jobs import batch, cost
    from jobs.cli import _json, _options, _show_plan
    from jobs.cli.dataset import check_same, dataset_request
    from jobs.cli.options import note_unchanged
    from jobs.plan import Sharding, new_run_id
    from jobs.results import open_run
    from jobs.runs import measured_rate
    from worker.contract import RunPaths
    from worker.engines.options import service_options
    from worker.storage import open_storage

    if not keys and not given["prefixes"] and not given["keys_file"] and not given["dataset"]:
        raise click.UsageError("name at least one KEY, --keys-file, --prefix or --dataset")
    if given["resume"] and not given["run_id"]:
        raise click.UsageError("--resume needs --run-id, the run that is to go on")
    run_id = given["run_id"] or new_run_id()
    batch.check_run_id(run_id)
    options = _options(given)
    aws, stack = _stack(given)
    request = batch.Request(
        keys=keys,
        keys_file=given["keys_file"],
        prefixes=given["prefixes"],
        engine=given["engine"],
        options=batch.with_secret(options, given["engine"], stack),
        sharding=Sharding(given["shards"], 1, given["pages"], given["pages_per_task"]),
        dataset=dataset_request(given | {"keys": keys}, partial(batch.input_uri, stack), in_s3=True),
    )
    storage = open_storage()
    record = batch.read_record(storage, RunPaths(stack.run_uri(run_id))) if given["resume"] else None
    if record and not given["dry_run"]:
        found = open_run(stack.run_uri(run_id), storage)
        sources = [batch.input_uri(stack, key) for key in (*keys, *given["prefixes"]) if not given["keys_file"]]
        check_same(found, request.dataset, request.engine, sources)
        note_unchanged(found.run, request.options, request.sharding, request.dataset, record)
        resume(
            run_id,
            retry_failed=False,
            service=service_options(request.options.engine_options),
            stack=stack.stack,
            region=stack.region,
            as_json=given["as_json"],
        )
        return
    kind = batch.choose_definition(stack, request.engine, given["on"])
    batch.check_weights(stack, kind, request)
    batch.check_free(aws, storage, stack, run_id)
    plan = batch.plan_batch(storage, stack, request)
    rate = measured_rate(aws, storage, stack, request.engine, kind)
    estimate = cost.estimate(plan, request.engine, stack.definition(kind), *(rate or ()))
    if given["dry_run"]:
        into, below = stack.run_uri(run_id) if given["run_id"] else None, stack.run_uri("")
        _show_plan(plan, into, below, request.engine, as_json=given["as_json"], estimate=estimate.model_dump())
        if not given["as_json"]:
            _tell_estimate(estimate)
        return
    for warning in plan.warnings:
        click.echo(f"note: {warning}", err=True)
    run = batch.submit(aws, storage, stack, run_id, kind, plan, request)
    links = batch.console_links(run.record)
    if given["as_json"]:
        told = {"run": run.id, "uri": run.folder.uri, "job": run.record.job.id, **links}
        click.echo(_json(told | {"estimate": estimate.model_dump(exclude_none=True)}))
        return
    click.echo(
        f"run      {run.id}\nfolder   {run.folder.uri}\njob      {run.record.job.id}, {plural(plan.shards, 'shard')}"
    )
    for name, link in links.items():
        click.echo(f"{name:8} {link}")
    _tell_estimate(estimate)
    click.echo(f"Follow it with `pagefleet watch {run.words}`, then `pagefleet fetch {run.words}`.")


@click.command("watch")
@click.argument("run", metavar="RUN")
@click.option("--once", is_flag=True, help="Show how it is now, and end.")
@click.option("--interval", type=click.FloatRange(0), default=15.0, show_default=True, help="Seconds between looks.")
@click.option(
    "--wait-minutes", type=click.FloatRange(0), metavar="N", help="End after N minutes, with 5 if it goes on."
)
@stack_option
@region_option
@json_option
def watch_command(run: str, **given: Any) -> None:
    """Follow a run on AWS until its job has ended: shards, documents, pages/s, spend, and why it waits.

    RUN is a run's id, or its folder. Ends with 0, 3 (some documents failed), 4 (some have no outcome) or 5 (still
    running).

    \b
    pagefleet watch first
    """
    from jobs.watch import Watch

    found = _open(run, given)
    watch = Watch(found)
    try:
        snapshot = _watch(watch, given)
    except KeyboardInterrupt:
        words = found.words
        click.echo(f"\nthe run goes on: `pagefleet watch {words}` follows it again, `pagefleet cancel {words}` ends it")
        sys.exit(CliExit.OK)
    _end_watch(snapshot, found.words, as_json=given["as_json"], once=given["once"])


@click.command("fetch")
@click.argument("run", metavar="RUN")
@click.option("--out", metavar="DIR", help="Where to.  [default: runs/RUN-ID]")
@click.option("--no-documents", is_flag=True, help="All but documents and results.*; a labelled set, too.")
@click.option("--no-report", is_flag=True, help="Don't make report.html.")
@stack_option
@region_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def fetch_command(run: str, **given: Any) -> None:
    """Collect a run on AWS, make its report, and copy it here, with the logs of failed shards.

    What is there is fetched, also of a run that still goes on or was cancelled.

    \b
    pagefleet fetch first --out out/first
    pagefleet fetch first --out out/summary --no-documents
    """
    from jobs.batch import ENDED
    from jobs.cli import _Table, _tell
    from jobs.collect import collect
    from jobs.cost import run_cost
    from jobs.fetch import check_out, download, save_logs
    from jobs.local import write_report_file
    from jobs.results import open_run

    found = _open(run, given)
    out = Path(given["out"] or f"runs/{found.id}")
    check_out(found, out)
    if found.status() not in (None, *ENDED):
        click.echo(f"note: the run is live, this is what there is now; `pagefleet watch {found.words}`", err=True)
    spent = run_cost(found)
    table = _Table()
    summary = collect(found.folder, table.add, spent.model_dump(exclude_none=True) if spent else None)
    if not given["no_report"]:
        write_report_file(found.folder, summary)
    download(found.folder.storage, found.folder.paths, out, documents=not given["no_documents"])
    logs = save_logs(found, out)
    if logs:
        click.echo(f"note: {plural(logs, 'shard')} failed, with logs in {out / 'logs'}", err=True)
    _tell(open_run(str(out)), summary, table, as_json=given["as_json"], report=not given["no_report"])


@click.command("cancel")
@click.argument("run", metavar="RUN")
@stack_option
@region_option
def cancel_command(run: str, **given: Any) -> None:
    """End a run's job on AWS. What was read stays, and `pagefleet resume` reads the rest.

    \b
    pagefleet cancel first
    """
    found = _open(run, given)
    if not found.cancel():
        raise JobError(f"run {found.id} is not live: `pagefleet fetch {found.words}` brings what there is")
    click.echo(f"run {found.id} is being ended: its workers finish what they have in hand")


@click.command("logs")
@click.argument("run", metavar="RUN")
@click.option("--shard", type=click.IntRange(0), metavar="N", help="Of this shard only.")
@click.option("--follow", is_flag=True, help="Go on until the run has ended.")
@stack_option
@region_option
def logs_command(run: str, *, shard: int | None, follow: bool, **given: Any) -> None:
    """Print what the workers of a run on AWS have said: time, [shard], line.

    \b
    pagefleet logs first --shard 0
    """
    from jobs.fetch import choose_shards, follow_logs, read_logs, show

    found = _open(run, given)
    lines = follow_logs(found, shard) if follow else read_logs(found, choose_shards(found, shard))
    for line in lines:
        click.echo(show(line))


@click.command("runs")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many, the newest first.")
@stack_option
@region_option
@json_option
def runs_command(**given: Any) -> None:
    """List the runs of a stack: state, age, documents, cost.

    \b
    pagefleet runs --stack dev
    """
    from datetime import UTC, datetime

    from jobs.cli import _console, _json
    from jobs.cli.tables import show_table
    from jobs.runs import list_runs
    from jobs.summary import format_seconds, format_usd
    from worker.storage import open_storage

    aws, stack = _stack(given)
    rows = list_runs(aws, open_storage(), stack, given["limit"])
    if given["as_json"]:
        told = [
            {
                "run": row.id,
                "state": row.state,
                "created": row.created.isoformat(),
                "engine": row.engine,
                "documents": row.summary.documents.model_dump() if row.summary else {"total": row.documents},
                "cost": row.summary.cost if row.summary else None,
            }
            for row in rows
        ]
        click.echo(_json({"runs": told}))
        return
    if not rows:
        click.echo(f"stack {stack.stack} has no runs so far: `pagefleet submit` starts one", err=True)
        return
    lines = []
    for row in rows:
        age = format_seconds((datetime.now(UTC) - row.created).total_seconds())
        counts = row.summary.documents if row.summary else None
        cost = row.summary.cost if row.summary else None
        found = (f"{counts.failed:,}", f"{counts.unaccounted:,}") if counts else ("", "")
        usd = format_usd(cost["usd"]) if cost else ""
        lines.append((row.id, row.state, age, row.engine, f"{row.documents:,}", *found, usd))
    heads = ("documents", "failed", "missing", "cost")
    show_table(_console(), ("run", "state", "age", "engine", *heads), lines, right=heads)


@click.command("cost")
@click.argument("run", metavar="[RUN]", required=False)
@click.option("--idle", is_flag=True, help="What the stack costs a month when nothing runs.")
@stack_option
@region_option
@json_option
def cost_command(run: str | None, *, idle: bool, as_json: bool, **given: Any) -> None:
    """What a run has cost so far, or what a deployed stack costs when nothing runs.

    \b
    pagefleet cost first
    pagefleet cost --idle --stack dev
    """
    from jobs.cli import _json
    from jobs.cost import run_cost
    from jobs.summary import format_usd

    if idle == bool(run):
        raise click.UsageError("name a RUN, or give --idle")
    if run:
        found = _open(run, given)
        spent = run_cost(found)
        if spent is None and found.status() is None:
            raise JobError(
                f"AWS Batch has forgotten the jobs of run {found.id}: what it had cost is in its summary, where it was "
                f"fetched before, `pagefleet fetch {found.words} --no-documents`"
            )
        if spent is None:
            raise JobError(
                f"run {found.id} has cost nothing so far: no shard has started, `pagefleet watch {found.words}`"
            )
        if as_json:
            click.echo(_json(spent.model_dump()))
            return
        click.echo(f"{format_usd(spent.usd)} for {plural(round(spent.seconds), 'second')} of work ({spent.prices})")
        for share in spent.instances:
            click.echo(f"  {share.instance:12} {share.seconds:10,.0f} s  {format_usd(share.usd)}")
        for note in spent.notes:
            click.echo(f"note: {note}")
        return
    _, stack = _stack(given)
    total = sum(stack.idle_monthly_usd.values())
    if as_json:
        click.echo(_json({"stack": stack.stack, "monthly_usd": total, "items": stack.idle_monthly_usd}))
        return
    for name, usd in sorted(stack.idle_monthly_usd.items(), key=lambda item: -item[1]):
        click.echo(f"{name.replace('_', ' '):24} {format_usd(usd):>10}")
    click.echo(f"{'a month, idle':24} {format_usd(total):>10}  (list prices; what is stored and logged comes on top)")


@click.command("doctor")
@stack_option
@region_option
@json_option
def doctor_command(**given: Any) -> None:
    """Look for what would keep a run from working: credentials, stack, image, queues, quotas, buckets.

    \b
    pagefleet doctor --stack dev
    """
    from jobs.aws import Aws
    from jobs.cli import _json
    from jobs.doctor import check_stack

    bad = 0
    told: list[Check] = []
    for check in check_stack(Aws(given["region"]), given["stack"]):
        bad += check.ok is False
        told.append(check)
        if not given["as_json"]:
            mark = {True: "ok", False: "BAD", None: "?"}[check.ok]
            click.echo(f"{mark:3} {check.name}: {check.detail}" + ("" if check.ok else f"\n    fix: {check.fix}"))
    if given["as_json"]:
        click.echo(_json({"checks": [vars(check) for check in told]}))
    if not bad and not given["as_json"]:
        unknown = sum(check.ok is None for check in told)
        but = f", but {plural(unknown, 'thing')} could not be looked at" if unknown else ""
        click.echo(f"no fault of stack {given['stack']} was found{but}")
    if bad:
        raise JobError(f"{plural(bad, 'fault')} of stack {given['stack']}: see the fixes above")


COMMANDS = (
    submit_command,
    watch_command,
    fetch_command,
    cancel_command,
    logs_command,
    runs_command,
    cost_command,
    doctor_command,
)


def register(main: click.Group) -> None:
    """Adds the commands to `pagefleet`."""
    submit_command.params[1:1] = [param for param in main.commands["run"].params if param.name not in LOCAL_ONLY]
    for command in COMMANDS:
        main.add_command(command)


def is_on_batch(run: str) -> bool:
    """Whether a RUN is AWS Batch's: an id, not a folder; or a folder that says so, in S3 also by its plan alone."""
    from jobs.batch import is_submitted, read_record
    from jobs.results import open_run
    from worker.contract import RunPaths
    from worker.storage import open_storage, to_uri

    if "://" not in run and "/" not in run and not Path(run).exists():
        return True
    storage, uri = open_storage(), to_uri(run)
    if read_record(storage, RunPaths(uri)):
        return True
    return uri.startswith("s3://") and is_submitted(open_run(uri, storage).run)


def resume(
    run: str, *, retry_failed: bool, service: dict[str, Any], stack: str, region: str | None, as_json: bool
) -> None:
    """`pagefleet resume` of a run on Batch; `service` are the options of its engine that change."""
    from jobs.batch import console_links
    from jobs.cli import _json
    from jobs.stack import load_stack

    found = _open(run, {"stack": stack, "region": region})
    job = found.resume(load_stack(found.aws, found.record.stack), retry_failed=retry_failed, service=service)
    if as_json:
        links = console_links(found.record) if job else {}
        click.echo(_json({"run": found.id, "uri": found.folder.uri, "job": job.id if job else None, **links}))
    elif job is None:
        again = "" if retry_failed else "; what failed is read again with --retry-failed"
        click.echo(f"nothing is left to read of run {found.id}: `pagefleet fetch {found.words}`{again}")
    else:
        click.echo(f"run      {found.id}\njob      {job.id}, {plural(job.shards, 'shard')}")
        for name, link in console_links(found.record).items():
            click.echo(f"{name:8} {link}")


# ---- helpers


def _stack(given: dict[str, Any]) -> tuple[Any, Stack]:
    """The description, and AWS in the stack's region."""
    from jobs.aws import Aws
    from jobs.stack import load_stack

    aws = Aws(given["region"])
    stack = load_stack(aws, given["stack"])
    return (aws if aws.region == stack.region else Aws(stack.region)), stack


def _open(run: str, given: dict[str, Any]) -> BatchRun:
    """A run by its id on the stack, its s3:// URI, or a fetched copy of it."""
    from jobs.batch import check_run_id, open_batch_run, read_record
    from worker.contract import RunPaths
    from worker.storage import open_storage, to_uri

    storage = open_storage()
    if "://" in run or Path(run).is_dir():
        record = read_record(storage, RunPaths(to_uri(run)))
        if record is None and not is_on_batch(run):
            return open_batch_run(storage, run)  # which says so
        try:
            aws, stack = _stack({"stack": record.stack, "region": record.region} if record else given)
        except UsageError:
            if record is None:
                raise
            return open_batch_run(storage, run)  # the stack is gone and its jobs with it, but not its bucket
        return open_batch_run(storage, run, aws, stack)
    try:
        check_run_id(run)
        aws, stack = _stack(given)
        return open_batch_run(storage, stack.run_uri(run), aws, stack)
    except JobError:
        click.echo(f"note: there is no folder {run} here, so it is taken for the id of a run on AWS", err=True)
        raise


def _tell_estimate(estimate: Any) -> None:
    from jobs.summary import format_seconds, format_usd

    if estimate.usd is None:
        click.echo(f"estimate about {plural(estimate.pages, 'page')}; {estimate.basis}")
        return
    click.echo(
        f"estimate {format_usd(estimate.usd)} for about {plural(estimate.pages, 'page')}, "
        f"{format_seconds(estimate.wall_hours * 3600)} where all shards run at once: {estimate.basis}"
    )


def _watch(watch: Watch, given: dict[str, Any]) -> Snapshot:
    from jobs.cli import _console
    from jobs.watch import show_on, table

    console = _console(stderr=given["as_json"])
    wait = None if given["wait_minutes"] is None else 60 * given["wait_minutes"]
    if given["once"]:
        snapshot = watch.look()
        console.print(table(snapshot))
        return snapshot
    if not console.is_terminal:
        return watch.follow(show_on(console), given["interval"], wait)
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        return watch.follow(lambda one: live.update(table(one), refresh=True), given["interval"], wait)


def _end_watch(snapshot: Snapshot, words: str, *, as_json: bool, once: bool) -> NoReturn:
    from dataclasses import asdict

    from jobs.cli import _fail, _json

    if as_json:
        cost = snapshot.cost.model_dump() if snapshot.cost else None
        click.echo(_json(asdict(snapshot) | {"cost": cost}))
    if snapshot.exit_code == CliExit.UNACCOUNTED:
        left = snapshot.tasks - snapshot.ended
        _fail(
            f"{have(left, 'task')} no outcome: `pagefleet resume {words}` reads " + ("it" if left == 1 else "them"),
            snapshot.exit_code,
        )
    if snapshot.exit_code == CliExit.SOME_FAILED:
        _fail(
            f"{plural(snapshot.failed, 'task')} failed: `pagefleet fetch {words}` tells of each why",
            snapshot.exit_code,
        )
    if not snapshot.has_ended and not once:
        _fail(
            f"run {snapshot.run_id} goes on: `pagefleet watch {words}` follows it again",
            CliExit.STILL_RUNNING,
        )
    if snapshot.has_ended and not as_json:
        click.echo(f"everything has an outcome: `pagefleet fetch {words}`")
    sys.exit(CliExit.OK)
