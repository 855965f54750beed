"""The decoding process, `python -m worker.decoding SETTINGS`: opens one document after the other and writes its pages'
pixels to stdout. It may crash, hang or run out of memory: `worker.decode` is its parent and the judge of that."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import math
import os
import resource
import signal
import struct
import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

# A page tree or a chain of TIFF directories can name the same page over and over: a few bytes, millions of pages.
MAX_PAGES = 100_000

# A PDF page that would come out smaller than this on its longest side is enlarged, at most to the double: scans of
# small books declare pages of 6 x 10 cm, and at 200 DPI their print is too small to be read without errors.
SMALL_PAGE_SIDE = 1200
MAX_ENLARGEMENT = 2.0

TRIM_ABOVE = 96 << 20  # bytes of resident memory; after an A4 page some 45 MiB are left

_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Settings:
    """What the parent passes as JSON in the first argument."""

    parent: int  # its process id
    dpi: int  # of PDF pages
    max_pixels: int  # an image with more is refused
    longest_side: int  # pixels; larger pages are scaled down
    memory: int  # MiB of address space


class Refused(Exception):
    """A document or page that can't be decoded; `code` is a value of `worker.contract.FailureCode`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Document(Protocol):
    """An open document. `page` may raise anything: what isn't `Refused` or `MemoryError` counts as corrupt."""

    total: int
    warnings: list[str]
    scaled_from: tuple[int, int] | None  # of the page that `page` gave last: see `worker.contract.Page`

    def page(self, number: int) -> Pixels: ...  # (height, width, 3) RGB, C-contiguous

    def close(self) -> None: ...


def main() -> None:
    """Serve requests until stdin ends.

    Requests are JSON lines: `{"open": path}`, then `{"read": [[first, last], ...]}`. Each answer is a frame: a
    big-endian uint32 length, that many bytes of JSON, and after a `page` its height x width x 3 bytes.
    """
    settings = Settings(**json.loads(sys.argv[1]))
    requests, frames = _private_pipes()
    _confine(settings)
    Image.MAX_IMAGE_PIXELS = None  # we have our own limit
    send(frames, kind="ready")
    document: Document | None = None
    try:
        for line in requests:
            request = json.loads(line)
            if "open" in request:
                if document is not None:
                    document.close()
                document = _serve_open(request["open"], settings, frames)
            elif document is not None:
                _serve_pages(document, request["read"], frames)
                document.close()
                document = None
                _give_back_memory()
    except MemoryError:
        send(frames, kind="memory")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)  # the parent is gone


def send(fd: int, pixels: Pixels | None = None, **header: object) -> None:
    """Write one frame; blocks while the pipe is full."""
    text = json.dumps(header).encode()
    _write(fd, memoryview(struct.pack(">I", len(text)) + text))
    if pixels is not None:
        _write(fd, memoryview(pixels.data).cast("B"))


def open_document(path: str, settings: Settings) -> Document:
    """Open by content. Decodes nothing yet, but refuses an image with too many pixels. Raises Refused."""
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except FileNotFoundError as error:
        raise Refused("not_found", f"{error.strerror}: there is no such file") from error
    except OSError as error:
        raise Refused("access_denied", f"the file can't be read: {error.strerror}") from error
    if not head:
        raise Refused("empty", "the file is empty (0 bytes)")
    kind = sniff(head)
    if kind is None:
        supported = "PNG, JPEG, WebP, TIFF, GIF, BMP, HEIC, AVIF and PDF"
        raise Refused("unsupported_format", f"the content looks like {describe(head)}; supported are {supported}")
    return PdfDocument(path, settings) if kind == "PDF" else ImageDocument(path, kind, settings)


def sniff(head: bytes) -> str | None:
    """The format that a file's first 1,024 bytes show, in Pillow's names or "PDF"; None where it is not supported."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[14:18] in _BMP_HEADERS:
        return "BMP"
    if head[4:8] == b"ftyp":  # ISO/IEC 14496-12: the major brand, a version, then the compatible brands
        size = int.from_bytes(head[:4], "big")
        brands = {head[8:12]} | {head[at : at + 4] for at in range(16, min(size, len(head)), 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & _HEIF_BRANDS:
            return "HEIF"
    if b"%PDF-" in head:  # PDF 1.7, annex H.3.4.1: readers accept the header anywhere within the first 1,024 bytes
        return "PDF"
    return None


def describe(head: bytes) -> str:
    """What an unsupported file looks like, for the message."""
    for magic, name in _LOOK_ALIKES:
        if head.startswith(magic):
            return name
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML"
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "SVG"
    if text.startswith(b"<?xml"):
        return "XML"
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return "plain text"
    return f"nothing known (it starts with the bytes {head[:8].hex(' ')})"


def is_blank(image: Image.Image) -> bool:
    """Whether a page shows nothing but paper: a uniform colour with scan noise or soft shading.

    Errs towards False: one printed digit is content. Looks for 8 x 8 tiles in which several neighbouring pixels stand
    out from their surroundings by more than noise does.
    """
    factor = max(1, round(max(image.size) / 1100))  # averages noise away; a digit's strokes stay wider than a pixel
    gray = (image.reduce(factor) if factor > 1 else image).convert("L")
    if min(gray.size) >= 200:  # scanner edges; text isn't printed there
        border = min(gray.size) // 64
        gray = gray.crop((border, border, gray.width - border, gray.height - border))
    values = np.asarray(gray, dtype=np.int16)
    surroundings = np.asarray(
        gray.reduce(16).resize(gray.size, Image.Resampling.BILINEAR) if min(gray.size) >= 64 else _flat(gray),
        dtype=np.int16,
    )
    deviation = np.abs(values - surroundings)
    noise = 1.4826 * float(np.median(deviation))  # standard deviation, from the median absolute deviation
    outstanding = deviation > min(max(20.0, 6 * noise), 60.0)
    height, width = outstanding.shape
    padded = np.pad(outstanding, ((0, -height % 8), (0, -width % 8)))
    tiles = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8).sum(axis=(1, 3))
    return int(tiles.max()) < 5


class PdfDocument:
    """Pages rendered by PDFium, annotations and form fields included, one at a time."""

    warnings: list[str] = []
    scaled_from: tuple[int, int] | None = None  # points have no pixels

    def __init__(self, path: str, settings: Settings) -> None:
        import pypdfium2
        import pypdfium2.raw as pdfium

        self._settings = settings
        # Not through pypdfium2's class: it asks for the last error of a PDF without pages too, which is an older one's.
        handle = pdfium.FPDF_LoadDocument(os.fsencode(path) + b"\0", None)
        if not handle:
            match pdfium.FPDF_GetLastError():
                case pdfium.FPDF_ERR_PASSWORD:
                    raise Refused("encrypted", "the PDF asks for a password: decrypt it first")
                case pdfium.FPDF_ERR_SECURITY:
                    raise Refused(
                        "encrypted", "the PDF is encrypted in a way that PDFium doesn't know: decrypt it first"
                    )
                case error:
                    raise Refused("corrupt", f"PDFium can't open the PDF (its error {error}): it is damaged")
        self._pdf = pypdfium2.PdfDocument(handle)
        self.total = len(self._pdf)
        if self.total == 0:
            self._pdf.close()
            raise Refused("empty", "the PDF has no pages")
        if self._pdf.get_formtype() != pdfium.FORMTYPE_NONE:
            self._pdf.init_forms()

    def page(self, number: int) -> Pixels:
        page = self._pdf[number - 1]
        try:
            bitmap = page.render(scale=self._scale(*page.get_size()), rev_byteorder=True)
            try:
                return np.ascontiguousarray(bitmap.to_numpy())  # the buffer is Python's and outlives the bitmap
            finally:
                bitmap.close()
        finally:
            page.close()

    def _scale(self, width: float, height: float) -> float:
        """Pixels per point (1/72 inch), within the limits for the page's longest side and its pixels."""
        if not (width > 0 and height > 0 and math.isfinite(width * height)):
            raise Refused("corrupt", f"the page measures {width:g} x {height:g} points")
        longest = max(width, height)
        scale = self._settings.dpi / 72
        if longest * scale < SMALL_PAGE_SIDE:
            scale = min(SMALL_PAGE_SIDE / longest, MAX_ENLARGEMENT * scale)
        within_side = (self._settings.longest_side - 0.01) / longest  # pypdfium2 rounds sides up
        within_pixels = math.sqrt(self._settings.max_pixels / (width * height))
        return min(scale, within_side, within_pixels)

    def close(self) -> None:
        self._pdf.close()


class ImageDocument:
    """Images through Pillow: all frames of a TIFF, the first or only one of the others (animations have no pages)."""

    def __init__(self, path: str, kind: str, settings: Settings) -> None:
        self._settings = settings
        self._kind = kind
        self.warnings: list[str] = []
        self.scaled_from: tuple[int, int] | None = None
        _load_plugin(kind)
        self.total = count_tiff_frames(path) if kind == "TIFF" else 1
        try:
            self._image = Image.open(path, formats=[kind])
            if self.total == 1:
                self._check_size()
            if kind != "TIFF" and getattr(self._image, "is_animated", False):
                self.warnings.append("an animation or a collection of images: only its first image was read")
        except (MemoryError, Refused):
            raise
        except UnidentifiedImageError as error:  # its message is our file's path
            raise Refused("corrupt", f"the file starts like {kind}, but what follows is damaged") from error
        except Exception as error:
            raise Refused("corrupt", f"the {kind} image can't be opened: {_reason(error)}") from error

    def page(self, number: int) -> Pixels:
        if self._kind == "TIFF":
            self._image.seek(number - 1)
        self._check_size()
        limit = self._settings.longest_side
        size = self._image.size
        if self._kind == "JPEG" and max(self._image.size) > 2 * limit:
            self._image.draft(None, (limit * 2, limit * 2))  # decodes at 1/2, 1/4 or 1/8, never below this size
        self._image.load()
        orientation = _orientation(self._image)
        turn = _ORIENTATIONS.get(orientation)
        image = to_rgb(shrink(continuous(self._image), limit))
        image = image if turn is None else image.transpose(turn)
        upright = size[::-1] if orientation in _SIDEWAYS else size
        self.scaled_from = upright if max(size) > limit else None
        return np.asarray(image)

    def _check_size(self) -> None:
        width, height = self._image.size
        limit = self._settings.max_pixels
        if width * height > limit:
            message = f"{width} x {height} pixels are more than the limit of {limit:,}: raise --max-pixels"
            raise Refused("too_large", message)

    def close(self) -> None:
        self._image.close()


def continuous(image: Image.Image) -> Image.Image:
    """The image in a mode that can be resampled: L, LA, RGB, RGBA or CMYK. Deep gray is scaled to 8 bits, unclipped."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image)
    if image.mode in ("La", "RGBa"):
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode == "LAB":
        return image.getchannel(0)  # lightness is what can be read; Pillow has no direct way to RGB
    if image.mode == "PA" or image.has_transparency_data:
        return image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def shrink(image: Image.Image, longest_side: int) -> Image.Image:
    """The image, scaled down where its longest side is longer than this."""
    ratio = longest_side / max(image.size)
    if ratio >= 1:
        return image
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white."""
    if image.mode not in ("LA", "RGBA"):
        return image.convert("RGB")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return paper


def count_tiff_frames(path: str) -> int:
    """Length of the chain of image file directories (TIFF 6.0, section 2; BigTIFF), a broken last link included.

    Pillow's own count fails as a whole where one directory is broken.
    """
    with open(path, "rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        count_format, entry_size, offset_format, at = ("Q", 20, "Q", 8) if big else ("H", 12, "I", 4)
        count_format, offset_format = order + count_format, order + offset_format
        seen: set[int] = set()
        with contextlib.suppress(struct.error, OverflowError, OSError):  # the chain leads out of the file
            (offset,) = struct.unpack_from(offset_format, head, at)
            while offset and offset not in seen and len(seen) <= MAX_PAGES:
                seen.add(offset)
                file.seek(offset)
                (entries,) = struct.unpack(count_format, file.read(struct.calcsize(count_format)))
                file.seek(entries * entry_size, os.SEEK_CUR)
                (offset,) = struct.unpack(offset_format, file.read(struct.calcsize(offset_format)))
    return max(1, len(seen))


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_BMP_HEADERS = tuple(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_LOOK_ALIKES = (
    (b"PK\x03\x04", "a ZIP archive or an Office document"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document"),
    (b"{\\rtf", "RTF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "a Photoshop image"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"AT&TFORM", "DjVu"),
    (b"\x1f\x8b", "gzip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "RAR"),
)

# EXIF 2.3, tag 0x0112: how to turn the stored image to see it upright.
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


def _serve_open(path: str, settings: Settings, frames: int) -> Document | None:
    try:
        document = open_document(path, settings)
    except Refused as refused:
        send(frames, kind="error", code=refused.code, message=str(refused))
        return None
    if document.total > MAX_PAGES:
        message = f"the document claims to have more than {MAX_PAGES:,} pages"
        send(frames, kind="error", code="too_large", message=message)
        document.close()
        return None
    send(frames, kind="opened", total=document.total, warnings=document.warnings)
    return document


def _serve_pages(document: Document, ranges: list[tuple[int, int]], frames: int) -> None:
    for first, last in ranges:
        for number in range(first, last + 1):
            try:
                pixels = document.page(number)
                blank = is_blank(Image.fromarray(pixels))
            except MemoryError:
                raise
            except Refused as refused:
                send(frames, kind="bad", number=number, code=refused.code, message=str(refused))
            except Exception as error:
                message = f"page {number} can't be decoded: {_reason(error)}"
                send(frames, kind="bad", number=number, code="corrupt", message=message)
            else:
                height, width, _ = pixels.shape
                scaled_from = document.scaled_from
                header = {"number": number, "width": width, "height": height, "scaled_from": scaled_from}
                send(frames, pixels, kind="page", blank=blank, **header)
                del pixels
                _give_back_memory()


def _give_back_memory() -> None:
    """Undo the heap's fragmentation once it is worth it: else a long PDF costs 100 kB a page, for good.

    Fixing glibc's threshold for mmap instead helps as well, but makes each page slower by a third.
    """
    if sys.platform == "linux":
        with open("/proc/self/statm", "rb") as file:
            resident = int(file.read().split()[1]) * resource.getpagesize()
        if resident > TRIM_ABOVE and hasattr(_LIBC, "malloc_trim"):  # musl has none
            _LIBC.malloc_trim(0)


def _private_pipes() -> tuple[IO[bytes], int]:
    """Our stdin and stdout under other numbers: whatever a library prints goes to stderr instead."""
    requests, frames = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return requests, frames


def _confine(settings: Settings) -> None:
    """Limits that the kernel keeps, and an end together with the parent, which alone decides when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _limit(resource.RLIMIT_AS, settings.memory << 20)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 1 << 20)  # it writes no files; a chatty library must not fill the disk with stderr
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG of linux/prctl.h
        if os.getppid() != settings.parent:
            sys.exit(0)


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses to limit the address space
        resource.setrlimit(which, (value, value))


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _load_plugin(kind: str) -> None:
    """Make Pillow know this one format. One thread each: every core has its work already."""
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False)
        return
    plugin: Any = importlib.import_module(f"PIL.{'WebP' if kind == 'WEBP' else kind.title()}ImagePlugin")
    if kind == "AVIF":
        plugin.DEFAULT_MAX_THREADS = 1


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata (which raises all kinds of errors) is no reason to lose the picture
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits, or of unknown range (32-bit integers, floats), as L."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        values, full = values - low, high - low
    elif image.mode == "F" and high <= 1:
        full = 1.0
    elif image.mode in ("I", "F") and high <= 255:
        full = 255.0
    else:
        full = 4095.0 if 255 < high <= 4095 else 65535.0  # 12 bits of a scanner or a camera in a 16-bit file
    return Image.fromarray((np.nan_to_num(values) * np.float32(255 / full)).clip(0, 255).astype(np.uint8))


def _flat(gray: Image.Image) -> Image.Image:
    return Image.new("L", gray.size, int(np.median(np.asarray(gray))))


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


if __name__ == "__main__":
    main()
