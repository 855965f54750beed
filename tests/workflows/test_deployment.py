"""The workflows around Pulumi, as far as they are scripts: images, smoke run, locks, previews, drift, the last word
before a stack is destroyed. Pulumi's CLI and the actions that build and push are stand-ins that tell of their use."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infra_pulumi.image import image_tag
from jobs.cli import main
from tests.conftest import ROOT
from tests.jobs.conftest import Deployed
from tests.workflows.conftest import STUBS, TOKEN, Act

CHANGES = """\
Previewing update (dev):
  pulumi:pulumi:Stack: (same)
    ~ aws:batch/jobDefinition:JobDefinition: (update)
        ``` ~ image: "cpu-old" => "cpu-new"
Resources:
    ~ 2 to update
    + 1 to create
    41 unchanged
"""
NONE = "Previewing update (dev):\nResources:\n    44 unchanged\n"
HERE = "acme/pagefleet"


def pagefleet(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment, catch_exceptions=False)


@pytest.fixture
def pulumi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Puts the stand-in on the path. Tells what it says and how it ends; returns what it was asked."""
    asked = tmp_path / "asked"
    asked.touch()
    monkeypatch.setenv("PATH", f"{STUBS / 'pulumi/bin'}:{os.environ['PATH']}")

    def says(text: str, ends: int = 0) -> list[str]:
        (tmp_path / "says").write_text(text)
        values = {"SAYS": str(tmp_path / "says"), "ENDS": str(ends), "ASKED": str(asked)}
        for name, value in values.items():
            monkeypatch.setenv(f"TEST_PULUMI_{name}", value)
        return asked.read_text().splitlines()

    return says


@contextmanager
def github() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Issues and comments of a repository: the API's address, and what there is."""
    things: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            path = self.path.partition("?")[0].removeprefix(f"/repos/{HERE}/")
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._say(401, {"message": "Bad credentials"})
            elif self.command == "GET":
                wanted = [one for one in things if one["list"] == path and one["state"] == "open"]
                number = int(self.path.rpartition("page=")[2])
                self._say(200, wanted[100 * (number - 1) : 100 * number])
            elif self.command == "POST":
                made = {"id": len(things) + 1, "number": len(things) + 1, "list": path, "state": "open", **body}
                made["user"] = {"login": "github-actions[bot]"}
                things.append(made | {"html_url": f"https://github.com/{HERE}/{path}/{len(things) + 1}"})
                self._say(201, things[-1])
            else:
                (found,) = (one for one in things if f"{path.rpartition('/')[2]}" == str(one["id"]))
                found.update(body)
                self._say(200, found)

        do_GET = do_POST = do_PATCH = _answer

        def _say(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", things
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def somebodys(path: str, body: str) -> dict[str, Any]:
    """An issue or comment that anybody may have written."""
    return {"id": 899, "number": 899, "list": path, "state": "open", "body": body, "user": {"login": "anybody"}}


def job(api: str, **more: str) -> dict[str, str]:
    """The environment of a step."""
    return {
        "GITHUB_API_URL": api,
        "GITHUB_TOKEN": TOKEN,
        "GITHUB_REPOSITORY": HERE,
        "GITHUB_RUN_ID": "7",
        **more,
    }


def test_a_deployment_builds_what_is_missing_and_proves_that_it_reads(
    act: Act, deployed: Deployed, batch: Callable[[], None]
) -> None:
    tag = image_tag(ROOT)
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": []}
    push = {
        "repositoryName": "pagefleet-dev",
        "imageManifest": json.dumps(manifest | {"config": {"digest": "sha256:1"}}),
    }
    deployed.client("ecr").put_image(imageTag=f"gpu-{tag}", **push)
    deployed.description["image"]["cache"] = "123456789012.dkr.ecr.us-east-1.amazonaws.com/cache"
    deployed.publish()
    s3 = deployed.client("s3")
    s3.create_bucket(Bucket="state")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    mine = {
        "pid": process.pid,
        "username": pwd.getpwuid(os.getuid()).pw_name,
        "hostname": socket.gethostname(),
        "timestamp": "now",
    }
    locks = ".pulumi/locks/organization/pagefleet/dev"
    for name, lock in {"mine": mine, "other": mine | {"hostname": "elsewhere"}, "alive": mine | {"pid": 1}}.items():
        s3.put_object(Bucket="state", Key=f"{locks}/{name}.json", Body=json.dumps(lock))

    batch()
    ran = act.run("deploy", inputs={"stack": "dev"})
    assert ran.jobs == {"deploy": "success", "smoke": "success"}, ran.log
    repository = deployed.description["image"]["repository"]
    assert [name for name, _ in act.calls] == [
        "aws-actions/amazon-ecr-login",
        "docker/setup-buildx-action",
        "docker/build-push-action",
        "actions/attest-build-provenance",
        "pulumi/actions",
    ]
    used = dict(act.calls)
    build, up = used["docker/build-push-action"], used["pulumi/actions"]
    assert (build["target"], build["tags"], build["push"]) == ("cpu", f"{repository}:cpu-{tag}", "true")
    assert build["cache-from"] == "type=registry,ref=123456789012.dkr.ecr.us-east-1.amazonaws.com/cache:cpu"
    assert used["actions/attest-build-provenance"]["subject-digest"].startswith("sha256:")
    assert (up["command"], up["stack-name"], up["cloud-url"]) == ("up", "dev", "s3://state")
    assert f"| `cpu-{tag}` | to be built |\n| `gpu-{tag}` | there already |" in ran.summary
    assert "`receipt.jpg` was read by run `smoke-" in ran.summary
    left = {one["Key"].rpartition("/")[2] for one in s3.list_objects_v2(Bucket="state")["Contents"]}
    assert left == {"other.json", "alive.json"}
    assert "released the lock of" in ran.log
    assert "::warning::stack dev is locked by" in ran.log


def test_a_smoke_run_that_reads_something_else_fails(
    deployed: Deployed, batch: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):  # the commands within a command know the region all the same
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "truth.txt").write_text("What the page really says, and the engine doesn't read.")
    sample = Path(__file__).parents[2] / "samples/blank.png"
    batch()
    done = pagefleet(
        *("workflow", "smoke", "--document", str(sample), "--truth", str(tmp_path / "truth.txt"), "--interval", "0.1"),
        *("--region", "us-east-1"),
    )
    assert done.exit_code == 1
    assert "the text read is only 0.0% like the true one, not 90%" in done.stderr


def test_a_stack_that_is_not_deployed_is_no_place_for_images(deployed: Deployed) -> None:
    done = pagefleet("workflow", "images", "--stack", "prod")
    assert done.exit_code == 2
    assert "stack prod is not deployed" in done.stderr


def test_a_pull_request_from_a_fork_is_told_why_it_has_no_preview(act: Act) -> None:
    ran = act.run("preview", "pull_request", pull_request={"number": 3, "head": {"repo": {"full_name": "who/ever"}}})
    assert ran.jobs.pop("fork") == "success", ran.log
    assert set(ran.jobs.values()) <= {"skipped"}
    assert "A pull request from a fork gets no AWS credentials" in ran.summary


@pytest.mark.parametrize(
    ("text", "ends", "headline"), [(CHANGES, 0, "~ 2 to update, + 1 to create"), ("x", 255, "failed")]
)
def test_a_preview_is_in_the_summary_and_in_a_comment(
    act: Act, pulumi: Callable[..., list[str]], text: str, ends: int, headline: str
) -> None:
    pulumi(text, ends)
    act.environment |= {name: value for name, value in os.environ.items() if name.startswith("TEST_PULUMI_")}
    pull_request = {"number": 3, "head": {"repo": {"full_name": HERE}}, "base": {"sha": "0" * 40}}
    with github() as (api, comments):
        act.environment["GITHUB_API_URL"] = api
        ran = act.run("preview", "pull_request", pull_request=pull_request)
    ran.jobs.pop("fork", None)
    assert ran.jobs == {"preview": "failure" if ends else "success", "comment": "success"}, ran.log
    assert f"## Preview of stack dev: {headline}" in ran.summary
    (comment,) = comments
    assert (comment["list"], comment["state"]) == ("issues/3/comments", "open")
    assert f"## Preview of stack dev: {headline}" in comment["body"]
    assert text.strip() in comment["body"]
    assert comment["body"].count("````") == (2 if "```" in text else 0)  # what Pulumi says can't end the block
    assert pulumi("") == ["pulumi preview --stack dev --diff --non-interactive --color never"]


def test_of_a_long_preview_the_middle_is_left_out(tmp_path: Path, pulumi: Callable[..., list[str]]) -> None:
    pulumi("".join(f"    ~ resource {number}\n" for number in range(100_000)) + CHANGES)
    done = pagefleet(
        "workflow", "preview", "--out", str(tmp_path / "preview.md"), GITHUB_STEP_SUMMARY=str(tmp_path / "s")
    )
    assert done.exit_code == 0
    for file, most in (("preview.md", 60_000), ("s", 1_000_000)):
        text = (tmp_path / file).read_text()
        assert len(text) < most
        assert "    ~ resource 0\n" in text
        assert "    + 1 to create\n" in text
        assert "lines, which the workflow's log has" in text
        assert text.rstrip().endswith("````\n\n</details>")


def test_the_preview_of_a_pull_request_is_one_comment_that_is_edited(tmp_path: Path) -> None:
    file = tmp_path / "preview.md"
    with github() as (api, things):
        things += [
            {"id": 900 + n, "list": "issues/3/comments", "state": "open", "body": f"<p>{n}</p>"} for n in range(119)
        ]
        things.append(somebodys("issues/3/comments", "<!-- pagefleet: preview dev -->"))
        for text in ("first", "second" * 20_000):
            file.write_text(text)
            done = pagefleet("workflow", "comment", "--file", str(file), **job(api, PULL_REQUEST="3"))
            assert done.exit_code == 0, done.output
        ours = things[120:]
        assert len(ours) == 1
        assert ours[0]["body"].startswith("<!-- pagefleet: preview dev -->\nsecondsecond")
        assert len(ours[0]["body"]) < 65_536
        pagefleet("workflow", "comment", "--file", str(file), "--stack", "prod", **job(api, PULL_REQUEST="3"))
        assert len(things) == 122
        denied = pagefleet(
            "workflow", "comment", "--file", str(file), **job(api, PULL_REQUEST="3") | {"GITHUB_TOKEN": "stale"}
        )
    assert denied.exit_code == 1
    assert "401" in denied.stderr
    assert "check the permissions" in denied.stderr
    assert "stale" not in denied.output


def test_drift_is_one_issue_for_as_long_as_it_lasts(act: Act, pulumi: Callable[..., list[str]]) -> None:
    drifted = f"{CHANGES}error: no changes were expected but changes were proposed\n"
    with github() as (api, things):
        pulumi(NONE)
        assert pagefleet("workflow", "drift", **job(api)).exit_code == 0
        assert things == []
        theirs = somebodys("issues", "<!-- pagefleet: drift dev -->")
        things.append(dict(theirs))
        pulumi(drifted, 255)
        act.environment |= {name: value for name, value in os.environ.items() if name.startswith("TEST_PULUMI_")}
        act.environment["GITHUB_API_URL"] = api
        ran = act.run("drift")
        assert ran.jobs == {"drift": "success"}, ran.log
        assert "## Stack dev has drifted: ~ 2 to update, + 1 to create" in ran.summary
        assert "::warning::stack dev has drifted" in ran.log
        assert pagefleet("workflow", "drift", **job(api)).exit_code == 0
        untouched, issue = things
        assert untouched == theirs
        assert (issue["title"], issue["state"]) == ("Stack dev has drifted", "open")
        assert "~ 2 to update, + 1 to create" in issue["body"]
        assert "https://github.com/acme/pagefleet/actions/runs/7" in issue["body"]
        pulumi("error: could not reach the backend\n", 255)
        broken = pagefleet("workflow", "drift", **job(api))
        assert broken.exit_code == 1
        assert "cannot be told" in broken.stderr
        pulumi(NONE)
        closed = pagefleet("workflow", "drift", **job(api))
        assert f"Closed {issue['html_url']}" in closed.stdout
        assert issue["state"] == "closed"
        assert untouched == theirs
    command = "pulumi preview --stack dev --refresh --diff --expect-no-changes --non-interactive --color never"
    assert set(pulumi("")) == {command}


@pytest.mark.parametrize("typed", ["dev", "prod", ""])
def test_a_stack_is_destroyed_only_by_its_name(act: Act, deployed: Deployed, typed: str) -> None:
    deployed.client("s3").create_bucket(Bucket="state")
    ran = act.run("destroy", inputs={"stack": "dev", "confirm": typed})
    if typed == "dev":
        assert ran.jobs == {"destroy": "success"}, ran.log
        ((_, used),) = act.calls
        assert (used["command"], used["stack-name"], used["exclude-protected"]) == ("destroy", "dev", "true")
    else:
        assert ran.jobs == {"destroy": "failure"}
        assert "type dev to confirm that it is destroyed" in ran.log
        assert not (act.home / "calls.jsonl").exists()
