"""Vision models that read a page, a row each: which weights, how they are asked, what bounds them, what their licences
forbid. Data alone, so that engines, the command line and the docs say the same of a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

WithoutBf16 = Literal["float16", "float32", "refuse"]


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, word for word as its authors do, and how its answer is read."""

    text: str
    parser: str  # key of `worker.engines.outputs.PARSERS`


@dataclass(frozen=True)
class Licence:
    """Of the weights. `limits` is one line for people, "" where there are none worth it."""

    name: str
    limits: str = ""
    forbids_training_on_output: bool = False
    excluded_regions: frozenset[str] = frozenset()  # AWS regions in places where the model may not be used


@dataclass(frozen=True)
class Preset:
    """A vision model. Sizes are pixels of the image that the model sees, areas are width times height."""

    name: str
    hub_id: str
    revision: str  # commit of `hub_id`: its branch may get other weights overnight, as tencent/HunyuanOCR's did
    min_transformers: str
    architecture: str  # class of transformers that holds the weights
    parameters: str  # how many, for people
    prompts: Mapping[str, Prompt]  # by task: "markdown", "text" or "spotting"
    default_task: str
    licence: Licence
    longest_side: int  # larger pages are scaled down before the engine gets them
    min_pixels: int | None  # area: smaller pages are enlarged; None where the processor has no such limit
    max_pixels: int | None
    max_new_tokens: int
    generation: Mapping[str, Any] = field(default_factory=dict)  # as `generate` takes it, besides the temperature
    attention: str = "sdpa"  # eager needs some 15 GB a layer for an A4 page at 200 DPI
    without_bf16: WithoutBf16 = "float16"  # on a card without bfloat16, such as a T4
    system: str | None = None  # a system message: some models want an empty one, lest their template puts in its own
    end_tokens: tuple[str, ...] = ()  # that end the text besides those of the checkpoint's generation_config.json
    chat_template: bool = True  # False: the processor itself writes the prompt, `format=True` for markdown
    processor: str = "AutoProcessor"  # class of transformers, where the weights' own files name it otherwise
    renamed: Mapping[str, str] = field(default_factory=dict)  # patterns of the weights' names, and what the class says
    needs_torchvision: bool = False  # its processor does, for videos
    alone_with_vllm: bool = False  # vLLM 0.32 reads its pages wrongly where it is asked for several at a time
    max_aspect: float = 200.0  # the processors that resize by area refuse what is longer

    def prompt_id(self, task: str) -> str:
        """Names a prompt in results; another wording has another id."""
        return f"{self.name}/{task}/{hashlib.sha256(self.prompts[task].text.encode()).hexdigest()[:8]}"


_NAMING = ("preset", "model", "fallback", "command", "server_args")  # options that name weights


def presets_of(engine: str, options: Mapping[str, Any]) -> list[Preset]:
    """Those whose weights may read: the engine's own, those that it has a server run, and those that it falls back to.

    Weights are known by their name, in whatever folder, repository or server they lie and whatever is added to it:
    `hf.co/someone/HunyuanOCR-GGUF:Q8_0` are HunyuanOCR's.
    """
    named = " ".join([engine, *(str(options.get(option, "")) for option in _NAMING)]).lower()
    words = set(re.split(r"[\s/@=:]", named))

    def is_named(preset: Preset) -> bool:
        weights = re.escape(preset.hub_id.rpartition("/")[2].lower())
        return preset.name in words or re.search(f"(?<![a-z0-9]){weights}(?![a-z0-9])", named) is not None

    return [preset for preset in PRESETS.values() if is_named(preset)]


def forbidden_to_label(engine: str, options: Mapping[str, Any]) -> Preset | None:
    """Of those, one whose licence forbids to train other models on what it reads."""
    forbidden = (preset for preset in presets_of(engine, options) if preset.licence.forbids_training_on_output)
    return next(forbidden, None)


# Where HunyuanOCR may not be used: the regions of AWS in the European Union, in London and in Seoul.
_EU_UK_SOUTH_KOREA = frozenset(
    {
        "ap-northeast-2",
        "eu-central-1",
        "eu-north-1",
        "eu-south-1",
        "eu-south-2",
        "eu-west-1",
        "eu-west-2",
        "eu-west-3",
        "eusc-de-east-1",
    }
)
_HUNYUAN = Licence(
    "Tencent Hunyuan Community License",
    "not for use in the EU, the UK or South Korea; its output may not improve other models",
    forbids_training_on_output=True,
    excluded_regions=_EU_UK_SOUTH_KOREA,
)
_CHANDRA = Licence(
    "OpenRAIL-M, modified by Datalab",
    "free for research, personal use and firms under 2 million $ of revenue or funding; not to compete with Datalab",
)

# https://github.com/Tencent-Hunyuan/HunyuanOCR, inference/utils/tasks.py: the model is trained on these wordings.
_HUNYUAN_PROMPTS = {
    "markdown": Prompt(
        "提取文档图片中正文的所有信息用markdown格式表示，其中页眉、页脚部分忽略，表格用html格式表达，文档中公式用latex格式表示，按照阅读顺序组织进行解析。",
        "markdown",
    ),
    "text": Prompt("提取图中的文字。", "text"),
    "spotting": Prompt("检测并识别图片中的文字，将文本坐标格式化输出。", "hunyuan-spotting"),
}

# https://github.com/datalab-to/chandra, chandra/prompts.py (Apache-2.0), of release 0.2 for Chandra 2 and 0.1 for 1.
_CHANDRA_TAGS = (
    "math br i b u del sup sub table tr td p th div pre h1 h2 h3 h4 h5 ul ol li input a span img hr tbody small "
    "caption strong thead big code"
)
_CHANDRA_ATTRIBUTES = "class colspan rowspan display checked type border value style href alt align"
_CHANDRA_LABELS = (
    "Caption Footnote Equation-Block List-Group Page-Header Page-Footer Image Section-Header Table Text Complex-Block "
    "Code-Block Form Table-Of-Contents Figure"
)


def _chandra_prompt(box: str, scale: int, second: bool) -> str:
    """`second` is Chandra 2, whose guidelines are a few more."""
    tags = (_CHANDRA_TAGS + (" chem" if second else "")).split()
    attributes = (_CHANDRA_ATTRIBUTES + (" data-bbox data-label" if second else "")).split()
    labels = (_CHANDRA_LABELS + (" Chemical-Block Diagram Bibliography Blank-Page" if second else "")).split()
    images = (
        " Describe in detail inside the div tag. Also convert charts to high fidelity data, and convert diagrams to "
        "mermaid."
    )
    more = (
        "* Chemistry: Use <chem>...</chem> tags for chemical formulas with reactive SMILES.\n"
        "* Lists: Preserve indents and proper list markers.\n"
    )
    return (
        "OCR this image to HTML, arranged as layout blocks.  Each layout block should be a div with the data-bbox "
        f"attribute representing the bounding box of the block in {box} format.  Bboxes are normalized 0-{scale}. The "
        "data-label attribute is the label for the block.\n\n"
        "Use the following labels:\n" + "".join(f"- {label}\n" for label in labels) + "\n"
        f"Only use these tags {tags}, and these attributes {attributes}.\n\n"
        "Guidelines:\n"
        "* Inline math: Surround math with <math>...</math> tags. Math expressions should be rendered in "
        "KaTeX-compatible LaTeX. Use display for block math.\n"
        "* Tables: Use colspan and rowspan attributes to match table structure.\n"
        "* Formatting: Maintain consistent formatting with the image, including spacing, indentation, "
        "subscripts/superscripts, and special characters.\n"
        "* Images: Include a description of any images in the alt attribute of an <img> tag. Do not fill out the src "
        f"property.{images if second else ''}\n"
        "* Forms: Mark checkboxes and radio buttons properly.\n"
        "* Text: join lines together properly into paragraphs using <p>...</p> tags.  Use <br> tags for line breaks "
        "within paragraphs, but only when absolutely necessary to maintain meaning.\n"
        f"{more if second else ''}"
        "* Use the simplest possible HTML structure that accurately represents the content of the block.\n"
        "* Make sure the text is accurate and easy for a human to read and interpret.  Reading order should be correct "
        "and natural."
    )


_HUNYUAN_OCR = Preset(
    name="hunyuan",  # 1.5
    hub_id="tencent/HunyuanOCR",
    revision="449e7d471a8a1ef5bd5d652e4881183d7252cbc7",
    min_transformers="5.13",
    architecture="HunYuanVLForConditionalGeneration",
    parameters="1B",
    prompts=_HUNYUAN_PROMPTS,
    default_task="markdown",
    licence=_HUNYUAN,
    longest_side=4096,
    min_pixels=512 * 512,
    max_pixels=4096 * 4096,
    max_new_tokens=16_384,
    generation={"repetition_penalty": 1.08},
    system="",
    alone_with_vllm=True,  # Tencent-Hunyuan/HunyuanOCR#60, too
)

_PADDLEOCR_VL = Preset(
    name="paddleocr-vl",
    hub_id="PaddlePaddle/PaddleOCR-VL",
    revision="7fa00a8c55b735ba51ba49a9058f3f9c57a99a11",
    min_transformers="5.0",
    architecture="PaddleOCRVLForConditionalGeneration",
    parameters="0.9B",
    prompts={"markdown": Prompt("OCR:", "markdown"), "text": Prompt("OCR:", "text")},
    default_task="markdown",
    licence=Licence("Apache-2.0"),
    longest_side=4000,
    min_pixels=147_384,
    max_pixels=2_822_400,
    max_new_tokens=4096,
)

_LIGHTONOCR = Preset(
    name="lighton",  # LightOnOCR-2
    hub_id="lightonai/LightOnOCR-2-1B",
    revision="c97bd377f04481830395218fa8951df9deaba756",
    min_transformers="5.0",
    architecture="LightOnOcrForConditionalGeneration",
    parameters="1B",
    prompts={"markdown": Prompt("", "markdown")},
    default_task="markdown",
    licence=Licence("Apache-2.0"),
    longest_side=1540,
    min_pixels=None,
    max_pixels=None,
    max_new_tokens=4096,
    without_bf16="float32",  # its decoder is Qwen3
    processor="LightOnOcrProcessor",  # config.json says mistral3, from before transformers had its own class
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _HUNYUAN_OCR,
        replace(
            _HUNYUAN_OCR,
            name="hunyuan-1.0",
            revision="f6af82ee007fe6091b29fb3bb287b491ead41c82",  # the last before 1.5 took its place
            max_pixels=2048 * 2048,
            generation={},
        ),
        Preset(
            name="chandra",  # 2, Qwen3.5
            hub_id="datalab-to/chandra-ocr-2",
            revision="af93b47dba1b47b6640c86ccf487ed2260ab9a09",
            min_transformers="5.2",
            architecture="Qwen3_5ForConditionalGeneration",
            parameters="5B",
            prompts={"markdown": Prompt(_chandra_prompt("x0 y0 x1 y1", 1000, second=True), "chandra-html-1000")},
            default_task="markdown",
            licence=_CHANDRA,
            longest_side=4096,
            min_pixels=3136,
            max_pixels=3072 * 2048,
            max_new_tokens=12_384,
            needs_torchvision=True,
            without_bf16="refuse",  # Qwen overflows in half precision, and 20 GB in single precision fit no such card
        ),
        Preset(
            name="chandra-1",  # Qwen3-VL
            hub_id="datalab-to/chandra",
            revision="bd40c21576564d31ba99f204e28ccd5c4c1751fa",
            min_transformers="4.57",
            architecture="Qwen3VLForConditionalGeneration",
            parameters="9B",
            prompts={"markdown": Prompt(_chandra_prompt("[x0, y0, x1, y1]", 1024, second=False), "chandra-html")},
            default_task="markdown",
            licence=_CHANDRA,
            longest_side=4096,
            min_pixels=3136,
            max_pixels=3072 * 2048,
            max_new_tokens=8192,
            needs_torchvision=True,
            without_bf16="refuse",
        ),
        _PADDLEOCR_VL,
        replace(
            _PADDLEOCR_VL,
            name="paddleocr-vl-1.6",
            hub_id="PaddlePaddle/PaddleOCR-VL-1.6",
            revision="c5630abae1d940eafe0697512a0325494b02ab42",
            min_pixels=112_896,
            max_pixels=1280 * 28 * 28,
        ),
        _LIGHTONOCR,
        replace(
            _LIGHTONOCR,
            name="lighton-3",  # LightOnOCR-3
            hub_id="lightonai/LightOnOCR-3-1B",
            revision="b9a2b4c17f1eee9f29058d716b66b5f8e7d8db86",
            min_transformers="5.16",
            renamed={r"^language_model\.model\.": "model.language_model."},
        ),
        Preset(
            name="glm-ocr",
            hub_id="zai-org/GLM-OCR",
            revision="ca5d8b3e287e52589e37c28385d9655ee4372f9d",
            min_transformers="5.1",
            architecture="GlmOcrForConditionalGeneration",
            parameters="0.9B",
            prompts={
                "markdown": Prompt("Text Recognition:", "markdown"),
                "text": Prompt("Text Recognition:", "text"),
            },
            default_task="markdown",
            licence=Licence("MIT"),
            longest_side=4000,
            min_pixels=12_544,
            max_pixels=9_633_792,
            max_new_tokens=8192,
            needs_torchvision=True,
        ),
        Preset(
            name="got-ocr2",
            hub_id="stepfun-ai/GOT-OCR-2.0-hf",
            revision="d3017ef2c2c1395888c8d635c5e0508bcb0ac78d",
            min_transformers="4.49",
            architecture="GotOcr2ForConditionalGeneration",
            parameters="0.6B",
            prompts={"markdown": Prompt("OCR with format: ", "markdown"), "text": Prompt("OCR: ", "text")},
            default_task="markdown",
            licence=Licence("Apache-2.0"),
            longest_side=2048,
            min_pixels=None,  # every page becomes 1024 by 1024
            max_pixels=None,
            max_new_tokens=4096,
            end_tokens=("<|im_end|>",),
            attention="eager",  # the only one its vision tower has
            without_bf16="float32",  # its decoder is Qwen2
            chat_template=False,
        ),
        Preset(
            name="trocr",  # reads lines: engine `worker.engines.trocr` finds them first
            hub_id="microsoft/trocr-base-printed",
            revision="93450be3f1ed40a930690d951ef3932687cc1892",
            min_transformers="4.49",
            architecture="VisionEncoderDecoderModel",
            parameters="0.3B",
            prompts={"text": Prompt("", "text")},
            default_task="text",
            licence=Licence("MIT", "that of its code; the weights' own page names none"),
            longest_side=4000,
            min_pixels=None,  # every line becomes 384 by 384
            max_pixels=None,
            max_new_tokens=128,
            attention="eager",
            chat_template=False,
        ),
    )
}
