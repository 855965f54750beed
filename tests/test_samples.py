"""The samples are what every reader of the README sees first: complete, each with its truth, small."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "samples"
DOCUMENTS = sorted(path.name for path in FOLDER.iterdir() if path.is_file() and path.suffix not in (".py", ".md"))


def test_the_script_makes_exactly_the_documents_of_the_folder() -> None:
    script = runpy.run_path(str(FOLDER / "make_samples.py"))
    assert sorted(script["SAMPLES"]) == DOCUMENTS


def test_every_truth_belongs_to_a_document() -> None:
    assert sorted(path.name for path in (FOLDER / "truth").iterdir()) == [f"{name}.txt" for name in DOCUMENTS]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_small_and_listed_and_only_the_blank_one_says_nothing(name: str) -> None:
    assert (FOLDER / name).stat().st_size < 300_000
    assert f"`{name}`" in (FOLDER / "README.md").read_text(encoding="utf-8")
    truth = (FOLDER / "truth" / f"{name}.txt").read_text(encoding="utf-8")
    assert (truth.strip() == "") == (name == "blank.png")
    assert "~" not in truth  # the script's mark of where a word may be broken
