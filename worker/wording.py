"""How messages count things."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """ "1 document", "1,200 documents"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
