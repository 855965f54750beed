"""The most that any role of machines and jobs can ever be allowed, whatever a deployment writes into its policies.

It grants nothing by itself. The deploy role can't change it, and may make only roles that are bound by it.
"""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from infra_pulumi.logs import Logs
from infra_pulumi.place import Place
from infra_pulumi.policies import Statement, allow, allow_unnamed, below, document
from infra_pulumi.registry import Registry
from infra_pulumi.storage import Storage

# What the policies that AWS manages for machines (`identity.INSTANCE_POLICIES`) allow, but for the parameters that
# AmazonSSMManagedInstanceCore opens: a machine needs none, and other people's secrets may lie there.
# https://docs.aws.amazon.com/aws-managed-policy/latest/reference/AmazonEC2ContainerServiceforEC2Role.html
MACHINES = (
    *("ec2:DescribeTags", "ecs:CreateCluster", "ecs:DeregisterContainerInstance", "ecs:DiscoverPollEndpoint"),
    *("ecs:ListTagsForResource", "ecs:Poll", "ecs:RegisterContainerInstance", "ecs:StartTelemetrySession"),
    *("ecs:SubmitAttachmentStateChanges", "ecs:SubmitContainerStateChange", "ecs:SubmitTaskStateChange"),
    *("ecs:TagResource", "ecs:UpdateContainerInstancesState"),
)
# https://docs.aws.amazon.com/aws-managed-policy/latest/reference/AmazonSSMManagedInstanceCore.html
SHELLS = (
    *("ec2messages:AcknowledgeMessage", "ec2messages:DeleteMessage", "ec2messages:FailMessage"),
    *("ec2messages:GetEndpoint", "ec2messages:GetMessages", "ec2messages:SendReply"),
    *("ssm:DescribeAssociation", "ssm:DescribeDocument", "ssm:GetDeployablePatchSnapshotForInstance"),
    *("ssm:GetDocument", "ssm:GetManifest", "ssm:ListAssociations", "ssm:ListInstanceAssociations"),
    *("ssm:PutComplianceItems", "ssm:PutConfigurePackageResult", "ssm:PutInventory", "ssm:UpdateAssociationStatus"),
    *("ssm:UpdateInstanceAssociationStatus", "ssm:UpdateInstanceInformation"),
    *("ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel"),
    *("ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel"),
)
PATH = "/github/"  # of what the deploy role may read and never change


def boundary(
    place: Place,
    *,
    storage: Storage,
    registry: Registry,
    logs: Logs,
    secret: pulumi.Input[str] | None,
    parent: pulumi.Resource,
) -> aws.iam.Policy:
    inputs, outputs = storage.inputs.arn, storage.outputs.arn
    statements: list[Statement] = [
        allow(["s3:GetObject"], [below(inputs, "*")]),
        allow(["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], [below(outputs, "*")]),
        allow(["s3:ListBucket"], [inputs, outputs]),
        allow_unnamed(["ecr:GetAuthorizationToken"]),
        allow(
            ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            [registry.repository.arn],
        ),
        allow(["logs:CreateLogStream", "logs:PutLogEvents"], [pulumi.Output.format("{0}:*", logs.jobs.arn)]),
        allow_unnamed([*MACHINES, *SHELLS]),
    ]
    if secret is not None:
        statements.append(allow(["secretsmanager:GetSecretValue"], [secret]))
    return aws.iam.Policy(
        f"{place.prefix}-boundary",
        path=PATH,
        policy=document(*statements),
        # The deploy role may not remove it: a person does, when the stack is gone.
        opts=pulumi.ResourceOptions(parent=parent, retain_on_delete=True),
    )
