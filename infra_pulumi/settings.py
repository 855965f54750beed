"""The stack's configuration, read once, checked as a whole, and frozen; nobody else reads it.

Keys are written in camelCase in Pulumi.<stack>.yaml: `pagefleet:network: {mode: private}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from ipaddress import IPv4Network
from itertools import combinations
from typing import Annotated, Any, Literal

import pulumi
import pulumi.runtime.config
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from infra_pulumi.instances import FARGATE_MEMORY, GPU_INSTANCES

# Commercial regions where AWS Batch runs and G instances are offered; an opt-in region must be enabled first.
REGIONS = (
    *("us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1"),
    *("eu-central-1", "eu-north-1", "eu-south-1", "eu-south-2", "eu-west-1", "eu-west-2", "eu-west-3"),
    *("ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-southeast-1", "ap-southeast-2"),
)
# https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutRetentionPolicy.html, up to two years
LOG_DAYS = (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731)
OTHERS_KEYS = {"stack": "the stack's name", "region": "aws:region"}  # what isn't of our own configuration

Days = Annotated[int, Field(ge=1, le=3650)]
Port = Annotated[int, Field(ge=1, le=65535)]
Email = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")]


class SettingsError(pulumi.RunError):
    """The configuration can't be used; the message names each key."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel)


class NetworkSettings(Section):
    """`public` costs nothing; `private` a NAT gateway (about $33 a month); `existing` takes what is there."""

    mode: Literal["public", "private", "existing"] = "public"
    cidr: IPv4Network = IPv4Network("10.42.0.0/16")
    zones: Annotated[int, Field(ge=1, le=6)] = 3  # availability zones: more of them find more Spot capacity
    public_subnets: tuple[IPv4Network, ...] = ()  # one per zone; default: /20 cuts of `cidr`
    private_subnets: tuple[IPv4Network, ...] = ()
    vpc_id: Annotated[str, Field(pattern=r"^vpc-[0-9a-f]+$")] | None = None  # of `existing`, like the rest
    subnet_ids: tuple[Annotated[str, Field(pattern=r"^subnet-[0-9a-f]+$")], ...] = ()
    assign_public_ip: bool = False  # whether the given subnets are public
    egress_ports: tuple[Port, ...] = (443,)  # TCP; an `openai` engine's own server may listen elsewhere

    @model_validator(mode="after")
    def _mode_fits(self) -> NetworkSettings:
        made = {"cidr", "zones", "public_subnets", "private_subnets"}
        given = {"vpc_id", "subnet_ids", "assign_public_ip"}
        unfit = {"public": given | {"private_subnets"}, "private": given, "existing": made}[self.mode]
        for name in sorted(unfit & self.model_fields_set):
            raise ValueError(f"{to_camel(name)} has no meaning in mode {self.mode}: leave it out, or change mode")
        if self.mode == "existing" and not (self.vpc_id and self.subnet_ids):
            raise ValueError("mode existing needs vpcId and subnetIds")
        return self

    @model_validator(mode="after")
    def _subnets_fit(self) -> NetworkSettings:
        if self.mode == "existing":
            return self
        if not 16 <= self.cidr.prefixlen <= 20:
            raise ValueError(f"cidr is {self.cidr}; it must be a /16 to /20")
        for name in ("public_subnets", "private_subnets"):
            subnets = getattr(self, name)
            if subnets and len(subnets) != self.zones:
                raise ValueError(
                    f"{to_camel(name)} has {len(subnets)} entries; there must be one for each of {self.zones} zones"
                )
        subnets = self.all_subnets()
        for subnet in subnets:
            if not subnet.subnet_of(self.cidr):
                raise ValueError(f"subnet {subnet} lies outside cidr {self.cidr}")
        for one, other in combinations(subnets, 2):
            if one.overlaps(other):
                raise ValueError(f"subnets {one} and {other} overlap")
        return self

    def public(self) -> tuple[IPv4Network, ...]:
        return self.public_subnets or self._cuts()[: self.zones]

    def private(self) -> tuple[IPv4Network, ...]:
        if self.mode != "private":
            return ()
        return self.private_subnets or self._cuts()[8 : 8 + self.zones]

    def all_subnets(self) -> tuple[IPv4Network, ...]:
        return self.public() + self.private()

    def _cuts(self) -> tuple[IPv4Network, ...]:
        """Sixteen equal parts: the first half for public subnets, the second for private ones."""
        return tuple(self.cidr.subnets(prefixlen_diff=4))


class StorageSettings(Section):
    outputs_days: Days | None = None  # runs are deleted after so many days; absent: never
    noncurrent_days: Days = 30  # overwritten or deleted inputs can be brought back for so long


class ComputeSettings(Section):
    gpu_instance_types: tuple[str, ...] = (
        *("g6.xlarge", "g5.xlarge", "g6e.xlarge", "g6.2xlarge", "g5.2xlarge"),
        "g4dn.xlarge",
    )
    gpu_max_vcpus: Annotated[int, Field(ge=4)] = 32
    cpu_max_vcpus: Annotated[int, Field(ge=1)] = 64
    on_demand: bool = False  # where Spot has no capacity, take machines at full price
    root_gib: Annotated[int, Field(ge=100, le=2000)] = 100  # images of 20 GB and their layers need room
    capacity_hours: Annotated[int, Field(ge=1, le=24)] = 24  # a job without capacity is cancelled after so long

    @field_validator("gpu_instance_types")
    @classmethod
    def _types_known(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        if not types:
            raise ValueError("no instance type: name at least one, several let Spot find one")
        if unknown := [name for name in types if name not in GPU_INSTANCES]:
            raise ValueError(f"unknown instance types {', '.join(unknown)}; known are {', '.join(GPU_INSTANCES)}")
        return types


class JobSettings(Section):
    """What one job asks for. An attempt that takes longer than the timeout is ended, and not tried again."""

    vcpus: Annotated[int, Field(ge=1)] = 4
    memory: Annotated[int, Field(ge=2048)]  # MiB
    timeout_minutes: Annotated[int, Field(ge=1, le=14 * 24 * 60)]
    shared_memory: Annotated[int, Field(ge=64)] | None = None  # MiB of /dev/shm, out of `memory`; GPU jobs only


class JobsSettings(Section):
    # 14,336 MiB is the most that fits a machine of 16 GiB.
    ocr_gpu: JobSettings = JobSettings(memory=14336, timeoutMinutes=360, sharedMemory=2048)
    ocr_cpu: JobSettings = JobSettings(memory=8192, timeoutMinutes=360)
    train_gpu: JobSettings = JobSettings(memory=14336, timeoutMinutes=24 * 60, sharedMemory=4096)
    train_cpu: JobSettings = JobSettings(memory=16384, timeoutMinutes=24 * 60)


class GitHubSettings(Section):
    """The repository whose workflows may act here. Both ids: `gh api repos/OWNER/NAME --jq '.owner.id, .id'`."""

    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$")]  # in its exact case
    owner_id: Annotated[int, Field(ge=1)]
    repository_id: Annotated[int, Field(ge=1)]
    branch: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]+$")] = "main"  # whose workflows may start runs
    state_bucket: Annotated[str, Field(pattern=r"^[a-z0-9.-]{3,63}$")]  # where Pulumi keeps the stacks' state
    # The KMS key of the state's secrets, where Pulumi isn't given a passphrase.
    state_key_arn: Annotated[str, Field(pattern=r"^arn:.+:kms:.+:key/.+$")] | None = None
    oidc_provider_arn: Annotated[str, Field(pattern=r"^arn:.+:oidc-provider/.+$")] | None = None  # if there is one

    def subjects(self, context: str) -> list[str]:
        """The exact `sub` claims of `context`: by names, and with immutable ids, as newer repositories send it."""
        owner, name = self.repository.split("/")
        return [
            f"repo:{owner}/{name}:{context}",
            f"repo:{owner}@{self.owner_id}/{name}@{self.repository_id}:{context}",
        ]


class AlertSettings(Section):
    emails: tuple[Email, ...] = ()  # each must confirm the subscription that AWS sends
    monthly_usd: Annotated[float, Field(gt=0)] = 50
    log_days: int = 30

    @field_validator("log_days")
    @classmethod
    def _days_accepted(cls, days: int) -> int:
        if days not in LOG_DAYS:
            raise ValueError(f"is {days}; CloudWatch accepts {', '.join(map(str, LOG_DAYS))}")
        return days


class Settings(Section):
    stack: str  # a part of every name
    region: str
    protect: bool = False  # buckets and registry can't be destroyed
    network: NetworkSettings = NetworkSettings()
    storage: StorageSettings = StorageSettings()
    compute: ComputeSettings = ComputeSettings()
    jobs: JobsSettings = JobsSettings()
    github: GitHubSettings | None = None
    alerts: AlertSettings = AlertSettings()
    # A secret whose whole value is the key of the Upstage API; its job definition is refused where it has no value.
    upstage_secret_arn: Annotated[str, Field(pattern=r"^arn:.+:secretsmanager:.+:secret:.+$")] | None = None
    # Or a secret of the stack's own, made without a value: runs of engine `upstage` alone read it.
    upstage_secret: bool = False

    @field_validator("stack")
    @classmethod
    def _stack_is_no_others_beginning(cls, stack: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9]{0,19}", stack):
            raise ValueError(
                f"is {stack!r}; it must be a letter and up to 19 letters and digits, lower-case, without `-`:"
                " the roles of a stack `dev` reach what is named `pagefleet-dev-…`"
            )
        return stack

    @field_validator("region")
    @classmethod
    def _region_known(cls, region: str) -> str:
        if region not in REGIONS:
            raise ValueError(f"is {region!r}; choose one of {', '.join(REGIONS)}")
        return region

    @model_validator(mode="after")
    def _one_secret(self) -> Settings:
        if self.upstage_secret and self.upstage_secret_arn:
            raise ValueError("upstageSecret makes a secret and upstageSecretArn names another: leave one out")
        return self

    @model_validator(mode="after")
    def _jobs_fit(self) -> Settings:
        for key, job in (("jobs.ocrGpu", self.jobs.ocr_gpu), ("jobs.trainGpu", self.jobs.train_gpu)):
            for name in self.compute.gpu_instance_types:
                machine = GPU_INSTANCES[name]
                if job.vcpus > machine.vcpus or job.memory > machine.usable_memory:
                    raise ValueError(
                        f"{key} asks for {job.vcpus} vCPUs and {job.memory} MiB; {name} of compute.gpuInstanceTypes has"
                        f" {machine.vcpus} and {machine.usable_memory} to give: the job would wait for ever"
                    )
            if job.vcpus > self.compute.gpu_max_vcpus:
                raise ValueError(f"{key}.vcpus is {job.vcpus}, more than compute.gpuMaxVcpus")
            if job.shared_memory and job.shared_memory > job.memory // 2:
                raise ValueError(f"{key}.sharedMemory is {job.shared_memory}, more than half of its memory")
        for key, job in (("jobs.ocrCpu", self.jobs.ocr_cpu), ("jobs.trainCpu", self.jobs.train_cpu)):
            if job.memory not in FARGATE_MEMORY.get(job.vcpus, ()):
                raise ValueError(
                    f"{key} asks for {job.vcpus} vCPUs and {job.memory} MiB, which Fargate doesn't offer:"
                    f" {_fargate_offers(job.vcpus)}"
                )
            if job.vcpus > self.compute.cpu_max_vcpus:
                raise ValueError(f"{key}.vcpus is {job.vcpus}, more than compute.cpuMaxVcpus")
            if job.shared_memory is not None:
                raise ValueError(f"{key}.sharedMemory: Fargate has none, leave it out")
        return self


def load() -> Settings:
    """The settings of the stack that is being deployed. Raises: SettingsError."""
    values = {name: _value(text) for name, text in _own_config()}
    region = pulumi.Config("aws").get("region")
    if region is None:
        raise SettingsError("aws:region is not set: run `pulumi config set aws:region us-east-1`")
    for name in ("stack", "region"):
        if name in values:
            raise SettingsError(f"pagefleet:{name}: unknown key")
    try:
        return Settings.model_validate({**values, "stack": pulumi.get_stack(), "region": region})
    except ValidationError as error:
        raise SettingsError("\n".join(_told(details) for details in error.errors())) from None


def _own_config() -> Iterable[tuple[str, Any]]:
    """All keys of this project: `pulumi.Config` can't list them, and a misspelt one must not go unseen."""
    runtime = pulumi.runtime.config
    prefix = f"{pulumi.get_project()}:"
    for key, text in {**runtime.get_config_env(), **runtime.CONFIG.get()}.items():
        if key.startswith(prefix):
            yield key.removeprefix(prefix), text


def _value(text: Any) -> Any:
    """Pulumi hands objects, numbers and booleans over as JSON, strings as they are."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _told(details: Any) -> str:
    path = ".".join(map(str, details["loc"]))
    key = OTHERS_KEYS.get(path, f"pagefleet:{path}" if path else "pagefleet")
    if details["type"] == "extra_forbidden":
        return f"{key}: unknown key; infra_pulumi/settings.py describes those there are"
    return f"{key}: {details['msg'].removeprefix('Value error, ')}"


def _fargate_offers(vcpus: int) -> str:
    if vcpus not in FARGATE_MEMORY:
        return f"vCPUs must be one of {', '.join(map(str, FARGATE_MEMORY))}"
    sizes = FARGATE_MEMORY[vcpus]
    return f"with {vcpus} vCPUs, {sizes[0]} to {sizes[-1]} MiB in steps of {sizes.step}"
