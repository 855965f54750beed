"""Machines that exist while there is work: GPUs on Spot, Fargate Spot for the rest, and the queues before them."""

from __future__ import annotations

import base64

import pulumi
import pulumi_aws as aws

from infra_pulumi.identity import Identity
from infra_pulumi.network import Network
from infra_pulumi.place import Place
from infra_pulumi.settings import ComputeSettings

# Without draining ECS doesn't tell a container that its Spot machine is about to go. A stop may take most of the two
# minutes' notice. Tags are immutable, so that an image that is there needs no second look.
USER_DATA = """\
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="==pagefleet=="

--==pagefleet==
Content-Type: text/x-shellscript; charset="us-ascii"

#!/bin/bash
cat >> /etc/ecs/ecs.config <<'CONFIG'
ECS_ENABLE_SPOT_INSTANCE_DRAINING=true
ECS_CONTAINER_STOP_TIMEOUT=110s
ECS_IMAGE_PULL_BEHAVIOR=prefer-cached
CONFIG

--==pagefleet==--
"""
# What can hold up the head of a queue, and for how many seconds it may.
# https://docs.aws.amazon.com/batch/latest/userguide/job_stuck_in_runnable.html
HOPELESS = ("MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE", "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT")
HOPELESS_SECONDS = 1800
NO_CAPACITY = "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY"


class Compute(pulumi.ComponentResource):
    queues: dict[str, aws.batch.JobQueue]  # by "gpu" and "cpu"
    environments: dict[str, aws.batch.ComputeEnvironment]

    def __init__(
        self,
        place: Place,
        settings: ComputeSettings,
        *,
        network: Network,
        identity: Identity,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("pagefleet:aws:Compute", f"{place.prefix}-compute", None, opts)
        self._place = place
        self._settings = settings
        self._network = network
        self._identity = identity
        template = self._launch_template()
        self.environments = {
            "gpu-spot": self._machines("gpu-spot", template, "SPOT", "SPOT_PRICE_CAPACITY_OPTIMIZED"),
            "cpu-spot": self._fargate("cpu-spot", "FARGATE_SPOT"),
        }
        if settings.on_demand:
            self.environments["gpu-on-demand"] = self._machines(
                "gpu-on-demand", template, "EC2", "BEST_FIT_PROGRESSIVE"
            )
            self.environments["cpu-on-demand"] = self._fargate("cpu-on-demand", "FARGATE")
        self.queues = {kind: self._queue(kind) for kind in ("gpu", "cpu")}
        self.register_outputs({kind: queue.arn for kind, queue in self.queues.items()})

    def _launch_template(self) -> aws.ec2.LaunchTemplate:
        return aws.ec2.LaunchTemplate(
            f"{self._place.prefix}-gpu",
            update_default_version=True,
            user_data=base64.b64encode(USER_DATA.encode()).decode(),
            metadata_options=aws.ec2.LaunchTemplateMetadataOptionsArgs(
                http_endpoint="enabled",
                http_tokens="required",
                # One hop: containers must not take on the machine's role; they learn of its end by SIGTERM.
                http_put_response_hop_limit=1,
            ),
            block_device_mappings=[
                aws.ec2.LaunchTemplateBlockDeviceMappingArgs(
                    device_name="/dev/xvda",
                    ebs=aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgs(
                        volume_type="gp3",
                        volume_size=self._settings.root_gib,
                        encrypted="true",
                        delete_on_termination="true",
                    ),
                )
            ],
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _machines(
        self, kind: str, template: aws.ec2.LaunchTemplate, purchase: str, strategy: str
    ) -> aws.batch.ComputeEnvironment:
        """No fixed name and no service role: what Batch can't change in place, Pulumi can then replace."""
        return aws.batch.ComputeEnvironment(
            f"{self._place.prefix}-{kind}",
            type="MANAGED",
            compute_resources=aws.batch.ComputeEnvironmentComputeResourcesArgs(
                type=purchase,
                allocation_strategy=strategy,
                instance_types=list(self._settings.gpu_instance_types),
                min_vcpus=0,
                desired_vcpus=0,
                max_vcpus=self._settings.gpu_max_vcpus,
                ec2_configurations=[
                    aws.batch.ComputeEnvironmentComputeResourcesEc2ConfigurationArgs(image_type="ECS_AL2023_NVIDIA")
                ],
                instance_role=self._identity.instance_profile_arn,
                launch_template=aws.batch.ComputeEnvironmentComputeResourcesLaunchTemplateArgs(
                    # Batch looks up `$Latest` when it makes an environment and in updates of its infrastructure, which
                    # a new version alone doesn't cause; a number that changes does.
                    launch_template_id=template.id,
                    version=pulumi.Output.format("{0}", template.latest_version),
                ),
                subnets=self._network.subnet_ids,
                security_group_ids=[self._network.security_group_id],
                tags={"Name": f"{self._place.prefix}-{kind}"},
            ),
            update_policy=aws.batch.ComputeEnvironmentUpdatePolicyArgs(
                job_execution_timeout_minutes=60, terminate_jobs_on_update=False
            ),
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=self._identity.instance_policies,
                ignore_changes=["computeResources.desiredVcpus"],  # Batch's own, once it exists
            ),
        )

    def _fargate(self, kind: str, purchase: str) -> aws.batch.ComputeEnvironment:
        return aws.batch.ComputeEnvironment(
            f"{self._place.prefix}-{kind}",
            type="MANAGED",
            compute_resources=aws.batch.ComputeEnvironmentComputeResourcesArgs(
                type=purchase,
                max_vcpus=self._settings.cpu_max_vcpus,
                subnets=self._network.subnet_ids,
                security_group_ids=[self._network.security_group_id],
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _queue(self, kind: str) -> aws.batch.JobQueue:
        """First come, first served: with fair shares, every submission would have to name its share."""
        environments = [
            self.environments[name] for name in (f"{kind}-spot", f"{kind}-on-demand") if name in self.environments
        ]
        limits = [(reason, HOPELESS_SECONDS) for reason in HOPELESS]
        limits.append((NO_CAPACITY, self._settings.capacity_hours * 3600))
        return aws.batch.JobQueue(
            f"{self._place.prefix}-{kind}",
            state="ENABLED",
            priority=1,
            compute_environment_orders=[
                aws.batch.JobQueueComputeEnvironmentOrderArgs(order=order, compute_environment=environment.arn)
                for order, environment in enumerate(environments, start=1)
            ],
            job_state_time_limit_actions=[
                aws.batch.JobQueueJobStateTimeLimitActionArgs(
                    action="CANCEL", state="RUNNABLE", reason=reason, max_time_seconds=seconds
                )
                for reason, seconds in limits
            ],
            opts=pulumi.ResourceOptions(parent=self),
        )
