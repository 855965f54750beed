"""Log groups: what jobs print, and what Batch tells of them."""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from infra_pulumi.place import Place
from infra_pulumi.settings import AlertSettings


class Logs(pulumi.ComponentResource):
    jobs: aws.cloudwatch.LogGroup
    events: aws.cloudwatch.LogGroup

    def __init__(self, place: Place, settings: AlertSettings, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("pagefleet:aws:Logs", f"{place.prefix}-logs", None, opts)
        child = pulumi.ResourceOptions(parent=self)
        self.jobs = aws.cloudwatch.LogGroup(
            f"{place.prefix}-jobs", name=place.path, retention_in_days=settings.log_days, opts=child
        )
        self.events = aws.cloudwatch.LogGroup(
            f"{place.prefix}-events", name=f"{place.path}/events", retention_in_days=settings.log_days, opts=child
        )
        self.register_outputs({"jobs": self.jobs.name, "events": self.events.name})
