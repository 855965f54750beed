"""How fast, how well and for how much an engine reads, measured on this machine and on nothing else.

Pages are decoded first; what is timed is the engine alone, asked as a worker asks it, after a call that warms it up.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.accuracy import bare, error_rate
from jobs.cost import INSTANCES, PRICES_FROM, SPOT_SHARE
from jobs.errors import JobError, UsageError
from jobs.local import check_aws, versions
from jobs.plan import find_inputs
from jobs.wording import plural, shown
from worker import layout
from worker.contract import Options, Page, Record
from worker.decode import BadPage, Decoder
from worker.engines import Engine, EngineSettings, PageImage, PageText, build_engine
from worker.engines.presets import PRESETS
from worker.errors import DocumentError, WorkerError
from worker.pipeline import join_markdown
from worker.scratch import Scratch
from worker.settings import Settings, available_cpus
from worker.storage import Storage, uri_path

REASONS = 5  # why documents can't be decoded, told where none can
PAGES = 50  # read unless told otherwise; a Letter page of 200 DPI takes 11 MB while it waits
SAMPLES = Path(__file__).parent.parent / "samples"  # where the project is installed from its repository
ELSEWHERE = ("openai", "upstage")  # engines of which this machine's price tells nothing: their server may be anywhere
DMI = Path("/sys/class/dmi/id")


class Price(Record):
    """Of the machine that was measured, and of the service that reads."""

    usd_per_hour: float | None = None
    usd_per_1000_pages: float
    charged_usd_per_1000_pages: float | None = None  # of that, by the service
    spot_usd_per_1000_pages: float | None = None  # at the usual share of the price on demand
    source: str


class Bench(Record):
    """What `pagefleet bench` found out. Times are of the engine alone, in seconds."""

    engine: str
    model: str
    revision: str | None = None
    options: dict[str, Any] = {}
    device: str
    machine: str
    versions: dict[str, str]
    pages: int
    failed_pages: int = 0
    blank_pages: int = 0  # which no engine gets
    seconds: float
    pages_per_second: float
    tokens_per_second: float | None = None  # where the engine tells its tokens
    page_seconds_median: float
    page_seconds_p95: float
    peak_memory_mib: int  # resident, of the whole process, waiting pages included
    peak_gpu_memory_mib: int | None = None
    character_error_rate: float | None = None  # of documents with a true text
    documents_with_truth: int = 0
    price: Price | None = None
    notes: list[str] = []


@dataclass(frozen=True)
class Request:
    engine: str
    options: Options
    inputs: tuple[str, ...] = ()
    device: str | None = None
    pages: int = PAGES
    usd_per_hour: float | None = None
    instance: str | None = None


@dataclass
class _Document:
    uri: str
    whole: bool = True  # all its pages are read
    blank: int = 0
    images: list[PageImage] = field(default_factory=list)
    texts: list[PageText] = field(default_factory=list)


def bench(storage: Storage, request: Request, on_pages: Callable[[int, int], None] = lambda done, of: None) -> Bench:
    """Reads the inputs, or the samples, and measures. `on_pages` is told how many pages of how many are read.

    Raises: UsageError where there is nothing to read or the price is of another machine; JobError where no page could
    be read; BadRequest of the engine.
    """
    price, notes = _price(request)
    settings = EngineSettings(
        threads=available_cpus(),
        timeout=request.options.engine_timeout,
        lang=request.options.lang,
        options=_engine_options(request),
        api_keys=Settings.from_environment(os.environ).api_keys,
    )
    passed: list[str] = []  # told only where nothing is read: true texts lie among the documents
    inputs = list(find_inputs(storage, request.inputs or _samples(), warnings=passed))
    check_aws(storage, request.engine, request.options, ())
    engine = build_engine(request.engine, settings)
    try:
        documents = list(_decode(storage, inputs, request, engine.longest_side, notes))
        pages = [image for document in documents for image in document.images]
        if not pages:
            blank = sum(document.blank for document in documents)
            why = [*([f"{plural(blank, 'page')} blank"] if blank else []), *notes[:REASONS], *passed]
            raise UsageError("; ".join(["there is no page to read", *why]))
        _ask(engine, pages[: engine.batch_size])
        texts, seconds, each = _read(engine, pages, on_pages)
    finally:
        engine.close()
    failed = [text for text in texts if text.error is not None]
    if len(failed) == len(texts):
        raise JobError(f"{request.engine} could read no page ({len(texts):,} tried); the first: {failed[0].error}")
    answers = iter(texts)
    for document in documents:
        document.texts = [next(answers) for _ in document.images]
    rates = _with_truth(storage, documents)
    tokens = [text.details["tokens"] for text in texts if text.details and "tokens" in text.details]
    told = next((text.details for text in texts if text.details), {})
    pace = len(texts) / seconds
    return Bench(
        engine=request.engine,
        model=engine.model,
        revision=engine.revision,
        options=settings.options,
        device=_device(told.get("device", "cpu" if request.engine == "rapidocr" else "not told")),
        machine=_machine(settings.threads),
        versions=versions() | told.get("versions", {}),
        pages=len(texts),
        failed_pages=len(failed),
        blank_pages=sum(document.blank for document in documents),
        seconds=round(seconds, 3),
        pages_per_second=round(pace, 4),
        tokens_per_second=round(sum(tokens) / seconds, 2) if tokens else None,
        page_seconds_median=round(statistics.median(each), 4),
        page_seconds_p95=round(sorted(each)[max(0, -(-95 * len(each) // 100) - 1)], 4),
        peak_memory_mib=_peak_memory(),
        peak_gpu_memory_mib=_peak_gpu_memory(),
        character_error_rate=round(error_rate(rates), 5) if rates else None,
        documents_with_truth=len(rates),
        price=_with_service(price(pace) if price else None, request, texts, notes),
        notes=notes,
    )


# ---- helpers


def _samples() -> tuple[str, ...]:
    if not SAMPLES.is_dir():
        raise UsageError("name at least one INPUT: the samples are not installed here")
    return (str(SAMPLES),)


def _engine_options(request: Request) -> dict[str, Any]:
    options = dict(request.options.engine_options)
    if request.device is None:
        return options
    if request.engine in PRESETS or ":" in request.engine:
        return options | {"device": request.device}
    if request.device != "cpu":
        raise UsageError(f"engine {request.engine} can't be told to use {request.device}: leave --device out")
    return options


def _price(request: Request) -> tuple[Callable[[float], Price] | None, list[str]]:
    """What pages cost at a rate of so many a second; nobody knows the rate of a machine that was not measured."""
    if request.usd_per_hour is not None and request.instance is not None:
        raise UsageError("give --hourly-usd or --instance, not both")
    if request.usd_per_hour is not None:
        hourly = request.usd_per_hour
        return lambda pace: _at(pace, hourly, "as given", spot=False), []
    here = instance_type()
    kind = request.instance or here
    if request.instance is not None:
        if request.instance not in INSTANCES:
            raise UsageError(
                f"no price of {request.instance} is known here: give --hourly-usd; there is {', '.join(INSTANCES)}"
            )
        if here is not None and here != request.instance:
            raise UsageError(
                f"this machine is {here}, not a {request.instance}: what it would cost there, only a bench there tells"
            )
    if kind not in INSTANCES:
        return None, []
    notes = [] if here else [f"this machine doesn't tell what it is: the price is right if it is a {kind}"]
    source = f"{kind} on demand, us-east-1, price table of {PRICES_FROM}"
    return lambda pace: _at(pace, INSTANCES[kind].on_demand, source, spot=True), notes


def _at(pace: float, usd_per_hour: float, source: str, *, spot: bool) -> Price:
    usd = usd_per_hour / 3600 / pace * 1000
    return Price(
        usd_per_hour=usd_per_hour,
        usd_per_1000_pages=round(usd, 9),
        spot_usd_per_1000_pages=round(usd * SPOT_SHARE, 9) if spot else None,
        source=source,
    )


def _with_service(price: Price | None, request: Request, texts: Sequence[PageText], notes: list[str]) -> Price | None:
    """With what a service has charged, as far as its engine tells; none where the machine's alone would mislead."""
    if request.engine not in ELSEWHERE:
        return price
    notes.append("the call that warms up is not in the figures: a server that charges for pages charges for it too")
    costs = [text.details["cost"] for text in texts if text.details and "cost" in text.details]
    if costs:
        charged = sum(costs) / len(texts) * 1000
        machine = price or Price(usd_per_1000_pages=0, source="this machine not counted")
        spot = machine.spot_usd_per_1000_pages
        return Price(
            usd_per_hour=machine.usd_per_hour,
            usd_per_1000_pages=round(machine.usd_per_1000_pages + charged, 9),
            charged_usd_per_1000_pages=round(charged, 9),
            spot_usd_per_1000_pages=None if spot is None else round(spot + charged, 9),
            source=f"what is charged; {machine.source}",
        )
    if price and request.engine == "openai" and request.usd_per_hour is not None:
        return price
    if price:
        notes.append(f"no price is told: {missing_price(request.engine)}")
    return None


def missing_price(engine: str) -> str:
    """What to give to be told one."""
    if engine == "upstage":
        return "give what Upstage charges you, --engine-option price_per_page=N"
    if engine == "openai":
        return "give --hourly-usd of the machine that the server runs on"
    return "give --hourly-usd, or --instance on EC2"


def instance_type() -> str | None:
    """The EC2 type of this machine, "no EC2 instance", or None where the machine doesn't tell.

    Instances of the Nitro system, which all of the table are, give their type as the product's name.
    """
    try:
        vendor, product = ((DMI / name).read_text().strip() for name in ("sys_vendor", "product_name"))
    except OSError:
        return None
    return product if vendor == "Amazon EC2" else "no EC2 instance"


def _decode(
    storage: Storage, inputs: Sequence[str], request: Request, longest_side: int, notes: list[str]
) -> Iterator[_Document]:
    """Documents with their pages, until there are enough."""
    longest_side = min(request.options.longest_side or longest_side, longest_side)
    left = request.pages
    with (
        Decoder(request.options, longest_side=longest_side) as decoder,
        Scratch() as scratch,
    ):
        for uri in inputs:
            if left <= 0:
                notes.append(f"only the first {plural(request.pages, 'page')}: --pages reads more")
                return
            document = _Document(uri)
            try:
                fetched = storage.fetch(uri, scratch)
                for page in decoder.pages(str(fetched.path)):
                    if left <= 0:
                        document.whole = False
                        break
                    if isinstance(page, BadPage):
                        raise DocumentError(page.code, f"page {page.number}: {page.message}")
                    if page.blank:
                        document.blank += 1
                    else:
                        document.images.append(page.image)
                        left -= 1
            except DocumentError as error:
                document.whole = False
                notes.append(f"{shown(uri)}: {error.message}")
            yield document


def _read(
    engine: Engine, pages: Sequence[PageImage], on_pages: Callable[[int, int], None]
) -> tuple[list[PageText], float, list[float]]:
    """Texts, seconds in all, and each page's seconds: its share of its call."""
    batches = [pages[start : start + engine.batch_size] for start in range(0, len(pages), engine.batch_size)]

    def read(batch: Sequence[PageImage]) -> tuple[list[PageText], float]:
        started = time.perf_counter()
        texts = _ask(engine, batch)
        return texts, (time.perf_counter() - started) / len(batch)

    texts: list[PageText] = []
    each: list[float] = []
    started = time.perf_counter()
    with ThreadPoolExecutor(engine.concurrency) as pool:
        for some, seconds in pool.map(read, batches):
            texts += some
            each += [seconds] * len(some)
            on_pages(len(texts), len(pages))
    return texts, time.perf_counter() - started, each


def _ask(engine: Engine, batch: Sequence[PageImage]) -> list[PageText]:
    """What it raises fails the pages of the call, as in a worker."""
    try:
        return engine.read(batch)
    except (WorkerError, MemoryError):
        raise
    except Exception as error:
        return [PageText(page.width, page.height, error=f"{type(error).__name__}: {error}") for page in batch]


def _with_truth(storage: Storage, documents: Sequence[_Document]) -> list[tuple[str, str]]:
    """What was read of documents that have a true text and were read whole, and that text; both without form."""
    pairs = []
    for document in documents:
        if not document.whole or (truth := _truth(document.uri)) is None:
            continue
        pages = [
            Page(
                number=image.number,
                width=text.width,
                height=text.height,
                status="failed" if text.error is not None else "ok",
                markdown=text.markdown or "",
                lines=text.lines,
            )
            for image, text in zip(document.images, document.texts, strict=True)
        ]
        if all(text.markdown is None for text in document.texts):
            pages = layout.compose(pages)
        pairs.append((bare(join_markdown(pages)), bare(truth)))
    return pairs


def _truth(uri: str) -> str | None:
    """`truth/NAME.txt` or `NAME.txt` beside a local document, NAME with its extension; as the samples have it."""
    if not uri.startswith("file://"):
        return None
    path = uri_path(uri)
    for place in (path.parent / "truth" / f"{path.name}.txt", path.parent / f"{path.name}.txt"):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    return None


def _device(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def _machine(threads: int) -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.*)", cpuinfo.read_text())):
        model = found[1]
    where = instance_type()
    kind = f"{where}: " if where in INSTANCES else ""
    return f"{kind}{model}, {threads} of {os.cpu_count()} CPUs; {platform.system()}, Python {platform.python_version()}"


def _peak_memory() -> int:
    """MiB. Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _peak_gpu_memory() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_allocated()) >> 20
