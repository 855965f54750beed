"""The report as a reader of the file sees it: its markup, its data blocks, its bounds. And the numbers of `Tally`."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import re
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from jobs.errors import UsageError
from jobs.local import finish, write_report_file
from jobs.report import Limits, thumbnail, write_report
from jobs.results import RunFolder
from jobs.summary import Summary, Tally, format_bytes, format_seconds
from worker.contract import Counts, Failure, FailureCode, Line, Meta, Options, Page, Result, Role, Run, RunPaths, Task
from worker.storage import LocalStorage, path_uri

START = datetime(2026, 11, 21, 15, 30, tzinfo=UTC)
PICTURE = thumbnail(np.full((90, 60, 3), 240, np.uint8))
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'`${alert(1)} onmouseover=alert(1)",
    "<!-- <script>",
    "\u2028\u2029 ]]> &lt;b&gt;",
    "nul\0 and lone \udcff",
    "{{data}}\n{{script}}",
]

Named = tuple[str, Result | Failure | None]


def page(number: int = 1, *confidences: float | None, status: Any = "ok", text: str = "a line") -> Page:
    box = [(5, 5), (55, 5), (55, 15), (5, 15)]
    lines = [Line(text=text, confidence=confidence, polygon=box) for confidence in confidences]
    return Page(number=number, width=60, height=90, status=status, lines=lines, markdown=text if lines else "")


def result(name: str, *pages: Page, status: Any = "ok", at: int = 0, seconds: float = 1.0, **more: Any) -> Result:
    meta = Meta(
        model="m", runtime="local", timestamp=START + timedelta(seconds=at), engine="e", seconds=seconds, worker="1"
    )
    return Result(
        source_image=f"file:///{name}", extracted_markdown="", meta=meta, status=status, pages=list(pages), **more
    )


def failure(name: str, code: FailureCode = FailureCode.CORRUPT, message: str = "cut short") -> Failure:
    return Failure(source_image=f"file:///{name}", code=code, message=message, attempt=1, timestamp=START)


def run(**changes: Any) -> Run:
    counts = Counts(documents=0, tasks=0, shards=1)
    made = Run(id="a-run", created=START, engine="e", options=Options(), root="file:///", counts=counts)
    return made.model_copy(update=changes)


def summarise(outcomes: Iterable[Named], **changes: Any) -> Summary:
    tally = Tally()
    for _, outcome in outcomes:
        tally.add(outcome)
    return tally.summary(run(**changes))


def pictures(result: Result, numbers: list[int]) -> Iterator[tuple[int, bytes | None]]:
    return ((number, PICTURE) for number in numbers)


class Report(HTMLParser):
    """What a browser would make of the file: elements with attributes, the text of each script and style."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.size = len(content)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, str] = {}
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self._inside: tuple[str, dict[str, str | None]] | None = None
        self.feed(content.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = self.elements[-1]

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        tag, attributes = self._inside or ("", {})
        if tag == "script" and attributes.get("type"):
            name = attributes["id"] or ""
            self.blocks[name] = self.blocks.get(name, "") + data
        elif tag == "script":
            self.scripts.append(data)
        elif tag == "style":
            self.styles.append(data)
        else:
            self.text += data

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.blocks["index"])["rows"]
        return rows

    @property
    def shown_pages(self) -> dict[str, list[int]]:
        return {row["n"]: row["v"] for row in self.rows if row.get("v")}

    @property
    def images(self) -> list[str]:
        return [name for name in self.blocks if name.startswith("i") and name != "index"]


def make(
    outcomes: list[Named],
    images: Callable[[Result, list[int]], Iterable[tuple[int, bytes | None]]] = pictures,
    limits: Limits | None = None,
    **changes: Any,
) -> Report:
    out = io.BytesIO()
    write_report(out, summarise(outcomes, **changes), lambda: iter(outcomes), images, limits, place="out/one")
    return Report(out.getvalue())


def test_each_outcome_is_read_once_by_collect_and_not_by_the_report(tmp_path: Path) -> None:
    paths = RunPaths(path_uri(tmp_path / "out"))
    storage = LocalStorage()
    outcomes: list[Named] = [("a", result("a", page(1, 0.9))), ("b", failure("b")), ("c", None)]
    tasks = [Task(uri=f"file:///{name}", name=name) for name, _ in outcomes]
    storage.write(paths.run, run(counts=Counts(documents=3, tasks=3, shards=1)).to_json().encode())
    storage.write(paths.shard(0), "".join(task.to_json() + "\n" for task in tasks).encode())
    for task, (_, outcome) in zip(tasks, outcomes, strict=True):
        if outcome:
            place = paths.failure(task) if isinstance(outcome, Failure) else paths.result(task)
            storage.write(place, outcome.to_json().encode())

    class Counting:
        asked: ClassVar[list[str]] = []

        def read(self, uri: str) -> bytes:
            self.asked.append(uri.removeprefix(paths.base))
            return storage.read(uri)

        def __getattr__(self, name: str) -> Any:
            return getattr(storage, name)

    folder = RunFolder(Counting(), paths.base)  # type: ignore[arg-type]
    summary = finish(folder, report=True)
    read = [uri for uri in Counting.asked if uri.startswith(("/documents/", "/failures/"))]
    assert sorted(read) == ["/documents/a.json", "/documents/b.json", "/failures/b.json"]  # b: is there a result?
    report = Report((tmp_path / "out/report.html").read_bytes())
    assert [(row["n"], row["s"]) for row in report.rows] == [("a", "ok"), ("b", "failed"), ("c", "unaccounted")]
    assert report.shown_pages == {"a": [1]}
    (tmp_path / "out/results.jsonl").unlink()
    with pytest.raises(UsageError, match=r"has no results\.jsonl"):
        write_report_file(folder, summary)


def test_one_file_that_asks_the_network_for_nothing() -> None:
    report = make([("a.png", result("a.png", page(1, 0.9))), ("b.png", failure("b.png"))])
    for tag, attributes in report.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not {"src", "href", "srcset", "action", "style"} & attributes.keys(), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    for code in report.scripts + report.styles:
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|\burl\(|@import|\bfetch\(|XMLHttpRequest", code)
    assert len(report.scripts) == len(report.styles) == 1


def test_only_its_own_script_and_style_may_run() -> None:
    report = make([])
    policy = next(a["content"] for _, a in report.elements if a.get("http-equiv") == "Content-Security-Policy") or ""
    for directive, content in (("script-src", report.scripts[0]), ("style-src", report.styles[0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "\r" not in report.scripts[0] + report.styles[0]  # a browser hashes what is left after dropping these


@pytest.mark.parametrize("evil", HOSTILE)
def test_text_from_documents_stays_text(evil: str) -> None:
    visible = evil.replace("\udcff", "")  # a record takes no lone surrogate; only a name may have one
    outcomes: list[Named] = [
        (evil, result("a", page(1, 0.5, text=visible), warnings=[visible])),
        (f"{evil}/failed", failure("b", message=visible)),
        (f"{evil}/lost", None),
    ]
    report = make(outcomes, id=visible, engine=visible, warnings=[visible], versions={visible: visible})
    plain = make([("a", outcomes[0][1]), ("b", outcomes[1][1]), ("c", None)], warnings=["w"], versions={"v": "w"})
    assert [tag for tag, _ in report.elements] == [tag for tag, _ in plain.elements]
    assert [row["n"] for row in report.rows] == [name for name, _ in outcomes]
    assert report.rows[1]["m"] == visible
    assert json.loads(report.blocks["p0.1"])["t"] == [visible]
    assert json.loads(report.blocks["d0"])["warnings"] == [visible]
    for name, block in report.blocks.items():
        assert not set(block) & set("<>&\u2028\u2029"), name


def test_overview_tells_the_counts() -> None:
    outcomes: list[Named] = [
        ("a", result("a", page(1, 0.97, 0.42), page(2, status="blank"), at=10, seconds=10)),
        ("b", result("b", page(1, 0.9), page(2, status="failed"), status="partial", at=20)),
        ("c", failure("c", FailureCode.ENCRYPTED)),
        ("d", failure("d", FailureCode.ENCRYPTED)),
        ("e", failure("e", FailureCode.EMPTY)),
        ("f", None),
    ]
    report = make(outcomes)
    for said in (
        "1 ok",
        "1 partial",
        "3 failed",
        "1 unaccounted",
        "1 blank",
        "0.95–1.00: 1 line",
        "0.20",
        "in 20.0 s",
    ):
        assert said in report.text, said
    assert "1 of 3 lines below 0.8" in report.text
    codes = [attributes["data-code"] for _, attributes in report.elements if "data-code" in attributes]
    assert codes == ["encrypted", "empty", "unaccounted"]
    assert not [attributes for _, attributes in report.elements if attributes.get("id") == "notes"]  # nothing left out


def test_list_rows_carry_what_filters_need() -> None:
    good = page(2, *[0.95] * 10)
    a_tenth = page(3, *[0.95] * 10, 0.3)  # one in eleven: not yet
    outcomes: list[Named] = [
        ("low", result("low", page(1, 0.5, 0.7), good, a_tenth)),
        ("lines", result("lines", page(1, *[0.95] * 8, 0.3))),
        ("zero", result("zero", page(1, 0.0))),
        ("fine", result("fine", page(1, status="blank"), good)),
        ("none", result("none", page(1, None))),
        ("bad", failure("bad", FailureCode.TIMEOUT, "x" * 900)),
        ("lost", None),
    ]
    low, lines, zero, fine, none, bad, lost = make(outcomes).rows
    assert (low["q"], lines["q"], zero["q"]) == (1, 1, 1)
    assert (zero["c"], zero["w"]) == (0, 0)
    assert "q" not in fine
    assert fine["b"] == 1
    assert not {"c", "w", "q"} & none.keys()  # no confidence is not a low one
    assert bad["k"] == "timeout"
    assert len(bad["m"]) == 500
    assert lost["s"] == "unaccounted"


def test_pages_keep_lines_polygons_roles_and_image() -> None:
    line = Line(text="7", confidence=0.98765, polygon=[(1, 2), (3, 2), (3, 4), (1, 4)], role=Role.PAGE_NUMBER)
    shown = Page(number=7, width=60, height=90, status="ok", rotation=90, lines=[line, Line(text="é 中")], markdown="m")
    report = make([("a", result("a", shown))])
    data = json.loads(report.blocks["p0.7"])
    assert data["p"] == [[1, 2, 3, 2, 3, 4, 1, 4], None]
    assert data["c"] == [0.988, None]
    assert data["o"] == ["page_number", None]
    assert data["t"] == ["7", "é 中"]
    assert (data["w"], data["h"], data["r"], data["md"]) == (60, 90, 90, "m")
    media_type, _, image = report.blocks["i0.7"].partition(",")
    assert media_type == "image/webp"
    assert base64.b64decode(image) == PICTURE


def test_a_page_without_its_source_is_shown_without_image() -> None:
    report = make([("a", result("a", page(1, 0.9)))], lambda result, numbers: [(n, None) for n in numbers])
    assert report.shown_pages == {"a": [1]}
    assert report.images == []


def test_every_failure_code_has_a_next_step_in_the_report() -> None:
    steps = json.loads(make([]).blocks["index"])["steps"]
    assert set(steps) == {*map(str, FailureCode), "unaccounted"}
    assert "`pagefleet resume out/one --retry-failed`" in steps["encrypted"]
    assert "`pagefleet resume out/one`" in steps["unaccounted"]
    assert not any("{" in step for step in steps.values())


def test_a_large_run_is_sampled_and_says_so() -> None:
    outcomes: list[Named] = [(f"{i:04}.png", result(f"{i:04}.png", page(1, 0.99))) for i in range(900)]
    outcomes[17] = ("low.png", result("low.png", page(1, 0.4)))
    outcomes[450] = ("partial.pdf", result("partial.pdf", page(1, 0.99), page(2, status="failed"), status="partial"))
    outcomes[800:810] = [(f"bad{i}", failure(f"bad{i}")) for i in range(10)]
    limits = Limits(pages=50, rows=100)
    report = make(outcomes, limits=limits)
    shown = report.shown_pages
    assert sum(map(len, shown.values())) == len(report.images) == 50
    assert 2 in shown["partial.pdf"]
    assert "low.png" in shown
    names = [row["n"] for row in report.rows]
    assert {f"bad{i}" for i in range(10)} <= set(names)
    assert 100 <= len(names) <= 150
    thirds = [sum(name < bound for name in shown if name[0] == "0") for bound in ("0300", "0600", "0900")]
    assert thirds[0] > 5  # from everywhere in the run,
    assert thirds[2] - thirds[1] > 5
    assert "This report shows 50 of 891 pages" in report.text
    assert f"The list names {len(names)} of 900 documents" in report.text
    assert "900" in report.text
    # and the same ones whatever the order
    random.Random(1).shuffle(outcomes)
    assert make(outcomes, limits=limits).shown_pages == shown


def test_attention_leaves_half_of_the_places_to_ordinary_pages() -> None:
    outcomes: list[Named] = [(f"bad{i}", result("x", page(1, 0.1 + i / 1000))) for i in range(100)]
    outcomes += [(f"good{i}", result("x", page(1, 0.99))) for i in range(900)]
    shown = make(outcomes, limits=Limits(pages=40)).shown_pages
    assert {f"bad{i}" for i in range(20)} <= shown.keys()  # the worst half
    assert sum(name.startswith("good") for name in shown) >= 12


def test_one_long_document_is_sampled_by_page() -> None:
    long = result("long.pdf", *[page(n, 0.99) for n in range(1, 601)])
    asked: list[int] = []

    def images(result: Result, numbers: list[int]) -> Iterator[tuple[int, bytes]]:
        asked.extend(numbers)
        return ((number, PICTURE) for number in numbers)

    report = make([("long.pdf", long)], images, Limits(pages=30))
    assert report.rows[0]["p"] == 600
    assert report.shown_pages["long.pdf"] == sorted(asked)
    assert len(asked) == 30


@pytest.mark.parametrize("max_bytes", [150_000, 400_000, 2_000_000])
def test_the_file_keeps_within_its_size(max_bytes: int) -> None:
    noise = random.Random(1)
    image = b"\xff\xd8" + noise.randbytes(20_000)
    outcomes: list[Named] = [(f"{i:03}", result(str(i), page(1, 0.99, text="text " * 50))) for i in range(200)]
    outcomes[150] = ("worst", result("worst", page(1, 0.1)))
    report = make(outcomes, lambda result, numbers: [(n, image) for n in numbers], Limits(max_bytes=max_bytes))
    assert report.size <= max_bytes
    assert len(report.images) < len(report.shown_pages)
    assert f"{len(report.shown_pages) - len(report.images)} page images. Such a page is drawn" in report.text
    if max_bytes >= 400_000:
        assert len(report.shown_pages) == 200  # text before images
    if max_bytes == 2_000_000:
        kept = [int(name[1:].split(".")[0]) for name in report.images]
        assert 150 in kept
        assert sum(k < 66 for k in kept) > 5
        assert sum(k > 132 for k in kept) > 5  # thinned out evenly, not cut off


def test_a_page_of_endless_text_cannot_burst_the_file() -> None:
    outcomes: list[Named] = [
        ("endless", result("endless", page(1, 0.9, text="again " * 400_000))),
        ("x" * 3_000_000, None),
        ("fine", result("fine", page(1, 0.9))),
    ]
    report = make(outcomes, limits=Limits(max_bytes=1_000_000))
    assert report.size <= 1_000_000
    assert report.shown_pages == {"fine": [1]}
    assert "shows 1 of 2 pages" in report.text
    assert "names 2 of 3 documents" in report.text


def test_an_empty_run_makes_a_report() -> None:
    report = make([])
    assert report.rows == []
    assert "No confidences in this run." in report.text


def test_memory_does_not_grow_with_the_run() -> None:
    class Sink(io.RawIOBase):
        def write(self, data: Any) -> int:
            return len(data)

    def outcomes(count: int) -> Callable[[], Iterator[Named]]:
        return lambda: ((f"{i}", result(f"{i}", page(1, 0.99, text="text " * 100))) for i in range(count))

    def images(result: Result, numbers: list[int]) -> Iterator[tuple[int, bytes]]:
        return ((number, bytes(100_000)) for number in numbers)

    def peak(count: int) -> int:
        summary = summarise(outcomes(count)())
        tracemalloc.start()
        try:
            write_report(Sink(), summary, outcomes(count), images, Limits(pages=100, rows=200), place="")  # type: ignore[arg-type]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(400), peak(4_000)
    assert large < small * 1.3
    assert large < 2_000_000  # while it writes 13 MB of images


def test_thumbnail_is_small_upright_webp() -> None:
    image = Image.open(io.BytesIO(thumbnail(np.zeros((2200, 1700, 3), np.uint8), 900)))
    assert (image.format, image.size) == ("WEBP", (695, 900))
    assert Image.open(io.BytesIO(thumbnail(np.zeros((50, 40, 3), np.uint8), 900))).size == (40, 50)


def test_thumbnail_of_a_strip_keeps_its_text() -> None:
    width, height = Image.open(io.BytesIO(thumbnail(np.zeros((20_000, 500, 3), np.uint8), 900))).size
    assert width == 225
    assert height == 9_000
    assert max(Image.open(io.BytesIO(thumbnail(np.zeros((10, 20_000, 3), np.uint8), 900))).size) == 16_383


def test_tally_adds_up() -> None:
    tally = Tally()
    tally.add(result("a", page(1, 1.0, 0.95, 0.949, 0.0), page(2, None), at=100, seconds=4))
    tally.add(result("b", page(1, status="failed"), page(2, status="blank"), status="partial", at=50, seconds=10))
    tally.add(failure("c"))
    tally.add(None)
    summary = tally.summary(run(warnings=["planned"]), bytes=5, warnings=["later"])
    assert summary.documents.model_dump() == {"total": 4, "ok": 1, "partial": 1, "failed": 1, "unaccounted": 1}
    assert summary.pages.model_dump() == {"total": 4, "ok": 2, "blank": 1, "failed": 1}
    assert summary.lines == 5
    assert summary.mean_confidence == pytest.approx((1.0 + 0.95 + 0.949) / 4)
    assert summary.confidence_histogram == [1, *[0] * 17, 1, 2]
    assert summary.seconds == 100  # from the failure at 0 to the last result
    assert summary.pages_per_second == 0.04
    assert summary.finished == START + timedelta(seconds=100)
    assert summary.failures_by_code == {"corrupt": 1}
    assert summary.warnings == ["planned", "later"]
    assert Summary.model_validate_json(summary.to_json()) == summary


@pytest.mark.parametrize("bin", range(20))
def test_a_bin_starts_at_its_lower_bound(bin: int) -> None:
    histogram = summarise([("a", result("a", page(1, round(bin * 0.05, 2))))]).confidence_histogram
    assert histogram.index(1) == bin


def test_seconds_given_count() -> None:
    tally = Tally()
    tally.add(result("a", page(1, 0.9), at=100))
    assert tally.summary(run(), seconds=0.5).pages_per_second == 2
    assert Tally().summary(run()).pages_per_second is None


def test_summary_in_markdown() -> None:
    outcomes: list[Named] = [("a", result("a", page(1, 0.9))), ("b", failure("b", FailureCode.ENCRYPTED)), ("c", None)]
    text = summarise(outcomes, warnings=["a | b\nc"]).to_markdown("'my scans'")
    assert "| documents | 3 (1 ok, 1 failed, 1 unaccounted) |" in text
    assert "| `encrypted` | 1 | Remove the password, then run `pagefleet resume 'my scans' --retry-failed`. |" in text
    assert "1 unaccounted for" in text
    assert "run `pagefleet resume 'my scans'`, which" in text
    assert "- a | b c\n" in text
    assert text.endswith("\n")


def test_figures_are_said_shortly() -> None:
    assert [format_seconds(s) for s in (3.21, 245, 7_620)] == ["3.2 s", "4 min 05 s", "2 h 07 min"]
    assert [format_bytes(b) for b in (0, 999, 1_000, 3_400_000, 10**15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "3.4 MB",
        "1000.0 TB",
    ]
