"""Tables: rows whose cells stand in columns, and how they are written."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from worker.layout.geometry import Box, Row, is_numeric
from worker.layout.text import escape_cell, glue

_CELL_GAP = 1.0  # of the text's height: what is farther apart on a row is another cell
_FIGURE_GAP = 0.4  # likewise, between two figures
_CURRENCY = re.compile(r"(?:[A-Z]{0,3}[$€£¥₩₹]|RM|USD|EUR|GBP|CHF)?\s*\(?")
_ENUMERATOR = re.compile(r"\(?(?:\d{1,3}|[A-Za-z]|[ivxlc]{1,5})[.):]|[•·▪◦●○■□*–—-]")


@dataclass(frozen=True)
class Cell:
    boxes: tuple[Box, ...]
    column: int
    span: int = 1

    @property
    def text(self) -> str:
        text = ""
        for box in self.boxes:
            text += (glue(text, box.text) if text else "") + box.text.strip()
        return text

    @property
    def x0(self) -> float:
        return self.boxes[0].x0

    @property
    def x1(self) -> float:
        return max(box.x1 for box in self.boxes)


@dataclass(frozen=True)
class Table:
    columns: int
    rows: list[list[Cell]]  # cells from left to right; an empty place has none

    @property
    def boxes(self) -> list[Box]:
        return [box for row in self.rows for cell in row for box in cell.boxes]

    def markdown(self) -> str:
        """A pipe table; as HTML where a heading spans columns, which pipes can't say."""
        if any(cell.span > 1 for row in self.rows for cell in row):
            return self._html()
        lines = []
        for number, row in enumerate(self.rows):
            texts = [""] * self.columns
            for cell in row:
                texts[cell.column] = escape_cell(cell.text)
            lines.append(f"| {' | '.join(texts)} |")
            if number == 0:
                lines.append("|" + " --- |" * self.columns)
        return "\n".join(lines)

    def _html(self) -> str:
        lines = ["<table>"]
        heads = 1 + max((n for n, row in enumerate(self.rows) if any(cell.span > 1 for cell in row)), default=0)
        heads = min(len(self.rows) - 1, heads + (heads < len(self.rows) and not _has_figures(self.rows[heads])))
        for number, row in enumerate(self.rows):
            tag = "th" if number < heads else "td"
            parts, column = [], 0
            for cell in row:
                parts += [f"<{tag}></{tag}>"] * (cell.column - column)
                span = f' colspan="{cell.span}"' if cell.span > 1 else ""
                parts.append(f"<{tag}{span}>{html.escape(cell.text, quote=False)}</{tag}>")
                column = cell.column + cell.span
            parts += [f"<{tag}></{tag}>"] * (self.columns - column)
            lines.append(f"<tr>{''.join(parts)}</tr>")
        return "\n".join([*lines, "</table>"])


def find_tables(rows: Sequence[Row], unit: float) -> list[tuple[int, int, Table]]:
    """Tables among the rows of one flow, as first row, end row, table."""
    split = [_cells(row, unit) for row in rows]
    found = []
    start = 0
    while start < len(rows):
        end = _run(rows, split, start, unit)
        table = _table(split[start:end], unit) if end - start >= 2 else None
        if table is not None:
            found.append((start, end, table))
            start = end
        else:
            start += 1 if end <= start + 1 else end - start
    return found


def _cells(row: Row, unit: float) -> list[tuple[Box, ...]]:
    """A row's cells; a currency sign that stands apart belongs to the amount on its right."""
    cells: list[tuple[Box, ...]] = []
    for box in row.boxes:
        before = cells[-1][-1] if cells else None
        if before is None:
            cells.append((box,))
            continue
        gap = box.x0 - before.x1
        if (_CURRENCY.fullmatch(before.text.strip()) and box.numeric) or box.text.strip() in ("%", ")", ")%"):
            together = True
        elif _CURRENCY.fullmatch(box.text.strip()) and before.numeric:
            together = False
        else:
            together = gap < (_FIGURE_GAP if box.numeric and before.numeric else _CELL_GAP) * unit
        if together:
            cells[-1] += (box,)
        else:
            cells.append((box,))
    return cells


def _run(rows: Sequence[Row], split: Sequence[list[tuple[Box, ...]]], start: int, unit: float) -> int:
    """The end of the run of rows from `start` that may be one table: those with cells, and single ones between them."""
    last = end = start
    pitch = 0.0
    while end < len(rows):
        if end > start:
            step = rows[end].y - rows[end - 1].y
            if step > 2.6 * max(unit, rows[end].height) + pitch * 0.5:
                break
            pitch = max(pitch, min(step, 3 * unit))
        if len(split[end]) > 1:
            last = end + 1
        elif end == start:
            if not _heads(rows, split, start):
                return start + 1
        elif end - last >= 2:
            break
        end += 1
    return last


def _heads(rows: Sequence[Row], split: Sequence[list[tuple[Box, ...]]], start: int) -> bool:
    """Whether a row of one cell stands over a table's right columns, as a heading that spans them does."""
    below = next((n for n in range(start + 1, min(start + 4, len(rows))) if len(split[n]) > 1), None)
    if below is None:
        return False
    left = min(split[n][0][0].x0 for n in range(below, min(below + 4, len(rows))))
    widest = max(rows[n].x1 for n in range(below, min(below + 4, len(rows))))
    return rows[start].x0 > left + 0.25 * (widest - left) and rows[start].x1 < widest + rows[start].height


def _table(split: Sequence[list[tuple[Box, ...]]], unit: float) -> Table | None:
    multiple = [cells for cells in split if len(cells) > 1]
    if len(multiple) < 2:
        return None
    edges = _columns([cell for cells in multiple for cell in cells], len(multiple), unit)
    count = len(edges)
    if count < 2:
        return None
    rows = [_place(cells, edges) for cells in split]
    if not _plausible(rows, multiple, count):
        return None
    body = next((n for n, row in enumerate(rows) if sum(cell.column > 0 for cell in row) == count - 1), 0)
    body = next((n for n, row in enumerate(rows) if _has_figures(row) and len(row) >= count - 1), body)
    rows = [_spread(row, edges, unit) if n < body else row for n, row in enumerate(rows)]
    return Table(count, rows)


def _columns(cells: Sequence[tuple[Box, ...]], rows: int, unit: float) -> list[tuple[float, float]]:
    """The columns' extents, between strips that (almost) no cell crosses."""
    trim = 0.1 * unit
    events = sorted(
        [(cell[0].x0 + trim, 1) for cell in cells] + [(max(box.x1 for box in cell) - trim, -1) for cell in cells]
    )
    allowed = int(0.12 * rows)
    columns: list[list[float]] = []
    crossing = 0
    for (x, step), (following, _) in pairwise(events):
        crossing += step
        if crossing > allowed:
            if columns and x - columns[-1][1] < 0.4 * unit:
                columns[-1][1] = following
            else:
                columns.append([x, following])
    return [(start, end) for start, end in columns]


def _place(cells: Sequence[tuple[Box, ...]], edges: Sequence[tuple[float, float]]) -> list[Cell]:
    placed: list[Cell] = []
    for boxes in cells:
        x0, x1 = boxes[0].x0, max(box.x1 for box in boxes)
        over = [
            n for n, (start, end) in enumerate(edges) if min(x1, end) - max(x0, start) > 0.3 * min(x1 - x0, end - start)
        ]
        if not over:
            centre = (x0 + x1) / 2
            over = [min(range(len(edges)), key=lambda n: max(edges[n][0] - centre, centre - edges[n][1]))]
        column, span = over[0], over[-1] - over[0] + 1
        if placed and placed[-1].column + placed[-1].span > column:
            before = placed.pop()
            last = max(before.column + before.span, column + span)
            placed.append(Cell(before.boxes + boxes, before.column, last - before.column))
        else:
            placed.append(Cell(boxes, column, span))
    return placed


def _plausible(rows: Sequence[list[Cell]], multiple: Sequence[list[tuple[Box, ...]]], count: int) -> bool:
    cells = [cell for row in rows for cell in row]
    texts = [cell.text for cell in cells]
    if median(len(text) for text in texts) > 45:
        return False
    filled = sum(len(row) for row in rows if len(row) > 1) / (len(multiple) * count)
    figures = any(
        sum(is_numeric(cell.text) for cell in cells if cell.column == column) * 2
        >= max(2, sum(cell.column == column for cell in cells))
        for column in range(1, count)
    )
    first = [cell.text for cell in cells if cell.column == 0]
    if count == 2 and first and all(_ENUMERATOR.fullmatch(text) for text in first):
        return False
    if count == 2 and not figures:
        return len(multiple) >= 3 and filled > 0.8
    return filled > 0.5


def _spread(row: list[Cell], edges: Sequence[tuple[float, float]], unit: float) -> list[Cell]:
    """A heading row's cells over the empty columns beside them whose middle they stand in."""
    taken = {column for cell in row for column in range(cell.column, cell.column + cell.span)}
    spread = []
    for cell in row:
        first, last = cell.column, cell.column + cell.span - 1
        best = (first, last)
        if first > 0:
            for low in range(first, 0, -1):
                if low < first and low in taken:
                    break
                for high in range(last, len(edges)):
                    if high > last and high in taken:
                        break
                    middle = (edges[low][0] + edges[high][1]) / 2
                    if abs(middle - (cell.x0 + cell.x1) / 2) < unit and high - low > best[1] - best[0]:
                        best = (low, high)
        spread.append(Cell(cell.boxes, best[0], best[1] - best[0] + 1))
        taken.update(range(best[0], best[1] + 1))
    return spread


def _has_figures(row: Sequence[Cell]) -> bool:
    return any(is_numeric(cell.text) and any(sign.isdigit() for sign in cell.text) for cell in row[1:])
