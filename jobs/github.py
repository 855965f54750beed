"""GitHub as a step of a workflow sees it: what it hands on, shows and says, and the one issue or comment that it keeps.

Formats: docs.github.com, "Workflow commands for GitHub Actions" and "REST API endpoints for issues".
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import click

from jobs.errors import JobError, UsageError

SUMMARY_BYTES = 1_000_000  # GitHub takes 1 MiB a step, and drops a longer summary whole
BODY_CHARACTERS = 60_000  # of an issue or a comment, of which GitHub takes 65,536
AUTHOR = "github-actions[bot]"  # of what is written with a workflow's token
PAGES = 20  # of comments, 100 each, that are looked through


@dataclass(frozen=True)
class Step:
    """The step that this process is. Away from a workflow everything goes to standard output."""

    output: Path | None = None
    summary: Path | None = None
    server: str = "https://github.com"
    repository: str = ""  # owner/name
    run_id: str = ""
    api: str = "https://api.github.com"
    token: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Step:
        def file(name: str) -> Path | None:
            return Path(environment[name]) if environment.get(name) else None

        return cls(
            output=file("GITHUB_OUTPUT"),
            summary=file("GITHUB_STEP_SUMMARY"),
            server=environment.get("GITHUB_SERVER_URL") or cls.server,
            repository=environment.get("GITHUB_REPOSITORY", ""),
            run_id=environment.get("GITHUB_RUN_ID", ""),
            api=environment.get("GITHUB_API_URL") or cls.api,
            token=environment.get("GITHUB_TOKEN", ""),
        )

    @property
    def url(self) -> str:
        """Of the workflow's run."""
        return f"{self.server}/{self.repository}/actions/runs/{self.run_id}"

    def workflow_url(self, name: str) -> str:
        """Where another workflow of the repository is dispatched."""
        return f"{self.server}/{self.repository}/actions/workflows/{name}.yml"

    def set_outputs(self, **values: str) -> None:
        """For later steps. A value may hold anything: its end is marked by what nobody can guess."""
        lines = []
        for name, value in values.items():
            mark = secrets.token_hex(16)
            lines.append(f"{name}<<{mark}\n{value}\n{mark}\n")
        if self.output is None:
            for name, value in values.items():
                click.echo(f"{name}: {value}")
            return
        with self.output.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def add_summary(self, markdown: str) -> None:
        """To what the workflow's run shows. Cut where GitHub would drop it whole."""
        data = markdown.encode()
        if len(data) > SUMMARY_BYTES:
            markdown = data[:SUMMARY_BYTES].decode(errors="ignore") + "\n\n*(cut here: too long for a summary)*\n"
        if self.summary is None:
            click.echo(markdown)
            return
        with self.summary.open("a", encoding="utf-8") as file:
            file.write(markdown.rstrip("\n") + "\n\n")

    def annotate(self, level: Literal["notice", "warning", "error"], message: str) -> None:
        """On top of the run's page."""
        escaped = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        click.echo(f"::{level}::{escaped}")


class Repository:
    """Issues and comments through GitHub's REST API. Ours are found by a mark that readers don't see, and by their
    author: anybody may write the mark."""

    def __init__(self, step: Step) -> None:
        """Raises: UsageError where the step has no token, or no repository."""
        import httpx

        if not step.token or not step.repository:
            raise UsageError("GITHUB_TOKEN and GITHUB_REPOSITORY are not set: run this as a step of a workflow")
        self._client = httpx.Client(
            base_url=f"{step.api}/repos/{step.repository}/",
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {step.token}",
                "X-GitHub-Api-Version": "2022-11-28",
            },
            transport=httpx.HTTPTransport(retries=3),
            timeout=30,
        )

    def put_comment(self, number: int, mark: str, body: str) -> str:
        """Writes a comment on a pull request, or edits the one that bears the mark. Returns its address."""
        found = self._find(f"issues/{number}/comments", mark)
        body = _marked(mark, body)
        if found:
            return str(self._ask("PATCH", f"issues/comments/{found['id']}", {"body": body})["html_url"])
        return str(self._ask("POST", f"issues/{number}/comments", {"body": body})["html_url"])

    def put_issue(self, mark: str, title: str, body: str) -> str:
        """Opens an issue, or brings the open one that bears the mark up to date. Returns its address."""
        found = self._find("issues?state=open", mark)
        text = {"title": title, "body": _marked(mark, body)}
        if found:
            return str(self._ask("PATCH", f"issues/{found['number']}", text)["html_url"])
        return str(self._ask("POST", "issues", text)["html_url"])

    def close_issue(self, mark: str) -> str | None:
        """Closes the open issue that bears the mark. Returns its address; None where there is none."""
        found = self._find("issues?state=open", mark)
        if not found:
            return None
        closed = {"state": "closed", "state_reason": "completed"}
        return str(self._ask("PATCH", f"issues/{found['number']}", closed)["html_url"])

    def _find(self, path: str, mark: str) -> dict[str, Any] | None:
        ours = (one for one in self._list(path) if (one.get("user") or {}).get("login") == AUTHOR)
        return next((one for one in ours if (one.get("body") or "").startswith(_hidden(mark))), None)

    def _list(self, path: str) -> Iterator[dict[str, Any]]:
        joint = "&" if "?" in path else "?"
        for page in range(1, PAGES + 1):
            some = self._ask("GET", f"{path}{joint}per_page=100&page={page}")
            yield from some
            if len(some) < 100:
                return

    def _ask(self, method: str, path: str, body: dict[str, str] | None = None) -> Any:
        import httpx

        what = f"{method} {path.partition('?')[0]}"
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise JobError(f"GitHub cannot be reached for {what}: {error}") from error
        if answer.is_error:
            raise JobError(
                f"GitHub answers {what} with {answer.status_code}: {answer.text[:300]}; "
                "check the permissions that the workflow gives its job"
            )
        return answer.json()


def fenced(text: str, language: str = "") -> str:
    """Text as a block of code, whatever it holds."""
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _marked(mark: str, body: str) -> str:
    if len(body) > BODY_CHARACTERS:
        body = body[:BODY_CHARACTERS] + "\n\n*(cut here: the rest is in the workflow's summary)*"
    return f"{_hidden(mark)}\n{body}"


def _hidden(mark: str) -> str:
    return f"<!-- pagefleet: {mark} -->"
