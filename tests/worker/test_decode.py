"""Decoding through the real child process: what comes out of every kind of document, and what a bad one costs."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.TiffImagePlugin import TiffImageFile

from tests import corpus
from tests.conftest import ends
from worker import decoding
from worker.contract import FailureCode, Options
from worker.decode import LAST_PAGE, BadPage, DecodedPage, Decoder, format_pages, parse_pages
from worker.errors import DocumentError, WorkerError

FAULTY = "tests.worker.faulty_decoder"
OPTIONS = Options(dpi=72, decode_memory=1024)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(OPTIONS, longest_side=1000) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def faulty() -> Iterator[Decoder]:
    with Decoder(OPTIONS.model_copy(update={"decode_memory": 320}), longest_side=300, module=FAULTY) as decoder:
        yield decoder


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes], str]:
    def save(data: bytes) -> str:
        path = tmp_path / "document"
        path.write_bytes(data)
        return str(path)

    return save


def pixels(decoder: Decoder, path: str) -> np.ndarray:
    """Of the document's only page."""
    (page,) = decoder.pages(path)
    assert isinstance(page, DecodedPage)
    assert page.image.number == 1
    return page.image.pixels


def outcomes(decoder: Decoder, path: str, pages: str | None = None) -> list[int | FailureCode]:
    """Page numbers; a code where a page is bad."""
    return [page.code if isinstance(page, BadPage) else page.image.number for page in decoder.pages(path, pages)]


def failure(decoder: Decoder, path: str, pages: str | None = None) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        list(decoder.pages(path, pages))
    return caught.value


def colours(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """At the middle of each quarter, as in `corpus.QUARTERS`."""
    height, width, _ = pixels.shape
    return [tuple(pixels[y * height // 4, x * width // 4].tolist()) for y in (1, 3) for x in (1, 3)]


def assert_quarters(pixels: np.ndarray, tolerance: int = 12) -> None:
    assert np.abs(np.array(colours(pixels)) - np.array(corpus.QUARTERS)).max() <= tolerance


class TestEveryKind:
    @pytest.mark.parametrize("name", corpus.CASES)
    def test_outcome(self, decoder: Decoder, save: Callable[[bytes], str], name: str) -> None:
        make, expected = corpus.CASES[name]
        path = save(make())
        if isinstance(expected, FailureCode):
            error = failure(decoder, path)
            assert error.code is expected
            assert path not in error.message
        else:
            assert outcomes(decoder, path) == list(range(1, expected + 1))
            assert decoder.count(path) == expected

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG", "HEIF", "AVIF"])
    def test_colours_survive(self, decoder: Decoder, save: Callable[[bytes], str], kind: str) -> None:
        assert_quarters(pixels(decoder, save(corpus.encode(corpus.quarters(), kind))))

    def test_pages_are_contiguous_and_read_only(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        page = pixels(decoder, save(corpus.encode(corpus.quarters((33, 17)), "PNG")))
        assert page.shape == (17, 33, 3)
        assert page.dtype == np.uint8
        assert page.flags.c_contiguous
        assert not page.flags.writeable

    def test_unsupported_says_what_it_looks_like(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        message = failure(decoder, save(corpus.zip_file())).message
        assert "ZIP" in message
        assert "TIFF" in message

    def test_missing_file(self, decoder: Decoder, tmp_path: Path) -> None:
        assert failure(decoder, str(tmp_path / "nowhere")).code is FailureCode.NOT_FOUND


class TestImages:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, decoder: Decoder, save: Callable[[bytes], str], orientation: int) -> None:
        page = pixels(decoder, save(corpus.oriented(orientation)))
        assert page.shape == (64, 96, 3)
        assert_quarters(page)

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF"])
    def test_exif_orientation_of_other_formats(self, decoder: Decoder, save: Callable[[bytes], str], kind: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        stored = corpus.quarters().transpose(Image.Transpose.ROTATE_90)
        assert_quarters(pixels(decoder, save(corpus.encode(stored, kind, exif=exif))))

    def test_broken_exif_is_ignored(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        data = corpus.encode(
            corpus.quarters(), "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"
        )
        assert_quarters(pixels(decoder, save(data)))

    def test_cmyk(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        data = corpus.encode(corpus.quarters().convert("CMYK"), "JPEG", quality=95, subsampling=0)
        assert_quarters(pixels(decoder, save(data)))

    @pytest.mark.parametrize("mode", ["LAB", "YCbCr"])
    def test_rare_colour_spaces(self, decoder: Decoder, save: Callable[[bytes], str], mode: str) -> None:
        image = Image.new(mode, (40, 40), (255, 128, 128))
        assert pixels(decoder, save(corpus.encode(image, "TIFF"))).min() >= 250

    @pytest.mark.parametrize("bits", [12, 16])
    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_deep_gray_keeps_its_range(
        self, decoder: Decoder, save: Callable[[bytes], str], kind: str, bits: int
    ) -> None:
        row = pixels(decoder, save(corpus.gray16(kind, bits)))[0, :, 0].astype(int)
        assert np.abs(row - np.linspace(0, 255, 64)).max() <= 1

    @pytest.mark.parametrize(("mode", "full"), [("I", 255), ("I", 65535), ("F", 1), ("F", 255), ("F", 1e9)])
    def test_gray_of_unknown_range(
        self, decoder: Decoder, save: Callable[[bytes], str], mode: str, full: float
    ) -> None:
        ramp = np.tile(np.linspace(0, full, 64), (8, 1)).astype(np.int32 if mode == "I" else np.float32)
        row = pixels(decoder, save(corpus.encode(Image.fromarray(ramp), "TIFF")))[0, :, 0].astype(int)
        assert np.abs(row - np.linspace(0, 255, 64)).max() <= 1

    def test_deep_colour_keeps_its_range(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        row = pixels(decoder, save(corpus.rgb16_png()))[0].astype(int)
        ramp = np.linspace(0, 255, 64)
        assert np.abs(row - np.stack([ramp, 255 - ramp, np.full(64, 128)], axis=1)).max() <= 1

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparent_becomes_white(self, decoder: Decoder, save: Callable[[bytes], str], mode: str) -> None:
        image = Image.new(mode, (64, 32))  # black, fully transparent
        image.paste((0, 0, 0, 128) if mode == "RGBA" else (0, 128), (32, 0, 64, 32))
        page = pixels(decoder, save(corpus.encode(image, "PNG")))
        assert page[16, 16].tolist() == [255, 255, 255]
        assert page[16, 48].tolist() == [127, 127, 127]

    def test_transparent_palette_entry_becomes_white(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        page = pixels(decoder, save(corpus.palette_with_transparency()))
        assert page[16, 16].tolist() == [255, 0, 0]
        assert page[16, 48].tolist() == [255, 255, 255]

    def test_one_bit(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        image = Image.new("1", (64, 32), 1)
        image.paste(0, (0, 0, 32, 32))
        page = pixels(decoder, save(corpus.encode(image, "TIFF", compression="group4")))
        assert (page[16, 16, 0], page[16, 48, 0]) == (0, 255)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
    def test_large_images_are_scaled_down(self, decoder: Decoder, save: Callable[[bytes], str], kind: str) -> None:
        page = pixels(decoder, save(corpus.encode(corpus.quarters((4500, 3000)), kind)))
        assert page.shape == (667, 1000, 3)
        assert_quarters(page)

    def test_extreme_aspect_keeps_a_pixel(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        assert pixels(decoder, save(corpus.encode(Image.new("RGB", (9000, 3)), "PNG"))).shape == (1, 1000, 3)

    def test_pixel_limit_is_inclusive(self, save: Callable[[bytes], str]) -> None:
        path = save(corpus.encode(corpus.quarters((100, 50)), "PNG"))
        with Decoder(OPTIONS.model_copy(update={"max_pixels": 5000}), longest_side=1000) as decoder:
            assert outcomes(decoder, path) == [1]
        with Decoder(OPTIONS.model_copy(update={"max_pixels": 4999}), longest_side=1000) as decoder:
            error = failure(decoder, path)
        assert error.code is FailureCode.TOO_LARGE
        assert "--max-pixels" in error.message

    def test_animation_is_its_first_frame_and_says_so(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        pages = decoder.pages(save(corpus.frames(3, "GIF")))
        assert len(pages.warnings) == 1
        assert len(list(pages)) == pages.total == 1


class TestTiff:
    def test_frames_are_told_apart(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        greys = [Image.new("L", (40 + i, 30), 60 * i) for i in range(4)]
        path = save(corpus.encode(greys[0], "TIFF", save_all=True, append_images=greys[1:]))
        pages = list(decoder.pages(path))
        assert [(p.image.width, int(p.image.pixels.mean())) for p in pages if isinstance(p, DecodedPage)] == [
            (40, 0), (41, 60), (42, 120), (43, 180),
        ]  # fmt: skip
        assert outcomes(decoder, path, "2,4") == [2, 4]

    @pytest.mark.parametrize("broken", ["pixels", "directory"])
    def test_a_broken_frame_costs_that_frame(self, decoder: Decoder, save: Callable[[bytes], str], broken: str) -> None:
        data = bytearray(corpus.frames(3, compression="tiff_lzw"))
        with Image.open(io.BytesIO(data)) as image:
            assert isinstance(image, TiffImageFile)
            image.seek(1)
            at = image.tag_v2.offset if broken == "directory" else image.tag_v2[273][0]
        if broken == "directory":
            at = data.index(struct.pack("<HHI", 262, 3, 1), at)  # what the values mean: made to say 99
            data[at + 8] = 99
        else:
            data[at : at + 200] = bytes(200)
        assert outcomes(decoder, save(bytes(data))) == [1, FailureCode.CORRUPT, 3]

    def test_a_chain_that_leaves_the_file_costs_what_is_behind(
        self, decoder: Decoder, save: Callable[[bytes], str]
    ) -> None:
        data = bytearray(corpus.frames(3))
        at = int.from_bytes(data[4:8], "little")
        end = at + 2 + 12 * int.from_bytes(data[at : at + 2], "little")
        data[end : end + 4] = (1 << 30).to_bytes(4, "little")
        assert outcomes(decoder, save(bytes(data))) == [1, FailureCode.CORRUPT]

    def test_a_chain_that_bites_its_tail_ends(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        data = bytearray(corpus.encode(corpus.text_image(), "TIFF"))
        at = int.from_bytes(data[4:8], "little")
        end = at + 2 + 12 * int.from_bytes(data[at : at + 2], "little")
        data[end : end + 4] = data[4:8]
        assert outcomes(decoder, save(bytes(data))) == [1]

    def test_each_frame_has_the_pixel_limit(self, save: Callable[[bytes], str]) -> None:
        small, large = Image.new("L", (50, 50)), Image.new("L", (51, 50))
        path = save(corpus.encode(small, "TIFF", save_all=True, append_images=[large, small]))
        with Decoder(OPTIONS.model_copy(update={"max_pixels": 2500}), longest_side=1000) as decoder:
            assert outcomes(decoder, path) == [1, FailureCode.TOO_LARGE, 3]


class TestPdf:
    def test_dpi(self, save: Callable[[bytes], str]) -> None:
        path = save(corpus.pdf([""], size=(720, 1440)))
        with Decoder(Options(dpi=100), longest_side=5000) as decoder:
            assert pixels(decoder, path).shape == (2000, 1000, 3)

    @pytest.mark.parametrize(
        ("size", "shape"),
        [
            ((612, 792), (1000, 773)),  # small ones are enlarged, here to the limit of the longest side
            ((180, 300), (600, 360)),  # at most to the double
            ((7200, 14400), (1000, 500)),
            ((14400, 3), (1, 1000)),
            ((3, 3), (6, 6)),
        ],
    )
    def test_page_sizes(
        self, decoder: Decoder, save: Callable[[bytes], str], size: tuple[float, float], shape: tuple[int, int]
    ) -> None:
        assert pixels(decoder, save(corpus.pdf(["x"], size=size))).shape[:2] == shape

    def test_pixel_limit_scales_down(self, save: Callable[[bytes], str]) -> None:
        with Decoder(Options(max_pixels=10_000), longest_side=1000) as decoder:
            height, width, _ = pixels(decoder, save(corpus.pdf(["x"]))).shape
        assert 9_000 < height * width < 10_400

    @pytest.mark.parametrize(("turn", "place"), [(0, (0, 0)), (90, (0, 1)), (180, (1, 1)), (270, (1, 0))])
    def test_rotation_is_honoured(
        self, decoder: Decoder, save: Callable[[bytes], str], turn: int, place: tuple[int, int]
    ) -> None:
        top_left = b"1 0 0 rg 0 150 100 150 re f"
        page = pixels(decoder, save(corpus.pdf([top_left], size=(200, 300), page_keys=f"/Rotate {turn}")))
        assert page.shape[:2] == ((400, 600) if turn in (90, 270) else (600, 400))
        row, column = place
        assert colours(page)[row * 2 + column] == (255, 0, 0)
        assert colours(page).count((255, 255, 255)) == 3

    def test_annotations_and_forms_are_shown(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        page = pixels(decoder, save(corpus.form_pdf()))
        middle = [page[page.shape[0] // 2, page.shape[1] * x // 6].astype(int) for x in (1, 3, 5)]
        assert middle[0].tolist() == [255, 0, 0]
        assert middle[1].tolist() == [255, 255, 255]
        assert middle[2][2] > middle[2][0] + 50  # PDFium lays its tint for form fields over the blue

    def test_a_broken_page_costs_that_page(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        path = save(corpus.broken_page_pdf())
        assert outcomes(decoder, path) == [1, FailureCode.CORRUPT, 3]
        assert failure(decoder, path, "2").code is FailureCode.CORRUPT

    def test_no_pages_after_an_encrypted_one(self, decoder: Decoder, tmp_path: Path) -> None:
        (tmp_path / "encrypted").write_bytes(corpus.pdf(["x"], encrypt=True))
        (tmp_path / "empty").write_bytes(corpus.pdf([]))
        assert failure(decoder, str(tmp_path / "encrypted")).code is FailureCode.ENCRYPTED
        assert failure(decoder, str(tmp_path / "empty")).code is FailureCode.EMPTY

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_many_pages_take_no_more_memory_than_few(self, save: Callable[[bytes], str]) -> None:
        path = save(corpus.text_pdf(800))
        with Decoder(Options(dpi=72), longest_side=800) as decoder:  # a size at which the heap fragments badly
            resident = [_resident(decoder) for _ in decoder.pages(path)]
        assert len(resident) == 800
        assert max(resident) < 120 * 1024


class TestSelection:
    def test_parse(self) -> None:
        assert parse_pages("7, 1-3,2 - 4,6") == [(1, 4), (6, 7)]
        assert parse_pages("5-") == [(5, LAST_PAGE)]
        assert format_pages(parse_pages("5-,1,2")) == "1-2,5-"

    @pytest.mark.parametrize("text", ["", "x", "0", "3-1", "-3", "1,,2", "1-2-3", "1.5"])
    def test_nonsense_is_named(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"is neither a page nor a range|pages count from 1"):
            parse_pages(text)

    def test_only_what_exists_is_read(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        pages = decoder.pages(save(corpus.text_pdf(7)), "6-9,2,12")
        assert pages.total == 7
        assert pages.warnings == ["pages 8-9,12 don't exist: the document has 7 pages"]
        assert [page.image.number for page in pages if isinstance(page, DecodedPage)] == [2, 6, 7]

    def test_open_end(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        pages = decoder.pages(save(corpus.text_pdf(4)), "3-")
        assert not pages.warnings
        assert len(list(pages)) == 2

    def test_none_exists(self, decoder: Decoder, save: Callable[[bytes], str]) -> None:
        path = save(corpus.encode(corpus.text_image(), "PNG"))
        failed = failure(decoder, path, "2-3")
        assert failed.code is FailureCode.NO_SUCH_PAGE
        assert failed.message == "pages 2-3 don't exist: the document has 1 page"
        assert failure(decoder, path, "9").message == "page 9 doesn't exist: the document has 1 page"
        assert outcomes(decoder, path) == [1]

    def test_leaving_early(self, decoder: Decoder, tmp_path: Path) -> None:
        (tmp_path / "long").write_bytes(corpus.text_pdf(50))
        (tmp_path / "short").write_bytes(corpus.text_pdf(2))
        assert isinstance(next(decoder.pages(str(tmp_path / "long"))), DecodedPage)
        assert outcomes(decoder, str(tmp_path / "short")) == [1, 2]


class TestBlank:
    """`decoding.is_blank`, called in this process."""

    SIZE = (1654, 2339)  # A4 at 200 DPI

    @pytest.fixture
    def scan(self) -> np.ndarray:
        """White paper as a scanner sees it: noise, and a lamp that fades towards one side."""
        noise = np.random.default_rng(1).normal(0, 6, (self.SIZE[1], self.SIZE[0]))
        return (np.linspace(250, 215, self.SIZE[0]) + noise).clip(0, 255).astype(np.uint8)

    @pytest.mark.parametrize("level", [0, 128, 255])
    def test_uniform(self, level: int) -> None:
        assert decoding.is_blank(Image.new("RGB", self.SIZE, (level,) * 3))

    def test_scanned_paper(self, scan: np.ndarray) -> None:
        assert decoding.is_blank(Image.fromarray(scan).convert("RGB"))
        strong = scan + np.random.default_rng(2).normal(0, 15, scan.shape)
        assert decoding.is_blank(Image.fromarray(strong.clip(0, 255).astype(np.uint8)).convert("RGB"))

    def test_scanned_paper_after_jpeg(self, decoder: Decoder, save: Callable[[bytes], str], scan: np.ndarray) -> None:
        (page,) = decoder.pages(save(corpus.encode(Image.fromarray(scan), "JPEG", quality=50)))
        assert isinstance(page, DecodedPage)
        assert page.blank

    @pytest.mark.parametrize("shade", [0, 150])
    @pytest.mark.parametrize("text", ["1", "7", "i", "of"])
    def test_one_small_word_on_scanned_paper(self, scan: np.ndarray, text: str, shade: int) -> None:
        image = Image.fromarray(scan).convert("RGB")
        word = Image.new("RGB", (80, 40), (235, 235, 235))
        ImageDraw.Draw(word).text((20, 5), text, (shade,) * 3, font=ImageFont.load_default(22))  # 8 points
        image.paste(word.filter(ImageFilter.GaussianBlur(0.7)), (800, 2230))
        assert not decoding.is_blank(image)

    def test_white_on_black(self) -> None:
        image = Image.new("RGB", self.SIZE)
        ImageDraw.Draw(image).text((800, 2230), "3", "white", font=ImageFont.load_default(22))
        assert not decoding.is_blank(image)

    def test_dense_picture(self) -> None:
        assert not decoding.is_blank(corpus.noisy((400, 400)).resize(self.SIZE))

    def test_a_line_of_text_cut_out(self) -> None:
        assert not decoding.is_blank(corpus.text_image(size=(300, 60)))

    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 5), (33, 16)])
    def test_tiny(self, size: tuple[int, int]) -> None:
        assert decoding.is_blank(Image.new("RGB", size, "white"))


class TestFaults:
    """A decoder that misbehaves costs the page it was at, or a document that has no other, and nothing else."""

    @pytest.mark.parametrize(
        ("fault", "code", "says"),
        [
            ("segfault", FailureCode.DECODER_CRASHED, "SIGSEGV"),
            ("abort", FailureCode.DECODER_CRASHED, "SIGABRT"),
            ("killed", FailureCode.DECODER_CRASHED, "out of memory"),
            ("exit", FailureCode.DECODER_CRASHED, "exit status 0"),
            ("garbage", FailureCode.DECODER_CRASHED, "senseless"),
            ("stutter", FailureCode.DECODER_CRASHED, "senseless"),
            ("memory", FailureCode.TOO_LARGE, "--decode-memory"),
            ("bad_alloc", FailureCode.TOO_LARGE, "--decode-memory"),
        ],
    )
    def test_costs_one_page(
        self, faulty: Decoder, save: Callable[[bytes], str], fault: str, code: FailureCode, says: str
    ) -> None:
        path = save(corpus.faulty(fault, page=3, pages=5))
        pages = list(faulty.pages(path))
        assert [page.code if isinstance(page, BadPage) else page.image.number for page in pages] == [1, 2, code, 4, 5]
        assert isinstance(bad := pages[2], BadPage)
        assert bad.number == 3
        assert says in bad.message

        single = failure(faulty, save(corpus.faulty(fault)))
        assert single.code is code
        assert says in single.message
        at_opening = failure(faulty, save(corpus.faulty(fault, page=0)))
        assert at_opening.code is code
        assert outcomes(faulty, save(corpus.text_pdf(2))) == [1, 2]

    def test_hang(self, save: Callable[[bytes], str]) -> None:
        path = save(corpus.faulty("hang", page=2, pages=3))
        with Decoder(OPTIONS, longest_side=300, module=FAULTY) as decoder:
            pages = decoder.pages(path)
            assert isinstance(next(pages), DecodedPage)
            assert decoder._child
            decoder._child._timeout = 0.2  # of this page alone: the others have time, however slow the machine
            bad = next(pages)
            assert isinstance(next(pages), DecodedPage)
        assert isinstance(bad, BadPage)
        assert bad.code is FailureCode.TIMEOUT
        assert "--page-timeout" in bad.message

    def test_the_time_that_the_reader_takes_does_not_count(
        self, save: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr("worker.decode.time", SimpleNamespace(monotonic=lambda: now))
        path = save(corpus.text_pdf(3))  # each page is larger than the pipe
        with Decoder(OPTIONS, longest_side=1000) as decoder:
            numbers = []
            for page in decoder.pages(path):
                assert isinstance(page, DecodedPage)
                assert page.image.pixels.nbytes > 1 << 20
                numbers.append(page.image.number)
                now += 2 * OPTIONS.page_timeout
        assert numbers == [1, 2, 3]

    def test_a_worn_out_child_is_not_the_documents_fault(self, faulty: Decoder, save: Callable[[bytes], str]) -> None:
        assert outcomes(faulty, save(corpus.faulty("worn_out", page=3, pages=4))) == [1, 2, 3, 4]

    def test_what_libraries_print_is_harmless(self, faulty: Decoder, save: Callable[[bytes], str]) -> None:
        assert outcomes(faulty, save(corpus.faulty("print_to_stdout", page=1, pages=2))) == [1, 2]

    def test_gives_up_after_three(self, faulty: Decoder, save: Callable[[bytes], str]) -> None:
        crashes = b"".join(b"%%FAULT segfault %d\n" % page for page in (2, 3, 4))
        pages = list(faulty.pages(save(corpus.text_pdf(6) + crashes)))
        assert [isinstance(page, DecodedPage) for page in pages] == [True, False, False, False, False, False]
        assert all(isinstance(page, BadPage) and page.code is FailureCode.DECODER_CRASHED for page in pages[1:])
        assert isinstance(pages[5], BadPage)
        assert "not tried" in pages[5].message

    def test_gives_up_on_a_document_of_which_nothing_came(self, faulty: Decoder, save: Callable[[bytes], str]) -> None:
        crashes = b"".join(b"%%FAULT segfault %d\n" % page for page in (1, 2, 3))
        assert failure(faulty, save(corpus.text_pdf(6) + crashes)).code is FailureCode.DECODER_CRASHED

    def test_a_child_that_cannot_start_is_not_the_documents_fault(
        self, save: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAULT", "startup")
        with (
            Decoder(OPTIONS, longest_side=300, module=FAULTY) as decoder,
            pytest.raises(WorkerError, match="no luck today"),
        ):
            decoder.pages(save(corpus.text_pdf(1)))

    def test_signals_are_the_parents_business(self, save: Callable[[bytes], str]) -> None:
        path = save(corpus.text_pdf(2))
        with Decoder(OPTIONS, longest_side=300) as decoder:
            pages = decoder.pages(path)
            child = _pid(decoder)
            os.kill(child, signal.SIGTERM)
            os.kill(child, signal.SIGINT)
            assert len(list(pages)) == 2
            assert _pid(decoder) == child

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ties a child's life to its parent's")
    def test_dies_with_its_parent_even_while_it_hangs(self, save: Callable[[bytes], str]) -> None:
        program = f"""
from worker.contract import Options
from worker.decode import Decoder
decoder = Decoder(Options(), longest_side=300, module={FAULTY!r})
pages = decoder.pages({save(corpus.faulty("hang"))!r})
print(decoder._child._process.pid, flush=True)
next(pages)
"""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            parent.kill()
        assert ends(child)


def _pid(decoder: Decoder) -> int:
    assert decoder._child is not None
    return decoder._child._process.pid


def _resident(decoder: Decoder) -> int:
    """KiB of memory that the child holds."""
    status = Path(f"/proc/{_pid(decoder)}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])
