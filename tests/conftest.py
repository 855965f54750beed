"""Fixtures that several test modules share: pictures, runs, an S3 server, workers as processes."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.faults.engines import COLOURS
from worker.contract import Counts, Failure, Marker, Options, Receipt, Result, Run, RunPaths, Task
from worker.marker import read_marker
from worker.receipts import read_receipts
from worker.storage import LocalStorage, path_uri

ROOT = Path(__file__).parent.parent
PATIENCE = 300.0  # seconds: only what hangs takes longer, on however slow and busy a machine


def pytest_configure() -> None:
    """What this machine tells programs of AWS, of GitHub and of its terminal is not for those that are tested."""
    others = {"COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "OPENAI_API_KEY", "UPSTAGE_API_KEY"}
    for name in list(os.environ):
        if name.startswith(("AWS_", "GITHUB_", "PAGEFLEET_", "TTY_")) or name in others:
            del os.environ[name]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"  # to which no proxy has a way


def draw(path: Path, action: str = "read", size: tuple[int, int] = (120, 80)) -> Path:
    """A small picture whose colour tells the engines of `tests.faults.engines` what to do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image(action, size).save(path)
    return path


def image(action: str = "read", size: tuple[int, int] = (120, 80)) -> Image.Image:
    picture = Image.new("RGB", size, "white")
    width, height = size
    ImageDraw.Draw(picture).rectangle((width // 4, height // 4, 3 * width // 4, 3 * height // 4), fill=COLOURS[action])
    return picture


def draw_frames(path: Path, actions: list[str]) -> Path:
    """A TIFF with a frame for each action."""
    frames = [image(action, (120 + number, 80)) for number, action in enumerate(actions)]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


@dataclass
class RunOnDisk:
    """A run of one shard or more, planned by hand, and what came of it."""

    folder: Path
    tasks: list[list[Task]]
    options: Options = field(default_factory=Options)
    engine: str = "tests.faults.engines:Colour"

    def __post_init__(self) -> None:
        self.storage = LocalStorage()
        self.paths = RunPaths(path_uri(self.folder))
        count = sum(map(len, self.tasks))
        run = Run(
            id="20261121-153000-test",
            created=datetime.now(UTC),
            engine=self.engine,
            options=self.options,
            root="file:///",
            counts=Counts(documents=count, tasks=count, shards=len(self.tasks)),
        )
        self.storage.write(self.paths.run, run.to_json().encode())
        for number, tasks in enumerate(self.tasks):
            lines = "".join(task.to_json() + "\n" for task in tasks)
            self.storage.write(self.paths.shard(number), lines.encode())

    def start(self, shard: int = 0, attempt: int = 1, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "worker"],
            env=worker_environment(
                PAGEFLEET_RUN_URI=self.paths.base,
                AWS_BATCH_JOB_ARRAY_INDEX=str(shard),
                AWS_BATCH_JOB_ATTEMPT=str(attempt),
                **environment,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def work(self, shard: int = 0, attempt: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the worker to its end. A returncode as a shell gives it."""
        done = ended(self.start(shard, attempt, **environment))
        if done.returncode < 0:
            done.returncode = 128 - done.returncode
        return done

    def outcome(self, task: Task) -> Result | Failure | None:
        """The task's one outcome; fails where it has two."""
        result, failure = (
            kind.model_validate_json(self.storage.read(uri)) if self.storage.exists(uri) else None
            for kind, uri in ((Result, self.paths.result(task)), (Failure, self.paths.failure(task)))
        )
        assert result is None or failure is None, f"{task.name} has two outcomes"
        return result or failure  # type: ignore[return-value]

    def outcomes(self) -> dict[str, str]:
        """By task: "ok", "partial", the failure's code, or "none"."""
        told = {}
        for task in (task for tasks in self.tasks for task in tasks):
            outcome = self.outcome(task)
            code = outcome.code.value if isinstance(outcome, Failure) else outcome.status if outcome else "none"
            told[task.key] = code
        return told

    def receipts(self, shard: int = 0, attempt: int = 1) -> list[Receipt]:
        return read_receipts(self.storage, self.paths.receipts(shard, attempt))

    def marker(self, shard: int = 0) -> Marker | None:
        return read_marker(self.storage, self.paths.marker(shard))


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """What a process said until its end. One that does not end is killed, and the test fails with what it had said."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.wait()
        said = b"".join(text for text in (error.stdout, error.stderr) if text).decode(errors="replace")
        pytest.fail(f"{process.args} does not end within {PATIENCE:.0f} s; it has said:\n{said}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(
    condition: Callable[[], bool], there: Callable[[], object], process: subprocess.Popen[str] | None = None
) -> None:
    """Until it holds. Fails with what is `there` instead, and at once where the process that should bring it about has
    ended."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if process and process.poll() is not None and not condition():
            pytest.fail(f"waited in vain: {there()}; {process.args} has ended: {ended(process)}")
        if time.monotonic() > until:
            pytest.fail(f"waited in vain for {PATIENCE:.0f} s: {there()}")
        time.sleep(0.02)


def ends(pid: int) -> bool:
    """Whether a process that is no child of ours has ended, or still does."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], PATIENCE)[0])
    finally:
        os.close(handle)


def worker_environment(**more: str) -> dict[str, str]:
    """As little as a worker needs: nothing of the machine's AWS configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PAGEFLEET_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PAGEFLEET_THREADS": "1", "AWS_EC2_METADATA_DISABLED": "true", **more}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunOnDisk]:
    """Plans a run over pictures: `make_run({"a.png": "read", "b.tiff": ["read", "raise"]})`."""

    def make(pictures: dict[str, str | list[str]], **more: Any) -> RunOnDisk:
        tasks = []
        for name, action in pictures.items():
            path = tmp_path / "in" / name
            drawn = draw(path, action) if isinstance(action, str) else draw_frames(path, action)
            tasks.append(Task(uri=path_uri(drawn), name=name))
        return RunOnDisk(tmp_path / "run", [tasks], **more)

    return make


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server (moto) in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an empty S3 server, to which the environment points too. Has the buckets `inputs` and `outputs`."""
    import boto3
    import urllib3

    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in aws_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    urllib3.request("POST", f"{s3_server}/moto-api/reset", timeout=PATIENCE)
    client = boto3.client("s3")
    for bucket in ("inputs", "outputs"):
        client.create_bucket(Bucket=bucket)
    yield client
    client.close()


def aws_environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
