"""Who may do what: trust, and the little that each role is allowed."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

import pytest

from jobs.doctor import FARGATE_SPOT_QUOTA, SPOT_GPU_QUOTA
from tests.infra_pulumi.conftest import ACCOUNT, GITHUB, SECRET, Deploy, Deployment

WORKFLOWS = ("preview", "deploy", "operator")
ISSUER = "token.actions.githubusercontent.com"
# What AWS names on creation, or has no resource for at all; of EC2 only the deploy role may use the rest.
UNNAMED = {
    *("ecr:GetAuthorizationToken", "ssm:DescribeParameters"),
    *("batch:DescribeComputeEnvironments", "batch:DescribeJobDefinitions", "batch:DescribeJobQueues"),
    *("batch:DescribeJobs", "batch:ListJobs"),
    *("ec2:DescribeAvailabilityZones", "ec2:DescribeSpotPriceHistory", "ec2:DescribeSubnets"),
    *("logs:DeleteResourcePolicy", "logs:DescribeLogGroups", "logs:DescribeResourcePolicies", "logs:PutResourcePolicy"),
}
STATE = "arn:aws:s3:::octo-state/.pulumi"
OWN_STATE = [
    f"{STATE}/stacks/pagefleet/dev.*",
    *(f"{STATE}/{kind}/pagefleet/dev/*" for kind in ("history", "backups", "journal", "locks/organization")),
]


@pytest.fixture
def full(deploy: Deploy) -> Deployment:
    return deploy("dev", github=GITHUB, upstageSecretArn=SECRET)


@pytest.mark.parametrize(
    ("role", "context"),
    [("preview", "pull_request"), ("deploy", "environment:dev"), ("operator", "ref:refs/heads/main")],
)
def test_a_workflow_is_trusted_by_exact_audience_and_subject(full: Deployment, role: str, context: str) -> None:
    (statement,) = full.one("iam/role", f"-{role}").document("assumeRolePolicy")["Statement"]
    assert statement == {
        "Effect": "Allow",
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Principal": {"Federated": f"arn:aws:iam::{ACCOUNT}:oidc-provider/{ISSUER}"},
        "Condition": {
            "StringEquals": {
                f"{ISSUER}:aud": "sts.amazonaws.com",
                f"{ISSUER}:sub": [
                    f"repo:octo-org/pagefleet:{context}",
                    f"repo:octo-org@583231/pagefleet@1296269:{context}",
                ],
            }
        },
    }


def test_only_the_operator_works_longer_than_an_hour(full: Deployment) -> None:
    hours = {role: full.one("iam/role", f"-{role}").inputs["maxSessionDuration"] / 3600 for role in WORKFLOWS}
    assert hours == {"preview": 1, "deploy": 1, "operator": 6}  # for as long as GitHub lets a job run


def test_there_are_no_other_roles_for_workflows(full: Deployment, deploy: Deploy) -> None:
    trusting = [role.name for role in full.all("iam/role") if "Federated" in role.inputs["assumeRolePolicy"]]
    assert sorted(trusting) == ["pagefleet-dev-deploy", "pagefleet-dev-operator", "pagefleet-dev-preview"]
    without = deploy()
    assert not [role for role in without.all("iam/role") if "Federated" in role.inputs["assumeRolePolicy"]]


def test_an_accounts_provider_is_made_once(deploy: Deploy) -> None:
    arn = f"arn:aws:iam::{ACCOUNT}:oidc-provider/{ISSUER}"
    second = deploy("prod", github={**GITHUB, "oidcProviderArn": arn})
    assert not second.count("iam/openIdConnectProvider")
    (statement,) = second.one("iam/role", "-deploy").document("assumeRolePolicy")["Statement"]
    assert statement["Principal"] == {"Federated": arn}
    assert statement["Condition"]["StringEquals"][f"{ISSUER}:sub"][0] == "repo:octo-org/pagefleet:environment:prod"


@pytest.mark.parametrize("role", ["job", "training", "execution"])
def test_only_this_accounts_containers_take_on_the_jobs_roles(full: Deployment, role: str) -> None:
    (statement,) = full.one("iam/role", f"-{role}").document("assumeRolePolicy")["Statement"]
    assert statement["Principal"] == {"Service": "ecs-tasks.amazonaws.com"}
    assert statement["Condition"] == {
        "StringEquals": {"aws:SourceAccount": ACCOUNT},
        "ArnLike": {"aws:SourceArn": f"arn:aws:ecs:us-east-1:{ACCOUNT}:*"},
    }


def test_no_policy_says_all_where_it_can_say_what(full: Deployment) -> None:
    for policy in full.all("iam/rolePolicy"):
        for statement in policy.document("policy")["Statement"]:
            assert set(statement) <= {"Effect", "Action", "Resource", "Condition"}
            for action in statement["Action"]:
                assert "*" not in action
                if statement["Resource"] == ["*"] and action not in UNNAMED:
                    assert policy.name.endswith("-deploy")
                    assert action.startswith("ec2:")
                    assert statement["Condition"] == {"StringEquals": {"aws:RequestedRegion": "us-east-1"}}
            if statement["Resource"] != ["*"]:
                assert "*" not in statement["Resource"]


def test_the_instance_role_holds_what_ecs_and_a_shell_need(full: Deployment) -> None:
    assert [one.inputs["policyArn"] for one in full.all("iam/rolePolicyAttachment")] == [
        "arn:aws:iam::aws:policy/service-role/AmazonEC2ContainerServiceforEC2Role",
        "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore",
    ]


def test_a_job_reads_inputs_writes_runs_and_nothing_else(full: Deployment) -> None:
    inputs, outputs = _buckets(full)
    assert full.allowed("job") == {
        "s3:GetObject": [f"{inputs}/*", f"{outputs}/runs/*"],
        "s3:PutObject": [f"{outputs}/runs/*"],
        "s3:DeleteObject": [f"{outputs}/runs/*/failures/*", f"{outputs}/runs/*/parts/*.failed.json"],
        "s3:ListBucket": [outputs],
        "secretsmanager:GetSecretValue": [SECRET],
    }
    (listing,) = [one for one in full.statements("job") if one["Action"] == ["s3:ListBucket"]]
    assert listing["Condition"] == {"StringLikeIfExists": {"s3:prefix": "runs/*"}}


def test_without_a_secret_nobody_may_read_one(deploy: Deploy) -> None:
    for policy in deploy("dev", github=GITHUB).all("iam/rolePolicy"):
        assert "GetSecretValue" not in policy.inputs["policy"]


def test_the_stacks_own_secret_is_a_shell_that_jobs_read_and_nobody_fills(deploy: Deploy) -> None:
    deployment = deploy("dev", github=GITHUB, upstageSecret=True)
    secret = deployment.one("secretsmanager/secret")
    assert not deployment.count("secretsmanager/secretVersion")
    arn = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret/{secret.physical}"
    assert deployment.description["upstage_secret"] == arn
    assert deployment.allowed("job")["secretsmanager:GetSecretValue"] == [arn]
    for role in ("training", "preview", "operator", "deploy"):
        assert "secretsmanager:GetSecretValue" not in deployment.allowed(role)
    assert not {"PutSecretValue", "GetSecretValue"} & {action.split(":")[1] for action in deployment.allowed("deploy")}
    for definition in deployment.all("batch/jobDefinition"):  # jobs of other engines must start without its value
        assert not definition.document("containerProperties").get("secrets")


def test_training_writes_below_its_own_prefix_only(full: Deployment) -> None:
    inputs, outputs = _buckets(full)
    allowed = full.allowed("training")
    assert allowed["s3:PutObject"] == allowed["s3:DeleteObject"] == [f"{outputs}/training/*"]
    assert set(allowed["s3:GetObject"]) == {f"{inputs}/*", f"{outputs}/training/*"}
    assert {action.split(":")[0] for action in allowed} == {"s3"}


def test_a_pull_request_can_write_nothing_and_read_no_secret_and_no_document(full: Deployment) -> None:
    allowed = full.allowed("preview")
    assert set(allowed) == {
        *("s3:ListBucket", "s3:GetObject", "ec2:DescribeAvailabilityZones"),
        "ecr:DescribeImages",
    }
    assert allowed["s3:GetObject"] == [f"{STATE}/meta.yaml", *OWN_STATE]
    assert allowed["s3:ListBucket"] == ["arn:aws:s3:::octo-state"]


def test_a_state_key_is_for_opening_the_state_alone(deploy: Deploy) -> None:
    key = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/0a1b"
    keyed = deploy("dev", github={**GITHUB, "stateKeyArn": key})
    assert keyed.allowed("preview")["kms:Decrypt"] == keyed.allowed("deploy")["kms:Decrypt"] == [key]
    assert not any(action.startswith("kms:") for action in keyed.allowed("operator"))


def test_the_operator_submits_this_stacks_jobs_and_writes_runs(full: Deployment) -> None:
    inputs, outputs = _buckets(full)
    allowed = full.allowed("operator")
    queues = [queue.arn for queue in full.all("batch/jobQueue")]
    revisions = [
        f"arn:aws:batch:us-east-1:{ACCOUNT}:job-definition/{definition.physical}:*"
        for definition in full.all("batch/jobDefinition")
    ]
    assert sorted(allowed["batch:SubmitJob"]) == sorted(queues + revisions)
    assert allowed["s3:PutObject"] == allowed["s3:DeleteObject"] == [f"{outputs}/runs/*"]
    assert sorted(allowed["s3:GetObject"]) == sorted([f"{inputs}/*", f"{outputs}/runs/*"])
    assert len(allowed["ssm:GetParameter"]) == 1
    services = {action.split(":")[0] for action in allowed}
    assert services == {"batch", "ec2", "ecr", "ecs", "logs", "s3", "servicequotas", "ssm"}
    # what `doctor` and `watch` look at, for all that the stack runs on
    quotas = {arn.rpartition(":")[2] for arn in allowed["servicequotas:GetServiceQuota"]}
    assert quotas == {f"{service}/{code}" for service, code, _ in (SPOT_GPU_QUOTA, FARGATE_SPOT_QUOTA)}


def test_the_deploy_role_makes_only_roles_within_a_boundary_that_it_cannot_change(full: Deployment) -> None:
    boundary = full.one("iam/policy", "-boundary")
    arn = boundary.arn
    assert arn.startswith(f"arn:aws:iam::{ACCOUNT}:policy/github/pagefleet-dev-boundary")
    bound = [role for role in full.all("iam/role") if role.inputs.get("path") != "/github/"]
    assert len(bound) == 4
    assert {role.inputs["permissionsBoundary"] for role in bound} == {arn}
    for statement in full.statements("deploy"):
        widening = {"iam:CreateRole", "iam:PutRolePolicy", "iam:AttachRolePolicy", "iam:PutRolePermissionsBoundary"}
        if widening & set(statement["Action"]):
            assert statement["Condition"]["StringEquals"] == {"iam:PermissionsBoundary": arn}
    allowed = full.allowed("deploy")
    assert not {"iam:DeleteRolePermissionsBoundary", "iam:CreatePolicy", "iam:CreatePolicyVersion"} & allowed.keys()
    assert {action for action in allowed if arn in allowed[action]} == {
        *("iam:GetPolicy", "iam:GetPolicyVersion", "iam:ListPolicyVersions")
    }


def test_the_boundary_leaves_machines_and_jobs_what_they_need(full: Deployment) -> None:
    from moto.iam.aws_managed_policies import aws_managed_policies_data

    (statements,) = [full.one("iam/policy", "-boundary").document("policy")["Statement"]]
    within = {action for statement in statements for action in statement["Action"]}
    managed = json.loads(aws_managed_policies_data)
    needed = {action for role in ("job", "training", "execution") for action in full.allowed(role)}
    for policy in full.all("iam/rolePolicyAttachment"):
        document = managed[policy.inputs["policyArn"].rpartition("/")[2]]["Document"]
        needed |= {action for statement in document["Statement"] for action in as_list(statement["Action"])}
    missing = {action for action in needed if not any(fnmatchcase(one, action) for one in within)}
    assert missing == {"ssm:GetParameter", "ssm:GetParameters"}


def test_the_deploy_role_cannot_widen_the_rights_of_workflows_or_read_documents_itself(full: Deployment) -> None:
    for role in ("preview", "deploy", "operator"):
        assert full.one("iam/role", f"-{role}").inputs["path"] == "/github/"
    allowed = full.allowed("deploy")
    for action in ("PutRolePolicy", "UpdateAssumeRolePolicy", "AttachRolePolicy", "PassRole", "CreateRole"):
        assert allowed[f"iam:{action}"] == [f"arn:aws:iam::{ACCOUNT}:role/pagefleet-dev-*"]
    assert allowed["s3:GetObject"] == [f"{STATE}/meta.yaml", *OWN_STATE]
    assert allowed["s3:PutObject"] == OWN_STATE
    assert "secretsmanager:GetSecretValue" not in allowed
    passing = [one for one in full.statements("deploy") if one["Action"] == ["iam:PassRole"]]
    assert passing[0]["Condition"] == {
        "StringEquals": {"iam:PassedToService": ["ec2.amazonaws.com", "ecs-tasks.amazonaws.com"]}
    }


def test_policies_fit_into_their_roles(full: Deployment) -> None:
    for policy in full.all("iam/rolePolicy"):
        assert len(policy.inputs["policy"].replace(" ", "")) < 10240  # characters of all inline policies of a role


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _buckets(deployment: Deployment) -> tuple[str, str]:
    names = [deployment.one("s3/bucket", f"-{name}").physical for name in ("inputs", "outputs")]
    return f"arn:aws:s3:::{names[0]}", f"arn:aws:s3:::{names[1]}"
