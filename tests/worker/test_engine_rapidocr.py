"""The default engine on small pages: what it reads, how it turns them, what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.corpus import noisy
from worker.engines import EngineSettings, PageImage, PageText
from worker.engines.rapidocr import RapidOcrEngine
from worker.errors import BadRequest

LETTER = ["Dear grandmother,", "the biscuits came out well.", "I used 350 g of flour", "and forgot the butter."]
CJK_FONTS = [
    Path("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc"),
    Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc"),
]


@pytest.fixture(scope="module")
def engine() -> RapidOcrEngine:
    return RapidOcrEngine(EngineSettings(threads=2))


def page(image: Image.Image, number: int = 1) -> PageImage:
    return PageImage(number, np.asarray(image.convert("RGB")))


def type_lines(lines: Sequence[str], size: tuple[int, int] = (600, 300), font_size: int = 32) -> Image.Image:
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        draw.text((40, 30 + row * 2 * font_size), line, fill="black", font=ImageFont.load_default(font_size))
    return image


def texts(text: PageText) -> list[str]:
    """Lines from top to bottom."""
    assert text.error is None
    ordered = sorted(text.lines, key=lambda line: line.polygon[0][1] if line.polygon else 0)
    return [line.text for line in ordered]


def squeezed(lines: Sequence[str]) -> str:
    return "".join(lines).replace(" ", "")


def test_lines_have_text_confidence_and_a_polygon_around_their_ink(engine: RapidOcrEngine) -> None:
    image = type_lines(LETTER)
    (text,) = engine.read([page(image)])
    assert (text.width, text.height, text.rotation, text.markdown) == (600, 300, 0, None)
    assert squeezed(texts(text)) == squeezed(LETTER)
    first = min(text.lines, key=lambda line: line.polygon[0][1] if line.polygon else 0)
    assert first.confidence is not None
    assert first.confidence > 0.9
    assert first.confidence == round(first.confidence, 4)
    left, top, right, bottom = ImageDraw.Draw(image).textbbox((40, 30), LETTER[0], ImageFont.load_default(32))
    expected = [(left, top), (right, top), (right, bottom), (left, bottom)]  # clockwise from the top left
    assert first.polygon is not None
    assert len(first.polygon) == 4
    for (x, y), (expected_x, expected_y) in zip(first.polygon, expected, strict=True):
        assert abs(x - expected_x) < 16
        assert abs(y - expected_y) < 16


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_page_is_turned_upright(engine: RapidOcrEngine, degrees: int) -> None:
    turned = type_lines(LETTER).rotate(degrees, expand=True)  # counterclockwise: as many degrees clockwise undo it
    (text,) = engine.read([page(turned)])
    assert text.rotation == degrees
    assert (text.width, text.height) == (600, 300)
    assert squeezed(texts(text)) == squeezed(LETTER)
    assert all(0 <= x < 600 and 0 <= y < 300 for line in text.lines for x, y in line.polygon or [])


def test_a_page_with_little_or_odd_text_is_left_as_it_lies(engine: RapidOcrEngine) -> None:
    pages = [
        type_lines(["1608"], (300, 200)),
        type_lines(["1608"], (300, 200)).rotate(90, expand=True),
        type_lines(["Total: € 1.234,56", "-------- 100 % ----", "*** 16.91 / 69 ***", "++ 8008 // 0880 ++"]),
    ]
    assert [text.rotation for text in engine.read([page(image) for image in pages])] == [0, 0, 0]


def test_vertical_writing_is_read_without_turning_the_page(engine: RapidOcrEngine) -> None:
    font = next((path for path in CJK_FONTS if path.exists()), None)
    if font is None:
        pytest.skip("no font with Chinese characters on this machine")
    columns = ["今天天氣很好我們去公園散步", "文字識別系統將圖像轉換文本", "保持原有的閱讀順序看花聽鳥"]
    image = Image.new("RGB", (300, 560), "white")
    for number, column in enumerate(columns):
        for row, character in enumerate(column):
            place = (220 - 80 * number, 30 + 38 * row)
            ImageDraw.Draw(image).text(place, character, fill="black", font=ImageFont.truetype(font, 32))
    upright, lying = engine.read([page(image), page(image.rotate(180))])
    assert (upright.rotation, lying.rotation) == (0, 180)
    assert sorted(line.text for line in upright.lines) == sorted(columns)

    rows = Image.new("RGB", (560, 300), "white")
    for number, row_text in enumerate(columns):
        ImageDraw.Draw(rows).text((30, 30 + 80 * number), row_text, fill="black", font=ImageFont.truetype(font, 38))
    (turned,) = engine.read([page(rows.rotate(270, expand=True))])
    assert turned.rotation == 270
    assert texts(turned) == columns


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (10, 1000), (1000, 10)])
def test_tiny_and_skinny_pages_are_no_error(engine: RapidOcrEngine, size: tuple[int, int]) -> None:
    (text,) = engine.read([page(noisy(size))])
    assert text.error is None
    assert (text.width, text.height) == size


def test_a_lone_line_without_margins_is_found(engine: RapidOcrEngine) -> None:
    strip = type_lines(["the biscuits came out well"], (600, 90)).crop((30, 24, 600, 74))
    (text,) = engine.read([page(strip)])
    assert squeezed(texts(text)) == "thebiscuitscameoutwell"
    assert all(0 <= x < 570 and 0 <= y < 50 for line in text.lines for x, y in line.polygon or [])


def test_threads_read_the_same_as_one_after_another(engine: RapidOcrEngine) -> None:
    pages = [page(type_lines([LETTER[index % 4], f"page {index}"], (400 + 60 * index, 200))) for index in range(4)]
    alone = [engine.read([each])[0] for each in pages]
    with ThreadPoolExecutor(engine.concurrency) as threads:
        together = [texts_of_one[0] for texts_of_one in threads.map(lambda each: engine.read([each]), pages)]
    assert together == alone


def test_onnxruntime_reads_the_same_text() -> None:
    other = RapidOcrEngine(EngineSettings(threads=2, options={"backend": "onnxruntime"}))
    (text,) = other.read([page(type_lines(LETTER))])
    assert squeezed(texts(text)) == squeezed(LETTER)


def test_without_openvino_onnxruntime_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it raises ImportError
    (text,) = RapidOcrEngine(EngineSettings(threads=2)).read([page(type_lines(LETTER[:1]))])
    assert squeezed(texts(text)) == squeezed(LETTER[:1])
    with pytest.raises(BadRequest, match="backend=onnxruntime"):
        RapidOcrEngine(EngineSettings(threads=2, options={"backend": "openvino"}))


@pytest.mark.parametrize("lang", ["ru", "ko", "ar", "en,ru", "klingon"])
def test_a_language_it_cannot_read_is_refused(lang: str) -> None:
    with pytest.raises(BadRequest, match="choose another engine"):
        RapidOcrEngine(EngineSettings(threads=1, lang=lang))


def test_options_are_checked(engine: RapidOcrEngine) -> None:
    with pytest.raises(BadRequest, match="'colour'"):
        RapidOcrEngine(EngineSettings(threads=1, options={"colour": "red"}))
    with pytest.raises(BadRequest, match=r"'paddle'.*openvino, onnxruntime"):
        RapidOcrEngine(EngineSettings(threads=1, options={"backend": "paddle"}))
    assert RapidOcrEngine(EngineSettings(threads=1, lang="de, zh-TW")).revision == engine.revision


def test_the_package_whose_weights_are_used_is_never_imported(engine: RapidOcrEngine) -> None:
    assert engine.revision is not None
    assert engine.revision.startswith("rapidocr-")
    assert "rapidocr" not in sys.modules
