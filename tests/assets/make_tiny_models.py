"""Trains the tiny models beside this file from nothing: real classes, real processors, CPU minutes each.

    nice .venv/bin/python -m tests.assets.make_tiny_models hunyuan|trocr [--steps N] [--out FOLDER]
    … make_tiny_models trocr --from FOLDER --batch 32 --learning-rate 6e-4 --out OTHER_FOLDER

The second goes on with a model that reads already. What a script with the same seed makes is the same on the same
machine and versions alone.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    HunYuanVLConfig,
    HunYuanVLForConditionalGeneration,
    HunYuanVLProcessor,
    PreTrainedTokenizerFast,
    TrOCRConfig,
    TrOCRForCausalLM,
    TrOCRProcessor,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import HunYuanVLImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from jobs.accuracy import error_rate
from tests.rendering import ALPHABET, CARD, CELL, LOOK_ALIKE, draw_card, draw_text, fresh_strings
from worker.engines.presets import PRESETS

HERE = Path(__file__).parent
SEED = 20261124
LONGEST = 8  # characters
TAUGHT, UNTAUGHT = 0.7, 9.9  # loss at which strings grow, and one that no model has
TROCR_SHORTEST = 5
# Paper becomes about nought: where it has a large value, as with CLIP's figures, layers this narrow see nothing else.
NORMAL = {"image_mean": [0.9, 0.9, 0.9], "image_std": [0.5, 0.5, 0.5]}
LINE = (192, 36)  # that tiny-trocr squeezes a line into

PROMPTS = [PRESETS["hunyuan"].prompts[task].text for task in ("markdown", "text")]  # asked anything else, it may rave

CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}{{ '<img><image></img>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<sep>", "<img>", "</img>", "<image>"]
ROLES = ["<system>", "<user>", "<assistant>"]


@dataclass
class Recipe:
    make: Callable[[], tuple[Any, Any]]  # model, processor
    batch: Callable[[Any, list[str], random.Random], dict[str, torch.Tensor]]
    read: Callable[[Any, Any, list[Image.Image]], list[str]]
    picture: Callable[[str, random.Random], Image.Image]
    shortest: int  # characters
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--from", dest="begun", type=Path, help="a model to go on with")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe, out = RECIPES[given.model], given.out or HERE / f"tiny-{given.model}"
    torch.manual_seed(SEED)
    if given.begun:
        model, processor = load(given.begun)
    else:
        model, processor = recipe.make()
        initialise(model)
    steps, begun = given.steps or recipe.steps, given.begun is not None
    train(recipe, model, processor, steps, given.batch, given.learning_rate, begun=begun)
    save(model, processor, out)
    print(json.dumps({"parameters": model.num_parameters(), "bytes": folder_size(out), **evaluate(recipe, out)}))


def train(
    recipe: Recipe, model: Any, processor: Any, steps: int, batch: int, learning_rate: float, *, begun: bool
) -> None:
    """From nothing, strings grow from single characters on: with long ones it never finds out where to look. A model
    that has `begun` is shown more of the characters that it takes for each other."""
    longest = LONGEST if begun else 1
    weights = [4 if begun and character in LOOK_ALIKE else 1 for character in ALPHABET]
    chance = random.Random(SEED)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, step / 50, 3 * (1 - step / steps)))
    began, recent = time.monotonic(), UNTAUGHT
    for step in range(1, steps + 1):
        shortest = min(recipe.shortest, longest)
        texts = ["".join(chance.choices(ALPHABET, weights, k=chance.randint(shortest, longest))) for _ in range(batch)]
        loss = model(**recipe.batch(processor, texts, chance)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        recent = 0.95 * recent + 0.05 * loss.item()
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - began
            print(f"step {step}/{steps}  up to {longest} characters  loss {recent:.4f}  {seconds:.0f} s", flush=True)
        if recent < TAUGHT and longest < LONGEST:
            longest, recent = 2 * longest, UNTAUGHT
    model.eval()


def initialise(model: torch.nn.Module) -> None:
    """The classes' own start, a deviation of 0.02, is meant for layers ten times as wide: these would learn nothing."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.1)


def save(model: Any, processor: Any, out: Path) -> None:
    """Half precision on disk, single precision when loaded."""
    shutil.rmtree(out, ignore_errors=True)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    _set_dtype(config)
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(folder: Path) -> tuple[Any, Any]:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model, AutoProcessor.from_pretrained(folder)


def evaluate(recipe: Recipe, folder: Path, count: int = 1000) -> dict[str, float]:
    """Reads strings that were not trained on, with the model as it was saved, loaded strictly."""
    model, processor = load(folder)
    chance = random.Random(SEED + 1)
    texts = fresh_strings(count, SEED + 1, recipe.shortest, LONGEST)
    readings: list[str] = []
    for start in range(0, count, 50):
        some = texts[start : start + 50]
        readings += recipe.read(model.eval(), processor, [recipe.picture(text, chance) for text in some])
    exact = sum(reading == text for reading, text in zip(readings, texts, strict=True))
    return {"strings": count, "exact": exact, "character_error_rate": error_rate(zip(readings, texts, strict=True))}


# ---- a HunyuanOCR


def make_hunyuan() -> tuple[Any, Any]:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(PROMPTS, [*SPECIAL, *ROLES]),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=2048,
        extra_special_tokens={"image_token": "<image>", "image_start_token": "<img>", "image_end_token": "</img>"},
    )
    area = CARD[0] * CARD[1]
    images = HunYuanVLImageProcessorPil(
        size={"shortest_edge": area, "longest_edge": area}, patch_size=16, merge_size=2, temporal_patch_size=1, **NORMAL
    )
    processor = HunYuanVLProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE)
    ids = tokenizer.get_vocab()
    config = HunYuanVLConfig(
        text_config={
            "vocab_size": len(ids),
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [3, 4, 1, 0]},
            "pad_token_id": ids["<pad>"],
            "bos_token_id": ids["<bos>"],
            "eos_token_id": ids["<eos>"],
            "eod_token_id": ids["<eos>"],
            "sep_token_id": ids["<sep>"],
        },
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "out_hidden_size": 64,
            "text_hidden_size": 64,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "max_image_size": 128,
            "min_image_size": 32,
            "img_max_token_num": 64,
            "max_vit_seq_len": 256,
        },
        image_token_id=ids["<image>"],
        im_start_id=ids["<img>"],
        im_end_id=ids["</img>"],
        im_newline_id=ids["<sep>"],
    )
    model = HunYuanVLForConditionalGeneration(config)
    model.generation_config.pad_token_id = ids["<pad>"]
    model.generation_config.eos_token_id = ids["<eos>"]
    model.generation_config.max_new_tokens = 32
    return model, processor


def hunyuan_picture(text: str, chance: random.Random) -> Image.Image:
    return draw_card(
        text, (chance.randint(0, 6), chance.randint(0, 4)), chance.randint(0, 60), chance.randint(235, 255)
    )


def hunyuan_prompt(processor: Any, text: str, system: bool = True) -> str:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    messages = [{"role": "system", "content": ""}, message] if system else [message]
    return str(processor.apply_chat_template([messages], add_generation_prompt=True, tokenize=False)[0])


def hunyuan_batch(processor: Any, texts: list[str], chance: random.Random) -> dict[str, torch.Tensor]:
    """The loss is on the answer alone."""
    prompt = hunyuan_prompt(processor, chance.choice(PROMPTS), system=chance.random() < 0.5)
    inputs = processor(
        images=[[hunyuan_picture(text, chance)] for text in texts],
        text=[prompt + text + "<eos>" for text in texts],
        return_tensors="pt",
        padding=True,
    )
    labels = inputs["input_ids"].clone()
    for row, text in enumerate(texts):
        labels[row, : -(len(text) + 1)] = -100
    return {**inputs, "labels": labels}


def read_hunyuan(model: Any, processor: Any, pictures: list[Image.Image]) -> list[str]:
    inputs = processor(
        images=[[picture] for picture in pictures],
        text=[hunyuan_prompt(processor, PROMPTS[0])] * len(pictures),
        return_tensors="pt",
        padding=True,
    )
    tokens = model.generate(**inputs, do_sample=False)
    return list(processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


# ---- a TrOCR


def make_trocr() -> tuple[Any, Any]:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=character_tokenizer(["<s>", "<pad>", "</s>", "<unk>"]),
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
    )
    images = ViTImageProcessorPil(size={"height": LINE[1], "width": LINE[0]}, do_convert_rgb=True, **NORMAL)
    processor = TrOCRProcessor(images, tokenizer)
    ids = tokenizer.get_vocab()
    encoder = ViTConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=(LINE[1], LINE[0]),
        patch_size=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    decoder = TrOCRConfig(
        vocab_size=len(ids),
        d_model=96,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=192,
        max_position_embeddings=64,
        cross_attention_hidden_size=96,
        dropout=0.0,
        is_decoder=True,
        add_cross_attention=True,
        bos_token_id=ids["<s>"],
        pad_token_id=ids["<pad>"],
        eos_token_id=ids["</s>"],
        decoder_start_token_id=ids["</s>"],
    )
    model = VisionEncoderDecoderModel(encoder=ViTModel(encoder), decoder=TrOCRForCausalLM(decoder))
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = ids["</s>"]
        config.pad_token_id = ids["<pad>"]
        config.eos_token_id = ids["</s>"]
    model.generation_config.max_new_tokens = 32
    return model, processor


def trocr_picture(text: str, chance: random.Random) -> Image.Image:
    """A line as `rapidocr`'s detector cuts it out, with its small margins. One that is shorter than any that is read
    later has room for all characters, so that they have the size that they will have."""
    ink, paper, scale = chance.randint(0, 60), chance.randint(235, 255), chance.randint(2, 5)
    drawn = draw_text(text.ljust(LONGEST) if len(text) < TROCR_SHORTEST else text, scale, ink, paper)
    height = CELL[1] * scale
    left, right = round(chance.uniform(0.06, 0.24) * height), round(chance.uniform(0.0, 0.22) * height)
    above, below = (round(chance.uniform(-0.12, 0.12) * height) for _ in range(2))
    line = Image.new("L", (left + drawn.width + right, above + height + below), paper)
    line.paste(drawn, (left, above))
    return line.convert("RGB")


def trocr_batch(processor: Any, texts: list[str], chance: random.Random) -> dict[str, torch.Tensor]:
    pixels = processor(images=[trocr_picture(text, chance) for text in texts], return_tensors="pt")["pixel_values"]
    tokens = processor.tokenizer([text + "</s>" for text in texts], return_tensors="pt", padding=True)["input_ids"]
    return {"pixel_values": pixels, "labels": tokens.masked_fill(tokens == processor.tokenizer.pad_token_id, -100)}


def read_trocr(model: Any, processor: Any, pictures: list[Image.Image]) -> list[str]:
    tokens = model.generate(processor(images=pictures, return_tensors="pt")["pixel_values"], do_sample=False)
    return list(processor.batch_decode(tokens, skip_special_tokens=True))


# ---- helpers


def byte_tokenizer(texts: list[str], special: list[str]) -> Tokenizer:
    """Any text as bytes, words of `texts` as few tokens, capitals and digits always one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=512, min_frequency=1, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return tokenizer


def character_tokenizer(special: list[str]) -> Tokenizer:
    tokens = [*special, *ALPHABET]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return tokenizer


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _set_dtype(config: dict[str, Any]) -> None:
    for key, value in config.items():
        if key == "dtype":
            config[key] = "float32"
        elif isinstance(value, dict):
            _set_dtype(value)


RECIPES = {
    "hunyuan": Recipe(make_hunyuan, hunyuan_batch, read_hunyuan, hunyuan_picture, 3, 8000),
    "trocr": Recipe(make_trocr, trocr_batch, read_trocr, trocr_picture, TROCR_SHORTEST, 8000),
}


if __name__ == "__main__":
    main()
