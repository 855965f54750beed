"""Engines read page images. This page holds the protocol and the table of those that exist; each engine imports its
own libraries when it is built, never before."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from worker.contract import Line, Options
from worker.engines.presets import PRESETS, Preset
from worker.errors import BadRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class PageImage:
    """A page as an engine sees it: RGB, EXIF orientation applied, within the pixel limit, not blank."""

    number: int  # 1-based, within its document
    pixels: NDArray[np.uint8]  # (height, width, 3), C-contiguous, read-only
    scaled_from: tuple[int, int] | None = None  # width and height before it was scaled down to the pixel limit

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])


@dataclass
class PageText:
    """What an engine read on one page.

    `width`, `height` and all polygons are in pixels of the upright page, that is after turning the given image by
    `rotation` degrees clockwise. An engine of lines leaves `markdown` at None: `worker.layout` orders the lines and
    writes it. `error` says why this page could not be read; the other pages of the call are unharmed by it.
    """

    width: int
    height: int
    lines: list[Line] = field(default_factory=list)
    markdown: str | None = None
    rotation: int = 0
    error: str | None = None
    details: dict[str, Any] | None = None


class Engine(Protocol):
    """Reads pages. Built once per worker process, closed at its end."""

    name: str
    model: str  # goes to `meta.model`
    revision: str | None
    batch_size: int  # how many pages one call of `read` gets at most
    concurrency: int  # how many calls of `read` may run at the same time, each in a thread of its own
    longest_side: int  # pixels; larger pages are scaled down before they come here

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        """Same length, same order as `pages`. An exception fails every page of the call."""
        ...

    def close(self) -> None:
        """Once no call runs any more. Where one does not come back, `discard` is called instead, if the engine has it:
        it deletes what was downloaded for this process alone."""
        ...


@dataclass(frozen=True)
class EngineSettings:
    """What every engine is built with."""

    threads: int  # CPU threads this worker may use
    name: str = ""  # of the row in `ENGINES` that is built: one engine may serve several
    timeout: float = 600.0  # seconds that one call of `read` may take, before the worker is given up
    lang: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # the engine's own, from `--engine-option k=v`
    api_keys: Mapping[str, str] = field(default_factory=dict, repr=False)  # by variable, see `worker.settings`


@dataclass(frozen=True)
class EngineInfo:
    """A row of the table of engines, for people who choose one."""

    factory: str  # "module:Class", called with `EngineSettings`
    runs_on: str
    licence: str
    requires: tuple[str, ...]  # modules that must be importable
    install: str  # how to get them
    programs: Mapping[str, str] = field(default_factory=dict)  # that are started, and how to get each
    needs: str = ""  # what only the user can give


_BASE = "`.venv/bin/pip install --require-hashes -r requirements/base.txt` in the checkout"
INSTALL_VLLM = "install vLLM into an environment of its own and put its `vllm` on the PATH (docs/engines.md)"


def _vision(preset: Preset) -> EngineInfo:
    licence, lines = preset.licence, preset.name == "trocr"
    return EngineInfo(
        factory="worker.engines.trocr:TrOcrEngine" if lines else "worker.engines.vision:VisionEngine",
        runs_on=f"GPU{', or a CPU' if lines else ''}; {preset.parameters} parameters of {preset.hub_id}",
        licence=f"{licence.name}: {licence.limits}" if licence.limits else licence.name,
        requires=(
            "torch",
            "transformers",
            *(("rapidocr",) if lines else ()),  # it finds them
            *(("torchvision",) if preset.needs_torchvision else ()),
        ),
        install="`make gpu` in the checkout",
    )


ENGINES: dict[str, EngineInfo] = {
    "rapidocr": EngineInfo(
        factory="worker.engines.rapidocr:RapidOcrEngine",
        runs_on="CPU; weights are in the package",
        licence="Apache-2.0 (PP-OCRv6 weights too)",
        requires=("rapidocr", "onnxruntime"),
        install=_BASE,
    ),
    "openai": EngineInfo(
        factory="worker.engines.openai_server:OpenAiEngine",
        runs_on="any OpenAI-compatible vision server (vLLM, transformers serve, a provider)",
        licence="the model's (docs/engines.md)",
        requires=("httpx",),
        install=_BASE,
        needs="--engine-option base_url=ADDRESS; OPENAI_API_KEY in the environment, where the server wants a key",
    ),
    "vllm": EngineInfo(
        factory="worker.engines.vllm_server:VllmEngine",
        runs_on="GPU; starts `vllm serve` beside the worker",
        licence="the model's (docs/engines.md)",
        requires=("httpx",),
        install=_BASE,
        programs={"vllm": INSTALL_VLLM},  # only building the engine refuses to do without: `command` may name another
        needs="--engine-option preset=NAME, or model=FOLDER",
    ),
    "upstage": EngineInfo(
        factory="worker.engines.upstage:UpstageEngine",
        runs_on="Upstage's API, paid by the page",
        licence="Upstage's terms of use",
        requires=("httpx",),
        install=_BASE,
        needs="UPSTAGE_API_KEY in the environment, or --engine-option key_secret=ARN",
    ),
    **{name: _vision(preset) for name, preset in PRESETS.items()},
}


def missing_modules(name: str) -> list[str]:
    """Which of the modules that a known engine needs are not installed; looks without importing them."""
    return [module for module in ENGINES[name].requires if importlib.util.find_spec(module) is None]


def missing_programs(name: str) -> list[str]:
    """Which of the programs that a known engine starts are not on the PATH."""
    return [program for program in ENGINES[name].programs if shutil.which(program) is None]


def check_engine(name: str) -> None:
    """Refuses an engine that can't be built here, without building it.

    Raises: BadRequest, saying which engines there are or what to install.
    """
    if name in ENGINES:
        if missing := missing_modules(name):
            raise BadRequest(f"engine {name} needs {', '.join(missing)}: {ENGINES[name].install}")
    elif ":" in name and importlib.util.find_spec(name.partition(":")[0].partition(".")[0]) is None:
        raise BadRequest(f"engine {name}: there is no module {name.partition(':')[0]}; is its folder on PYTHONPATH?")
    elif ":" not in name:
        raise BadRequest(
            f"unknown engine {name!r}: there is {', '.join(sorted(ENGINES))}, or your own as package.module:Class"
        )


def check_options(name: str, options: Options, api_keys: Mapping[str, str] | None = None) -> None:
    """Refuses options that an engine of the table would refuse, without building it; nor need it be installed here.
    None of `api_keys` are those of another machine.

    Raises: BadRequest.
    """
    if name not in ENGINES:
        return  # anyone's own: only building it tells
    # Not above: what fetches an image's weights does without them.
    from worker.engines.options import OptionsTaken, Trial
    from worker.settings import API_KEYS

    trial = Trial(options.engine_options)
    if (fallback := trial.get("fallback")) in ENGINES and missing_modules(str(fallback)):
        del trial["fallback"]  # it has to be installed where it reads
    keys = dict.fromkeys(API_KEYS, "not known here") if api_keys is None else api_keys
    settings = EngineSettings(1, timeout=options.engine_timeout, lang=options.lang, options=trial, api_keys=keys)
    with suppress(OptionsTaken):
        _factory(name)(replace(settings, name=name))


def build_engine(name: str, settings: EngineSettings) -> Engine:
    """An engine of the table, or anyone's own as `package.module:Class`.

    Raises: BadRequest where there is no such engine, or its libraries or options are wrong.
    """
    check_engine(name)
    return _factory(name)(replace(settings, name=name))


def _factory(name: str) -> Callable[[EngineSettings], Engine]:
    module, _, attribute = (ENGINES[name].factory if name in ENGINES else name).partition(":")
    try:
        factory: Callable[[EngineSettings], Engine] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BadRequest(f"engine {name} cannot be loaded: {error}") from error
    return factory
