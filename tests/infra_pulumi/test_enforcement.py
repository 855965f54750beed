"""What the program's own policies allow, enforced: runs under the temporary credentials of its roles, on an emulator
that holds what the program declares. Conditions and the boundary count; signatures and trust are not checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import settings as moto_settings
from moto.iam import access_control

from infra_pulumi.image import image_tag
from jobs import open_run
from tests.agent import Agent, HeldJobs
from tests.conftest import PATIENCE, ROOT, draw
from tests.iam import allows
from tests.infra_pulumi.conftest import ACCOUNT, GITHUB, SECRET, Deploy, Deployment
from tests.jobs.conftest import _models_are_parsed_once  # noqa: F401
from tests.jobs.test_batch import awkward, pagefleet
from tests.jobs.test_cli import COLOUR

REGION = "us-east-1"
QUEUED = f"arn:aws:batch:{REGION}:{ACCOUNT}:job/1"


@dataclass
class Cloud:
    """What the program declares, made on the emulator, which asks our judge about every request."""

    deployment: Deployment
    endpoint: str
    admin: dict[str, str]  # credentials, as environment variables
    jobs: HeldJobs
    asked: set[tuple[str, str, bool]] = field(default_factory=set)  # role, action, allowed

    @property
    def inputs(self) -> str:
        return self.deployment.one("s3/bucket", "-inputs").physical

    @property
    def outputs(self) -> str:
        return self.deployment.one("s3/bucket", "-outputs").physical

    def client(self, service: str, credentials: dict[str, str] | None = None) -> Any:
        given = credentials or self.admin
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
            aws_session_token=given.get("AWS_SESSION_TOKEN"),
        )

    def assume(self, role: str) -> dict[str, str]:
        """Temporary credentials, as environment variables."""
        arn = self.deployment.one("iam/role", f"-{role}").arn
        given = self.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ACCESS_KEY_ID": given["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
            "AWS_SESSION_TOKEN": given["SessionToken"],
        }


@pytest.fixture
def cloud(deploy: Deploy, s3: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    import urllib3

    urllib3.request("POST", f"{s3_server}/moto-api/config", json={"batch": {"use_docker": False}}, timeout=PATIENCE)
    deployment = deploy("dev", github=GITHUB, upstageSecretArn=SECRET)
    _make(deployment)
    iam = boto3.client("iam")
    iam.create_user(UserName="admin")
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    iam.put_user_policy(UserName="admin", PolicyName="all", PolicyDocument=json.dumps(everything))
    key = iam.create_access_key(UserName="admin")["AccessKey"]
    admin = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    cloud = Cloud(deployment, s3_server, admin, HeldJobs(monkeypatch))
    _enforce(cloud, monkeypatch)
    return cloud


def test_forty_keys_are_read_by_the_job_role_for_the_operator_role(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [awkward(number) for number in range(40)]
    picture = draw(tmp_path / "picture.png")
    for key in keys:
        cloud.client("s3").upload_file(str(picture), cloud.inputs, key)
    (tmp_path / "keys").write_text("".join(f"{key}\n" for key in keys))
    for name, value in cloud.assume("operator").items():
        monkeypatch.setenv(name, value)

    assert "BAD" not in pagefleet("doctor").stdout
    dry = pagefleet("submit", "--prefix", f"s3://{cloud.inputs}/inbox/", "--pages-per-task", "9", "--dry-run", *COLOUR)
    assert "would read 40 documents" in dry.stdout, dry.output
    submitted = pagefleet("submit", "--keys-file", "keys", "--shards", "2", "--run-id", "forty", *COLOUR)
    assert submitted.exit_code == 0, submitted.output
    assert "is live" in pagefleet("submit", "--keys-file", "keys", "--run-id", "forty", *COLOUR).stderr
    run = cloud.client("s3").get_object(Bucket=cloud.outputs, Key="runs/forty/batch.json")["Body"].read()
    job = json.loads(run)["jobs"][0]["id"]
    assert pagefleet("watch", "forty", "--once").exit_code == 0
    agent = Agent(cloud.client("batch"), cloud.client("logs"), cloud.assume("job"), tell=cloud.jobs.tell)
    assert {index: attempts[-1].exit_code for index, attempts in agent.run(job).items()} == {0: 0, 1: 0}

    watched = pagefleet("watch", "forty")
    assert watched.exit_code == 0, watched.output
    assert pagefleet("logs", "forty", "--shard", "1").stdout.count('"outcome":"ok"') == 20
    fetched = pagefleet("fetch", "forty", "--out", "out")
    assert fetched.exit_code == 0, fetched.output
    read = {document.uri for document in open_run("out").documents() if document.status == "ok"}
    assert read == {f"s3://{cloud.inputs}/{key}" for key in keys}
    for command in (["cost", "forty"], ["cost", "--idle"], ["runs"], ["resume", "forty"]):
        assert pagefleet(*command).exit_code == 0, command
    assert pagefleet("submit", keys[0], "--run-id", "short", *COLOUR).exit_code == 0
    assert pagefleet("cancel", "short").exit_code == 0

    # Nothing was refused, and nothing is allowed that no command asks for.
    assert not [(role, action) for role, action, allowed in cloud.asked if not allowed]
    used = {action for role, action, _ in cloud.asked if role.endswith("-operator")}
    assert cloud.deployment.allowed("operator").keys() - used == {
        *("ec2:DescribeSpotPriceHistory", "ecs:DescribeContainerInstances"),  # prices of machines: this was Fargate
    }
    used = {action for role, action, _ in cloud.asked if role.endswith("-job")}
    assert cloud.deployment.allowed("job").keys() - used == {
        "s3:DeleteObject",  # of a failure that is made good
        "s3:ListBucket",  # who may not list is told 403 instead of 404 of a key that is missing
        "secretsmanager:GetSecretValue",  # ECS asks, to put the key into the container
    }


def test_the_job_role_is_refused_all_else(cloud: Cloud) -> None:
    cloud.client("s3").put_object(Bucket=cloud.outputs, Key="training/model.bin", Body=b"x")
    cloud.client("s3").put_object(Bucket=cloud.outputs, Key="runs/one/run.json", Body=b"x")
    cloud.client("s3").create_bucket(Bucket="somebody-elses")
    credentials = cloud.assume("job")
    s3 = cloud.client("s3", credentials)
    assert s3.get_object(Bucket=cloud.outputs, Key="runs/one/run.json")["Body"].read() == b"x"
    assert s3.list_objects_v2(Bucket=cloud.outputs, Prefix="runs/one/")["KeyCount"] == 1
    assert s3.list_objects_v2(Bucket=cloud.outputs)["KeyCount"] == 2  # names: docs/security.md says so
    refused = [
        lambda: s3.put_object(Bucket=cloud.inputs, Key="a.png", Body=b"x"),
        lambda: s3.delete_object(Bucket=cloud.inputs, Key="a.png"),
        lambda: s3.list_objects_v2(Bucket=cloud.inputs),
        lambda: s3.get_object(Bucket=cloud.outputs, Key="training/model.bin"),
        lambda: s3.put_object(Bucket=cloud.outputs, Key="training/model.bin", Body=b"y"),
        lambda: s3.delete_object(Bucket=cloud.outputs, Key="runs/one/run.json"),
        lambda: s3.list_objects_v2(Bucket=cloud.outputs, Prefix="training/"),
        lambda: s3.list_objects_v2(Bucket="somebody-elses"),
        lambda: s3.get_object(Bucket="somebody-elses", Key="a"),
        lambda: s3.list_buckets(),
        lambda: cloud.client("ssm", credentials).get_parameter(Name="/pagefleet/dev"),
        lambda: cloud.client("batch", credentials).terminate_job(jobId="1", reason="x"),
        lambda: cloud.client("secretsmanager", credentials).get_secret_value(SecretId=f"{SECRET}-other"),
        lambda: cloud.client("sts", credentials).assume_role(
            RoleArn=cloud.deployment.one("iam/role", "-deploy").arn, RoleSessionName="sly"
        ),
    ]
    for call in refused:
        with pytest.raises(ClientError, match="AccessDenied"):
            call()


def test_without_a_key_of_a_role_nothing_is_answered(cloud: Cloud) -> None:
    stranger = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "none"}
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        cloud.client("s3", stranger).list_buckets()


# What Pulumi keeps of a stack, below .pulumi/.
STATE = (
    *("stacks/pagefleet/dev.json", "stacks/pagefleet/dev.json.bak", "stacks/pagefleet/dev.pulumi-tags"),
    "history/pagefleet/dev/dev-1.history.json",
    "backups/pagefleet/dev/dev.1.json",
    "journal/pagefleet/dev/manifest.json",
    "locks/organization/pagefleet/dev/a.json",
)
# What the emulator need not be asked for: the judge alone decides.
PROBES = [
    ("operator", "s3:PutObject", "{inputs}/a.png", False),
    ("operator", "s3:DeleteObject", "{inputs}/a.png", False),
    ("operator", "s3:PutObject", "{outputs}/training/model.bin", False),
    ("operator", "s3:PutObject", "{outputs}/runs/one/run.json", True),
    ("operator", "s3:DeleteBucket", "{outputs}", False),
    ("operator", "s3:GetObject", "arn:aws:s3:::octo-state/.pulumi/stacks/pagefleet/dev.json", False),
    ("operator", "batch:SubmitJob", "arn:aws:batch:us-east-1:123456789012:job-queue/other", False),
    ("operator", "batch:SubmitJob", "arn:aws:batch:us-east-1:123456789012:job-definition/other:1", False),
    ("operator", "batch:RegisterJobDefinition", "*", False),
    ("operator", "batch:TerminateJob", QUEUED, True),
    ("operator", "batch:TerminateJob", QUEUED.replace("us-east-1", "eu-west-1"), False),
    ("operator", "ssm:GetParameter", "arn:aws:ssm:us-east-1:123456789012:parameter/pagefleet/prod", False),
    ("operator", "secretsmanager:GetSecretValue", SECRET, False),
    ("operator", "iam:PassRole", "{job}", False),
    ("operator", "sts:AssumeRole", "{job}", False),
    ("operator", "ecr:PutImage", "{repository}", False),
    ("preview", "s3:GetObject", "arn:aws:s3:::octo-state/.pulumi/stacks/pagefleet/dev.json", True),
    ("preview", "s3:PutObject", "arn:aws:s3:::octo-state/.pulumi/stacks/pagefleet/dev.json", False),
    ("preview", "s3:PutObject", "arn:aws:s3:::octo-state/.pulumi/locks/organization/pagefleet/dev/a.json", False),
    ("preview", "s3:GetObject", "{inputs}/a.png", False),
    ("preview", "s3:GetObject", "{outputs}/runs/one/run.json", False),
    ("preview", "s3:ListBucket", "{inputs}", False),
    ("preview", "secretsmanager:GetSecretValue", SECRET, False),
    ("preview", "ssm:GetParameter", "arn:aws:ssm:us-east-1:123456789012:parameter/pagefleet/dev", False),
    ("preview", "kms:Decrypt", "arn:aws:kms:us-east-1:123456789012:key/1", False),
    ("preview", "batch:SubmitJob", "{queue}", False),
    ("preview", "ecr:PutImage", "{repository}", False),
    ("preview", "iam:CreateRole", "arn:aws:iam::123456789012:role/pagefleet-dev-x", False),
    ("preview", "sts:AssumeRole", "{deploy}", False),
    ("training", "s3:GetObject", "{inputs}/a.png", True),
    ("training", "s3:PutObject", "{outputs}/training/model.bin", True),
    ("training", "s3:PutObject", "{outputs}/runs/one/run.json", False),
    ("training", "secretsmanager:GetSecretValue", SECRET, False),
    ("execution", "secretsmanager:GetSecretValue", SECRET, True),
    ("execution", "secretsmanager:GetSecretValue", SECRET.replace("upstage", "other"), False),
    ("execution", "s3:GetObject", "{inputs}/a.png", False),
    ("deploy", "s3:PutObject", "arn:aws:s3:::octo-state/.pulumi/stacks/pagefleet/dev.json", True),
    *(
        ("deploy", action, f"arn:aws:s3:::octo-state/.pulumi/{key}", True)
        for key in STATE
        for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject")
    ),
    *(
        (role, action, f"arn:aws:s3:::octo-state/.pulumi/{key.replace('dev', other)}", False)
        for role in ("deploy", "preview")
        for key in STATE
        for other in ("prod", "dev2")  # one may begin like another
        for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject")
    ),
    *(("preview", "s3:GetObject", f"arn:aws:s3:::octo-state/.pulumi/{key}", True) for key in (*STATE, "meta.yaml")),
    ("deploy", "s3:GetObject", "arn:aws:s3:::octo-state/.pulumi/meta.yaml", True),
    ("deploy", "s3:PutObject", "arn:aws:s3:::octo-state/.pulumi/meta.yaml", False),
    ("deploy", "s3:GetObject", "{inputs}/a.png", False),
    ("deploy", "secretsmanager:GetSecretValue", SECRET, False),
    *(
        ("deploy", "logs:PutRetentionPolicy", f"arn:aws:logs:us-east-1:123456789012:log-group:/pagefleet/{group}", may)
        for group, may in (
            ("dev", True),
            ("dev:*", True),
            ("dev/events", True),
            ("dev2", False),
            ("dev2/events", False),
        )
    ),
    ("deploy", "iam:DeleteRole", "arn:aws:iam::123456789012:role/pagefleet-dev-job-1", True),
    ("deploy", "iam:DeleteRole", "arn:aws:iam::123456789012:role/pagefleet-dev2-job-1", False),
    ("deploy", "iam:PutRolePolicy", "{operator}", False),
    ("deploy", "iam:UpdateAssumeRolePolicy", "{deploy}", False),
    ("deploy", "iam:PutRolePolicy", "{job}", False),  # without the boundary
    ("deploy", "iam:CreateRole", "arn:aws:iam::123456789012:role/pagefleet-dev-x", False),
    ("deploy", "iam:DeleteRolePermissionsBoundary", "{job}", False),
    ("deploy", "iam:CreatePolicyVersion", "{boundary}", False),
    ("deploy", "iam:CreateUser", "arn:aws:iam::123456789012:user/x", False),
]


@pytest.mark.parametrize(("stack", "may"), [("dev", True), ("prod", False)])
def test_only_buckets_without_protection_can_be_emptied_to_be_destroyed(deploy: Deploy, stack: str, may: bool) -> None:
    deployment = deploy(stack, github=GITHUB)
    for bucket in deployment.all("s3/bucket"):
        for action in ("s3:DeleteObject", "s3:DeleteObjectVersion"):
            assert _allows(deployment, "deploy", action, f"{bucket.arn}/runs/one/run.json") is may
        assert _allows(deployment, "deploy", "s3:ListBucketVersions", bucket.arn)
        for action in ("s3:GetObject", "s3:GetObjectVersion", "s3:PutObject"):
            assert not _allows(deployment, "deploy", action, f"{bucket.arn}/runs/one/run.json")


@pytest.mark.parametrize(("role", "action", "resource", "expected"), PROBES)
def test_each_role_may_do_its_work_and_no_more(
    deploy: Deploy, role: str, action: str, resource: str, expected: bool
) -> None:
    deployment = deploy("dev", github=GITHUB, upstageSecretArn=SECRET)
    named = {name: deployment.one("s3/bucket", f"-{name}").arn for name in ("inputs", "outputs")}
    named |= {name: deployment.one("iam/role", f"-{name}").arn for name in ("job", "deploy", "operator")}
    named["boundary"] = deployment.one("iam/policy", "-boundary").arn
    named["repository"] = deployment.one("ecr/repository", "-worker").arn
    named["queue"] = deployment.one("batch/jobQueue", "-cpu").arn
    assert _allows(deployment, role, action, resource.format(**named)) is expected


def test_a_role_that_a_deployment_makes_is_held_by_the_boundary(deploy: Deploy) -> None:
    deployment = deploy("dev", github=GITHUB, upstageSecretArn=SECRET)
    boundary = deployment.one("iam/policy", "-boundary")
    role = f"arn:aws:iam::{ACCOUNT}:role/pagefleet-dev-x"
    bound = {"iam:PermissionsBoundary": boundary.arn}
    for action in ("iam:CreateRole", "iam:PutRolePolicy", "iam:PutRolePermissionsBoundary"):
        assert _allows(deployment, "deploy", action, role, bound)
        assert not _allows(deployment, "deploy", action, role, {"iam:PermissionsBoundary": f"{boundary.arn}-other"})
    everything = {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    for action, resource, expected in (
        ("s3:GetObject", f"{deployment.one('s3/bucket', '-inputs').arn}/a.png", True),
        ("s3:PutObject", f"{deployment.one('s3/bucket', '-inputs').arn}/a.png", False),
        ("s3:GetObject", "arn:aws:s3:::octo-state/.pulumi/stacks/pagefleet/dev.json", False),
        ("iam:PutRolePolicy", deployment.one("iam/role", "-operator").arn, False),
        ("secretsmanager:GetSecretValue", SECRET.replace("upstage", "other"), False),
        ("batch:SubmitJob", deployment.one("batch/jobQueue", "-cpu").arn, False),
    ):
        assert allows([everything], action, resource, boundary=boundary.document("policy")) is expected


def _allows(
    deployment: Deployment, role: str, action: str, resource: str, context: dict[str, str] | None = None
) -> bool:
    declared = deployment.one("iam/role", f"-{role}")
    bound = declared.inputs.get("permissionsBoundary")
    boundary = deployment.one("iam/policy", "-boundary")
    assert bound in (None, boundary.arn)
    policy = {"Statement": deployment.statements(role)}
    return allows([policy], action, resource, context, boundary.document("policy") if bound else None)


# ---- the emulator

_BATCH = {name.lower(): name for name in boto3.client("batch", region_name=REGION).meta.service_model.operation_names}


def _make(deployment: Deployment) -> None:
    """What of the declared resources the commands and the worker touch, under the names that the policies hold."""
    s3, iam, batch = boto3.client("s3"), boto3.client("iam"), boto3.client("batch")
    ec2 = boto3.client("ec2")
    for bucket in deployment.all("s3/bucket"):
        s3.create_bucket(Bucket=bucket.physical)
    for group in deployment.all("cloudwatch/logGroup"):
        boto3.client("logs").create_log_group(logGroupName=group.physical)
    repository = deployment.one("ecr/repository", "-worker").physical
    ecr = boto3.client("ecr")
    ecr.create_repository(repositoryName=repository)
    media = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": media, "config": {"digest": "sha256:0"}, "layers": []})
    for target in ("cpu", "gpu"):
        ecr.put_image(repositoryName=repository, imageManifest=manifest, imageTag=f"{target}-{image_tag(ROOT)}")
    boundary = deployment.one("iam/policy", "-boundary")
    iam.create_policy(
        PolicyName=boundary.physical, Path=boundary.inputs["path"], PolicyDocument=boundary.inputs["policy"]
    )
    for role in deployment.all("iam/role"):
        bound = role.inputs.get("permissionsBoundary")
        iam.create_role(
            RoleName=role.physical,
            Path=role.inputs.get("path", "/"),
            AssumeRolePolicyDocument=role.inputs["assumeRolePolicy"],
            **({"PermissionsBoundary": bound} if bound else {}),
        )
    for policy in deployment.all("iam/rolePolicy"):
        iam.put_role_policy(
            RoleName=policy.inputs["role"], PolicyName=policy.name, PolicyDocument=policy.inputs["policy"]
        )
    subnet = ec2.describe_subnets()["Subnets"][0]
    group = ec2.create_security_group(GroupName="none", Description="none", VpcId=subnet["VpcId"])["GroupId"]
    for environment in deployment.all("batch/computeEnvironment"):  # no machine is ever started here
        batch.create_compute_environment(
            computeEnvironmentName=environment.physical,
            type="MANAGED",
            state="ENABLED",
            serviceRole=f"arn:aws:iam::{ACCOUNT}:role/{deployment.one('iam/role', '-instance').physical}",
            computeResources={
                "type": "FARGATE_SPOT",
                "maxvCpus": int(environment.inputs["computeResources"]["maxVcpus"]),
                "subnets": [subnet["SubnetId"]],
                "securityGroupIds": [group],
            },
        )
    for queue in deployment.all("batch/jobQueue"):
        kind = queue.name.rpartition("-")[2]
        environment = deployment.one("batch/computeEnvironment", f"{kind}-spot").physical
        made = batch.create_job_queue(
            jobQueueName=queue.physical,
            state="ENABLED",
            priority=1,
            computeEnvironmentOrder=[{"order": 1, "computeEnvironment": environment}],
        )
        assert made["jobQueueArn"] == queue.arn
    for definition in deployment.all("batch/jobDefinition"):
        strategy = definition.inputs["retryStrategy"]
        made = batch.register_job_definition(
            jobDefinitionName=definition.physical,
            type="container",
            platformCapabilities=definition.inputs["platformCapabilities"],
            containerProperties=definition.document("containerProperties"),
            retryStrategy={"attempts": int(strategy["attempts"]), "evaluateOnExit": strategy["evaluateOnExits"]},
        )
        assert made["jobDefinitionArn"] == definition.arn
    description = {**deployment.description, "network": {"mode": "public", "vpc": "", "subnets": [subnet["SubnetId"]]}}
    boto3.client("ssm").put_parameter(Name="/pagefleet/dev", Value=json.dumps(description), Type="String")


def _enforce(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts our judge into the emulator's place for it. Whoever asks is known by the key and the token of a session."""

    def check(request: Any, resource: str) -> None:
        key = request._access_key
        if not isinstance(key, access_control.AssumedRoleAccessKey) or request._action == "sts:GetCallerIdentity":
            return  # the administrator; and what nobody can be denied
        role = key._owner_role_name
        policies = [json.loads(document) for document in key.collect_policies()]
        bound = key.backend.get_role(role).permissions_boundary_arn
        boundary = cloud.deployment.one("iam/policy", "-boundary").document("policy") if bound else None
        for action, asked, context in _asked(request, resource):
            allowed = allows(policies, action, asked, context, boundary)
            cloud.asked.add((role.removesuffix("-0a1b2c3"), action, allowed))
            if not allowed:
                request._raise_access_denied()

    # A signature over a body that is sent in chunks is not what the emulator computes.
    monkeypatch.setattr(access_control.IAMRequestBase, "check_signature", lambda request: None)
    monkeypatch.setattr(access_control.IAMRequestBase, "check_action_permitted", check)
    monkeypatch.setattr(moto_settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)


def _asked(request: Any, resource: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Actions and resources that AWS would look for in the policies, with their conditions' keys.

    https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
    """
    service, _, operation = request._action.partition(":")
    here = f"{REGION}:{ACCOUNT}"
    if service == "s3":
        query = parse_qs(urlsplit(request._path).query)
        context = {"s3:prefix": query["prefix"][0]} if "prefix" in query else {}
        yield f"s3:{ {'HeadBucket': 'ListBucket'}.get(operation, operation) }", resource, context
        return
    body = json.loads(request._body) if request._body[:1] == b"{" else {}
    context = {"aws:RequestedRegion": REGION}
    if service == "batch":  # whose operations the emulator takes from the path
        operation = _BATCH[operation.lower()]
        named = {
            "SubmitJob": [body.get("jobQueue"), body.get("jobDefinition")],
            "TerminateJob": [f"arn:aws:batch:{here}:job/{body.get('jobId')}"],
        }.get(operation, ["*"])
    elif service == "ssm":
        named = [f"arn:aws:ssm:{here}:parameter/{body.get('Name', '').lstrip('/')}"]
    elif service == "logs":
        named = [f"arn:aws:logs:{here}:log-group:{body.get('logGroupName')}"]
    elif service == "ecr":
        named = [f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{body.get('repositoryName')}"]
    elif service == "servicequotas":
        named = [f"arn:aws:servicequotas:{here}:{body.get('ServiceCode')}/{body.get('QuotaCode')}"]
    elif service == "secretsmanager":
        named = [str(body.get("SecretId"))]
    elif service == "sts":
        named = [parse_qs(request._body.decode()).get("RoleArn", ["*"])[0]]
    else:
        named = ["*"]
    for one in named:
        yield f"{service}:{operation}", one, context
