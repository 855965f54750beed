"""Makes the sample documents of this folder, and in `truth/` the text that each of them says.

    python samples/make_samples.py [FOLDER]

Everything is drawn from a fixed seed: the same Pillow and the same fonts give the same files again.
"""

from __future__ import annotations

import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pillow_heif
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

SOFT_HYPHEN = "~"  # in the texts below: where a word may be broken at a line end

LIBERATION = "fonts-liberation"
NOTO_CJK = "fonts-noto-cjk"
SERIF, BOLD, ITALIC = (f"LiberationSerif-{style}.ttf" for style in ("Regular", "Bold", "Italic"))
SANS, SANS_BOLD = "LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf"
MONO, MONO_BOLD = "LiberationMono-Regular.ttf", "LiberationMono-Bold.ttf"
CJK = "NotoSansCJK-Regular.ttc"
JAPANESE, CHINESE = 0, 2  # faces of that collection


@dataclass(frozen=True)
class Sample:
    """A document's page images, and its text as a reader would type it; see README.md."""

    pages: list[Image.Image]
    text: str


def make(folder: Path) -> None:
    """Write every sample and its truth into `folder`."""
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    for name, draw in SAMPLES.items():
        sample = draw(np.random.default_rng(zlib.crc32(name.encode())))
        _save(sample.pages, folder / name)
        (folder / "truth" / f"{name}.txt").write_text(sample.text, encoding="utf-8")


# --- the documents -----------------------------------------------------------------------------------------------


def recipe_card(rng: Generator) -> Sample:
    """A recipe card on a kitchen table, photographed by hand in the light of an evening lamp."""
    card = Image.new("RGB", (980, 1330), (252, 246, 230))
    draw = ImageDraw.Draw(card)
    text: list[str] = [RECIPE_TITLE, RECIPE_NOTE, ""]
    draw.text((80, 70), RECIPE_TITLE, font=_font(BOLD, 62), fill=(120, 38, 44))
    draw.text((82, 152), RECIPE_NOTE, font=_font(ITALIC, 34), fill=(70, 62, 58))
    draw.line((80, 214, 900, 214), fill=(196, 120, 110), width=3)
    y = 244
    for heading, items in (("Ingredients", RECIPE_INGREDIENTS), ("Method", RECIPE_STEPS)):
        draw.text((80, y), heading, font=_font(SANS_BOLD, 38), fill=(120, 38, 44))
        text += [heading, ""]
        y += 64
        for item in items:
            mark, words = item.split(" ", 1)
            font = _font(SANS, 35)
            indent = 80 + font.getlength(f"{mark} ")
            draw.text((80, y), mark, font=font, fill=(48, 42, 40))
            for line in _wrap(words, font, 770):
                draw.text((indent, y), line, font=font, fill=(48, 42, 40))
                y += 48
            y += 6
            text.append(item)
        text.append("")
        y += 22

    size = (1200, 1600)
    corners = [(128, 148), (1096, 106), (1124, 1490), (70, 1452)]  # clockwise from the card's top left
    onto = _perspective(card.size, corners)
    photo = _wood(size, rng)
    mask = Image.new("L", card.size, 255).transform(size, Image.Transform.PERSPECTIVE, onto, Image.Resampling.BICUBIC)
    shadow = ImageChops.offset(mask, 16, 22).filter(ImageFilter.GaussianBlur(18)).point(lambda value: value * 0.55)
    photo.paste((24, 14, 8), mask=shadow)
    photo.paste(card.transform(size, Image.Transform.PERSPECTIVE, onto, Image.Resampling.BICUBIC), mask=mask)

    x, y_ = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    lamp = 1.0 - 0.3 * np.hypot(x - 0.25, y_ - 0.15)
    hand = 1 - 0.22 / (1 + np.exp((1.55 - x - y_) * 26))  # its soft shadow lies over the lower right corner
    warm = np.array([1.04, 0.985, 0.86])
    pixels = np.asarray(photo.filter(ImageFilter.GaussianBlur(0.7)), float) * (lamp * hand)[..., None] * warm
    pixels += rng.normal(0, 2.0, pixels.shape)
    return Sample([_image(pixels)], _joined(text))


def receipt(rng: Generator) -> Sample:
    """A till receipt: thermal print with weak rows, fed in at an angle."""
    paper = Image.new("L", (640, 1090), 246)
    draw = ImageDraw.Draw(paper)
    y = 44
    for line in RECEIPT:
        cells = line.split("\t")
        large = line == RECEIPT[0]
        strong = large or cells[0] == "TOTAL"
        font = _font(MONO_BOLD if strong else MONO, 40 if large else 27)
        if line == "":
            draw.line((46, y + 14, 594, y + 14), fill=90, width=2)
        elif len(cells) == 1:
            draw.text((320, y), line, font=font, fill=58, anchor="ma")
        else:
            draw.text((46, y), cells[0], font=font, fill=58)
            draw.text((594, y), cells[1], font=font, fill=58, anchor="ra")
        y += 56 if large else 39
    pixels = np.asarray(paper, float)
    weak_rows = 1 - 0.3 * np.clip(np.convolve(rng.normal(0, 1, pixels.shape[0] + 24), np.ones(25) / 9, "valid"), 0, 1)
    pixels = 246 - (246 - pixels) * weak_rows[:, None]
    pixels += rng.normal(0, 5, pixels.shape) - np.linspace(0, 12, pixels.shape[1])
    tilted = _image(pixels).rotate(3, Image.Resampling.BICUBIC, expand=True, fillcolor=112)
    page = Image.new("L", (tilted.width + 60, tilted.height + 40), 112)
    page.paste(tilted, (30, 20))
    return Sample([_scan(page, rng, blur=0.6, noise=4).convert("RGB")], _joined(line for line in RECEIPT if line))


def paper(rng: Generator) -> Sample:
    """Two pages of a journal, two columns each, scanned at 200 dpi."""
    width, height, margin, gutter = 1400, 2000, 120, 56  # 7 x 10 inches
    column = (width - 2 * margin - gutter) // 2
    top, bottom = 190, height - 170
    body, leading = _font(SERIF, 33), 45
    pages: list[Image.Image] = []
    text: list[str] = [PAPER_TITLE, "", PAPER_AUTHORS, ""]

    def new_page() -> ImageDraw.ImageDraw:
        pages.append(Image.new("L", (width, height), 255))
        draw = ImageDraw.Draw(pages[-1])
        number = PAPER_FIRST_PAGE + len(pages) - 1
        draw.text((margin, 96), PAPER_RUNNING_HEAD, font=_font(ITALIC, 26), fill=30)
        draw.text((width - margin, 96), PAPER_ISSUE, font=_font(ITALIC, 26), fill=30, anchor="ra")
        draw.text((width // 2, height - 110), str(number), font=_font(SERIF, 26), fill=30, anchor="ma")
        return draw

    draw = new_page()
    draw.text((width // 2, 196), PAPER_TITLE, font=_font(BOLD, 56), fill=20, anchor="ma")
    draw.text((width // 2, 282), PAPER_AUTHORS, font=_font(ITALIC, 32), fill=20, anchor="ma")
    left, y, column_top = margin, 380, 380

    def next_column() -> None:
        nonlocal draw, left, y, column_top
        if left == margin:
            left = margin + column + gutter
        else:
            draw = new_page()
            left, column_top = margin, top
        y = column_top

    for block in PAPER:
        if isinstance(block, list):
            rows = len(block) - 1
            if y + 60 + rows * 42 > bottom:
                next_column()
            y += 14
            caption, *table = block
            draw.text((left, y), caption, font=_font(BOLD, 26), fill=20)
            y += 46
            for row, line in enumerate(table):
                if row < 2:
                    draw.line((left, y - 4, left + column, y - 4), fill=20, width=2)
                for cell, x in zip(line.split("\t"), (0, 210, 340, 470), strict=True):
                    draw.text((left + x, y), cell, font=_font(BOLD if row == 0 else SERIF, 27), fill=20)
                y += 42
            draw.line((left, y, left + column, y), fill=20, width=2)
            y += 40
            text += [*block, ""]
        elif block[0].isdigit():
            if y + 4 * leading > bottom:
                next_column()
            y += 20 if y > column_top else 0
            draw.text((left, y), block, font=_font(BOLD, 35), fill=20)
            y += 58
            text += [block, ""]
        else:
            lines = _wrap(block, body, column)
            for number, line in enumerate(lines):
                if y + leading > bottom:
                    next_column()
                _justified(draw, (left, y), line, body, column if number < len(lines) - 1 else None)
                y += leading
            y += 16
            text += [block.replace(SOFT_HYPHEN, ""), ""]
    return Sample([_scan(page, rng, blur=0.75, noise=1.5, turn=0.25) for page in pages], _joined(text))


def letter(rng: Generator) -> Sample:
    """A fax of three pages, black and white, with the sender's line on top of each."""
    pages, text = [], []
    for number, lines in enumerate(FAX, start=1):
        second = 1180 if number == len(FAX) else 560  # where the second column begins
        page = Image.new("L", (1728, 2292), 255)  # ITU-T T.4, fine resolution, A4
        draw = ImageDraw.Draw(page)
        draw.text((80, 30), f"{FAX_SENDER}   P. {number}/{len(FAX)}", font=_font(MONO, 32), fill=0)
        y = 220
        for line in lines:
            font = _font(SANS_BOLD, 64) if number == 1 and line == lines[0] else _font(SANS, 42)
            for cell, x in zip(line.split("\t"), (200, second), strict=False):
                for piece in _wrap(cell, font, 1330):
                    draw.text((x, y), piece, font=font, fill=0)
                    y += 60
                y -= 60
            y += 120 if font.size > 50 else 84
        grey = np.asarray(page.filter(ImageFilter.GaussianBlur(0.8)), float)
        grey = grey + rng.normal(0, 26, grey.shape)
        specks = rng.random(grey.shape) < 0.00004
        pages.append(_image(np.where((grey > 128) & ~specks, 255, 0)).convert("1", dither=Image.Dither.NONE))
        text += [*lines, ""]
    return Sample(pages, _joined(text))


def blank(rng: Generator) -> Sample:
    """The empty back of a sheet: paper grain, a faint fold, the scanner's shadow at one edge."""
    pixels = np.full((1169, 826), 247.0)
    rows, columns = np.arange(1169)[:, None], np.arange(826)[None, :]
    pixels -= 5 * np.exp(-(((rows - 585) / 4.0) ** 2))
    pixels -= 14 * np.exp(-columns / 6.0)
    pixels += rng.normal(0, 0.35, pixels.shape)
    return Sample([_image(pixels)], "")


def accents(rng: Generator) -> Sample:
    """Latin letters with every kind of mark."""
    page = Image.new("L", (1240, 190 + 118 * len(ACCENTS)), 255)
    draw = ImageDraw.Draw(page)
    draw.text((90, 70), ACCENTS_TITLE, font=_font(BOLD, 50), fill=20)
    for row, (language, sentence) in enumerate(ACCENTS.items()):
        y = 168 + 118 * row
        draw.text((90, y), language, font=_font(SANS_BOLD, 26), fill=90)
        draw.text((90, y + 36), sentence, font=_font(SERIF, 36), fill=20)
    text = [ACCENTS_TITLE, "", *(line for item in ACCENTS.items() for line in (*item, ""))]
    return Sample([_scan(page, rng, blur=0.4, noise=0).quantize(16)], _joined(text))


def cjk(rng: Generator) -> Sample:
    """A Chinese and a Japanese paragraph."""
    page = Image.new("L", (1240, 920), 255)
    draw = ImageDraw.Draw(page)
    text: list[str] = []
    y = 80
    for face, title, paragraph in ((CHINESE, *CHINESE_TEXT), (JAPANESE, *JAPANESE_TEXT)):
        draw.text((100, y), title, font=_font(CJK, 48, face), fill=20)
        y += 92
        for line in _wrap_cjk(paragraph, 28):
            draw.text((100, y), line, font=_font(CJK, 36, face), fill=20)
            y += 60
        y += 60
        text += [title, "", paragraph, ""]
    return Sample([_scan(page, rng, blur=0.4, noise=0).quantize(16)], _joined(text))


def rotated(rng: Generator) -> Sample:
    """A notice that went through the scanner lying on its side: its top is at the left of the image."""
    page = Image.new("L", (1240, 1754), 255)
    draw = ImageDraw.Draw(page)
    y = 160
    text: list[str] = []
    for number, block in enumerate(NOTICE):
        font = _font(SANS_BOLD, 58) if number == 0 else _font(SANS, 35)
        indent = 40 if block[0] == "-" else 0
        for line in _wrap(block, font, 980 - indent):
            draw.text((130 + indent, y), line, font=font, fill=25)
            y += 50
        y += 44 if number == 0 else 12 if indent else 30
        text += [block] if indent else ["", block, ""]
    upright = _scan(page, rng, blur=0.5, noise=3, turn=-0.4)
    return Sample([upright.transpose(Image.Transpose.ROTATE_90)], _joined(text))


SAMPLES: dict[str, Callable[[Generator], Sample]] = {
    "accents.png": accents,
    "blank.png": blank,
    "cjk.png": cjk,
    "letter.tiff": letter,
    "paper.pdf": paper,
    "receipt.jpg": receipt,
    "recipe-card.heic": recipe_card,
    "rotated.jpg": rotated,
}


# --- what they say -----------------------------------------------------------------------------------------------

RECIPE_TITLE = "Plum and Hazelnut Tart"
RECIPE_NOTE = "Serves 8, best on the day it is baked"
RECIPE_INGREDIENTS = [
    "- 180 g plain flour",
    "- 110 g cold butter, cut small",
    "- 60 g sugar, and 2 tbsp to finish",
    "- 1 egg",
    "- 700 g ripe plums",
    "- 80 g ground hazelnuts",
]
RECIPE_STEPS = [
    "1. Rub the butter into the flour, stir in the sugar, bind with the egg and chill for 30 minutes.",
    "2. Heat the oven to 190 °C and butter a 26 cm tin.",
    "3. Roll out the pastry, line the tin and scatter the hazelnuts over it.",
    "4. Halve the plums and set them upright, close together, from the rim to the middle.",
    "5. Sprinkle with sugar and bake for 45 minutes, until the edges are dark.",
]

RECEIPT = [
    "THE CORNER PANTRY",
    "14 Quay Street",
    "Tel. 555 0142",
    "",
    "Date\t2026-03-12 17:42",
    "Till 2\tReceipt 008315",
    "",
    "Rye bread 750 g\t4.20",
    "Butter, salted\t3.15",
    "Apples 1.240 kg\t3.47",
    "2 x Oat milk 1 l\t4.38",
    "Mature cheddar\t6.90",
    "Coffee beans 500 g\t11.95",
    "Lemons, net of 4\t2.60",
    "Washing-up brush\t3.75",
    "",
    "Subtotal\t40.40",
    "Member discount 5%\t-2.02",
    "Tax 8%\t3.07",
    "TOTAL\t41.45",
    "Card\t41.45",
    "",
    "Thank you and come again!",
]

PAPER_TITLE = "Counting Swifts from a Library Roof"
PAPER_AUTHORS = "Ada Lindqvist and Tomas Berger"
PAPER_RUNNING_HEAD = "Lindqvist and Berger"
PAPER_ISSUE = "Notes from the Field 12"
PAPER_FIRST_PAGE = 47
PAPER: list[str | list[str]] = [  # headings start with a digit, a table is a list: its caption, its rows
    "1 Why a library",
    "Swifts nest under the eaves of old build~ings, come back to the same gap every sum~mer, and are easy to "
    "over~look: a bird that never lands can~not be counted on the ground. The town li~brary is the tall~est roof with "
    "a door that vol~un~teers may use, and from its north cor~ner one sees nine streets of slate roofs that were put "
    "up be~tween 1880 and 1910.",
    "We wanted to know three things: how many birds hunt above the quar~ter on an or~di~nary eve~ning, wheth~er the "
    "num~bers fol~low the weath~er, and wheth~er two peo~ple who count sep~a~rate~ly ar~rive at the same fig~ure. The "
    "last ques~tion turned out to be the most use~ful one.",
    "2 How we counted",
    "Each count lasts ten min~utes and be~gins half an hour be~fore sun~set. Two ob~serv~ers stand back to back, each "
    "with a hand-held click~er, and look at one half of the sky. They do not speak. When the time is up they write "
    "down their fig~ures be~fore they com~pare them, then change sides and count once more.",
    "A group that cir~cles is count~ed once, at its larg~est. Birds that leave the view and re~turn with~in a min~ute "
    "are taken for the same birds. This makes our fig~ures low rath~er than high, which we pre~fer: a roof that was "
    "held to be emp~ty can be looked at again, but a colo~ny that nev~er ex~ist~ed can~not be pro~tect~ed.",
    "Be~fore the first sum~mer each of the six~teen vol~un~teers prac~tised with a film of the same sky, played "
    "three times at dif~fer~ent speeds. No~body was sent home for a poor score, but ev~ery~body learned how much is "
    "missed in the sec~onds that it takes to look down at a sheet of pa~per. The click~ers were bought the next day.",
    "Wind and cloud were es~ti~mat~ed from the roof; rain~fall and tem~per~a~ture come from the har~bour sta~tion, "
    "two kilo~me~tres to the east. We left out eve~nings with thun~der, for the sake of the ob~serv~ers.",
    "3 What we saw",
    "In three sum~mers we count~ed on 94 eve~nings. The usu~al fig~ure was be~tween 30 and 60 birds, with a clear "
    "peak in the sec~ond week of Ju~ly, when the young leave their nests and join the scream~ing par~ties of the "
    "adults.",
    [
        "Table 1. Mean count per evening",
        "Month\t2023\t2024\t2025",
        "May\t18.4\t21.0\t19.7",
        "June\t34.2\t37.9\t41.3",
        "July\t52.8\t49.5\t58.1",
        "August\t11.6\t9.2\t12.4",
    ],
    "Warm and still eve~nings brought the most birds, but the con~nec~tion is weak~er than we had ex~pect~ed. Be~low "
    "14 de~grees hard~ly any birds were seen at all; above that it made lit~tle dif~fer~ence wheth~er the day had "
    "been mild or hot. Light rain did not keep them away. A strong east~er~ly wind did, on ev~ery one of the elev~en "
    "eve~nings on which it blew.",
    "The two ob~serv~ers dif~fered by few~er than four birds on most eve~nings. Where they dif~fered by more, the "
    "cause was near~ly al~ways a large and fast-mov~ing group that crossed from one half of the sky to the oth~er "
    "while both were look~ing.",
    "4 What others can take from it",
    "The meth~od needs no equip~ment, takes half an hour and can be taught in an eve~ning. Its weak~ness is the "
    "di~vid~ing line: two halves of the sky in~vite two counts of the same birds. From next sum~mer we shall let both "
    "ob~serv~ers watch the whole sky and re~port the mean, and com~pare the two ways for one sea~son be~fore we give "
    "up the first.",
    "Three oth~er towns have asked for our sheets. We give them away free~ly, to~gether with the film and a list of "
    "the mis~takes that we made. Who~ev~er wants to be~gin needs pa~tience more than skill: the first good eve~ning "
    "may be the fifth, and the best one may come when no~body has brought a jack~et.",
    "5 Open questions",
    "Some birds hunt far from their nests, and we do not know how many of ours live else~where. A sin~gle dry week "
    "in June of 2024 near~ly dou~bled the fig~ures, per~haps be~cause the ponds out~side the town had few~er "
    "in~sects to of~fer. To tell res~i~dents from guests one would have to watch the gaps un~der the eaves at the "
    "same hour, street by street.",
    "We al~so count on~ly in the eve~ning. A few tri~als at dawn gave high~er and much more reg~u~lar num~bers, but "
    "no vol~un~teer of~fered to re~peat them for a whole sum~mer. An au~to~mat~ic cam~era might; the li~brary has "
    "agreed to lend us a sock~et.",
    "We thank the night por~ter, who nev~er once locked us out.",
]

FAX_SENDER = "12 MAR 2026 09:14   HARBOURSIDE PIANO WORKS"
FAX = [
    [
        "FAX",
        "To:\tBrannoc Street School",
        "Attention:\tMs Eleanor Whitcombe",
        "From:\tHarbourside Piano Works",
        "Date:\t12 March 2026",
        "Pages:\t3, with this one",
        "Please call 555 0178 if a page is missing.",
    ],
    [
        "Dear Ms Whitcombe,",
        "Thank you for showing me the upright piano in the assembly hall last Thursday. It is a better instrument "
        "than its voice suggests, and well worth the repair.",
        "The soundboard is sound. Two bass strings are broken, the hammers are worn hard, and the damp of the old "
        "boiler room has swollen about a third of the keys. None of this is unusual after thirty years beside a "
        "radiator.",
        "I would take the action to my workshop for nine working days. The case can stay where it is, so that you "
        "need no carrier. After that the piano should be tuned twice within the first two months.",
        "You will find the prices on the next page. They hold until the end of May.",
        "With kind regards,",
        "Jonas Hale",
    ],
    [
        "Quotation 2026-031",
        "New bass strings, two\t84.00",
        "Reshaping and voicing of hammers\t310.00",
        "Easing of keys, 29 keys\t145.00",
        "Cleaning and regulation\t220.00",
        "Two tunings\t160.00",
        "Sum\t919.00",
        "Valid until 31 May 2026. Payment within 30 days of the second tuning.",
    ],
]

ACCENTS_TITLE = "A summer in eleven languages"
ACCENTS = {
    "Français": "Où êtes-vous allés cet été, près de la forêt ou à l'île d'Oléron ?",
    "Deutsch": "Über die Brücke fährt täglich eine größere, grüne Straßenbahn.",
    "Español": "El niño soñó que un pingüino le traía café, ¿verdad?",
    "Português": "Amanhã não há pão, mas há maçãs e três limões no armário.",
    "Čeština": "Příští týden přijede děda a přiveze čerstvé švestky z naší zahrady.",
    "Polski": "Żółte łódki płynęły wzdłuż brzegu, aż zgasło słońce.",
    "Magyar": "Az öreg kőműves hűvös estéken tűz mellett ült és énekelt.",
    "Türkçe": "Küçük kız, güneşli bahçede çiçek toplayıp şarkı söyledi.",
    "Svenska": "På ön växer blåbär, åkerbär och en ensam björk.",
    "Íslenska": "Það er gott að búa við sjóinn þegar vorið kemur.",
    "Română": "Bunica ține în cămară brânză, gutui și țuică veche.",
}

CHINESE_TEXT = (
    "河边的旧书店",
    "河边有一家小书店，店主每天早上八点开门。他把旧书按颜色排在木架上，红色的在左边，蓝色的在右边。来的人不多，"
    "可是每个人都会坐很久。下雨的时候，他给客人泡一壶热茶，然后继续修补那些掉了页的书。",
)
JAPANESE_TEXT = (
    "駅前のパン屋",
    "駅前のパン屋は朝六時に開きます。焼きたてのクロワッサンの香りが通りまで広がり、学校へ行く子どもたちが足を止めます。"
    "店の奥では、若い職人が静かに生地をこねています。今日のおすすめは、栗とくるみのパンです。",
)

NOTICE = [
    "Allotment Society: spring notice",
    "Dear members, the water will be turned on again on Saturday 28 March. Please check that your taps are closed "
    "before that day, and look after the one at the gate if you are the first to arrive.",
    "We meet at ten o'clock beside the tool shed. Bring gloves and, if you have one, a rake. There is work for "
    "everybody:",
    "- clearing the ditch along the railway,",
    "- mending the fence behind plots 14 to 19,",
    "- painting the bench under the pear tree.",
    "Compost has been delivered and lies next to the car park. Each plot may take four barrows free of charge. What "
    "is left after Easter goes to the school garden.",
    "Two plots are free this year. If a friend of yours would like one, tell them to write to the committee before 15 "
    "April.",
    "Soup and bread at one o'clock, as always.",
]


# --- drawing -----------------------------------------------------------------------------------------------------


@cache
def _font(file: str, size: int, face: int = 0) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(file, size, index=face)
    except OSError:
        package = NOTO_CJK if file == CJK else LIBERATION
        raise SystemExit(f"Font {file} is not installed. On Debian or Ubuntu: sudo apt-get install {package}") from None


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces, after hyphens and, with a hyphen added, at soft hyphens."""
    lines, line = [], ""
    for word in text.split():
        pieces = word.replace("-", f"-{SOFT_HYPHEN}").split(SOFT_HYPHEN)
        start = f"{line} " if line else ""
        while pieces:
            for count in range(len(pieces), 0, -1):
                head = "".join(pieces[:count])
                broken = head if count == len(pieces) or head.endswith("-") else f"{head}-"
                if font.getlength(start + broken) <= width:
                    break
            else:
                if not start:
                    raise ValueError(f"{word!r} is wider than {width} pixels")
                lines.append(line)
                line = start = ""
                continue
            line = start + broken
            pieces = pieces[count:]
            if pieces:
                lines.append(line)
                line = start = ""
    return [*lines, line]


def _wrap_cjk(text: str, count: int) -> list[str]:
    """Lines of about `count` characters; a comma or full stop hangs over the edge instead of starting a line."""
    return re.findall(f".{{{count}}}[，。、]?|.+$", text)


def _justified(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], line: str, font: ImageFont.FreeTypeFont, width: int | None
) -> None:
    """Draw `line`, its spaces widened so that it fills `width` pixels."""
    words = line.split(" ")
    space = font.getlength(" ")
    if width is not None and len(words) > 1:
        space = (width - sum(font.getlength(word) for word in words)) / (len(words) - 1)
    x = float(place[0])
    for word in words:
        draw.text((round(x), place[1]), word, font=font, fill=20)
        x += font.getlength(word) + space


def _scan(page: Image.Image, rng: Generator, blur: float, noise: float, turn: float = 0) -> Image.Image:
    """The grey page as a scanner sees it: a little turned (degrees), soft, on paper that is not quite white."""
    page = page.rotate(turn, Image.Resampling.BICUBIC, fillcolor=255).filter(ImageFilter.GaussianBlur(blur))
    pixels = 12 + np.asarray(page, float) * (236 / 255)
    return _image(pixels + rng.normal(0, noise, pixels.shape))


def _wood(size: tuple[int, int], rng: Generator) -> Image.Image:
    """A table top of broad planks with their grain."""
    width, height = size
    grain = rng.normal(0, 1, (height, width // 40 + 2))
    grain = np.asarray(Image.fromarray(grain.astype(np.float32)).resize(size, Image.Resampling.BICUBIC), float)
    plank = np.arange(height)[:, None] // 270
    tone = 1 + 0.05 * rng.normal(0, 1, (height // 270 + 1))[plank] + 0.045 * grain
    tone = np.where(np.arange(height)[:, None] % 270 < 4, 0.55, tone)
    return _image(tone[..., None] * np.array([142, 98, 62]))


def _perspective(size: tuple[int, int], corners: list[tuple[int, int]]) -> list[float]:
    """Coefficients for `Image.transform` that lay an image of `size` onto `corners`, clockwise from its top left."""
    width, height = size
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, [(0, 0), (width, 0), (width, height), (0, height)], strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return [float(value) for value in np.linalg.solve(np.array(rows, float), np.array(values, float))]


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _joined(lines: Iterable[str]) -> str:
    """The lines with single blank lines between paragraphs."""
    text = "\n".join(lines).strip()
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text + "\n"


def _save(pages: list[Image.Image], path: Path) -> None:
    first, *others = pages
    match path.suffix:
        case ".heic":
            pillow_heif.register_heif_opener()
            first.save(path, quality=50)
        case ".jpg":
            first.save(path, quality=60, dpi=(150, 150))
        case ".pdf":
            then = time.gmtime(0)  # dates of its own would make the file differ with every run
            first.save(
                path,
                save_all=True,
                append_images=others,
                resolution=200,
                quality=25,
                title=PAPER_TITLE,
                creationDate=then,
                modDate=then,
            )
        case ".tiff":
            first.save(path, save_all=True, append_images=others, compression="group4", dpi=(204, 196))
        case _:
            first.save(path, optimize=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
