"""How well pages are read: word F1 on receipts with their true text, unit tests of olmOCR-bench on PDFs.

    python benchmarks/quality.py DATA_FOLDER [--cache FOLDER] [--failures]

DATA_FOLDER holds `receipts/NAME.jpg` beside `NAME.csv` (x1,y1,…,x4,y4,text: the form of ICDAR 2019 SROIE) and
`pdfs/*.pdf` with `tests.jsonl` (the form of olmOCR-bench). Compares RapidOCR's lines with its defaults, in its order,
what our engine and `worker.layout` make of the same pages, and tesseract where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from worker.contract import Line, Page
from worker.engines import EngineSettings, PageImage
from worker.engines.rapidocr import RapidOcrEngine
from worker.layout import compose

DPI = 200
Test = dict[str, Any]  # one row of tests.jsonl
Texts = dict[str, str]  # a document's file name → its text


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--cache", type=Path, help="keep what the engine read here, and use what is here already")
    arguments.add_argument("--failures", action="store_true", help="name each failing test and why it fails")
    options = arguments.parse_args()
    receipts = sorted((options.data / "receipts").glob("*.jpg"))
    pdfs = sorted((options.data / "pdfs").glob("*.pdf"))
    tests = [json.loads(row) for row in (options.data / "pdfs" / "tests.jsonl").read_text().splitlines() if row.strip()]

    documents = [*receipts, *pdfs]
    plain = _read("rapidocr", _rapidocr, documents, options.cache)
    ours = _read("pagefleet", _pagefleet, documents, options.cache)
    systems: dict[str, Texts] = {
        "RapidOCR, lines in its order": {name: _in_order(pages) for name, pages in plain.items()},
        "pagefleet, lines": {name: _in_order(compose(pages)) for name, pages in ours.items()},
        "pagefleet, markdown": {
            name: "\n".join(page.markdown for page in compose(pages)) for name, pages in ours.items()
        },
    }
    if shutil.which("tesseract"):
        systems["tesseract"] = {path.name: _tesseract(path) for path in documents}

    truths = {
        path.name: path.with_suffix(".csv").read_text(encoding="utf-8-sig", errors="replace") for path in receipts
    }
    print(f"Receipts: {len(receipts)} documents, F1\n\n| | words | mean of documents | as split at spaces |")
    print("| --- | --- | --- | --- |")
    for name, texts in systems.items():
        pairs = [(truth_of(truths[key]), texts[key]) for key in truths]
        micro, mean = f1(pairs, words)
        print(f"| {name} | {micro:.4f} | {mean:.4f} | {f1(pairs, str.split)[0]:.4f} |")

    kinds = sorted({test["type"] for test in tests})
    print(f"\nPDFs: {len(tests)} tests, passed\n\n| | all | {' | '.join(kinds)} |")
    print("| --- |" + " --- |" * (len(kinds) + 1))
    failures: list[str] = []
    for name, texts in systems.items():
        passed: Counter[str] = Counter()
        for test in tests:
            reason = check(test, texts[test["pdf"]])
            passed[test["type"]] += reason is None
            if reason is not None:
                failures.append(f"{name}: {test['id']} ({test['type']}): {reason}")
        totals = Counter(test["type"] for test in tests)
        row = " | ".join(f"{passed[kind]}/{totals[kind]}" for kind in kinds)
        print(f"| {name} | {passed.total()}/{len(tests)} | {row} |")
    if options.failures:
        print("\n" + "\n".join(failures))


# Words of receipts


def truth_of(table: str) -> str:
    """The text column of a SROIE table, whose texts may hold commas."""
    return "\n".join(row.split(",", 8)[8] for row in table.splitlines() if row.count(",") >= 8)


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def f1(pairs: Sequence[tuple[str, str]], cut: Callable[[str], list[str]]) -> tuple[float, float]:
    """F1 of words as bags, of (truth, text): over all words, and the documents' mean. `cut` makes words of a text."""
    counts = []
    for truth, text in pairs:
        expected, found = Counter(cut(truth)), Counter(cut(text))
        counts.append(((expected & found).total(), expected.total(), found.total()))
    both, expected_all, found_all = (sum(column) for column in zip(*counts, strict=True))
    mean = sum(2 * hit / max(1, want + got) for hit, want, got in counts) / len(counts)
    return 2 * both / max(1, expected_all + found_all), mean


# Tests of olmOCR-bench (the semantics of allenai/olmocr, olmocr/bench/tests.py)


def check(test: Test, text: str) -> str | None:
    """None if the text passes the test, else why it doesn't."""
    kind = test["type"]
    if kind in ("present", "absent"):
        return _check_presence(test, text)
    if kind == "order":
        return _check_order(test, text)
    if kind == "table":
        return _check_table(test, text)
    if kind == "math":
        return _check_math(test, text)
    raise ValueError(f"{test['id']}: no test of type {kind!r} is known")


def _check_presence(test: Test, text: str) -> str | None:
    query, text, diffs = normalise(test["text"]), normalise(text), test.get("max_diffs", 0)
    if not test.get("case_sensitive", True):
        query, text = query.lower(), text.lower()
    first, last = test.get("first_n"), test.get("last_n")
    if first or last:
        text = (text[:first] if first else "") + (text[-last:] if last else "")
    if len(text) < len(query) - diffs:
        return "the text is too short" if test["type"] == "present" else None
    found = best_ratio(query, text, 1 - diffs / len(query))
    if (found >= 1 - diffs / len(query)) == (test["type"] == "present"):
        return None
    return f"{test['text']!r}: best match {found:.3f}"


def _check_order(test: Test, text: str) -> str | None:
    text, diffs = normalise(text), test.get("max_diffs", 0)
    starts = []
    for key in ("before", "after"):
        found = near_matches(normalise(test[key]), text, diffs)
        if not found:
            return f"{key} {test[key]!r} not found"
        starts.append(found)
    return None if min(starts[0]) < max(starts[1]) else "found in the other order"


def _check_table(test: Test, text: str) -> str | None:
    diffs = int(test.get("max_diffs", 0))
    directions = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}

    def same(expected: str, cell: str) -> bool:
        return ratio(expected, normalise(cell)) + 1e-9 >= max(0.5, 1 - diffs / max(1, len(expected)))

    found = False
    tables = pipe_tables(text) + html_tables(text)
    for table in tables:
        for place in [place for place, cell in table.texts.items() if same(normalise(test["cell"]), cell)]:
            found = True
            related = {key: table.beside(place, *step) for key, step in directions.items()}
            related |= {"top_heading": table.headings(place, -1, 0), "left_heading": table.headings(place, 0, -1)}
            if all(
                any(same(normalise(test[key]), table.texts[other]) for other in others)
                for key, others in related.items()
                if test.get(key)
            ):
                return None
    if not tables:
        return "no table"
    return f"{test['cell']!r}: " + ("not beside what is expected" if found else "no such cell")


def _check_math(test: Test, text: str) -> str | None:
    """Only an equation written in the same way passes; the bench also renders both and compares what is seen."""
    for pattern in (r"\\\((.+?)\\\)", r"\\\[(.+?)\\\]", r"\$\$(.+?)\$\$", r"\$(.+?)\$"):
        if any(found.strip() == test["math"].strip() for found in re.findall(pattern, text, re.DOTALL)):
            return None
    return f"{test['math']!r} not found"


def normalise(text: str) -> str:
    """Text as the bench compares it: without emphasis, with plain spaces, quotes and dashes."""
    text = re.sub(r"<br/?>", " ", text)
    text = re.sub(r"\*\*(.*?)\*\*|__(.*?)__", lambda match: match.group(1) or match.group(2) or "", text)
    text = re.sub(r"</?[bi]>", "", text)
    text = re.sub(r"(\*|_)(.*?)\1", r"\2", text)
    text = unicodedata.normalize("NFC", re.sub(r"\s+", " ", text))
    return text.translate(str.maketrans("‘’‚“”„＿–—‑‒−\u00b5", "'''\"\"\"_-----\u03bc"))


def ratio(first: str, second: str) -> float:
    """Twice the longest common subsequence by the lengths' sum (rapidfuzz's `ratio`, as a share)."""
    if not first and not second:
        return 1.0
    return 2 * _common(_places(first), len(first), second) / (len(first) + len(second))


def best_ratio(query: str, text: str, enough: float) -> float:
    """The best `ratio` of the query with a stretch of its length in the text (rapidfuzz's `partial_ratio`)."""
    if query in text or not query:
        return 1.0
    places, length, best = _places(query), len(query), 0.0
    wanted = Counter(query)
    for start in range(1 - length, len(text)):
        window = text[max(0, start) : start + length]
        if 2 * (Counter(window) & wanted).total() / (length + len(window)) > max(best, enough - 0.15):
            best = max(best, 2 * _common(places, length, window) / (length + len(window)))
    return best


def near_matches(query: str, text: str, diffs: int) -> list[int]:
    """Where stretches of the text begin that are at most `diffs` edits from the query."""
    exact = [match.start() for match in re.finditer(re.escape(query), text)]
    if not diffs:
        return exact
    costs, begins = list(range(len(query) + 1)), [0] * (len(query) + 1)
    starts = set(exact)
    for place, sign in enumerate(text):
        above_cost, above_begin = costs[0], begins[0]
        begins[0] = place + 1
        for n, wanted in enumerate(query, 1):
            options = (
                (above_cost + (sign != wanted), above_begin),
                (costs[n] + 1, begins[n]),
                (costs[n - 1] + 1, begins[n - 1]),
            )
            above_cost, above_begin = costs[n], begins[n]
            costs[n], begins[n] = min(options, key=lambda option: option[0])
        if costs[-1] <= diffs:
            starts.add(begins[-1])
    return sorted(starts)


def _places(text: str) -> dict[str, int]:
    places: dict[str, int] = defaultdict(int)
    for n, sign in enumerate(text):
        places[sign] |= 1 << n
    return places


def _common(places: dict[str, int], length: int, other: str) -> int:
    """Length of the longest common subsequence, by bits (Hyyrö 2004)."""
    full = (1 << length) - 1
    row = full
    for sign in other:
        match = row & places.get(sign, 0)
        row = ((row + match) | (row - match)) & full
    return length - row.bit_count()


@dataclass(frozen=True)
class Table:
    """`grid` names for each place the cell that covers it (its own top left place), None where there is none."""

    grid: list[list[tuple[int, int] | None]]
    texts: dict[tuple[int, int], str]
    heads: set[tuple[int, int]]

    def beside(self, cell: tuple[int, int], down: int, right: int) -> set[tuple[int, int]]:
        """The next cells in a direction, from each place that the cell covers."""
        found = set()
        covered = [(y, x) for y, row in enumerate(self.grid) for x, owner in enumerate(row) if owner == cell]
        for y, x in covered:
            y, x = y + down, x + right
            while 0 <= y < len(self.grid) and 0 <= x < len(self.grid[y]) and self.grid[y][x] in (None, cell):
                y, x = y + down, x + right
            if 0 <= y < len(self.grid) and 0 <= x < len(self.grid[y]) and (other := self.grid[y][x]) is not None:
                found.add(other)
        return found

    def headings(self, cell: tuple[int, int], down: int, right: int) -> set[tuple[int, int]]:
        """All heading cells in a direction, or the outermost cells where none is a heading."""
        heads, ends, seen, waiting = set(), set(), set(), {cell}
        while waiting:
            current = waiting.pop()
            seen.add(current)
            following = self.beside(current, down, right)
            if current in self.heads:
                heads.add(current)
            if not following:
                ends.add(current)
            waiting |= following - seen
        return (heads - {cell}) or (ends - {cell})


def pipe_tables(text: str) -> list[Table]:
    tables: list[Table] = []
    rows: list[list[tuple[str, int, int, bool]]] = []
    for line in [*text.splitlines(), ""]:
        if "|" in line:
            if not re.fullmatch(r"[-\s:|]+", line):
                cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
                rows.append([(cell, 1, 1, not rows or n == 0) for n, cell in enumerate(cells)])
        else:
            if len(rows) > 1:
                tables.append(_table(rows))
            rows = []
    return tables


def html_tables(text: str) -> list[Table]:
    reader = _TableReader()
    reader.feed(text)
    return [_table(rows) for rows in reader.tables if rows]


def _table(rows: Sequence[Sequence[tuple[str, int, int, bool]]]) -> Table:
    """From rows of cells given as text, rows and columns spanned, and whether it is a heading."""
    grid: list[list[tuple[int, int] | None]] = [[] for _ in rows]
    texts, heads = {}, set()
    for y, row in enumerate(rows):
        x = 0
        for text, down, right, heading in row:
            while x < len(grid[y]) and grid[y][x] is not None:
                x += 1
            texts[y, x] = text
            if heading:
                heads.add((y, x))
            for line in grid[y : y + down]:
                line += [None] * (x + right - len(line))
                line[x : x + right] = [(y, x)] * right
            x += right
    return Table(grid, texts, heads)


class _TableReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[str, int, int, bool]]]] = []
        self._cell: tuple[int, int, bool] | None = None
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables and self.tables[-1]:
            self._cell = int(values.get("rowspan") or 1), int(values.get("colspan") or 1), tag == "th"
            self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append((self._text.strip(), *self._cell))
            self._cell = None


# Reading


def _read(
    name: str, build: Callable[[], Callable[[Path], list[Page]]], paths: Sequence[Path], cache: Path | None
) -> dict[str, list[Page]]:
    """Each document's pages, lines in the engine's own order, from the cache's folder `name` where it has them."""
    read: dict[str, list[Page]] = {}
    reader: Callable[[Path], list[Page]] | None = None
    for path in paths:
        kept = cache / name / f"{path.name}.json" if cache else None
        if kept is not None and kept.exists():
            read[path.name] = [Page.model_validate(page) for page in json.loads(kept.read_text())]
            continue
        reader = reader or build()
        read[path.name] = reader(path)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps([page.model_dump(mode="json", exclude_none=True) for page in read[path.name]]))
    return read


def _in_order(pages: Sequence[Page]) -> str:
    return "\n".join(line.text for page in pages for line in page.lines)


def _rapidocr() -> Callable[[Path], list[Page]]:
    from rapidocr import RapidOCR
    from rapidocr.utils.output import RapidOCROutput

    engine = RapidOCR()

    def read(path: Path) -> list[Page]:
        pages = []
        for number, image in enumerate(_images(path), 1):
            found = engine(np.asarray(image)[:, :, ::-1])  # it takes blue, green, red
            assert isinstance(found, RapidOCROutput)
            lines = [Line(text=text) for text in found.txts or ()]
            status: Literal["ok", "blank"] = "ok" if lines else "blank"
            pages.append(Page(number=number, width=image.width, height=image.height, status=status, lines=lines))
        return pages

    return read


def _pagefleet() -> Callable[[Path], list[Page]]:
    engine = RapidOcrEngine(EngineSettings(threads=os.cpu_count() or 1))

    def read(path: Path) -> list[Page]:
        pages = []
        for number, image in enumerate(_images(path), 1):
            (text,) = engine.read([PageImage(number, np.array(image))])
            if text.error:
                raise RuntimeError(f"{path}, page {number}: {text.error}")
            status: Literal["ok", "blank"] = "ok" if text.lines else "blank"
            pages.append(Page(number=number, width=text.width, height=text.height, status=status, lines=text.lines))
        return pages

    return read


def _images(path: Path) -> list[Image.Image]:
    if path.suffix != ".pdf":
        with Image.open(path) as image:
            return [image.convert("RGB")]
    import pypdfium2

    document = pypdfium2.PdfDocument(path)
    return [page.render(scale=DPI / 72).to_pil().convert("RGB") for page in document]


def _tesseract(path: Path) -> str:
    texts = []
    for image in _images(path):
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            image.save(file.name)
            done = subprocess.run(["tesseract", file.name, "-"], capture_output=True, text=True, check=True)
            texts.append(done.stdout)
    return "\n".join(texts)


if __name__ == "__main__":
    main()
