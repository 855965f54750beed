"""Documents that tests read: ordinary ones of every format, odd ones, malformed ones, and ones that make
`tests.worker.faulty_decoder` misbehave. All are made here, in milliseconds, with the standard library and Pillow."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from worker.contract import FailureCode

# The colours of `quarters`: top left, top right, bottom left, bottom right.
QUARTERS = ((200, 30, 30), (30, 160, 30), (30, 30, 200), (240, 240, 240))


def write(folder: Path) -> dict[str, int | FailureCode]:
    """Write every document of `CASES`; their names, with the number of pages or the failure that is right for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, _) in CASES.items():
        (folder / name).write_bytes(make())
    return {name: expected for name, (_, expected) in CASES.items()}


def text_image(text: str = "Total 42.00", size: tuple[int, int] = (400, 120)) -> Image.Image:
    """Black on white, large enough for any engine."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((20, 20), text, "black", font=ImageFont.load_default(40))
    return image


def quarters(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """An RGB image that shows how it was turned or recoloured."""
    image = Image.new("RGB", size)
    width, height = size[0] // 2, size[1] // 2
    for i, colour in enumerate(QUARTERS):
        image.paste(colour, (i % 2 * width, i // 2 * height, (i % 2 + 1) * width, (i // 2 + 1) * height))
    return image


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file; `kind` in Pillow's names."""
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(orientation: int) -> bytes:
    """A JPEG that shows `quarters` once its EXIF orientation is applied."""
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = quarters() if stored is None else quarters().transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, "JPEG", quality=95, subsampling=0, exif=exif)


def frames(count: int, kind: str = "TIFF", **options: Any) -> bytes:
    """`count` frames that say which they are, as a TIFF, a GIF or a WebP."""
    first, *others = (text_image(f"Frame {i + 1}") for i in range(count))
    return encode(first, kind, save_all=True, append_images=others, **options)


def gray16(kind: str, bits: int = 16) -> bytes:
    """64 x 8 pixels, dark to light from left to right over the full range of `bits`, stored in 16."""
    full = (1 << bits) - 1
    row = b"".join(struct.pack("<H", round(x * full / 63)) for x in range(64))
    return encode(Image.frombytes("I;16", (64, 8), row * 8), kind)


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG (PNG specification, section 5) of raw `rows`, each with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return _png_file(header, zlib.compress(rows))


def rgb16_png() -> bytes:
    """64 x 1 pixels of 16 bits a channel: red rises, green falls, blue is half."""
    pixels = b"".join(struct.pack(">HHH", x * 65535 // 63, 65535 - x * 65535 // 63, 32768) for x in range(64))
    return png(64, 1, depth=16, colour=2, rows=b"\0" + pixels)


def png_bomb(side: int = 50_000) -> bytes:
    """A valid black image, `side` pixels square: 300 kB that decode to 2.5 gigapixels."""
    return _png_file(struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), _zeros((side // 8 + 1) * side))


def tiff_bomb(side: int = 50_000) -> bytes:
    """The same as a TIFF of one deflated strip."""
    data = _zeros((side + 7) // 8 * side)
    tags = [(256, 4, side), (257, 4, side), (258, 3, 1), (259, 3, 8), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, side), (279, 4, len(data))]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + directory + bytes(4)


def pdf(
    pages: Sequence[str | bytes],
    *,
    size: tuple[float, float] = (595, 842),
    page_keys: str = "",
    encrypt: bool = False,
) -> bytes:
    """A PDF with one page for each text (lines at newlines, Helvetica 24) or content stream (bytes).

    `page_keys` go into each page's dictionary. `encrypt` asks for the password "secret" to open it.
    """
    kids = " ".join(f"{3 + 2 * i + 1} 0 R" for i in range(len(pages)))
    media_box = f"[0 0 {size[0]} {size[1]}]"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}/MediaBox{media_box}>>".encode(),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for i, page in enumerate(pages):
        content = page if isinstance(page, bytes) else _text_content(page, size[1])
        keys = f"/Parent 2 0 R/Resources<</Font<</F1 3 0 R>>>>/Contents {3 + 2 * i + 2} 0 R{page_keys}"
        objects += [
            f"<</Type/Page{keys}>>".encode(),
            b"<</Length %d>>stream\n%b\nendstream" % (len(content), content),
        ]
    trailer = b"/Root 1 0 R"
    if encrypt:
        objects.append(_encryption(b"secret"))
        trailer += b"/Encrypt %d 0 R/ID[<%b><%b>]" % (len(objects), _ID.hex().encode(), _ID.hex().encode())
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return data + b"xref\n0 %d\n0000000000 65535 f \n%btrailer<</Size %d%b>>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        table,
        len(objects) + 1,
        trailer,
        len(data),
    )


def text_pdf(count: int) -> bytes:
    """Pages that say "Page 1" and so on."""
    return pdf([f"Page {i + 1}" for i in range(count)])


def form_pdf() -> bytes:
    """One blank page with a highlight annotation (left, red) and a filled-in text field (right, blue)."""

    def appearance(colour: str) -> bytes:
        stream = f"{colour} rg 0 0 100 100 re f".encode()
        return b"<</Type/XObject/Subtype/Form/BBox[0 0 100 100]/Length %d>>stream\n%b\nendstream" % (
            len(stream),
            stream,
        )

    objects = [
        b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[5 0 R]>>>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 100]/Annots[4 0 R 5 0 R]>>",
        b"<</Type/Annot/Subtype/Stamp/Rect[0 0 100 100]/F 4/AP<</N 6 0 R>>>>",
        b"<</Type/Annot/Subtype/Widget/FT/Tx/T(name)/V(Ada)/Rect[200 0 300 100]/F 4/P 3 0 R/AP<</N 7 0 R>>>>",
        appearance("1 0 0"),
        appearance("0 0 1"),
    ]
    data = b"%PDF-1.4\n" + b"".join(b"%d 0 obj%b\nendobj\n" % (i, body) for i, body in enumerate(objects, 1))
    return data + b"trailer<</Root 1 0 R>>\n%%EOF\n"  # no table of offsets: readers rebuild it


def broken_page_pdf() -> bytes:
    """Three pages, of which the second isn't a page."""
    return text_pdf(3).replace(b"6 0 obj<</Type/Page/", b"6 0 obj[</Type/Page/", 1)


def faulty(fault: str, page: int = 1, pages: int = 1) -> bytes:
    """A PDF at whose page `tests.worker.faulty_decoder` shows the fault; for the real decoder it is in order."""
    return text_pdf(pages) + f"%FAULT {fault} {page}\n".encode()


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/document.xml", "<w:document/>")
    return buffer.getvalue()


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def noisy(size: tuple[int, int] = (600, 400)) -> Image.Image:
    """Content that doesn't compress, so that half a file is far from the end of its pixels. Always the same."""
    return Image.frombytes("L", size, random.Random(1).randbytes(size[0] * size[1])).convert("RGB")


def palette_with_transparency() -> bytes:
    """Left half red, right half transparent."""
    image = Image.new("P", (64, 32), 1)
    image.putpalette([0, 255, 0, 255, 0, 0])
    image.paste(0, (32, 0, 64, 32))
    return encode(image, "PNG", transparency=0)


CASES: dict[str, tuple[Callable[[], bytes], int | FailureCode]] = {
    "plain.png": (lambda: encode(text_image(), "PNG"), 1),
    "plain.jpg": (lambda: encode(text_image(), "JPEG"), 1),
    "plain.webp": (lambda: encode(text_image(), "WEBP"), 1),
    "plain.gif": (lambda: encode(text_image(), "GIF"), 1),
    "plain.bmp": (lambda: encode(text_image(), "BMP"), 1),
    "plain.tiff": (lambda: encode(text_image(), "TIFF"), 1),
    "plain.heic": (lambda: encode(text_image(), "HEIF"), 1),
    "plain.avif": (lambda: encode(text_image(), "AVIF"), 1),
    "plain.pdf": (lambda: text_pdf(1), 1),
    "frames.tiff": (lambda: frames(3), 3),
    "fax.tiff": (lambda: encode(text_image().convert("1"), "TIFF", compression="group4"), 1),
    "animation.gif": (lambda: frames(3, "GIF"), 1),
    "animation.webp": (lambda: frames(3, "WEBP"), 1),
    "three pages.pdf": (lambda: text_pdf(3), 3),
    "late header.pdf": (lambda: b"\n" * 900 + text_pdf(1), 1),
    "rotated.jpg": (lambda: oriented(6), 1),
    "cmyk.jpg": (lambda: encode(quarters().convert("CMYK"), "JPEG"), 1),
    "gray16.png": (lambda: gray16("PNG"), 1),
    "gray16.tiff": (lambda: gray16("TIFF"), 1),
    "rgb16.png": (rgb16_png, 1),
    "palette.png": (palette_with_transparency, 1),
    "alpha.png": (lambda: encode(Image.new("RGBA", (64, 32), (255, 0, 0, 128)), "PNG"), 1),
    "one pixel.png": (lambda: encode(Image.new("RGB", (1, 1)), "PNG"), 1),
    "strip.png": (lambda: encode(text_image(size=(12_000, 120)), "PNG"), 1),
    "really a jpeg.pdf": (lambda: encode(text_image(), "JPEG"), 1),
    "no extension": (lambda: encode(text_image(), "PNG"), 1),
    "truncated.png": (lambda: half(encode(noisy(), "PNG")), FailureCode.CORRUPT),
    "truncated.jpg": (lambda: half(encode(noisy(), "JPEG")), FailureCode.CORRUPT),
    "truncated progressive.jpg": (lambda: half(encode(noisy(), "JPEG", progressive=True)), FailureCode.CORRUPT),
    "truncated.webp": (lambda: half(encode(noisy(), "WEBP")), FailureCode.CORRUPT),
    "truncated.gif": (lambda: half(encode(noisy(), "GIF")), FailureCode.CORRUPT),
    "truncated.bmp": (lambda: half(encode(noisy(), "BMP")), FailureCode.CORRUPT),
    "truncated.tiff": (lambda: half(encode(noisy(), "TIFF", compression="tiff_lzw")), FailureCode.CORRUPT),
    "truncated.heic": (lambda: half(encode(noisy(), "HEIF")), FailureCode.CORRUPT),
    "truncated.avif": (lambda: half(encode(noisy(), "AVIF")), FailureCode.CORRUPT),
    "truncated.pdf": (lambda: half(text_pdf(1)), FailureCode.CORRUPT),
    "encrypted.pdf": (lambda: pdf(["Secret"], encrypt=True), FailureCode.ENCRYPTED),
    "no pages.pdf": (lambda: pdf([]), FailureCode.EMPTY),
    "nothing.jpg": (lambda: b"", FailureCode.EMPTY),
    "bomb.png": (png_bomb, FailureCode.TOO_LARGE),
    "bomb.tiff": (tiff_bomb, FailureCode.TOO_LARGE),
    "random.png": (lambda: hashlib.shake_256(b"random").digest(5000), FailureCode.UNSUPPORTED_FORMAT),
    "page.html": (lambda: b"<!DOCTYPE html><p>Total 42.00</p>", FailureCode.UNSUPPORTED_FORMAT),
    "letter.docx": (zip_file, FailureCode.UNSUPPORTED_FORMAT),
    "notes.txt": (lambda: b"Total 42.00\n", FailureCode.UNSUPPORTED_FORMAT),
}

# PDF 1.7, algorithm 3.2: pads passwords to 32 bytes.
_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
_ID = b"corpus of tests."


def _png_file(header: bytes, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@cache
def _zeros(count: int) -> bytes:
    """`count` zero bytes as a zlib stream (RFC 1950): one flushed megabyte of them, over and over."""
    block = bytes(1 << 20)
    deflate = zlib.compressobj(9, wbits=-15)
    repeated = deflate.compress(block) + deflate.flush(zlib.Z_FULL_FLUSH)
    rest = deflate.compress(bytes(count % len(block))) + deflate.flush()
    # Adler-32 of n zeros: the first sum stays 1, the second counts them, both modulo 65,521.
    checksum = struct.pack(">HH", count % 65521, 1)
    return b"\x78\xda" + repeated * (count // len(block)) + rest + checksum


def _text_content(text: str, height: float) -> bytes:
    lines = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)").split("\n")
    shown = " T* ".join(f"({line}) Tj" for line in lines)
    return f"BT /F1 24 Tf 30 TL 60 {height - 90:g} Td {shown} ET".encode("cp1252")


def _encryption(password: bytes) -> bytes:
    """The dictionary of the standard handler, 40-bit RC4 (PDF 1.7, algorithms 3.2 to 3.4)."""
    padded = (password + _PADDING)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    permissions = struct.pack("<i", -4)
    user = _rc4(hashlib.md5(padded + owner + permissions + _ID).digest()[:5], _PADDING)
    return b"<</Filter/Standard/V 1/R 2/P -4/O<%b>/U<%b>>>" % (owner.hex().encode(), user.hex().encode())


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
