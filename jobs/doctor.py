"""What keeps a stack from working, and a job from starting: each finding with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from jobs.aws import Aws, AwsError, Credentials, Denied
from jobs.batch import Child, JobRecord
from jobs.errors import JobError
from jobs.stack import Stack, load_stack, parameter_name
from jobs.wording import plural

# Codes of AWS Service Quotas: what they limit, in vCPUs, and the service.
SPOT_GPU_QUOTA = ("ec2", "L-3819A6DF", "All G and VT Spot Instance Requests")
ON_DEMAND_GPU_QUOTA = ("ec2", "L-DB2E81BA", "Running On-Demand G and VT instances")
FARGATE_SPOT_QUOTA = ("fargate", "L-36FBB829", "Fargate Spot vCPU resource count")

# statusReason of a RUNNABLE job begins with one of these:
# https://docs.aws.amazon.com/batch/latest/userguide/job_stuck_in_runnable.html
_REASONS = {
    "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY": (
        "AWS has no such instance free now. It is tried again by itself; more instance types, more zones or the "
        "on-demand fallback (`pulumi config`) help"
    ),
    "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE": (
        "the compute environment's maximum of vCPUs is below what one job asks for: raise it and `pulumi up`"
    ),
    "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT": (
        "no instance type offered has the vCPUs, memory and GPUs that the job asks for: offer larger ones, `pulumi up`"
    ),
    "MISCONFIGURATION:EC2_INSTANCE_CONFIGURATION_UNSUPPORTED": (
        "the launch template or image does not go with the instance types: correct it and `pulumi up`"
    ),
    "MISCONFIGURATION:SERVICE_ROLE_PERMISSIONS": (
        "AWS Batch may not start instances: the service-linked role AWSServiceRoleForBatch is missing or was changed"
    ),
    "ACTION_REQUIRED": "AWS Batch wants a person to act, as its reason says",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `ok` is None where it could not be found out."""

    name: str
    ok: bool | None
    detail: str
    fix: str = ""


def check_stack(aws: Aws, name: str) -> Iterator[Check]:
    """Everything that a run needs of a stack. Stops where nothing further can be asked."""
    try:
        who = aws.call("sts", "get_caller_identity")
    except AwsError as error:
        if isinstance(error, Credentials):
            yield Check("credentials", False, str(error), "mend that, as it says, then `pagefleet doctor` again")
        else:
            answers = "see to it that AWS answers `aws sts get-caller-identity`, then `pagefleet doctor` again"
            yield Check("AWS", False, str(error), answers)
        return
    yield Check("credentials", True, who["Arn"])
    try:
        stack = load_stack(aws, name)
    except JobError as error:
        fix = f"`pulumi up --stack {name}` publishes {parameter_name(name)}: docs/bootstrap.md has every step before it"
        yield Check("stack", False, str(error), fix)
        return
    yield Check("stack", True, f"{stack.stack} in {stack.region}, network {stack.network.mode}")
    if stack.account != who["Account"]:
        yield Check(
            "account", False, f"the stack is in {stack.account}, the credentials are of {who['Account']}",
            "set AWS_PROFILE to one of the stack's account",
        )  # fmt: skip
    for image in dict.fromkeys(definition.image for definition in stack.job_definitions.values()):
        yield from _guarded(_image_label(image), partial(check_image, aws, image))
    for key in stack.queues:
        yield from _guarded(f"queue {key}", partial(check_queue, aws, stack.queues[key].arn, f"queue {key}"))
    yield from _guarded("subnets", lambda: check_subnets(aws, stack))
    for bucket in (stack.buckets.inputs, stack.buckets.outputs):
        yield from _guarded(f"bucket {bucket}", partial(check_bucket, aws, bucket))
    needed = {False: 0.0, True: 0.0}
    for definition in stack.job_definitions.values():
        if definition.gpus:
            needed[definition.spot] = max(needed[definition.spot], definition.vcpus)
    if needed[True]:
        yield check_quota(aws, SPOT_GPU_QUOTA, needed[True])
    if needed[False]:
        yield check_quota(aws, ON_DEMAND_GPU_QUOTA, needed[False])
    fargate = [d.vcpus for d in stack.job_definitions.values() if d.spot and "fargate" in d.instance_types]
    if fargate:
        yield check_quota(aws, FARGATE_SPOT_QUOTA, max(fargate))


def check_image(aws: Aws, image: str) -> Iterator[Check]:
    """An image of the stack's registry: <account>.dkr.ecr.<region>.amazonaws.com/<repository>:<target>-<tag>."""
    registry, _, name = image.partition("/")
    repository, _, tag = name.partition(":")
    label = _image_label(image)
    try:
        aws.call(
            "ecr",
            "describe_images",
            registryId=registry.partition(".")[0],
            repositoryName=repository,
            imageIds=[{"imageTag": tag}],
        )
    except AwsError as error:
        if error.code not in ("ImageNotFoundException", "RepositoryNotFoundException"):
            raise
        yield Check(
            label, False, f"there is no image {name}", "run the workflow `deploy`, or push it: docs/bootstrap.md"
        )
    else:
        yield Check(label, True, name)


def check_queue(aws: Aws, arn: str, name: str, vcpus: float = 0) -> Iterator[Check]:
    """A queue and its compute environments; `vcpus` is what one job asks for."""
    found = aws.call("batch", "describe_job_queues", jobQueues=[arn])["jobQueues"]
    if not found:
        yield Check(name, False, f"there is no queue {arn}", "`pulumi up` makes it")
        return
    queue = found[0]
    if queue.get("state") != "ENABLED":
        fix = f"`aws batch update-job-queue --job-queue {queue['jobQueueName']} --state ENABLED`"
        yield Check(name, False, f"{queue['jobQueueName']} is {queue.get('state')}", fix)
    elif queue.get("status") == "INVALID":
        reason = queue.get("statusReason") or "it does not say why"
        yield Check(name, False, f"{queue['jobQueueName']} is INVALID: {reason}", "correct that and `pulumi up`")
    else:
        yield Check(name, True, f"{queue['jobQueueName']} is enabled")
    environments = [entry["computeEnvironment"] for entry in queue.get("computeEnvironmentOrder", [])]
    if not environments:
        yield Check(name, False, "it has no compute environment", "`pulumi up` attaches one")
        return
    answer = aws.call("batch", "describe_compute_environments", computeEnvironments=environments)
    for environment in answer["computeEnvironments"]:
        yield _check_environment(environment, vcpus)


def check_subnets(aws: Aws, stack: Stack) -> Iterator[Check]:
    ids = stack.network.subnets
    if not ids:
        yield Check("subnets", False, "the stack has none", "give subnets in the stack's config and `pulumi up`")
        return
    try:
        found = aws.call("ec2", "describe_subnets", SubnetIds=ids)["Subnets"]
    except AwsError as error:
        if error.code != "InvalidSubnetID.NotFound":
            raise
        yield Check("subnets", False, f"some of {', '.join(ids)} are gone", "`pulumi refresh`, then `pulumi up`")
        return
    full = [subnet["SubnetId"] for subnet in found if subnet.get("AvailableIpAddressCount", 1) == 0]
    zones = {subnet["AvailabilityZone"] for subnet in found}
    if full:
        yield Check("subnets", False, f"no address is free in {', '.join(full)}", "use larger subnets")
    else:
        yield Check("subnets", True, f"{len(found)} in {plural(len(zones), 'zone')}")


def check_bucket(aws: Aws, bucket: str) -> Iterator[Check]:
    try:
        aws.call("s3", "list_objects_v2", Bucket=bucket, MaxKeys=1)
    except AwsError as error:
        if error.code != "NoSuchBucket":
            raise
        yield Check(f"bucket {bucket}", False, "it does not exist", "`pulumi up` makes it")
    else:
        yield Check(f"bucket {bucket}", True, "can be listed")


def check_quota(aws: Aws, quota: tuple[str, str, str], vcpus: float) -> Check:
    service, code, name = quota
    label = f"quota {name}"
    try:
        answer = aws.call("service-quotas", "get_service_quota", ServiceCode=service, QuotaCode=code)
    except AwsError as error:
        return Check(label, None, f"unknown: {error}", f"look at {service} {code} in the Service Quotas console")
    value = float(answer["Quota"]["Value"])
    if value < vcpus:
        fix = (
            f"`aws service-quotas request-service-quota-increase --service-code {service} --quota-code {code} "
            f"--desired-value {max(64, int(vcpus) * 8)}`; it takes hours to days"
        )
        return Check(label, False, f"{value:g} vCPUs, one shard asks for {vcpus:g}", fix)
    return Check(label, True, f"{value:g} vCPUs: {plural(int(value // vcpus), 'shard')} at the same time")


def reasons_of_batch(waiting: list[Child]) -> list[str]:
    """What AWS Batch itself says of RUNNABLE shards, with what to do; often nothing."""
    told = []
    for reason in dict.fromkeys(child.reason for child in waiting if child.reason):
        advice = next((advice for start, advice in _REASONS.items() if start in reason), None)
        told.append(f"{reason}: {advice}" if advice else reason)
    return told


def why_waiting(aws: Aws, job: JobRecord, waiting: list[Child]) -> list[str]:
    """Why RUNNABLE shards don't start, and what to do; the likeliest first. Never empty."""
    told = dict.fromkeys(reasons_of_batch(waiting))
    quota = None
    if job.gpus:
        quota = SPOT_GPU_QUOTA if job.spot else ON_DEMAND_GPU_QUOTA
    elif job.spot and "fargate" in job.instance_types:
        quota = FARGATE_SPOT_QUOTA
    checks = list(_guarded("queue", lambda: check_queue(aws, job.queue, "queue", job.vcpus)))
    if quota:
        checks.append(check_quota(aws, quota, job.vcpus))
    for check in checks:
        if check.ok is False:
            told[f"{check.name}: {check.detail}; {check.fix}"] = None
    if not told:
        what = "a Spot instance" if job.spot else "an instance"
        told[f"nothing is wrong that AWS would tell: {what} is being looked for, which takes 2 to 10 minutes"] = None
    return list(told)


# ---- helpers


def _image_label(image: str) -> str:
    return f"image {image.rpartition(':')[2].partition('-')[0]}"


def _check_environment(environment: dict[str, object], vcpus: float) -> Check:
    name = f"compute environment {environment['computeEnvironmentName']}"
    resources = environment.get("computeResources")
    most = resources.get("maxvCpus") if isinstance(resources, dict) else None
    if environment.get("state") != "ENABLED":
        fix = f"`aws batch update-compute-environment --compute-environment {environment['computeEnvironmentName']} "
        return Check(name, False, f"it is {environment.get('state')}", fix + "--state ENABLED`")
    if environment.get("status") == "INVALID":
        reason = environment.get("statusReason") or "it does not say why"
        return Check(name, False, f"it is INVALID: {reason}", "correct that and `pulumi up`")
    if isinstance(most, int) and most < max(vcpus, 1):
        return Check(name, False, f"its maximum is {most} vCPUs, one shard asks for {vcpus:g}", "raise it, `pulumi up`")
    return Check(name, True, f"{environment.get('status')}, at most {most} vCPUs")


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """What can't be asked is a finding too, not the end."""
    try:
        yield from look()
    except Credentials:
        raise
    except Denied as error:
        yield Check(name, None, str(error), "use the operator role, or ask for this permission")
    except AwsError as error:
        yield Check(name, False, str(error), "see the message")
