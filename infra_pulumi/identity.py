"""Who the machines and the jobs are, and the little that each may do."""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from infra_pulumi.boundary import boundary
from infra_pulumi.logs import Logs
from infra_pulumi.place import Place
from infra_pulumi.policies import Statement, allow, allow_unnamed, below, document, list_below, trust
from infra_pulumi.registry import Registry
from infra_pulumi.storage import Storage

INSTANCE_POLICIES = (
    "service-role/AmazonEC2ContainerServiceforEC2Role",
    "AmazonSSMManagedInstanceCore",  # a shell for debugging, without any open port
)


class Identity(pulumi.ComponentResource):
    instance_profile_arn: pulumi.Output[str]
    instance_policies: list[aws.iam.RolePolicyAttachment]  # must outlive the compute environments
    job_role_arn: pulumi.Output[str]
    training_role_arn: pulumi.Output[str]
    execution_role_arn: pulumi.Output[str]
    boundary_arn: pulumi.Output[str]

    def __init__(
        self,
        place: Place,
        *,
        storage: Storage,
        registry: Registry,
        logs: Logs,
        secret: pulumi.Input[str] | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("pagefleet:aws:Identity", f"{place.prefix}-identity", None, opts)
        self._place = place
        self._child = pulumi.ResourceOptions(parent=self)
        self.boundary_arn = boundary(
            place, storage=storage, registry=registry, logs=logs, secret=secret, parent=self
        ).arn
        key_of_upstage = [allow(["secretsmanager:GetSecretValue"], [secret])] if secret is not None else []
        self._instances()

        inputs, outputs = storage.inputs.arn, storage.outputs.arn
        self.job_role_arn = self._task_role(
            "job",
            allow(["s3:GetObject"], [below(inputs, "*")]),
            allow(["s3:GetObject", "s3:PutObject"], [below(outputs, "runs/*")]),
            # A document that is read at a second try leaves no failure behind.
            allow(
                ["s3:DeleteObject"],
                [below(outputs, "runs/*/failures/*"), below(outputs, "runs/*/parts/*.failed.json")],
            ),
            list_below(outputs, "runs/*"),
            *key_of_upstage,
        )
        self.training_role_arn = self._task_role(
            "training",
            allow(["s3:GetObject"], [below(inputs, "*")]),
            allow(["s3:ListBucket"], [inputs]),
            # Checkpoints take each other's place.
            allow(["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], [below(outputs, "training/*")]),
            list_below(outputs, "training/*"),
        )
        self.execution_role_arn = self._task_role(
            "execution",
            allow_unnamed(["ecr:GetAuthorizationToken"]),
            allow(
                ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                [registry.repository.arn],
            ),
            allow(["logs:CreateLogStream", "logs:PutLogEvents"], [pulumi.Output.format("{0}:*", logs.jobs.arn)]),
            *key_of_upstage,
        )
        self.register_outputs({"jobRole": self.job_role_arn, "trainingRole": self.training_role_arn})

    def _instances(self) -> None:
        name = f"{self._place.prefix}-instance"
        role = self._role(name, trust({"Service": "ec2.amazonaws.com"}))
        self.instance_policies = [
            aws.iam.RolePolicyAttachment(
                f"{name}-{policy.rpartition('/')[2]}",
                role=role.name,
                policy_arn=pulumi.Output.format("arn:{0}:iam::aws:policy/{1}", self._place.partition, policy),
                opts=self._child,
            )
            for policy in INSTANCE_POLICIES
        ]
        self.instance_profile_arn = aws.iam.InstanceProfile(name, role=role.name, opts=self._child).arn

    def _task_role(self, name: str, *statements: Statement) -> pulumi.Output[str]:
        """A role for containers of this account; the conditions keep other accounts' services from using it."""
        full = f"{self._place.prefix}-{name}"
        conditions = {
            "StringEquals": {"aws:SourceAccount": self._place.account},
            "ArnLike": {"aws:SourceArn": self._place.arn("ecs", "*")},
        }
        role = self._role(full, trust({"Service": "ecs-tasks.amazonaws.com"}, conditions))
        aws.iam.RolePolicy(full, role=role.id, policy=document(*statements), opts=self._child)
        return role.arn

    def _role(self, name: str, trusted: pulumi.Output[str]) -> aws.iam.Role:
        return aws.iam.Role(name, assume_role_policy=trusted, permissions_boundary=self.boundary_arn, opts=self._child)
