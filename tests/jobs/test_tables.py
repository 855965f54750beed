"""Tables of the command line, on a terminal and in a log."""

from __future__ import annotations

import io

from rich.console import Console

from jobs.cli.tables import show_table

ROWS = [
    ("a.png", "1", "ok"),
    ("scan:100:1  b.png", "2", "ok"),
    ("한국어.png", "12", "failed: [why]\nso\t:x:"),
    ("x" * 200, "", "z" * 2_000),
]
HEAD = ("document", "pages", "outcome")


def shown(*, terminal: bool) -> list[str]:
    file = io.StringIO()
    show_table(Console(file=file, force_terminal=terminal, color_system=None, width=60), HEAD, ROWS, right=("pages",))
    return file.getvalue().splitlines()


def test_in_a_log_a_row_is_a_line_and_a_long_cell_widens_no_other() -> None:
    gap = " " * (80 - len("a.png"))
    assert shown(terminal=False) == [
        "document" + " " * 72 + "  pages  outcome",
        f"a.png{gap}      1  ok",
        f"scan:100:1  b.png{gap[12:]}      2  ok",
        f"한국어.png{gap[5:]}     12  failed: [why] so :x:",  # three letters that are two cells wide, and one less
        "x" * 200 + " " * 9 + "z" * 2_000,
    ]


def test_on_a_terminal_nothing_is_wider_than_it_and_nothing_is_lost() -> None:
    lines = shown(terminal=True)
    assert max(map(len, lines)) <= 60
    assert sum(line.count("z") for line in lines) == 2_000
    assert any(line.startswith("scan:100:1  b.png") for line in lines)
