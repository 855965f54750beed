"""What a deployment needs beyond Pulumi: which images are still to be built, what a preview says, and a way to let go
of a lock that a broken-off run has left behind."""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.aws import Aws, AwsError
from jobs.errors import JobError, UsageError
from jobs.github import fenced
from jobs.stack import Stack
from jobs.wording import plural
from worker.storage import Storage

PROJECT = "pagefleet"  # in Pulumi.yaml
TAIL = 2_000  # characters of its end that are always shown
NO_CHANGES_EXPECTED = "no changes were expected"  # older CLIs have no exit code of their own: pulumi/pulumi#5144
LOCKS = ".pulumi/locks/organization"  # pulumi/pulumi, pkg/backend/diy/lock.go and store.go


@dataclass(frozen=True)
class PulumiRun:
    """How a run of the Pulumi CLI ended, and what it said."""

    command: str
    exit_code: int
    text: str

    @property
    def changes(self) -> str:
        """The counts at its end: "+ 2 to create, ~ 1 to update"; empty where nothing would change."""
        _, found, counts = self.text.rpartition("Resources:")
        return ", ".join(re.findall(r"^\s+([-+~<>±]+ ?\d+ .*?)\s*$", counts if found else "", re.M))

    def to_markdown(self, limit: int) -> str:
        """Folded; of more than `limit` characters the middle is left out, since the counts come last."""
        text = self.text
        if len(text) > limit:
            head, tail = text[: limit - TAIL].rpartition("\n")[0], text[-TAIL:].partition("\n")[2]
            left = text.count("\n") - head.count("\n") - tail.count("\n") - 1
            text = f"{head}\n\n… left out here: {plural(left, 'line')}, which the workflow's log has …\n\n{tail}"
        folded = f"<details><summary><code>{self.command}</code></summary>"
        return f"{folded}\n\n{fenced(text, 'diff')}\n\n</details>"


def missing_images(aws: Aws, stack: Stack, tag: str) -> list[str]:
    """Targets of which the registry has no image of this tree. Needs a checkout of the repository."""
    from infra_pulumi.image import TARGETS  # in no wheel

    missing = []
    for target in TARGETS:
        try:
            aws.call(
                "ecr",
                "describe_images",
                registryId=stack.account,
                repositoryName=stack.image.repository.partition("/")[2],
                imageIds=[{"imageTag": f"{target}-{tag}"}],
            )
        except AwsError as error:
            if error.code != "ImageNotFoundException":
                raise
            missing.append(target)
    return missing


def run_pulumi(arguments: Sequence[str]) -> PulumiRun:
    """Runs the Pulumi CLI, shows what it says, and keeps it. Raises: UsageError where it is not installed."""
    command = ["pulumi", *arguments, "--non-interactive", "--color", "never"]
    told: list[str] = []
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                told.append(line)
    except FileNotFoundError as error:
        raise UsageError("pulumi is not installed: https://www.pulumi.com/docs/install/") from error
    return PulumiRun(" ".join(command[:-3]), process.returncode, "".join(told))


def release_own_locks(storage: Storage, backend: str, stack: str) -> tuple[list[str], list[str]]:
    """Deletes locks of a stack that dead processes of this machine and user hold; whom the others belong to is told.

    Nothing else may be released: whoever holds a lock may be in the middle of a change.
    Raises: UsageError for a backend that is not in S3.
    """
    if not backend.startswith("s3://"):
        raise UsageError(f"{backend!r} is no Pulumi backend in S3: set PULUMI_BACKEND_URL")
    user = pwd.getpwuid(os.getuid()).pw_name  # as Go's os/user has it
    released, others = [], []
    for uri, lock in _locks(storage, backend.partition("?")[0].rstrip("/"), stack):
        owner = f"{lock.get('username')}@{lock.get('hostname')} (pid {lock.get('pid')}) since {lock.get('timestamp')}"
        mine = lock.get("hostname") == socket.gethostname() and lock.get("username") == user
        if mine and not _is_alive(lock.get("pid")):
            storage.delete(uri)
            released.append(owner)
        else:
            others.append(owner)
    return released, others


def check_confirmed(stack: str, typed: str) -> None:
    """Raises: UsageError where the stack's name was not typed to confirm that it may go."""
    if typed != stack:
        raise UsageError(f"{typed!r} is not the name of the stack: type {stack} to confirm that it is destroyed")


def _locks(storage: Storage, backend: str, stack: str) -> Iterator[tuple[str, dict[str, object]]]:
    for entry in storage.list(f"{backend}/{LOCKS}/{PROJECT}/{stack}/"):
        try:
            lock = json.loads(storage.read(entry.uri))
        except ValueError as error:
            raise JobError(f"{entry.uri} is no lock of Pulumi ({error}): look at it, and delete it by hand") from error
        yield entry.uri, lock


def _is_alive(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        return True
    return True
