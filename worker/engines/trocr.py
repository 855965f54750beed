"""Lines found by `rapidocr`'s detector and read by a TrOCR: for handwriting, or for weights of one's own.

A VisionEncoderDecoderModel sees one line at a time, squeezed into its square, and writes it token by token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from worker.contract import Line
from worker.engines import EngineSettings, PageImage, PageText
from worker.engines.loading import DTYPES, free_memory, load, within_memory
from worker.engines.options import Taker
from worker.engines.presets import PRESETS
from worker.engines.rapidocr import FoundLines, RapidOcrEngine
from worker.wording import plural

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

PAGES = 4  # read together, so that their lines fill the batches
CPU_BATCH, GPU_BATCH = 8, 64  # lines tried at first; halved until they fit

# ViT's pooler, which the decoder doesn't look at: Microsoft's checkpoints leave it out.
UNUSED_WEIGHTS = "encoder.pooler."


@dataclass(frozen=True)
class Reading:
    """What the model made of one line. `ended` is False where it ran into the token limit."""

    text: str
    confidence: float
    tokens: int
    ended: bool


class TrOcrEngine:
    """Reads lines with a VisionEncoderDecoderModel; gives polygons and confidences.

    A line's confidence is the mean probability of the tokens it was written with, at each the likeliest.
    Options: `model` and `revision` (another checkpoint), `device`, `dtype`, `batch_size` (lines at a time, at most)
    and `max_new_tokens` (of a line).
    """

    name = "trocr"
    concurrency = 1
    batch_size = PAGES

    def __init__(self, settings: EngineSettings) -> None:
        """Raises: BadRequest for an option or a checkpoint that won't do; TryAgain where the hub is away."""
        preset = PRESETS["trocr"]
        options = Taker(self.name, settings.options)
        model, revision = options.text("model"), options.text("revision")
        device, dtype = options.text("device"), options.text("dtype", choices=DTYPES)
        most = options.integer("batch_size", 0)
        self._max_new_tokens = options.integer("max_new_tokens", preset.max_new_tokens, least=1)
        options.done()

        loaded = load(
            preset, settings, model=model, revision=revision, device=device, dtype=dtype, unused=UNUSED_WEIGHTS
        )
        self._finder = RapidOcrEngine(EngineSettings(threads=settings.threads))
        self._checkpoint, self._processor, self._model = loaded.checkpoint, loaded.processor, loaded.model
        self._device, self._dtype = loaded.device, loaded.dtype
        self._lines_at_once = most or (GPU_BATCH if self._device.startswith("cuda") else CPU_BATCH)
        self.model = self._checkpoint.model
        self.revision: str | None = self._checkpoint.revision
        self.longest_side = preset.longest_side

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        """The lines of all pages are read together. Raises: RuntimeError where not even one fits into memory."""
        found = [self._finder.find_lines(page.pixels) for page in pages]
        readings = iter(self._read_lines([crop for lines in found for crop in lines.crops]))
        return [self._text(lines, [next(readings) for _ in lines.crops]) for lines in found]

    @property
    def device(self) -> str:
        """ "cpu", "cuda" or "cuda:N"."""
        return self._device

    def close(self) -> None:
        """Deletes weights that were downloaded for this engine alone."""
        self._finder.close()
        self.discard()

    def discard(self) -> None:
        """Deletes weights that were downloaded for this engine alone, also while they are in use."""
        self._checkpoint.discard()

    def _read_lines(self, crops: Sequence[NDArray[np.uint8]]) -> list[Reading]:
        """As many lines at a time as fit into memory; where they don't, half as many from now on.

        A batch takes as long as its longest text: lines of similar shape go together, the long ones first.
        """
        order = sorted(range(len(crops)), key=lambda index: crops[index].shape[0] / crops[index].shape[1])
        readings: dict[int, Reading] = {}
        while len(readings) < len(crops):
            batch = order[len(readings) : len(readings) + self._lines_at_once]
            read = within_memory(partial(self._generate, [crops[index] for index in batch]))
            if read is not None:
                readings |= zip(batch, read, strict=True)
                continue
            free_memory(self._device)
            if len(batch) == 1:
                raise RuntimeError(f"one line does not fit into the memory of {self._device}")
            self._lines_at_once = len(batch) // 2
            log.warning("%d lines don't fit into memory: %d at a time from now on", len(batch), self._lines_at_once)
        return [readings[index] for index in range(len(crops))]

    def _generate(self, crops: Sequence[NDArray[np.uint8]]) -> list[Reading]:
        import torch
        from PIL import Image

        images = [Image.fromarray(crop) for crop in crops]
        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            output = self._model.generate(
                pixels.to(self._device, dtype=getattr(torch, self._dtype)),
                do_sample=False,
                num_beams=1,
                max_new_tokens=self._max_new_tokens,
                return_dict_in_generate=True,
                output_scores=True,
            )
            scores = self._model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        written = output.sequences[:, -scores.shape[1] :].tolist()
        return [self._reading(*row) for row in zip(written, scores.float().exp().tolist(), strict=True)]

    def _reading(self, tokens: list[int], probabilities: list[float]) -> Reading:
        """One line's tokens, without its end and what came after it to fill up the batch."""
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        count = next((number for number, token in enumerate(tokens) if token in ends), len(tokens))
        text = self._processor.tokenizer.decode(tokens[:count], skip_special_tokens=True)
        confidence = min(1.0, sum(probabilities[:count]) / count) if count else 0.0
        return Reading(text.strip(), confidence, count, count < len(tokens))

    def _text(self, found: FoundLines, readings: Sequence[Reading]) -> PageText:
        """A page's lines. What did not come to an end is no text: it is left out, and the page says so."""
        details: dict[str, Any] = {
            "model": self.model,
            "revision": self.revision,
            "device": self._device,
            "dtype": self._dtype,
            "versions": {name: version(name) for name in ("torch", "transformers", "rapidocr")},
            "tokens": sum(reading.tokens for reading in readings),
        }
        endless = sum(not reading.ended for reading in readings)
        if endless:
            message = (
                f"{endless} of {plural(len(readings), 'line')} did not come to an end within {self._max_new_tokens} "
                "tokens and are left out; try --engine-option max_new_tokens=N with a larger N"
            )
            if endless == len(readings):
                return PageText(found.width, found.height, error=message, details=details)
            details["warnings"] = [message]
        lines = [
            Line(text=reading.text, confidence=round(reading.confidence, 4), polygon=polygon)
            for polygon, reading in zip(found.polygons, readings, strict=True)
            if reading.ended and reading.text
        ]
        return PageText(found.width, found.height, lines=lines, rotation=found.rotation, details=details)
