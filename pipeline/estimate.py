"""What a run will take on the disk, said early: from the first features that have been encoded, at no cost of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from .journal import LOGGER as _log
from .network.layers import output_shapes
from .records import ImageStatus, RunSpec
from .report import words_for_bytes
from .store import disk, format

# Of the features handed over so far, how many must have been encoded for their ratio to speak for them.
ENOUGH = 0.5
# Where less is left than this part of the run, there is nothing left to foresee.
LITTLE = 0.2


class Forecast:
    """Says once what the rest of a run will take, and warns if the disk has less.

    Args:
        folder: The run folder.
        spec: The run.
        rows: To make.
    """

    def __init__(self, folder: Path, spec: RunSpec, rows: int) -> None:
        self._folder = folder
        self._spec = spec
        self._rows = rows
        self._seen = 0
        self._raw_seen = 0
        # Nothing to find out: it has been said before the first image.
        self._is_said = spec.compression == "none" and all(feature.shape for feature in spec.features)

    def look(self, rows: int, raw_seen: int, raw_bytes: int, stored_bytes: int) -> None:
        """Takes note of rows that are done.

        Args:
            rows: How many.
            raw_seen: Bytes of their activations, by :func:`raw_bytes`.
            raw_bytes: Activations that have been encoded so far, before compression.
            stored_bytes: The same, after.
        """
        if self._is_said:
            return
        self._seen += rows
        self._raw_seen += raw_seen
        left = self._rows - self._seen
        if left < LITTLE * self._rows:
            self._is_said = True
        elif raw_bytes and raw_bytes >= ENOUGH * self._raw_seen:
            self._is_said = True
            stored = self._raw_seen / self._seen * stored_bytes / raw_bytes
            say_size(self._folder, self._spec, self._rows, self._raw_seen / self._seen, stored)
            free = disk.free_bytes(self._folder)
            needed = stored * self._rows - stored_bytes
            if needed > free:
                _log.warning(too_little(self._folder, free, needed))


def say_size(folder: Path, spec: RunSpec, rows: int, raw_bytes: float, stored_bytes: float) -> None:
    """Says what rows will take.

    Args:
        folder: The run folder.
        spec: The run.
        rows: How many.
        raw_bytes: Of one row, on average.
        stored_bytes: Likewise.
    """
    total = words_for_bytes(rows * stored_bytes)
    if spec.compression != "none":
        total += f" after compression, {stored_bytes / raw_bytes:.0%} of {words_for_bytes(rows * raw_bytes)}"
    _log.info("estimate: about %s; %s free", total, words_for_bytes(disk.free_bytes(folder)))


def too_little(folder: Path, free_bytes: float, needed_bytes: float) -> str:
    """Gives the warning for a disk that will be full before the run is done."""
    return (
        f"{folder}: the features will hardly fit, got {words_for_bytes(free_bytes)} free for about "
        f"{words_for_bytes(needed_bytes)}. Finished shards are kept if the disk fills up. Free some space, use "
        f"output.dtype=float16, or another disk with output.dir=..."
    )


def raw_bytes(spec: RunSpec, statuses: Sequence[ImageStatus]) -> int:
    """Gives the bytes of these images' activations, before compression."""
    return sum(_raw_bytes(spec, status) for status in statuses if not status.error)


def _raw_bytes(spec: RunSpec, status: ImageStatus) -> int:
    if all(feature.shape for feature in spec.features):
        return format.row_bytes(spec.features, spec.dtype)
    padding = spec.options.get("network.pool_padding", "same")
    shapes = output_shapes(spec.options["network"], (status.height_px, status.width_px), padding)
    values = sum(math.prod(shapes.get(feature.layer.name, (0,))) for feature in spec.features)
    return values * format.ITEMSIZE_BYTES[spec.dtype]
