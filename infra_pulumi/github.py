"""Who workflows are. GitHub vouches for them by OpenID Connect: no key of AWS lies anywhere.

preview: pull requests, whose authors' code runs with it: reads the state of the stack, and no more.
deploy: jobs of the environment named like the stack. operator: workflows of the main branch, which run jobs.
"""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from infra_pulumi.boundary import PATH
from infra_pulumi.compute import Compute
from infra_pulumi.deploy_policy import deploy_statements
from infra_pulumi.description import StackDescription
from infra_pulumi.identity import Identity
from infra_pulumi.job_definitions import JobDefinitions
from infra_pulumi.logs import Logs
from infra_pulumi.place import Place
from infra_pulumi.policies import Statement, allow, allow_unnamed, below, document, list_below, trust
from infra_pulumi.registry import Registry
from infra_pulumi.settings import GitHubSettings
from infra_pulumi.state import reading
from infra_pulumi.storage import Storage

ISSUER = "token.actions.githubusercontent.com"
AUDIENCE = "sts.amazonaws.com"
OPERATOR_HOURS = 6  # a workflow waits for its run, and GitHub ends a job after six hours
QUOTAS = ("ec2/L-3819A6DF", "fargate/L-36FBB829")  # vCPUs of G and VT instances on Spot, and of Fargate Spot


class GitHub(pulumi.ComponentResource):
    role_arns: dict[str, pulumi.Output[str]]

    def __init__(
        self,
        place: Place,
        settings: GitHubSettings,
        *,
        storage: Storage,
        registry: Registry,
        identity: Identity,
        compute: Compute,
        definitions: JobDefinitions,
        logs: Logs,
        description: StackDescription,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("pagefleet:aws:GitHub", f"{place.prefix}-github", None, opts)
        self._place = place
        self._settings = settings
        # A workflow that destroys the stack can't remove the role that it acts with: docs/bootstrap.md, Teardown.
        self._child = pulumi.ResourceOptions(parent=self, retain_on_delete=True)
        self._provider_arn = self._issuer()
        state = pulumi.Output.format("arn:{0}:s3:::{1}", place.partition, settings.state_bucket)
        image = allow(["ecr:DescribeImages"], [registry.repository.arn])
        # Pulumi opens a stack with it, also where it holds no secret.
        state_key = [allow(["kms:Decrypt"], [settings.state_key_arn])] if settings.state_key_arn else []
        preview = [
            *reading(place, state),
            *state_key,
            allow_unnamed(["ec2:DescribeAvailabilityZones"]),
            image,
        ]
        operator = [
            allow(["ssm:GetParameter"], [description.parameter.arn]),
            *self._reading_and_writing(storage),
            *self._batch(compute, definitions),
            allow(["logs:FilterLogEvents"], [logs.jobs.arn, pulumi.Output.format("{0}:*", logs.jobs.arn)]),
            allow(["servicequotas:GetServiceQuota"], [place.arn("servicequotas", quota) for quota in QUOTAS]),
            image,
        ]
        self.role_arns = {
            "preview": self._role("preview", "pull_request", preview),
            "deploy": self._role(
                "deploy",
                f"environment:{place.stack}",
                [
                    *deploy_statements(place, state, storage=storage, registry=registry, identity=identity),
                    *state_key,
                ],
            ),
            "operator": self._role("operator", f"ref:refs/heads/{settings.branch}", operator, hours=OPERATOR_HOURS),
        }
        self.register_outputs({"roles": self.role_arns})

    def _issuer(self) -> pulumi.Output[str]:
        """An account has one provider for all of GitHub; where another stack made it, its ARN is configured."""
        if self._settings.oidc_provider_arn:
            return pulumi.Output.from_input(self._settings.oidc_provider_arn)
        provider = aws.iam.OpenIdConnectProvider(
            f"{self._place.prefix}-github", url=f"https://{ISSUER}", client_id_lists=[AUDIENCE], opts=self._child
        )
        return provider.arn

    def _role(self, name: str, context: str, statements: list[Statement], hours: int = 1) -> pulumi.Output[str]:
        """Its path keeps it out of what the deploy role may change: a deployment can't widen its own rights."""
        full = f"{self._place.prefix}-{name}"
        conditions = {
            "StringEquals": {f"{ISSUER}:aud": AUDIENCE, f"{ISSUER}:sub": self._settings.subjects(context)},
        }
        role = aws.iam.Role(
            full,
            path=PATH,
            max_session_duration=3600 * hours,
            assume_role_policy=trust({"Federated": self._provider_arn}, conditions, "sts:AssumeRoleWithWebIdentity"),
            opts=self._child,
        )
        aws.iam.RolePolicy(full, role=role.id, policy=document(*statements), opts=self._child)
        return role.arn

    def _reading_and_writing(self, storage: Storage) -> list[Statement]:
        """Keys are looked up in inputs; runs are written, resumed, collected and fetched."""
        inputs, outputs = storage.inputs.arn, storage.outputs.arn
        return [
            allow(["s3:GetObject"], [below(inputs, "*")]),
            allow(["s3:ListBucket"], [inputs]),
            allow(["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], [below(outputs, "runs/*")]),
            list_below(outputs, "runs/*"),
        ]

    def _batch(self, compute: Compute, definitions: JobDefinitions) -> list[Statement]:
        queues = [queue.arn for queue in compute.queues.values()]
        revisions = [
            self._place.arn("batch", pulumi.Output.format("job-definition/{0}:*", definition.resource.name))
            for definition in definitions.definitions.values()
        ]
        clusters = [
            environment.ecs_cluster_arn
            for name, environment in compute.environments.items()
            if name.startswith("gpu")  # Fargate has no machines to look at
        ]
        return [
            allow(["batch:SubmitJob"], [*queues, *revisions]),
            # A job's name is unknown before it exists.
            allow(["batch:TerminateJob"], [self._place.arn("batch", "job/*")]),
            allow_unnamed(
                [
                    "batch:DescribeComputeEnvironments",
                    "batch:DescribeJobQueues",
                    "batch:DescribeJobs",
                    "batch:ListJobs",
                    "ec2:DescribeSpotPriceHistory",
                    "ec2:DescribeSubnets",
                ]
            ),
            allow(
                ["ecs:DescribeContainerInstances"],
                [self._place.arn("ecs", "container-instance/*")],
                {"ArnEquals": {"ecs:cluster": clusters}},
            ),
        ]
