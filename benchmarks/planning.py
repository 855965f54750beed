"""Time and memory of planning a run over a key list, and of `pagefleet --help`.

python benchmarks/planning.py [--keys 1000000]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = """
import sys
from jobs.plan import Sharding, describe_run, make_plan, read_keys_file, write_plan
from worker.contract import Options, RunPaths
from worker.storage import open_storage, path_uri
from pathlib import Path
plan = make_plan(read_keys_file(sys.argv[1]), Sharding(1000))
run = describe_run(plan, "x", "rapidocr", Options(), {})
write_plan(open_storage(), RunPaths(path_uri(Path(sys.argv[2]))), plan, run)
"""


def run(*command: str) -> tuple[float, float]:
    """Wall seconds and peak memory in MB of a command that must succeed."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.monotonic() - started, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        keys = Path(scratch, "keys.txt")
        with open(keys, "w", encoding="utf-8") as lines:
            for number in range(given.keys):
                lines.write(f"s3://a-bucket-of-scans/archive/2024/{number % 1000:03d}/box-07/scan-{number:07d}.jpg\n")
        seconds, memory = run(sys.executable, "-c", SCRIPT, str(keys), str(Path(scratch, "run")))
        print(f"plan of {given.keys:,} keys, written as 1,000 shards: {seconds:.1f} s, {memory:.0f} MB")
    times = sorted(run(sys.executable, "-m", "jobs.cli", "--help")[0] for _ in range(9))
    print(f"pagefleet --help: {times[4]:.3f} s (median of 9)")


if __name__ == "__main__":
    main()
