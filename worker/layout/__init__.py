"""From the unordered lines of an engine to pages that read: reading order, roles and markdown.

`furniture` finds running heads and feet, `columns` the order, `tables` and `blocks` what the lines are, `text` joins
them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from worker.contract import Line, Page, Role
from worker.layout.blocks import Block, Kind, Style, blocks_of, join_flows
from worker.layout.columns import flows_of
from worker.layout.furniture import furniture_of
from worker.layout.geometry import Box, advance_of, boxes_of, rows_of, unit_of
from worker.layout.text import Vocabulary, escape

_SLIP_WIDTH = 36  # text heights: a receipt's paper is narrower than this
_AMOUNT = re.compile(r"(?:^|\s|[A-Z$€£¥])-?\d{1,3}(?:[,.]?\d{3})*[.,]\d{2}(?:\s*[A-Z%*]{1,3})?$")


def compose(pages: Sequence[Page], *, keep_furniture: bool = False) -> list[Page]:
    """The pages of one document with their lines in reading order, each with its role, and their markdown written.

    Give all pages of a document at once: what repeats from page to page is told by comparing them. The order in which
    lines come doesn't matter; none is dropped or changed. Running heads, feet and page numbers keep their place in
    `lines`, with their role, and are left out of the markdown unless `keep_furniture`. Lines without a polygon can't
    be placed: they stay in their order, at the end. Pages that are blank or failed are returned as they are.
    """
    vocabulary = Vocabulary(pages)
    read = [page for page in pages if page.status == "ok"]
    boxes = [boxes_of(page) for page in read]
    units = [unit_of(each) for each in boxes]
    slips = [_is_slip(each, unit) for each, unit in zip(boxes, units, strict=True)]
    if 2 * sum(slips) <= len(slips):
        slips = [False] * len(slips)  # a narrow page among wide ones
    roles = furniture_of(boxes, [page.height for page in read], slips)
    composed = iter(
        [
            _compose_page(page, each, known, Style(unit, advance_of(each), slip, vocabulary), keep_furniture)
            for page, each, known, unit, slip in zip(read, boxes, roles, units, slips, strict=True)
        ]
    )
    return [next(composed) if page.status == "ok" else page for page in pages]


def _compose_page(page: Page, boxes: list[Box], furniture: dict[int, Role], style: Style, keep: bool) -> Page:
    body = [box for n, box in enumerate(boxes) if n not in furniture]
    flows = flows_of([box for box in body if box.upright], style.unit)
    if style.slip:
        flows = [[box for box in body if box.upright]]
    blocks = join_flows([blocks_of(flow, style) for flow in flows], style.vocabulary)
    blocks += [Block(Kind.PARAGRAPH, [box], box.text) for box in body if not box.upright]
    lines = [(box, block.role) for block in blocks for box in block.boxes]
    head = [(box, furniture[n]) for n, box in enumerate(boxes) if n in furniture and box.y < page.height / 2]
    foot = [(box, furniture[n]) for n, box in enumerate(boxes) if n in furniture and box.y >= page.height / 2]
    head, foot = _in_rows(head), _in_rows(foot)
    unplaced = [line for line in page.lines if not line.polygon]
    parts = [block.markdown() for block in blocks]
    if keep:
        parts = [escape(box.text) for box, _ in head] + parts + [escape(box.text) for box, _ in foot]
    parts += [escape(line.text) for line in unplaced]
    return page.model_copy(
        update={
            "lines": [_with_role(line, role) for box, role in [*head, *lines, *foot] for line in box.lines] + unplaced,
            "markdown": _document(parts),
        }
    )


def _in_rows(marked: list[tuple[Box, Role]]) -> list[tuple[Box, Role]]:
    roles = {id(box): role for box, role in marked}
    return [(box, roles[id(box)]) for row in rows_of([box for box, _ in marked]) for box in row.boxes]


def _with_role(line: Line, role: Role | None) -> Line:
    return line if line.role == role else line.model_copy(update={"role": role})


def _document(parts: list[str]) -> str:
    """Parts with an empty line between them; list items follow each other closely."""
    text = ""
    for part in parts:
        if not part.strip():
            continue
        close = part.startswith("- ") and text.rsplit("\n\n", 1)[-1].startswith("- ")
        text += ("" if not text else "\n" if close else "\n\n") + part
    return text + "\n" if text else ""


def _is_slip(boxes: Sequence[Box], unit: float) -> bool:
    """Whether a page is a receipt or the like: narrow, with amounts at its rows' ends."""
    upright = [box for box in boxes if box.upright]
    if len(upright) < 4:
        return False
    x0, x1 = sorted(box.x0 for box in upright), sorted(box.x1 for box in upright)
    width = x1[int(0.95 * (len(x1) - 1))] - x0[int(0.05 * (len(x0) - 1))]
    amounts = sum(_AMOUNT.search(row.boxes[-1].text.strip()) is not None for row in rows_of(upright))
    return width < _SLIP_WIDTH * unit and amounts >= 3
