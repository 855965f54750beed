"""The engine of vision models: each preset's real class and processor with tiny random weights, on a CPU."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.utils import is_torchvision_available

from jobs.accuracy import error_rate
from jobs.results import open_run
from tests.assets import TINY_HUNYUAN, TINY_TROCR
from tests.conftest import PATIENCE, worker_environment
from tests.rendering import draw_card, fresh_strings
from tests.worker import tiny_models
from worker.contract import Result
from worker.engines import ENGINES, EngineSettings, PageImage, build_engine
from worker.engines.guards import TEMPERATURES
from worker.engines.loading import choose_dtype
from worker.engines.outputs import PARSERS
from worker.engines.presets import PRESETS, presets_of
from worker.engines.vision import CHECK_TOKENS, OutOfTime, VisionEngine
from worker.errors import BadRequest, TryAgain

SIZES = [(100, 60), (80, 120), (90, 90)]  # width, height


def page(number: int, width: int, height: int) -> PageImage:
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return PageImage(number, pixels)


PAGES = [page(number, width, height) for number, (width, height) in enumerate(SIZES, 1)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of a preset's class."""
    folder = tmp_path_factory.mktemp("models")

    def checkpoint(name: str) -> Path:
        return folder / name if (folder / name).exists() else tiny_models.make(name, folder)

    return checkpoint


@pytest.fixture
def build(checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., VisionEngine]:
    """An engine with a tiny checkpoint: `build("hunyuan", batch_size=4)`."""
    if not is_torchvision_available():
        # The processors that take videos too can't be loaded by their folder; everything that they do with a page is
        # theirs nevertheless.
        load = transformers.AutoProcessor.from_pretrained

        def without_video(folder: Path, **given: Any) -> Any:
            preset = PRESETS.get(Path(folder).name)
            return tiny_models.processor(preset.name) if preset and preset.needs_torchvision else load(folder, **given)

        monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", without_video)

    def build(
        name: str, clock: Callable[[], float] | None = None, timeout: float = 600.0, **options: object
    ) -> VisionEngine:
        told = {"model": str(checkpoints(name)), "max_new_tokens": "64"} | {k: str(v) for k, v in options.items()}
        more: dict[str, Any] = {"clock": clock} if clock else {}
        return VisionEngine(EngineSettings(threads=1, name=name, timeout=timeout, options=told), **more)

    return build


def steer(engine: VisionEngine, choose: Callable[[int, int], list[str | None]]) -> None:
    """Makes the model write what `choose(rows, step)` says: a character for each row, None to end its text."""
    step = 0
    tokenizer = engine._processor.tokenizer

    def write(module: object, args: object, output: Any) -> Any:
        nonlocal step
        for row, character in enumerate(choose(len(output.logits), step)):
            token = tokenizer.eos_token_id if character is None else tokenizer.convert_tokens_to_ids(character)
            output.logits[row, -1] = 0
            output.logits[row, -1, token] = 1e4
        step += 1
        return output

    def begin(**given: Any) -> Any:
        nonlocal step
        step = 0
        return generate(**given)

    engine._model.register_forward_hook(write)
    generate = engine._model.generate
    engine._model.generate = begin


# ---- every preset


@pytest.mark.parametrize("name", tiny_models.MAKERS)
def test_pages_of_different_sizes_read_together_as_they_do_alone(build: Callable[..., VisionEngine], name: str) -> None:
    # Chandra's own prompt is so long that random weights forget the page over it.
    engine = build(name, batch_size=4, **({"prompt": "OCR:"} if name.startswith("chandra") else {}))
    together = engine.read(PAGES)
    assert together == [engine.read([each])[0] for each in PAGES]
    assert engine.batch_size == 4
    for each, text in zip(PAGES, together, strict=True):
        told = text.details
        assert told
        assert (text.width, text.height) == (each.width, each.height)
        assert told["model"].endswith(name)
        assert told["revision"] == engine.revision
        needed = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
        assert told["versions"] == needed | (
            {"torchvision": version("torchvision")} if is_torchvision_available() else {}
        )
        assert (told["device"], told["dtype"], told["retries"], told["temperature"]) == ("cpu", "float32", 0, 0.0)
        assert told["prompt_tokens"] > 10
        assert 1 <= told["tokens"] <= 64
        assert (told["stop"] == "end") == (text.error is None)
        assert told["tokens"] == 64 or told["stop"] == "end"
    assert len({text.markdown or (text.details or {}).get("text") for text in together}) > 1


def test_a_page_reads_the_same_however_many_are_before_it(build: Callable[..., VisionEngine]) -> None:
    """HunYuanVL counts the images of a whole batch, and the count is a part of each position."""
    engine = build("hunyuan", batch_size=24)
    pages = [page(number, 90, 90) for number in range(24)]
    together = engine.read(pages)
    assert together[-3:] == [engine.read([each])[0] for each in pages[-3:]]


@pytest.mark.parametrize("name", tiny_models.MAKERS)
def test_only_what_the_model_writes_is_its_text(build: Callable[..., VisionEngine], name: str) -> None:
    engine = build(name, batch_size=4, raw="yes")
    words = "HELLO"
    steer(engine, lambda rows, step: [words[step] if step < len(words) else None] * rows)
    texts = engine.read(PAGES)
    assert [text.markdown for text in texts] == ["HELLO"] * 3
    for text in texts:
        assert text.details
        assert text.details["raw"] == "HELLO"
        assert text.details["tokens"] == len(words) + 1
        assert text.details["prompt"] == PRESETS[name].prompt_id("markdown")


def test_presets_are_whole() -> None:
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert re.fullmatch("[0-9a-f]{40}", preset.revision)
        assert preset.default_task in preset.prompts
        assert all(prompt.parser in PARSERS for prompt in preset.prompts.values())
        assert preset.min_pixels is None or (preset.max_pixels and preset.min_pixels < preset.max_pixels)
    assert set(tiny_models.MAKERS) == PRESETS.keys() - {"trocr"} < ENGINES.keys()


def test_chandras_prompt_is_datalabs_to_the_byte() -> None:
    text = PRESETS["chandra"].prompts["markdown"].text
    digest = "025935f3e1de1acdfadd4c7d581ab17eb82e8caaffef7b64962621c80b7ca9a8"  # of OCR_LAYOUT_PROMPT, chandra-ocr 0.2
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_licences_say_what_they_forbid() -> None:
    (hunyuan,) = presets_of("hunyuan-1.0", {})
    assert hunyuan.licence.forbids_training_on_output
    assert {"eu-central-1", "eu-west-2", "ap-northeast-2"} < hunyuan.licence.excluded_regions
    assert presets_of("openai", {"preset": "hunyuan-1.0"}) == [hunyuan]
    assert presets_of("rapidocr", {}) == []
    assert "South Korea" in ENGINES["hunyuan"].licence
    assert "2 million" in ENGINES["chandra"].licence
    assert not any(PRESETS[name].licence.forbids_training_on_output for name in ("chandra", "lighton", "glm-ocr"))


# ---- guards


def test_a_page_that_loops_is_stopped_tried_again_and_told_and_the_others_are_read(
    build: Callable[..., VisionEngine],
) -> None:
    engine = build("hunyuan", batch_size=4, max_new_tokens=4000)
    attempts, steps = [], []

    def choose(rows: int, step: int) -> list[str | None]:
        steps.append(step)
        if step == 0:
            attempts.append(rows)
        loops = ["a", *["b" if step < 3 else None] * (rows - 1)]  # the smallest page comes first
        return loops[:rows]

    steer(engine, choose)
    small, tall, square = engine.read(PAGES)
    assert attempts == [3, 1, 1]
    assert (tall.markdown, square.markdown) == ("bbb", "bbb")
    assert small.error
    assert small.error.startswith("hunyuan repeats itself, at the last of 3 attempts")
    assert small.markdown is None
    told = small.details
    assert told
    assert (told["stop"], told["retries"], told["temperature"]) == ("repetition", 2, TEMPERATURES[-1])
    assert told["text"] == "a"
    assert max(steps) < told["tokens"] <= 400 + 2 * CHECK_TOKENS


def test_a_page_that_comes_out_of_its_loop_is_read_by_a_later_attempt(build: Callable[..., VisionEngine]) -> None:
    engine = build("hunyuan", max_new_tokens=4000)
    attempt = 0

    def choose(rows: int, step: int) -> list[str | None]:
        nonlocal attempt
        attempt += step == 0
        return ["a" if attempt == 1 or step < 4 else None]

    steer(engine, choose)
    (text,) = engine.read(PAGES[:1])
    assert text.markdown == "aaaa"
    assert text.details
    assert (text.details["retries"], text.details["temperature"]) == (1, TEMPERATURES[1])


def test_a_sampled_attempt_reads_the_same_each_time(build: Callable[..., VisionEngine]) -> None:
    engine = build("lighton")
    readings = [engine._attempt(PAGES[:1], 0.6, end=float("inf")) for _ in range(2)]
    assert readings[0] == readings[1]
    assert readings[0] != engine._attempt(PAGES[:1], 0.0, end=float("inf"))


def test_what_is_not_read_to_its_end_has_failed_and_keeps_what_there_is(build: Callable[..., VisionEngine]) -> None:
    engine = build("hunyuan", max_new_tokens=5)
    steer(engine, lambda rows, step: ["abcdefgh"[step]] * rows)
    (text,) = engine.read(PAGES[:1])
    assert text.error
    assert text.error.startswith("hunyuan has not come to an end after 5 tokens")
    assert text.details
    assert (text.details["stop"], text.details["text"]) == ("length", "abcde")


def test_time_is_up_for_one_attempt_and_for_the_call(build: Callable[..., VisionEngine]) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1
        return now

    engine = build("hunyuan", clock=clock, page_deadline=10, max_new_tokens=4000)
    steer(engine, lambda rows, step: ["abcdefghijklmnopqrstuvwxyz"[step % 26]] * rows)
    first, second, third = engine.read(PAGES)
    for text in (first, second, third):
        assert text.error
        assert text.error.startswith("hunyuan has not read it within 10 s")
        assert text.details
        assert text.details["stop"] == "deadline"
        assert text.details["text"] == "abcdefghij"[: text.details["tokens"]]
    assert now < 60
    slow = build("hunyuan", clock=clock, timeout=22, max_new_tokens=4000)
    steer(slow, lambda rows, step: ["abcdefghijklmnopqrstuvwxyz"[step % 26]] * rows)
    before = now
    with pytest.raises(OutOfTime, match="3 pages take longer than the 20 s of a call"):
        slow.read(PAGES)
    assert now - before < 40
    (alone,) = slow.read(PAGES[:1])
    assert alone.error
    assert alone.error.startswith("hunyuan has not read it within 10 s")


def test_pages_that_have_no_time_left_are_asked_again_and_not_failed(build: Callable[..., VisionEngine]) -> None:
    """The first page of each call goes on for ever; on this card only one fits at a time."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1
        return now

    engine = build("hunyuan", clock=clock, timeout=40, page_deadline=30, batch_size=3, max_new_tokens=4000)
    endless = SIZES[0][0] * SIZES[0][1]  # the smallest comes first
    asked: list[int] = []
    read = engine._inputs

    def inputs(pages: list[PageImage]) -> Any:
        asked[:] = [each.width * each.height for each in pages]
        return read(pages)

    engine._inputs = inputs  # type: ignore[method-assign, assignment]
    steer(
        engine,
        lambda rows, step: [
            "abcdefghijklmnopqrstuvwxyz"[step % 26] if size == endless or step < 12 else None for size in asked
        ],
    )
    out_of_memory_above(engine, 1)
    with pytest.raises(OutOfTime):
        engine.read(PAGES)
    assert engine.batch_size == 1
    alone = [engine.read([each])[0] for each in PAGES]
    assert [text.markdown for text in alone] == [None, "abcdefghijkl", "abcdefghijkl"]
    assert alone[0].error
    assert alone[0].error.startswith("hunyuan has not read it within 30 s")


def test_a_fallback_is_not_begun_after_the_calls_time(build: Callable[..., VisionEngine]) -> None:
    now = 0.0
    engine = build(
        "hunyuan", clock=lambda: now, timeout=40, batch_size=3, max_new_tokens=5, fallback="tests.faults.engines:Colour"
    )

    def choose(rows: int, step: int) -> list[str | None]:
        nonlocal now
        now += 40
        return ["a"] * rows

    steer(engine, choose)
    with pytest.raises(OutOfTime):
        engine.read(PAGES)
    (alone,) = engine.read(PAGES[:1])
    assert alone.details
    assert alone.details["fallback"]["engine"] == "tests.faults.engines:Colour"


def test_a_page_of_an_impossible_shape_fails_alone(build: Callable[..., VisionEngine]) -> None:
    engine = build("hunyuan", batch_size=4)
    steer(engine, lambda rows, step: ["a" if step == 0 else None] * rows)
    texts = engine.read([PAGES[0], page(9, 2010, 10), PAGES[1]])
    assert [text.markdown for text in texts] == ["a", None, "a"]
    assert texts[1].error == "the page is 201 times as long as wide, hunyuan takes 200"


def test_another_engine_reads_what_fails_when_asked_and_says_so(build: Callable[..., VisionEngine]) -> None:
    from tests.worker.test_engine_rapidocr import type_lines

    letter = PageImage(1, np.asarray(type_lines(["Total amount due", "Thank you for your visit"])))
    engine = build("hunyuan", max_new_tokens=5, fallback="rapidocr")
    steer(engine, lambda rows, step: ["a"] * rows)
    (text,) = engine.read([letter])
    assert text.error is None
    assert text.markdown
    assert "Thank you for your visit" in text.markdown
    assert text.lines
    assert text.details
    assert text.details["fallback"]["engine"] == "rapidocr"
    (warning,) = text.details["warnings"]
    assert warning.startswith("read by rapidocr instead: hunyuan has not come to an end after 5 tokens")
    engine.close()


# ---- memory


def out_of_memory_above(engine: VisionEngine, most: int) -> list[int]:
    """Lets the model fail as CUDA does on more than so many rows; returns the sizes of batches that it is given."""
    seen: list[int] = []

    def hook(module: object, args: object, given: dict[str, Any]) -> None:
        if given["input_ids"].shape[1] > 1:  # a prompt, no single token that follows it
            seen.append(len(given["input_ids"]))
        if len(given["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    engine._model.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_the_size_remembered(
    build: Callable[..., VisionEngine],
) -> None:
    engine = build("hunyuan", batch_size=8)
    steer(engine, lambda rows, step: ["a" if step == 0 else None] * rows)
    seen = out_of_memory_above(engine, 2)
    pages = [page(number, 60 + number, 60) for number in range(1, 6)]
    assert [text.markdown for text in engine.read(pages)] == ["a"] * 5
    assert seen == [5, 2, 2, 1]
    assert engine.batch_size == 2
    engine.read(pages[:3])
    assert seen[4:] == [2, 1]


def test_a_page_that_does_not_fit_alone_fails(build: Callable[..., VisionEngine]) -> None:
    engine = build("hunyuan", batch_size=2)
    out_of_memory_above(engine, 0)
    texts = engine.read(PAGES[:2])
    assert [text.error for text in texts] == [
        "it does not fit into the memory of cpu; try a smaller --engine-option max_pixels=N"
    ] * 2


def test_an_error_of_the_model_itself_is_no_lack_of_memory(build: Callable[..., VisionEngine]) -> None:
    engine = build("hunyuan", batch_size=2)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    engine._model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        engine.read(PAGES[:2])


# ---- precision and device


@pytest.mark.parametrize(
    ("name", "bf16", "dtype"),
    [
        ("hunyuan", True, "bfloat16"),
        ("hunyuan", False, "float16"),
        ("glm-ocr", False, "float16"),
        ("lighton", True, "bfloat16"),
        ("lighton", False, "float32"),
        ("chandra", True, "bfloat16"),
    ],
)
def test_precision_follows_the_card(monkeypatch: pytest.MonkeyPatch, name: str, bf16: bool, dtype: str) -> None:
    asked = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return bf16 or including_emulation  # a T4 emulates it, and crawls

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_dtype(PRESETS[name], "cuda", None) == dtype
    assert asked == [False]
    assert choose_dtype(PRESETS[name], "cpu", None) == "float32"
    assert choose_dtype(PRESETS[name], "cuda", "float32") == "float32"


def test_qwen_never_runs_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(BadRequest, match="chandra needs bfloat16, which Tesla T4 lacks"):
        choose_dtype(PRESETS["chandra"], "cuda", None)
    for name in ("chandra", "chandra-1", "lighton", "got-ocr2"):
        with pytest.raises(BadRequest, match="writes nonsense in float16"):
            choose_dtype(PRESETS[name], "cuda", "float16")


def test_weights_and_pages_are_in_the_precision_asked_for(build: Callable[..., VisionEngine]) -> None:
    engine = build("hunyuan", dtype="bfloat16")
    assert {parameter.dtype for parameter in engine._model.parameters()} == {torch.bfloat16}
    assert engine._inputs(PAGES[:2])["pixel_values"].dtype == torch.bfloat16
    (text,) = engine.read(PAGES[:1])
    assert text.details
    assert text.details["dtype"] == "bfloat16"


# ---- options and checkpoints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "red"}, "has no option 'colour'; it has: batch_size, device"),
        ({"task": "formulas"}, "option task is 'formulas'; it must be one of markdown, spotting, text"),
        ({"prompt": "What is <image>?"}, "the prompt holds <image>, which stands for a page"),
        ({"device": "tpu"}, "device 'tpu' is neither cpu nor cuda"),
        ({"device": "cuda:1"}, "device cuda:1: torch .* sees no GPU here"),
        ({"max_pixels": "10"}, "max_pixels is 10; it must be at least 1024"),
        ({"dtype": "int4"}, "option dtype is 'int4'"),
        ({"model": "tencent/HunyuanOCR@main"}, "revision 'main': name a commit by its 40 hexadecimal digits"),
        ({"model": "somebody/HunyuanOCR"}, "no revision: name a commit"),
        ({"model": "no/such/folder"}, "there is no such folder"),
    ],
)
def test_options_that_cannot_be_are_refused(
    build: Callable[..., VisionEngine], options: dict[str, str], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        build("hunyuan", **options)


def test_a_prompt_of_ones_own_has_an_id_of_its_own(build: Callable[..., VisionEngine]) -> None:
    told = build("hunyuan", prompt="Read this.").read(PAGES[:1])[0].details
    assert told
    assert told["prompt"].startswith("hunyuan/markdown/")
    assert told["prompt"] != PRESETS["hunyuan"].prompt_id("markdown")
    with pytest.raises(BadRequest, match="has no option 'prompt'"):
        build("got-ocr2", prompt="Read this.")


def test_spotting_gives_lines_with_their_places(build: Callable[..., VisionEngine]) -> None:
    engine = build("hunyuan", task="spotting")
    words = "Hi(100,500),(900,1000)"
    steer(engine, lambda rows, step: [words[step] if step < len(words) else None] * rows)
    (text,) = engine.read([page(1, 200, 100)])
    assert text.markdown is None  # written from the lines of the whole document
    (line,) = text.lines
    assert (line.text, line.polygon) == ("Hi", [(20, 50), (180, 50), (180, 100), (20, 100)])


def test_fewer_pixels_mean_fewer_tokens(build: Callable[..., VisionEngine]) -> None:
    asked = [
        build("hunyuan", **options).read([page(1, 128, 128)])[0].details["prompt_tokens"]  # type: ignore[index]
        for options in ({}, {"max_pixels": 64 * 64})
    ]
    assert asked[1] < asked[0]
    with pytest.raises(BadRequest, match="has no option max_pixels"):
        build("lighton", max_pixels=4096)


def test_a_checkpoint_without_some_of_its_weights_is_refused(
    build: Callable[..., VisionEngine], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    broken = shutil.copytree(checkpoints("hunyuan"), tmp_path / "hunyuan")
    weights = load_file(broken / "model.safetensors")
    lost = next(name for name in weights if "layers.1" in name)
    save_file({name: value for name, value in weights.items() if name != lost}, broken / "model.safetensors")
    with pytest.raises(
        BadRequest, match=r"no checkpoint of hunyuan's shape: 1 weights are missing, such as .*layers\.1"
    ):
        build("hunyuan", model=broken)


CHECKPOINTS_THAT_ARE_NONE: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda folder: [path.unlink() for path in folder.iterdir()], "no config.json, nor any other file"),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        "it has no config.json, only chat_template.jinja, .*",
    ),
    "adapter": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
        "is an adapter: merge it into its base model",
    ),
    "config of nothing": (
        lambda folder: (folder / "config.json").write_text("[]"),
        "config.json of .* is no JSON object",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        r"holds no weights: it has no \*.safetensors, only .*",
    ),
    "cut short": (
        lambda folder: os.truncate(folder / "model.safetensors", 100_000),
        r"model.safetensors is damaged or cut short, with 100,000 bytes \(.*\): copy it again",
    ),
    "no weights at all": (
        lambda folder: os.truncate(folder / "model.safetensors", 0),
        "model.safetensors is damaged or cut short, with 0 bytes",
    ),
    "a part of two": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}})
        ),
        "lacks 1 of 2 files of weights: model-00002-of-00002.safetensors",
    ),
    "damaged index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a"'),
        "model.safetensors.index.json is damaged",
    ),
    "no processor": (
        lambda folder: (folder / "processor_config.json").unlink(),
        r"has no processor \(preprocessor_config.json or processor_config.json\): copy the files from the model that",
    ),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
        r"has no tokenizer \(tokenizer.json or tokenizer_config.json\)",
    ),
    "no tokens": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "cannot be loaded as hunyuan: ",
    ),
}


@pytest.mark.parametrize("what", CHECKPOINTS_THAT_ARE_NONE)
def test_what_is_no_checkpoint_is_told(
    build: Callable[..., VisionEngine], checkpoints: Callable[[str], Path], tmp_path: Path, what: str
) -> None:
    folder = shutil.copytree(checkpoints("hunyuan"), tmp_path / "mine")
    spoil, message = CHECKPOINTS_THAT_ARE_NONE[what]
    spoil(folder)
    with pytest.raises(BadRequest, match=message) as raised:
        build("hunyuan", model=folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("lighton", "got-ocr2", r"holds a GotOcr2.* needs a LightOnOcrFor.*: use --engine got-ocr2$"),
        ("got-ocr2", "hunyuan", r"needs a GotOcr2.*: use --engine hunyuan or --engine hunyuan-1.0$"),
        ("hunyuan", None, r"holds a VisionEncoderDecoderModel .model_type vision.*: use --engine trocr$"),
    ],
)
def test_a_checkpoint_of_another_class_is_refused_and_its_engine_named(
    build: Callable[..., VisionEngine], checkpoints: Callable[[str], Path], name: str, given: str | None, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        build(name, model=checkpoints(given) if given else TINY_TROCR)


def test_a_checkpoint_that_no_engine_reads_with_is_refused(
    build: Callable[..., VisionEngine], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoints("hunyuan"), tmp_path / "mine")
    for config, found in [
        (
            {"architectures": ["DotsOCRForCausalLM"], "model_type": "dots_ocr"},
            "DotsOCRForCausalLM .model_type dots_ocr",
        ),
        ({"model_type": "qwen3"}, "model .model_type qwen3"),
        ({}, "model .model_type None"),
    ]:
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(BadRequest, match=rf"holds a {found}.*none of the engines here reads with it"):
            build("hunyuan", model=folder)


@pytest.mark.parametrize("name", ["lighton", "lighton-3"])
def test_lightons_own_files_are_read_though_they_name_another_class(
    build: Callable[..., VisionEngine], checkpoints: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """They are from before transformers had one: https://huggingface.co/lightonai/LightOnOCR-1B-1025, and LightOnOCR-2
    likewise (https://github.com/sgl-project/sglang/pull/17806); LightOnOCR-3's weights have names of before, too."""
    folder = shutil.copytree(checkpoints(name), tmp_path / name)
    named = {"architectures": ["LightOnOCRForConditionalGeneration"], "model_type": "mistral3"}
    unused = {"multimodal_projector_bias": False, "projector_hidden_act": "gelu", "vision_feature_layer": -1}
    for file, said in {
        "config.json": named | unused,
        "processor_config.json": {"processor_class": "LightOnOCRProcessor"},
        "tokenizer_config.json": {"processor_class": "LightOnOCRProcessor"},
    }.items():
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | said))
    if name == "lighton-3":
        weights = load_file(folder / "model.safetensors")
        old = {key.replace("model.language_model.", "language_model.model."): value for key, value in weights.items()}
        assert old.keys() != weights.keys()
        save_file(old, folder / "model.safetensors")
    ours, theirs = (
        [(text.error, text.markdown, (text.details or {})["tokens"]) for text in engine.read(PAGES)]
        for engine in (build(name), build(name, model=folder))
    )
    assert ours == theirs


def test_another_checkpoint_has_another_revision(
    build: Callable[..., VisionEngine], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoints("hunyuan"), tmp_path / "hunyuan")
    first = build("hunyuan").revision
    assert build("hunyuan", model=other).revision == first
    weights = load_file(other / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, other / "model.safetensors")
    assert build("hunyuan", model=other).revision != first
    assert str(first).startswith("sha256:")


def test_a_checkpoint_is_read_from_s3_and_its_copy_removed(
    build: Callable[..., VisionEngine],
    checkpoints: Callable[[str], Path],
    s3: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for path in checkpoints("hunyuan").iterdir():
        s3.upload_file(str(path), "inputs", f"models/tiny/{path.name}")
    s3.put_object(Bucket="inputs", Key="models/tiny/old/config.json", Body=b"{}")
    engine = build("hunyuan", model="s3://inputs/models/tiny/")
    assert engine.model == "s3://inputs/models/tiny/"
    assert engine.revision == build("hunyuan").revision
    assert engine.read(PAGES)[0].details
    assert any(tmp_path.iterdir())
    engine.close()
    stuck = build("hunyuan", model="s3://inputs/models/tiny/")
    assert any(tmp_path.iterdir())
    stuck.discard()
    assert not any(tmp_path.iterdir())
    with pytest.raises(BadRequest, match=r"model s3://inputs/none/: nothing lies right below that prefix$"):
        build("hunyuan", model="s3://inputs/none/")
    with pytest.raises(BadRequest, match=r"nothing lies right below that prefix; below it is tiny/.*, and more"):
        build("hunyuan", model="s3://inputs/models/")
    with pytest.raises(BadRequest, match="there is no bucket nowhere"):
        build("hunyuan", model="s3://nowhere/none/")
    assert not any(tmp_path.iterdir())
    with pytest.raises(BadRequest, match="has no revisions"):
        build("hunyuan", model="s3://inputs/models/tiny/", revision="0" * 40)


def test_a_hub_out_of_reach_is_tried_again_later(
    build: Callable[..., VisionEngine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    with pytest.raises(TryAgain, match=f"tencent/HunyuanOCR@{PRESETS['hunyuan'].revision} cannot be downloaded"):
        VisionEngine(EngineSettings(threads=1, name="hunyuan"))


def test_an_image_without_the_weights_is_no_use_later_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadRequest, match=f"{PRESETS['hunyuan'].revision} are not here, and HF_HUB_OFFLINE forbids"):
        VisionEngine(EngineSettings(threads=1, name="hunyuan"))


def test_the_hubs_commit_is_what_is_recorded(
    build: Callable[..., VisionEngine],
    checkpoints: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A cache as `snapshot_download` leaves it, so that nothing is asked of the network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    preset = PRESETS["hunyuan"]
    cached = tmp_path / "models--tencent--HunyuanOCR" / "snapshots" / preset.revision
    shutil.copytree(checkpoints("hunyuan"), cached)
    engine = VisionEngine(EngineSettings(threads=1, name="hunyuan"))
    assert (engine.model, engine.revision) == ("tencent/HunyuanOCR", preset.revision)
    assert engine._processor.image_processor.size["longest_edge"] == preset.max_pixels


def test_the_table_builds_the_preset_that_it_names(checkpoints: Callable[[str], Path]) -> None:
    engine = build_engine("hunyuan-1.0", EngineSettings(threads=1, options={"model": str(checkpoints("hunyuan-1.0"))}))
    assert engine.name == "hunyuan-1.0"
    assert (engine.concurrency, engine.batch_size, engine.longest_side) == (1, 1, 4096)


# ---- in a worker


def test_what_an_engine_tells_of_a_page_is_kept_and_its_warnings_reach_the_document(
    make_run: Callable[..., Any],
) -> None:
    run = make_run({"a.tiff": ["read", "raise"]}, engine="tests.faults.engines:Telling")
    assert run.work().returncode == 0
    outcome = run.outcome(run.tasks[0][0])
    assert isinstance(outcome, Result)
    assert [page.status for page in outcome.pages] == ["ok", "failed"]
    assert outcome.pages[1].engine == {"text": "half of"}
    assert outcome.warnings == ["page 1: read by another", "page 2 failed: cut short"]


# ---- real reading: a HunyuanOCR of 0.5 MB that was taught capitals and digits, see `tests/assets`


def test_a_taught_model_reads_what_it_never_saw_many_pages_at_a_time() -> None:
    options = {"model": str(TINY_HUNYUAN), "batch_size": "16", "max_new_tokens": "32"}
    truths = fresh_strings(64, seed=41)
    cards = [PageImage(number, np.asarray(draw_card(truth))) for number, truth in enumerate(truths, 1)]
    for task in ("markdown", "text"):
        engine = build_engine("hunyuan", EngineSettings(threads=1, options=options | {"task": task}))
        texts = engine.read(cards)
        engine.close()
        assert all(text.details and text.details["stop"] == "end" for text in texts)
        assert error_rate((text.markdown or "", truth) for text, truth in zip(texts, truths, strict=True)) < 0.01


def test_a_taught_model_reads_through_the_command(tmp_path: Path) -> None:
    truths = fresh_strings(6, seed=42)
    (tmp_path / "in").mkdir()
    for truth in truths:
        draw_card(truth).save(tmp_path / f"in/{truth}.png")
    blank = np.full((32, 128, 3), 255, dtype=np.uint8)
    Image.fromarray(blank).save(tmp_path / "in/blank.png")
    options = shlex.split("--engine hunyuan --engine-option max_new_tokens=32 --engine-option batch_size=4 --no-report")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "run", "in", "--out", "out", "--model", str(TINY_HUNYUAN), *options],
        cwd=tmp_path,
        env=worker_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    read = {document.name.removesuffix(".png"): document for document in open_run(str(tmp_path / "out")).documents()}
    assert read["blank"].markdown.strip() == ""
    assert error_rate((read[truth].markdown.strip(), truth) for truth in truths) < 0.05
    result = Result.model_validate_json((tmp_path / f"out/documents/{truths[0]}.png.json").read_text())
    assert (result.meta.engine, result.meta.model) == ("hunyuan", str(TINY_HUNYUAN))
    assert str(result.meta.revision).startswith("sha256:")
    (told,) = [page.engine for page in result.pages]
    assert told
    assert told["prompt"] == PRESETS["hunyuan"].prompt_id("markdown")
    assert told["tokens"] == len(truths[0]) + 1
