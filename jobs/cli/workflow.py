"""`pagefleet workflow`: what the steps of the GitHub workflows do, one command a step. What was typed into a form comes
by environment variables, never through a shell."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs.cli.batch import _open, _stack, region_option, stack_option
from jobs.cli.image import ask_checkout
from jobs.errors import CliExit, JobError
from jobs.wording import plural
from worker.scratch import Scratch

if TYPE_CHECKING:
    from jobs.batch import BatchRun
    from jobs.github import Step
    from jobs.watch import Snapshot


COMMENT, SUMMARY = 50_000, 900_000  # characters of what Pulumi says, less than GitHub takes of a comment and a summary

FC = TypeVar("FC", bound=Callable[..., Any] | click.Command)


class _Steps(click.Group):
    """What ends a step is shown on top of the workflow's page, too."""

    def invoke(self, ctx: click.Context) -> Any:
        from worker.errors import DocumentError, WorkerError

        try:
            return super().invoke(ctx)
        except (JobError, DocumentError, WorkerError) as error:
            step = _step()
            if step.output is not None:
                step.annotate("error", str(error))
            raise


@click.group("workflow", cls=_Steps, hidden=True)
def workflow() -> None:
    """The steps of the GitHub workflows: outputs, summaries and artifacts for what the other commands do.

    Away from GitHub they print what they would have handed over.

    \b
    pagefleet workflow confirm --stack dev --confirm dev
    """


def _field(name: str, **more: Any) -> Callable[[FC], FC]:
    return click.option(f"--{name}", default="", envvar=f"FORM_{name.replace('-', '_').upper()}", **more)


run_argument = click.argument("run", envvar="PAGEFLEET_RUN")
minutes_option = _field("wait-minutes", help="For how long the workflow waits; 0 only submits.")
out_option = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("artifacts"), show_default=True, help="Where to."
)


@workflow.command("submit")
@_field("keys", help="One a line, or a JSON list.")
@_field("prefix", help="All documents below.")
@_field("keys-file", help="A file of the repository, a key a line.")
@_field("dataset", help="An s3:// URI of a parquet file with a column of images.")
@_field("engine", help="See `pagefleet engines`.")
@_field("options", help="How to read: options of `pagefleet submit`.")
@_field("shards", help="How many pieces the run is dealt into.")
@minutes_option
@stack_option
def submit_command(stack: str, wait_minutes: str, **fields: str) -> None:
    """Check the form and submit it; the run's id and links are in the summary before anything waits."""
    from jobs.dispatch import Form, parse_minutes

    parse_minutes(wait_minutes or "0")
    form = Form(stack, **fields)
    with Scratch() as scratch:
        told = _pagefleet("submit", *form.arguments(Path.cwd(), scratch), "--json")
    _tell_submitted(told)


@workflow.command("resume")
@run_argument
@click.option("--retry-failed", is_flag=True, envvar="FORM_RETRY_FAILED", help="Read failed documents again, too.")
@minutes_option
@stack_option
def resume_command(run: str, stack: str, wait_minutes: str, retry_failed: bool) -> None:
    """Submit what a run has left, and tell of it as `submit` does."""
    from jobs.batch import check_run_id
    from jobs.dispatch import parse_minutes

    parse_minutes(wait_minutes or "0")
    check_run_id(run)
    _tell_submitted(
        _pagefleet("resume", run, "--stack", stack, *(["--retry-failed"] if retry_failed else []), "--json")
    )


@workflow.command("wait")
@run_argument
@minutes_option
@click.option("--interval", type=float, default=15.0, envvar="PAGEFLEET_INTERVAL", help="Seconds between looks.")
@stack_option
@region_option
def wait_command(run: str, wait_minutes: str, interval: float, **given: Any) -> None:
    """Wait for a run until it has ended (output `ended`: true), or the minutes are over (false, exit 5).

    With 0 minutes nothing was to be waited for, and the step succeeds.
    """
    from jobs.cli import _console
    from jobs.dispatch import parse_minutes
    from jobs.watch import Watch, show_on

    minutes = parse_minutes(wait_minutes or "0")
    step, found = _step(), _open(run, given)
    snapshot = Watch(found).follow(show_on(_console()), interval, 60 * minutes)
    step.set_outputs(ended="true" if snapshot.has_ended else "false")
    if snapshot.has_ended:
        return
    _tell_unfinished(step, snapshot)
    if minutes:
        sys.exit(CliExit.STILL_RUNNING)


@workflow.command("collect")
@run_argument
@out_option
@click.option("--limit", type=click.IntRange(0), metavar="BYTES", help="Of the results' artifact.  [default: 500 MB]")
@stack_option
@region_option
def collect_command(run: str, out: Path, limit: int | None, **given: Any) -> None:
    """Fetch a run into `report/` and `results/`, and write its summary. Ends as `pagefleet fetch` does."""
    from jobs.artifacts import RESULTS_BYTES, left_out_note, pack

    step, found = _step(), _open(run, given)
    with Scratch() as scratch:
        fetched = scratch / found.id
        command = ("fetch", run, *_place(given), "--no-documents", "--json", "--out", str(fetched))
        exit_code, _, words = _run_pagefleet(*command)
        limit = RESULTS_BYTES if limit is None else limit
        labelled = found.folder.run.dataset.output if found.folder.run.dataset else None
        packed = pack(found.folder.storage, found.folder.paths, fetched, out, limit, labelled)
    step.set_outputs(run=found.id, report=str(packed.report), results=str(packed.results))
    summary = (packed.report / "summary.md").read_text(encoding="utf-8")
    parts = (summary.rstrip(), left_out_note(packed, found.words), _where(step, found, exit_code))
    step.add_summary("\n\n".join(filter(None, parts)))
    if exit_code:
        step.annotate("error", f"run {found.id}: {words}")
    sys.exit(exit_code)


@workflow.command("smoke")
@click.option("--document", type=click.Path(path_type=Path), default=Path("samples/receipt.jpg"), show_default=True)
@click.option("--truth", type=click.Path(path_type=Path), help="Its true text.  [default: truth/NAME.txt beside it]")
@minutes_option
@click.option("--interval", type=float, default=15.0, envvar="PAGEFLEET_INTERVAL", help="Seconds between looks.")
@stack_option
@region_option
def smoke_command(document: Path, truth: Path | None, wait_minutes: str, interval: float, **given: Any) -> None:
    """Read one document through a stack's real queue, and hold the result against its true text."""
    from jobs.batch import open_batch_run
    from jobs.cli import _console
    from jobs.collect import collect
    from jobs.dispatch import parse_minutes
    from jobs.github import fenced
    from jobs.plan import new_run_id
    from jobs.smoke import LEAST_LIKENESS, likeness, upload_sample
    from jobs.watch import Watch, show_on
    from worker.storage import open_storage

    step, (aws, stack) = _step(), _stack(given)
    minutes = parse_minutes(wait_minutes or "30")
    expected = (truth or document.parent / "truth" / f"{document.name}.txt").read_text(encoding="utf-8")
    run_id = f"smoke-{new_run_id()}"
    uri = upload_sample(open_storage(), stack, run_id, document)
    told = _pagefleet("submit", uri, *_place(given), "--run-id", run_id, "--json")
    step.set_outputs(run=run_id)
    found = open_batch_run(open_storage(), told["uri"], aws)
    snapshot = Watch(found).follow(show_on(_console()), interval, 60 * minutes)
    if not snapshot.has_ended:
        _tell_unfinished(step, snapshot)
        raise JobError(f"smoke run {run_id} has not ended within {minutes:g} minutes: `pagefleet watch {told['uri']}`")
    found.folder.refresh()
    collect(found.folder)
    read = found.folder.document(document.name)
    if read.outcome is None or read.status != "ok":
        raise JobError(f"smoke run {run_id}: {document.name} is {read.status}: {read.message or 'see its logs'}")
    like = likeness(read.markdown, expected)
    step.add_summary(
        f"## Smoke run\n\n`{document.name}` was read by run `{run_id}` in {snapshot.seconds:.0f} s, "
        f"{like:.1%} like its true text.\n\n<details><summary>What was read</summary>\n\n"
        f"{fenced(read.markdown)}\n\n</details>"
    )
    if like < LEAST_LIKENESS:
        raise JobError(
            f"smoke run {run_id}: the text read is only {like:.1%} like the true one, not {LEAST_LIKENESS:.0%}: "
            f"`pagefleet show {told['uri']} {document.name}`"
        )


@workflow.command("images")
@stack_option
@region_option
def images_command(**given: Any) -> None:
    """Say which images of this tree the stack's registry lacks. Outputs: tag, repository, cache, missing, cpu, gpu.

    The stack must be deployed: its first `pulumi up` is a person's, since it makes the roles of the workflows.
    """
    from jobs.deployment import missing_images

    step, tag = _step(), ask_checkout("image_tag")
    from infra_pulumi.image import TARGETS  # there, since it was asked

    aws, stack = _stack(given)
    missing = missing_images(aws, stack, tag)
    step.set_outputs(
        tag=tag,
        repository=stack.image.repository,
        cache=stack.image.cache,
        missing="true" if missing else "false",
        **{target: "missing" if target in missing else "present" for target in TARGETS},
    )
    rows = [f"| `{target}-{tag}` | {'to be built' if target in missing else 'there already'} |" for target in TARGETS]
    step.add_summary(f"## Images of stack {stack.stack}\n\n| tag | |\n| --- | --- |\n" + "\n".join(rows))


@workflow.command("unlock")
@click.option("--backend", envvar="PULUMI_BACKEND_URL", required=True, help="s3://BUCKET  [$PULUMI_BACKEND_URL]")
@stack_option
def unlock_command(backend: str, stack: str) -> None:
    """Release the stack's lock where a dead process of this very machine holds it; others are told, and kept."""
    from jobs.deployment import release_own_locks
    from worker.storage import open_storage

    released, others = release_own_locks(open_storage(), backend, stack)
    for owner in released:
        click.echo(f"released the lock of {owner}")
    for owner in others:
        _step().annotate(
            "warning",
            f"stack {stack} is locked by {owner}, which is not this job. If nothing of it runs any more: "
            f"pulumi cancel --stack {stack}",
        )


@workflow.command("preview")
@click.option("--out", type=click.Path(path_type=Path), default=Path("preview.md"), show_default=True)
@stack_option
def preview_command(out: Path, stack: str) -> None:
    """Show what `pulumi up` would change: in the summary, and as a file for a comment. Ends as Pulumi does."""
    from jobs.deployment import run_pulumi

    done = run_pulumi(["preview", "--stack", stack, "--diff"])
    headline = f"## Preview of stack {stack}: {'failed' if done.exit_code else done.changes or 'no changes'}"
    out.write_text(f"{headline}\n\n{done.to_markdown(COMMENT)}\n", encoding="utf-8")
    _step().add_summary(f"{headline}\n\n{done.to_markdown(SUMMARY)}")
    sys.exit(done.exit_code)


@workflow.command("comment")
@click.option("--file", type=click.Path(exists=True, path_type=Path), default=Path("preview.md"), show_default=True)
@click.option("--number", type=int, envvar="PULL_REQUEST", required=True, help="Of the pull request.")
@stack_option
def comment_command(file: Path, number: int, stack: str) -> None:
    """Put the preview on the pull request: one comment a stack, edited in place."""
    from jobs.github import Repository

    step = _step()
    body = f"{file.read_text(encoding='utf-8')}\n[The workflow]({step.url})\n"
    click.echo(Repository(step).put_comment(number, f"preview {stack}", body))


@workflow.command("drift")
@stack_option
def drift_command(stack: str) -> None:
    """Compare what is deployed with the tree; open or update one issue where they differ, close it where not."""
    from jobs.deployment import NO_CHANGES_EXPECTED, run_pulumi
    from jobs.github import Repository

    step = _step()
    repository = Repository(step)
    done = run_pulumi(["preview", "--stack", stack, "--refresh", "--diff", "--expect-no-changes"])
    mark = f"drift {stack}"
    if done.exit_code == 0:
        closed = repository.close_issue(mark)
        step.add_summary(f"## Stack {stack} is what the tree says" + (f"\n\nClosed {closed}." if closed else ""))
        return
    if NO_CHANGES_EXPECTED not in done.text:
        raise JobError(f"drift of stack {stack} cannot be told: pulumi ended with {done.exit_code}, see its log")
    body = (
        f"`{done.command}` finds differences: {done.changes or 'see below'}. Somebody has changed the stack by hand, "
        f"or a deployment has failed. `pulumi up --stack {stack}` ([deploy]({step.workflow_url('deploy')})) "
        "makes it what the tree says; a change that is to stay belongs into the tree.\n\n"
        f"Found by [this run]({step.url}).\n\n{done.to_markdown(COMMENT)}\n"
    )
    issue = repository.put_issue(mark, f"Stack {stack} has drifted", body)
    changes = done.changes or "see the issue"
    step.add_summary(f"## Stack {stack} has drifted: {changes}\n\n{issue}\n\n{done.to_markdown(SUMMARY)}")
    step.annotate("warning", f"stack {stack} has drifted: {issue}")


@workflow.command("confirm")
@_field("confirm", help="The stack's name, typed again.")
@stack_option
def confirm_command(stack: str, confirm: str) -> None:
    """End with an error unless the stack's name was typed to confirm that it may be destroyed."""
    from jobs.deployment import check_confirmed

    check_confirmed(stack, confirm)


# ---- helpers


def _step() -> Step:
    from jobs.github import Step

    return Step.from_environment()


def _place(given: dict[str, Any]) -> list[str]:
    """Stack and region, for a command of ours."""
    return ["--stack", given["stack"], *(["--region", given["region"]] if given["region"] else [])]


def _pagefleet(*arguments: str) -> dict[str, Any]:
    """What a command of ours prints as JSON. Raises: JobError with its own last words where it fails."""
    _, told, _ = _run_pagefleet(*arguments)
    return told


def _run_pagefleet(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Runs what a person would type, so that a workflow can do no more and no less. Exit code, JSON, and what it says
    of its end.

    Raises: JobError where there is no JSON, with the command's last words and its exit code.
    """
    click.echo(f"$ pagefleet {shlex.join(arguments)}")
    words: list[str] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        command = [sys.executable, "-m", "jobs.cli", *arguments]
        with subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr or ():
                if words or line.startswith(("pagefleet: ", "Error: ")):
                    words.append(line)
                else:
                    click.echo(line, err=True, nl=False)
        out.seek(0)
        said = out.read()
    last = "".join(words).strip().partition(": ")[2]
    if not said.strip():
        failed = JobError(last or f"pagefleet {arguments[0]} ended with {process.returncode}")
        failed.exit_code = CliExit(process.returncode) if process.returncode in set(CliExit) else CliExit.RUN_FAILED
        raise failed
    told: dict[str, Any] = json.loads(said)
    return process.returncode, told, last


def _tell_submitted(told: dict[str, Any]) -> None:
    """Run id and links, as outputs and in the summary."""
    from jobs.summary import format_usd

    step = _step()
    step.set_outputs(run=told["run"], uri=told["uri"])
    rows = [("folder", f"`{told['uri']}`")]
    if told["job"]:
        rows += [("job", f"[{told['job']}]({told['console']})"), ("logs", f"[CloudWatch]({told['logs']})")]
    if "usd" in (estimate := told.get("estimate", {})):
        rows.append(("estimate", f"{format_usd(estimate['usd'])} for about {plural(estimate['pages'], 'page')}"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    goes_on = (
        f"The run goes on whatever becomes of this workflow: [collect]({step.workflow_url('collect')}) with the run id "
        f"`{told['run']}`, or `pagefleet fetch {told['uri']}`, brings its results at any time."
        if told["job"]
        else "Nothing was left to read."
    )
    step.add_summary(f"## Submitted: run `{told['run']}`\n\n| | |\n| --- | --- |\n{table}\n\n{goes_on}")


def _tell_unfinished(step: Step, snapshot: Snapshot) -> None:
    from jobs.watch import line, notes

    step.add_summary(
        f"**Run `{snapshot.run_id}` is still going on.** {line(snapshot)}\n\n"
        + "".join(f"- {note}\n" for note in notes(snapshot))
        + f"\nBring its results later: [collect]({step.workflow_url('collect')}), run id `{snapshot.run_id}`."
    )
    step.annotate("warning", f"run {snapshot.run_id} is still going on: bring its results with the workflow collect")


def _where(step: Step, found: BatchRun, exit_code: int) -> str:
    """The foot of a summary: where the rest is, and what to do."""
    from jobs.batch import console_links

    links = console_links(found.record)
    told = [
        f"Artifacts of this run: `report-{found.id}` (look at `report.html`) and `results-{found.id}`. "
        f"All of it: `{found.folder.uri}`, [job]({links['console']}), [logs]({links['logs']})."
    ]
    if exit_code == CliExit.SOME_FAILED:
        told.append(f"When you have mended them: [resume]({step.workflow_url('resume')}) with *retry failed*.")
    elif exit_code == CliExit.UNACCOUNTED:
        told.append(f"To read what has no outcome: [resume]({step.workflow_url('resume')}).")
    return "\n\n".join(told)
