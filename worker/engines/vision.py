"""The engine of vision models: a row of `presets`, run by transformers on several pages at a time.

A page is read to its end or fails: what loops is tried again and never passed off as text, what was read of it stays
in its record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from worker.engines import EngineSettings, PageImage, PageText
from worker.engines.fallback import Fallback
from worker.engines.guards import TEMPERATURES, repeating_tail
from worker.engines.loading import DTYPES, free_memory, load, within_memory
from worker.engines.options import Taker
from worker.engines.outputs import PARSERS
from worker.engines.presets import PRESETS, Preset, Prompt
from worker.errors import BadRequest
from worker.versions import versions_of
from worker.wording import plural

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

GPU_BATCH = 16  # pages tried at first; halved until they fit
CHECK_TOKENS = 64  # between two looks for a loop
SEED = 20  # of attempts with a temperature: a page reads the same each time
TOP_P = 0.95  # of those attempts, as Chandra's
CALL_SHARE = 0.9  # of the time that a call may take, so that pages fail before the worker is given up

Stop = Literal["end", "length", "repetition", "deadline", "memory"]


@dataclass(frozen=True)
class Reading:
    """What an attempt at a page gave."""

    text: str  # up to where a repetition begins
    raw: str
    stop: Stop
    tokens: int
    prompt_tokens: int
    temperature: float
    retries: int = 0
    rushed: bool = False  # stopped by the end of the call, before the time of one attempt was up


class OutOfTime(Exception):
    """A call of several pages has used up its time before each had its own: they are to be asked for one by one."""


class VisionEngine:
    """Reads a page with the preset that `settings.name` names.

    Options: `model` and `revision` (another checkpoint of the preset's shape), `task`, `prompt`, `device`, `dtype`,
    `batch_size` (pages at a time, at most), `max_new_tokens`, `max_pixels`, `page_deadline` (seconds of one attempt),
    `fallback` (an engine for the pages that this one can't read) and `raw` (keep what the model wrote).
    """

    concurrency = 1  # a second copy would halve the memory for pages, and the GPU is busy with one

    def __init__(self, settings: EngineSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises: BadRequest for an option, a checkpoint or a card that won't do; TryAgain where the hub is away."""
        preset = PRESETS[settings.name]
        options = Taker(settings.name, settings.options)
        model, revision = options.text("model"), options.text("revision")
        self._task = options.text("task", preset.default_task, choices=sorted(preset.prompts)) or preset.default_task
        self._preset = _with_prompt(preset, self._task, options.text("prompt"))
        device, dtype = options.text("device"), options.text("dtype", choices=DTYPES)
        most = options.integer("batch_size", 0)
        self._max_new_tokens = options.integer("max_new_tokens", preset.max_new_tokens, least=1)
        max_pixels = options.integer("max_pixels", 0)
        share = CALL_SHARE * settings.timeout
        deadline = options.number("page_deadline", share / 2, least=1)  # so that there is time to try again
        fallback = options.text("fallback")
        self._keep_raw = options.flag("raw")
        options.done()

        self._clock = clock
        self._call_seconds = share
        self._deadline = min(deadline, share)
        self._parse = PARSERS[self._preset.prompts[self._task].parser]
        self._fallback = Fallback(fallback, settings, writes_markdown=self._task != "spotting")
        loaded = load(preset, settings, model=model, revision=revision, device=device, dtype=dtype)
        self._checkpoint, self._processor, self._model = loaded.checkpoint, loaded.processor, loaded.model
        self._device, self._dtype = loaded.device, loaded.dtype
        try:
            self._prepare(max_pixels)
        except BaseException:
            self._checkpoint.discard()
            raise
        self.name = preset.name
        self.model = self._checkpoint.model
        self.revision: str | None = self._checkpoint.revision
        self.longest_side = preset.longest_side
        self.batch_size = most or (GPU_BATCH if self._device.startswith("cuda") else 1)

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        """A PageText a page. A page that can't be read fails alone.

        Raises: OutOfTime, of several pages.
        """
        end = self._clock() + self._call_seconds
        in_time = partial(self._check_time, end, len(pages))
        texts: dict[int, PageText] = {}
        for index, page in enumerate(pages):
            if (ratio := max(page.width, page.height) / min(page.width, page.height)) > self._preset.max_aspect:
                error = (
                    f"the page is {ratio:.0f} times as long as wide, {self.name} takes {self._preset.max_aspect:.0f}"
                )
                in_time()
                texts[index] = self._fallback.read(pages[index], error, self._details(None))
        # Pages of a size together: padding costs as much as text.
        waiting = sorted(set(range(len(pages))) - texts.keys(), key=lambda n: pages[n].width * pages[n].height)
        readings: dict[int, Reading] = {}
        for attempt, temperature in enumerate(TEMPERATURES):
            read = self._attempt([pages[n] for n in waiting], temperature, end)
            if not attempt and (len(read) < len(waiting) or any(reading.rushed for reading in read)):
                in_time()
            for index, reading in zip(waiting, read, strict=False):
                if not (attempt and reading.rushed):  # a retry that comes too late tells nothing
                    readings[index] = replace(reading, retries=attempt)
            waiting = [index for index in waiting if readings[index].stop == "repetition"]
        for index, reading in readings.items():
            if reading.stop != "end" and self._fallback.name:
                in_time()
            texts[index] = self._text(pages[index], reading)
        return [texts[index] for index in range(len(pages))]

    @property
    def device(self) -> str:
        """ "cpu", "cuda" or "cuda:N"."""
        return self._device

    def close(self) -> None:
        """Gives the memory back, and deletes weights that were downloaded for this engine alone."""
        self._fallback.close()
        self.discard()

    def discard(self) -> None:
        """Deletes weights that were downloaded for this engine alone, also while they are in use."""
        self._checkpoint.discard()

    # ---- loading

    def _prepare(self, max_pixels: int) -> None:
        preset = self._preset
        self._read_alone()
        self._limit_pixels(max_pixels)
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"  # what is generated follows the prompt; with padding between it, it is wrong
        told = self._model.generation_config
        ends = told.eos_token_id if told.eos_token_id is not None else tokenizer.eos_token_id
        self._ends: list[int] = [
            *(ends if isinstance(ends, list) else [ends]),
            *(tokenizer.convert_tokens_to_ids(token) for token in preset.end_tokens),
        ]
        pads = (told.pad_token_id, tokenizer.pad_token_id, self._ends[0])
        self._pad = next(token for token in pads if token is not None)
        self._chat = self._write_prompt() if preset.chat_template else None

    def _read_alone(self) -> None:
        """Makes a page's positions those that it has in a batch of one.

        HunYuanVL numbers the images of a whole batch where it means those of one sequence (`get_rope_index` of
        transformers 5.23), so that a page reads differently beside others. Asked row by row, the models that do it
        right answer the same.
        """
        inner: Any = getattr(self._model, "model", None)
        if hasattr(inner, "get_rope_index"):
            inner.get_rope_index = partial(_positions_by_row, inner.get_rope_index)

    def _limit_pixels(self, max_pixels: int) -> None:
        """The preset's limits on its own weights; another checkpoint keeps what it was trained with."""
        preset, images = self._preset, self._processor.image_processor
        if preset.max_pixels is None:
            if max_pixels:
                raise BadRequest(f"engine {preset.name} has no option max_pixels: its pages are all of one size")
            return
        least = int(images.size["shortest_edge"] if self._checkpoint.own else preset.min_pixels or 0)
        most = int(images.size["longest_edge"] if self._checkpoint.own else preset.max_pixels)
        if max_pixels:
            most = min(most, max_pixels)
        if most < least:
            raise BadRequest(f"engine {preset.name}: option max_pixels is {max_pixels}; it must be at least {least}")
        images.size = {"shortest_edge": least, "longest_edge": most}

    def _write_prompt(self) -> str:
        """What each page is asked, images left open."""
        text = self._preset.prompts[self._task].text
        token = getattr(self._processor, "image_token", None)
        if token and token in text:
            raise BadRequest(f"engine {self._preset.name}: the prompt holds {token}, which stands for a page")
        content = [{"type": "image"}, *([{"type": "text", "text": text}] if text else [])]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self._preset.system is not None:
            messages.insert(0, {"role": "system", "content": self._preset.system})
        return str(self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    # ---- reading

    def _check_time(self, end: float, pages: int) -> None:
        """Raises: OutOfTime. A page alone goes on: what is left of its time is enough for a fallback."""
        if pages > 1 and self._clock() >= end:
            raise OutOfTime(f"{pages} pages take longer than the {self._call_seconds:.0f} s of a call")

    def _attempt(self, pages: Sequence[PageImage], temperature: float, end: float) -> list[Reading]:
        """As many pages at a time as fit into memory; where they don't, half as many from now on.

        Past `end` none is begun: the readings are then fewer than the pages.
        """
        readings: list[Reading] = []
        while len(readings) < len(pages) and self._clock() < end:
            batch = pages[len(readings) : len(readings) + self.batch_size]
            if (read := within_memory(partial(self._generate, batch, temperature, end))) is not None:
                readings += read
                continue
            free_memory(self._device)
            if len(batch) == 1:
                readings.append(Reading("", "", "memory", 0, 0, temperature))
                continue
            self.batch_size = len(batch) // 2
            log.warning("%d pages don't fit into memory: %d at a time from now on", len(batch), self.batch_size)
        return readings

    def _generate(self, pages: Sequence[PageImage], temperature: float, end: float) -> list[Reading]:
        import torch
        from transformers import StoppingCriteriaList

        inputs = self._inputs(pages)
        prompt = int(inputs["input_ids"].shape[1])
        enough = self._clock() + self._deadline
        guard = _guard(prompt, self._ends, self._decode, self._clock, min(end, enough))
        sampling = {"do_sample": True, "temperature": temperature, "top_p": TOP_P} if temperature else {}
        torch.manual_seed(SEED)
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs,
                **({"do_sample": False} | dict(self._preset.generation) | sampling),
                max_new_tokens=self._max_new_tokens,
                eos_token_id=self._ends,
                pad_token_id=self._pad,
                stopping_criteria=StoppingCriteriaList([guard]),
            )
        written = tokens[:, prompt:].tolist()
        asked = inputs["attention_mask"].sum(dim=1).tolist()
        readings = [self._reading(row, guard, number, asked[number], temperature) for number, row in enumerate(written)]
        return [replace(reading, rushed=reading.stop == "deadline" and end < enough) for reading in readings]

    def _reading(self, row: list[int], guard: Any, number: int, asked: int, temperature: float) -> Reading:
        """One page's tokens, without what came after its end to fill up the batch."""
        stop: Stop = "deadline" if guard.late else "length"
        if (ended := next((n for n, token in enumerate(row) if token in guard.ends), None)) is not None:
            row, stop = row[: ended + 1], "end"
        elif (looped := guard.looped.get(number)) is not None:
            row = row[:looped]
        raw = text = self._decode(row)
        if (begin := repeating_tail(text)) is not None:
            text, stop = text[:begin], "repetition"
        return Reading(text, raw, stop, len(row), asked, temperature)

    def _inputs(self, pages: Sequence[PageImage]) -> Any:
        """Everything that the processor makes of the pages, on the device."""
        import torch
        from PIL import Image

        images = [Image.fromarray(page.pixels) for page in pages]
        if self._chat is None:
            formatted = self._task == "markdown"
            inputs = self._processor(images=images, format=formatted, padding=True, return_tensors="pt")
        else:
            inputs = self._processor(
                images=[[image] for image in images],
                text=[self._chat] * len(pages),
                padding=True,
                return_tensors="pt",
            )
        return inputs.to(self._device, dtype=getattr(torch, self._dtype))

    def _decode(self, row: Sequence[int]) -> str:
        return str(self._processor.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    # ---- results

    def _text(self, page: PageImage, reading: Reading) -> PageText:
        details = self._details(reading)
        if reading.stop != "end":
            if reading.text:
                details["text"] = reading.text
            return self._fallback.read(page, self._why(reading), details)
        output = self._parse(reading.text, page.width, page.height)
        if warnings := [*output.warnings, *([] if reading.text.strip() else [f"{self.name} found no text"])]:
            details["warnings"] = warnings
        return PageText(page.width, page.height, lines=output.lines, markdown=output.markdown, details=details)

    def _details(self, reading: Reading | None) -> dict[str, Any]:
        details: dict[str, Any] = {
            "model": self.model,
            "revision": self.revision,
            "prompt": self._preset.prompt_id(self._task),
            "device": self._device,
            "dtype": self._dtype,
            "versions": versions_of(("torch", "torchvision", "transformers", "tokenizers")),
        }
        if reading:
            details |= {
                "prompt_tokens": reading.prompt_tokens,
                "tokens": reading.tokens,
                "stop": reading.stop,
                "temperature": reading.temperature,
                "retries": reading.retries,
            }
            if self._keep_raw:
                details["raw"] = reading.raw
        return details

    def _why(self, reading: Reading) -> str:
        """Why a page has no text, and what to do."""
        if reading.stop == "length":
            return (
                f"{self.name} has not come to an end after {plural(reading.tokens, 'token')}; "
                "try --engine-option max_new_tokens=N with a larger N"
            )
        if reading.stop == "repetition":
            return (
                f"{self.name} repeats itself, at the last of {plural(reading.retries + 1, 'attempt')} after "
                f"{plural(len(reading.text), 'character')}; try --engine-option fallback=rapidocr"
            )
        if reading.stop == "deadline":
            return (
                f"{self.name} has not read it within {self._deadline:.0f} s; try a smaller "
                "--engine-option batch_size=N, or page_deadline=SECONDS"
            )
        return f"it does not fit into the memory of {self._device}; try a smaller --engine-option max_pixels=N"


def _with_prompt(preset: Preset, task: str, text: str | None) -> Preset:
    if text is None:
        return preset
    if not preset.chat_template:
        raise BadRequest(f"engine {preset.name} has no option 'prompt': its processor writes the prompt")
    prompt = Prompt(text, preset.prompts[task].parser)
    return replace(preset, prompts={**preset.prompts, task: prompt})


def _positions_by_row(get_rope_index: Callable[..., Any], input_ids: Any, **given: Any) -> tuple[Any, Any]:
    """`get_rope_index` for each row by itself: one page, so the n-th image is the n-th row's."""
    import torch

    rows = [
        get_rope_index(
            input_ids[n : n + 1], **{key: value if value is None else value[n : n + 1] for key, value in given.items()}
        )
        for n in range(len(input_ids))
    ]
    return torch.cat([positions for positions, _ in rows], dim=1), torch.cat([deltas for _, deltas in rows])


def _guard(
    prompt: int, ends: Sequence[int], decode: Callable[[Sequence[int]], str], clock: Callable[[], float], end: float
) -> Any:
    """Stops a page that loops, and all pages when the time is up."""
    import torch
    from transformers import StoppingCriteria

    class Guard(StoppingCriteria):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ends = frozenset(ends)
            self.late = False
            self.looped: dict[int, int] = {}  # by row: after how many tokens

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            self.late = self.late or clock() >= end
            if self.late:
                return ~done
            written = input_ids.shape[1] - prompt
            if written % CHECK_TOKENS == 0:
                for number, row in enumerate(input_ids[:, prompt:].tolist()):
                    if (
                        number not in self.looped
                        and self.ends.isdisjoint(row)
                        and repeating_tail(decode(row)) is not None
                    ):
                        self.looped[number] = written
            for number in self.looped:
                done[number] = True
            return done

    return Guard()
