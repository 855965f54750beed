"""Layout on pages made of lines: what a reader would expect of order, roles and markdown."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest

from worker.contract import Line, Page, Role
from worker.layout import compose

WIDTH, HEIGHT, SIZE, STEP = 1700, 2200, 24, 32
ADVANCE = 11  # pixels of a character at SIZE

PROSE = (
    "The harbour lay quiet under a low sky while the last boats came in from the banks with their holds half full and "
    "their crews too tired to sing. Nobody on the quay spoke of the storm, though each had watched it gather since "
    "noon behind the lighthouse. Nets were hung to dry along the wall and children counted baskets until they were "
    "called home. Later that evening the wind turned and the first rain fell on the slates of the old customs house, "
    "where the clerk still wrote by candle light about cargoes that had never arrived and ships that nobody would "
    "see again. "
)


def line(text: str, x: float, y: float, *, size: float = SIZE, width: float | None = None) -> Line:
    """A line whose top left is at x, y."""
    width = width if width is not None else len(text) * ADVANCE * size / SIZE
    x0, y0, x1, y1 = round(x), round(y), round(x + width), round(y + size)
    return Line(text=text, confidence=0.9, polygon=[(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def wrapped(text: str, x: float, y: float, columns: int, *, justified: bool = True) -> list[Line]:
    """Running text in a column that is `columns` characters wide; all lines but the last are as wide as the column."""
    rows, row = [], ""
    for word in text.split():
        if len(row) + 1 + len(word) > columns:
            rows.append(row)
            row = word
        else:
            row = f"{row} {word}".strip()
    rows.append(row)
    full = columns * ADVANCE
    return [
        line(row, x, y + n * STEP, width=full if justified and n < len(rows) - 1 else None)
        for n, row in enumerate(rows)
    ]


def page(lines: Iterable[Line], *, number: int = 1, width: int = WIDTH, height: int = HEIGHT) -> Page:
    return Page(number=number, width=width, height=height, status="ok", lines=list(lines))


def turned(lines: Iterable[Line], degrees: float) -> list[Line]:
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))

    def turn(point: tuple[int, int]) -> tuple[int, int]:
        x, y = point
        return round(x * cosine - y * sine + 200), round(x * sine + y * cosine + 200)

    return [each.model_copy(update={"polygon": [turn(point) for point in each.polygon or []]}) for each in lines]


def read(lines: Iterable[Line], **options: bool) -> str:
    """The markdown of one page whose lines come in a random order."""
    mixed = list(lines)
    random.Random(7).shuffle(mixed)
    return compose([page(mixed)], **options)[0].markdown


def roles(pages: Sequence[Page]) -> dict[str, Role | None]:
    return {each.text: each.role for composed in compose(pages) for each in composed.lines}


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def paper() -> list[Line]:
    """A title and an abstract over two columns of running text."""
    title = [line("On the Measurement of Tides in Narrow Harbours", 350, 150, size=44)]
    abstract = wrapped(PROSE[:340], 250, 260, 108)
    left = wrapped("Leftmost. " + PROSE * 2, 150, 500, 58)
    right = wrapped("Rightmost. " + PROSE * 2, 150 + 58 * ADVANCE + 40, 500, 58)
    return [*title, *abstract, *left, *right]


def test_columns_are_read_one_after_the_other(paper: list[Line]) -> None:
    text = flat(read(paper))
    assert text.startswith("# On the Measurement of Tides in Narrow Harbours The harbour lay quiet")
    assert text.index("Leftmost.") < text.index("ships that nobody would see again.") < text.index("Rightmost.")
    assert flat("Leftmost. " + PROSE * 2) in text
    assert flat("Rightmost. " + PROSE * 2) in text


def test_three_columns_under_a_headline_and_above_a_full_width_notice() -> None:
    columns = [wrapped(f"Column{n} " + PROSE, 100 + n * 520, 300, 44) for n in range(3)]
    end = 300 + 20 * STEP
    lines = [line("HARBOUR NEWS OF THE WEEK", 300, 150, size=60), *columns[2], *columns[0], *columns[1]]
    lines += wrapped("Notice: " + PROSE[:300], 100, end, 140)
    text = flat(read(lines))
    assert [text.index(mark) for mark in ("HARBOUR", "Column0", "Column1", "Column2", "Notice")] == sorted(
        text.index(mark) for mark in ("HARBOUR", "Column0", "Column1", "Column2", "Notice")
    )
    assert all(flat(f"Column{n} {PROSE}") in text for n in range(3))


def test_a_heading_over_both_columns_cuts_them_into_bands() -> None:
    right = 100 + 60 * ADVANCE + 40
    lines = [*wrapped("One " + PROSE, 100, 200, 60), *wrapped("Two " + PROSE, right, 200, 60)]
    lines.append(line("A heading that stands over both of the columns", 420, 620, size=36))
    lines += [*wrapped("Three " + PROSE, 100, 720, 60), *wrapped("Four " + PROSE, right, 720, 60)]
    text = read(lines)
    marks = [text.index(mark) for mark in ("One ", "Two ", "A heading", "Three ", "Four ")]
    assert marks == sorted(marks)


def test_a_paragraph_goes_on_in_the_next_column() -> None:
    words = PROSE.replace(". ", ", ")
    left = wrapped(words, 100, 300, 60)[:-1]
    right = wrapped("and so it went on. " + PROSE, 100 + 60 * ADVANCE + 40, 300, 60)
    text = read([*left, *right])
    assert f"{left[-1].text} and so it went on." in text


@pytest.mark.parametrize("degrees", [-6, -2, 0.7, 3, 8])
def test_a_tilted_page_reads_like_an_upright_one(paper: list[Line], degrees: float) -> None:
    assert read(turned(paper, degrees)) == read(paper)


def test_fragments_of_a_row_are_put_together() -> None:
    rows = wrapped(PROSE, 100, 200, 90, justified=False)
    split = []
    for row in rows:
        first, second = row.text[:40].rpartition(" ")[0], row.text[:40].rpartition(" ")[2] + row.text[40:]
        y = row.polygon[0][1] if row.polygon else 0
        split += [line(first, 100, y), line(second, 100 + (len(first) + 1) * ADVANCE, y + 2)]
    assert flat(read(split)) == flat(PROSE)


@pytest.mark.parametrize(
    ("first", "second", "elsewhere", "expected"),
    [
        ("all the inter-", "national treaties", "", "all the international treaties"),
        ("some six-", "teen boats", "", "some sixteen boats"),
        ("a well-", "known harbour", "", "a well-known harbour"),
        ("a long-", "lived bird", "a long-lived bird flew", "a long-lived bird"),
        ("the light-", "house keeper", "our lighthouse stood here", "the lighthouse keeper"),
        ("the light-", "house keeper", "our light-house stood here", "the light-house keeper"),
        ("a tobacco-", "related death", "some tobacco and related goods", "a tobacco-related death"),
        ("the state-of-the-", "art boats", "", "the state-of-the-art boats"),
        ("an Anglo-", "Saxon king", "", "an Anglo-Saxon king"),
        ("from 1914-", "1918 and on", "", "from 1914- 1918 and on"),
        ("it came —", "and went away", "", "it came — and went away"),
    ],
)
def test_hyphens_are_undone_only_where_the_word_demands_it(
    first: str, second: str, elsewhere: str, expected: str
) -> None:
    filler = "so that this line of running text is as long as any of the other lines here is "
    rows = [filler + first, second + " " + filler, filler + "and " + elsewhere, "the end."]
    lines = [line(row, 100, 200 + n * STEP, width=1200 if n < 3 else None) for n, row in enumerate(rows)]
    assert expected in read(lines)


def test_paragraphs_are_told_by_indent_by_space_and_by_a_short_last_line() -> None:
    first = wrapped("First " + PROSE, 100, 200, 100)
    second = wrapped("Second " + PROSE, 100, 200 + len(first) * STEP, 100)
    points = second[0].polygon or []
    second[0] = second[0].model_copy(update={"polygon": [(x + (40 if x < 500 else 0), y) for x, y in points]})
    third = wrapped("Third " + PROSE, 100, 200 + (2 * len(first) + 2) * STEP, 100)
    parts = read([*first, *second, *third]).strip().split("\n\n")
    assert [part.split()[0] for part in parts] == ["First", "Second", "Third"]
    assert parts[0] == flat("First " + PROSE)


def test_lines_broken_on_purpose_stay_lines() -> None:
    lines = [line(text, 100, 200 + n * STEP) for n, text in enumerate(["Mrs Anna Holm", "4 Quay Street", "Port Ellen"])]
    lines += wrapped(PROSE, 100, 400, 100)
    assert read(lines).startswith("Mrs Anna Holm  \n4 Quay Street  \nPort Ellen\n\nThe harbour")


def test_headings_by_size_by_number_and_by_capitals() -> None:
    y, lines = 150, [line("The Tide Tables", 600, 60, size=48)]
    for heading in ("1.2 Instruments", "RESULTS", "What the keeper saw"):
        lines.append(line(heading, 100, y))
        body = wrapped(PROSE, 100, y + 50, 110)
        lines += body
        y += 50 + len(body) * STEP + 40
    assert re.findall(r"^#+ .*$", read(lines), re.M) == [
        "# The Tide Tables",
        "## 1.2 Instruments",
        "## RESULTS",
        "## What the keeper saw",
    ]


def test_lists_keep_their_items_and_join_their_lines() -> None:
    lines = [line("Biscuits", 300, 100, size=48)]
    items = ["• 2 cups flour", "• 1 cup of butter, soft, and a little", "• 3 eggs"]
    lines += [line(text, 100, 220 + n * STEP) for n, text in enumerate(items[:2])]
    lines += [line("more for the tin", 122, 220 + 2 * STEP), line(items[2], 100, 220 + 3 * STEP)]
    lines += [line(f"{n}. Step {n} of the work", 100, 420 + n * STEP) for n in range(1, 4)]
    text = read(lines)
    assert "- 2 cups flour\n- 1 cup of butter, soft, and a little more for the tin\n- 3 eggs\n" in text
    assert re.findall(r"^\d\. .*$", text, re.M) == [f"{n}. Step {n} of the work" for n in range(1, 4)]
    assert roles([page(lines)])["• 3 eggs"] is Role.LIST_ITEM


def table_lines(x: float = 200, y: float = 600) -> list[Line]:
    rows = [
        ("Item", "Count", "Price"),
        ("Rope, ten fathoms", "12", "140.00"),
        ("Tar", "3", "9.50"),
        ("Oars", "20", "85.25"),
    ]
    lines = []
    for n, (name, count, price) in enumerate(rows):
        top = y + n * 40
        lines += [line(name, x, top), line(count, x + 500 - len(count) * ADVANCE, top)]
        lines.append(line(price, x + 800 - len(price) * ADVANCE, top))
    return lines


def test_a_table_is_written_as_rows_between_its_paragraphs() -> None:
    lines = [*wrapped("Before " + PROSE, 150, 200, 110), *table_lines(), *wrapped("After " + PROSE, 150, 900, 110)]
    expected = (
        "| Item | Count | Price |\n| --- | --- | --- |\n| Rope, ten fathoms | 12 | 140.00 |\n"
        "| Tar | 3 | 9.50 |\n| Oars | 20 | 85.25 |"
    )
    parts = read(lines).strip().split("\n\n")
    assert parts[1] == expected
    assert (parts[0].split()[0], parts[2].split()[0]) == ("Before", "After")
    assert roles([page(lines)])["140.00"] is Role.TABLE


def test_a_heading_over_several_columns_spans_them() -> None:
    lines = wrapped(PROSE, 150, 200, 110)
    lines.append(line("Year ended", 1192 - 5 * ADVANCE, 560))
    for n, row in enumerate(
        [("", "2025", "2024", "2023"), ("Cost", "$ 178", "$ 141", "$ 138"), ("Sales", "1,136", "876", "680")]
    ):
        for column, text in enumerate(row):
            if text:
                x = 150 if column == 0 else 900 + 200 * column - 100 - len(text) * ADVANCE + 20
                lines.append(line(text, x, 600 + n * 36))
    text = read(lines)
    assert '<th colspan="3">Year ended</th>' in text
    assert "<tr><td>Sales</td><td>1,136</td><td>876</td><td>680</td></tr>" in text


def test_pipes_in_cells_are_escaped() -> None:
    lines = [each if each.text != "Tar" else each.model_copy(update={"text": "Tar | pitch"}) for each in table_lines()]
    assert "| Tar \\| pitch | 3 | 9.50 |" in read([*wrapped(PROSE, 150, 200, 110), *lines])


RECEIPT = [
    ("CORNER SHOP LTD", None, None),
    ("12 Quay Street", None, None),
    ("Bread", "1", "2.40"),
    ("Milk", "2", "3.00"),
    ("Total", None, "5.40"),
    ("Cash", None, "10.00"),
    ("Change", None, "4.60"),
    ("# 0042", None, None),
    ("THANK YOU", None, None),
]


def receipt_lines() -> list[Line]:
    lines = []
    for n, (name, count, price) in enumerate(RECEIPT):
        lines.append(line(name, 60, 60 + n * 36))
        if count:
            lines.append(line(count, 300, 61 + n * 36))
        if price:
            lines.append(line(price, 460 - len(price) * ADVANCE, 58 + n * 36))
    return lines


@pytest.mark.parametrize("degrees", [0, -4, 5])
def test_a_receipts_rows_stay_rows_and_nothing_of_it_is_furniture(degrees: float) -> None:
    lines = turned(receipt_lines(), degrees)
    expected = [" ".join(part for part in row if part) for row in RECEIPT]
    assert [row.strip() for row in read(lines).splitlines()] == expected
    assert not any(role for role in roles([page(lines)]).values())


def book(count: int) -> list[Page]:
    """Pages with a running head, a foot that repeats and a page number in the outer corner."""
    pages = []
    for number in range(1, count + 1):
        outer = 100 if number % 2 == 0 else 1500
        lines = [line("THE TIDES" if number % 2 else "A. Holm", 700, 80), line(str(number + 40), outer, 80)]
        lines += wrapped(f"Body{number} " + PROSE * 3, 100, 160, 125)
        lines.append(line(f"Harbour Press, sheet {number}", 650, 2100))
        pages.append(page(lines, number=number))
    return pages


def test_running_heads_feet_and_page_numbers_are_marked_and_left_out() -> None:
    pages = compose(book(8))
    for number, composed in enumerate(pages, 1):
        assert composed.markdown.startswith(f"Body{number} The harbour")
        assert composed.markdown.strip().endswith("see again.")
        found = {each.text: each.role for each in composed.lines if each.role}
        assert found == {
            "THE TIDES" if number % 2 else "A. Holm": Role.PAGE_HEADER,
            str(number + 40): Role.PAGE_NUMBER,
            f"Harbour Press, sheet {number}": Role.PAGE_FOOTER,
        }


def test_furniture_is_kept_on_request_at_its_place() -> None:
    text = compose(book(4), keep_furniture=True)[2].markdown
    assert text.index("THE TIDES") < text.index("Body3") < text.index("Harbour Press, sheet 3")
    assert "43" in text.split()


def test_a_single_page_loses_its_number_and_running_head_only() -> None:
    lines = [line("400", 100, 80), line("BRITISH HUSBANDRY.", 700, 80), line("[Ch. XIX.", 1380, 80)]
    lines += wrapped(PROSE * 4, 100, 140, 125)
    assert flat(read(lines)) == flat(PROSE * 4)
    assert flat(read([*wrapped(PROSE * 4, 100, 140, 125), line("- 12 -", 800, 1400)])) == flat(PROSE * 4)


@pytest.mark.parametrize(
    "outer",
    [
        [line("January 10th, 1864.", 1300, 120)],
        [line("Grandma's Biscuits", 600, 120, size=50)],
        [line("Serves 4", 100, 1700)],
        [line("1 The figure is for the year before.", 100, 1800, size=20)],
    ],
)
def test_first_and_last_lines_of_a_single_page_are_content(outer: list[Line]) -> None:
    lines = [*outer, *wrapped(PROSE * 3, 100, 400, 125)]
    assert outer[0].text in read(lines)
    assert not any(role and role.is_furniture for role in roles([page(lines)]).values())


def test_stamps_along_the_margin_are_furniture(paper: list[Line]) -> None:
    stamp = Line(
        text="Downloaded from http://example.org/ by guest",
        polygon=[(1650, 300), (1650, 1500), (1620, 1500), (1620, 300)],
    )
    side = [(30, 1500), (30, 500), (60, 500), (60, 1500)]
    arxiv = Line(text="arXiv:2503.04086v1 [math.CO] 6 Mar 2025", polygon=side)
    banner = line("Downloaded from http://example.org/ on July 12, 2017", 400, 30)
    assert read([stamp, arxiv, banner, *paper]) == read(paper)


def test_an_initial_is_put_before_its_word() -> None:
    rows = wrapped("nce upon a time " + PROSE, 170, 200, 100)
    initial = line("O", 100, 196, size=90, width=66)
    assert read([initial, *rows[:3], *wrapped(PROSE, 100, 200 + 3 * STEP, 106)]).startswith("Once upon a time The")


def test_wide_characters_are_joined_without_spaces() -> None:
    rows = ["東京の港は静かで、船が次々と帰ってきた。", "漁師たちは疲れていたが、誰も嵐のことを話さ", "なかった。"]
    lines = [line(text, 100, 200 + n * 40, width=len(text) * 24) for n, text in enumerate(rows)]
    assert "話さなかった。" in read(lines)
    korean = [
        line("항구는 조용했고 배들이 하나둘씩 돌아왔다 그리고", 100, 200, width=600),
        line("아무도 말하지 않았다.", 100, 240, width=260),
    ]
    assert "그리고 아무도" in read(korean)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# 7 is not a heading here", "\\# 7 is not a heading here"),
        ("> said the keeper", "\\> said the keeper"),
        ("a *starred* word", "a \\*starred\\* word"),
        ("use <br> tags", "use \\<br> tags"),
        ("snake_case_name and 2 * 3 * 4", "snake_case_name and 2 * 3 * 4"),
        ("1 < 2 and a|b", "1 < 2 and a|b"),
    ],
)
def test_only_signs_that_markdown_would_swallow_are_escaped(text: str, expected: str) -> None:
    assert read([line(text, 100, 200)]) == expected + "\n"


def test_pages_without_text_pass_through_and_lines_without_place_stay_last() -> None:
    blank = Page(number=1, width=10, height=10, status="blank")
    failed = Page(number=2, width=0, height=0, status="failed", error="unreadable")
    loose = [Line(text="second"), Line(text="first")]
    third = page([loose[0], line("placed", 10, 10), loose[1]], number=3)
    composed = compose([blank, failed, third])
    assert composed[:2] == [blank, failed]
    assert [each.text for each in composed[2].lines] == ["placed", "second", "first"]
    assert composed[2].markdown == "placed\n\nsecond\n\nfirst\n"
    assert compose([]) == []


def random_page(seed: int) -> Page:
    """Lines of any size at any place, some tilted, some upright, some the same."""
    chance = random.Random(seed)
    words = [
        "tide",
        "12",
        "3.50",
        "•",
        "# 1",
        "harbour-",
        "|",
        "海",
        "",
        "*a*",
        "Total",
        "iv",
        "- x",
        "www.example.org",
    ]
    lines = []
    for _ in range(chance.randrange(0, 60)):
        text = " ".join(chance.choices(words, k=chance.randrange(1, 6)))
        each = line(text, chance.randrange(1500), chance.randrange(2100), size=chance.choice([8, 24, 24, 60]))
        if chance.random() < 0.2:
            corners = each.polygon or []
            each = each.model_copy(update={"polygon": [*corners[1:], corners[0]]})
        lines += [each] * chance.choice([1, 1, 1, 2])
    return page([*lines, Line(text="loose")], number=1)


def signs(texts: Iterable[str]) -> Counter[str]:
    return Counter(sign for text in texts for sign in text if sign.isalnum())


@pytest.mark.parametrize("seed", range(60))
def test_any_page_is_composed_without_loss_in_one_way(seed: int) -> None:
    given = random_page(seed)
    pages = [given, random_page(seed + 1).model_copy(update={"number": 2}), given.model_copy(update={"number": 3})]
    once = compose(pages)
    shuffled = []
    for each in pages:
        lines = each.lines[:-1]
        random.Random(seed).shuffle(lines)
        shuffled.append(each.model_copy(update={"lines": [*lines, each.lines[-1]]}))
    assert compose(shuffled) == once
    assert compose(once) == once
    for before, after in zip(pages, once, strict=True):
        kept = Counter((each.text, str(each.polygon)) for each in after.lines)
        assert kept == Counter((each.text, str(each.polygon)) for each in before.lines)
        written = re.sub("<[^>]*>", "", compose([before], keep_furniture=True)[0].markdown)
        assert signs([written]) == signs(each.text for each in before.lines)
