"""Rows of a run for training: chosen, labelled, put in the order of an epoch, and read ahead as batches of NumPy arrays.

PyTorch and TensorFlow are fed from here. A run is given by whoever calls: nothing of the store is imported.

**How random an epoch is.** Where every row is a chunk of its own (rows of 64 KiB or more: all convolutional layers at usual
sizes), its order is a uniform random permutation of all rows, as ``DataLoader(shuffle=True)`` would draw it.

Smaller rows share a chunk, and reading one costs as much as reading all. Chunks are then permuted uniformly, and taken in windows
of K (:data:`WINDOW_CHUNKS`); the rows of a window are permuted uniformly, so that a run of at most K chunks is. Every row is
equally likely at every place of the epoch, but the rows of one chunk, which are neighbours in the list of images and so mostly of
one class, come in the same window. Of a batch of B, the share of a class with frequency p has the variance
``p (1 - p) (1/B + 1/K)`` at most, in place of ``p (1 - p) / B``: a standard deviation larger by ``sqrt(1 + B/K)``, 6 % for 64.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, StoreError, nearest
from ..machine import available_bytes
from ..records import OK

# Layer -> (n, h, w, c), at native size a list of (h, w, c); and None -> (n,) or (n, ...) labels, where there are some.
Columns = dict[str | None, Any]

# Chunks of small rows that are mixed when rows are shuffled, about 256 KiB each.
WINDOW_CHUNKS = 512
# Batches, or windows, that are read ahead.
AHEAD = 2
# Chunks of several rows that are read as one where nothing is shuffled: 4 MiB.
STRAIGHT_CHUNKS = 16
# Rows that are read at once where they are given one by one.
ROWS_AT_ONCE = 8


class Examples:
    """Rows of a run with the activations of some layers and labels. May be pickled: it carries the run by its path.

    The arguments are those of ``run.batches``.

    Attributes:
        rows: (n,) int64, rows of the run, in the order in which they were given.
        layers: Name -> layer of the run.
        classes: The texts that labels are numbers of, of all images of the run: every subset has the same numbers. Those made of
            digits come first, sorted as numbers, then the others, sorted as texts. None where labels were numbers already, or
            there are none.
        labels: (n,) int64 for texts, else (n, ...) in their own dtype; None.
        is_native: Whether images have arrays of differing shapes.
    """

    def __init__(self, run: Any, layers: str | Sequence[str], label: Any = None, where: Any = None, failed: bool = False) -> None:
        self.run = run
        self._is_single = isinstance(layers, str)
        self.layers: dict[str, Any] = {name: run[name] for name in ([layers] if isinstance(layers, str) else layers)}
        self.is_native = any(layer.row_shape is None for layer in self.layers.values())
        rows = np.atleast_1d(select_rows(slice(None) if where is None else where, len(run), "where"))
        self.rows = rows if failed else rows[(run.images["status"] == OK)[rows]]
        if not len(self.rows):
            got = f"{len(rows)} of {len(run)} by where=, which all failed"
            raise StoreError(f"{run.path}: no rows are left, got {got}. Expected one. Widen where=; failed=True keeps all.")
        self.classes, self.labels = (None, None) if label is None else _label(run, label, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def features(self, columns: Columns) -> Any:
        """Return the part of columns that belongs to layers as users get it: that of the one, or all by name."""
        of_layers = {name: values for name, values in columns.items() if name is not None}
        return next(iter(of_layers.values())) if self._is_single else of_layers

    def item(self, columns: Columns) -> Any:
        """Return columns as users of a dataset get them: features, or (features, labels)."""
        return (self.features(columns), columns[None]) if None in columns else self.features(columns)

    def items(self, columns: Columns) -> Iterator[Any]:
        """Yield the rows of columns one by one, not copied."""
        for of_row in zip(*columns.values(), strict=True):
            yield self.item(dict(zip(columns, of_row, strict=True)))

    def read(self, places: NDArray[np.int64], alone: bool = False) -> Columns:
        """Read some of the rows chosen, (m,) each in [0, n), in any order; ``alone``: the calling thread decodes them all."""
        rows = self.rows[places]
        columns: Columns = {name: layer.read(rows, alone) for name, layer in self.layers.items()}
        return columns if self.labels is None else {**columns, None: self.labels[places]}

    def read_all(self) -> Any:
        """Return all rows as one array, (n, h, w, c), or layer -> such; with labels (features, labels)."""
        if self.is_native:
            raise StoreError(f"{self.run.path}: no array, got images of native size. Expected one shape. Read image by image.")
        row_bytes = sum(math.prod(layer.row_shape) * layer.dtype.itemsize for layer in self.layers.values())
        needed, free = len(self) * row_bytes, available_bytes()
        if free is not None and needed > free:
            happened = f"does not fit into memory, got {needed / 1e9:.3g} GB for {len(self)} rows"
            remedy = "Read batches, choose rows, or use pipeline.export."
            raise StoreError(f"{self.run.path}: {happened}. Expected at most the {free / 1e9:.3g} GB that are free. {remedy}")
        return self.item(self.read(np.arange(len(self))))


def _label(run: Any, label: Any, rows: NDArray[np.int64]) -> tuple[tuple[str, ...] | None, NDArray[Any] | None]:
    """Return the classes of all rows of a run, and the labels of some."""
    values: NDArray[Any] = np.asarray(run.images[label] if isinstance(label, str) else label)
    if values.ndim == 0 or len(values) != len(run):
        expected = f"{len(run)}, one a row of the run, or a column: {nearest(str(label)[:60], run.images)}"
        raise OptionError(f"label: values of another number, got shape {values.shape}. Expected {expected}.")
    if values.dtype.kind == "O":
        # Numbers in a column of objects, as pandas gives some, are numbers.
        values = np.asarray(values.tolist())
    if values.dtype.kind not in "OUS":
        return None, values[rows]
    texts = values.astype(str).ravel().tolist()
    classes = tuple(sorted({*texts}, key=_place_of_class))
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, np.array([numbers[text] for text in texts], np.int64).reshape(values.shape)[rows]


def _place_of_class(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if re.fullmatch("-?[0-9]{1,100}", name) else (1, 0, name)


def shuffled(starts: NDArray[np.int64], window: int, seed: tuple[int, int]) -> tuple[NDArray[np.int64], Sequence[int]]:
    """Return a random order of rows, as the head of this file says.

    Args:
        starts: (n,) first row of the chunk that a row lies in; any numbers.
        window: How many chunks are mixed.
        seed: Numbers >= 0. The same give the same order, on every machine.

    Returns:
        (n,) places of the rows, as they come; and where windows end in it, ascending, the last one n.
    """
    random = np.random.default_rng(seed)
    _, numbers = np.unique(starts, return_inverse=True)
    count = int(numbers.max()) + 1
    if count <= window or count == len(starts):
        # Of one window, or every row for itself.
        return random.permutation(len(starts)), [len(starts)]
    windows = random.permutation(count)[numbers] // window
    return np.lexsort((random.random(len(starts)), windows)), np.cumsum(np.bincount(windows)).tolist()


class Batches:
    """The batches of one epoch after the other: each ``iter`` begins the next epoch, in another order if shuffled.

    The arguments are those of ``run.batches``. Memory: at most four batches, the one in use among them; where rows share chunks
    and are shuffled, at most four windows, each of 128 MiB a layer.

    Attributes:
        epoch: Number of the one that begins next; may be set.
        rows: Of an epoch.
    """

    def __init__(
        self, examples: Examples, batch_size: int, shuffle: bool, seed: int, drop_last: bool, share: tuple[int, int]
    ) -> None:
        rank, ranks = share
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1 or seed < 0 or not 0 <= rank < ranks:
            got = f"batch_size={batch_size!r}, seed={seed!r}, share={share!r}"
            expected = "whole numbers: batch_size from 1 on, seed from 0 on, share=(rank, ranks) with 0 <= rank < ranks"
            raise OptionError(f"batches: out of range, got {got}. Expected {expected}.")
        self.examples = examples
        self.batch_size = int(batch_size)
        self.epoch = 0
        self._shuffle = shuffle
        self._seed = seed
        # Shuffled, all ranks get the same number, and up to ranks - 1 rows are nobody's.
        count = len(examples) // ranks * ranks if shuffle else len(examples)
        self._start, stop = rank * count // ranks, (rank + 1) * count // ranks
        self.rows = (stop - self._start) // self.batch_size * self.batch_size if drop_last else stop - self._start
        if not self.rows:
            got = f"{batch_size} for {stop - self._start} of {len(examples)} rows (share {rank} of {ranks})"
            raise OptionError(f"batch_size: no batch is left, got {got}. Expected fewer rows a batch, or fewer ranks.")

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, NDArray[Any] | None]]:
        return ((self.examples.features(columns), columns.get(None)) for columns in self.next_epoch())

    def next_epoch(self) -> Iterator[Columns]:
        """Begin the next epoch; yield its batches as columns."""
        start, stop, count = self._start, self._start + self.rows, len(self.examples)
        layer = max(self.examples.layers.values(), key=lambda layer: layer.chunk_rows)
        places = np.arange(count)
        windows: Sequence[int] = range(0, count, STRAIGHT_CHUNKS * layer.chunk_rows)
        if self._shuffle:
            places, windows = shuffled(layer.chunk_starts(self.examples.rows), WINDOW_CHUNKS, (self._seed, self.epoch))
        self.epoch += 1
        # Rows that share chunks are read by windows, others by batches.
        cuts = windows if layer.chunk_rows > 1 else range(start, stop, self.batch_size)
        ends = [start, *(cut for cut in cuts if start < cut < stop), stop]
        return self._rebatch(self._read_ahead([places[begin:end] for begin, end in itertools.pairwise(ends)]))

    def _read_ahead(self, pieces: list[NDArray[np.int64]]) -> Iterator[Columns]:
        """Read pieces in order, some ahead, in a thread of its own."""
        waiting: deque[Future[Columns]] = deque()
        with ThreadPoolExecutor(1, "batches") as reader:
            for places in pieces:
                waiting.append(reader.submit(self.examples.read, places))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _rebatch(self, pieces: Iterator[Columns]) -> Iterator[Columns]:
        """Cut what was read as one into batches; only one that lies in two pieces is copied."""
        held: list[Columns] = []
        missing = self.batch_size
        for piece in pieces:
            start, rows = 0, len(next(iter(piece.values())))
            while start < rows:
                stop = min(rows, start + missing)
                held.append({name: values[start:stop] for name, values in piece.items()})
                missing -= stop - start
                start = stop
                if not missing:
                    yield _join(held)
                    held, missing = [], self.batch_size
        if held:
            yield _join(held)


def _join(parts: list[Columns]) -> Columns:
    if len(parts) == 1:
        return parts[0]
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    return {name: [*itertools.chain(*of)] if isinstance(of[0], list) else np.concatenate(of) for name, of in columns.items()}


class RowError(StoreError, IndexError):
    """There are no such rows; an IndexError too, by which Python knows where a sequence ends."""


def select_rows(wanted: Any, rows: int, where: str) -> int | NDArray[np.int64]:
    """Return the rows that an index means: one for an integer, else (n,) int64, each in [0, rows).

    Args:
        wanted: Integer, slice, mask of ``rows`` booleans, or integers; negative ones count from the end.
        rows: How many there are.
        where: What is indexed, for messages.
    """
    if isinstance(wanted, slice):
        return np.arange(*wanted.indices(rows), dtype=np.int64)
    array = np.asarray(wanted)
    if array.dtype == bool and array.shape == (rows,):
        return np.flatnonzero(array)
    if array.shape == (0,):
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu" or array.ndim > 1 or np.any((array < -rows) | (array >= rows)):
        expected = f"a row from {-rows} to {rows - 1}, a list of such, a slice, or a mask of {rows} booleans"
        raise RowError(f"{where}: no such rows, got {repr(wanted)[:60]}. Expected {expected}. Of a key: run.row(key).")
    indices = array.astype(np.int64)
    indices = np.where(indices < 0, indices + rows, indices)
    return int(indices) if indices.ndim == 0 else indices
