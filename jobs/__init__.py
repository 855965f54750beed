"""What a person or a workflow runs: plan, run, collect, report. `pagefleet` is its command line; `open_run` its Python
side, for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.results import Document, RunFolder, open_run

__all__ = ["Document", "RunFolder", "open_run"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # late, so that `pagefleet --help` need not load what it doesn't use
        from jobs import results

        return getattr(results, name)
    raise AttributeError(f"module 'jobs' has no attribute {name!r}")
