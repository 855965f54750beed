"""`python -m worker`: one shard of a run, or one document, as its environment says (`worker.settings`).

Ends with an `ExitCode`. Receipts and progress go to standard output, one JSON line each; all else to standard error.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from worker.contract import ExitCode
from worker.errors import BadRequest, DocumentError, WorkerError
from worker.receipts import take_standard_output
from worker.settings import Settings
from worker.tether import tie

log = logging.getLogger("worker")


def main() -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    take_standard_output()
    try:
        return _run(Settings.from_environment(os.environ))
    except WorkerError as error:
        log.error("%s", error)
        return error.exit_code
    except DocumentError as error:  # storage refuses the run's own files, not a document
        log.error("%s", error.message)
        return ExitCode.BAD_REQUEST
    except Exception:
        log.exception("the worker crashed")
        return ExitCode.CRASHED


def _run(settings: Settings) -> int:
    from worker.shard import Drain, read_document, read_shard
    from worker.storage import open_storage

    if settings.supervised:
        tie(signal.SIGKILL)  # it must not outlive its supervisor, or two would read the same shard
    drain = Drain(settings.drain_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: drain.ask())
    if settings.run_uri:
        return read_shard(settings, open_storage(), drain)
    if settings.input_uri and settings.output_uri:
        return read_document(settings, open_storage(), drain)
    raise BadRequest("set PAGEFLEET_RUN_URI to a run's folder, or INPUT_S3_URI and OUTPUT_S3_URI for one document")


if __name__ == "__main__":
    code = main()
    os._exit(code)  # not sys.exit: an engine's threads may never come back
