"""What is a loop, and what only looks like one."""

from __future__ import annotations

import random

import pytest

from worker.engines.guards import TEMPERATURES, repeating_tail

BEFORE = "INVOICE 2026-114\nACME Ltd., 12 High Street: "
ZEROS = "<tr>" + "<td>0</td>" * 12 + "</tr>"
NO = "<tr>" + "<td>No</td>" * 12 + "</tr>\n"
NA = "|" + " N/A |" * 14 + "\n"
CLAUSES = "| " + "The goods are to be returned within thirty days. | " * 4 + "\n"
LETTER = "".join(random.Random(1).choices("abcdefghij \n", k=1500)) + "Yours faithfully\n"


@pytest.mark.parametrize(
    ("unit", "copies"),
    [
        ("a", 3000),
        (".", 3000),
        ("_", 3000),
        (" ", 3000),
        ("\n", 3000),
        ("哈", 3000),
        ("the ", 1000),
        ("very, very ", 300),
        (r"\quad ", 300),
        ("&nbsp;", 300),
        ("- milk\n", 500),
        ("The same sentence over and over again.\n", 300),
        ("<li>milk</li>", 500),
        ("| 0 | 0 | 0 |\n", 1000),
        ("<td></td>", 1000),
        ("<td>0</td>", 1000),
        (ZEROS, 300),
        (ZEROS + "\n", 300),
        (NO, 200),
        (NA, 300),
        ("<tr>" + "<td>N/A</td>" * 14 + "</tr>", 200),
        (CLAUSES, 60),
        (LETTER, 9),
        ('<div data-bbox="1 2 3 4" data-label="Text"><p>Page 1</p></div>\n', 250),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, str) else str(value),
)
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_loop_is_found_where_its_second_turn_begins(unit: str, copies: int, cut: int) -> None:
    text = BEFORE + unit * copies
    text = text[: len(text) - min(cut, len(unit) - 1)]  # a loop may stop anywhere in its turn
    begin = repeating_tail(text)
    assert begin is not None
    kept = text[:begin]
    assert kept.startswith(BEFORE.rstrip())
    assert len(kept) <= len(BEFORE) + len(unit)
    # What is dropped says nothing that is not kept.
    assert text[begin:] == (kept[-len(unit) :] * copies)[: len(text) - begin]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "Aaaaaaaaaaaaaargh! " * 3,
        "0" * 300,  # a hexadecimal dump, in one line
        "Chapter one " + "." * 300 + " 5",
        "Name: " + "_" * 400,
        "Name: " + "_" * 400 + "\n",
        ("_" * 80 + "\n") * 60,  # a sheet to write on
        "\n".join("." * 120 for _ in range(50)),
        ("| 0 | 0 | 0 |\n") * 120,
        "|" + " --- |" * 60 + "\n",
        ZEROS * 120,
        (ZEROS + "\n") * 120,
        NO * 58,
        NO * 120,
        NA * 100,
        NA * 120,
        ("<tr>" + "<td>N/A</td>" * 14 + "</tr>\n") * 120,
        ("<tr>" + "<td>0.00</td>" * 14 + "</tr>") * 120,
        "| Yes | No |\n" * 120,
        "<tr>" + "<td></td>" * 40 + "</tr>",
        ("<tr>" + "<td></td>" * 12 + "</tr>\n") * 80,
        "<tr>" + "<td>Yes</td>" * 31 + "</tr>",
        "0 " * 400,
        "X X X X X X X X X X X X\n" * 60,
        "Paid in full\n" * 100,
        "Mr. John Smith\n12 High Street\nLondon W1\n\n" * 65,  # a sheet of labels
        "- [ ] \n" * 120,
        "ho " * 40,
        LETTER * 3,
        LETTER * 2 + "And now the end.",
        "<div><p>" * 20,
        "a" * 5000 + "b",  # it has ended by itself
    ],
    ids=lambda value: f"{value[:10]!r}x{len(value)}",
)
def test_what_a_page_may_hold_is_no_loop(text: str) -> None:
    assert repeating_tail(text) is None
    assert repeating_tail(BEFORE + text) is None


def test_ordinary_text_is_no_loop() -> None:
    chance = random.Random(7)
    for _ in range(50):
        words = ["".join(chance.choices("abcdefgh", k=chance.randint(1, 8))) for _ in range(chance.randint(1, 40))]
        text = "".join(chance.choice(words) + chance.choice(" \n") for _ in range(3000))
        if len(words) > 1:
            assert repeating_tail(text) is None


@pytest.mark.parametrize("text", ["ab" * 1_000_000, ("a" * 2499 + "b") * 800, "ab" * 500_000 + "a" * 1_000_000])
def test_a_long_text_is_dealt_with(text: str) -> None:
    """Were it quadratic, the suite would stand still here: two million characters each."""
    assert repeating_tail(text) is not None


def test_the_first_attempt_is_the_likeliest_reading() -> None:
    assert TEMPERATURES[0] == 0
    assert list(TEMPERATURES) == sorted(TEMPERATURES)
