"""What a run costs on AWS: estimated before from pages, a measured rate and a price; afterwards from the seconds of its
attempts, its share of each instance, and the Spot price of that hour."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.aws import Aws, AwsError, chunks
from jobs.batch import Attempt, BatchRun, JobRecord
from jobs.plan import Plan, known_pages
from jobs.stack import JobDefinition
from jobs.summary import format_usd
from jobs.wording import plural
from worker.contract import Options, Record


@dataclass(frozen=True)
class Instance:
    vcpus: int
    memory: int  # MiB
    gpus: int
    on_demand: float  # USD an hour


# Linux, us-east-1, as AWS lists them on aws.amazon.com/ec2/pricing/on-demand and /fargate/pricing. Checked against
# tables that others took from AWS's price list in July and August 2026. Other regions are 0 to 45 % dearer.
PRICES_FROM = "August 2026"
INSTANCES = {
    "g4dn.xlarge": Instance(4, 16_384, 1, 0.526),
    "g4dn.2xlarge": Instance(8, 32_768, 1, 0.752),
    "g4dn.4xlarge": Instance(16, 65_536, 1, 1.204),
    "g5.xlarge": Instance(4, 16_384, 1, 1.006),
    "g5.2xlarge": Instance(8, 32_768, 1, 1.212),
    "g5.4xlarge": Instance(16, 65_536, 1, 1.624),
    "g6.xlarge": Instance(4, 16_384, 1, 0.8048),
    "g6.2xlarge": Instance(8, 32_768, 1, 0.9776),
    "g6.4xlarge": Instance(16, 65_536, 1, 1.3232),
    "g6e.xlarge": Instance(4, 32_768, 1, 1.861),
    "g6e.2xlarge": Instance(8, 65_536, 1, 2.24208),
    "g6e.4xlarge": Instance(16, 131_072, 1, 3.00424),
}
# The mean over zones of us-east-1 was 0.43 (g5.xlarge) to 0.49 (g6e.2xlarge) of the list price in the SkyPilot
# catalogue v8 (github.com/skypilot-org/skypilot-catalog, commit 00148f2).
SPOT_SHARE = 0.47
FARGATE = "fargate"
FARGATE_VCPU_HOUR = 0.04048
FARGATE_GIB_HOUR = 0.004445
# AWS asks 30 to 50 % of the list price, as supply has it, and tells the rate of the day on its price page alone.
FARGATE_SPOT_SHARE = 0.4

# Pages a second that one vCPU reads: half of what two cores read of 24 receipts (1.46), an early and cautious figure
# (docs/costs.md). Of a GPU engine none is shipped: the newest run on the same stack tells.
PAGES_PER_VCPU_SECOND = {"rapidocr": 0.73}
MANY_FORMATS_PAGES = 10  # taken in an estimate for a document that may have any number of pages

TABLE = f"price table of {PRICES_FROM}"
HISTORY = "Spot price history"


class Share(Record):
    """What one kind of instance took of a run."""

    instance: str  # `fargate`, or "?" where it could not be found out
    seconds: float
    usd: float


class Cost(Record):
    """`Summary.cost`. `seconds` are those of all attempts, waiting and pulling left out."""

    usd: float
    seconds: float
    prices: str  # where they come from
    instances: list[Share] = []
    notes: list[str] = []


class Estimate(Record):
    pages: int
    usd: float | None = None  # absent where no rate is known
    hours: float | None = None  # of all shards together
    wall_hours: float | None = None  # where all shards run at the same time
    usd_per_hour: float  # of one shard
    pages_per_second: float | None = None  # of one shard
    basis: str


def count_pages(plan: Plan) -> tuple[int, int]:
    """Pages of a plan as far as its tasks tell, and how many of its documents are of unknown length."""
    pages = unknown = 0
    for uri, _, ranges, _, _ in plan.tasks:
        known = known_pages(uri, ranges)
        pages += MANY_FORMATS_PAGES if known is None else known
        unknown += known is None
    return pages, unknown


def estimate(
    plan: Plan, engine: str, definition: JobDefinition, rate: float | None = None, rate_from: str = ""
) -> Estimate:
    """`rate` are the pages that one shard reads a second, where an earlier run has told."""
    pages, unknown = count_pages(plan)
    if rate is None and definition.gpus == 0 and engine in PAGES_PER_VCPU_SECOND:
        rate, rate_from = PAGES_PER_VCPU_SECOND[engine] * definition.vcpus, "measured on 24 receipts"
    price = table_price(definition, None)
    basis = [f"${price:.3f} an hour for a shard ({TABLE})"]
    if unknown:
        basis.append(
            f"{plural(unknown, 'document')} of unknown length, taken for {MANY_FORMATS_PAGES} pages each"
            + ("" if plan.pages_per_task else ": --pages-per-task counts those that are longer than it says")
        )
    if rate is None:
        basis.append(f"no rate of {engine} on this hardware is known before a first run")
        return Estimate(pages=pages, usd_per_hour=price, basis="; ".join(basis))
    hours = pages / rate / 3600
    return Estimate(
        pages=pages,
        usd=hours * price,
        hours=hours,
        wall_hours=hours / plan.shards,
        usd_per_hour=price,
        pages_per_second=rate,
        basis="; ".join([f"{rate:.2f} pages/s a shard ({rate_from})", *basis]),
    )


def estimate_charge(plan: Plan, options: Options) -> dict[str, Any] | None:
    """What a service will charge for a plan, in dollars; None where no price per page was given."""
    price = float(options.engine_options.get("price_per_page", 0))
    if not price:
        return None
    pages, unknown = count_pages(plan)
    basis = f"{'about ' if unknown else ''}{plural(pages, 'page')} at {format_usd(price)}"
    if unknown:
        basis += f"; {plural(unknown, 'document')} of unknown length, taken for {MANY_FORMATS_PAGES} pages each"
    return {"pages": pages, "usd": pages * price, "basis": basis}


def run_cost(run: BatchRun, now: datetime | None = None) -> Cost | None:
    """What a run has cost so far, over all its jobs; None where Batch has forgotten them or none has started."""
    now = now or datetime.now(UTC)
    started: list[tuple[JobRecord, Attempt]] = []
    forgotten = 0
    for job in run.record.jobs:
        children = run.children(job)
        forgotten += not children
        started += [(job, attempt) for child in children for attempt in child.attempts if attempt.started]
    if not started:
        return None
    cost = price_attempts(run.aws, started, now)
    if forgotten:
        cost.notes.append(f"without {plural(forgotten, 'earlier job')}, which AWS Batch has forgotten")
    return cost


def price_attempts(aws: Aws, started: Sequence[tuple[JobRecord, Attempt]], now: datetime) -> Cost:
    """Adds up attempts that have started. One that still runs counts until `now`."""
    places = _find_instances(aws, (attempt.instance for _, attempt in started))
    types = {kind for job, _ in started if job.spot for kind in job.instance_types if kind != FARGATE}
    begin = min(attempt.started for _, attempt in started if attempt.started)
    history = _History.fetch(aws, sorted(types), begin, now) if types else None
    by_instance: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    notes: dict[str, None] = {}
    from_history = from_table = False
    for job, attempt in started:
        assert attempt.started
        kind, zone = places.get(attempt.instance or "", (None, None))
        if FARGATE in job.instance_types:
            kind = FARGATE
        end = attempt.stopped or now
        seconds = max(0.0, (end - attempt.started).total_seconds())
        price = history.price(job, kind, zone, attempt.started) if history and job.spot and kind != FARGATE else None
        from_history |= price is not None
        from_table |= price is None
        if price is None:
            price = table_price(job, kind)
        if kind is None:
            notes["instances could not be found out: priced as the mean of those offered"] = None
        entry = by_instance[kind or "?"]
        entry[0] += seconds
        entry[1] += seconds / 3600 * price
    return Cost(
        usd=round(sum(usd for _, usd in by_instance.values()), 9),
        seconds=round(sum(seconds for seconds, _ in by_instance.values()), 1),
        prices=" and ".join([HISTORY] * from_history + [TABLE] * from_table),
        instances=[
            Share(instance=kind, seconds=round(seconds, 1), usd=round(usd, 9))
            for kind, (seconds, usd) in sorted(by_instance.items())
        ],
        notes=list(notes),
    )


def table_price(job: JobRecord | JobDefinition, kind: str | None) -> float:
    """USD an hour for one shard, by the shipped table; without a `kind` the mean of the instances it may run on."""
    if FARGATE in job.instance_types:
        price = job.vcpus * FARGATE_VCPU_HOUR + job.memory / 1024 * FARGATE_GIB_HOUR
        return price * (FARGATE_SPOT_SHARE if job.spot else 1.0)
    kinds = [kind] if kind in INSTANCES else [kind for kind in job.instance_types if kind in INSTANCES]
    if not kinds:
        kinds = ["g6.xlarge" if job.gpus else "g4dn.xlarge"]  # an instance of another family: better than nothing
    prices = [INSTANCES[kind].on_demand * _share(job, kind) for kind in kinds]
    return sum(prices) / len(prices) * (SPOT_SHARE if job.spot else 1.0)


# ---- helpers


def _share(job: JobRecord | JobDefinition, kind: str) -> float:
    """Of an instance, that a shard keeps others from using."""
    instance = INSTANCES.get(kind)
    if instance is None:
        return 1.0
    gpus = job.gpus / instance.gpus if instance.gpus else 0.0
    return min(1.0, max(job.vcpus / instance.vcpus, job.memory / instance.memory, gpus))


class _History:
    """Spot prices over time, by instance type and zone."""

    def __init__(self, prices: dict[tuple[str, str], list[tuple[datetime, float]]]) -> None:
        self._prices = {place: sorted(points) for place, points in prices.items()}

    @classmethod
    def fetch(cls, aws: Aws, types: list[str], begin: datetime, end: datetime) -> _History | None:
        """None where the credentials don't allow it."""
        prices: dict[tuple[str, str], list[tuple[datetime, float]]] = defaultdict(list)
        try:
            for page in aws.pages(
                "ec2",
                "describe_spot_price_history",
                InstanceTypes=types,
                ProductDescriptions=["Linux/UNIX"],
                StartTime=begin - timedelta(hours=1),
                EndTime=end,
            ):
                for point in page["SpotPriceHistory"]:
                    place = point["InstanceType"], point["AvailabilityZone"]
                    prices[place].append((point["Timestamp"], float(point["SpotPrice"])))
        except AwsError:
            return None
        return cls(prices) if prices else None

    def price(self, job: JobRecord, kind: str | None, zone: str | None, when: datetime) -> float | None:
        """USD an hour for one shard: the mean over what is not known."""
        found = [
            self._at(points, when) * _share(job, type_)
            for (type_, place), points in self._prices.items()
            if (kind is None or type_ == kind) and (zone is None or place == zone)
        ]
        return sum(found) / len(found) if found else None

    @staticmethod
    def _at(points: list[tuple[datetime, float]], when: datetime) -> float:
        return points[max(0, bisect_right(points, (when, float("inf"))) - 1)][1]


def _find_instances(aws: Aws, arns: Iterable[str | None]) -> dict[str, tuple[str | None, str | None]]:
    """(instance type, zone) of ECS container instances; those that ECS has forgotten, or won't tell, are left out."""
    by_cluster: dict[str, list[str]] = defaultdict(list)
    for arn in dict.fromkeys(arns):
        if arn and (match := re.fullmatch(r"arn:[^:]+:ecs:[^:]+:\d+:container-instance/([^/]+)/[^/]+", arn)):
            by_cluster[match[1]].append(arn)
    places: dict[str, tuple[str | None, str | None]] = {}
    try:
        for cluster, instances in by_cluster.items():
            for some in chunks(instances, 100):
                answer = aws.call("ecs", "describe_container_instances", cluster=cluster, containerInstances=some)
                places |= {found["containerInstanceArn"]: _place(found) for found in answer["containerInstances"]}
    except AwsError:
        pass  # the price is then the mean of the types offered, and the cost says so
    return places


def _place(instance: dict[str, Any]) -> tuple[str | None, str | None]:
    attributes = {attribute["name"]: attribute.get("value") for attribute in instance.get("attributes", [])}
    return attributes.get("ecs.instance-type"), attributes.get("ecs.availability-zone")
