"""Blocks of a flow: paragraphs, headings, list items, tables and lines that stand for themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from statistics import median

from worker.contract import Role
from worker.layout.geometry import Box, Row, rows_of
from worker.layout.tables import Table, find_tables
from worker.layout.text import Vocabulary, escape, escape_tags, glue, join_lines

_BULLET = re.compile(r"([•·∙▪▫◦●○■□◆◇►▶✓✔➢➤★☆※❖]|[-–—*](?=\s))\s*(?=\S)")
_NUMBERED = re.compile(r"(\d{1,3})[.)]\s")
_SECTION = re.compile(
    r"(?:\d{1,2}(?:\.\d{1,2}){0,3}\.?|[IVX]{1,5}\.|[A-Z]\.|(?:chapter|section|part|appendix)\s+\w+[.:]?)\s+[A-Z“\"]",
    re.I,
)
_ENDS = re.compile(r"[.!?:;。！？：；][\"'”’)\]]*$")


class Kind(Enum):
    PARAGRAPH = "paragraph"
    HEADING = "heading"
    ITEM = "item"
    TABLE = "table"


@dataclass
class Block:
    kind: Kind
    boxes: list[Box]
    text: str = ""  # not escaped; several lines where each stands for itself
    level: int = 0
    table: Table | None = None
    verbatim: bool = False  # asterisks and the like are left alone
    full: bool = False  # the last line reaches its column's end: the paragraph may go on elsewhere
    rows: list[Row] = field(default_factory=list)

    @property
    def role(self) -> Role | None:
        if self.kind is Kind.HEADING:
            return Role.TITLE if self.level == 1 else Role.HEADING
        return {Kind.ITEM: Role.LIST_ITEM, Kind.TABLE: Role.TABLE}.get(self.kind)

    def markdown(self) -> str:
        if self.table is not None:
            return self.table.markdown()
        if self.kind is Kind.HEADING:
            return "#" * self.level + " " + escape(self.text, start=False)
        if self.kind is Kind.ITEM:
            bullet = _BULLET.match(self.text)
            if bullet:
                return "- " + escape(self.text[bullet.end() :])
            return escape(self.text)
        if self.verbatim:
            return "  \n".join(escape_tags(line) for line in self.text.split("\n"))
        return "  \n".join(escape(line) for line in self.text.split("\n"))


@dataclass(frozen=True)
class Style:
    """What the page as a whole tells about its parts."""

    unit: float  # height of plain text
    advance: float  # width of its characters
    slip: bool  # a receipt or the like: each row stands for itself
    vocabulary: Vocabulary


def blocks_of(boxes: Sequence[Box], style: Style) -> list[Block]:
    """The blocks of one flow, from top to bottom."""
    rows = rows_of(boxes)
    blocks: list[Block] = []
    start = 0
    for first, end, table in [] if style.slip else find_tables(rows, style.unit):
        blocks += _text_blocks(rows[start:first], style)
        blocks.append(Block(Kind.TABLE, table.boxes, table=table))
        start = end
    return blocks + _text_blocks(rows[start:], style)


def join_flows(flows: Sequence[list[Block]], vocabulary: Vocabulary) -> list[Block]:
    """All blocks in order; a paragraph cut by the end of its column is put together again."""
    joined: list[Block] = []
    for blocks in flows:
        for n, block in enumerate(blocks):
            before = joined[-1] if joined else None
            if n == 0 and before is not None and _goes_on(before, block):
                before.text = join_lines(before.text, block.text, vocabulary)
                before.boxes += block.boxes
                before.full = block.full
            else:
                joined.append(block)
    return joined


def _goes_on(before: Block, block: Block) -> bool:
    if before.kind not in (Kind.PARAGRAPH, Kind.ITEM) or block.kind is not Kind.PARAGRAPH:
        return False
    if "\n" in before.text or not before.full or _ENDS.search(before.text):
        return False
    return block.text[:1].islower() or before.text.endswith("-")


def row_text(row: Row) -> str:
    text = ""
    for box in row.boxes:
        text += (glue(text, box.text) if text else "") + box.text.strip()
    return text


def _text_blocks(rows: Sequence[Row], style: Style) -> list[Block]:
    if not rows:
        return []
    pitch = _pitch(rows, style.unit)
    right = _quantile([row.x1 for row in rows], 0.9)
    left = _quantile([row.x0 for row in rows], 0.1)
    blocks: list[Block] = []
    chunks = _chunks(rows, pitch, style)
    for n, chunk in enumerate(chunks):
        edge = _edge(chunk, right, style.unit)
        if style.slip:
            text = "\n".join(row_text(row) for row in chunk)
            blocks.append(Block(Kind.PARAGRAPH, _boxes(chunk), text, verbatim=True, rows=list(chunk)))
            continue
        blocks += _paragraphs(chunk, edge, _listed(chunks[max(0, n - 1) : n + 2], chunk), style)
    if not style.slip:
        _mark_headings(blocks, left, right, style)
    return blocks


def _pitch(rows: Sequence[Row], unit: float) -> float:
    """The usual distance between two lines of running text, in pixels."""
    steps = [below.y - above.y for above, below in pairwise(rows)]
    near = [step for step in steps if step < 2.4 * unit]
    return median(near) if near else 1.4 * unit


def _chunks(rows: Sequence[Row], pitch: float, style: Style) -> list[list[Row]]:
    """Rows that follow each other at the usual distance and in one size."""
    chunks = [[rows[0]]]
    for above, below in pairwise(rows):
        small, large = sorted((above.height, below.height))
        apart = below.y - above.y > 1.35 * max(pitch, 0.9 * large)
        if apart or (large > 1.35 * small and not style.slip and _sizes_differ(above, below)):
            chunks.append([below])
        else:
            chunks[-1].append(below)
    return chunks


def _sizes_differ(one: Row, other: Row) -> bool:
    """Whether rows of different height are set in different sizes: a raised figure makes a row higher, not wider."""
    low, high = sorted((one, other), key=lambda row: row.height)
    return min(one.letters, other.letters) > 3 and high.advance > 1.1 * low.advance


def _edge(chunk: Sequence[Row], right: float, unit: float) -> float:
    """Where the chunk's lines end: at their own right edge if most reach it, else at the flow's."""
    own = max(row.x1 for row in chunk)
    if own < right - 3 * unit and median(row.letters for row in chunk) < 25:
        return right  # too narrow for running text of its own
    reach = sum(row.x1 > own - 1.5 * unit for row in chunk[:-1])
    return own if len(chunk) > 2 and reach * 2 >= len(chunk) - 1 else max(own, right)


def _paragraphs(chunk: Sequence[Row], edge: float, listed: set[int], style: Style) -> list[Block]:
    """Cuts a chunk where a line begins anew: a bullet, an indent, or after a line that had room for the next word."""
    hanging = _hanging(chunk, style.unit)
    groups: list[list[Row]] = [[chunk[0]]]
    short: list[bool] = [False]  # whether a group follows a line that was broken on purpose
    for n in range(1, len(chunk)):
        above, row = chunk[n - 1], chunk[n]
        below = chunk[n + 1] if n + 1 < len(chunk) else None
        text = row_text(row)
        room = edge - above.x1
        word = row.x1 - row.x0 if " " not in text else len(text.split()[0]) * (row.x1 - row.x0) / max(1, len(text))
        goes_on = text[:1].islower() and not _ENDS.search(row_text(above))
        broken = room > word + (8 if goes_on else 1.2) * style.unit
        item = _is_item(text, chunk, listed)
        if hanging:
            begins = row.x0 < groups[-1][0].x0 + 0.6 * style.unit
        else:
            begins = _indented(groups[-1], row, below, style.unit) or (broken and not _hyphenated(above))
            begins = begins or _is_label(above, row, below, edge)
        if item or begins:
            groups.append([row])
            short.append(broken and not item and not hanging)
        else:
            groups[-1].append(row)
    blocks: list[Block] = []
    for group, follows in zip(groups, short, strict=True):
        text = row_text(group[0])
        for row in group[1:]:
            text = join_lines(text, row_text(row), style.vocabulary)
        item = _is_item(text, chunk, listed)
        full = group[-1].x1 > edge - 2 * style.unit
        before = blocks[-1] if blocks else None
        alone = len(group) == 1 and not item
        if follows and alone and before is not None and before.kind is Kind.PARAGRAPH and _stands_alone(before):
            before.text += "\n" + text
            before.boxes += _boxes(group)
            before.rows += group
        else:
            kind = Kind.ITEM if item else Kind.PARAGRAPH
            blocks.append(Block(kind, _boxes(group), text, full=full, rows=list(group)))
    return blocks


def _stands_alone(block: Block) -> bool:
    return block.text.count("\n") == len(block.rows) - 1


def _hyphenated(row: Row) -> bool:
    return re.search(r"[^\W\d_]-$", row.boxes[-1].text.rstrip()) is not None


def _is_label(above: Row, row: Row, below: Row | None, edge: float) -> bool:
    """Whether a short row after a sentence's end is no part of a paragraph, but what the next one is about."""
    text = row_text(row)
    if below is None or not text[:1].isupper() or _ENDS.search(text) or not _ENDS.search(row_text(above)):
        return False
    return row.x1 - row.x0 < 0.4 * (edge - above.x0) and row_text(below)[:1].isupper() and len(text.split()) < 6


def _is_item(text: str, chunk: Sequence[Row], listed: set[int]) -> bool:
    """A bullet, or one of several consecutive numbers; a single asterisk rather marks a footnote."""
    if text.startswith("*") and sum(row.boxes[0].text.startswith("*") for row in chunk) < 2:
        return False
    number = _NUMBERED.match(text)
    return bool(_BULLET.match(text) or (number and int(number.group(1)) in listed))


def _hanging(chunk: Sequence[Row], unit: float) -> bool:
    """Whether each entry begins at the left edge and goes on indented, as in a bibliography."""
    edge = min(row.x0 for row in chunk)
    flush = [row for row in chunk if row.x0 < edge + 0.6 * unit]
    indented = len(chunk) - len(flush)
    if chunk[0].x0 > edge + 0.6 * unit or len(flush) < 2 or indented < 1 or 3 * indented < len(flush):
        return False
    if any(row.x0 > edge + 5 * unit for row in chunk):
        return False
    return all(re.match(r"[A-Z\d\[(“\"•*†‡]", row.boxes[0].text) for row in flush)


def _listed(chunks: Sequence[Sequence[Row]], chunk: Sequence[Row]) -> set[int]:
    """Numbers of a list's items: those that follow one another in a chunk, or from one short chunk to the next."""
    near = [chunk] if len(chunk) > 3 else [each for each in chunks if each is chunk or len(each) <= 3]
    rows = [row for each in near for row in each]
    numbers = {int(match.group(1)) for row in rows if (match := _NUMBERED.match(row_text(row)))}
    return {number for number in numbers if number - 1 in numbers or number + 1 in numbers}


def _indented(group: Sequence[Row], row: Row, below: Row | None, unit: float) -> bool:
    """Whether a row's left edge says that it begins a paragraph: indented alone, or flush after hanging ones."""
    above = group[-1]
    step = row.x0 - above.x0
    if abs(row.centre - above.centre) < 0.5 * unit and abs(row.x1 - above.x1) > 0.7 * unit:
        return False  # centred
    if step > 0.7 * unit:
        return below is not None and below.x0 < row.x0 - 0.6 * unit and not (len(group) == 1 and step > 8 * unit)
    if step < -0.7 * unit:
        return len(group) > 1 and group[0].x0 < group[1].x0 - 0.6 * unit and abs(row.x0 - group[0].x0) < 0.6 * unit
    return False


def _mark_headings(blocks: Sequence[Block], left: float, right: float, style: Style) -> None:
    width = max(right - left, style.unit)
    for n, block in enumerate(blocks):
        if block.kind is not Kind.PARAGRAPH or sum(sign.isalpha() for sign in block.text) < 3:
            continue
        text = block.text.replace("\n", " ")
        following = blocks[n + 1] if n + 1 < len(blocks) else None
        advance = median(row.advance for row in block.rows) / style.advance
        size = min(median(row.height for row in block.rows) / style.unit, 1.25 * advance)
        if size >= 1.3 and len(block.rows) <= 4 and len(text) < 200:
            block.level = 1 if size >= 1.6 else 2
        elif following is not None and len(text) <= 80 and not _ENDS.search(text):
            block.level = 2 if _is_heading(block, text, following, width) else 0
        if block.level:
            block.kind = Kind.HEADING
            block.text = text


def _is_heading(block: Block, text: str, following: Block, width: float) -> bool:
    """Whether a block of the text's own size is a heading by its form: capitals, a section's number, a short line."""
    if following.kind is Kind.HEADING or (following.kind is Kind.PARAGRAPH and "\n" in following.text):
        return False
    if text.isupper():
        return len(block.rows) <= 3
    if len(block.rows) > 1 or block.rows[0].x1 - block.rows[0].x0 > 0.75 * width:
        return False
    if _SECTION.match(text):
        return True
    runs = following.kind is Kind.ITEM or (following.kind is Kind.PARAGRAPH and len(following.rows) > 1)
    return runs and text[:1].isupper() and "," not in text


def _boxes(rows: Sequence[Row]) -> list[Box]:
    return [box for row in rows for box in row.boxes]


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
