"""What models write, whole and broken: none of it raises, none of its text is lost, and all boxes lie on the page."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from worker.contract import Line, Page, Role
from worker.engines.outputs import PARSERS, Output

WIDTH, HEIGHT = 2000, 1000

CHANDRA = """<div data-bbox="[102, 51, 922, 102]" data-label="Page-Header">Annual Report</div>
<div data-bbox="[102, 154, 922, 256]" data-label="Section-Header"><h1>Results for <i>2026</i></h1></div>
<div data-bbox="[102, 256, 922, 307]" data-label="Section-Header">Revenue</div>
<div data-bbox="[102, 307, 922, 410]" data-label="Text"><p>It grew by 5 &lt; 6 % &amp; cost $3, so <math>x^2 < 3</math>.
<br>A <b>second</b> line with a*b*c.</p><p># not a heading</p></div>
<div data-bbox="[102, 410, 922, 614]" data-label="Table"><table border="1"><caption>In millions</caption><thead><tr>
<th colspan="2" style="x">Year</th></tr></thead><tbody><tr><td>2025<br/>2026</td><td><math>y_1</math> &amp; more</td>
</tr></tbody></table></div>
<div data-bbox="[102, 614, 922, 716]" data-label="List-Group"><ol start="3"><li>flour</li><li>sugar
<ul><li>brown</li></ul></li></ol></div>
<div data-bbox="[102, 716, 922, 768]" data-label="Equation-Block"><math display="block">a = b</math></div>
<div data-bbox="[102, 768, 512, 819]" data-label="Figure"><img alt="a chart: a < b"/>Figure 1</div>
<div data-bbox="[512, 768, 922, 819]" data-label="Form"><input type="checkbox" checked>Yes <input type="radio">No</div>
<div data-bbox="[102, 819, 922, 870]" data-label="Code-Block"><pre>if x:
    y()</pre></div>
and a word beside all blocks
<div data-bbox="[102, 972, 922, 1024]" data-label="Page-Footer">17</div>"""

CHANDRA_MARKDOWN = """# Results for *2026*

## Revenue

It grew by 5 < 6 % & cost \\$3, so $x^2 < 3$.{break}
A **second** line with a*b*c.

\\# not a heading

In millions

<table>
<tr><th colspan="2">Year</th></tr>
<tr><td>2025<br>2026</td><td>$y_1$ &amp; more</td></tr>
</table>

3. flour
4. sugar
   - brown

$$a = b$$

![a chart: a < b Figure 1]()

[x] Yes [ ] No

```
if x:
    y()
```

and a word beside all blocks""".replace("{break}", "  ")


def parse(name: str, raw: str) -> Output:
    output = PARSERS[name](raw, WIDTH, HEIGHT)
    for line in output.lines:
        assert line.text.strip()
        assert "\n" not in line.text
        for x, y in line.polygon or []:
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT
    # Whatever it is, a record can hold it.
    Page(
        number=1, width=WIDTH, height=HEIGHT, status="ok", markdown=output.markdown or "", lines=output.lines
    ).to_json()
    return output


def seen(output: Output) -> str:
    """All text that a reader finds, without markdown's escapes."""
    return (output.markdown or "").replace("\\", "") + "\n" + "\n".join(line.text for line in output.lines)


def test_chandra_s_blocks_become_markdown_and_lines() -> None:
    output = parse("chandra-html", CHANDRA)
    assert output.markdown == CHANDRA_MARKDOWN
    assert [(line.text, line.role) for line in output.lines] == [
        ("Annual Report", Role.PAGE_HEADER),
        ("Results for 2026", Role.TITLE),
        ("Revenue", Role.HEADING),
        ("It grew by 5 < 6 % & cost $3, so x^2 < 3. A second line with a*b*c. # not a heading", None),
        ("In millions Year 2025 2026 y_1 & more", Role.TABLE),
        ("flour sugar brown", Role.LIST_ITEM),
        ("a = b", None),
        ("Yes No", None),
        ("if x: y()", None),
        ("and a word beside all blocks", None),
        ("17", Role.PAGE_FOOTER),
    ]
    assert output.lines[0].polygon == [(199, 50), (1801, 50), (1801, 100), (199, 100)]
    assert [line.text for line in output.lines if line.polygon is None] == ["and a word beside all blocks"]
    assert output.warnings == ("1 of 11 lines came without a place on the page",)


@pytest.mark.parametrize("label", ["Image", "Figure", "Diagram"])
@pytest.mark.parametrize(
    ("inside", "told"),
    [
        ("<p>The picture shows a dog.</p>", "The picture shows a dog."),
        ('<img alt="a dog"/><p>It [the dog] barks.</p>', r"a dog It \[the dog\] barks."),
        ("<table><tr><td>2025</td><td>12</td></tr></table>", "2025 12"),
        ("<pre>graph TD; A-->B</pre>", "graph TD; A-->B"),
    ],
)
def test_what_chandra_says_of_a_picture_is_no_text_of_the_page(label: str, inside: str, told: str) -> None:
    raw = f'<div data-bbox="0 0 9 9" data-label="{label}">{inside}</div><div data-bbox="0 9 9 20">Text</div>'
    output = parse("chandra-html-1000", raw)
    assert output.markdown == f"![{told}]()\n\nText"
    assert [line.text for line in output.lines] == ["Text"]


def test_a_picture_in_a_cell_is_told_apart_from_the_cells_text() -> None:
    output = parse("chandra-html-1000", '<table><tr><td><img alt="a &quot;logo&quot;"/>ACME</td></tr></table>')
    assert output.markdown == '<table>\n<tr><td><img alt="a &quot;logo&quot;">ACME</td></tr>\n</table>'
    assert [line.text for line in output.lines] == ["ACME"]


def test_each_release_of_chandra_has_its_own_scale() -> None:
    raw = '<div data-bbox="0 0 500 512" data-label="Text">half</div>'
    assert parse("chandra-html-1000", raw).lines[0].polygon == [(0, 0), (1000, 0), (1000, 512), (0, 512)]
    assert parse("chandra-html", raw).lines[0].polygon == [(0, 0), (977, 0), (977, 500), (0, 500)]


def test_rows_with_boxes_are_lines() -> None:
    raw = (
        '<div data-bbox="0 0 1000 1000" data-label="Table"><table>'
        '<tr data-bbox="0 0 1000 500"><td>a</td><td>b</td></tr><tr data-bbox="0 500 1000 1000"><td>c</td></tr>'
        "</table></div>"
    )
    output = parse("chandra-html-1000", raw)
    assert [(line.text, line.polygon[0] if line.polygon else None) for line in output.lines] == [
        ("a b", (0, 0)),
        ("c", (0, 500)),
    ]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("no tags at all", "no tags at all"),
        ("<p>one<p>two", "one\n\ntwo"),
        ("<div data-bbox='1 2 3'>bad box</div>", "bad box"),
        ("<div data-bbox='a b c d' data-label='Text'>bad box</div>", "bad box"),
        ("<div data-bbox='900 900 100 100'>turned box</div>", "turned box"),
        ("<div data-bbox='-5 -5 9999 9999'>large box</div>", "large box"),
        ("<html><body><div><div data-label='Text'>wrapped</div> loose</div></body></html>", "wrapped\n\nloose"),
        ("<div data-label='Text'>outer <div data-label='Text'>inner</div> rest</div>", "outer\n\ninner\n\nrest"),
        ("<div data-label='Text'>cut <b>he", "cut **he**"),
        ("<div data-label='Text'>cut</div><div data-bbox=\"1 2", "cut"),
        ('cut <img alt="a picture of', "cut\n\n![a picture of]()"),
        ("write to <john@example.com> or <Foo>", r"write to \<john@example.com> or \<Foo>"),
        ("<!-- a remark --> <?xml?> <![CDATA[x]]>", r"\<!-- a remark --> \<?xml?> \<![CDATA[x]]>"),
        ("<script>alert(1)</script>", r"\<script>alert(1)\</script>"),
        ("a <b c", r"a \<b c"),
        ("x</td></tr></table>y", "xy"),
        ("<td>a cell alone</td>", "<table>\n<tr><td>a cell alone</td></tr>\n</table>"),
        ("<table><tr><td>a &lt;b&gt;<td>c</table>", "<table>\n<tr><td>a &lt;b&gt;</td><td>c</td></tr>\n</table>"),
        ("<ul><li>a<li>b</ul>", "- a\n- b"),
        ("<blockquote><p>a</p><p>b</p></blockquote>", "> a\n>\n> b"),
        ("<a href='http://x.y/(z)'>link</a>", "[link](<http://x.y/(z)>)"),
        ("H<sub>2</sub>O and <code>x * y</code>", "H<sub>2</sub>O and `x * y`"),
        ("&amp;amp; &nbsp;&eacute; &#x41;", "&amp; é A"),
        ("```html\n<p>fenced</p>\n```", "fenced"),
    ],
)
def test_chandra_s_output_in_all_shapes(raw: str, text: str) -> None:
    assert parse("chandra-html", raw).markdown == text


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        ("Hello(1,2),(300,400)World(5,6),(7,8)", [("Hello", (2, 2)), ("World", (10, 6))]),
        ("ATLANTA (AP)(12,34),(56,78)Next(90,12),(134,156)", [("ATLANTA (AP)", (24, 34)), ("Next", (180, 12))]),
        ("金额(小写)(10,20),(30,40)\n合计(1,50),(9,60)", [("金额(小写)", (20, 20)), ("合计", (2, 50))]),
        ("Four(1,2),(3,4),(5,6),(7,8)", [("Four", (2, 2))]),
        ("<ref>a</ref><quad>(1,2),(3,4)</quad><ref>b</ref><quad>(5,6),(7,8)</quad>", [("a", (2, 2)), ("b", (10, 6))]),
        ("<quad><pos_1><pos_2><pos_3><pos_4></quad><ref>a</ref>", [("a", (2, 2))]),
        (
            '[{"box": [1, 2, 3, 4], "text": "a"}, {"bbox": [5, 6, 7, 8], "text": "b(c)"}]',
            [("a", (2, 2)), ("b(c)", (10, 6))],
        ),
        ('```json\n[{"text": "a", "box": [1, 2, 3, 4]}]\n```', [("a", (2, 2))]),
        ("two\nrows(1,2),(300,400)", [("two", (2, 2)), ("rows", (2, 2))]),
        ("[1] Smith, J.(1,2),(3,4)", [("[1] Smith, J.", (2, 2))]),
        ("没有文字。", []),
        # broken
        ("no box", [("no box", None)]),
        ("Hello(1,2),(300,400)Cut(1,", [("Hello", (2, 2)), ("Cut(1,", None)]),
        ("Huge(1,2),(99999,4)", [("Huge(1,2),(99999,4)", None)]),
        ("Flat(5,5),(5,9)", [("Flat", None)]),
        (
            '[{"box": [1, 2, 3, 4], "text": "a"}, {"box": [5, 6, 7, 8], "text": "cut \\u00e9',
            [("a", (2, 2)), ("cut é", None)],
        ),
        ('[{"box": "here", "text": "a"}]', [("a", None)]),
        ('[{"label": "a"}]', [('{"label": "a"}', None)]),
        ('[{"box": [1, 2, 3, 4], "text": "say "hi" now"}]', [("say", None), ('hi" now"}', None)]),
    ],
)
def test_hunyuan_s_spotting_in_all_shapes(raw: str, lines: list[tuple[str, tuple[int, int] | None]]) -> None:
    output = parse("hunyuan-spotting", raw)
    assert output.markdown is None
    assert [(line.text, line.polygon[0] if line.polygon else None) for line in output.lines] == lines
    lost = sum(place is None for _, place in lines)
    assert bool(output.warnings) == bool(lost)


@pytest.mark.parametrize(
    ("raw", "markdown", "warned"),
    [
        ("  # Title\n\ntext\n", "# Title\n\ntext", False),
        ("```markdown\n# Title\n\n- a\n```", "# Title\n\n- a", False),
        ("```\nplain\n```\n", "plain", False),
        ("```md\ncut short", "cut short", True),
        ("```markdown\n# T\n\n```python\nx = 1\n```\n\nend\n```", "# T\n\n```python\nx = 1\n```\n\nend", False),
        ("```md\n```\nx = 1\n```\n```", "```\nx = 1\n```", False),
        ("```md\n# T\n```python\nx = 1\n```", "# T\n```python\nx = 1\n```", True),
        ("```md\n```", "", False),
        ("```md\na\n```\nand more", "```md\na\n```\nand more", False),
        ("```python\nx = 1\n```", "```python\nx = 1\n```", False),  # code is what the page shows
        ("```\na\n```\nand more", "```\na\n```\nand more", False),
        ("<table><tr><td>1</td></tr></table>\n\n$x$", "<table><tr><td>1</td></tr></table>\n\n$x$", False),
        ("line\r\nline\rline", "line\nline\nline", False),
        ("bad \ud800\x00\x1b[0m sign", "bad [0m sign", False),
        ("", "", False),
        ("```", "", True),
    ],
)
def test_markdown_is_kept_and_unwrapped(raw: str, markdown: str, warned: bool) -> None:
    output = parse("markdown", raw)
    assert output.markdown == markdown
    assert output.lines == []
    assert bool(output.warnings) == warned


def test_plain_text_keeps_its_rows() -> None:
    output = parse("text", "# 12 Main St\n\n  5 * 3 < 20  \n<b>")
    assert output.markdown == "\\# 12 Main St\n\n5 * 3 < 20\n\\<b>"
    assert output.lines == [Line(text="# 12 Main St"), Line(text="5 * 3 < 20"), Line(text="<b>")]


# ---- broken on purpose

TAGS = [
    '<div data-bbox="{n} {n} {m} {m}" data-label="{label}">',
    *re.findall(
        r"<[^>]*>|&\w*;?|\S",
        "</div> <p> </p> <b> </b> <i> <br> <br/> <ul> </ul> <ol> <li> </li> <table> </table> <tr> </tr> <td> </td> "
        "<th colspan=2> <h1> </h1> <h2> <math> </math> <pre> </pre> <code> </code> <blockquote> </blockquote> <sup> "
        "</sup> <div> <caption> <input type=checkbox> <hr> &amp; &lt; & < ` # | *",
    ),
]
LABELS = ("Text", "Table", "Page-Header", "Page-Footer", "Section-Header", "List-Group", "Figure", "Nonsense", "")


def html_soup(chance: random.Random, word: Callable[[], str]) -> str:
    parts = []
    for _ in range(chance.randint(1, 60)):
        if chance.random() < 0.4:
            parts.append(f" {word()} ")
        else:
            values = {"n": chance.randint(-9, 1100), "m": chance.randint(-9, 1100), "label": chance.choice(LABELS)}
            tag = chance.choice(TAGS)
            parts.append(tag.format(**values) if "{" in tag else tag)
    return "".join(parts)


def spotted(chance: random.Random, word: Callable[[], str]) -> str:
    def box() -> str:
        return ",".join(f"({chance.randint(0, 1100)},{chance.randint(0, 1100)})" for _ in range(chance.randint(1, 4)))

    parts = []
    for _ in range(chance.randint(1, 30)):
        form = chance.choice(
            [
                "{word}{box}",
                "<ref>{word}</ref><quad>{box}</quad>",
                "<quad><pos_1><pos_2><pos_33><pos_44></quad><ref>{word}</ref>",
                '{{"box": [1, 2, 33, 44], "text": "{word}"}}, ',
                " {word}\n",
            ]
        )
        parts.append(form.format(word=word(), box=box()))
    return chance.choice(["", "[", "```json\n["]) + "".join(parts)


@pytest.mark.parametrize(("parser", "make"), [("chandra-html", html_soup), ("hunyuan-spotting", spotted)])
def test_no_word_of_a_soup_is_lost(parser: str, make: Callable[[random.Random, Callable[[], str]], str]) -> None:
    chance = random.Random(20261124)
    for _ in range(400):
        words: list[str] = []

        def word(words: list[str] = words) -> str:
            words.append(f"w{len(words)}x")
            return words[-1]

        raw = make(chance, word)
        found = seen(parse(parser, raw))
        assert [one for one in words if one not in found] == [], raw


@pytest.mark.parametrize("parser", PARSERS)
def test_no_word_is_lost_wherever_the_output_is_cut(parser: str) -> None:
    raw = (
        CHANDRA
        if "html" in parser
        else "ALPHA(1,2),(300,400)BRAVO(5,6),(7,8)\n<ref>CHARLIE</ref><quad>(1,2),(3,4)</quad>"
    )
    for end in range(0, len(raw), 3):
        cut = raw[:end]
        found = seen(parse(parser, cut))
        text = re.sub(r"<[a-z/][^>]*(?:>|$)|&[a-z]*;?|\(\d*,?\d*\)?,?", " ", cut)  # words between tags and boxes
        words = re.findall(r"\b[A-Za-z]{3,}\b", text)
        assert [word for word in words[:-1] if word not in found] == [], cut


@pytest.mark.parametrize("parser", PARSERS)
def test_noise_never_raises(parser: str) -> None:
    chance = random.Random(1)
    signs = "<>/=\"'&;#[]{}(),:|`~$\\*_-!? \n\tabdivtrpx019é中\u2028\ud800\x00"
    for _ in range(1500):
        parse(parser, "".join(chance.choices(signs, k=chance.randint(0, 120))))


@pytest.mark.parametrize(
    "unit",
    [
        *("<a ", '<a "', "<b>", "<b><p>", "<table><tr><td>", "<ul><li>", "<div data-bbox='1 2 3 4'>", "</div ", "&#"),
        *('<img alt="', "(1,2),", '{"a":', '[{"text":"', "```\n", "*", "\n"),
    ],
)
@pytest.mark.parametrize("parser", PARSERS)
def test_what_never_ends_is_dealt_with(parser: str, unit: str) -> None:
    """Were a parser quadratic, or recursive without a bound, it would not come back."""
    parse(parser, unit * (15_000 // len(unit)))
