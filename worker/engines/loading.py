"""What all engines on transformers do alike: choose device and precision, load a checkpoint strictly, notice that
memory does not suffice."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

from worker.engines import EngineSettings
from worker.engines.checkpoint import Checkpoint, fetch_checkpoint
from worker.engines.presets import PRESETS, Preset
from worker.errors import BadRequest

T = TypeVar("T")

DTYPES = ("float32", "bfloat16", "float16")

_UNLOADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to read."""

    checkpoint: Checkpoint
    processor: Any
    model: Any
    device: str  # "cpu", "cuda" or "cuda:N"
    dtype: str


def load(
    preset: Preset,
    settings: EngineSettings,
    *,
    model: str | None,
    revision: str | None,
    device: str | None,
    dtype: str | None,
    unused: str | None = None,
) -> Loaded:
    """The preset's model, or another checkpoint of its class, where and in the precision that is asked for or fits.
    Weights whose names begin with `unused` may be missing.

    Raises: BadRequest for a checkpoint or a card that won't do; TryAgain where the checkpoint can't be reached.
    """
    check_transformers(preset)
    device = choose_device(device)
    dtype = choose_dtype(preset, device, dtype)
    checkpoint = fetch_checkpoint(preset, model, revision)
    try:
        processor, weights = load_checkpoint(checkpoint, preset, device, dtype, settings.threads, unused)
    except BaseException:
        checkpoint.discard()
        raise
    return Loaded(checkpoint, processor, weights, device, dtype)


def check_transformers(preset: Preset) -> None:
    """Raises: BadRequest where the installed transformers is older than the model."""
    from packaging.version import Version

    if Version(version("transformers")) < Version(preset.min_transformers):
        raise BadRequest(
            f"engine {preset.name} needs transformers {preset.min_transformers} or newer, here is "
            f"{version('transformers')}: `make gpu` in the checkout"
        )


def choose_device(asked: str | None) -> str:
    """The GPU where there is one. Raises: BadRequest where another device is asked for than there is."""
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.partition(":")[0] not in ("cpu", "cuda"):
        raise BadRequest(f"device {asked!r} is neither cpu nor cuda nor cuda:N")
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise BadRequest(f"device {asked}: torch {torch.__version__} sees no GPU here")
    return asked


def choose_dtype(preset: Preset, device: str, asked: str | None) -> str:
    """The precision that weights and pages are computed in: bfloat16 where the card has it in hardware, single
    precision on a CPU, and what the preset says on a card without bfloat16.

    Raises: BadRequest where the model overflows in what is asked for, or fits no such card in what it needs.
    """
    import torch

    if asked == "float16" and preset.without_bf16 != "float16":
        raise BadRequest(f"engine {preset.name} writes nonsense in float16; use bfloat16 or float32")
    if asked:
        return asked
    if not device.startswith("cuda"):
        return "float32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    if preset.without_bf16 == "refuse":
        raise BadRequest(
            f"engine {preset.name} needs bfloat16, which {torch.cuda.get_device_name(device)} lacks: use a card from "
            "Ampere on (g5, g6), or a large one with --engine-option dtype=float32"
        )
    return preset.without_bf16


def load_checkpoint(
    checkpoint: Checkpoint, preset: Preset, device: str, dtype: str, threads: int, unused: str | None = None
) -> tuple[Any, Any]:
    """Processor and model. Weights whose names begin with `unused` may be missing.

    Raises: BadRequest where the files are no checkpoint of the preset's class and shape.
    """
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(threads)
    if checkpoint.own:
        _check_architecture(checkpoint, preset)
    # By their classes: `AutoModel…` goes by config.json's `model_type`, which is not always the class's that can read
    # the weights, and loads any other class without a word.
    try:
        processor = getattr(transformers, preset.processor).from_pretrained(checkpoint.folder)
        model, info = getattr(transformers, preset.architecture).from_pretrained(
            checkpoint.folder,
            dtype=getattr(torch, dtype),
            attn_implementation=preset.attention,
            key_mapping=dict(preset.renamed) or None,
            output_loading_info=True,
        )
    except (*_UNLOADABLE, SafetensorError) as error:
        raise BadRequest(
            f"{checkpoint.model} cannot be loaded as {preset.name}: {' '.join(str(error).split())}"
        ) from error
    # transformers only warns, and reads nonsense with the random weights that it puts in their place.
    missing = sorted(key for key in info["missing_keys"] if unused is None or not key.startswith(unused))
    if missing := missing + sorted(str(key) for key in info["mismatched_keys"]):
        raise BadRequest(
            f"{checkpoint.model} is no checkpoint of {preset.name}'s shape: {len(missing)} weights are "
            f"missing, such as {missing[0]}"
        )
    try:
        return processor, model.eval().to(device)
    except torch.OutOfMemoryError as error:
        raise BadRequest(f"{preset.name} does not fit into the memory of {device}: {error}") from error


def _check_architecture(checkpoint: Checkpoint, preset: Preset) -> None:
    """Raises: BadRequest where config.json names another class than the preset's, with the engines that fit it."""
    import transformers

    try:
        config = json.loads((checkpoint.folder / "config.json").read_bytes())
        named, kind = config.get("architectures") or [], config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise BadRequest(f"config.json of {checkpoint.model} is no JSON object: {error}") from error
    # Case aside: the same class is LightOnOCRFor… to its authors and LightOnOcrFor… to transformers.
    named_low = {str(name).lower() for name in named}

    def fits(architecture: str) -> bool:
        of_class: Any = getattr(transformers, architecture, None)  # an older transformers lacks some
        return architecture.lower() in named_low or (of_class and of_class.config_class.model_type == kind)

    if fits(preset.architecture):
        return
    others = [other.name for other in PRESETS.values() if fits(other.architecture)]
    use = " or ".join(f"--engine {name}" for name in others)
    raise BadRequest(
        f"{checkpoint.model} holds a {', '.join(map(str, named)) or 'model'} (model_type {kind}), and engine "
        f"{preset.name} needs a {preset.architecture}: "
        + (f"use {use}" if use else "none of the engines here reads with it; a server may, see --engine openai")
    )


def within_memory(work: Callable[[], T]) -> T | None:
    """What the work returns; None where memory did not suffice. `free_memory` is to follow."""
    import torch

    try:
        return work()
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        if "DefaultCPUAllocator: can't allocate memory" in str(error):
            return None
        raise


def free_memory(device: str) -> None:
    """To be called where nothing is left that the failed attempt held, that is outside its `except`."""
    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
