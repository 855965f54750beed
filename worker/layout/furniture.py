"""Running heads, feet, page numbers and stamps in the margin: told by their place, their form and their repetition."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from worker.contract import Role
from worker.layout.geometry import Box, Row, rows_of, unit_of

_ZONE = 0.16  # of the page's height, at its head and at its foot: where a repeated line is furniture
_NUMBER = re.compile(
    r"[-–—~·.|\[(\s]*(?:p(?:age|g)?\.?\s*)?(?:\d{1,4}|[ivxlcdm]{1,7}|[A-Z]{1,2}-?\d{1,3})(?:\s*(?:of|/|von|de)\s*\d{1,4})?[-–—~·.|\])\s]*", re.I
)
_SIGNS = re.compile(
    r"https?:|www\.|\bdoi\b|\bissn\b|©|\(c\)\s*\d{4}|copyright|all rights reserved|downloaded from|arxiv:|"
    r"\bvol(?:ume)?\.?\s*\d|\bno\.\s*\d+.*\d{4}|\bpp?\.\s*\d|\bjournal of\b|proceedings of|confidential",
    re.I,
)
_CERTAIN = re.compile(r"downloaded (?:from|by)\b.*\b(?:https?:|www\.|\d{4})|^arxiv:\d{4}\.\d", re.I)
_STAMP = re.compile(r"downloaded from|arxiv:\s*\d|https?://|www\.|copyright|©|protected by|\bguest\b", re.I)


def furniture_of(pages: Sequence[Sequence[Box]], heights: Sequence[int], slips: Sequence[bool]) -> list[dict[int, Role]]:
    """For each page, the roles of its furniture by the index of its box.

    `heights` are the pages' heights in pixels; `slips` says which pages are receipts or the like, whose first and last
    lines are content.
    """
    repeated = _repeated(pages, heights)
    roles = []
    for boxes, height, slip, known in zip(pages, heights, slips, repeated, strict=True):
        found = dict(known)
        index = {id(box): n for n, box in enumerate(boxes)}
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
            if y < _ZONE or y > 1 - _ZONE:
                key = _key(box.text)
                for bucket in {int(y * 50), int(y * 50 + 0.5) + 1000}:
                    places[key, bucket].append((page, n, y))
    roles: list[dict[int, Role]] = [{} for _ in pages]
    for (key, _), found in places.items():
        seen = sorted({page for page, _, _ in found})
        for page, n, y in found:
            near = sum(1 for other in seen if other != page and abs(other - page) <= 6)
            if near >= 2 or (near == 1 and len(pages) <= 3):
                role = Role.PAGE_NUMBER if is_page_number(pages[page][n].text) else None
                roles[page][n] = role or (Role.PAGE_HEADER if y < 0.5 else Role.PAGE_FOOTER)
    return roles


def _key(text: str) -> str:
    return re.sub(r"[^\w#]+", "", re.sub(r"\d+", "#", text.lower()))


def _by_form(boxes: Sequence[Box], height: int) -> dict[Box, Role]:
    """What one page alone makes very likely: its outermost rows, where their form and distance say so."""
    upright = [box for box in boxes if box.upright]
    rows = rows_of(upright)
    if len(rows) < 6:
        return {}
    unit = unit_of(upright)
    pitch = _pitch(upright, unit)
    left, right = min(row.x0 for row in rows), max(row.x1 for row in rows)
    dense = sum(row.x1 - row.x0 > 0.6 * (right - left) for row in rows) >= 12
    found: dict[Box, Role] = {}
    for order, head in ((rows, True), (rows[::-1], False)):
        for outer, inner in zip(order[:3], order[1:4], strict=False):
            role = Role.PAGE_HEADER if head else Role.PAGE_FOOTER
            gap = abs(inner.y - outer.y)
            marked = _row_roles(outer, role, gap, pitch, unit, dense, (left, right), height)
            if not marked:
                break
            found.update(marked)
    return found


def _row_roles(
    row: Row, role: Role, gap: float, pitch: float, unit: float, dense: bool, extent: tuple[float, float], height: int
) -> dict[Box, Role]:
    left, right = extent
    numbers = [box for box in (row.boxes[0], row.boxes[-1]) if is_page_number(box.text)]
    text = " ".join(box.text for box in row.boxes)
    low = row.height < 1.25 * unit
    if len(row.boxes) == 1 and numbers:
        box = row.boxes[0]
        middle = abs(box.centre - (left + right) / 2) < 0.12 * (right - left)
        side = box.x0 < left + 2 * unit or box.x1 > right - 2 * unit
        return {box: Role.PAGE_NUMBER} if gap > 1.15 * pitch and (middle or side) else {}
    wide = row.x1 - row.x0 > 0.5 * (right - left)
    if numbers and len(row.boxes) <= 4 and len(text) < 90 and wide and gap > 1.05 * pitch and dense:
        return {box: Role.PAGE_NUMBER if is_page_number(box.text) else role for box in row.boxes}
    if _CERTAIN.search(text):
        return {box: role for box in row.boxes}
    if _SIGNS.search(text) and len(text) < 160 and gap > 1.2 * pitch and low:
        return {box: role for box in row.boxes}
    edge = row.y < 0.1 * height if role is Role.PAGE_HEADER else row.y > 0.93 * height
    sentence = re.search(r"[.:;,]$", text) or re.match(r"[\d*†‡]", text)
    if dense and edge and low and gap > 1.6 * pitch and len(text) < 80 and not sentence:
        return {box: role for box in row.boxes}
    return {}


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
