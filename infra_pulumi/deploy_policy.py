"""What the deploy role may do: make, change and remove what this program declares, named after its stack.

Actions are listed one by one; `*` stands as a resource only where AWS gives a thing its name on creation.
"""

from __future__ import annotations

import pulumi

from infra_pulumi.boundary import PATH
from infra_pulumi.identity import INSTANCE_POLICIES, Identity
from infra_pulumi.place import Place
from infra_pulumi.policies import Statement, allow, allow_unnamed, below
from infra_pulumi.registry import Registry
from infra_pulumi.state import writing
from infra_pulumi.storage import Storage

NETWORK = (
    *("AllocateAddress", "AssociateRouteTable", "AttachInternetGateway", "AuthorizeSecurityGroupEgress"),
    *("CreateInternetGateway", "CreateLaunchTemplate", "CreateLaunchTemplateVersion", "CreateNatGateway"),
    *("CreateRoute", "CreateRouteTable", "CreateSecurityGroup", "CreateSubnet", "CreateTags", "CreateVpc"),
    *("CreateVpcEndpoint", "DeleteInternetGateway", "DeleteLaunchTemplate", "DeleteLaunchTemplateVersions"),
    *("DeleteNatGateway", "DeleteRoute", "DeleteRouteTable", "DeleteSecurityGroup", "DeleteSubnet", "DeleteTags"),
    *("DeleteVpc", "DeleteVpcEndpoints", "DetachInternetGateway", "DisassociateAddress", "DisassociateRouteTable"),
    *("ModifyLaunchTemplate", "ModifySecurityGroupRules", "ModifySubnetAttribute", "ModifyVpcAttribute"),
    *("ModifyVpcEndpoint", "ReleaseAddress", "RevokeSecurityGroupEgress", "RevokeSecurityGroupIngress"),
    *("DescribeAddresses", "DescribeAddressesAttribute", "DescribeAvailabilityZones", "DescribeInternetGateways"),
    *("DescribeLaunchTemplates", "DescribeLaunchTemplateVersions", "DescribeNatGateways", "DescribeNetworkAcls"),
    *("DescribeNetworkInterfaces", "DescribePrefixLists", "DescribeRouteTables", "DescribeSecurityGroupRules"),
    *("DescribeSecurityGroups", "DescribeSubnets", "DescribeVpcAttribute", "DescribeVpcEndpoints", "DescribeVpcs"),
    "RunInstances",  # Batch tries the launch template out on behalf of who creates an environment
)
BUCKETS = (
    *("CreateBucket", "DeleteBucket", "DeleteBucketPolicy", "ListBucket", "ListBucketVersions"),
    *("GetAccelerateConfiguration", "GetBucketAcl", "GetBucketCORS", "GetBucketLocation", "GetBucketLogging"),
    *("GetBucketObjectLockConfiguration", "GetBucketOwnershipControls", "GetBucketPolicy"),
    *("GetBucketPublicAccessBlock", "GetBucketRequestPayment", "GetBucketTagging", "GetBucketVersioning"),
    *("GetBucketWebsite", "GetEncryptionConfiguration", "GetLifecycleConfiguration", "GetReplicationConfiguration"),
    *("PutBucketOwnershipControls", "PutBucketPolicy", "PutBucketPublicAccessBlock", "PutBucketTagging"),
    *("PutBucketVersioning", "PutEncryptionConfiguration", "PutLifecycleConfiguration"),
)
EMPTYING = ("DeleteObject", "DeleteObjectVersion")
REPOSITORIES = (
    *("CreateRepository", "DeleteLifecyclePolicy", "DeleteRepository", "DescribeImages", "DescribeRepositories"),
    *("GetLifecyclePolicy", "GetRepositoryPolicy", "ListTagsForResource", "PutImageScanningConfiguration"),
    *("PutImageTagMutability", "PutLifecyclePolicy", "TagResource", "UntagResource"),
    *("BatchCheckLayerAvailability", "BatchDeleteImage", "BatchGetImage", "CompleteLayerUpload"),
    *("GetDownloadUrlForLayer", "InitiateLayerUpload", "ListImages", "PutImage", "UploadLayerPart"),
)
ROLE_READING = (
    *("GetRole", "GetRolePolicy", "ListAttachedRolePolicies", "ListInstanceProfilesForRole", "ListRolePolicies"),
    "ListRoleTags",
)
ROLES = (
    *ROLE_READING,
    *("DeleteRole", "DeleteRolePolicy", "DetachRolePolicy", "TagRole", "UntagRole", "UpdateAssumeRolePolicy"),
    "UpdateRole",
)
BOUND = ("CreateRole", "PutRolePermissionsBoundary", "PutRolePolicy")  # where the boundary is, or becomes, the role's
POLICY_READING = ("GetPolicy", "GetPolicyVersion", "ListPolicyVersions")
PROFILES = (
    *("AddRoleToInstanceProfile", "CreateInstanceProfile", "DeleteInstanceProfile", "GetInstanceProfile"),
    *("RemoveRoleFromInstanceProfile", "TagInstanceProfile", "UntagInstanceProfile"),
)
BATCH = (
    *("CreateComputeEnvironment", "CreateJobQueue", "DeleteComputeEnvironment", "DeleteJobQueue"),
    *("DeregisterJobDefinition", "ListTagsForResource", "RegisterJobDefinition", "TagResource", "UntagResource"),
    *("UpdateComputeEnvironment", "UpdateJobQueue"),
)
BATCH_READING = ("DescribeComputeEnvironments", "DescribeJobDefinitions", "DescribeJobQueues")
LOG_GROUPS = (
    *("CreateLogGroup", "DeleteLogGroup", "DeleteRetentionPolicy", "ListTagsForResource", "PutRetentionPolicy"),
    *("TagResource", "UntagResource"),
)
RULES = (
    *("DeleteRule", "DescribeRule", "ListTagsForResource", "ListTargetsByRule", "PutRule", "PutTargets"),
    *("RemoveTargets", "TagResource", "UntagResource"),
)
TOPICS = (
    *("CreateTopic", "DeleteTopic", "GetTopicAttributes", "ListTagsForResource", "SetTopicAttributes", "Subscribe"),
    *("TagResource", "UntagResource"),
)
PARAMETERS = (
    *("AddTagsToResource", "DeleteParameter", "GetParameter", "GetParameters", "ListTagsForResource", "PutParameter"),
    "RemoveTagsFromResource",
)
SECRETS = (  # all but their values
    *("CreateSecret", "DeleteSecret", "DescribeSecret", "GetResourcePolicy", "RestoreSecret", "TagResource"),
    *("UntagResource", "UpdateSecret"),
)
SERVICES = ("batch.amazonaws.com", "ecs.amazonaws.com", "spot.amazonaws.com")  # whose own roles Batch relies on


def deploy_statements(
    place: Place, state: pulumi.Input[str], *, storage: Storage, registry: Registry, identity: Identity
) -> list[Statement]:
    named, prefix = place.arn, place.prefix
    roles = [named("iam", f"role/{prefix}-*")]
    bound = {"StringEquals": {"iam:PermissionsBoundary": identity.boundary_arn}}
    buckets = [storage.inputs.arn, storage.outputs.arn]
    managed = [pulumi.Output.format("arn:{0}:iam::aws:policy/{1}", place.partition, name) for name in INSTANCE_POLICIES]
    return [
        # Pulumi's state of this stack, and its lock
        *writing(place, state),
        # Network and launch template
        allow_unnamed(_of("ec2", *NETWORK), {"StringEquals": {"aws:RequestedRegion": place.region}}),
        # Buckets, but nothing of what they hold, which only goes with them
        allow(_of("s3", *BUCKETS), buckets),
        *([] if storage.protect else [allow(_of("s3", *EMPTYING), [below(bucket, "*") for bucket in buckets])]),
        allow(_of("ecr", *REPOSITORIES), [registry.repository.arn, registry.cache.arn]),
        allow_unnamed(["ecr:GetAuthorizationToken"]),
        # Roles of machines and jobs, all within the boundary; it and the roles of GitHub have a path, and are read only
        allow(_of("iam", *ROLES), roles),
        allow(_of("iam", *BOUND), roles, bound),
        allow(["iam:AttachRolePolicy"], roles, {**bound, "ArnEquals": {"iam:PolicyARN": managed}}),
        allow(_of("iam", *POLICY_READING), [identity.boundary_arn]),
        allow(
            ["iam:PassRole"],
            roles,
            {"StringEquals": {"iam:PassedToService": ["ec2.amazonaws.com", "ecs-tasks.amazonaws.com"]}},
        ),
        allow(_of("iam", *PROFILES), [named("iam", f"instance-profile/{prefix}-*")]),
        allow(_of("iam", *ROLE_READING), [named("iam", f"role{PATH}{prefix}-*")]),
        allow(["iam:GetOpenIDConnectProvider"], [named("iam", "oidc-provider/token.actions.githubusercontent.com")]),
        allow(
            ["iam:CreateServiceLinkedRole"],
            [named("iam", "role/aws-service-role/*")],
            {"StringEquals": {"iam:AWSServiceName": SERVICES}},
        ),
        # Batch
        allow(
            _of("batch", *BATCH),
            [named("batch", f"{kind}/{prefix}-*") for kind in ("compute-environment", "job-queue", "job-definition")],
        ),
        allow_unnamed(_of("batch", *BATCH_READING)),
        # Logs, events, alerts
        allow(_of("logs", *LOG_GROUPS), [named("logs", f"log-group:{place.path}{end}") for end in ("", ":*", "/*")]),
        allow_unnamed(
            _of("logs", "DeleteResourcePolicy", "DescribeLogGroups", "DescribeResourcePolicies", "PutResourcePolicy")
        ),
        allow(_of("events", *RULES), [named("events", f"rule/{prefix}-*")]),
        allow(_of("sns", *TOPICS), [named("sns", f"{prefix}-*")]),
        allow(_of("sns", "GetSubscriptionAttributes", "Unsubscribe"), [named("sns", f"{prefix}-*")]),
        allow(
            _of("cloudwatch", "DeleteDashboards", "GetDashboard", "PutDashboard"),
            [pulumi.Output.format("arn:{0}:cloudwatch::{1}:dashboard/{2}", place.partition, place.account, prefix)],
        ),
        allow(
            _of("budgets", "ListTagsForResource", "ModifyBudget", "TagResource", "UntagResource", "ViewBudget"),
            [pulumi.Output.format("arn:{0}:budgets::{1}:budget/{2}-*", place.partition, place.account, prefix)],
        ),
        allow(_of("ssm", *PARAMETERS), [named("ssm", f"parameter{place.path}")]),
        allow_unnamed(["ssm:DescribeParameters"]),
        allow(_of("secretsmanager", *SECRETS), [named("secretsmanager", f"secret:{prefix}-*")]),
    ]


def _of(service: str, *actions: str) -> list[str]:
    return [f"{service}:{action}" for action in actions]
