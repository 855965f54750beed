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


def check(engine: str, **options: Any) -> None:
    check_options(engine, Options(engine_options=options))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_of_the_table_tells_which_options_it_has(engine: str) -> None:
    check(engine)
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
    check("openai", fallback="trocr")


def test_checking_imports_no_heavy_library() -> None:
    program = (
        "import sys; from worker.contract import Options; from worker.engines import ENGINES, check_options\n"
        "for name in ENGINES: check_options(name, Options())\n"
        "print({'torch', 'transformers', 'onnxruntime', 'openvino', 'cv2', 'rapidocr'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
