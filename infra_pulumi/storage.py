"""Two buckets: documents to read, and what came of them. Private, encrypted, reached over TLS only."""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from infra_pulumi.place import Place
from infra_pulumi.policies import document
from infra_pulumi.settings import StorageSettings

UPLOAD_DAYS = 3  # an upload that was given up is paid for until it is removed


class Storage(pulumi.ComponentResource):
    inputs: aws.s3.Bucket
    outputs: aws.s3.Bucket
    protect: bool  # else whoever destroys the stack empties the buckets first

    def __init__(
        self, place: Place, settings: StorageSettings, *, protect: bool, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pagefleet:aws:Storage", f"{place.prefix}-storage", None, opts)
        self.protect = protect
        # All of them: a bucket that is kept must stay private, encrypted and versioned, too.
        self._child = pulumi.ResourceOptions(parent=self, protect=protect)
        self.inputs = self._bucket(f"{place.prefix}-inputs")
        self.outputs = self._bucket(f"{place.prefix}-outputs")
        versioning = aws.s3.BucketVersioning(
            f"{place.prefix}-inputs",
            bucket=self.inputs.id,
            versioning_configuration=aws.s3.BucketVersioningVersioningConfigurationArgs(status="Enabled"),
            opts=self._child,
        )
        old_versions = aws.s3.BucketLifecycleConfigurationRuleArgs(
            id="remove-old-versions",
            status="Enabled",
            filter=aws.s3.BucketLifecycleConfigurationRuleFilterArgs(prefix=""),
            noncurrent_version_expiration=aws.s3.BucketLifecycleConfigurationRuleNoncurrentVersionExpirationArgs(
                noncurrent_days=settings.noncurrent_days
            ),
        )
        self._lifecycle(f"{place.prefix}-inputs", self.inputs, [old_versions], after=[versioning])
        old_runs = []
        if settings.outputs_days:
            old_runs.append(
                aws.s3.BucketLifecycleConfigurationRuleArgs(
                    id="remove-old-runs",
                    status="Enabled",
                    filter=aws.s3.BucketLifecycleConfigurationRuleFilterArgs(prefix="runs/"),
                    expiration=aws.s3.BucketLifecycleConfigurationRuleExpirationArgs(days=settings.outputs_days),
                )
            )
        self._lifecycle(f"{place.prefix}-outputs", self.outputs, old_runs)
        self.register_outputs({"inputs": self.inputs.bucket, "outputs": self.outputs.bucket})

    def _bucket(self, name: str) -> aws.s3.Bucket:
        bucket = aws.s3.Bucket(name, force_destroy=not self.protect, opts=self._child)
        block = aws.s3.BucketPublicAccessBlock(
            name,
            bucket=bucket.id,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=self._child,
        )
        aws.s3.BucketOwnershipControls(
            name,
            bucket=bucket.id,
            rule=aws.s3.BucketOwnershipControlsRuleArgs(object_ownership="BucketOwnerEnforced"),
            opts=self._child,
        )
        aws.s3.BucketServerSideEncryptionConfiguration(
            name,
            bucket=bucket.id,
            rules=[
                aws.s3.BucketServerSideEncryptionConfigurationRuleArgs(
                    apply_server_side_encryption_by_default=(
                        aws.s3.BucketServerSideEncryptionConfigurationRuleApplyServerSideEncryptionByDefaultArgs(
                            sse_algorithm="AES256"
                        )
                    )
                )
            ],
            opts=self._child,
        )
        tls_only = document(
            {
                "Sid": "OnlyTls",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [bucket.arn, pulumi.Output.format("{0}/*", bucket.arn)],
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            }
        )
        aws.s3.BucketPolicy(
            name,
            bucket=bucket.id,
            policy=tls_only,
            # S3 refuses two such calls at once.
            opts=pulumi.ResourceOptions.merge(self._child, pulumi.ResourceOptions(depends_on=[block])),
        )
        return bucket

    def _lifecycle(
        self,
        name: str,
        bucket: aws.s3.Bucket,
        rules: list[aws.s3.BucketLifecycleConfigurationRuleArgs],
        after: list[pulumi.Resource] | None = None,
    ) -> None:
        given_up = aws.s3.BucketLifecycleConfigurationRuleArgs(
            id="remove-incomplete-uploads",
            status="Enabled",
            filter=aws.s3.BucketLifecycleConfigurationRuleFilterArgs(prefix=""),
            abort_incomplete_multipart_upload=(
                aws.s3.BucketLifecycleConfigurationRuleAbortIncompleteMultipartUploadArgs(
                    days_after_initiation=UPLOAD_DAYS
                )
            ),
        )
        aws.s3.BucketLifecycleConfiguration(
            name,
            bucket=bucket.id,
            rules=[given_up, *rules],
            opts=pulumi.ResourceOptions.merge(self._child, pulumi.ResourceOptions(depends_on=after)),
        )
