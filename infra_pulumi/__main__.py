"""The Pulumi program: its table of contents."""

import sys
from pathlib import Path

import pulumi

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # Pulumi runs this folder as a script, so that the package itself isn't on the path

from infra_pulumi.compute import Compute
from infra_pulumi.description import StackDescription
from infra_pulumi.github import GitHub
from infra_pulumi.identity import Identity
from infra_pulumi.image import baked_engines, has_vllm, image_tag
from infra_pulumi.job_definitions import JobDefinitions
from infra_pulumi.logs import Logs
from infra_pulumi.network import Network
from infra_pulumi.observability import Observability
from infra_pulumi.place import Place
from infra_pulumi.registry import Registry
from infra_pulumi.settings import load
from infra_pulumi.storage import Storage
from infra_pulumi.upstage import upstage_secret

settings = load()
place = Place.of(settings)

network = Network(place, settings.network)
storage = Storage(place, settings.storage, protect=settings.protect)
registry = Registry(
    place, tag=image_tag(ROOT), engines=baked_engines(ROOT), vllm=has_vllm(ROOT), protect=settings.protect
)
logs = Logs(place, settings.alerts)
secret = upstage_secret(place).arn if settings.upstage_secret else None
identity = Identity(place, storage=storage, registry=registry, logs=logs, secret=secret or settings.upstage_secret_arn)
compute = Compute(place, settings.compute, network=network, identity=identity)
definitions = JobDefinitions(place, settings, network=network, registry=registry, identity=identity, logs=logs)
observability = Observability(place, settings.alerts, logs=logs, compute=compute)
description = StackDescription(
    place,
    network=network,
    storage=storage,
    registry=registry,
    compute=compute,
    definitions=definitions,
    logs=logs,
    secret=secret,
)
pulumi.export("description", description.value)
pulumi.export("dashboard", observability.dashboard.dashboard_name)

if settings.github:
    github = GitHub(
        place,
        settings.github,
        storage=storage,
        registry=registry,
        identity=identity,
        compute=compute,
        definitions=definitions,
        logs=logs,
        description=description,
    )
    pulumi.export("roles", github.role_arns)
