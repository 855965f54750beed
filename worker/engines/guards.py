"""Guards of what reads pages: how a model's loop is told from honest repetition and a page tried after one; and a page
that any reader can read, to tell whether it is the reader that fails or the page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.engines import PageImage

# Of the attempts at one page. A first reading is the likeliest one; a loop is left only with some chance (olmOCR and
# Chandra raise the temperature likewise).
TEMPERATURES: tuple[float, ...] = (0.0, 0.3, 0.6)

# What a page can hold of the same thing, over and over. A4 at 7 points has some 120 rows, a sheet of small labels 65
# times three lines; a leader or a field of a form has at most a line's characters, a row of a table some dozens of
# cells. A loop goes on past all of them, until something stops it.
SAME_LINES = 200  # lines, list items or table rows
SAME_IN_LINE = 1000  # characters without a line's end, a tag counting as two: dots, underscores, cells of zeros ...
SAME_WORDS_IN_LINE = 400  # ... and where there are letters in it
SAME_TEXT = 8_000  # characters of something longer with letters in it, that comes eight times or more ...
SAME_TABLE = 24_000  # ... and of numbers or short cells: 120 rows of fourteen "0.00" take 23,040 as HTML
SHORT_CELL = 16  # characters, such as "Not applicable"
COPIES = 8
LONGEST_UNIT = SAME_TABLE // COPIES

_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_LINE_END = re.compile(r"\n|</tr>|</li>|</p>|</div>|<br")
_CELL_END = re.compile(r"\||</t[dh]>")
_LETTER = re.compile(r"[^\W\d_]")


def repeating_tail(text: str) -> int | None:
    """Where a repetition begins that a loop makes: `text[:index]` has the repeated piece once. None where the text
    ends in no loop; what repeats as a table of zeros, a dotted leader or a form does is none.

    Takes time in proportion to the text's length, and of a long text without a loop only to `SAME_TABLE`.
    """
    tail = text[: -SAME_TABLE - LONGEST_UNIT - 1 : -1]  # reversed: what repeats at the end is a prefix that comes again
    matches = _prefix_matches(tail, LONGEST_UNIT)
    for period in range(1, len(matches)):
        extent = period + matches[period]
        if extent >= 2 * period and extent >= SAME_LINES and _is_loop(tail[:period][::-1], extent):
            begin = len(text) - extent
            while begin > 0 and text[begin - 1] == text[begin - 1 + period]:
                begin -= 1
            return begin + period
    return None


def control_page() -> PageImage:
    """A word in large print."""
    import numpy as np
    from PIL import Image, ImageDraw

    from worker.engines import PageImage

    picture = Image.new("RGB", (480, 160), "white")
    ImageDraw.Draw(picture).text((60, 40), "CONTROL", fill="black", font_size=72)
    return PageImage(1, np.asarray(picture))


def _is_loop(unit: str, extent: int) -> bool:
    """Whether `unit`, over and over for `extent` characters, is more than a page can hold."""
    copies = extent / len(unit)
    if copies < COPIES:
        return False
    letters = _LETTER.search(_TAG.sub("", unit)) is not None
    first, *rest = _LINE_END.split(unit)
    rows = [*rest[:-1], rest[-1] + first] if rest else []  # the last one goes on where the unit begins again
    if lines := sum(1 for row in rows if row.strip()):
        return copies * lines > SAME_LINES or extent >= (
            SAME_TABLE if not letters or _has_short_cells(rows) else SAME_TEXT
        )
    return copies * len(_TAG.sub("··", unit)) > (SAME_WORDS_IN_LINE if letters else SAME_IN_LINE)


def _has_short_cells(rows: list[str]) -> bool:
    """Whether these are rows of a table that a page may hold many of, as one of fourteen times "N/A"."""
    cells = [cell for row in rows for cell in _CELL_END.split(row)]
    return len(cells) > 2 * len(rows) and all(len(_TAG.sub("", cell).strip()) <= SHORT_CELL for cell in cells)


def _prefix_matches(text: str, most: int) -> list[int]:
    """How many characters from each of the first positions on are those that the text begins with (Z-algorithm)."""
    size = len(text)
    matches = [size] + [0] * min(most, size - 1) if text else []
    left = right = 0
    for position in range(1, len(matches)):
        length = min(right - position, matches[position - left]) if position < right else 0
        while position + length < size and text[length] == text[position + length]:
            length += 1
        if position + length > right:
            left, right = position, position + length
        matches[position] = length
    return matches
