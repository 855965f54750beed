"""What a run costs: seconds of its attempts, its share of the instance, the price of that hour."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobs.aws import AwsError
from jobs.batch import Attempt, JobRecord
from jobs.cost import INSTANCES, SPOT_SHARE, count_pages, estimate, price_attempts, table_price
from jobs.plan import Plan, Sharding, make_plan
from jobs.stack import JobDefinition
from jobs.summary import format_cost, format_usd

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
CLUSTER = "arn:aws:ecs:us-east-1:123456789012:container-instance/cluster"


def job(**more: Any) -> JobRecord:
    given: dict[str, Any] = {
        "id": "1", "name": "pagefleet-x", "queue": "q", "kind": "ocr-gpu", "definition": "d", "vcpus": 4,
        "memory": 14336, "gpus": 1, "spot": True, "instance_types": ["g6.xlarge", "g5.xlarge"], "submitted": NOON,
        "shards": 1,
    }  # fmt: skip
    return JobRecord(**(given | more))


def attempt(hours: float, start: float = 0.0, instance: str | None = None) -> Attempt:
    started = NOON + timedelta(hours=start)
    return Attempt(started, started + timedelta(hours=hours), 0, "", None, instance and f"{CLUSTER}/{instance}")


class Prices:
    """AWS, as far as prices go: (type, zone, hours after noon, price); None where asking is denied."""

    def __init__(
        self, history: list[tuple[str, str, float, float]] | None, instances: dict[str, tuple[str, str]] | None = None
    ) -> None:
        self._history = history
        self._instances = instances or {}

    def pages(self, service: str, operation: str, **arguments: Any) -> Any:
        assert operation == "describe_spot_price_history"
        if self._history is None:
            raise AwsError("denied", "UnauthorizedOperation")
        points = [
            {
                "InstanceType": kind,
                "AvailabilityZone": zone,
                "Timestamp": NOON + timedelta(hours=hours),
                "SpotPrice": str(price),
            }
            for kind, zone, hours, price in self._history
            if kind in arguments["InstanceTypes"]
        ]
        yield {"SpotPriceHistory": points[:1]}
        yield {"SpotPriceHistory": points[1:]}

    def call(self, service: str, operation: str, **arguments: Any) -> Any:
        assert operation == "describe_container_instances"
        found = []
        for arn in arguments["containerInstances"]:
            if place := self._instances.get(arn.rpartition("/")[2]):
                attributes = dict(zip(("ecs.instance-type", "ecs.availability-zone"), place, strict=True))
                found.append(
                    {
                        "containerInstanceArn": arn,
                        "attributes": [{"name": name, "value": value} for name, value in attributes.items()],
                    }
                )
        return {"containerInstances": found}


def cost(prices: Prices, *attempts: Attempt, now: datetime = NOON, **more: Any) -> Any:
    return price_attempts(prices, [(job(**more), one) for one in attempts], now)  # type: ignore[arg-type]


HISTORY = [
    ("g6.xlarge", "us-east-1a", -5.0, 0.30),
    ("g6.xlarge", "us-east-1a", 1.0, 0.60),
    ("g6.xlarge", "us-east-1b", -5.0, 0.50),
    ("g5.xlarge", "us-east-1a", -5.0, 0.40),
]


def test_the_price_is_that_of_the_instance_its_zone_and_its_hour() -> None:
    prices = Prices(HISTORY, {"one": ("g6.xlarge", "us-east-1a"), "two": ("g6.xlarge", "us-east-1b")})
    assert cost(prices, attempt(2, instance="one")).usd == pytest.approx(0.60)
    assert cost(prices, attempt(1, start=1.5, instance="one")).usd == pytest.approx(0.60)
    told = cost(prices, attempt(2, instance="one"), attempt(1, instance="two"))
    assert told.usd == pytest.approx(1.10)
    assert (told.seconds, told.prices, told.notes) == (3 * 3600, "Spot price history", [])
    assert [(share.instance, share.seconds) for share in told.instances] == [("g6.xlarge", 3 * 3600)]


def test_of_an_unknown_instance_the_mean_is_taken_and_told() -> None:
    told = cost(Prices(HISTORY), attempt(1, instance="gone"))
    assert told.usd == pytest.approx((0.30 + 0.50 + 0.40) / 3)
    assert "could not be found out" in told.notes[0]


def test_a_shard_pays_for_its_share_of_a_larger_instance() -> None:
    history = [("g4dn.4xlarge", "a", -5.0, 1.0)]
    prices = Prices(history, {"one": ("g4dn.4xlarge", "a")})
    types = {"instance_types": ["g4dn.4xlarge"]}
    assert cost(prices, attempt(1, instance="one"), gpus=0, **types).usd == pytest.approx(4 / 16)
    assert cost(prices, attempt(1, instance="one"), gpus=0, memory=32768, **types).usd == pytest.approx(0.5)
    assert cost(prices, attempt(1, instance="one"), gpus=1, **types).usd == pytest.approx(1.0)


def test_the_table_stands_in_where_history_is_denied_and_says_so() -> None:
    told = cost(Prices(None, {"one": ("g6.xlarge", "a")}), attempt(1, instance="one"))
    assert told.usd == pytest.approx(INSTANCES["g6.xlarge"].on_demand * SPOT_SHARE)
    assert told.prices.startswith("price table of ")


def test_on_demand_is_priced_as_listed() -> None:
    told = cost(Prices(HISTORY, {"one": ("g6.xlarge", "a")}), attempt(1, instance="one"), spot=False)
    assert told.usd == pytest.approx(0.8048)


def test_fargate_is_priced_by_vcpu_and_memory() -> None:
    told = cost(Prices(None), attempt(1), spot=False, gpus=0, vcpus=4, memory=8192, instance_types=["fargate"])
    assert told.usd == pytest.approx(4 * 0.04048 + 8 * 0.004445)
    assert told.instances[0].instance == "fargate"


def test_an_attempt_that_still_runs_counts_until_now() -> None:
    running = Attempt(NOON, None, None, "", None, None)
    assert cost(Prices(HISTORY), running, now=NOON + timedelta(minutes=30)).seconds == 1800


def plan(*uris: str, **sharding: Any) -> Plan:
    return make_plan(uris, Sharding(**sharding))


def test_pages_of_a_plan() -> None:
    assert count_pages(plan("s3://b/a.png", "s3://b/b.pdf", "s3://b/c.jpg")) == (12, 1)
    assert count_pages(plan("s3://b/a.pdf", "s3://b/b.pdf", pages="1-3,7")) == (8, 0)


def definition(**more: Any) -> JobDefinition:
    given: dict[str, Any] = {"name": "n", "arn": "a", "queue": "cpu", "image": "r/p:cpu-t", "vcpus": 4, "memory": 8192}
    return JobDefinition(**(given | {"instance_types": ["fargate"]} | more))


def test_an_estimate_is_pages_times_rate_times_price() -> None:
    shape = definition(spot=False)
    told = estimate(plan(*(f"s3://b/{n}.png" for n in range(7200)), shards=2), "any", shape, 2.0, "run one")
    assert told.usd == pytest.approx(table_price(shape, None))
    assert (told.hours, told.wall_hours) == (pytest.approx(1.0), pytest.approx(0.5))
    assert "2.00 pages/s a shard (run one)" in told.basis


def test_an_estimate_says_of_which_documents_it_had_to_guess_the_pages() -> None:
    told = estimate(plan("s3://b/a.png", "s3://b/b.pdf"), "rapidocr", definition())
    assert told.pages == 11
    assert "1 document of unknown length, taken for 10 pages each: --pages-per-task counts those" in told.basis
    assert "unknown" not in estimate(plan("s3://b/a.png"), "rapidocr", definition()).basis
    asked = make_plan(["s3://b/b.pdf"], Sharding(pages_per_task=50), count_pages=lambda _: 40)  # not worth cutting
    assert estimate(asked, "rapidocr", definition()).basis.endswith("taken for 10 pages each")


def test_what_was_never_measured_is_not_made_up() -> None:
    told = estimate(plan("s3://b/a.png"), "hunyuan", definition(gpus=1, instance_types=["g6.xlarge"]))
    assert (told.usd, told.hours) == (None, None)
    assert "before a first run" in told.basis


def test_money_as_people_write_it() -> None:
    told = {12.345: "$12.35", 0: "$0.00", 0.1: "$0.10", 0.0421: "$0.042", 0.00421: "$0.0042", 1e-6: "less than $0.0001"}
    assert {usd: format_usd(usd) for usd in told} == told
    assert format_cost({"usd": 1.5, "usd_per_1000_pages": 0.3, "prices": "x"}) == "$1.50 ($0.30 per 1,000 pages; x)"
    assert format_cost({"usd": 1.5}) == "$1.50"
