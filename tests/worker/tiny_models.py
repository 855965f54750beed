"""Vision models of the presets' real classes with random weights, each with its real processor: some 100 kB a model.

They read nothing, yet every step is the real one: templates, image tokens, position ids, generation, decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GlmOcrConfig,
    GlmOcrForConditionalGeneration,
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    GotOcr2Processor,
    HunYuanVLConfig,
    HunYuanVLForConditionalGeneration,
    HunYuanVLProcessor,
    LightOnOcrConfig,
    LightOnOcrForConditionalGeneration,
    LightOnOcrProcessor,
    PaddleOCRVLConfig,
    PaddleOCRVLForConditionalGeneration,
    PaddleOCRVLProcessor,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import HunYuanVLImageProcessorPil
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

SEED = 7
AREAS = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}  # pixels of the image that a model sees


def make(name: str, folder: Path) -> Path:
    """Saves the model and the processor of a preset below `folder`.

    Without torchvision, the processors that also take videos can only be saved in parts: `processor` makes them.
    """
    torch.manual_seed(SEED)
    model, made = MAKERS[name]()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # the classes' own start is so even that every page would read alike
            torch.nn.init.normal_(parameter, std=0.3)
    path = folder / name
    model.save_pretrained(path)
    for part in (
        [made] if getattr(made, "video_processor", made) is not None else [made.image_processor, made.tokenizer]
    ):
        part.save_pretrained(path)
    return path


def processor(name: str) -> Any:
    """A preset's processor, as `make` saves it."""
    return MAKERS[name]()[1]


def _tokenizer(special: list[str], eos: str, **named: str) -> PreTrainedTokenizerFast:
    """Any text as bytes, `special` as they are; `named` are attributes that a processor looks for."""
    special = ["<pad>", *special]
    vocabulary = {token: index for index, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token=eos,
        extra_special_tokens=named,
    )


def _template(image: str) -> str:
    """Roles in angle brackets, an image as `image`."""
    return (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{{{{ '{image}' }}}}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )


_ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
_TEXT = {  # of a decoder that all families take alike
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_QWEN_VISION = {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2, "out_hidden_size": 32}


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)} | more


def _with_ends(model: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # A few bytes end the text, none of them ASCII: random weights would seldom come upon a single token.
    ends = tokenizer.convert_tokens_to_ids(sorted(pre_tokenizers.ByteLevel.alphabet())[100::12])
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
    return model


@contextmanager
def _video(name: str) -> Iterator[Any]:
    """The part of a processor that takes videos. It needs torchvision; without, None goes for one inside."""
    if is_torchvision_available():
        yield getattr(transformers, name)()
        return
    check = ProcessorMixin.check_argument_for_proper_class

    def lenient(self: Any, name: str, value: Any) -> Any:
        return None if name == "video_processor" else check(self, name, value)

    with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class", lenient):
        yield None


def _hunyuan() -> tuple[Any, Any]:
    tokenizer = _tokenizer(
        [*_ROLES, "<eos>", "<img>", "</img>", "<image>", "<newline>"],
        "<eos>",
        image_token="<image>",
        image_start_token="<img>",
        image_end_token="</img>",
    )
    ids = tokenizer.get_vocab()
    config = HunYuanVLConfig(
        text_config=_TEXT
        | {
            "vocab_size": len(ids),
            "rope_parameters": _rope(2, 2, 2, 2),
            "pad_token_id": ids["<pad>"],
            "bos_token_id": None,
            "eos_token_id": ids["<eos>"],
            "eod_token_id": ids["<eos>"],
        },
        vision_config=_VISION
        | {
            "out_hidden_size": 32,
            "text_hidden_size": 32,
            "max_image_size": 128,
            "min_image_size": 32,
            "img_max_token_num": 64,
            "max_vit_seq_len": 256,
        },
        image_token_id=ids["<image>"],
        im_start_id=ids["<img>"],
        im_end_id=ids["</img>"],
        im_newline_id=ids["<newline>"],
    )
    processor = HunYuanVLProcessor(
        HunYuanVLImageProcessorPil(size=AREAS), tokenizer, chat_template=_template("<img><image></img>")
    )
    return _with_ends(HunYuanVLForConditionalGeneration(config), tokenizer), processor


def _qwen_tokenizer() -> PreTrainedTokenizerFast:
    return _tokenizer(
        [*_ROLES, "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
        "<|im_end|>",
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
    )


def _qwen_config(ids: dict[str, int], text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": _TEXT | {"vocab_size": len(ids), "pad_token_id": ids["<pad>"]} | text,
        "vision_config": _QWEN_VISION | {"num_position_embeddings": 64} | vision,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _qwen_processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    from transformers import Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil(size=AREAS, patch_size=16)
    template = _template("<|vision_start|><|image_pad|><|vision_end|>")
    with _video("Qwen3VLVideoProcessor") as video:
        return Qwen3VLProcessor(images, tokenizer, video, chat_template=template)


def _chandra() -> tuple[Any, Any]:
    tokenizer = _qwen_tokenizer()
    text = {
        "rope_parameters": _rope(2, 1, 1, partial_rotary_factor=0.5, mrope_interleaved=True),
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
    }
    config = Qwen3_5Config(**_qwen_config(tokenizer.get_vocab(), text, {}))
    return _with_ends(Qwen3_5ForConditionalGeneration(config), tokenizer), _qwen_processor(tokenizer)


def _chandra_1() -> tuple[Any, Any]:
    tokenizer = _qwen_tokenizer()
    text = {"rope_parameters": _rope(4, 2, 2, mrope_interleaved=True)}
    config = Qwen3VLConfig(**_qwen_config(tokenizer.get_vocab(), text, {"deepstack_visual_indexes": [0]}))
    return _with_ends(Qwen3VLForConditionalGeneration(config), tokenizer), _qwen_processor(tokenizer)


def _glm() -> tuple[Any, Any]:
    from transformers import Glm46VProcessor
    from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

    special = ["<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|video|>"]
    special += ["<|begin_of_video|>", "<|end_of_video|>"]
    tokenizer = _tokenizer(
        [*_ROLES, "<|endoftext|>", *special], "<|endoftext|>", image_token="<|image|>", video_token="<|video|>"
    )
    ids = tokenizer.get_vocab()
    config = GlmOcrConfig(
        text_config=_TEXT
        | {
            "vocab_size": len(ids),
            "pad_token_id": ids["<pad>"],
            "rope_parameters": _rope(4, 2, 2),
        },
        vision_config=_QWEN_VISION | {"image_size": 112},
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
    )
    template = _template("<|begin_of_image|><|image|><|end_of_image|>")
    with _video("Glm46VVideoProcessor") as video:
        processor = Glm46VProcessor(Glm46VImageProcessorPil(size=AREAS), tokenizer, video, chat_template=template)
    return _with_ends(GlmOcrForConditionalGeneration(config), tokenizer), processor


def _paddle() -> tuple[Any, Any]:
    special = ["</s>", "<|IMAGE_START|>", "<|IMAGE_END|>", "<|IMAGE_PLACEHOLDER|>", "<|VIDEO_PLACEHOLDER|>"]
    tokenizer = _tokenizer([*_ROLES, *special], "</s>", image_token="<|IMAGE_PLACEHOLDER|>")
    ids = tokenizer.get_vocab()
    config = PaddleOCRVLConfig(
        text_config=_TEXT
        | {
            "vocab_size": len(ids),
            "pad_token_id": ids["<pad>"],
            "bos_token_id": None,
            "eos_token_id": ids["</s>"],
            "rope_parameters": _rope(4, 2, 2),
        },
        vision_config=_VISION | {"image_size": 56},
        image_token_id=ids["<|IMAGE_PLACEHOLDER|>"],
        video_token_id=ids["<|VIDEO_PLACEHOLDER|>"],
        vision_start_token_id=ids["<|IMAGE_START|>"],
        vision_end_token_id=ids["<|IMAGE_END|>"],
    )
    processor = PaddleOCRVLProcessor(
        PaddleOCRVLImageProcessorPil(size=AREAS),
        tokenizer,
        chat_template=_template("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    return _with_ends(PaddleOCRVLForConditionalGeneration(config), tokenizer), processor


def _lighton() -> tuple[Any, Any]:
    tokenizer = _tokenizer(
        [*_ROLES, "<|im_end|>", "<|image_pad|>", "<|vision_pad|>", "<|vision_end|>"],
        "<|im_end|>",
        image_token="<|image_pad|>",
        image_break_token="<|vision_pad|>",
        image_end_token="<|vision_end|>",
    )
    ids = tokenizer.get_vocab()
    config = LightOnOcrConfig(
        text_config={"model_type": "qwen3", "vocab_size": len(ids), "pad_token_id": ids["<pad>"]} | _TEXT,
        vision_config=_VISION | {"model_type": "pixtral", "head_dim": 16, "image_size": 112, "patch_size": 14},
        image_token_id=ids["<|image_pad|>"],
    )
    images = PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size={"height": 28, "width": 28})
    processor = LightOnOcrProcessor(images, tokenizer, chat_template=_template("<|image_pad|>"))
    return _with_ends(LightOnOcrForConditionalGeneration(config), tokenizer), processor


def _got() -> tuple[Any, Any]:
    tokenizer = _tokenizer(
        ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>", "<|endoftext|>"], "<|endoftext|>"
    )
    ids = tokenizer.get_vocab()
    config = GotOcr2Config(
        text_config={"model_type": "qwen2", "vocab_size": len(ids), "pad_token_id": ids["<pad>"]} | _TEXT,
        vision_config={
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "global_attn_indexes": [],  # attention among all 4,096 patches takes seconds a page
            "mlp_dim": 48,
        },
        image_token_index=ids["<imgpad>"],
        image_seq_length=256,
    )
    processor = GotOcr2Processor(GotOcr2ImageProcessorPil(size={"height": 1024, "width": 1024}), tokenizer)
    return _with_ends(GotOcr2ForConditionalGeneration(config), tokenizer), processor


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "hunyuan": _hunyuan,
    "hunyuan-1.0": _hunyuan,
    "chandra": _chandra,
    "chandra-1": _chandra_1,
    "paddleocr-vl": _paddle,
    "paddleocr-vl-1.6": _paddle,
    "lighton": _lighton,
    "lighton-3": _lighton,
    "glm-ocr": _glm,
    "got-ocr2": _got,
}
