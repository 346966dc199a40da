"""How far a run is: a bar on a terminal, a line every half minute elsewhere; and the end of a run in which too much fails."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from tqdm import TqdmWarning
from tqdm.contrib.logging import logging_redirect_tqdm

with warnings.catch_warnings():
    # That a notebook lacks ipywidgets is no fault: the bar is drawn in characters then.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

from .errors import DatasetError
from .journal import LOGGER, can_draw
from .records import ImageStatus

LINE_EVERY_SECONDS = 30.0
# Failed images that are named while the run goes on.
FAILURES_SAID = 20
# Characters of a key in a line: a stranger's list may name megabytes.
LONGEST_KEY = 300

_log = logging.getLogger(__name__)


class Progress:
    """Counts rows as they are done.

    Args:
        keys: Of all rows of the run.
        rows_before: Finished by an earlier run.
        errors_before: Why some of these failed.
        max_failed_fraction: The run stops when more than this share of all rows has failed.
        rows: That are to be done by this process, those before among them; None: all of the run.
    """

    def __init__(
        self,
        keys: Sequence[str],
        rows_before: int,
        errors_before: Sequence[str],
        max_failed_fraction: float,
        rows: int | None = None,
    ) -> None:
        rows = len(keys) if rows is None else rows
        self._rows = rows
        self._keys = keys
        self._said = 0
        self._done = rows_before
        self._before = rows_before
        self._failed = len(errors_before)
        self._fraction = max_failed_fraction
        self._example = next(iter(errors_before), "")
        self._began = self._last_line = time.monotonic()
        self._draws = can_draw()
        self._above = ExitStack()
        self._bar = tqdm(total=rows, initial=rows_before, unit="img", disable=not self._draws, dynamic_ncols=True, smoothing=0.05)

    def count(self, rows: int, failed: Sequence[ImageStatus]) -> None:
        """Counts rows that are done.

        Args:
            rows: How many.
            failed: Those of them that failed.

        Raises:
            DatasetError: More than the allowed share of images has failed.
        """
        self._done += rows
        self._failed += len(failed)
        self._bar.set_postfix({"failed": self._failed}, refresh=False)
        self._bar.update(rows)
        for status in failed:
            self._example = status.error
            self._say_failed(status)
        refuse_failures(self._failed, len(self._keys), self._fraction, self._example)
        now = time.monotonic()
        if not self._draws and now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            rate = (self._done - self._before) / (now - self._began)
            left = (self._rows - self._done) / rate if rate > 0 else 0.0
            _log.info(
                "%d of %d images, %d failed, %.2f images/s, %s left",
                *(self._done, self._rows, self._failed, rate, clock(left)),
            )

    def _say_failed(self, status: ImageStatus) -> None:
        if self._said < FAILURES_SAID:
            _log.warning("failed: %r: %s", self._keys[status.index][:LONGEST_KEY], status.error)
        elif self._said == FAILURES_SAID:
            _log.warning("failed: further ones are only counted here; all reasons are in /images/error")
        self._said += 1

    def __enter__(self) -> Progress:
        if self._draws:
            # Above the bar. Without one there is nothing to keep clear of, and tqdm would let through what is to be kept quiet.
            self._above.enter_context(logging_redirect_tqdm([LOGGER]))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._above.close()
        self._bar.close()


def refuse_failures(failed: int, rows: int, max_failed_fraction: float, example: str) -> None:
    """Stops a run in which too much fails.

    Raises:
        DatasetError: More than this share of all rows has failed.
    """
    # The quotient is rounded the way the user's decimal number was: 29 of 100 is 0.29.
    if failed / rows > max_failed_fraction:
        raise DatasetError(
            f"data.max_failed_fraction: too many images fail, got {failed} of {rows}, e.g. {example!r}. Expected "
            f"at most a share of {max_failed_fraction:g}. Raise data.max_failed_fraction to go on, or "
            "mend the images and start again with output.existing=replace."
        )


def clock(seconds: float) -> str:
    """Gives ``0:03:20``."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
