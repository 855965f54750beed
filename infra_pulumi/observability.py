"""What a person is told, and can see: failed jobs, stuck queues, a budget, a dashboard."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_aws as aws

from infra_pulumi.compute import Compute
from infra_pulumi.logs import Logs
from infra_pulumi.place import Place
from infra_pulumi.policies import document
from infra_pulumi.settings import AlertSettings

BUDGET_STEPS = (50, 80, 100)  # per cent of the month's limit
# Rough Spot prices per vCPU-hour, memory and GPU included, us-east-1, August 2026: they show an order of magnitude.
# A g6.xlarge at 0.47 of $0.8048 by its 4 vCPUs; Fargate with 2 GiB a vCPU at 0.4 of $0.0494.
USD_PER_VCPU_HOUR = {"gpu": 0.10, "cpu": 0.02}


class Observability(pulumi.ComponentResource):
    topic: aws.sns.Topic
    dashboard: aws.cloudwatch.Dashboard

    def __init__(
        self,
        place: Place,
        settings: AlertSettings,
        *,
        logs: Logs,
        compute: Compute,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("pagefleet:aws:Observability", f"{place.prefix}-observability", None, opts)
        self._place = place
        self._child = pulumi.ResourceOptions(parent=self)
        self._queues = [queue.arn for queue in compute.queues.values()]
        self.topic = aws.sns.Topic(f"{place.prefix}-alerts", opts=self._child)
        for number, address in enumerate(settings.emails):
            aws.sns.TopicSubscription(
                f"{place.prefix}-alerts-{number}",
                topic=self.topic.arn,
                protocol="email",
                endpoint=address,
                opts=self._child,
            )
        self._alerts()
        self._events(logs)
        self._budget(settings.monthly_usd)
        self.dashboard = aws.cloudwatch.Dashboard(
            f"{place.prefix}-dashboard",
            dashboard_name=place.prefix,
            dashboard_body=pulumi.Output.json_dumps({"widgets": self._widgets(logs)}),
            opts=self._child,
        )
        self.register_outputs({"topic": self.topic.arn, "dashboard": self.dashboard.dashboard_name})

    def _alerts(self) -> None:
        """Failed jobs and stuck queues to the topic. Children of an array are left out: their parent fails once."""
        rules = [
            self._rule(
                "failed",
                "Batch Job State Change",
                {"status": ["FAILED"], "arrayProperties": {"index": [{"exists": False}]}},
            ),
            self._rule("blocked", "Batch Job Queue Blocked", {}),
        ]
        for name, rule in zip(("failed", "blocked"), rules, strict=True):
            aws.cloudwatch.EventTarget(
                f"{self._place.prefix}-{name}", rule=rule.name, arn=self.topic.arn, opts=self._child
            )
        publishers: list[tuple[str, dict[str, Any]]] = [
            ("events.amazonaws.com", {"ArnEquals": {"aws:SourceArn": [rule.arn for rule in rules]}}),
            ("budgets.amazonaws.com", {"StringEquals": {"aws:SourceAccount": self._place.account}}),
        ]
        aws.sns.TopicPolicy(
            f"{self._place.prefix}-alerts",
            arn=self.topic.arn,
            policy=document(
                *(
                    {
                        "Effect": "Allow",
                        "Principal": {"Service": service},
                        "Action": "sns:Publish",
                        "Resource": self.topic.arn,
                        "Condition": condition,
                    }
                    for service, condition in publishers
                )
            ),
            opts=self._child,
        )

    def _events(self, logs: Logs) -> None:
        """Every change of state into a log group: Batch has no metrics of its own, the dashboard counts these."""
        rule = self._rule("changed", "Batch Job State Change", {})
        name = f"{self._place.prefix}-events"
        aws.cloudwatch.LogResourcePolicy(
            name,
            policy_name=name,
            policy_document=document(
                {
                    "Effect": "Allow",
                    "Principal": {"Service": ["events.amazonaws.com", "delivery.logs.amazonaws.com"]},
                    "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
                    # AWS documents no condition here, and one that EventBridge doesn't meet drops all in silence.
                    "Resource": pulumi.Output.format("{0}:*", logs.events.arn),
                }
            ),
            opts=self._child,
        )
        aws.cloudwatch.EventTarget(name, rule=rule.name, arn=logs.events.arn, opts=self._child)

    def _rule(self, name: str, kind: str, detail: dict[str, Any]) -> aws.cloudwatch.EventRule:
        pattern = {"source": ["aws.batch"], "detail-type": [kind], "detail": {"jobQueue": self._queues, **detail}}
        return aws.cloudwatch.EventRule(
            f"{self._place.prefix}-{name}", event_pattern=pulumi.Output.json_dumps(pattern), opts=self._child
        )

    def _budget(self, monthly_usd: float) -> None:
        """Of the whole account: filtered by tag it would count nothing until someone activates that tag for billing."""
        aws.budgets.Budget(
            f"{self._place.prefix}-budget",
            budget_type="COST",
            time_unit="MONTHLY",
            limit_amount=f"{monthly_usd:.2f}",
            limit_unit="USD",
            notifications=[
                aws.budgets.BudgetNotificationArgs(
                    comparison_operator="GREATER_THAN",
                    notification_type="ACTUAL",
                    threshold=percent,
                    threshold_type="PERCENTAGE",
                    subscriber_sns_topic_arns=[self.topic.arn],
                )
                for percent in BUDGET_STEPS
            ],
            opts=self._child,
        )

    def _widgets(self, logs: Logs) -> list[dict[str, Any]]:
        """What runs and what it costs from the account's usage metrics, which are free; the rest from the events."""
        gpu = _usage("EC2", "G/Spot"), _usage("EC2", "G/OnDemand")
        cpu = _usage("Fargate", "Standard/Spot"), _usage("Fargate", "Standard/OnDemand")
        usage = [[*metric, {"id": f"m{number}"}] for number, metric in enumerate((*gpu, *cpu))]
        hidden = [[*row[:-1], {**row[-1], "visible": False}] for row in usage]
        cost = f"(m0+m1)*{USD_PER_VCPU_HOUR['gpu']}+(m2+m3)*{USD_PER_VCPU_HOUR['cpu']}"
        events = logs.events.name
        return [
            self._metrics(0, 0, "vCPUs running in this account", usage),
            self._metrics(12, 0, "US dollars per hour, roughly", [[{"expression": cost, "label": "$/h"}], *hidden]),
            self._query(0, 6, "Jobs by state", events, "stats count(*) as jobs by detail.status, bin(5m)"),
            self._query(
                12,
                6,
                "Failures",
                events,
                "filter detail.status = 'FAILED' | fields @timestamp, detail.jobName, detail.statusReason,"
                " detail.container.exitCode | sort @timestamp desc | limit 50",
            ),
            self._query(
                0,
                12,
                "Errors in the jobs' logs",
                logs.jobs.name,
                "filter @message like /(?i)error|traceback/ | fields @timestamp, @logStream, @message"
                " | sort @timestamp desc | limit 50",
            ),
        ]

    def _metrics(self, x: int, y: int, title: str, metrics: list[list[Any]]) -> dict[str, Any]:
        properties = {"title": title, "region": self._place.region, "stat": "Maximum", "period": 300}
        return _widget("metric", x, y, {**properties, "metrics": metrics})

    def _query(self, x: int, y: int, title: str, group: pulumi.Output[str], query: str) -> dict[str, Any]:
        source = pulumi.Output.concat("SOURCE '", group, "' | ", query)
        return _widget("log", x, y, {"title": title, "region": self._place.region, "view": "table", "query": source})


def _usage(service: str, kind: str) -> list[Any]:
    """https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch-Service-Quota-Integration.html"""
    dimensions = {"Service": service, "Type": "Resource", "Resource": "vCPU", "Class": kind}
    return ["AWS/Usage", "ResourceCount", *(part for item in dimensions.items() for part in item)]


def _widget(kind: str, x: int, y: int, properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "x": x, "y": y, "width": 12, "height": 6, "properties": properties}
