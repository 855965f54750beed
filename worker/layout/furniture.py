"""Running heads, feet, page numbers and stamps in the margin: told by their place, their form and their repetition."""

from __future__ import annotations

import re
from bisect import bisect, bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from worker.contract import Role
from worker.layout.geometry import Box, Row, rows_of, unit_of

_ZONE = 0.16  # of the page's height, at its head and at its foot: where a repeated line is furniture
_OUTER_ROWS = 3  # how many rows of running heads, or feet, a page may have
_NEAR = 6  # pages: a head that changes with the chapter repeats within these
_NUMBER = re.compile(
    r"[-–—~·.|\[(\s]*(?:p(?:age|g)?\.?\s*)?(?:\d{1,4}|[ivxlcdm]{1,7}|[A-Z]{1,2}-?\d{1,3})"
    r"(?:\s*(?:of|/|von|de)\s*\d{1,4})?[-–—~·.|\])\s]*",
    re.I,
)
_SIGNS = re.compile(
    r"https?:|www\.|\bdoi\b|\bissn\b|©|\(c\)\s*\d{4}|copyright|all rights reserved|downloaded from|arxiv:|"
    r"\bvol(?:ume)?\.?\s*\d|\bno\.\s*\d+.*\d{4}|\bpp?\.\s*\d|\bjournal of\b|proceedings of|confidential",
    re.I,
)
_CERTAIN = re.compile(r"downloaded (?:from|by)\b.*\b(?:https?:|www\.|\d{4})|^arxiv:\d{4}\.\d", re.I)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_DATE = re.compile(rf"\b{_MONTH}[a-z]*\.?\s+\d|\d\s+{_MONTH}", re.I)
_STAMP = re.compile(r"downloaded from|arxiv:\s*\d|https?://|www\.|copyright|©|protected by|\bguest\b", re.I)


def furniture_of(
    pages: Sequence[Sequence[Box]], heights: Sequence[int], slips: Sequence[bool]
) -> list[dict[int, Role]]:
    """For each page, the roles of its furniture by the index of its box.

    `heights` are the pages' heights in pixels; `slips` says which pages are receipts or the like, whose first and last
    lines are content.
    """
    repeated = _repeated(pages, heights)
    roles = []
    for boxes, height, slip, known in zip(pages, heights, slips, repeated, strict=True):
        index = {id(box): n for n, box in enumerate(boxes)}
        found = {} if slip else _outermost(boxes, known, index)
        for box in boxes:
            if not box.upright and _STAMP.search(box.text):
                found[index[id(box)]] = Role.PAGE_FOOTER
        if not slip:
            rest = [box for n, box in enumerate(boxes) if n not in found]
            for box, role in _by_form(rest, height).items():
                found[index[id(box)]] = role
        roles.append(found)
    return roles


def is_page_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def _repeated(pages: Sequence[Sequence[Box]], heights: Sequence[int]) -> list[dict[int, Role]]:
    """Lines that stand at the same place on other pages near by, with the same words but for their figures."""
    places: dict[tuple[str, int], list[tuple[int, int, float]]] = defaultdict(list)  # → page, box, relative height
    for page, (boxes, height) in enumerate(zip(pages, heights, strict=True)):
        for n, box in enumerate(boxes):
            y = box.y / max(1, height)
            if y < _ZONE or y > 1 - _ZONE or not box.upright:
                key = _key(box.text)
                for bucket in {int(y * 50), int(y * 50 + 0.5) + 1000}:
                    places[key, bucket].append((page, n, y))
    roles: list[dict[int, Role]] = [{} for _ in pages]
    for found in places.values():
        seen = sorted({page for page, _, _ in found})
        for page, n, y in found:
            near = bisect(seen, page + _NEAR) - bisect_left(seen, page - _NEAR) - 1
            if near >= 2 or (near == 1 and len(pages) <= 4):
                role = Role.PAGE_NUMBER if is_page_number(pages[page][n].text) else None
                roles[page][n] = role or (Role.PAGE_HEADER if y < 0.5 else Role.PAGE_FOOTER)
    return roles


def _outermost(boxes: Sequence[Box], repeated: dict[int, Role], index: dict[int, int]) -> dict[int, Role]:
    """Of the repeated lines those in a page's outer rows, clear of the text: a form's labels repeat all over it."""
    upright = [box for box in boxes if box.upright]
    found = {n: role for n, role in repeated.items() if not boxes[n].upright}
    if len(found) == len(repeated):
        return found
    rows = rows_of(upright)
    pitch = _pitch(upright, unit_of(upright))
    for order in (rows, rows[::-1]):
        run = 0
        while run < len(order) and any(index[id(box)] in repeated for box in order[run].boxes):
            run += 1
        if run == len(order):
            continue  # nothing but what repeats
        if run > _OUTER_ROWS or len(upright) < 2 * run:
            gaps = [abs(order[n].y - order[n + 1].y) > 1.3 * pitch for n in range(_OUTER_ROWS)]
            run = max((n + 1 for n, clear in enumerate(gaps) if clear), default=0)
        for row in order[:run]:
            found |= {n: repeated[n] for box in row.boxes if (n := index[id(box)]) in repeated}
    return found


def _key(text: str) -> str:
    return re.sub(r"[^\w#]+", "", re.sub(r"\d+", "#", text.lower()))


@dataclass(frozen=True)
class _Sheet:
    """What the judgement of an outer row needs to know of its page; all in pixels."""

    height: int
    unit: float  # height of plain text
    pitch: float
    left: float
    right: float
    dense: bool  # a full page of running text


def _by_form(boxes: Sequence[Box], height: int) -> dict[Box, Role]:
    """What one page alone makes very likely: its outermost rows, where their form and distance say so."""
    upright = [box for box in boxes if box.upright]
    rows = rows_of(upright)
    if len(rows) < 6:
        return {}
    unit = unit_of(upright)
    left, right = min(row.x0 for row in rows), max(row.x1 for row in rows)
    dense = sum(box.letters >= 30 for box in upright) >= 12
    sheet = _Sheet(height, unit, _pitch(upright, unit), left, right, dense)
    found: dict[Box, Role] = {}
    for judge in (_by_sign, _by_distance):
        for order, role in ((rows, Role.PAGE_HEADER), (rows[::-1], Role.PAGE_FOOTER)):
            left_over = [row for row in order if row.boxes[0] not in found]
            for outer, inner in pairwise(left_over[: _OUTER_ROWS + 1]):
                numbered = any(known is Role.PAGE_NUMBER for known in found.values())
                if not judge(outer, inner, role, sheet, numbered):
                    break
                found |= {box: Role.PAGE_NUMBER if is_page_number(box.text) else role for box in outer.boxes}
    return found


def _by_sign(row: Row, inner: Row, role: Role, sheet: _Sheet, numbered: bool) -> bool:
    """A page number, alone or at either end of a row; words that only stand in heads and feet."""
    text = " ".join(box.text for box in row.boxes)
    gap = abs(inner.y - row.y)
    if _CERTAIN.search(text):
        return True
    if _SIGNS.search(text) and len(text) < 160 and gap > 1.2 * sheet.pitch and row.height < 1.25 * sheet.unit:
        return True
    if not any(is_page_number(box.text) for box in (row.boxes[0], row.boxes[-1])):
        return False
    if len(row.boxes) == 1:
        middle = abs(row.centre - (sheet.left + sheet.right) / 2) < 0.12 * (sheet.right - sheet.left)
        side = row.x0 < sheet.left + 2 * sheet.unit or row.x1 > sheet.right - 2 * sheet.unit
        return gap > 1.15 * sheet.pitch and (middle or side)
    wide = row.x1 - row.x0 > 0.5 * (sheet.right - sheet.left)
    return sheet.dense and wide and len(row.boxes) <= 4 and len(text) < 90 and gap > 1.05 * sheet.pitch


def _by_distance(row: Row, inner: Row, role: Role, sheet: _Sheet, numbered: bool) -> bool:
    """A short row at the edge of a full page, well clear of the text, of a page that goes on from another one."""
    text = " ".join(box.text for box in row.boxes)
    head = role is Role.PAGE_HEADER
    at_edge = row.y < 0.1 * sheet.height if head else row.y > 0.92 * sheet.height
    small = row.height < 0.8 * sheet.unit
    clear = abs(inner.y - row.y) > (1.3 if small else 1.6) * sheet.pitch and row.height < 1.25 * sheet.unit
    if not (sheet.dense and at_edge and clear) or len(text) > 80:
        return False
    if re.search(r"[.:;,]$", text) or _DATE.search(text) or (not head and re.match(r"[\d*†‡]", text)):
        return False  # a sentence, a letter's date, a footnote
    corners = len(row.boxes) > 1 and row.x1 - row.x0 > 0.5 * (sheet.right - sheet.left)
    goes_on = head and inner.boxes[0].text[:1].islower()
    return numbered or corners or goes_on or small


def _pitch(boxes: Sequence[Box], unit: float) -> float:
    """The usual distance from a line to the one below it in its column, in pixels."""
    ordered = sorted(boxes, key=lambda box: box.y)
    steps = []
    for n, box in enumerate(ordered):
        for below in ordered[n + 1 : n + 24]:
            if below.y - box.y > 0.5 * unit and min(box.x1, below.x1) > max(box.x0, below.x0):
                steps.append(below.y - box.y)
                break
    return max(median(steps), unit) if steps else 1.4 * unit
