"""The default engine: PP-OCRv6 weights from the `rapidocr` wheel, run by OpenVINO or ONNX Runtime on the CPU.

Only the weights are RapidOCR's: its steps and thresholds are followed here with less work around the models.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import math
import queue
import re
import statistics
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from worker.contract import Line
from worker.engines import EngineSettings, PageImage, PageText
from worker.engines.options import Taker
from worker.errors import BadRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]  # (height, width, RGB)
    Floats = NDArray[np.float32]

T = TypeVar("T")

BACKENDS = ("openvino", "onnxruntime")

# RapidOCR's defaults (its config.yaml), except where a comment says otherwise.
TEXT_SCORE = 0.5  # lines read with less confidence are dropped
DET_LONGEST_SIDE = 2000
DET_SHORTEST_SIDE = 736  # smaller pages are enlarged to it ...
DET_MAX_PIXELS = 3_300_000  # ... but a strip of 1:100 is not; ours, bounds memory: a Letter page takes 3.1 million
DET_THRESHOLD = 0.3
DET_BOX_THRESHOLD = 0.5
DET_UNCLIP_RATIO = 1.6
DET_MAX_BOXES = 3000  # RapidOCR: 1,000 regions, specks included
REC_HEIGHT = 48
REC_MIN_WIDTH = 192  # RapidOCR: 320. Padding short lines less reads no worse and saves a fifth of the work
REC_MAX_WIDTH = 4800  # ours: a longer line is squeezed
REC_WIDTH_STEP = 96  # ours: widths are rounded up, so that lines share batches and compiled kernels
REC_BATCH_WIDTH = 1920  # ours: pixels of all lines of a batch; more is no faster, only larger

# OpenVINO keeps kernels for each size of input, a hundred or so a size: worth it for batches of lines, whose sizes
# come again, not for pages.
DET_CACHED_KERNELS = 0
REC_CACHED_KERNELS = 400

# Languages whose letters the recogniser's 18,708 classes hold. Codes of ISO 639-1, and RapidOCR's own names.
LANGUAGES = (
    "zh ch chinese_cht ja japan en af az bs ca cs cy da de german es et eu fi fr french ga gl hr hu id is it ku la lb "
    "lt lv mi ms mt nl no nb nn oc pl pt qu rm ro rs_latin sk sl sq sv sw tl tr"
)

# Turning pages. Lines read the right way up score 0.9 and more, upside down 0.5 to 0.8, on receipts as on clean type.
TURN_SAMPLE = 8  # longest lines asked
TURN_SUSPECT = 0.85  # a page whose sample reads better is upright
TURN_LEGIBLE = 0.8  # what the sample must reach when turned
TURN_GAIN = 0.12
TURN_MIN_CHARACTERS = 16  # a page with less says too little


class RapidOcrEngine:
    """Reads printed Chinese, Japanese and Latin-script text: lines with polygons and confidences.

    Option `backend`: `openvino` or `onnxruntime`; absent, OpenVINO where it is installed.
    """

    name = "rapidocr"
    model = "PP-OCRv6-small"
    device = "cpu"
    batch_size = 1
    longest_side = 4000

    def __init__(self, settings: EngineSettings) -> None:
        """Raises BadRequest for an option, a backend or a language that the engine doesn't have."""
        _check_language(settings.lang)
        options = Taker(self.name, settings.options)
        backend = options.text("backend", choices=BACKENDS)
        options.done()
        folder = _model_folder()
        detector, recogniser = folder / "PP-OCRv6_det_small.onnx", folder / "PP-OCRv6_rec_small.onnx"
        self.concurrency = 2  # one page's inference beside another's pre- and post-processing
        self.revision: str | None = _revision(detector, recogniser)
        runtime = _runtime(backend, settings.threads, self.concurrency)
        self._detector = runtime.load(detector, DET_CACHED_KERNELS)
        self._recogniser = runtime.load(recogniser, REC_CACHED_KERNELS)
        self._logits = runtime.gives_logits
        self._characters = ["", *runtime.metadata(recogniser, "character").splitlines(), " "]  # 0 is CTC's blank

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        """One PageText per page. May run in several threads; gets one page a call, so that what it raises costs one."""
        return [self._read_page(page) for page in pages]

    def close(self) -> None:
        """Nothing to do: the models go with the engine."""

    def find_lines(self, pixels: Pixels) -> FoundLines:
        """Where a page's lines are, for an engine that reads them itself: only what tells the rotation is read."""
        boxes, crops = self._lines(pixels)
        rotation = self._rotation(boxes, crops, lambda some: self._recognise([crops[index] for index in some]))
        if rotation:
            pixels = _turn(pixels, rotation)
            boxes, crops = self._lines(pixels)
        return FoundLines(pixels.shape[1], pixels.shape[0], rotation, [_polygon(box) for box in boxes], crops)

    def _read_page(self, page: PageImage) -> PageText:
        pixels = page.pixels
        boxes, crops = self._lines(pixels)
        readings = self._recognise(crops)
        rotation = self._rotation(boxes, crops, lambda some: [readings[index] for index in some])
        if rotation:
            pixels = _turn(pixels, rotation)
            boxes, crops = self._lines(pixels)
            readings = self._recognise(crops)
        lines = [
            Line(text=text, confidence=round(score, 4), polygon=_polygon(box))
            for box, (text, score) in zip(boxes, readings, strict=True)
            if score >= TEXT_SCORE and text.strip()
        ]
        return PageText(pixels.shape[1], pixels.shape[0], lines=lines, rotation=rotation)

    def _lines(self, pixels: Pixels) -> tuple[list[Floats], list[Pixels]]:
        """The page's lines as it lies: quadrilaterals (4, 2) clockwise from the top left, and line images."""
        import cv2
        import numpy as np

        height, width = pixels.shape[:2]
        if height <= 30 or width > 8 * height:  # a lone line isn't found without room around it; this, too, as RapidOCR
            room = (2 * max(width // 8, 30) - height) // 2
            padded = np.asarray(cv2.copyMakeBorder(pixels, room, room, 0, 0, cv2.BORDER_CONSTANT), dtype=np.uint8)
            boxes, crops = self._lines(padded)
            return [(box - (0, room)).clip(0, (width - 1, height - 1)) for box in boxes], crops
        size = _detection_size(width, height)
        resized = np.asarray(cv2.resize(pixels, size), dtype=np.uint8)
        text_map = self._detector(resized[np.newaxis], lambda output: output.reshape(size[::-1]).copy())
        boxes = _boxes(text_map, width, height)
        return boxes, [_crop(pixels, box) for box in boxes]

    def _recognise(self, crops: Sequence[Pixels]) -> list[tuple[str, float]]:
        """Text and confidence of each line image, the same order."""
        import cv2
        import numpy as np

        readings: list[tuple[str, float]] = [("", 0.0)] * len(crops)
        for batch, width in _batches([math.ceil(REC_HEIGHT * crop.shape[1] / crop.shape[0]) for crop in crops]):
            images = np.full((len(batch), REC_HEIGHT, width, 3), 127, dtype=np.uint8)
            for row, (index, line_width) in enumerate(batch):
                images[row, :, :line_width] = cv2.resize(crops[index], (line_width, REC_HEIGHT))
            for (index, _), reading in zip(batch, self._recogniser(images, self._decode), strict=True):
                readings[index] = reading
        return readings

    def _decode(self, steps: Floats) -> list[tuple[str, float]]:
        """Greedy CTC of (lines, steps, classes) logits or probabilities: repeats are collapsed and blanks dropped.

        The confidence is the mean probability of the characters. Only theirs is worked out: a softmax over all
        18,710 classes of all steps would cost a sixth of the network's time.
        """
        import numpy as np

        readings = []
        for line in steps:
            classes = line.argmax(axis=1)
            keep = classes != 0
            keep[1:] &= classes[1:] != classes[:-1]
            chosen = np.flatnonzero(keep)
            best = line[chosen, classes[chosen]]
            if self._logits:
                best = 1 / np.exp(line[chosen] - best[:, np.newaxis]).sum(axis=1)
            score = float(best.mean()) if len(chosen) else 0.0
            readings.append(("".join(self._characters[index] for index in classes[chosen]), min(score, 1.0)))
        return readings

    def _rotation(
        self,
        boxes: Sequence[Floats],
        crops: Sequence[Pixels],
        read: Callable[[Sequence[int]], list[tuple[str, float]]],
    ) -> int:
        """Degrees clockwise that make the page upright; 0 unless its longest lines clearly say otherwise.

        `read` gives what the lines of these indices say as they lie. On an upright page they read well, and that is
        all; otherwise they are read upside down too. `_crop` lays tall lines down counterclockwise, as vertical writing
        wants: a page whose lines are all tall is turned, or is written vertically.
        """
        import numpy as np

        sizes = [(np.linalg.norm(box[1] - box[0]), np.linalg.norm(box[3] - box[0])) for box in boxes]
        wide = [(w, index) for index, (w, h) in enumerate(sizes) if w >= 2 * h]
        tall = [(h, index) for index, (w, h) in enumerate(sizes) if h >= 2 * w]
        lies = sum(length for length, _ in tall) > 2 * sum(length for length, _ in wide)
        sample = [index for _, index in sorted(tall if lies else wide, reverse=True)[:TURN_SAMPLE]]
        given = read(sample)
        if not sample or (not lies and _median_score(given) >= TURN_SUSPECT):
            return 0
        turned = self._recognise([crops[index][::-1, ::-1] for index in sample])
        flipped = _clearly_better(turned, given)
        if not lies:
            return 180 if flipped else 0
        if not flipped and not _clearly_better(given, turned):
            return 0
        readable = [crops[index][::-1, ::-1] if flipped else crops[index] for index in sample]
        if self._is_vertical(readable, turned if flipped else given):
            return 180 if flipped else 0
        return 90 if flipped else 270

    def _is_vertical(self, lines: Sequence[Pixels], readings: Sequence[tuple[str, float]]) -> bool:
        """Whether lines that were laid down counterclockwise are columns of upright Chinese or Japanese characters.

        Each character has a cell of its own there: stood up again, it reads as the same character.
        """
        import numpy as np

        cells, characters = [], []
        for line, (text, _) in zip(lines, readings, strict=True):
            if not text or not all(_is_full_width(character) for character in text):
                continue
            pitch = line.shape[1] / len(text)
            for place in range(min(len(text), TURN_SAMPLE)):
                cell = line[:, round(place * pitch) : max(round((place + 1) * pitch), round(place * pitch) + 1)]
                cells.append(np.rot90(cell, -1))
                characters.append(text[place])
        same = sum(text == character for (text, _), character in zip(self._recognise(cells), characters, strict=True))
        return same > len(cells) / 2


@dataclass(frozen=True)
class FoundLines:
    """Lines of a page: `width`, `height` and polygons in pixels of the upright page, as in PageText."""

    width: int
    height: int
    rotation: int
    polygons: list[list[tuple[int, int]]]
    crops: list[Pixels]  # each straightened, in the order of the polygons


class _Model(Protocol):
    """Runs a network on (batch, height, width, RGB) bytes and gives what `reader` makes of its output.

    The output is only valid inside `reader`. Safe for several threads.
    """

    def __call__(self, images: Pixels, reader: Callable[[Any], T]) -> T: ...


class _Runtime(Protocol):
    gives_logits: bool  # of the recogniser; otherwise probabilities

    def load(self, path: Path, cached_kernels: int) -> _Model: ...

    def metadata(self, path: Path, key: str) -> str: ...


def _runtime(backend: str | None, threads: int, requests: int) -> _Runtime:
    """The backend asked for, else OpenVINO where it can be loaded, else ONNX Runtime."""
    if backend == "openvino":
        return _OpenVino(threads, requests)
    if backend == "onnxruntime":
        return _OnnxRuntime(threads)
    try:
        return _OpenVino(threads, requests)
    except BadRequest:
        return _OnnxRuntime(threads)


class _OpenVino:
    """One stream over all threads: as fast as a stream per thread within 5 %, with half of the memory."""

    gives_logits = True

    def __init__(self, threads: int, requests: int) -> None:
        try:
            import openvino

            self._core = openvino.Core()
            if "CPU" not in self._core.available_devices:
                raise RuntimeError("it has no CPU device here")
        except (ImportError, OSError, RuntimeError) as error:
            raise BadRequest(
                f"engine rapidocr: backend openvino can't be loaded ({error}); "
                "pip install openvino, or choose backend=onnxruntime"
            ) from error
        self._requests = requests
        self._config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # workers side by side would all be pinned to the same cores
        }

    def load(self, path: Path, cached_kernels: int) -> _Model:
        import openvino
        from openvino import Layout, Type
        from openvino.preprocess import PrePostProcessor

        model = self._core.read_model(path)
        _convolve_instead_of_deconvolve(model)
        last = model.get_results()[0].input_value(0).get_node()
        if last.get_type_name() == "Softmax":
            model = openvino.Model([last.input_value(0)], model.get_parameters())
        steps = PrePostProcessor(model)
        steps.input().tensor().set_element_type(Type.u8).set_layout(Layout("NHWC"))
        steps.input().model().set_layout(Layout("NCHW"))
        steps.input().preprocess().convert_element_type(Type.f32).reverse_channels().mean(127.5).scale(127.5)
        compiled = self._core.compile_model(
            steps.build(), "CPU", {**self._config, "CPU_RUNTIME_CACHE_CAPACITY": cached_kernels}
        )
        idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self._requests):
            idle.put(compiled.create_infer_request())

        def run(images: Pixels, reader: Callable[[Any], T]) -> T:
            request = idle.get()
            try:
                request.infer([images], share_inputs=True)
                return reader(request.get_output_tensor().data)
            finally:
                idle.put(request)

        return run

    def metadata(self, path: Path, key: str) -> str:
        return str(self._core.read_model(path).get_rt_info(["framework", key]).astype(str))


class _OnnxRuntime:
    gives_logits = False

    def __init__(self, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BadRequest(
                f"engine rapidocr: backend onnxruntime can't be loaded ({error}); pip install onnxruntime"
            ) from error
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 3  # errors
        self._options.enable_cpu_mem_arena = False  # the arena would keep the largest page's memory for ever

    def load(self, path: Path, cached_kernels: int) -> _Model:
        import numpy as np

        session = self._session(path)
        name = session.get_inputs()[0].name

        def run(images: Pixels, reader: Callable[[Any], T]) -> T:
            planes = np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2), dtype=np.float32)
            planes /= 127.5
            planes -= 1
            return reader(session.run(None, {name: planes})[0])

        return run

    def metadata(self, path: Path, key: str) -> str:
        return str(self._session(path).get_modelmeta().custom_metadata_map[key])

    def _session(self, path: Path) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(str(path), self._options, providers=["CPUExecutionProvider"])


def _convolve_instead_of_deconvolve(model: Any) -> None:
    """Replaces 2 x 2 transposed convolutions of stride 2 by what they are: a 1 x 1 convolution and a shuffle of pixels.

    The same numbers; the detector is a seventh faster and takes a fifth less memory.
    """
    import numpy as np
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "ConvolutionBackpropData":
            continue
        weights = node.input_value(1).get_node()
        if node.get_attributes()["strides"] != [2, 2] or list(weights.shape)[2:] != [2, 2]:
            continue
        inputs, outputs = weights.shape[:2]
        kernel = np.ascontiguousarray(weights.data.transpose(2, 3, 1, 0).reshape(4 * outputs, inputs, 1, 1))
        planes = opset13.convolution(node.input_value(0), opset13.constant(kernel), [1, 1], [0, 0], [0, 0], [1, 1])
        shuffled = opset13.depth_to_space(planes, "blocks_first", 2)
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(shuffled.output(0))


def _check_language(lang: str | None) -> None:
    known = LANGUAGES.split()
    for code in re.findall(r"[^,+\s]+", lang.lower()) if lang else []:
        if code not in known and re.split("[-_]", code)[0] not in known:
            raise BadRequest(
                f"engine rapidocr can't read language {code!r}: its model knows Chinese, Japanese and languages in "
                f"Latin letters ({LANGUAGES}); choose another engine, `pagefleet engines` lists them"
            )


def _model_folder() -> Path:
    """Where the wheel keeps its weights; found without importing the package, which takes a second and can download."""
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        raise BadRequest("engine rapidocr: package rapidocr is not installed; pip install rapidocr")
    return Path(spec.submodule_search_locations[0]) / "models"


def _revision(*weights: Path) -> str:
    digest = hashlib.sha256()
    for path in weights:
        if not path.is_file():
            raise BadRequest(f"engine rapidocr: rapidocr has no {path.name}; pip install 'rapidocr>=3.10'")
        digest.update(path.read_bytes())
    return f"rapidocr-{importlib.metadata.version('rapidocr')}+{digest.hexdigest()[:12]}"


def _detection_size(width: int, height: int) -> tuple[int, int]:
    """Width and height at which a page's lines are looked for: multiples of 32, as the network wants."""
    scale = min(1.0, DET_LONGEST_SIDE / max(width, height))
    scale = max(scale, DET_SHORTEST_SIDE / min(width, height))
    scale = min(scale, math.sqrt(DET_MAX_PIXELS / (width * height)))
    return max(32, round(width * scale / 32) * 32), max(32, round(height * scale / 32) * 32)


def _boxes(probability: Floats, width: int, height: int) -> list[Floats]:
    """Boxes around the connected regions of a text probability map, in pixels of a page of `width` x `height`.

    Differentiable Binarization (https://arxiv.org/abs/1911.08947): a region is the shrunken core of a line, grown
    here by area x ratio / perimeter on each side.
    """
    import cv2
    import numpy as np

    map_height, map_width = probability.shape
    limits = np.array([width - 1, height - 1], dtype=np.float32)
    scale = np.array([width / map_width, height / map_height], dtype=np.float32)
    mask = cv2.dilate((probability > DET_THRESHOLD).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes: list[Floats] = []
    for contour in contours:
        center, (side_a, side_b), angle = cv2.minAreaRect(contour)
        if min(side_a, side_b) < 3:
            continue
        core = cv2.boxPoints((center, (side_a, side_b), angle))
        if _mean_inside(probability, core) < DET_BOX_THRESHOLD:
            continue
        growth = side_a * side_b * DET_UNCLIP_RATIO / (side_a + side_b)
        box = _clockwise(cv2.boxPoints((center, (side_a + growth, side_b + growth), angle)))
        box = np.round(box * scale).clip(0, limits).astype(np.float32)
        if np.linalg.norm(box[0] - box[1]) > 3 and np.linalg.norm(box[0] - box[3]) > 3:
            boxes.append(box)
    return boxes[:DET_MAX_BOXES]


def _polygon(box: Floats) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in box]


def _turn(pixels: Pixels, rotation: int) -> Pixels:
    """`rotation`: degrees clockwise."""
    import numpy as np

    return np.ascontiguousarray(np.rot90(pixels, -rotation // 90))


def _mean_inside(probability: Floats, box: Any) -> float:
    import cv2
    import numpy as np

    height, width = probability.shape
    left, top = np.floor(box.min(axis=0)).astype(int).clip(0, (width - 1, height - 1))
    right, bottom = np.ceil(box.max(axis=0)).astype(int).clip(0, (width - 1, height - 1))
    mask = np.zeros((bottom - top + 1, right - left + 1), dtype=np.uint8)
    cv2.fillPoly(mask, [(box - (left, top)).astype(np.int32)], 1)
    return float(cv2.mean(probability[top : bottom + 1, left : right + 1], mask)[0])


def _clockwise(box: Any) -> Floats:
    """The corners from the top left on: of the two left ones and the two right ones, the upper first."""
    import numpy as np

    by_x = box[np.argsort(box[:, 0], kind="stable")]
    left = by_x[:2][np.argsort(by_x[:2, 1], kind="stable")]
    right = by_x[2:][np.argsort(by_x[2:, 1], kind="stable")]
    return np.array([left[0], right[0], right[1], left[1]], dtype=np.float32)


def _crop(pixels: Pixels, box: Floats) -> Pixels:
    """The line inside the box, straightened; one that is clearly taller than wide is laid down counterclockwise."""
    import cv2
    import numpy as np

    width = int(max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[2] - box[3])))
    height = int(max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2])))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    matrix = cv2.getPerspectiveTransform(box, corners)
    crop: Any = cv2.warpPerspective(
        pixels, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.rot90(crop) if height >= 1.5 * width else crop


def _batches(widths: Sequence[int]) -> Iterator[tuple[list[tuple[int, int]], int]]:
    """Groups lines of similar width: pairs of index and width, and the width of the batch."""
    batch: list[tuple[int, int]] = []
    for index in sorted(range(len(widths)), key=lambda index: -widths[index]):
        width = min(widths[index], REC_MAX_WIDTH)
        if batch and (len(batch) + 1) * _batch_width(batch) > REC_BATCH_WIDTH:
            yield batch, _batch_width(batch)
            batch = []
        batch.append((index, width))
    if batch:
        yield batch, _batch_width(batch)


def _batch_width(batch: Sequence[tuple[int, int]]) -> int:
    return max(REC_MIN_WIDTH, math.ceil(batch[0][1] / REC_WIDTH_STEP) * REC_WIDTH_STEP)


def _clearly_better(readings: Sequence[tuple[str, float]], others: Sequence[tuple[str, float]]) -> bool:
    """Whether lines read as text the one way and don't the other way."""
    votes = sum(reading[1] > other[1] for reading, other in zip(readings, others, strict=True))
    return (
        votes >= 0.75 * len(readings)
        and _median_score(readings) >= max(TURN_LEGIBLE, _median_score(others) + TURN_GAIN)
        and sum(len(text) for text, _ in readings) >= TURN_MIN_CHARACTERS
    )


def _median_score(readings: Sequence[tuple[str, float]]) -> float:
    return statistics.median(score for _, score in readings)


def _is_full_width(character: str) -> bool:
    return unicodedata.east_asian_width(character) == "W"
