"""Batches of NumPy arrays, decoded by all cores while the last batch is being used. What PyTorch and TensorFlow are fed from."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ..errors import OptionError
from . import order
from .examples import Examples, Features, Labels
from .order import Order

# Batches that are read ahead; a window of chunks is large, and one ahead is enough.
AHEAD = 2
WINDOWS_AHEAD = 1
# Chunks of several rows that are read as one where nothing is shuffled: 4 MiB.
STRAIGHT_CHUNKS = 16

# Rows that are read at once where they are given one by one.
ROWS_AT_ONCE = 8

Batch = tuple[Features, Labels]


class Batches:
    """The batches of one epoch after the other: each ``iter`` begins the next epoch, in another order if shuffled.

    Memory: at most four batches, the one in use among them; where rows share chunks, besides at most three windows of
    ``buffer_chunks`` chunks, about 256 KiB a chunk and layer.

    Args:
        examples: What to read.
        batch_size: Rows a batch; the last may have fewer.
        shuffle: Whether rows come in a random order; see :mod:`.order` for how random.
        seed: Of the order; the same seed gives the same epochs.
        buffer_chunks: How many chunks are mixed where rows share chunks.
        drop_last: Leave out a last batch that is not full.
        share: (rank, ranks): read the rows of one of several processes. Shuffled, all get the same number, and up to
            ``ranks - 1`` rows are left out of an epoch, others each time; in order, nothing is left out.

    Raises:
        OptionError: A number is out of range, or no batch is left.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        buffer_chunks: int = 512,
        drop_last: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0), ("buffer_chunks", buffer_chunks, 1)):
            if not isinstance(value, (int, np.integer)) or value < least:
                raise OptionError(f"{name}: out of range, got {value!r}. Expected a whole number from {least} on.")
        if not _is_share(share):
            raise OptionError(f"share: out of range, got {share!r}. Expected (rank, ranks) with 0 <= rank < ranks.")
        self.examples = examples
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.seed = int(seed)
        self.share = int(share[0]), int(share[1])
        self.epoch = 0
        self._buffer_chunks = int(buffer_chunks)
        self._start, stop = order.share_of(len(examples), self.share, equal=shuffle)
        self.rows = (stop - self._start) // self.batch_size * self.batch_size if drop_last else stop - self._start
        if not self.rows:
            raise OptionError(
                f"batch_size: no batch is left, got {self.batch_size} for {stop - self._start} of {len(examples)} rows "
                f"(share {share[0]} of {share[1]}). Expected fewer rows a batch, or fewer ranks."
            )

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Makes this the number of the epoch that begins next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        self.epoch += 1
        return self.read((self.epoch - 1,))

    def read(self, epoch: tuple[int, ...], part: tuple[int, int] = (0, 1), threads: int | None = None) -> Iterator[Batch]:
        """Gives the batches of an epoch, or some of them.

        Args:
            epoch: Numbers of the epoch, >= 0.
            part: (number, parts): a contiguous part of its batches. Parts tile the epoch.
            threads: How many decode; None: as many as there are cores.
        """
        start, stop = (min(place * self.batch_size, self.rows) for place in order.share_of(len(self), part, equal=False))
        pieces = self._order(epoch).cut(self._start + start, self._start + stop)
        if pieces.stops is None:
            yield from self._ahead(
                pieces, range(self.batch_size, stop - start + self.batch_size, self.batch_size), threads, AHEAD
            )
        else:
            yield from self._rebatch(self._ahead(pieces, pieces.stops.tolist(), threads, WINDOWS_AHEAD))

    def _order(self, epoch: tuple[int, ...]) -> Order:
        if self.shuffle:
            return order.shuffled(self.examples.units(), self._buffer_chunks, (self.seed, *epoch))
        chunk_rows = self.examples.chunk_rows
        return order.straight(len(self.examples), None if chunk_rows == 1 else STRAIGHT_CHUNKS * chunk_rows)

    def _ahead(self, pieces: Order, stops: Any, threads: int | None, ahead: int) -> Iterator[Batch]:
        """Reads from one stop to the next, some ahead in a thread of its own."""
        waiting: deque[Future[Batch]] = deque()
        reader = ThreadPoolExecutor(1, "batches")
        try:
            for start, stop in itertools.pairwise([0, *stops]):
                waiting.append(reader.submit(self.examples.read, pieces.places[start:stop], threads))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Also when nobody wants the rest.
            reader.shutdown(wait=True, cancel_futures=True)

    def _rebatch(self, windows: Iterator[Batch]) -> Iterator[Batch]:
        """Cuts what was read as one into batches; only one that lies across a border is copied."""
        held: list[Batch] = []
        missing = self.batch_size
        for window in windows:
            start, rows = 0, _length(window)
            while start < rows:
                stop = min(rows, start + missing)
                held.append(_slice(window, start, stop))
                missing -= stop - start
                start = stop
                if not missing:
                    yield _join(held)
                    held, missing = [], self.batch_size
        if held:
            yield _join(held)

    def __repr__(self) -> str:
        how = f"shuffled, seed {self.seed}" if self.shuffle else "in order"
        share = f", share {self.share[0]} of {self.share[1]}" if self.share[1] > 1 else ""
        return f"<{len(self)} batches of {self.batch_size}, {how}{share}: {self.examples!r}>"


def _is_share(share: Any) -> bool:
    """Tells whether this is (rank, ranks)."""
    whole = isinstance(share, (tuple, list)) and all(isinstance(number, (int, np.integer)) for number in share)
    return whole and len(share) == 2 and 0 <= share[0] < share[1]


def _length(batch: Batch) -> int:
    features = batch[0]
    return len(next(iter(features.values())) if isinstance(features, dict) else features)


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    features, labels = batch
    if isinstance(features, dict):
        cut: Features = {name: values[start:stop] for name, values in features.items()}
    else:
        cut = features[start:stop]
    return cut, None if labels is None else labels[start:stop]


def _join(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    features, labels = zip(*batches, strict=True)
    if isinstance(features[0], dict):
        joined: Features = {name: _concatenate([of_batch[name] for of_batch in features]) for name in features[0]}
    else:
        joined = _concatenate(list(features))
    return joined, None if labels[0] is None else np.concatenate(labels)


def _concatenate(parts: list[Any]) -> Any:
    return [image for part in parts for image in part] if isinstance(parts[0], list) else np.concatenate(parts)
