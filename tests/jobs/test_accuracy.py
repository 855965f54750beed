"""Counting errors: what is an edit, and what is mere form."""

from __future__ import annotations

import pytest

from jobs.accuracy import bare, edits, error_rate


@pytest.mark.parametrize(
    ("text", "truth", "distance"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_edits_are_characters_put_in_taken_out_or_exchanged(text: str, truth: str, distance: int) -> None:
    assert edits(text, truth) == edits(truth, text) == distance


def test_the_rate_is_of_all_characters_of_the_truths() -> None:
    assert error_rate([("abcd", "abcd"), ("x", "xyzw")]) == 3 / 8
    assert error_rate([("made up", "")]) == 7
    assert error_rate([]) == 0


@pytest.mark.parametrize(
    ("markdown", "said"),
    [
        ("# Grandma's *Biscuits*\n\n- 2 cups flour\n", "Grandma'sBiscuits2cupsflour"),
        ("| item | price |\n| --- | ---: |\n| tea | 2.50 |", "itempricetea2.50"),
        ("<table><tr><td>tea &amp; milk</td></tr></table>", "tea&milk"),
        ("1\\. not a list\n\\# 5\na \\* b", "1.notalist#5a*b"),
        ("a - b, 3-4, x_1, 5 < 6", "a-b,3-4,x_1,5<6"),
    ],
)
def test_marks_of_markdown_and_html_are_no_text(markdown: str, said: str) -> None:
    assert bare(markdown) == said
