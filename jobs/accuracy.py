"""How far a text is from the true one: edits per character, markdown's marks aside."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable


def edits(text: str, truth: str) -> int:
    """Levenshtein's distance: characters to put in, take out or exchange. A row of the table at a time."""
    import numpy as np

    symbols = np.array([ord(character) for character in truth])
    steps = np.arange(len(truth) + 1)
    row = steps
    for character in text:
        best = np.minimum(row[1:] + 1, row[:-1] + (symbols != ord(character)))
        row = np.minimum.accumulate(np.concatenate([[row[0] + 1], best]) - steps) + steps
    return int(row[-1])


def error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Edits that turn texts into their truths, per character of the truths; above 1 where much was made up."""
    wrong = characters = 0
    for text, truth in pairs:
        wrong += edits(text, truth)
        characters += len(truth)
    return wrong / max(1, characters)


def bare(markdown: str) -> str:
    """What a page says, without markdown's marks, HTML's tags and white space: those are form, and nobody's error."""
    text = re.sub(r"(?m)^ {0,3}(?:#{1,6} |> |[-*+] (?=\S))", "", markdown)
    text = re.sub(r"(?m)^\s*\|?(?:\s*:?-{3,}:?\s*\|)+\s*:?-*:?\s*$", "", text)  # the rule below a table's head
    text = re.sub(r"</?[a-zA-Z][^<>]*>|(?<!\\)[|*]|(?<=\W)_|_(?=\W)", "", text)
    text = re.sub(r"\\(?=[\\`*_{}\[\]<>()#+\-.!|~$&])", "", text)
    return re.sub(r"\s+", "", html.unescape(text))
