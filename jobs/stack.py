"""The stack description: what the Pulumi program has deployed, as it publishes it to the SSM parameter
`/pagefleet/<stack>`. All that the commands know of AWS resources comes from here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.aws import Aws, AwsError
from jobs.errors import JobError, UsageError

SCHEMA_VERSION = 1


class _Part(BaseModel):
    """What a newer program adds is passed over; what is missing is an error."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Buckets(_Part):
    inputs: str
    outputs: str


class Image(_Part):
    repository: str  # <account>.dkr.ecr.<region>.amazonaws.com/<name>
    tag: str  # of the tree; images are tagged <target>-<tag>
    engines: dict[str, str] = {}  # by target: whose weights its image brings along, and no others
    vllm: bool = False  # whether the GPU image has it
    cache: str = ""  # repository of the build's cache


class Queue(_Part):
    name: str
    arn: str


class JobDefinition(_Part):
    name: str
    arn: str  # with its revision
    queue: str  # key of `Stack.queues`
    image: str  # <repository>:<target>-<tag>
    vcpus: float
    memory: int  # MiB
    gpus: int = 0
    spot: bool = True
    timeout: int | None = None  # seconds of one attempt; a job may be given less
    instance_types: list[str]  # `fargate` where there is no instance


class Network(_Part):
    mode: Literal["public", "private", "existing"]
    vpc: str
    subnets: list[str]


class Stack(_Part):
    stack: str
    region: str
    account: str
    buckets: Buckets
    log_group: str
    image: Image
    queues: dict[str, Queue]
    job_definitions: dict[str, JobDefinition]
    network: Network
    upstage_secret: str | None = None  # ARN of the stack's own, where it has one
    idle_monthly_usd: dict[str, float] = {}

    def run_uri(self, run_id: str) -> str:
        return f"s3://{self.buckets.outputs}/runs/{run_id}"

    def definition(self, kind: str) -> JobDefinition:
        """Raises: UsageError where the stack has none of that kind."""
        if kind not in self.job_definitions:
            has = ", ".join(sorted(self.job_definitions))
            raise UsageError(f"stack {self.stack} has no job definition {kind}: it has {has}")
        return self.job_definitions[kind]


def parameter_name(stack: str) -> str:
    return f"/pagefleet/{stack}"


def load_stack(aws: Aws, name: str) -> Stack:
    """The description of a deployed stack.

    Raises: UsageError where no such stack is deployed in this region; JobError where it can't be understood.
    """
    parameter = parameter_name(name)
    try:
        answer = aws.call("ssm", "get_parameter", Name=parameter)
    except AwsError as error:
        if error.code != "ParameterNotFound":
            raise
        where = f" in {aws.region}" if aws.region else ""
        raise UsageError(
            f"stack {name} is not deployed{where}: there is no SSM parameter {parameter}. Deploy it with "
            f"`pulumi up --stack {name}`, or name another with --stack or --region"
        ) from error
    return parse_stack(answer["Parameter"]["Value"], parameter)


def parse_stack(text: str, where: str) -> Stack:
    """Raises: JobError naming the fields that are missing or wrong."""
    import json

    try:
        value = json.loads(text)
    except ValueError as error:
        raise JobError(f"the stack description in {where} is not JSON ({error}): deploy the stack again") from error
    version = value.get("schema") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise JobError(
            f"the stack description in {where} has schema {version}, and this pagefleet understands "
            f"{SCHEMA_VERSION}: install the pagefleet of the revision that was deployed"
        )
    try:
        return Stack.model_validate(value)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise JobError(f"the stack description in {where} is wrong: {wrong}. Deploy the stack again") from error
