"""Joining of lines into running text, and the little that markdown needs escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable

from worker.contract import Page
from worker.layout.geometry import WIDE

_HYPHENS = "-\u2010\u00ad\u00ac"
_WORD = re.compile(r"[^\W\d_]+(?:[-\u2010'’][^\W\d_]+)*")
_BROKEN = re.compile(rf"([^\W\d_]+(?:[-'’][^\W\d_]+)*)[{_HYPHENS}]$")
_CONTINUES = re.compile(r"[^\W\d_]+")
# Words that, before a hyphen at a line's end, are rather a compound's first part than a broken word's.
_COMPOUND = re.compile(
    r"self|well|ex|half|cross|one|two|three|four|five|six|seven|eight|nine|ten|twenty|thirty|forty|fifty|sixty|seventy|"
    r"eighty|ninety|high|low|long|short|full|part|so|all|ever|ill|much"
)
_NUMBERS = ("four", "six", "seven", "nine")  # also the first part of fourteen and sixty
_BLOCK = re.compile(r"(?:#{1,6}(?=\s|$)|>|={2,}\s*$|-{2,}\s*$|(?:[-_*]\s*){3,}$|```|~~~)")
_EMPHASIS = re.compile(
    r"(?<![\\*\w])(\*{1,3})(?=[^\s*])([^*\n]*[^\s*])\1(?!\*)"
    r"|(?<![\\\w_])(_{1,3})(?=[^\s_])([^_\n]*[^\s_])\3(?![\w_])"
)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")


class Vocabulary:
    """The words that a document holds unbroken: the evidence on which a hyphen at a line's end is kept or undone."""

    def __init__(self, pages: Iterable[Page]) -> None:
        self._words: set[str] = set()
        for page in pages:
            for line in page.lines:
                words = list(_WORD.finditer(line.text))
                end = len(line.text.rstrip())
                for match in words[1:]:  # a line's first word may be the rest of a broken one
                    if match.end() >= end - 1 and line.text.rstrip()[-1:] in _HYPHENS:
                        continue
                    self._words.add(match.group().lower())

    def joins(self, head: str, tail: str) -> bool:
        """Whether `head-` at a line's end and `tail` on the next line are one word without a hyphen."""
        first, second = head.lower(), tail.lower()
        if not tail[:1].islower():
            return False
        if first + second in self._words:
            return True
        if first in _NUMBERS and second in ("teen", "ty"):
            return True
        if f"{first}-{second}" in self._words or "-" in head or len(head) == 1 or _COMPOUND.fullmatch(first):
            return False
        return not (len(second) > 3 and first in self._words and second in self._words)


def join_lines(first: str, second: str, vocabulary: Vocabulary) -> str:
    """Two lines of one paragraph as running text."""
    first, second = first.rstrip(), second.lstrip()
    if not first or not second:
        return first + second
    broken, tail = _BROKEN.search(first.rsplit(None, 1)[-1]), _CONTINUES.match(second)
    if broken and tail:
        joined = vocabulary.joins(broken.group(1), tail.group())
        return (first[:-1] if joined else first) + second
    return first + glue(first, second) + second


def glue(first: str, second: str) -> str:
    """What stands between two pieces of text: nothing between two wide characters (but Hangul), else a space."""
    ends = first[-1:], second[:1]
    return "" if all(WIDE.match(end) and not "\uac00" <= end <= "\ud7af" for end in ends) else " "


def escape(text: str, *, start: bool = True) -> str:
    """Keeps markdown from reading signs of the text as its own where that would hide them; `start` of a line or within.

    Bullets and numbers at a line's start stay as they are: read as a list they say the same.
    """
    text = escape_tags(text)
    text = _EMPHASIS.sub(lambda match: re.sub(r"([*_])", r"\\\1", match.group()), text)
    return escape_start(text) if start else text


def escape_start(text: str) -> str:
    """Keeps markdown from reading a line's start as that of a heading, a quotation, a rule or a fence."""
    return "\\" + text if _BLOCK.match(text) else text


def escape_tags(text: str) -> str:
    """Keeps markdown from hiding what looks like a tag."""
    return _TAG.sub(r"\\<", text)


def escape_cell(text: str) -> str:
    return escape(text, start=False).replace("|", "\\|")
