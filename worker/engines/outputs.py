"""What vision models write, and what it says: one parser for each format, from the raw text to markdown and lines.

A parser never raises and never drops text: what is broken or cut short is kept as text, with a warning.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser

from worker.contract import Line, Point, Role
from worker.layout.text import escape, escape_start
from worker.wording import plural


@dataclass(frozen=True)
class Output:
    """What a model's text says of a page. Without `markdown`, it is to be written from the lines (`worker.layout`)."""

    markdown: str | None
    lines: list[Line]  # polygons in pixels of the page, clipped to it
    warnings: tuple[str, ...] = ()


Parser = Callable[[str, int, int], Output]  # the model's text; width and height of the page, pixels

NO_TEXT = ("没有文字", "图中没有文字", "图片中没有文字")  # how HunyuanOCR says so, full stop or not

HUNYUAN_SCALE = 1000  # its boxes go from 0 to this, each side by itself
CHANDRA_SCALE = 1000  # likewise, as its prompt asks ...
CHANDRA_1_SCALE = 1024  # ... and as that of its first release did


def parse_text(raw: str, width: int, height: int) -> Output:
    """Plain text: its lines as they stand."""
    rows = [row.strip() for row in _clean(raw).strip("\n").split("\n")]
    return Output("\n".join(escape(row) for row in rows), [Line(text=row) for row in rows if row])


def parse_markdown(raw: str, width: int, height: int) -> Output:
    """Markdown with tables and formulas however the model writes them. A fence around the whole is taken off."""
    text = _clean(raw).strip()
    fence = _FENCE.match(text)
    if not fence:
        return Output(text, [])
    body = text[fence.end() :]
    if fence["markdown"]:
        # The page may hold code: its fences come in pairs, and the one that is left over is that around the whole.
        marks = [row for row in body.split("\n") if row.startswith(fence["fence"])]
        if len(marks) % 2 and body.rsplit("\n", 1)[-1] == fence["fence"]:
            return Output(body.removesuffix(fence["fence"]).strip("\n"), [])
        if len(marks) % 2 == 0:
            return Output(body.strip("\n"), [], (_NOT_CLOSED,))
        return Output(text, [])  # the fence is part of the page
    end = body.find("\n" + fence["fence"])
    if end < 0 and not body.startswith(fence["fence"]):
        return Output(body.strip("\n"), [], (_NOT_CLOSED,))
    if body[max(end, 0) :].strip() != fence["fence"]:
        return Output(text, [])  # the fence is part of the page
    return Output(body[: max(end, 0)].strip("\n"), [])


def parse_spotting(raw: str, width: int, height: int) -> Output:
    """HunyuanOCR's lines with boxes: `text(x1,y1),(x2,y2)` back to back, `<ref>` and `<quad>` around them or not, or
    a JSON array of `{"box": [x1, y1, x2, y2], "text": …}`. Coordinates go from 0 to 1000.

    The forms are those that Tencent-Hunyuan/HunyuanOCR documents (inference/utils/tasks.py) and scores
    (train_verl/reward/task_scorers/spotting.py).
    """
    text = _clean(raw).strip()
    if text.rstrip("。.") in NO_TEXT:
        return Output(None, [])
    if fence := _FENCE.match(text):
        text = text[fence.end() :].removesuffix(fence["fence"]).strip()
    lines = []
    for words, box in _json_items(text) if _JSON.match(text) else _spotted_items(text):
        scaled = _scaled(box, HUNYUAN_SCALE, width, height) if box else None
        lines += [Line(text=row.strip(), polygon=scaled) for row in words.split("\n") if row.strip()]
    lost = sum(line.polygon is None for line in lines)
    warning = f"{lost} of {plural(len(lines), 'line')} came without a place on the page"
    return Output(None, lines, (warning,) if lost else ())


def parse_chandra(raw: str, width: int, height: int, scale: int = CHANDRA_SCALE) -> Output:
    """Chandra's HTML: a `div` for each block of the page with `data-bbox` (0 to `scale`) and `data-label`.

    Markdown in the order of the blocks, tables as HTML, formulas as LaTeX between dollars; running heads and feet stay
    in the lines alone. What it says of pictures is no text of the page: it stands in the markdown alone, as `![…]()`.
    A line for each block, or for each row where a table's rows have boxes. What stands outside of
    all blocks, or in tags that are none, is text like any other.
    """
    text = _clean(raw).strip()
    if fence := _FENCE.match(text):
        text = text[fence.end() :].removesuffix(fence["fence"]).strip()
    tree = _Tree(_DOCTYPE.sub("", text))
    dollars = "<math" in text
    parts: list[str] = []
    lines: list[Line] = []
    unplaced = 0
    for block in _blocks(tree.root, _Block()):
        if block.label in _PICTURES:
            parts += [_image(told)] if (told := _told(block.content)) else []
            continue
        plain = _plain(block.content)
        role = _role(block)
        box = _scaled(block.box, scale, width, height) if block.box else None
        rows = [(_plain(row.content), _box(row)) for row in _rows(block.content)]
        if rows and all(row_box for _, row_box in rows):
            lines += [
                Line(text=words, polygon=_scaled(row_box, scale, width, height), role=role)
                for words, row_box in rows
                if words and row_box
            ]
        elif plain:
            unplaced += box is None
            lines.append(Line(text=plain, polygon=box, role=role))
        if not (role and role.is_furniture):
            parts += _Markdown(dollars).blocks(_titled(block))
    warnings = ["the output is cut short"] if tree.cut else []
    if unplaced:
        warnings.append(f"{unplaced} of {plural(len(lines), 'line')} came without a place on the page")
    return Output("\n\n".join(parts), lines, tuple(warnings))


PARSERS: dict[str, Parser] = {
    "text": parse_text,
    "markdown": parse_markdown,
    "chandra-html": partial(parse_chandra, scale=CHANDRA_1_SCALE),
    "chandra-html-1000": parse_chandra,
    "hunyuan-spotting": parse_spotting,
}

_FENCE = re.compile(
    r"(?P<fence>`{3,}|~{3,})[ \t]*(?:(?P<markdown>markdown|md)|html|json|text|plaintext)?[ \t]*(?:\n|$)", re.IGNORECASE
)
_NOT_CLOSED = "the output is cut short: its fence is not closed"
_UNSPEAKABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # no text, and partly nothing that JSON can hold

_Box = tuple[float, float, float, float]


def _clean(raw: str) -> str:
    return _UNSPEAKABLE.sub("", raw.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n"))


def _scaled(box: _Box, scale: int, width: int, height: int) -> list[Point] | None:
    """A box's corners in pixels, clockwise from the top left; None where nothing of it is on the page."""
    x0, x1 = sorted(round(min(max(x, 0), scale) * width / scale) for x in (box[0], box[2]))
    y0, y1 = sorted(round(min(max(y, 0), scale) * height / scale) for y in (box[1], box[3]))
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)] if x1 > x0 and y1 > y0 else None


# ---- HunyuanOCR's spotting

_POINT = r"\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)"
_POINTS = re.compile(rf"{_POINT}\s*,\s*{_POINT}(?:\s*,\s*\(\s*\d{{1,4}}\s*,\s*\d{{1,4}}\s*\))*")  # the first two count
_JSON = re.compile(r'\[?\s*\{\s*"|\[\s*$')
_MARKS = re.compile(r"</?(?:ref|quad|box)>")
_BOX_FIRST = re.compile(
    r"<quad><pos_(\d{1,4})><pos_(\d{1,4})><pos_(\d{1,4})><pos_(\d{1,4})></quad><ref>((?:(?!<quad>).)*?)</ref>",
    re.DOTALL,
)
_NUMBER = re.compile(r"-?\d{1,9}(?:\.\d{0,9})?")
_CUT_ITEM = re.compile(r'(?:\{\s*"b?box"\s*:\s*\[[^\]"]*\]\s*,|\{)\s*"text"\s*:\s*"((?:[^"\\]|\\.)*+)"?')


def _spotted_items(text: str) -> Iterator[tuple[str, _Box | None]]:
    """Each text is what stands before its box, back to the box before."""
    text = _MARKS.sub("", _BOX_FIRST.sub(r"\5(\1,\2),(\3,\4)\n", text))
    end = 0
    for match in _POINTS.finditer(text):
        x0, y0, x1, y1 = (int(number) for number in match.groups())
        yield text[end : match.start()], (x0, y0, x1, y1)
        end = match.end()
    yield text[end:], None


def _json_items(text: str) -> Iterator[tuple[str, _Box | None]]:
    """Items of a JSON array, that may be broken anywhere: what can't be understood is a text without a box."""
    decoder = json.JSONDecoder()
    position = rest = 0
    while (position := text.find("{", position)) >= 0:
        try:
            item, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
            continue
        words = item.get("text") if isinstance(item, dict) else None
        if not isinstance(words, str):
            position = end
            continue
        yield _broken_json(text[rest:position]), None
        yield _clean(words), _four(item.get("box", item.get("bbox")))
        position = rest = end
    yield _broken_json(text[rest:]), None


def _broken_json(text: str) -> str:
    """What is left of items that are no JSON: of one that was cut short, its words."""
    text = _CUT_ITEM.sub(lambda match: f"\n{_unescaped(match[1])}\n", text)
    return "\n".join(row for row in (row.strip("[], \t") for row in text.split("\n")) if row)


def _unescaped(text: str) -> str:
    try:
        return _clean(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


def _four(value: object) -> _Box | None:
    """Four numbers, as a list or in a text."""
    if isinstance(value, list):
        value = " ".join(str(number) for number in value)
    numbers = [float(number) for number in _NUMBER.findall(value)] if isinstance(value, str) else []
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


# ---- Chandra's HTML

_LABELS = {
    "section-header": Role.HEADING,
    "list-group": Role.LIST_ITEM,
    "table": Role.TABLE,
    "page-header": Role.PAGE_HEADER,
    "page-footer": Role.PAGE_FOOTER,
}
_PICTURES = ("image", "figure", "diagram")  # in which it writes what it sees, as its prompt asks
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_VOID = {"br", "hr", "img", "input", "col"}
_INLINE = {
    "a", "b", "big", "br", "chem", "code", "del", "em", "font", "i", "input", "ins", "kbd", "label", "mark",
    "math", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "tt", "u",
}  # fmt: skip
_BLOCK = {
    "article", "aside", "blockquote", "body", "caption", "center", "dd", "div", "dl", "dt", "figcaption", "figure",
    "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "img", "li", "main", "ol", "p", "pre",
    "section", "ul",
}  # fmt: skip
_TABLE = {"col", "colgroup", "table", "tbody", "td", "tfoot", "th", "thead", "tr"}
_KNOWN = "|".join(sorted(_INLINE | _BLOCK | _TABLE, key=len, reverse=True))
# What HTML would close by itself: the start of a tag ends these, where they are innermost.
_CLOSES = {"li": ("li",), "p": ("p",), "tr": ("td", "th", "tr"), "td": ("td", "th"), "th": ("td", "th")}
_DEPTH = 60  # deeper ones than any page has are ignored, and their text is kept

_SIGN = rf"<(?!/?(?:{_KNOWN})\b)"  # "less than", as a text may have it
_VALUE = rf"""(?:"(?:[^"<]|{_SIGN})*+"|'(?:[^'<]|{_SIGN})*+'|[^\s"'<>=`]++)"""
_ATTRIBUTE = rf"\s++[\w:-]++(?:\s*+=\s*+{_VALUE})?+"
_NO_TAG = re.compile(rf"<(?!/?(?:{_KNOWN})(?:{_ATTRIBUTE})*+\s*+/?>)", re.IGNORECASE)
_DOCTYPE = re.compile(r"^\s*<!doctype[^<>]*>", re.IGNORECASE)
_CUT_TAG = re.compile(rf"<(?:(?:{_KNOWN})(?:\s+(?:[a-z-]+=[^<>]*|d[a-z-]*)?)?|/[a-z1-6]*)$", re.IGNORECASE)
_ALT = re.compile(r'\salt="([^"]*)$')
_SPACE = re.compile(r"\s+")


@dataclass
class _Element:
    tag: str
    attributes: dict[str, str]
    content: list[_Element | str] = field(default_factory=list)
    has_blocks: bool = False  # a block of the page lies inside


@dataclass
class _Block:
    """A piece of the page: what one `div` holds, or what stands between two."""

    label: str = ""
    box: _Box | None = None
    content: list[_Element | str] = field(default_factory=list)


class _Tree(HTMLParser):
    """The elements of a text, whatever it is: what is no tag that pages are written with is text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = _Element("html", {})
        self._open = [self.root]
        alt = ""
        if cut := _CUT_TAG.search(text):
            alt = match[1] if (match := _ALT.search(text, cut.start())) else ""
            text = text[: cut.start()]
        self.feed(_NO_TAG.sub("&lt;", text))
        self.close()
        self.cut = cut is not None or len(self._open) > 1
        if alt:
            self._open[-1].content.append(_Element("img", {"alt": html.unescape(alt)}))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = _Element(tag, {name: value or "" for name, value in attrs})
        while self._open[-1].tag in _CLOSES.get(tag, ()):
            self._open.pop()
        self._open[-1].content.append(element)
        if _is_block(element):
            for ancestor in self._open:
                ancestor.has_blocks = True
        if tag not in _VOID and len(self._open) < _DEPTH:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag == tag:
                del self._open[depth:]
                return

    def handle_data(self, data: str) -> None:
        self._open[-1].content.append(data)


def _is_block(element: _Element) -> bool:
    return element.tag == "div" and not {"data-bbox", "data-label"}.isdisjoint(element.attributes)


def _box(element: _Element) -> _Box | None:
    return _four(element.attributes.get("data-bbox"))


def _blocks(element: _Element, block: _Block) -> Iterator[_Block]:
    """The page's blocks in order. One inside another cuts it in two; those inside other elements are taken out."""
    for child in element.content:
        if isinstance(child, str) or not (_is_block(child) or child.has_blocks):
            block.content.append(child)
            continue
        if block.content:
            yield _Block(block.label, block.box, block.content)
        inner = _Block(child.attributes.get("data-label", "").lower(), _box(child)) if _is_block(child) else block
        block.content = []
        yield from _blocks(child, inner)
        block.content = []
    if block.content:
        yield _Block(block.label, block.box, block.content)


def _role(block: _Block) -> Role | None:
    elements = [child for child in block.content if isinstance(child, _Element)]
    if elements and all(element.tag in _HEADINGS for element in elements):
        return Role.TITLE if elements[0].tag == "h1" else Role.HEADING
    return _LABELS.get(block.label)


def _titled(block: _Block) -> list[_Element | str]:
    """A block's content, as a heading where the label says so and no tag does."""
    if block.label != "section-header" or any(
        isinstance(child, _Element) and child.tag not in _INLINE for child in block.content
    ):
        return block.content
    return [_Element("h2", {}, block.content)]


def _rows(content: Iterable[_Element | str]) -> Iterator[_Element]:
    for child in content:
        if isinstance(child, _Element):
            if child.tag == "tr":
                yield child
            else:
                yield from _rows(child.content)


def _plain(content: Iterable[_Element | str]) -> str:
    """The text alone, in one line."""
    return _SPACE.sub(" ", "".join(_pieces(content))).strip()


def _pieces(content: Iterable[_Element | str], *, alt: bool = False) -> Iterator[str]:
    for child in content:
        if isinstance(child, str):
            yield child
        else:
            apart = "" if child.tag in _INLINE and child.tag != "br" else " "
            yield apart
            if alt and child.tag == "img":
                yield _alt(child)
            yield from _pieces(child.content, alt=alt)
            yield apart


@dataclass
class _Markdown:
    """Writes elements as markdown."""

    dollars: bool  # a dollar sign must be escaped, since formulas stand between them

    def blocks(self, content: Iterable[_Element | str]) -> list[str]:
        """Paragraphs, headings, lists, tables, each in a piece of its own."""
        parts: list[str] = []
        inline: list[_Element | str] = []
        for child in [*content, None]:
            if child is not None and (isinstance(child, str) or (child.tag in _INLINE and not _holds_blocks(child))):
                inline.append(child)
                continue
            if paragraph := self.inline(inline):
                parts.append("\n".join(escape_start(row) for row in paragraph.split("\n")))
            inline = []
            if isinstance(child, _Element):
                parts += [part for part in self._block(child) if part]
        return parts

    def inline(self, content: Iterable[_Element | str]) -> str:
        """Running text; a line's end where there is a `br`."""
        text = _SPACE.sub(" ", "".join(self._run(content)))
        return "  \n".join(row.strip() for row in text.replace(_BREAK, "\n").strip().split("\n"))

    def _block(self, element: _Element) -> list[str]:
        tag = element.tag
        if level := _HEADINGS.get(tag):
            title = self.inline(element.content).replace("  \n", " ")
            return [f"{'#' * level} {title}"] if title else []
        if tag in ("ul", "ol"):
            return [self._list(element)]
        if tag == "li":
            return [self._list(_Element("ul", {}, [element]))]
        if tag == "pre":
            code = "".join(_pieces(element.content)).strip("\n")
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
            return [f"{fence}\n{code}\n{fence}"] if code.strip() else []
        if tag == "table":
            return [self._table(element)]
        if tag in _TABLE:
            return [self._table(_Element("table", {}, [element]))]
        if tag == "hr":
            return ["---"]
        if tag == "img":
            return [_image(_alt(element))]
        if tag == "blockquote":
            return ["\n>\n".join("> " + part.replace("\n", "\n> ") for part in self.blocks(element.content))]
        return self.blocks(element.content)

    def _list(self, element: _Element) -> str:
        start = element.attributes.get("start", "")
        number = int(start) if start.isdecimal() and len(start) < 10 else 1
        rows = []
        for child in element.content:
            if isinstance(child, str) and not child.strip():
                continue
            content = child.content if isinstance(child, _Element) and child.tag == "li" else [child]
            parts = self.blocks(content)
            mark = f"{number}. " if element.tag == "ol" else "- "
            if isinstance(child, _Element) and child.tag in ("ul", "ol"):
                mark = "  "  # a list right inside a list belongs to the item before
            else:
                number += 1
            text = "\n".join(parts).replace("\n", "\n" + " " * len(mark))
            rows.append((mark + text).rstrip())
        return "\n".join(rows)

    def _table(self, table: _Element) -> str:
        """HTML with nothing but rows, cells and what they span. Text beside the rows, as a caption, comes first."""
        rows, beside = [], []
        todo = list(reversed(table.content))
        while todo:
            child = todo.pop()
            if isinstance(child, _Element) and child.tag in ("tbody", "thead", "tfoot"):
                todo += reversed(child.content)
            elif isinstance(child, _Element) and child.tag in ("tr", "td", "th"):
                cells = child.content if child.tag == "tr" else [child]
                row = "".join(self._cell(cell) for cell in cells if not isinstance(cell, str) or cell.strip())
                rows.append(f"<tr>{row}</tr>")
            else:
                beside.append(child)
        before = "\n\n".join(self.blocks(beside))
        body = "\n".join(["<table>", *rows, "</table>"]) if rows else ""
        return "\n\n".join(part for part in (before, body) if part)

    def _cell(self, cell: _Element | str) -> str:
        if isinstance(cell, str) or cell.tag not in ("td", "th"):
            return f"<td>{self._html([cell])}</td>"
        spans = "".join(
            f' {name}="{cell.attributes[name]}"'
            for name in ("rowspan", "colspan")
            if cell.attributes.get(name, "").isdecimal()
        )
        return f"<{cell.tag}{spans}>{self._html(cell.content)}</{cell.tag}>"

    def _html(self, content: Iterable[_Element | str]) -> str:
        """A cell's content in one line: markdown has no meaning there."""
        text = "".join(self._html_pieces(content))
        return re.sub(r"^(?:<br>|\s)+|(?:<br>|\s)+$", "", _SPACE.sub(" ", text))

    def _html_pieces(self, content: Iterable[_Element | str]) -> Iterator[str]:
        for child in content:
            if isinstance(child, str):
                yield html.escape(child, quote=False)
            elif child.tag == "math":
                yield html.escape(_formula(child), quote=False)
            elif child.tag == "br":
                yield "<br>"
            elif child.tag == "input":
                yield _checkbox(child)
            elif child.tag == "img":
                yield f'<img alt="{html.escape(_alt(child))}">'
            elif child.tag == "table":
                yield self._table(child).replace("\n", "")
            elif child.tag in _KEPT:
                yield f"<{_KEPT[child.tag]}>"
                yield from self._html_pieces(child.content)
                yield f"</{_KEPT[child.tag]}>"
            else:
                apart = "" if child.tag in _INLINE else "<br>"
                yield from self._html_pieces(child.content)
                yield apart

    def _run(self, content: Iterable[_Element | str]) -> Iterator[str]:
        for child in content:
            if isinstance(child, str):
                text = escape(child, start=False)
                yield text.replace("$", "\\$") if self.dollars else text
                continue
            tag, inner = child.tag, child.content
            if tag == "math":
                yield _formula(child)
            elif tag == "br":
                yield _BREAK
            elif tag == "input":
                yield _checkbox(child)
            elif tag == "img":
                yield _image(_alt(child))
            elif tag in _EMPHASIS:
                text = "".join(self._run(inner))
                mark = _EMPHASIS[tag]
                bare = text.strip().strip(_BREAK)
                yield text.replace(bare, f"{mark}{bare}{mark}", 1) if bare and _BREAK not in bare else text
            elif tag in ("code", "kbd", "samp", "tt"):
                code = _SPACE.sub(" ", "".join(_pieces(inner)))
                yield f"`{code}`" if code.strip() and "`" not in code else code
            elif tag in ("sub", "sup"):
                yield f"<{tag}>{''.join(self._run(inner))}</{tag}>"
            elif tag == "a" and child.attributes.get("href"):
                yield f"[{''.join(self._run(inner))}](<{child.attributes['href']}>)"
            else:
                yield from self._run(inner)


_BREAK = "\x00"  # stands for a `br` until white space has been collapsed; `_clean` lets none in
_EMPHASIS = {"b": "**", "strong": "**", "i": "*", "em": "*", "del": "~~", "s": "~~", "strike": "~~"}
_KEPT = {"b": "b", "strong": "b", "i": "i", "em": "i", "u": "u", "del": "del", "sub": "sub", "sup": "sup"}


def _holds_blocks(element: _Element) -> bool:
    return any(
        isinstance(child, _Element) and (child.tag not in _INLINE or _holds_blocks(child)) for child in element.content
    )


def _formula(element: _Element) -> str:
    latex = _SPACE.sub(" ", "".join(_pieces(element.content))).strip()
    mark = "$$" if element.attributes.get("display") == "block" else "$"
    return f"{mark}{latex}{mark}" if latex else ""


def _image(told: str) -> str:
    """What the model says of an image: it is not text of the page, and therefore in the markdown alone."""
    told = re.sub(r"([][])", r"\\\1", _SPACE.sub(" ", escape(told, start=False)))
    return f"![{told}]()"


def _alt(element: _Element) -> str:
    return element.attributes.get("alt", "")


def _told(content: Iterable[_Element | str]) -> str:
    """All that is said of a picture, in its `alt` and beside it, in one line."""
    return _SPACE.sub(" ", "".join(_pieces(content, alt=True))).strip()


def _checkbox(element: _Element) -> str:
    if element.attributes.get("type", "").lower() in ("checkbox", "radio"):
        return "[x] " if "checked" in element.attributes else "[ ] "
    return element.attributes.get("value", "")
