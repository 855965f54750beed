"""Reading order: a page's boxes into flows, each of which reads row by row.

A gutter is a strip that few lines cross and that has running text on both sides. The lines that do cross it (titles,
full-width tables) cut the page into bands; within a band the left side is read before the right one, and each side may
have gutters of its own."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import median

from worker.layout.geometry import Box

_TRIM = 0.3  # of the text's height: detectors draw boxes a little wider than the ink
_NARROWEST = 0.35  # of the text's height: a gutter, after trimming both sides' boxes
_CANDIDATES = 12


def flows_of(boxes: Sequence[Box], unit: float) -> list[list[Box]]:
    """Boxes in groups to be read one after the other; `unit` is the height of the page's plain text in pixels."""
    bands = _best_bands(boxes, unit)
    if bands is None:
        return [list(boxes)]
    flows = []
    for left, right in bands:
        flows += flows_of(left, unit)
        if right:
            flows += flows_of(right, unit)
    return flows


Band = tuple[list[Box], list[Box]]  # left and right of the gutter; all in the first where the band has none


def _best_bands(boxes: Sequence[Box], unit: float) -> list[Band] | None:
    best, most = None, 0
    for start, end in _strips(boxes, unit):
        bands, lines = _bands(boxes, start, end, unit)
        if lines > most:
            best, most = bands, lines
    return best


def _strips(boxes: Sequence[Box], unit: float) -> list[tuple[float, float]]:
    """Candidates for a gutter: strips crossed by fewer boxes than what is beside them, the least crossed first."""
    if len(boxes) < 4:
        return []
    trim = _TRIM * unit
    events = sorted(
        [(box.x0 + trim, 1) for box in boxes if box.width > 2 * trim]
        + [(box.x1 - trim, -1) for box in boxes if box.width > 2 * trim]
    )
    counted: list[tuple[int, float, float]] = []  # boxes that cross, start, end
    crossing = 0
    for (x, step), (following, _) in pairwise(events):
        crossing += step
        if following > x:
            counted.append((crossing, x, following))
    strips = []
    for i in range(1, len(counted) - 1):
        crossing, start, end = counted[i]
        if end - start >= _NARROWEST * unit and counted[i - 1][0] > crossing < counted[i + 1][0]:
            strips.append((crossing, start - end, start, end))
    return [(start, end) for _, _, start, end in sorted(strips)[:_CANDIDATES]]


def _bands(boxes: Sequence[Box], start: float, end: float, unit: float) -> tuple[list[Band], int]:
    """The bands that a gutter makes, and how many lines stand in those that have it."""
    trim = _TRIM * unit
    spanning = sorted((box for box in boxes if box.x0 + trim < start and box.x1 - trim > end), key=lambda box: box.y)
    heights = [box.y for box in spanning]
    sides: list[Band] = [([], []) for _ in range(len(spanning) + 1)]
    for box in boxes:
        if not (box.x0 + trim < start and box.x1 - trim > end):
            sides[bisect(heights, box.y)][0 if box.centre < (start + end) / 2 else 1].append(box)
    columns = [_is_columns(left, right) for left, right in sides]
    if not any(columns):
        return [], 0
    bands: list[Band] = []
    plain: list[Box] = []
    lines = 0
    for i, (left, right) in enumerate(sides):
        if columns[i] or _may_be_columns(left, right):
            heads = _heads(left + right, spanning[i], unit) if i < len(spanning) else []
            left, right = ([box for box in side if box not in heads] for side in (left, right))
            if plain:
                bands.append((plain, []))
            bands.append((left, right))
            lines += len(left) + len(right)
            plain = list(heads)
        else:
            plain += left + right
        if i < len(spanning):
            plain.append(spanning[i])
    if plain:
        bands.append((plain, []))
    return bands, lines


def _heads(boxes: Sequence[Box], spanning: Box, unit: float) -> list[Box]:
    """The few lines at a band's end that stand clear of its columns, near the line that spans them: they go with it."""
    below = sorted(boxes, key=lambda box: -box.y)
    for n, box in enumerate(below[:3]):
        gap = box.top - max((above.bottom for above in below[n + 1 :]), default=box.top)
        if spanning.top - below[0].bottom > 2.5 * unit:
            break
        if gap > 1.5 * unit and gap > spanning.top - below[0].bottom:
            return below[: n + 1]
    return []


def _is_columns(left: Sequence[Box], right: Sequence[Box]) -> bool:
    """Whether both sides are running text of their own, rather than the cells of rows."""
    if min(len(left), len(right)) < 3 or max(_numeric(left), _numeric(right)) >= 0.5:
        return False
    if min(_beside(left, right), _beside(right, left)) < 3:
        return False
    letters = min(_usual_letters(left), _usual_letters(right))
    full = min(_fullness(side, max(b.x1 for b in side) - min(b.x0 for b in side)) for side in (left, right))
    if letters >= 14 and full >= 0.5:
        return True
    even = min(_fullness(side, _usual_width(side)) for side in (left, right))  # a side may hold several columns
    if (letters >= 20 and even >= 0.5) or (letters >= 25 and full >= 0.3):
        return True
    if _aligned(left, right) >= 0.7:
        return False
    return (letters >= 10 and min(len(left), len(right)) >= 5) or _is_prose(left) or _is_prose(right)


def _is_prose(boxes: Sequence[Box]) -> bool:
    """Running text without a doubt, whatever stands beside it."""
    return (
        len(boxes) >= 6 and median(box.letters for box in boxes) >= 30 and _fullness(boxes, _usual_width(boxes)) >= 0.6
    )


def _may_be_columns(left: Sequence[Box], right: Sequence[Box]) -> bool:
    """A weaker sign, enough where the same gutter is sure in another band of the region."""
    if not left or not right or max(_numeric(left), _numeric(right)) >= 0.5:
        return False
    return min(median(box.letters for box in left), median(box.letters for box in right)) >= 14


def _beside(boxes: Sequence[Box], others: Sequence[Box]) -> int:
    """How many of the boxes stand within the other side's height."""
    top, bottom = min(box.top for box in others), max(box.bottom for box in others)
    return sum(top < box.y < bottom for box in boxes)


def _numeric(boxes: Sequence[Box]) -> float:
    return sum(box.numeric for box in boxes) / len(boxes)


def _usual_width(boxes: Sequence[Box]) -> float:
    """The width that all but the widest tenth of the lines keep to."""
    return sorted(box.width for box in boxes)[int(0.9 * (len(boxes) - 1))]


def _usual_letters(boxes: Sequence[Box]) -> int:
    """How long the line is in which the middle one of all letters stands: a small table counts little there."""
    lengths = sorted(box.letters for box in boxes)
    half = sum(lengths) / 2
    return next((length for length, upto in zip(lengths, accumulate(lengths), strict=True) if upto >= half), 0)


def _fullness(boxes: Sequence[Box], width: float) -> float:
    """The share of lines, by their letters, that reach over most of a column's width."""
    letters = sum(box.letters for box in boxes)
    return sum(box.letters for box in boxes if box.width > 0.75 * width) / letters if letters else 0.0


def _aligned(left: Sequence[Box], right: Sequence[Box]) -> float:
    """The share of the shorter side's lines that stand level with one of the other side."""
    few, many = sorted((left, right), key=len)
    ys = sorted(box.y for box in many)
    level = 0
    for box in few:
        i = bisect(ys, box.y)
        level += any(abs(y - box.y) < 0.25 * box.height for y in ys[max(0, i - 1) : i + 1])
    return level / len(few)
