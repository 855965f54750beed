"""The secret that holds the key of the Upstage API: the stack owns its shell, and a person puts the value in."""

from __future__ import annotations

import pulumi_aws as aws

from infra_pulumi.place import Place


def upstage_secret(place: Place) -> aws.secretsmanager.Secret:
    """Without a value, which would else lie in Pulumi's state. Its name ends at random, as one that was deleted stays
    taken for the days in which it can be brought back."""
    return aws.secretsmanager.Secret(
        f"{place.prefix}-upstage",
        description="Key of the Upstage API, as plain text",
        recovery_window_in_days=7,
    )
