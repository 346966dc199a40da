"""Encodes features as the writer does and keeps none of them: what a run will take on the disk, found out without a file."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..records import FeatureBatch, ImageStatus, RunSpec
from ..statistics import gather
from . import codec, format
from .cutter import Cutter, Piece
from .unstorable import value_error
from .writer import WAITING_BYTES


class Trial:
    """A :class:`~pipeline.records.Sink` that counts. Rows may be any of the run, as if they were neighbours in a shard.

    Args:
        spec: The run.
        workers: Threads that encode.

    Attributes:
        statuses: Of the images that were put.
        raw_bytes: Layer -> activations before compression.
        stored_bytes: Layer -> the same, after.
    """

    def __init__(self, spec: RunSpec, workers: int) -> None:
        self.statuses: list[ImageStatus] = []
        self.raw_bytes = {feature.layer.name: 0 for feature in spec.features}
        self.stored_bytes = dict(self.raw_bytes)
        self._spec = spec
        self._dtype = np.dtype(format.STORED_DTYPES[spec.dtype])
        self._cutters = {
            feature.layer.name: Cutter(format.chunk_shape(feature.shape, self._dtype.itemsize))
            for feature in spec.features
            if feature.shape
        }
        self._indices: dict[str, list[int]] = {name: [] for name in self.raw_bytes}
        self._waiting_bytes = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._encoders = ThreadPoolExecutor(max(1, workers), "trial")

    def put_statuses(self, statuses: Sequence[ImageStatus]) -> None:
        """Takes what became of some images."""
        self.statuses += statuses

    def put_features(self, features: FeatureBatch) -> None:
        """Takes activations; returns before they are encoded, and blocks while too much is waiting.

        Raises:
            NetworkError: A value cannot be stored.
        """
        known = self._indices[features.layer]
        rows = np.arange(len(known), len(known) + len(features.indices))
        known += features.indices.tolist()
        for piece in self._cut(features.layer, rows, features.values):
            self._submit(features.layer, piece)

    def _cut(self, layer: str, rows: NDArray[np.int64], values: NDArray[np.float32]) -> Iterator[Piece]:
        if layer in self._cutters:
            yield from self._cutters[layer].put(rows, values)
            return
        for place, row in enumerate(rows.tolist()):
            chunk = (1, *format.band_shape(values.shape[1:], self._dtype.itemsize))
            yield from Cutter(chunk).put(np.array([row]), values[place : place + 1])

    def _submit(self, layer: str, piece: Piece) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._waiting_bytes < WAITING_BYTES)
            self._raise()
            self._waiting_bytes += piece.values.nbytes
        self._encoders.submit(self._encode, layer, piece)

    def _encode(self, layer: str, piece: Piece) -> None:
        raw = stored = 0
        try:
            # The rows alone: the last chunk of a layer need not be full.
            values = codec.converted(piece.values[: piece.rows[-1] - piece.first_row + 1], self._dtype)
            for row in piece.rows:
                of_row = values[row - piece.first_row]
                if not gather(of_row.astype(np.float32, copy=False)).is_finite:
                    raise value_error(self._spec, self._indices[layer][row], layer, piece.row_values(row))
                raw += of_row.nbytes
            stored = len(codec.encode(values, self._spec.compression))
        except BaseException as error:
            self._error = self._error or error
        with self._changed:
            self._waiting_bytes -= piece.values.nbytes
            self.raw_bytes[layer] += raw
            self.stored_bytes[layer] += stored
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error:
            raise self._error

    def close(self) -> None:
        """Waits until all is encoded.

        Raises:
            NetworkError: A value cannot be stored.
        """
        for layer, cutter in self._cutters.items():
            for piece in cutter.flush():
                self._submit(layer, piece)
        self._encoders.shutdown(wait=True)
        self._raise()

    def abort(self) -> None:
        """Encodes no more."""
        self._encoders.shutdown(wait=True, cancel_futures=True)
