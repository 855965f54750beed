"""Tables of the command line: drawn on a terminal, and plain lines in a file or a pipe, where nothing is wrapped and a
long cell widens no other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PADDED = 80  # cells to which a column is filled up, where nothing is wrapped


def show_table(
    console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()
) -> None:
    """`head` names the columns, empty strings for a table without; those in `right` are set flush right."""
    if console.is_terminal:
        _draw(console, head, rows, right)
        return
    from rich.cells import cell_len
    from rich.text import Text

    lines = [
        [" ".join(cell.replace("\t", " ").splitlines()) for cell in row]
        for row in ([head] if any(head) else []) + [*rows]
    ]
    widths = [min(PADDED, max(map(cell_len, column))) for column in zip(*lines, strict=True)]
    for line in lines:
        filled = ""
        for name, cell, width in zip(head, line, widths, strict=True):
            space = " " * (width - cell_len(cell))
            filled += (space + cell if name in right else cell + space) + "  "
        console.print(Text(filled.rstrip()), soft_wrap=True)  # of a string, `:100:` would be replaced by an emoji


def _draw(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=any(head))
    for name in head:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
