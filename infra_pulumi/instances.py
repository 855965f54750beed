"""What machines offer: GPU instance types, and the sizes that Fargate accepts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Instance:
    vcpus: int
    memory: int  # MiB, nominal
    gpu: str  # one of it: a job asks for one

    @property
    def usable_memory(self) -> int:
        """MiB that a job may ask for. Kernel and ECS agent take some: a job that asks for all waits for ever."""
        return self.memory * 7 // 8


# https://aws.amazon.com/ec2/instance-types/ (accelerated computing); T4 has no bf16, so it comes last
GPU_INSTANCES = {
    "g6.xlarge": Instance(4, 16 * 1024, "L4"),
    "g6.2xlarge": Instance(8, 32 * 1024, "L4"),
    "g6.4xlarge": Instance(16, 64 * 1024, "L4"),
    "g6e.xlarge": Instance(4, 32 * 1024, "L40S"),
    "g6e.2xlarge": Instance(8, 64 * 1024, "L40S"),
    "g6e.4xlarge": Instance(16, 128 * 1024, "L40S"),
    "g5.xlarge": Instance(4, 16 * 1024, "A10G"),
    "g5.2xlarge": Instance(8, 32 * 1024, "A10G"),
    "g5.4xlarge": Instance(16, 64 * 1024, "A10G"),
    "g4dn.xlarge": Instance(4, 16 * 1024, "T4"),
    "g4dn.2xlarge": Instance(8, 32 * 1024, "T4"),
    "g4dn.4xlarge": Instance(16, 64 * 1024, "T4"),
}

# vCPUs: MiB from, to, in steps of; https://docs.aws.amazon.com/batch/latest/userguide/fargate.html
FARGATE_MEMORY = {
    1: range(2048, 8192 + 1, 1024),
    2: range(4096, 16384 + 1, 1024),
    4: range(8192, 30720 + 1, 1024),
    8: range(16384, 61440 + 1, 4096),
    16: range(32768, 122880 + 1, 8192),
}
