"""Weights are fetched when an image is built: the pinned commit, what is needed of it, through the hub's own client."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, ROOT
from worker.engines.presets import PRESETS

PRESET = PRESETS["paddleocr-vl"]
WEIGHTS = bytes(range(256)) * 4096


class Hub:
    """Serves one commit of one repository as `snapshot_download` asks for it: a listing, and files with their ETags."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"config.json": b"{}", "model.safetensors": WEIGHTS}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuse: set[str] = set()  # paths of files
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if PRESET.hub_id in path:
            self.tokens.add(request.headers["Authorization"])
        listing = f"/api/models/{PRESET.hub_id}/tree/{PRESET.revision}"
        name = path.removeprefix(f"/{PRESET.hub_id}/resolve/{PRESET.revision}/")
        if path == listing:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            self._send(request, 200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        elif name in self.files and name not in self.refuse:
            if request.command == "GET":
                self.asked.append(name)
            etag = hashlib.sha1(self.files[name]).hexdigest()
            self._send(request, 200, self.files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": PRESET.revision})
        else:
            self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


def bake(engine: str, home: Path, hub: Hub, **environment: str) -> subprocess.CompletedProcess[str]:
    return python(home, "-m", "worker.engines.bake", engine, HF_ENDPOINT=hub.url, **environment)


def python(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    more = {"PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment}
    return subprocess.run(
        [sys.executable, *arguments], env={**kept, **more}, capture_output=True, text=True, timeout=PATIENCE
    )


def test_the_pinned_commit_is_there_without_the_hub_afterwards(hub: Hub, tmp_path: Path) -> None:
    hub.files |= {
        "LICENSE": b"Apache",
        "pytorch_model.bin": b"the same again",
        "v1.0/model.safetensors": b"another version",
    }
    token = tmp_path / "token"
    token.write_text("hf_secret")
    models = tmp_path / "models"
    baked = bake("paddleocr-vl", models, hub, HF_TOKEN_PATH=str(token))
    assert baked.returncode == 0, baked.stderr
    assert baked.stdout.startswith("paddleocr-vl: 1.0 MB in ")
    assert sorted(hub.asked) == ["LICENSE", "config.json", "model.safetensors"]
    assert hub.tokens == {"Bearer hf_secret"}
    assert not [path for path in models.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    load = (
        "from worker.engines.checkpoint import fetch_checkpoint; from worker.engines.presets import PRESETS; "
        "print(fetch_checkpoint(PRESETS['paddleocr-vl']).folder)"
    )
    loaded = python(models, "-c", load, HF_HUB_OFFLINE="1", HF_ENDPOINT=hub.url)
    assert loaded.returncode == 0, loaded.stderr
    assert Path(loaded.stdout.strip(), "model.safetensors").read_bytes() == WEIGHTS
    assert sorted(hub.asked) == ["LICENSE", "config.json", "model.safetensors"]


def test_a_hub_that_gives_half_fails_the_build(hub: Hub, tmp_path: Path) -> None:
    hub.refuse.add("model.safetensors")
    baked = bake("paddleocr-vl", tmp_path, hub)
    assert baked.returncode == 75
    assert f"ENGINE=paddleocr-vl: model {PRESET.hub_id}@{PRESET.revision} cannot be downloaded" in baked.stderr
    assert "Traceback" not in baked.stderr


def test_what_needs_no_hub_asks_none(hub: Hub, tmp_path: Path) -> None:
    for engine in ("none", "rapidocr"):
        baked = bake(engine, tmp_path / "models", hub)
        assert (baked.returncode, baked.stdout) == (0, f"{engine}: no weights to fetch\n")
    assert not hub.tokens
    assert not (tmp_path / "models").exists()


def test_an_engine_that_does_not_exist_fails_the_build(hub: Hub, tmp_path: Path) -> None:
    baked = bake("tesseract", tmp_path, hub)
    assert baked.returncode == 64
    assert "ENGINE=tesseract: unknown engine" in baked.stderr


def test_every_preset_is_pinned_to_a_commit() -> None:
    assert all(len(preset.revision) == 40 and int(preset.revision, 16) for preset in PRESETS.values())
