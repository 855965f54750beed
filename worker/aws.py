"""What AWS refuses, and what keeps it from being asked, in our words: storage and the commands say the same of it.

Codes are those of AWS's common errors and of S3, each in the spellings that its services have for it.
"""

from __future__ import annotations

EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
INVALID = {"InvalidClientTokenId", "UnrecognizedClientException", "InvalidSignatureException", "AuthFailure"}
INVALID |= {"SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken"}
THROTTLED = {"Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException"}
THROTTLED |= {"TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded", "PriorRequestNotComplete"}
THROTTLED |= {"EC2ThrottledException", "SlowDown"}


def refused_credentials(code: str) -> str | None:
    """Of an error's code; None where it is about something else."""
    if code in EXPIRED:
        return "the AWS credentials have expired: run `aws sso login`, then the same command again"
    return f"AWS refuses the credentials ({code}): check AWS_PROFILE" if code in INVALID else None


def wrong_setup(error: Exception) -> str | None:
    """Of an exception with which botocore gives up before it asks AWS; None where it is about something else."""
    from botocore import exceptions as aws

    if isinstance(error, aws.NoRegionError):
        return "no AWS region is set: set AWS_REGION, or give --region"
    if isinstance(error, aws.InvalidRegionError):
        return f"the AWS region is none: {error} Correct AWS_REGION or --region"
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return f"{error}: correct AWS_ENDPOINT_URL, such as https://HOST"
    if isinstance(error, aws.ProfileNotFound):
        return f"{error}: correct AWS_PROFILE, or add it with `aws configure sso`"
    missing = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)
    signed_out = (aws.NoAuthTokenError, aws.TokenRetrievalError, aws.SSOError, aws.LoginError)
    if isinstance(error, missing + signed_out):
        return f"there are no AWS credentials ({error}): set AWS_PROFILE, or run `aws sso login`"
    return None


def throttled(what: str, attempts: int) -> str:
    return f"AWS throttles {what} past {attempts} attempts: try again in a minute"


def unreachable(what: str, error: Exception) -> str:
    return f"AWS cannot be reached for {what}: {error}; check the network, the region and AWS_ENDPOINT_URL"


def no_bucket(bucket: str) -> str:
    return f"there is no bucket {bucket}: check its name; `pulumi up` makes those of a stack"
