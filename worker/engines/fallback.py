"""What reads a page that a generative model could not: the engine asked for by the option `fallback`, and labelled."""

from __future__ import annotations

import threading
from typing import Any

from worker import layout
from worker.contract import Page
from worker.engines import Engine, EngineSettings, PageImage, PageText, build_engine, check_engine
from worker.errors import BadRequest

NEED_MORE = ("openai", "vllm", "upstage")  # an address, a model, an account that is paid from


class Fallback:
    """Another engine, built when it is first needed. Without a name there is none, and pages fail."""

    def __init__(self, name: str | None, settings: EngineSettings, *, writes_markdown: bool) -> None:
        """`writes_markdown`: whether the model does, so that nobody else writes it from the lines of its pages.

        Raises: BadRequest where there is no such engine, or where it can't be built without options.
        """
        if name:
            check_engine(name)
            if name in NEED_MORE:
                raise BadRequest(
                    f"fallback={name}: that engine needs options of its own, and a fallback is given none; "
                    "name one that reads by itself, such as rapidocr"
                )
        self.name = name
        self._writes_markdown = writes_markdown
        self._settings = EngineSettings(
            threads=settings.threads,
            timeout=settings.timeout / 2,  # of the call that it is asked in, half may be gone by then
            lang=settings.lang,
            api_keys=settings.api_keys,
        )
        self._engine: Engine | None = None
        self._turns = threading.BoundedSemaphore()  # as many as the engine takes at a time, once there is one
        self._lock = threading.Lock()

    def read(self, page: PageImage, error: str, details: dict[str, Any]) -> PageText:
        """The page as the other engine reads it, with `error` and that engine's name in its details; or failed."""
        if not self.name:
            return PageText(page.width, page.height, error=error, details=details)
        with self._lock:
            if self._engine is None:
                self._engine = build_engine(self.name, self._settings)
                self._turns = threading.BoundedSemaphore(self._engine.concurrency)
        with self._turns:
            text = self._engine.read([page])[0]
        text.details = {
            **details,
            "fallback": {"engine": self.name, "model": self._engine.model, "revision": self._engine.revision},
            "warnings": [*details.get("warnings", []), f"read by {self.name} instead: {error}"],
        }
        if self._writes_markdown and text.error is None and text.markdown is None:
            given = Page(number=page.number, width=text.width, height=text.height, status="ok", lines=text.lines)
            written = layout.compose([given])[0]
            text.markdown, text.lines = written.markdown, written.lines
        return text

    def close(self) -> None:
        if self._engine:
            self._engine.close()
