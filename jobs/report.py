"""`report.html`: a run to look through in a browser, in one file that asks the network for nothing.
Documents and images are streamed into it; a run beyond the limits is sampled, and the page says so."""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any, BinaryIO

from jobs.summary import (
    HISTOGRAM_BINS,
    Summary,
    format_bytes,
    format_cost,
    format_seconds,
    next_steps,
    page_confidence,
)
from jobs.wording import plural
from worker.contract import Failure, Page, Result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOW_CONFIDENCE = 0.8  # a page whose mean, or a tenth of whose lines, is below it wants a look

Outcomes = Callable[[], Iterable[tuple[str, Result | Failure | None]]]
PageImages = Callable[[Result, list[int]], Iterable[tuple[int, bytes | None]]]


@dataclass(frozen=True)
class Limits:
    """What keeps the page usable: measured in Chromium, it opens within a few seconds at these."""

    pages: int = 1_000  # with their text and image; sampled beyond
    rows: int = 20_000  # documents in the list; sampled beyond (those with pages shown come on top)
    max_bytes: int = 100_000_000  # of the file


def write_report(
    out: BinaryIO,
    summary: Summary,
    outcomes: Outcomes,
    page_images: PageImages,
    limits: Limits | None = None,
    *,
    place: str,
) -> None:
    """Writes the report of a run into `out`, which need not be seekable.

    `place` is the run's folder, as it is typed in a command.

    `outcomes()` is called twice, and each time gives every document of the run once as (name, outcome), None for one
    of which nothing was found; the first pass chooses what to show, the second writes it. `page_images(result,
    numbers)` gives (number, image) for the page numbers asked for, in any order; an image is a WebP, JPEG or PNG file
    of the upright page at any scale (see `thumbnail`), or None where the source can't be read any more: the page is
    then drawn from its lines. One image at a time is held in memory.
    """
    limits = limits or Limits()
    choice = _choose(outcomes(), limits)
    top, script = _frame(summary)
    writer = _Writer(out)
    writer.write(top)
    _Body(writer, choice, limits, reserved=len(script), steps=next_steps(place)).write(outcomes(), page_images)
    writer.write(script)


def thumbnail(pixels: NDArray[np.uint8], longest_side: int = 900, quality: int = 40) -> bytes:
    """A page image, (height, width, 3) RGB, as a small WebP file: about 25 kB for a receipt, 57 kB for a dense page.

    Never enlarged. A long strip gets more than `longest_side`, so that its text is not lost: its short side keeps a
    quarter of that, within the 16,383 pixels that WebP can hold.
    """
    from PIL import Image

    image = Image.fromarray(pixels)
    short, long = sorted(image.size)
    side = min(max(longest_side, long * (longest_side // 4) // short), 16_383)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=2)  # method 4 saves 3 % of the size for a third more time
    return file.getvalue()


# --- what to show


@dataclass
class _Choice:
    """Documents are known by the hash of their names: a second pass may come in another order."""

    pages: dict[int, set[int]] = field(default_factory=dict)
    rows: set[int] = field(default_factory=set)
    shown_pages: int = 0
    all_pages: int = 0
    all_rows: int = 0


def _choose(outcomes: Iterable[tuple[str, Result | Failure | None]], limits: Limits) -> _Choice:
    """Failed and least confident pages get up to half of the places, an even sample of all pages gets the rest.

    An even sample is the n smallest hashes: needs no total, gives the same pages each time.
    """
    choice = _Choice()
    attention = _Smallest(limits.pages // 2)
    even = _Smallest(limits.pages)
    rows = _Smallest(limits.rows)
    for name, outcome in outcomes:
        document = _hash(name)
        choice.all_rows += 1
        ended_well = isinstance(outcome, Result) and outcome.status == "ok"
        rows.offer((1.0 if ended_well else 0.0, document, 0))
        if not isinstance(outcome, Result):
            continue
        for page in outcome.pages:
            choice.all_pages += 1
            concern = _concern(page)
            if concern is not None:
                attention.offer((concern, document, page.number))
            even.offer((float(_hash(f"{name}\0{page.number}")), document, page.number))
    chosen = {(document, number) for _, document, number in attention.items()}
    for _, document, number in even.items():
        if len(chosen) >= limits.pages:
            break
        chosen.add((document, number))
    for document, number in chosen:
        choice.pages.setdefault(document, set()).add(number)
    choice.shown_pages = len(chosen)
    choice.rows = {document for _, document, _ in rows.items()} | choice.pages.keys()
    return choice


def _concern(page: Page) -> float | None:
    """Smaller is worse; None for a page that gives no reason to look at it.

    A mean hides a few misread lines on a good page, and those are what one looks for: a tenth of the lines counts too.
    """
    if page.status == "failed":
        return -1.0
    known = [line.confidence for line in page.lines if line.confidence is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    return mean if mean < LOW_CONFIDENCE or 10 * sum(c < LOW_CONFIDENCE for c in known) > len(known) else None


class _Smallest:
    """The `capacity` smallest of a stream of (key, document, page)."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._heap: list[tuple[float, int, int]] = []  # negated: the largest on top

    def offer(self, item: tuple[float, int, int]) -> None:
        negated = (-item[0], -item[1], -item[2])
        if len(self._heap) < self._capacity:
            heapq.heappush(self._heap, negated)
        elif self._heap and negated > self._heap[0]:
            heapq.heapreplace(self._heap, negated)

    def items(self) -> Iterator[tuple[float, int, int]]:
        """Smallest first."""
        for key, document, number in sorted(self._heap, reverse=True):
            yield -key, -document, -number


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


# --- the file


class _Writer:
    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.written = 0

    def write(self, data: bytes) -> None:
        self._out.write(data)
        self.written += len(data)


class _Body:
    """Data blocks: scripts of a type that no browser runs, which the page's own script reads when it needs them.

    `d<row>` holds a document, `p<row>.<page>` a page's text and lines, `i<row>.<page>` its image, `index` the list.
    """

    def __init__(self, writer: _Writer, choice: _Choice, limits: Limits, reserved: int, steps: dict[str, str]) -> None:
        self._writer = writer
        self._steps = steps
        self._choice = choice
        self._row_limit = limits.max_bytes // 8
        self._limit = limits.max_bytes - self._row_limit - reserved - 16_384  # for notes and the last row
        self._rows: list[bytes] = []
        self._row_bytes = 0
        self._pages_done = 0.0
        self._pages_written = 0
        self._start = writer.written
        self._image_bytes = 0
        self._images_left_out = 0

    def write(self, outcomes: Iterable[tuple[str, Result | Failure | None]], page_images: PageImages) -> None:
        for name, outcome in outcomes:
            document = _hash(name)
            if document not in self._choice.rows:
                continue
            row = _row(name, outcome)
            if self._row_bytes + len(_json(row)) > self._row_limit:
                continue
            details = _details(outcome)
            if details is not None:
                self._block(f"d{len(self._rows)}", _json(details), self._limit)
            if isinstance(outcome, Result):
                row["v"] = self._write_pages(outcome, self._choice.pages.get(document, set()), page_images)
            self._rows.append(_json(row))
            self._row_bytes += len(self._rows[-1]) + 1
        self._write_index()

    def _write_pages(self, result: Result, numbers: set[int], page_images: PageImages) -> list[int]:
        pages = {page.number: page for page in result.pages if page.number in numbers}
        written = [n for n, page in pages.items() if self._block(self._id("p", n), _json(_page(page)), self._limit)]
        self._pages_written += len(written)
        share = len(numbers) / max(len(written), 1)  # of the places; a page that found no room counts as done, too
        for number, image in page_images(result, written) if written else ():
            self._pages_done += share
            if image is None:
                continue
            # Text comes first: room for that of the pages to come is kept. Images of ordinary pages are thinned out
            # evenly when they are too large together, so that the last documents are as well illustrated as the
            # first; those that want a look are kept as long as there is room.
            text = (self._writer.written - self._start - self._image_bytes) / self._pages_written
            owed = 1.1 * text * (self._choice.shown_pages - self._pages_done)
            fair = 1.0
            if _concern(pages[number]) is None:
                fair = min(fair, self._pages_done / self._choice.shown_pages + 0.05)
            data = f"{_media_type(image)},".encode() + base64.b64encode(image)
            if self._block(self._id("i", number), data, int((self._limit - owed) * fair), "text/plain"):
                self._image_bytes += len(data)
            else:
                self._images_left_out += 1
        return written

    def _write_index(self) -> None:
        notes = self._notes()
        head = _json({"low": LOW_CONFIDENCE, "steps": self._steps})
        self._writer.write(b'<script type="application/json" id="index">' + head[:-1] + b',"rows":[')
        for i, row in enumerate(self._rows):
            self._writer.write(b"," + row if i else row)
        self._writer.write(b"]}</script>\n")
        if notes:
            items = "".join(f"<li>{escape(note)}</li>" for note in notes)
            self._writer.write(f'<ul id="notes" class="notes">{items}</ul>\n'.encode())

    def _notes(self) -> list[str]:
        choice = self._choice
        notes = []
        if self._pages_written < choice.all_pages:
            notes.append(
                f"This report shows {self._pages_written:,} of {plural(choice.all_pages, 'page')}: failed pages and "
                "those with the lowest confidence first, then an even sample of all. Text search covers the pages "
                "shown. The run's folder holds every result."
            )
        if len(self._rows) < choice.all_rows:
            notes.append(
                f"The list names {len(self._rows):,} of {plural(choice.all_rows, 'document')}: failed, partial and "
                "unaccounted ones first, then an even sample. The counts above are of the whole run."
            )
        if self._images_left_out:
            notes.append(
                f"Left out to keep the file small: {plural(self._images_left_out, 'page image')}. "
                "Such a page is drawn from its lines."
            )
        return notes

    def _id(self, kind: str, number: int) -> str:
        return f"{kind}{len(self._rows)}.{number}"

    def _block(self, id: str, data: bytes, limit: int, media_type: str = "application/json") -> bool:
        block = f'<script type="{media_type}" id="{id}">'.encode() + data + b"</script>\n"
        if self._writer.written + len(block) > limit:
            return False
        self._writer.write(block)
        return True


def _row(name: str, outcome: Result | Failure | None) -> dict[str, Any]:
    """What the list needs to show and filter a document; absent where zero or unknown."""
    if outcome is None:
        return {"n": name, "s": "unaccounted"}
    if isinstance(outcome, Failure):
        return {"n": name, "s": "failed", "k": outcome.code, "m": _clip(outcome.message, 500)}
    confidences = [line.confidence for page in outcome.pages for line in page.lines if line.confidence is not None]
    means = [mean for mean in map(page_confidence, outcome.pages) if mean is not None]
    row: dict[str, Any] = {
        "n": name,
        "s": outcome.status,
        "p": len(outcome.pages),
        "l": sum(len(page.lines) for page in outcome.pages),
        "b": sum(page.status == "blank" for page in outcome.pages),
        "f": sum(page.status == "failed" for page in outcome.pages),
        "c": round(sum(confidences) / len(confidences), 4) if confidences else None,
        "w": round(min(means), 4) if means else None,
        "q": sum(page.status == "ok" and _concern(page) is not None for page in outcome.pages),
    }
    return {key: value for key, value in row.items() if value or (key in "cw" and value is not None)}


def _details(outcome: Result | Failure | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    source = {"source": _clip(outcome.source_image, 2_000)}
    if isinstance(outcome, Failure):
        trace = {"traceback": outcome.traceback[-4_000:]} if outcome.traceback else {}
        return source | trace | {"attempt": outcome.attempt, "timestamp": outcome.timestamp.isoformat()}
    meta = outcome.meta
    return source | {
        "warnings": [_clip(warning, 500) for warning in outcome.warnings[:20]],
        "attempt": meta.attempt,
        "timestamp": meta.timestamp.isoformat(),
        "seconds": round(meta.seconds, 2),
        "model": meta.model,
    }


def _page(page: Page) -> dict[str, Any]:
    """Lines as columns: keys once, polygons flat."""
    return {
        "n": page.number,
        "w": page.width,
        "h": page.height,
        "s": page.status,
        "r": page.rotation,
        "e": page.error,
        "md": page.markdown,
        "t": [line.text for line in page.lines],
        "c": [None if line.confidence is None else round(line.confidence, 3) for line in page.lines],
        "p": [None if line.polygon is None else [v for xy in line.polygon for v in xy] for line in page.lines],
        "o": [line.role for line in page.lines],
    }


def _json(value: Any) -> bytes:
    """JSON that is safe inside a script element: nothing in it can end the element or open a comment.

    A lone surrogate, which a file's name may hold, becomes its JSON escape.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_UNSAFE).encode("utf-8", "backslashreplace")


_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _media_type(image: bytes) -> str:
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    return "image/png" if image[:8] == b"\x89PNG\r\n\x1a\n" else "image/jpeg"


# --- the page around them


def _frame(summary: Summary) -> tuple[bytes, bytes]:
    """What comes before the data blocks, and after them."""
    package = resources.files("jobs")
    style = package.joinpath("report.css").read_text("utf-8")
    script = package.joinpath("report.js").read_text("utf-8")
    values = {
        "title": escape(f"{summary.run_id} · Pagefleet"),
        "overview": _overview(summary),
        "style": style,
        "script": script,
        # Only this very script and style run; data blocks aren't scripts to a browser. No network at all.
        "policy": f"default-src 'none'; script-src {_csp_hash(script)}; style-src {_csp_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
    }
    top, _, bottom = package.joinpath("report_template.html").read_text("utf-8").partition("{{data}}\n")
    top, bottom = (re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], part) for part in (top, bottom))
    return top.encode("utf-8", "replace"), bottom.encode("utf-8", "replace")


def _csp_hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _overview(summary: Summary) -> str:
    documents, pages = summary.documents, summary.pages
    engine = summary.engine + (f" · {summary.model}" if summary.model else "")
    when = f"{summary.created:%Y-%m-%d %H:%M %Z}".rstrip()
    figures = [
        _figure("documents", f"{documents.total:,}", _parts(documents.model_dump(exclude={"total"}))),
        _figure("pages", f"{pages.total:,}", _parts(pages.model_dump(exclude={"total"}))),
        _figure("lines", f"{summary.lines:,}", ""),
        _figure("mean confidence", "–" if summary.mean_confidence is None else f"{summary.mean_confidence:.3f}", ""),
        _figure(
            "pages per second",
            "–" if summary.pages_per_second is None else f"{summary.pages_per_second:.2f}",
            "" if summary.seconds is None else escape(f"in {format_seconds(summary.seconds)}"),
        ),
    ]
    if summary.bytes is not None:
        figures.append(_figure("read", format_bytes(summary.bytes), ""))
    if summary.cost is not None:
        price, _, notes = format_cost(summary.cost).partition(" (")
        figures.append(_figure("cost", escape(price), escape(notes.removesuffix(")"))))
    return "\n".join(
        [
            f'<p class="run"><span class="brand">Pagefleet</span> run report</p><h1>{escape(summary.run_id)}</h1>',
            f'<p class="about">{escape(engine)} · {escape(when)}</p>',
            f'<dl class="figures">{"".join(figures)}</dl>',
            f'<div class="charts">{_histogram(summary)}{_failures(summary)}</div>',
            _more("Warnings", [escape(_clip(warning, 500)) for warning in summary.warnings]),
            _more("Versions", [f"{escape(k)} <code>{escape(v)}</code>" for k, v in sorted(summary.versions.items())]),
        ]
    )


def _figure(name: str, value: str, note: str) -> str:
    return f"<div><dt>{name}</dt><dd>{value}</dd>" + (f'<dd class="note">{note}</dd>' if note else "") + "</div>"


def _parts(counts: dict[str, int]) -> str:
    return " · ".join(f'<span class="{name}">{count:,} {name}</span>' for name, count in counts.items() if count)


def _histogram(summary: Summary) -> str:
    """Lines by confidence on a logarithmic axis: nearly all lie in the last bins, those that matter in the others."""
    bins = summary.confidence_histogram
    if not any(bins):
        none = '<p class="none">No confidences in this run.</p>'
        return f"<figure><figcaption>Lines by confidence</figcaption>{none}</figure>"
    width, height, left, bottom = 520, 150, 40, 22
    decades = max(1, math.ceil(math.log10(max(bins))))
    plot_width, plot_height = width - left - 4, height - bottom - 8
    shapes = []
    for exponent in range(decades + 1):
        y = 8 + plot_height * (1 - (exponent + 0.3) / (decades + 0.3))  # 0.3 of a decade: a bin of one line is seen
        label = f"{10**exponent:,}" if exponent < 4 else f"{10 ** (exponent - 3):,}k"
        shapes.append(f'<line class="grid" x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        shapes.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    step = plot_width / HISTOGRAM_BINS
    for i, count in enumerate(bins):
        if count:
            tall = plot_height * (math.log10(count) + 0.3) / (decades + 0.3)
            low = i / HISTOGRAM_BINS
            shapes.append(
                f'<rect class="{_level(low)}" x="{left + i * step + 1:.1f}" y="{8 + plot_height - tall:.1f}" '
                f'width="{step - 2:.1f}" height="{tall:.1f}">'
                f"<title>{low:.2f}–{low + 1 / HISTOGRAM_BINS:.2f}: {plural(count, 'line')}</title></rect>"
            )
    shapes.append(f'<line class="axis" x1="{left}" x2="{width}" y1="{8 + plot_height}" y2="{8 + plot_height}"/>')
    for tick in range(0, HISTOGRAM_BINS + 1, 4):
        anchor = "end" if tick == HISTOGRAM_BINS else "middle"
        value = tick / HISTOGRAM_BINS
        shapes.append(f'<text x="{left + tick * step:.1f}" y="{height - 6}" text-anchor="{anchor}">{value:.1f}</text>')
    below = sum(bins[: round(LOW_CONFIDENCE * HISTOGRAM_BINS)])
    label = f"{below:,} of {plural(sum(bins), 'line')} below {LOW_CONFIDENCE}"
    return (
        f"<figure><figcaption>Lines by confidence <small>(logarithmic; {label})</small></figcaption>"
        f'<svg class="histogram" viewBox="0 0 {width} {height}" role="img" aria-label="Histogram: {label}">'
        f"{''.join(shapes)}</svg></figure>"
    )


def _level(confidence: float) -> str:
    """The colour class of a confidence; the same steps as in the page's script."""
    steps = (("hi", 0.9), ("mid", LOW_CONFIDENCE), ("low", 0.6))
    return next((name for name, least in steps if confidence >= least), "bad")


def _failures(summary: Summary) -> str:
    counts = dict(summary.failures_by_code)
    if summary.documents.unaccounted:
        counts["unaccounted"] = summary.documents.unaccounted
    if not counts:
        return '<figure><figcaption>Failures by code</figcaption><p class="none">None.</p></figure>'
    most = max(counts.values())
    rows = "".join(
        f'<tr><th scope="row"><button type="button" data-code="{escape(code)}">{escape(code)}</button></th>'
        f'<td class="bar"><svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="bad" width="{100 * count / most:.1f}" height="10"/></svg></td><td>{count:,}</td></tr>'
        for code, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    return f'<figure><figcaption>Failures by code</figcaption><table class="failures">{rows}</table></figure>'


def _more(title: str, items: list[str], most: int = 100) -> str:
    if not items:
        return ""
    listed = items[:most] + ([f"… and {len(items) - most:,} more"] if len(items) > most else [])
    entries = "".join(f"<li>{item}</li>" for item in listed)
    return f'<details class="more"><summary>{title} ({len(items):,})</summary><ul>{entries}</ul></details>'
