"""Tiny models that read, and the script that taught them: see README.md."""

from pathlib import Path

TINY_HUNYUAN = Path(__file__).parent / "tiny-hunyuan"
TINY_TROCR = Path(__file__).parent / "tiny-trocr"
