"""What the stack is, by the properties that protect data, money and runs."""

from __future__ import annotations

import base64
import re
import sys
from fnmatch import fnmatchcase
from typing import Any

import pytest

from infra_pulumi.image import baked_engines, has_vllm, image_tag
from infra_pulumi.instances import GPU_INSTANCES
from jobs.runner import RULES
from tests.infra_pulumi.conftest import ACCOUNT, GITHUB, ROOT, SECRET, Declared, Deploy, Deployment
from worker.contract import ExitCode

EXISTING = {"mode": "existing", "vpcId": "vpc-0a1b", "subnetIds": ["subnet-0a1b", "subnet-0c2d"]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dev": ("dev", {}),
    "dev with everything": (
        "dev",
        {
            "github": GITHUB,
            "compute": {"onDemand": True},
            "upstageSecretArn": SECRET,
            "alerts": {"emails": ["ops@example.org"]},
        },
    ),
    "dev existing": ("dev", {"network": EXISTING}),
    "prod": ("prod", {"github": GITHUB}),
}


@pytest.fixture(params=VARIANTS)
def deployment(request: pytest.FixtureRequest, deploy: Deploy) -> Deployment:
    stack, sections = VARIANTS[request.param]
    return deploy(stack, **sections)


@pytest.fixture
def full(deploy: Deploy) -> Deployment:
    return deploy("dev", **VARIANTS["dev with everything"][1])


def test_no_module_takes_the_place_of_one_of_pythons_own() -> None:
    """Pulumi runs the folder as a script, which puts it first on the path."""
    names = {path.stem for path in (ROOT / "infra_pulumi").glob("*.py")}
    assert "storage" in names
    assert not names & sys.stdlib_module_names


# ---- network


def test_nothing_can_connect_to_the_machines(deployment: Deployment) -> None:
    for group in deployment.all("ec2/securityGroup"):
        assert not group.inputs.get("ingress")
    assert not deployment.count("vpc/securityGroupIngressRule")
    assert not [rule for rule in deployment.resources if rule.type.endswith(":SecurityGroupRule")]


def test_the_default_security_group_lets_nothing_through(deploy: Deploy) -> None:
    group = deploy().one("ec2/defaultSecurityGroup")
    assert not group.inputs.get("ingress")
    assert not group.inputs.get("egress")


def test_machines_reach_out_by_tls_only(deployment: Deployment) -> None:
    assert [rule.inputs["toPort"] for rule in deployment.all("vpc/securityGroupEgressRule")] == [443]


def test_a_public_network_costs_nothing_when_idle(deploy: Deploy) -> None:
    public = deploy()
    for kind in ("ec2/natGateway", "ec2/eip"):
        assert not public.count(kind)
    assert [endpoint.inputs["vpcEndpointType"] for endpoint in public.all("ec2/vpcEndpoint")] == ["Gateway"]
    assert all(subnet.inputs["mapPublicIpOnLaunch"] for subnet in public.all("ec2/subnet"))
    assert set(public.description["idle_monthly_usd"].values()) == {0.0}


def test_private_machines_have_no_public_address_and_leave_through_nat(deploy: Deploy) -> None:
    private = deploy("prod")
    assert private.count("ec2/natGateway") == 1
    assert not any(subnet.inputs.get("mapPublicIpOnLaunch") for subnet in private.all("ec2/subnet"))
    jobs_subnets = private.one("batch/computeEnvironment", "gpu-spot").inputs["computeResources"]["subnets"]
    assert len(jobs_subnets) == 3
    assert all("-private-" in subnet for subnet in jobs_subnets)
    assert private.description["idle_monthly_usd"]["nat_gateway"] > 30
    tables = private.one("ec2/vpcEndpoint").inputs["routeTableIds"]
    assert len(tables) == 2


def test_an_existing_network_is_used_as_it_is(deploy: Deploy) -> None:
    existing = deploy("dev", network=EXISTING)
    for kind in ("ec2/vpc", "ec2/subnet", "ec2/natGateway", "ec2/internetGateway"):
        assert not existing.count(kind)
    assert existing.one("ec2/securityGroup").inputs["vpcId"] == "vpc-0a1b"
    for environment in existing.all("batch/computeEnvironment"):
        assert environment.inputs["computeResources"]["subnets"] == EXISTING["subnetIds"]


# ---- storage and registry


def test_buckets_are_private_encrypted_and_reached_over_tls_only(deployment: Deployment) -> None:
    for bucket in deployment.all("s3/bucket"):
        name = bucket.physical
        block = _of(deployment, "s3/bucketPublicAccessBlock", name).inputs
        for key in ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"):
            assert block[key] is True
        ownership = _of(deployment, "s3/bucketOwnershipControls", name).inputs["rule"]["objectOwnership"]
        assert ownership == "BucketOwnerEnforced"
        (rule,) = _of(deployment, "s3/bucketServerSideEncryptionConfiguration", name).inputs["rules"]
        assert rule["applyServerSideEncryptionByDefault"]["sseAlgorithm"] == "AES256"
        (statement,) = _of(deployment, "s3/bucketPolicy", name).document("policy")["Statement"]
        assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
        assert statement["Resource"] == [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_inputs_keep_their_versions_and_uploads_that_were_given_up_go(deployment: Deployment) -> None:
    (versioning,) = deployment.all("s3/bucketVersioning")
    assert versioning.inputs["bucket"] == deployment.one("s3/bucket", "-inputs").physical
    assert versioning.inputs["versioningConfiguration"]["status"] == "Enabled"
    lifecycles = deployment.all("s3/bucketLifecycleConfiguration")
    assert len(lifecycles) == 2
    for lifecycle in lifecycles:
        assert [rule for rule in lifecycle.inputs["rules"] if "abortIncompleteMultipartUpload" in rule]


def test_old_runs_go_by_the_stacks_rule_and_nothing_else_does(deploy: Deploy) -> None:
    for stack, days in (("dev", 30), ("prod", 365)):
        rules = deploy(stack).one("s3/bucketLifecycleConfiguration", "-outputs").inputs["rules"]
        (expiring,) = [rule for rule in rules if "expiration" in rule]
        assert (expiring["filter"]["prefix"], expiring["expiration"]["days"]) == ("runs/", days)
        inputs = deploy(stack).one("s3/bucketLifecycleConfiguration", "-inputs").inputs["rules"]
        assert not [rule for rule in inputs if "expiration" in rule]


def test_only_a_stack_without_protection_may_be_emptied(deploy: Deploy) -> None:
    for stack, may in (("dev", True), ("prod", False)):
        for bucket in deploy(stack).all("s3/bucket"):
            assert bucket.inputs["forceDestroy"] is may
        assert deploy(stack).one("ecr/repository", "-worker").inputs["forceDelete"] is may


def test_a_bucket_that_outlives_its_stack_keeps_what_guards_it(deploy: Deploy) -> None:
    prod = deploy("prod")
    guards = {(one.type, one.name) for one in prod.resources if one.type.startswith("aws:s3/")}
    assert len(guards) == 2 * 6 + 1  # the inputs have versions, too
    assert guards == {one for one in prod.protected if one[0].startswith("aws:s3/")}
    assert not deploy("dev").protected


def test_tags_never_change_and_tagged_images_never_expire(deployment: Deployment) -> None:
    repository = deployment.one("ecr/repository", "-worker").inputs
    assert repository["imageTagMutability"] == "IMMUTABLE"
    assert repository["imageScanningConfiguration"]["scanOnPush"] is True
    rules = deployment.one("ecr/lifecyclePolicy", "-worker").document("policy")["rules"]
    assert [rule["selection"]["tagStatus"] for rule in rules] == ["untagged"]


# ---- compute


def test_all_compute_scales_to_zero(deployment: Deployment) -> None:
    for environment in deployment.all("batch/computeEnvironment"):
        resources = environment.inputs["computeResources"]
        fargate = resources["type"].startswith("FARGATE")
        assert resources.get("minVcpus", 0 if fargate else None) == 0
        assert resources.get("desiredVcpus", 0 if fargate else None) == 0


def test_compute_environments_can_be_replaced_and_updated(deployment: Deployment) -> None:
    for environment in deployment.all("batch/computeEnvironment"):
        assert "name" not in environment.inputs
        assert "serviceRole" not in environment.inputs
        resources = environment.inputs["computeResources"]
        if resources["type"] in ("SPOT", "EC2"):
            assert resources["ec2Configurations"] == [{"imageType": "ECS_AL2023_NVIDIA"}]
            assert resources["launchTemplate"]["version"] == "7"  # the newest: `$Latest` would never look changed
            assert len(resources["instanceTypes"]) > 1
            assert environment.inputs["updatePolicy"]["terminateJobsOnUpdate"] is False


@pytest.mark.parametrize("fallback", [False, True])
def test_spot_comes_first_and_full_price_only_on_request(deploy: Deploy, fallback: bool) -> None:
    deployment = deploy("dev", compute={"onDemand": fallback})
    types = {one.inputs["computeResources"]["type"] for one in deployment.all("batch/computeEnvironment")}
    assert types == {"SPOT", "FARGATE_SPOT"} | ({"EC2", "FARGATE"} if fallback else set())
    for kind in ("gpu", "cpu"):
        orders = deployment.one("batch/jobQueue", f"-{kind}").inputs["computeEnvironmentOrders"]
        ranked = [order["computeEnvironment"] for order in sorted(orders, key=lambda order: order["order"])]
        assert [re.search(rf"{kind}-(spot|on-demand)", arn)[1] for arn in ranked] == (  # type: ignore[index]
            ["spot", "on-demand"] if fallback else ["spot"]
        )
    strategies = {
        one.inputs["computeResources"]["type"]: one.inputs["computeResources"].get("allocationStrategy")
        for one in deployment.all("batch/computeEnvironment")
    }
    assert strategies["SPOT"] == "SPOT_PRICE_CAPACITY_OPTIMIZED"
    assert strategies.get("EC2") in (None, "BEST_FIT_PROGRESSIVE")


def test_machines_want_imdsv2_and_hide_their_role_from_containers(deployment: Deployment) -> None:
    (template,) = deployment.all("ec2/launchTemplate")
    metadata = template.inputs["metadataOptions"]
    assert (metadata["httpTokens"], metadata["httpPutResponseHopLimit"]) == ("required", 1)
    (disk,) = template.inputs["blockDeviceMappings"]
    assert disk["ebs"]["encrypted"] == "true"
    assert disk["ebs"]["volumeType"] == "gp3"
    assert disk["ebs"]["volumeSize"] >= 100


def test_spot_machines_tell_their_containers_to_drain(deployment: Deployment) -> None:
    data = base64.b64decode(deployment.one("ec2/launchTemplate").inputs["userData"]).decode()
    assert data.startswith("MIME-Version: 1.0\nContent-Type: multipart/mixed")
    assert "\nECS_ENABLE_SPOT_INSTANCE_DRAINING=true\n" in data
    assert "\nECS_CONTAINER_STOP_TIMEOUT=110s\n" in data


def test_a_queues_head_does_not_wait_for_ever(deployment: Deployment) -> None:
    for queue in deployment.all("batch/jobQueue"):
        limits = {limit["reason"]: limit for limit in queue.inputs["jobStateTimeLimitActions"]}
        assert set(limits) == {  # the only words that Batch accepts
            "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY",
            "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE",
            "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT",
        }
        for limit in limits.values():
            assert (limit["action"], limit["state"]) == ("CANCEL", "RUNNABLE")
            assert 600 <= limit["maxTimeSeconds"] <= 86400


# ---- jobs


def test_jobs_run_the_image_of_this_tree(deployment: Deployment) -> None:
    repository = deployment.one("ecr/repository", "-worker").physical
    images = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/{repository}"
    for name in ("ocr-gpu", "ocr-cpu", "train-gpu", "train-cpu"):
        properties = deployment.one("batch/jobDefinition", name).document("containerProperties")
        assert properties["image"] == f"{images}:{name[-3:]}-{image_tag(ROOT)}"
        assert deployment.description["job_definitions"][name]["image"] == properties["image"]
        # The git revision that results name is baked into the image.
        assert {one["name"] for one in properties["environment"]} == {"AWS_REGION", "AWS_DEFAULT_REGION"}
    assert deployment.description["image"]["engines"] == baked_engines(ROOT)
    assert deployment.description["image"]["vllm"] is has_vllm(ROOT)


def test_gpu_jobs_fit_every_machine_that_batch_may_choose(deployment: Deployment) -> None:
    for definition in deployment.all("batch/jobDefinition"):
        if definition.inputs["platformCapabilities"] != ["EC2"]:
            continue
        needs = _resources(definition)
        assert needs["GPU"] == 1
        for environment in deployment.all("batch/computeEnvironment"):
            for name in environment.inputs["computeResources"].get("instanceTypes", []):
                machine = GPU_INSTANCES[name]
                assert needs["VCPU"] <= machine.vcpus
                assert needs["MEMORY"] <= machine.memory - 2048  # what kernel and ECS agent take of 16 GiB


def test_retry_rules_are_those_of_the_contract_and_end_with_a_catch_all(deployment: Deployment) -> None:
    for definition in deployment.all("batch/jobDefinition"):
        strategy = definition.inputs["retryStrategy"]
        rules = strategy["evaluateOnExits"]
        assert 1 < strategy["attempts"] <= 10
        assert len(rules) <= 5
        assert rules[-1] == {"action": "EXIT", "onReason": "*"}
        assert [rule["action"] for rule in rules[:-1]] == ["RETRY"] * (len(rules) - 1)
        codes = [(rule["onExitCode"], rule["action"]) for rule in rules if "onExitCode" in rule]
        assert (*codes, ("*", "EXIT")) == RULES


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (ExitCode.CRASHED, "RETRY"),
        (ExitCode.TRY_AGAIN, "RETRY"),
        (ExitCode.DRAINED, "RETRY"),
        (137, "RETRY"),
        (139, "RETRY"),
        (ExitCode.BAD_REQUEST, "EXIT"),
    ],
)
def test_exit_codes_lead_to_what_the_contract_says(deploy: Deploy, code: int, action: str) -> None:
    for definition in deploy().all("batch/jobDefinition"):
        assert _judged(definition, exit_code=str(int(code))) == action


@pytest.mark.parametrize(
    ("name", "status_reason", "reason"),
    [
        ("ocr-gpu", "Host EC2 (instance i-0a1b) terminated.", ""),
        ("ocr-cpu", "Your Spot Task was interrupted.", ""),
        ("ocr-gpu", "Task failed to start", "CannotPullContainerError: pull access denied"),
        ("ocr-cpu", "Task failed to start", "CannotPullContainerError: i/o timeout"),
    ],
)
def test_what_spot_and_registry_do_is_tried_again(deploy: Deploy, name: str, status_reason: str, reason: str) -> None:
    definition = deploy().one("batch/jobDefinition", name)
    assert _judged(definition, status_reason=status_reason, reason=reason) == "RETRY"


def test_jobs_have_timeouts_logs_and_room(deployment: Deployment) -> None:
    group = deployment.one("cloudwatch/logGroup", "-jobs")
    assert group.physical == deployment.description["log_group"]
    for definition in deployment.all("batch/jobDefinition"):
        properties = definition.document("containerProperties")
        assert definition.inputs["timeout"]["attemptDurationSeconds"] >= 3600
        assert properties["logConfiguration"]["options"]["awslogs-group"] == group.physical
        assert properties["ulimits"] == [{"name": "nofile", "softLimit": 65536, "hardLimit": 65536}]
        if definition.inputs["platformCapabilities"] == ["EC2"]:
            assert properties["linuxParameters"]["sharedMemorySize"] >= 1024
        else:
            assert "linuxParameters" not in properties


def test_fargate_jobs_have_an_address_exactly_where_the_network_is_public(deploy: Deploy) -> None:
    for stack, sections, expected in (
        ("dev", {}, "ENABLED"),
        ("prod", {}, "DISABLED"),
        ("dev", {"network": EXISTING}, "DISABLED"),
        ("dev", {"network": {**EXISTING, "assignPublicIp": True}}, "ENABLED"),
    ):
        properties = deploy(stack, **sections).one("batch/jobDefinition", "ocr-cpu").document("containerProperties")
        assert properties["networkConfiguration"] == {"assignPublicIp": expected}


def test_only_cpu_reading_gets_the_key_of_upstage(full: Deployment) -> None:
    for definition in full.all("batch/jobDefinition"):
        expected = [{"name": "UPSTAGE_API_KEY", "valueFrom": SECRET}] if definition.name.endswith("ocr-cpu") else []
        assert definition.document("containerProperties").get("secrets", []) == expected


# ---- what a person is told


def test_a_failed_run_is_one_mail_not_ten_thousand(full: Deployment) -> None:
    pattern = full.one("cloudwatch/eventRule", "-failed").document("eventPattern")
    assert pattern["detail"]["status"] == ["FAILED"]
    assert pattern["detail"]["arrayProperties"] == {"index": [{"exists": False}]}
    queues = [queue.arn for queue in full.all("batch/jobQueue")]
    assert sorted(pattern["detail"]["jobQueue"]) == sorted(queues)
    topic = full.one("sns/topic")
    for name in ("failed", "blocked"):
        assert full.one("cloudwatch/eventTarget", f"-{name}").inputs["arn"].endswith(topic.physical)
    assert full.one("sns/topicSubscription").inputs["endpoint"] == "ops@example.org"


def test_logs_are_kept_for_a_limited_time_and_the_budget_warns_early(deployment: Deployment) -> None:
    for group in deployment.all("cloudwatch/logGroup"):
        assert group.inputs["retentionInDays"] > 0
    thresholds = [step["threshold"] for step in deployment.one("budgets/budget").inputs["notifications"]]
    assert min(thresholds) < 100 <= max(thresholds)


def test_the_dashboard_shows_jobs_machines_money_and_failures(deployment: Deployment) -> None:
    widgets = deployment.one("cloudwatch/dashboard").document("dashboardBody")["widgets"]
    titles = " ".join(widget["properties"]["title"] for widget in widgets)
    for word in ("Jobs by state", "vCPUs running", "US dollars", "Failures"):
        assert word in titles
    events = deployment.one("cloudwatch/logGroup", "-events").physical
    assert any(widget["properties"].get("query", "").startswith(f"SOURCE '{events}'") for widget in widgets)


# ---- stack description


def test_the_description_is_complete_and_fits_a_free_parameter(full: Deployment) -> None:
    description = full.description
    assert set(description) == {
        *("schema", "stack", "region", "account", "buckets", "log_group", "image", "queues", "job_definitions"),
        *("network", "idle_monthly_usd"),
    }
    assert (description["schema"], description["stack"], description["account"]) == (1, "dev", ACCOUNT)
    assert description["buckets"]["inputs"] == full.one("s3/bucket", "-inputs").physical
    assert description["image"]["tag"] == image_tag(ROOT)
    assert set(description["queues"]) == {"gpu", "cpu"}
    assert set(description["job_definitions"]) == {"ocr-gpu", "ocr-cpu", "train-gpu", "train-cpu"}
    for name, told in description["job_definitions"].items():
        definition = full.one("batch/jobDefinition", name)
        assert told["name"] == definition.physical
        needs = _resources(definition)
        assert (told["vcpus"], told["memory"], told["gpus"]) == (needs["VCPU"], needs["MEMORY"], needs.get("GPU", 0))
        assert told["queue"] == ("gpu" if told["gpus"] else "cpu")
    parameter = full.one("ssm/parameter")
    assert (parameter.inputs["name"], parameter.inputs["type"]) == ("/pagefleet/dev", "String")
    assert (
        len(parameter.inputs["insecureValue"]) < 4096 - 512
    )  # the limit of a standard parameter, and real ARNs are longer


def _of(deployment: Deployment, kind: str, bucket: str) -> Declared:
    (found,) = [declared for declared in deployment.all(kind) if declared.inputs["bucket"] == bucket]
    return found


def _resources(definition: Declared) -> dict[str, int]:
    listed = definition.document("containerProperties")["resourceRequirements"]
    return {one["type"]: int(one["value"]) for one in listed}


def _judged(definition: Declared, exit_code: str = "", status_reason: str = "", reason: str = "") -> str:
    """What Batch would do: the first rule all of whose conditions match; none: RETRY."""
    facts = {"onExitCode": exit_code, "onStatusReason": status_reason, "onReason": reason}
    for rule in definition.inputs["retryStrategy"]["evaluateOnExits"]:
        if all(fnmatchcase(facts[key], pattern) for key, pattern in rule.items() if key != "action"):
            return str(rule["action"])
    return "RETRY"
