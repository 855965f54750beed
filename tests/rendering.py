"""Draws text that the tiny models in `tests/assets` were taught to read, and measures how well it is read."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

ALPHABET = string.ascii_uppercase + string.digits
LOOK_ALIKE = "0OQUDEF1IT"  # in this font: they are what tiny models take for each other
DISTINCT = "".join(character for character in ALPHABET if character not in LOOK_ALIKE)
CELL = (6, 11)  # pixels of a character of Pillow's bundled fixed-pitch font
CARD = (128, 32)  # what tiny-hunyuan reads, and everything is shrunk to for it


def fresh_strings(count: int, seed: int, shortest: int = 3, longest: int = 8, alphabet: str = ALPHABET) -> list[str]:
    """Random strings; there are so many that those of a test were hardly ever seen in training."""
    chance = random.Random(seed)
    return ["".join(chance.choices(alphabet, k=chance.randint(shortest, longest))) for _ in range(count)]


def draw_text(text: str, scale: int = 2, ink: int = 0, paper: int = 255) -> Image.Image:
    """The text alone, without a margin: CELL x scale pixels a character."""
    picture = Image.new("L", (CELL[0] * len(text), CELL[1]), paper)
    ImageDraw.Draw(picture).text((0, 0), text, fill=ink, font=ImageFont.load_default_imagefont())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def draw_card(text: str, at: tuple[int, int] = (3, 2), ink: int = 0, paper: int = 255) -> Image.Image:
    """An RGB picture of CARD's size with at most eight characters, fifteen pixels wide each."""
    drawn = draw_text(text, 1, ink, paper).resize((15 * len(text), 28), Image.Resampling.BICUBIC)
    card = Image.new("RGB", CARD, (paper, paper, paper))
    card.paste(drawn, at)
    return card


def draw_page(
    lines: Sequence[str], size: tuple[int, int] = (640, 480), scale: int = 4, left: int = 40, top: int = 40
) -> Image.Image:
    """An RGB page with a line of text below the other, one and a half lines apart."""
    page = Image.new("RGB", size, "white")
    for number, text in enumerate(lines):
        page.paste(draw_text(text, scale), (left, top + number * CELL[1] * scale * 5 // 2))
    return page
