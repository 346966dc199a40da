"""What has come of one shard so far, and whether that is all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..records import FeatureSpec, ImageStatus, ShardSpec
from ..statistics import LayerStatistics, Tally
from . import codec
from .cutter import Cutter
from .shard import ShardFile


class Progress:
    """A shard being made: its file, and what has come of its rows.

    Args:
        file: Open.
        shard: Which rows.
        features: The layers.

    Attributes:
        rows_put: Layer -> how many rows have come.
        cutters: Layer -> where its rows are cut, for layers of fixed shape.
        parts: (layer, row) -> band -> (CRC-32, bytes). Threads finish the bands of a row in any order.
        tallies: Layer -> what has been gathered of its values.
        tasks_waiting: Chunks on their way to the disk, some together; guarded by the writer's lock, as is ``all_put``.
        all_put: Nothing more will come, and nobody has taken it for finishing yet.
        broken: Some of it could not be encoded or written; it is to be dropped.
    """

    def __init__(self, file: ShardFile, shard: ShardSpec, features: Sequence[FeatureSpec]) -> None:
        self.file = file
        self.shard = shard
        self.rows_put = {feature.layer.name: 0 for feature in features}
        self.cutters = {
            feature.layer.name: Cutter(file.chunk(feature.shape)) for feature in features if feature.shape is not None
        }
        self.parts: dict[tuple[str, int], dict[int, tuple[int, int]]] = {}
        self.tallies = {feature.layer.name: Tally(feature.layer.channels) for feature in features}
        self.tasks_waiting = 0
        self.all_put = False
        self.broken = False
        self._statuses: list[ImageStatus | None] = [None] * shard.rows
        self._statuses_missing = shard.rows
        self._rows_ok = 0

    def add_status(self, status: ImageStatus) -> None:
        """Notes what became of an image."""
        row = status.index - self.shard.first
        assert self._statuses[row] is None, f"two statuses for row {status.index}"
        self._statuses[row] = status
        self._statuses_missing -= 1
        self._rows_ok += not status.error

    @property
    def complete(self) -> bool:
        """Whether every row has a status, and every row that is ok has come of every layer."""
        return not self._statuses_missing and all(rows == self._rows_ok for rows in self.rows_put.values())

    def statuses(self) -> list[ImageStatus]:
        """Gives the statuses that have come, in order."""
        return [status for status in self._statuses if status]

    def statistics(self) -> dict[str, LayerStatistics]:
        """Gives layer -> statistics of its rows."""
        return {layer: tally.statistics(self._rows_ok) for layer, tally in self.tallies.items()}

    def checksums(self) -> dict[str, NDArray[np.uint32]]:
        """Gives layer -> (rows,) CRC-32 of each row; 0 for failed ones."""
        values = {layer: np.zeros(self.shard.rows, np.uint32) for layer in self.rows_put}
        for (layer, row), bands in self.parts.items():
            values[layer][row] = codec.join_checksums([bands[band] for band in sorted(bands)])
        return values
