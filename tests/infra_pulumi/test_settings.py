"""Configuration that can't work is refused, by the name of its key."""

from __future__ import annotations

from typing import Any

import pytest

from infra_pulumi.settings import Settings, SettingsError, load
from tests.infra_pulumi.conftest import GITHUB, SECRET, during, stack_file

REGION = {"aws:region": "us-east-1"}


def _load(config: dict[str, Any], stack: str = "dev") -> Settings:
    loaded: list[Settings] = []
    during(stack, config, lambda: loaded.append(load()))
    return loaded[0]


@pytest.mark.parametrize("stack", ["dev", "prod"])
def test_the_stacks_that_come_along_are_valid(stack: str) -> None:
    settings = _load(stack_file(stack), stack)
    assert settings.network.mode == {"dev": "public", "prod": "private"}[stack]
    assert settings.protect is (stack == "prod")


def test_nothing_but_the_region_has_to_be_set() -> None:
    settings = _load(REGION)
    assert (settings.network.mode, settings.compute.on_demand, settings.github) == ("public", False, None)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"netwerk": {"mode": "public"}}, "pagefleet:netwerk: unknown key"),
        ({"network": {"mod": "public"}}, "pagefleet:network.mod: unknown key"),
        ({"stack": "other"}, "pagefleet:stack: unknown key"),
        ({"aws:region": "us-east-9"}, "aws:region: is 'us-east-9'; choose one of"),
        ({"network": {"mode": "secret"}}, "pagefleet:network.mode: "),
        ({"network": {"cidr": "10.42.0.0/33"}}, "pagefleet:network.cidr: "),
        ({"network": {"cidr": "10.42.0.0/24"}}, "pagefleet:network: cidr is 10.42.0.0/24; it must be a /16 to /20"),
        (
            {"network": {"zones": 2, "publicSubnets": ["10.42.0.0/20", "10.42.8.0/21"]}},
            "pagefleet:network: subnets 10.42.0.0/20 and 10.42.8.0/21 overlap",
        ),
        (
            {"network": {"zones": 1, "publicSubnets": ["10.43.0.0/20"]}},
            "pagefleet:network: subnet 10.43.0.0/20 lies outside cidr 10.42.0.0/16",
        ),
        ({"network": {"publicSubnets": ["10.42.0.0/20"]}}, "publicSubnets has 1 entries"),
        ({"network": {"mode": "existing"}}, "mode existing needs vpcId and subnetIds"),
        ({"network": {"mode": "public", "vpcId": "vpc-0a"}}, "vpcId has no meaning in mode public"),
        (
            {"network": {"mode": "existing", "vpcId": "vpc-0a", "subnetIds": ["subnet-0a"], "zones": 2}},
            "zones has no meaning in mode existing",
        ),
        ({"compute": {"gpuInstanceTypes": []}}, "pagefleet:compute.gpuInstanceTypes: no instance type"),
        ({"compute": {"gpuInstanceTypes": ["p3.2xlarge"]}}, "unknown instance types p3.2xlarge; known are g6.xlarge"),
        ({"compute": {"gpuMaxVcpus": 0}}, "pagefleet:compute.gpuMaxVcpus: "),
        (
            {"jobs": {"ocrGpu": {"memory": 16384, "timeoutMinutes": 60}}},
            "jobs.ocrGpu asks for 4 vCPUs and 16384 MiB; g6.xlarge of compute.gpuInstanceTypes has 4 and 14336",
        ),
        (
            {"jobs": {"ocrCpu": {"vcpus": 4, "memory": 4096, "timeoutMinutes": 60}}},
            "with 4 vCPUs, 8192 to 30720 MiB in steps of 1024",
        ),
        ({"jobs": {"ocrCpu": {"vcpus": 3, "memory": 8192, "timeoutMinutes": 60}}}, "vCPUs must be one of 1, 2, 4"),
        (
            {"jobs": {"trainCpu": {"memory": 16384, "timeoutMinutes": 60, "sharedMemory": 1024}}},
            "jobs.trainCpu.sharedMemory: Fargate has none",
        ),
        ({"github": {**GITHUB, "repository": "pagefleet"}}, "pagefleet:github.repository: "),
        ({"github": {"repository": "octo-org/pagefleet"}}, "pagefleet:github.ownerId: "),
        ({"alerts": {"emails": ["nobody"]}}, "pagefleet:alerts.emails.0: "),
        ({"alerts": {"logDays": 31}}, "pagefleet:alerts.logDays: is 31; CloudWatch accepts"),
        ({"upstageSecretArn": "my-key"}, "pagefleet:upstageSecretArn: "),
        ({"upstageSecretArn": SECRET, "upstageSecret": True}, "leave one out"),
        ({"protect": "perhaps"}, "pagefleet:protect: "),
    ],
)
def test_what_cannot_work_is_refused_by_name(config: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        _load({**REGION, **config})
    assert told in str(refusal.value)


@pytest.mark.parametrize("stack", ["dev-eu", "Dev", "2dev", "d" * 21])
def test_a_stacks_name_that_could_begin_like_anothers_is_refused(stack: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        _load(REGION, stack)
    assert str(refusal.value).startswith(f"the stack's name: is {stack!r}; it must be a letter and up to 19 letters")


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as refusal:
        _load({**REGION, "netwerk": {}, "alerts": {"logDays": 31}})
    assert len(str(refusal.value).splitlines()) == 2


def test_a_missing_region_says_how_to_set_it() -> None:
    with pytest.raises(SettingsError, match="pulumi config set aws:region"):
        _load({})


def test_settings_are_frozen() -> None:
    settings = _load(REGION)
    with pytest.raises(ValueError, match="frozen"):
        settings.protect = True  # type: ignore[misc]
