"""Boxes of lines in a page's own, deskewed coordinates, and the visual rows they form."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from worker.contract import Line, Page

WIDE = re.compile(r"[\u2e80-\u303f\u3040-\u30ff\u31f0-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uff60\uffe0-\uffe6]")
_NUMERIC = re.compile(r"[\d.,:;/%()+\-−–—~*#$€£¥₩₹|\s]*\d[\d.,:;/%()+\-−–—~*#$€£¥₩₹|\s]*|[-–—−.]+|n/?a", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """Text in deskewed pixels: `x0..x1` along its baseline, `y` its middle, `height` across it; equal by identity."""

    lines: tuple[Line, ...]  # one, or an initial and the line that goes on beside it
    text: str
    x0: float
    x1: float
    y: float
    height: float
    upright: bool  # False: written along the page's side, from bottom to top or top to bottom

    @property
    def top(self) -> float:
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height / 2

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def centre(self) -> float:
        return (self.x0 + self.x1) / 2

    @property
    def letters(self) -> int:
        """Length of the text in half-width characters."""
        return len(self.text) + len(WIDE.findall(self.text))

    @property
    def advance(self) -> float:
        """Pixels of a half-width character."""
        return self.width / max(1, self.letters)

    @property
    def numeric(self) -> bool:
        return is_numeric(self.text)


def is_numeric(text: str) -> bool:
    """Figures, amounts and dashes as they stand in a table's cells: no letter but a currency's."""
    return _NUMERIC.fullmatch(re.sub(r"\b(?:RM|USD|EUR|GBP|CHF|KRW|JPY|Rs)\b\.?", "", text.strip())) is not None


def boxes_of(page: Page) -> list[Box]:
    """One box for each line that has a polygon, in an order that depends on nothing but their content and place."""
    lines = sorted(
        (line for line in page.lines if line.polygon),
        key=lambda line: (line.polygon or [], line.text, line.confidence or 0.0),
    )
    quads = [_corners(line) for line in lines]
    angle = _skew(quads)
    sine, cosine = math.sin(-angle), math.cos(-angle)
    boxes = []
    for line, quad in zip(lines, quads, strict=True):
        turned = [(x * cosine - y * sine, x * sine + y * cosine) for x, y in quad]
        boxes.append(_box(line, turned))
    return _with_initials(boxes)


def advance_of(boxes: Sequence[Box]) -> float:
    """The width of a half-width character in the page's plain text, in pixels."""
    return median([box.advance for box in boxes if box.upright and box.letters > 5] or [1.0])


def unit_of(boxes: Iterable[Box]) -> float:
    """The height of the page's plain text: the median over its characters, at least one pixel."""
    heights = sorted((box.height, max(1, len(box.text))) for box in boxes if box.upright)
    half = sum(weight for _, weight in heights) / 2
    for height, weight in heights:
        half -= weight
        if half <= 0:
            return max(1.0, height)
    return 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """Boxes that stand beside each other on one baseline, from left to right."""

    boxes: tuple[Box, ...]
    y: float
    height: float

    @property
    def x0(self) -> float:
        return self.boxes[0].x0

    @property
    def x1(self) -> float:
        return max(box.x1 for box in self.boxes)

    @property
    def centre(self) -> float:
        return (self.x0 + self.x1) / 2

    @property
    def advance(self) -> float:
        return sum(box.width for box in self.boxes) / max(1, self.letters)

    @property
    def letters(self) -> int:
        return sum(box.letters for box in self.boxes)


def rows_of(boxes: Sequence[Box]) -> list[Row]:
    """Groups boxes into visual rows, from top to bottom. A row is followed from box to box, even where it is curled."""
    rows: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: (box.x0, box.y)):
        best, distance = None, math.inf
        for row in rows:
            last = row[-1]
            off = abs(box.y - last.y)
            near = 0.5 * min(box.height, last.height)
            if off < near and off < distance and box.x0 > last.x1 - 0.8 * min(box.height, 0.5 * box.width + 1):
                best, distance = row, off
        if best is None:
            rows.append([box])
        else:
            best.append(box)
    made = [Row(tuple(row), _mean_y(row), median(box.height for box in row)) for row in rows]
    return sorted(made, key=lambda row: (row.y, row.x0))


def _with_initials(boxes: list[Box]) -> list[Box]:
    """Puts an initial that is several lines high before the first of the lines beside it, as one word."""
    unit = unit_of(boxes)
    for initial in [box for box in boxes if len(box.text.strip()) == 1 and box.text.strip().isalpha()]:
        if not 1.7 * unit < initial.height < 8 * unit or not initial.upright:
            continue
        beside = [
            box
            for box in boxes
            if box.height < 0.75 * initial.height
            and -0.5 * unit < box.x0 - initial.x1 < 1.5 * unit
            and initial.top - 0.5 * unit < box.y < initial.bottom
        ]
        if len(beside) > 1:
            first = min(beside, key=lambda box: box.y)
            whole = Box(
                initial.lines + first.lines,
                initial.text.strip() + first.text.lstrip(),
                first.x0,
                first.x1,
                first.y,
                first.height,
                upright=True,
            )
            boxes = [whole if box is first else box for box in boxes if box is not initial]
    return boxes


def _mean_y(row: Sequence[Box]) -> float:
    weight = sum(box.width for box in row)
    return sum(box.y * box.width for box in row) / weight if weight else row[0].y


def _corners(line: Line) -> list[tuple[float, float]]:
    """Top left, top right, bottom right, bottom left; of any other polygon its bounding box."""
    points = line.polygon or []
    if len(points) == 4:
        return [(float(x), float(y)) for x, y in points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return [(min(xs), min(ys)), (max(xs), min(ys)), (max(xs), max(ys)), (min(xs), max(ys))]


def _skew(quads: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The angle of the baselines in radians: the median of the wide quads' own, weighted by their length."""
    angles = []
    for (ax, ay), (bx, by), (cx, cy), (dx, dy) in quads:
        x, y = (bx + cx - ax - dx) / 2, (by + cy - ay - dy) / 2
        length, height = math.hypot(x, y), math.hypot(dx - ax, dy - ay)
        if length > 3 * height and x > 0:
            angles.append((math.atan2(y, x), length))
    angles.sort()
    half = sum(length for _, length in angles) / 2
    for angle, length in angles:
        half -= length
        if half <= 0:
            return angle if abs(angle) < math.radians(30) else 0.0
    return 0.0


def _box(line: Line, quad: Sequence[tuple[float, float]]) -> Box:
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = quad
    along, across = math.hypot(bx - ax, by - ay), math.hypot(dx - ax, dy - ay)
    if abs(by + cy - ay - dy) > abs(bx + cx - ax - dx):  # written upwards or downwards
        xs, ys = [ax, bx, cx, dx], [ay, by, cy, dy]
        return Box((line,), line.text, min(xs), max(xs), sum(ys) / 4, max(1.0, along), upright=False)
    upright = not (across > 2 * along and len(line.text.strip()) > 2 and not WIDE.search(line.text))
    x0, x1 = sorted(((ax + dx) / 2, (bx + cx) / 2))
    height = (math.hypot(dx - ax, dy - ay) + math.hypot(cx - bx, cy - by)) / 2
    return Box((line,), line.text, x0, x1, (ay + by + cy + dy) / 4, max(1.0, height), upright)
