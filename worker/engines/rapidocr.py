"""The default engine: PP-OCRv6 weights from the `rapidocr` wheel, run by OpenVINO or ONNX Runtime on the CPU.

Only the weights are RapidOCR's; detection, cropping and decoding follow its defaults with less work around the models.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import queue
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from worker.contract import Line
from worker.engines import EngineSettings, PageImage, PageText
from worker.errors import BadRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Floats = NDArray[np.float32]

BACKENDS = ("openvino", "onnxruntime")

# RapidOCR's defaults (its config.yaml), except where a comment says otherwise.
TEXT_SCORE = 0.5  # lines read with less confidence are dropped
DET_LONGEST_SIDE = 2000
DET_SHORTEST_SIDE = 736
DET_THRESHOLD = 0.3
DET_BOX_THRESHOLD = 0.5
DET_UNCLIP_RATIO = 1.6
DET_MAX_BOXES = 1000
REC_HEIGHT = 48
REC_MIN_WIDTH = 320
REC_MAX_WIDTH = 4800  # ours: bounds memory; a wider line is squeezed
REC_STEP = 32  # ours: widths are rounded up to a multiple, so that lines share batches and kernels
REC_BATCH = 6


class RapidOcrEngine:
    """Reads printed Chinese, Japanese and Latin-script text: lines with polygons and confidences.

    Options: `backend` is `openvino` or `onnxruntime`; absent, OpenVINO where it is installed.
    `read` may be called from `concurrency` threads at once.
    """

    name = "rapidocr"
    model = "PP-OCRv6-small"
    batch_size = 1
    longest_side = 4000

    def __init__(self, settings: EngineSettings) -> None:
        """Raises BadRequest for an option or a language that the engine doesn't have."""
        _check_language(settings.lang)
        unknown = sorted(settings.options.keys() - {"backend"})
        if unknown:
            raise BadRequest(f"engine rapidocr has no option {unknown[0]!r}; it has: backend ({'|'.join(BACKENDS)})")
        backend = settings.options.get("backend")
        if backend is not None and backend not in BACKENDS:
            raise BadRequest(f"engine rapidocr: backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
        self.concurrency = max(1, min(settings.threads, 2))
        self.revision: str | None = f"rapidocr {importlib.metadata.version('rapidocr')}"
        models = _model_folder()
        runtime = _runtime(backend, settings.threads, self.concurrency)
        self._detector = runtime.load(models / "PP-OCRv6_det_small.onnx", classes=False)
        self._recogniser = runtime.load(models / "PP-OCRv6_rec_small.onnx", classes=True)
        self._characters = _characters(models / "PP-OCRv6_rec_small.onnx")

    def read(self, pages: Sequence[PageImage]) -> list[PageText]:
        """One PageText per page; what goes wrong with a page becomes its `error`."""
        return [self._read_page(page) for page in pages]

    def close(self) -> None:
        del self._detector, self._recogniser

    def _read_page(self, page: PageImage) -> PageText:
        try:
            return self._read_upright(page.pixels)
        except Exception as error:  # the page boundary: one page's failure is data, the others are unharmed
            return PageText(page.width, page.height, error=f"{type(error).__name__}: {error}")

    def _read_upright(self, pixels: Pixels) -> PageText:
        height, width = pixels.shape[:2]
        boxes = self._detect(pixels)
        readings = self._recognise([_crop(pixels, box) for box in boxes])
        lines = [
            Line(text=text, confidence=round(score, 4), polygon=[(int(x), int(y)) for x, y in box])
            for box, (text, score) in zip(boxes, readings, strict=True)
            if score >= TEXT_SCORE and text.strip()
        ]
        return PageText(width, height, lines=lines)

    def _detect(self, pixels: Pixels) -> list[Floats]:
        """Quadrilaterals of text lines, (4, 2) each, clockwise from the top left, in pixels of the page."""
        import cv2
        import numpy as np

        height, width = pixels.shape[:2]
        det_width, det_height = _detection_size(width, height)
        resized = cv2.resize(pixels, (det_width, det_height))
        (probability,) = self._detector(resized[np.newaxis])
        return _boxes(probability.reshape(det_height, det_width), width, height)

    def _recognise(self, crops: Sequence[Pixels]) -> list[tuple[str, float]]:
        """Text and confidence of each line image."""
        import numpy as np

        readings: list[tuple[str, float]] = [("", 0.0)] * len(crops)
        widths = [_recognition_width(crop) for crop in crops]
        order = sorted(range(len(crops)), key=lambda index: widths[index])
        start = 0
        while start < len(order):
            batch = order[start : start + REC_BATCH]
            width = max(widths[batch[-1]], REC_MIN_WIDTH)
            width = math.ceil(width / REC_STEP) * REC_STEP
            images = np.full((len(batch), REC_HEIGHT, width, 3), 127, dtype=np.uint8)
            for row, index in enumerate(batch):
                _fit(crops[index], images[row, :, : widths[index]])
            classes, scores = self._recogniser(images)
            for row, index in enumerate(batch):
                readings[index] = self._decode(classes[row], scores[row])
            start += len(batch)
        return readings

    def _decode(self, classes: NDArray[np.int64], scores: Floats) -> tuple[str, float]:
        """Greedy CTC: repeats collapsed, blanks (class 0) dropped; the confidence is the mean of what is kept."""
        import numpy as np

        keep = classes != 0
        keep[1:] &= classes[1:] != classes[:-1]
        if not keep.any():
            return "", 0.0
        return "".join(self._characters[index] for index in classes[keep]), float(np.mean(scores[keep]))


class _Model(Protocol):
    """Runs (batch, height, width, RGB) bytes; safe for `concurrency` threads.

    Gives the network's one output, or, loaded with `classes`, the best class of each step and its probability.
    """

    def __call__(self, images: Pixels) -> tuple[Any, ...]: ...


class _Runtime(Protocol):
    def load(self, path: Path, *, classes: bool) -> _Model: ...


def _runtime(backend: str | None, threads: int, concurrency: int) -> _Runtime:
    if backend is None:
        backend = "openvino" if importlib.util.find_spec("openvino") else "onnxruntime"
    if importlib.util.find_spec(backend) is None:
        raise BadRequest(f"engine rapidocr: backend {backend} is not installed; pip install {backend}, or choose another")
    return _OpenVino(threads, concurrency) if backend == "openvino" else _OnnxRuntime(threads, concurrency)


class _OpenVino:
    def __init__(self, threads: int, concurrency: int) -> None:
        import openvino

        self._core = openvino.Core()
        self._concurrency = concurrency
        self._config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": concurrency,
            "ENABLE_CPU_PINNING": False,  # two workers on one machine would be pinned to the same cores
        }

    def load(self, path: Path, *, classes: bool) -> _Model:
        from openvino import Layout, Type
        from openvino.preprocess import PrePostProcessor

        model = self._core.read_model(path)
        steps = PrePostProcessor(model)
        steps.input().tensor().set_element_type(Type.u8).set_layout(Layout("NHWC"))
        steps.input().model().set_layout(Layout("NCHW"))
        steps.input().preprocess().convert_element_type(Type.f32).reverse_channels().mean(127.5).scale(127.5)
        compiled = self._core.compile_model(steps.build(), "CPU", self._config)
        idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self._concurrency):
            idle.put(compiled.create_infer_request())

        def run(images: Pixels) -> tuple[Any, ...]:
            request = idle.get()
            try:
                request.infer([images], share_inputs=True)
                output = request.get_output_tensor().data
                return (output.argmax(axis=2), output.max(axis=2)) if classes else (output.copy(),)
            finally:
                idle.put(request)

        return run


class _OnnxRuntime:
    def __init__(self, threads: int, concurrency: int) -> None:
        import onnxruntime

        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = max(1, threads // concurrency)
        self._options.inter_op_num_threads = 1
        self._options.enable_cpu_mem_arena = False  # as RapidOCR: the arena keeps the largest page's memory for ever

    def load(self, path: Path, *, classes: bool) -> _Model:
        import numpy as np
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), self._options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def run(images: Pixels) -> tuple[Any, ...]:
            planes = np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2), dtype=np.float32)
            planes /= 127.5
            planes -= 1
            output = session.run(None, {name: planes})[0]
            return (output.argmax(axis=2), output.max(axis=2)) if classes else (output,)

        return run


def _check_language(lang: str | None) -> None:
    pass


def _model_folder() -> Path:
    """Where the wheel keeps its weights; found without importing the package, which would load all it depends on."""
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        raise BadRequest("engine rapidocr: package rapidocr is not installed; pip install rapidocr")
    return Path(spec.submodule_search_locations[0]) / "models"


def _characters(path: Path) -> list[str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]


def _detection_size(width: int, height: int) -> tuple[int, int]:
    """Width and height at which a page's lines are looked for: multiples of 32, as the network wants."""
    scale = min(1.0, DET_LONGEST_SIDE / max(width, height))
    scale = max(scale, DET_SHORTEST_SIDE / min(width, height))
    scale = min(scale, 2 * DET_LONGEST_SIDE / max(width, height))
    return max(32, round(width * scale / 32) * 32), max(32, round(height * scale / 32) * 32)


def _boxes(probability: Floats, width: int, height: int) -> list[Floats]:
    """Boxes around the connected regions of a text probability map, in pixels of a page of `width` x `height`.

    Differentiable Binarization (https://arxiv.org/abs/1911.08947): a region is the shrunken core of a line; it is
    grown by area x ratio / perimeter. Growing a rectangle's four sides does what clipping libraries do here.
    """
    import cv2
    import numpy as np

    map_height, map_width = probability.shape
    scale = np.array([width / map_width, height / map_height], dtype=np.float32)
    mask = cv2.dilate((probability > DET_THRESHOLD).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes: list[Floats] = []
    for contour in contours[:DET_MAX_BOXES]:
        center, (side_a, side_b), angle = cv2.minAreaRect(contour)
        if min(side_a, side_b) < 3:
            continue
        core = cv2.boxPoints((center, (side_a, side_b), angle))
        if _mean_inside(probability, core) < DET_BOX_THRESHOLD:
            continue
        growth = 2 * side_a * side_b * DET_UNCLIP_RATIO / (2 * (side_a + side_b))
        box = cv2.boxPoints((center, (side_a + growth, side_b + growth), angle))
        box = np.round(_clockwise(box) * scale)
        box[:, 0] = box[:, 0].clip(0, width - 1)
        box[:, 1] = box[:, 1].clip(0, height - 1)
        if np.linalg.norm(box[0] - box[1]) > 3 and np.linalg.norm(box[0] - box[3]) > 3:
            boxes.append(box)
    return boxes


def _mean_inside(probability: Floats, box: Floats) -> float:
    import cv2
    import numpy as np

    height, width = probability.shape
    left, top = np.floor(box.min(axis=0)).astype(int).clip(0, (width - 1, height - 1))
    right, bottom = np.ceil(box.max(axis=0)).astype(int).clip(0, (width - 1, height - 1))
    mask = np.zeros((bottom - top + 1, right - left + 1), dtype=np.uint8)
    cv2.fillPoly(mask, [(box - (left, top)).astype(np.int32)], 1)
    return float(cv2.mean(probability[top : bottom + 1, left : right + 1], mask)[0])


def _clockwise(box: Floats) -> Floats:
    """The corners from the top left on: of the two left ones and the two right ones, the upper first."""
    import numpy as np

    by_x = box[np.argsort(box[:, 0], kind="stable")]
    left = by_x[:2][np.argsort(by_x[:2, 1], kind="stable")]
    right = by_x[2:][np.argsort(by_x[2:, 1], kind="stable")]
    return np.stack([left[0], right[0], right[1], left[1]])


def _crop(pixels: Pixels, box: Floats) -> Pixels:
    """The line inside the box, straightened; a line that is clearly taller than wide is turned to lie."""
    import cv2
    import numpy as np

    width = int(max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[2] - box[3])))
    height = int(max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2])))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    matrix = cv2.getPerspectiveTransform(box.astype(np.float32), target)
    crop = cv2.warpPerspective(
        pixels, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.rot90(crop) if height >= 1.5 * width else crop


def _recognition_width(crop: Pixels) -> int:
    height, width = crop.shape[:2]
    return min(REC_MAX_WIDTH, max(1, math.ceil(REC_HEIGHT * width / height)))


def _fit(crop: Pixels, target: Pixels) -> None:
    import cv2

    target[:] = cv2.resize(crop, (target.shape[1], target.shape[0]))

