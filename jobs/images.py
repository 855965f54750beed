"""Page images for the report: decoded anew from the sources, small, in child processes as the worker does."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.report import thumbnail
from worker.contract import Options, Result
from worker.decode import BadPage, Decoder
from worker.errors import DocumentError, WorkerError
from worker.scratch import Scratch
from worker.storage import Storage

LONGEST_SIDE = 900  # pixels: text of a dense page can just be read


class PageImages:
    """Callable as `write_report` wants it. Close it when done."""

    def __init__(self, storage: Storage, options: Options) -> None:
        self._storage = storage
        self._decoder = Decoder(options, longest_side=LONGEST_SIDE)
        self._away: WorkerError | None = None
        self._scratch = Scratch()

    def __call__(self, result: Result, numbers: list[int]) -> Iterator[tuple[int, bytes | None]]:
        """(page number, WebP) of the pages asked for; None for those whose source can't be read any more."""
        import numpy as np

        rotations = {page.number: page.rotation for page in result.pages}
        missing = set(numbers)
        try:
            if self._away:
                raise self._away
            fetched = self._storage.fetch(result.source_image, self._scratch.path)
            try:
                for page in self._decoder.pages(str(fetched.path), ",".join(map(str, sorted(numbers)))):
                    if not isinstance(page, BadPage):
                        number = page.image.number
                        turns = -rotations.get(number, 0) // 90  # rot90 turns counterclockwise
                        upright = np.rot90(page.image.pixels, turns)
                        missing.discard(number)
                        yield number, thumbnail(np.ascontiguousarray(upright), LONGEST_SIDE)
            finally:
                if fetched.temporary:
                    fetched.path.unlink(missing_ok=True)
        except DocumentError:
            pass  # a source that has gone or changed: the report draws the page from its lines
        except WorkerError as error:
            self._away = error  # the storage itself: not asked again for every document
        yield from ((number, None) for number in sorted(missing))

    def __enter__(self) -> PageImages:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()
        self._scratch.remove()
