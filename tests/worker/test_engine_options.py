"""An engine's options, checked where the engine itself is not built."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from worker.contract import Options
from worker.engines import ENGINES, check_options
from worker.errors import BadRequest

NEEDED = {"openai": {"base_url": "http://127.0.0.1/v1"}, "vllm": {"preset": "paddleocr-vl"}}


def check(engine: str, **options: Any) -> None:
    check_options(engine, Options(engine_options=options))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_of_the_table_tells_which_options_it_has(engine: str) -> None:
    check(engine, **NEEDED.get(engine, {}))
    with pytest.raises(BadRequest, match=f"engine {engine} has no option 'foo'; it has: "):
        check(engine, foo="bar")


@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        ("rapidocr", {"backend": "paddle"}, "one of openvino, onnxruntime"),
        ("openai", {"concurrency": "many"}, "a number of at least 1"),
        ("openai", {"fallback": "nix"}, "unknown engine 'nix'"),
        ("upstage", {"unit": "page"}, "one of line, word"),
        ("lighton", {"raw": "perhaps"}, "yes or no"),
        ("trocr", {"batch_size": "1.5"}, "a whole number"),
        (
            "vllm",
            {"command": "serve 'it"},
            "option command is .*; it must be words as in a shell: No closing quotation",
        ),
        ("vllm", {"server_args": '--x "y'}, "option server_args is .*: No closing quotation"),
    ],
)
def test_values_are_checked_too(engine: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        check(engine, **options)


def test_a_fallback_need_not_be_installed_where_a_run_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "trocr", replace(ENGINES["trocr"], requires=("not_installed_here",)))
    check("openai", fallback="trocr", **NEEDED["openai"])


@pytest.mark.parametrize(("engine", "lacks"), [("openai", "the server's address"), ("vllm", "a model")])
def test_what_an_engine_needs_is_told_without_building_it(engine: str, lacks: str) -> None:
    with pytest.raises(BadRequest, match=f"engine {engine} needs {lacks}: --engine-option"):
        check(engine)


def test_a_key_is_looked_for_where_it_is_known_which_there_are() -> None:
    check("upstage")  # another machine may have it
    check_options("upstage", Options(), {"UPSTAGE_API_KEY": "k"})
    check_options("upstage", Options(engine_options={"key_secret": "arn:aws:secretsmanager:x"}), {})
    with pytest.raises(BadRequest, match="engine upstage needs a key: set UPSTAGE_API_KEY"):
        check_options("upstage", Options(), {})


def test_checking_imports_no_heavy_library() -> None:
    program = (
        f"NEEDED = {NEEDED}\n"
        "import sys; from worker.contract import Options; from worker.engines import ENGINES, check_options\n"
        "for name in ENGINES: check_options(name, Options(engine_options=NEEDED.get(name, {})))\n"
        "print({'torch', 'transformers', 'onnxruntime', 'openvino', 'cv2', 'rapidocr'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
