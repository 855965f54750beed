"""`make image-test`: builds the worker's image with what this machine has, Docker or buildah and podman, and has it
work on less than AWS Batch gives it: not as root, on a read-only root file system, without network, under a memory cap.

Where no registry can be reached, a Debian made by debootstrap (as root) takes the place of the pinned base; BASE names
another one. Whatever pip needs to be told on this machine reaches the build as read-only mounts; the finished image is
searched for it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from infra_pulumi.image import image_tag
from jobs import local
from jobs.plan import Sharding
from jobs.results import RunFolder
from worker.contract import ExitCode, Options, Receipt
from worker.receipts import parse_line
from worker.storage import open_storage, path_uri

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "worker" / "Dockerfile"
IMAGE = "localhost/pagefleet:image-test"
SUBSTITUTE = "localhost/pagefleet-base:bookworm"
MEMORY = "2g"  # a quarter of what a CPU job gets
USER = 10001
PAGES = 64  # more than a worker takes in hand at once, so that something is left when it drains
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"  # Debian's place


class Tools:
    """Docker, or buildah to build and podman to run."""

    def __init__(self) -> None:
        os.environ.setdefault("STORAGE_DRIVER", "overlay")  # buildah and podman fall back to copying whole layers
        if shutil.which("docker") and _succeeds("docker", "info"):
            self.run, self._build, self._mounts = "docker", ["docker", "buildx", "build", "--load"], False
        elif shutil.which("buildah") and shutil.which("podman"):
            self.run, self._mounts = "podman", True
            isolation = ["--isolation", "chroot"] if os.geteuid() == 0 else []
            # No --layers: from its cache, buildah gives labels with the arguments of an earlier build.
            self._build = ["buildah", "bud", "--network", "host", "--format", "docker", *isolation]
        else:
            sys.exit("image-test needs Docker, or buildah and podman: apt-get install buildah podman runc")

    def pull(self, image: str) -> bool:
        return _succeeds(self.run, "pull", "--quiet", image)

    def has(self, image: str) -> bool:
        return _succeeds(self.run, "image", "inspect", image)

    def build(self, tag: str, folder: Path, *arguments: str, mounts: Sequence[tuple[Path, str]] = ()) -> None:
        if mounts and not self._mounts:
            print("note: docker can't mount pip's configuration into a build; it goes without")
            mounts = ()
        volumes = [f"--volume={path}:{target}:ro" for path, target in mounts]
        subprocess.run([*self._build, *arguments, *volumes, "--tag", tag, str(folder)], check=True, stdout=sys.stderr)

    def command(
        self, *arguments: str, mounts: Sequence[tuple[Path, bool]] = (), environment: Mapping[str, str] | None = None
    ) -> list[str]:
        """To run the image, confined. A mount keeps its path, so that URIs mean the same in and out; True: writable."""
        confined = [
            *("--rm", "--read-only", "--tmpfs", "/tmp", "--network", "none", "--memory", MEMORY, "--cpus", "2"),
            *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
            *("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"),  # podman's own are more than root may set
        ]
        if self.run == "podman" and shutil.which("runc"):
            confined += ["--runtime", "runc"]  # crun wants more of control groups than some machines give
        for path, writable in mounts:
            confined += ["--volume", f"{path}:{path}:{'rw' if writable else 'ro'}"]
        for name, value in (environment or {}).items():
            confined += ["--env", f"{name}={value}"]
        return [self.run, "run", *confined, *arguments]

    def inspect(self, image: str) -> dict[str, object]:
        (told,) = json.loads(_output(self.run, "image", "inspect", image))
        assert isinstance(told, dict)
        return told

    @contextmanager
    def files(self, image: str) -> Iterator[tarfile.TarFile]:
        """The image's whole file system, as a stream."""
        container = _output(self.run, "create", image, "true").strip()
        try:
            with subprocess.Popen([self.run, "export", container], stdout=subprocess.PIPE) as export:
                assert export.stdout
                try:
                    with tarfile.open(fileobj=export.stdout, mode="r|") as archive:
                        yield archive
                finally:
                    export.kill()  # podman's doesn't end when nobody listens any more
        finally:
            subprocess.run([self.run, "rm", container], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    tools = Tools()
    base = _base(tools)
    mounts = list(_pip_mounts())
    started = time.monotonic()
    tag = f"cpu-{image_tag(ROOT)}"
    arguments = [f"--file={DOCKERFILE}", "--target=cpu", f"--build-arg=TAG={tag}"]
    if base:
        arguments.append(f"--build-arg=BASE={base}")
    tools.build(IMAGE, ROOT, *arguments, mounts=mounts)
    size = tools.inspect(IMAGE)["Size"]
    assert isinstance(size, int)
    _say(f"built {tag} on {base or 'the pinned base'}: {size / 1e6:,.0f} MB", started)
    _look_inside(tools, tag, base or _pinned())
    _self_test(tools)
    for check in (_read_samples, _drain_and_go_on):
        with _folder() as folder:
            check(tools, folder)


def _look_inside(tools: Tools, tag: str, base: str) -> None:
    """What the build added lies below /opt, can't be changed by the image's user, and tells nothing of this machine."""
    started = time.monotonic()
    config = tools.inspect(IMAGE)["Config"]
    assert isinstance(config, dict)
    _check(config["User"] == f"{USER}:{USER}", f"the image runs as {config['User']}")
    _check(config["Labels"]["io.pagefleet.tag"] == tag, f"labels are {config['Labels']}")
    indexes = [value.encode() for value in _pip_indexes()]
    with tools.files(base) as archive:
        before = {member.name: member.size for member in archive}
    added = 0
    with tools.files(IMAGE) as archive:
        for member in archive:
            name = member.name
            if name not in before:
                added += 1
                # Python compiles what it uses of itself, useradd keeps copies of what it changes, mounts leave empty
                # places behind.
                expected = re.fullmatch(r"opt(/.*)?|usr/.*/__pycache__/.*|etc/\w+-", name) or not member.size
                _check(bool(expected), f"/{name} was left behind by the build")
            elif member.size != before[name]:
                accounts = re.fullmatch(r"etc/(passwd|group|shadow|gshadow|subuid|subgid)", name)
                _check(bool(accounts), f"/{name} was changed by the build")
            if not name.startswith("opt/"):
                continue
            _check(not member.mode & 0o022 or member.issym(), f"/{name} can be changed: {member.mode:o}")
            _check(bool(member.mode & 0o004) or member.issym(), f"/{name} can't be read: {member.mode:o}")
            _check(Path(name).name != "pip.conf" and ".cache" not in Path(name).parts, f"/{name} is in the image")
            content = archive.extractfile(member) if indexes and member.isfile() else None
            data = content.read() if content else b""
            _check(not any(index in data for index in indexes), f"/{name} names a package index of this machine")
    told = json.dumps(tools.inspect(IMAGE)) + _output(tools.run, "history", "--no-trunc", IMAGE)
    _check(not any(index.decode() in told for index in indexes), "its history names a package index of this machine")
    _say(
        f"looked at {added:,} files that the build added: nothing where it doesn't belong, nothing of this machine",
        started,
    )


def _self_test(tools: Tools) -> None:
    started = time.monotonic()
    told = subprocess.run(tools.command(IMAGE, "--self-test"), stdout=subprocess.PIPE, text=True)
    _check(told.returncode == ExitCode.OK, f"the self-test ended with {told.returncode}: {told.stdout}")
    _say(f"self-test: {told.stdout.strip()}", started)


def _read_samples(tools: Tools, folder: Path) -> None:
    started = time.monotonic()
    samples = ROOT / "samples"
    run = _plan(folder, samples)
    mounts = [(samples, False), (folder, True)]
    code = subprocess.run(
        tools.command(IMAGE, mounts=mounts, environment=_shard(run, 1)), stdout=subprocess.DEVNULL
    ).returncode
    _check(code == ExitCode.OK, f"reading samples ended with {code}")
    summary = local.finish(run, report=False)
    _check(summary.documents.ok == summary.documents.total, f"not all samples were read: {summary.documents}")
    for document in run.documents():
        truth = Counter(re.findall(r"\w+", (samples / "truth" / f"{document.name}.txt").read_text(encoding="utf-8")))
        missing = truth - Counter(re.findall(r"\w+", document.markdown))
        _check(missing.total() <= 0.1 * truth.total(), f"{document.name} lacks {sorted(missing)}")
    _say(f"read {summary.documents.total} samples, nine words in ten of each are right", started)


def _drain_and_go_on(tools: Tools, folder: Path) -> None:
    """SIGTERM after the first page: 143, and the next attempt reads what is left."""
    started = time.monotonic()
    pages = folder / "pages"
    pages.mkdir()
    for number in range(PAGES):
        shutil.copy(ROOT / "worker" / "sample" / "page.pdf", pages / f"{number:02d}.pdf")
    run = _plan(folder, pages)
    name = f"pagefleet-image-test-{os.getpid()}"
    read = partial(tools.command, IMAGE, mounts=[(folder, True)])
    command = read(environment=_shard(run, 1))
    command[2:2] = ["--name", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        for line in worker.stdout:
            if isinstance(parse_line(line), Receipt):
                break
        subprocess.run([tools.run, "stop", "-t", "60", name], check=True, stdout=subprocess.DEVNULL)
        for _ in worker.stdout:
            pass
    _check(worker.returncode == ExitCode.DRAINED, f"after SIGTERM it ended with {worker.returncode}")
    left = sum(run.open_tasks(retry_failed=False).values())
    _check(0 < left < PAGES, f"{left} of {PAGES} pages were left")
    code = subprocess.run(read(environment=_shard(run, 2)), stdout=subprocess.DEVNULL).returncode
    _check(code == ExitCode.OK, f"the second attempt ended with {code}")
    documents = local.finish(run, report=False).documents
    _check(documents.ok == PAGES, f"not all pages were read: {documents}")
    _say(f"SIGTERM: 143 with {left} of {PAGES} pages left, which a second attempt read", started)


def _plan(folder: Path, inputs: Path) -> RunFolder:
    """A run of one shard; the image's user may write into its folder."""
    storage, out = open_storage(), path_uri(folder / "run")
    request = local.Request((str(inputs),), None, "rapidocr", Options(), Sharding(shards=1))
    run = local.start_run(storage, request, local.plan_run(storage, request, out), out)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o644)
    return run


def _shard(run: RunFolder, attempt: int) -> dict[str, str]:
    return {"PAGEFLEET_RUN_URI": run.uri, "AWS_BATCH_JOB_ATTEMPT": str(attempt)}


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pagefleet-image-"))
    try:
        yield folder
    finally:
        # What a container makes is its user's, and stays unless root asks. TemporaryDirectory would insist on it.
        shutil.rmtree(folder, ignore_errors=True)


def _base(tools: Tools) -> str | None:
    """None: the pinned one of the Dockerfile."""
    if base := os.environ.get("BASE"):
        return base
    if tools.pull(_pinned()):
        return None
    if tools.has(SUBSTITUTE):
        return SUBSTITUTE
    if not shutil.which("debootstrap") or os.geteuid() != 0:
        sys.exit("the pinned base can't be had: name another as BASE=…, or have debootstrap make one, as root")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pagefleet-base-") as folder:
        packages = "python3,python3-venv,python3-pip,ca-certificates"
        root = Path(folder, "root")
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for leftover in ("var/cache/apt", "var/lib/apt/lists", "var/log"):
            shutil.rmtree(root / leftover)
            (root / leftover).mkdir()
        Path(folder, "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
        with tarfile.open(Path(folder, "root.tar"), "w") as archive:
            archive.add(root, arcname=".")
        shutil.rmtree(root)
        tools.build(SUBSTITUTE, Path(folder))
    _say("made a base with debootstrap: no registry can be reached", started)
    return SUBSTITUTE


def _pinned() -> str:
    found = re.search(r"^FROM (\S+@sha256:[0-9a-f]{64}) AS pinned$", DOCKERFILE.read_text(encoding="utf-8"), re.M)
    assert found, "the Dockerfile pins its base no more"
    return found[1]


def _pip_mounts() -> Iterator[tuple[Path, str]]:
    """pip's configuration of this machine, and the certificates that it trusts."""
    for path in (Path("/etc/pip.conf"), Path("/etc/xdg/pip")):
        if path.exists():
            yield path, str(path)
    for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        if (bundle := Path(os.environ.get(name, ""))).is_file():
            yield bundle, CA_BUNDLE
            return


def _pip_indexes() -> set[str]:
    """Where pip looks for packages on this machine, besides its default."""
    from pip._internal.models.index import PyPI  # pip tells its default nowhere else

    told = _output(sys.executable, "-m", "pip", "config", "list")
    settings = re.findall(r"^\S*(?:index-url|find-links)='(.*)'$", told, re.M)
    return {place for value in settings for place in value.split() if PyPI.netloc not in place}


def _succeeds(*command: str) -> bool:
    return not subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _check(good: bool, message: str) -> None:
    if not good:
        sys.exit(f"image-test: {message}")


def _say(what: str, started: float) -> None:
    print(f"{time.monotonic() - started:6.1f} s  {what}", flush=True)


if __name__ == "__main__":
    main()
