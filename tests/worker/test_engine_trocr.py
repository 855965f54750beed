"""The engine of lines with a TrOCR that was taught to read: real weights, real reading; see `tests/assets`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from jobs.accuracy import bare, error_rate
from jobs.cli import main
from jobs.results import open_run
from tests.assets import TINY_TROCR
from tests.rendering import DISTINCT, draw_page, draw_text, fresh_strings
from worker.contract import Result
from worker.engines import EngineSettings, PageImage, build_engine
from worker.engines.trocr import TrOcrEngine
from worker.errors import BadRequest

strings = partial(fresh_strings, shortest=5, alphabet=DISTINCT)  # what the model knows well
LINES = strings(6, seed=1)


def settings(**options: Any) -> EngineSettings:
    return EngineSettings(threads=1, options={"model": str(TINY_TROCR), "device": "cpu", **options})


@pytest.fixture(scope="module")
def engine() -> Iterator[TrOcrEngine]:
    built = build_engine("trocr", settings())
    assert isinstance(built, TrOcrEngine)
    yield built
    built.close()


def page(image: Image.Image, number: int = 1) -> PageImage:
    return PageImage(number, np.asarray(image.convert("RGB")))


def checkpoint(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of the tiny model with other weights."""
    shutil.copytree(TINY_TROCR, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_pages_of_fresh_strings_are_read_with_polygons_and_confidences(engine: TrOcrEngine) -> None:
    pages = [strings(9, seed) for seed in range(20, 25)]
    texts = engine.read([page(draw_page(lines, (640, 1100)), number) for number, lines in enumerate(pages, 1)])
    pairs = []
    for lines, text in zip(pages, texts, strict=True):
        assert (text.width, text.height, text.rotation, text.error, text.markdown) == (640, 1100, 0, None, None)
        found = sorted(text.lines, key=lambda line: line.polygon[0][1] if line.polygon else 0)
        pairs.append(("\n".join(line.text for line in found), "\n".join(lines)))
        for number, (line, truth) in enumerate(zip(found, lines, strict=True)):
            assert line.polygon is not None
            (left, top), _, (right, bottom), _ = line.polygon
            assert left <= 46
            assert right >= 40 + 24 * len(truth) - 10  # the ink's ends, a corner's width aside
            assert top <= 40 + 110 * number + 12 <= 40 + 110 * number + 30 <= bottom
            assert line.confidence is not None
            assert line.confidence > 0.5
    assert error_rate(pairs) < 0.01


def test_a_page_that_lies_on_its_side_or_head_is_turned_and_read(engine: TrOcrEngine) -> None:
    upright = draw_page(LINES, (640, 800))
    for degrees in (90, 180):
        (text,) = engine.read([page(upright.rotate(degrees, expand=True))])
        assert (text.rotation, text.width, text.height) == (degrees, 640, 800)
        assert sorted(line.text for line in text.lines) == sorted(LINES)


def test_what_read_a_page_stands_in_its_details(engine: TrOcrEngine) -> None:
    (text,) = engine.read([page(draw_page(LINES[:2]))])
    assert text.details is not None
    assert text.details["tokens"] == sum(map(len, LINES[:2]))  # of this model, which writes character by character
    assert text.details["model"] == str(TINY_TROCR)
    assert text.details["revision"] == engine.revision
    assert text.details["revision"].startswith("sha256:")
    assert (text.details["device"], text.details["dtype"]) == ("cpu", "float32")
    assert text.details["versions"].keys() == {"torch", "transformers", "rapidocr"}


def test_a_page_without_lines_has_none(engine: TrOcrEngine) -> None:
    (text,) = engine.read([page(Image.new("RGB", (300, 200), "white"))])
    assert (text.lines, text.error) == ([], None)


def test_batches_read_as_single_lines_do_and_their_size_is_halved_where_memory_is_short(
    engine: TrOcrEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = engine.read([page(draw_page(LINES, (640, 800)))])
    small = TrOcrEngine(settings(batch_size=6))
    generate, seen = small._model.generate, []

    def scarce(pixels: torch.Tensor, **given: Any) -> Any:
        seen.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(pixels, **given)

    monkeypatch.setattr(small._model, "generate", scarce)
    (text,) = small.read([page(draw_page(LINES, (640, 800)))])
    assert seen == [6, 3, 1, 1, 1, 1, 1, 1]
    assert [(line.text, line.polygon) for line in text.lines] == [(line.text, line.polygon) for line in expected.lines]
    assert [line.confidence for line in text.lines] == pytest.approx([line.confidence for line in expected.lines], 1e-3)


def test_a_line_that_fits_at_no_batch_size_fails_its_page_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    full = TrOcrEngine(settings())

    def none(pixels: torch.Tensor, **given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(full._model, "generate", none)
    with pytest.raises(RuntimeError, match="one line does not fit into the memory of cpu"):
        full.read([page(draw_page(LINES[:3]))])


def test_lines_that_do_not_come_to_an_end_are_left_out_and_told() -> None:
    capped = TrOcrEngine(settings(max_new_tokens=6))
    (text,) = capped.read([page(draw_page(["ABCKH", "ABCKHGPS"]))])
    assert [line.text for line in text.lines] == ["ABCKH"]
    assert text.details is not None
    assert text.details["warnings"] == [
        "1 of 2 lines did not come to an end within 6 tokens and are left out; "
        "try --engine-option max_new_tokens=N with a larger N"
    ]
    (failed,) = capped.read([page(draw_page(["ABCKHGPS"]))])
    assert failed.error is not None
    assert "did not come to an end" in failed.error


def test_a_checkpoint_is_loaded_strictly_but_for_the_pooler_that_nothing_uses(tmp_path: Path) -> None:
    def without(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}

    def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As `Trainer` was seen to save them: under names that a load that isn't strict passes over."""
        return {name.replace("encoder.", "vision.", 1): tensor for name, tensor in weights.items()}

    like_microsofts = TrOcrEngine(settings(model=str(checkpoint(tmp_path / "a", without("pooler")))))
    (text,) = like_microsofts.read([page(draw_page(LINES[:1]))])
    assert [line.text for line in text.lines] == LINES[:1]
    for name, change in {"b": without("layer.1."), "c": renamed}.items():
        with pytest.raises(BadRequest, match=r"is no checkpoint of trocr's shape: \d+ weights are missing, such as"):
            TrOcrEngine(settings(model=str(checkpoint(tmp_path / name, change))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nowhere/at/all"}, "there is no such folder"),
        ({"device": "tpu"}, "neither cpu nor cuda"),
        ({"dtype": "int8"}, "one of float32, bfloat16, float16"),
        ({"batch_size": "-1"}, "a number of at least 0"),
        ({"beams": "4"}, "has no option 'beams'"),
    ],
)
def test_what_does_not_make_sense_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        TrOcrEngine(settings(**options))


def test_the_command_line_reads_pages_to_markdown(tmp_path: Path) -> None:
    lines = strings(9, seed=3)
    draw_page(lines, (640, 1100)).save(tmp_path / "page.png")
    draw_text(LINES[0], 4).save(tmp_path / "line.png")
    out = tmp_path / "run"
    asked = ["run", str(tmp_path / "page.png"), str(tmp_path / "line.png"), "--out", str(out), "--engine", "trocr"]
    options = ["--engine-option", f"model={TINY_TROCR}", "--engine-option", "device=cpu", "--no-report", "--json"]
    done = CliRunner().invoke(main, [*asked, *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["documents"]["ok"] == 2
    read = {document.name: document for document in open_run(str(out)).documents()}
    assert bare(read["line.png"].markdown) == LINES[0]
    assert error_rate([(bare(read["page.png"].markdown), "".join(lines))]) < 0.02
    result = Result.model_validate_json((out / "documents/page.png.json").read_text())
    assert (result.meta.engine, result.meta.model) == ("trocr", str(TINY_TROCR))
    assert "".join(line.text for line in result.pages[0].lines) == bare(
        result.extracted_markdown
    )  # layout ordered them
