"""Rows of a run chosen for training: which images, which layers, what label each has. Every kind of dataset reads from it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import OptionError, StoreError, nearest
from ..records import OK
from ..store.layer import Layer, select_rows

if TYPE_CHECKING:
    from ..store.reader import Run

# Of a batch: one layer's (n, h, w, c), or layer -> such; at native size a list in place of each array.
Features = Any
Labels = NDArray[Any] | None


class Examples:
    """Rows of a run with the activations of some layers and labels. May be pickled: it carries the run by its path.

    Args:
        run: A finished run.
        layers: A name: features are one array; or several: features are layer -> array.
        label: Column of ``run.images``, or (N,) or (N, ...) values, one a row of the run. Numbers stay what they are, whole or
            not; texts become numbers of classes.
        where: Which rows: a mask over the N rows of the run, rows in any order, or a slice; None: all.
        failed: Whether to keep failed images, whose features are NaN.
        dtype: ``float32``: whatever is stored; None: as stored.

    Attributes:
        rows: (n,) int64, rows of the run, in the order in which they were given.
        classes: The texts that labels are numbers of, of all images of the run: every subset has the same numbers. Those made of
            digits come first, sorted as numbers, then the others, sorted as texts. Where a column holds the numbers 0, 1, 2 ...
            without a gap, these as texts. None where labels are other numbers, or there are none.
        labels: (n,) int64 for texts, else (n, ...) in their own dtype; None.
        is_native: Whether images have arrays of differing shapes.

    Raises:
        StoreError: There is no such layer or column; the rows are none of the run's, or none are left.
        OptionError: Another dtype or number of labels.
    """

    def __init__(
        self,
        run: Run,
        layers: str | Sequence[str],
        *,
        label: str | ArrayLike | None = None,
        where: Any = None,
        failed: bool = False,
        dtype: str | None = None,
    ) -> None:
        if dtype not in (None, "float32"):
            raise OptionError(f"dtype: cannot be given so, got {dtype!r}. Expected 'float32', or None for the dtype as stored.")
        self.run = run
        self._is_single = isinstance(layers, str)
        names = (layers,) if isinstance(layers, str) else tuple(layers)
        if not names:
            raise OptionError(f"layers: none is given, got {layers!r}. Expected one or more of: {', '.join(run.layers)}.")
        self._layers: dict[str, Layer] = {name: run[name] for name in names}
        self._dtype = dtype
        self.is_native = any(layer.row_shape is None for layer in self._layers.values())
        self.rows = _choose(run, where, failed)
        self.classes, self.labels = _label(run, label, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def chunk_rows(self) -> int:
        """Rows that are stored together, of the layer where they are most."""
        return max(layer.chunk_rows for layer in self._layers.values())

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's features over all layers as they are given; 0 at native size."""
        # Python's numbers have no end: NumPy's of what a damaged index declares may come out as 0.
        return sum(
            math.prod(layer.row_shape) * self.dtype(name).itemsize for name, layer in self._layers.items() if layer.row_shape
        )

    def dtype(self, layer: str) -> np.dtype[np.floating]:
        """Gives the dtype of a layer's values as they are given."""
        return np.dtype(self._dtype) if self._dtype else self._layers[layer].dtype

    def shapes(self) -> dict[str, tuple[int | None, int | None, int]]:
        """Gives layer -> (h, w, c) of a row; h and w are None at native size."""
        return {name: layer.row_shape or (None, None, layer.channels) for name, layer in self._layers.items()}

    def structure(self, of_layers: dict[str, Any]) -> Features:
        """Gives what belongs to each layer as features are given: that of the one, or all by name."""
        return next(iter(of_layers.values())) if self._is_single else of_layers

    def named(self, features: Features) -> dict[str, Any]:
        """Gives layer -> its part of features as they are given."""
        return {next(iter(self._layers)): features} if self._is_single else features

    def units(self) -> NDArray[np.int64]:
        """Gives the place of each row among the pieces that are read as one, (n,): rows with the same number share a chunk."""
        shards = self.run.shards
        firsts = np.array([shard.first for shard in shards], np.int64) - shards[0].first
        numbers = np.searchsorted(firsts, self.rows, side="right") - 1
        # A shard begins a chunk of its own.
        longest = max(shard.rows for shard in shards) // self.chunk_rows + 1
        return numbers * longest + (self.rows - firsts[numbers]) // self.chunk_rows

    def read(self, places: NDArray[np.int64], threads: int | None = None) -> tuple[Features, Labels]:
        """Reads some of the rows.

        Args:
            places: (m,) each in [0, n), in any order: of the rows chosen.
            threads: How many decode; None: as many as there are cores.

        Returns:
            Features and labels, of m rows each.

        Raises:
            StoreError: A shard is missing or damaged, or the rows do not fit into memory.
        """
        rows = self.rows[places]
        features = {name: layer.read(rows, self.dtype(name), threads) for name, layer in self._layers.items()}
        return self.structure(features), None if self.labels is None else self.labels[places]

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"{len(self)} rows of {', '.join(self._layers)}{classes}, of {str(self.run.path)!r}"


def _choose(run: Run, where: Any, failed: bool) -> NDArray[np.int64]:
    chosen = select_rows(slice(None) if where is None else where, len(run), "where")
    rows = np.atleast_1d(np.asarray(chosen, np.int64))
    kept = rows if failed else rows[(run.images["status"] == OK)[rows]]
    if not len(kept):
        raise StoreError(
            f"{run.path}: no rows are left, got {len(rows)} of {len(run)} by where=, {len(rows) - len(kept)} of them failed. "
            f"Expected at least one. Widen where=; failed=True keeps failed images."
        )
    return kept


def _label(run: Run, label: str | ArrayLike | None, rows: NDArray[np.int64]) -> tuple[tuple[str, ...] | None, Labels]:
    if label is None:
        return None, None
    values: NDArray[Any] = np.asarray(run.images[label] if isinstance(label, str) else label)
    if values.ndim == 0 or len(values) != len(run):
        raise OptionError(
            f"label: values of another number, got shape {values.shape}. Expected {len(run)}, one a row of the run, or the name "
            f"of a column: {nearest(str(label)[:60], run.images)}."
        )
    if values.dtype.kind == "O":
        # Numbers in a column of objects, as pandas gives some, are numbers.
        values = np.asarray(values.tolist())
    if values.dtype.kind not in "OUS":
        return _classes_of_numbers(values) if isinstance(label, str) else None, values[rows]
    names, places = np.unique(values.astype(str), return_inverse=True)
    order = sorted(range(len(names)), key=lambda place: _class_order(str(names[place])))
    numbers = np.empty(len(names), np.int64)
    numbers[order] = np.arange(len(names))
    return tuple(str(names[place]) for place in order), numbers[places.reshape(values.shape)][rows]


def _class_order(name: str) -> tuple[bool, int, str]:
    is_number = re.fullmatch("-?[0-9]{1,100}", name) is not None
    return not is_number, int(name) if is_number else 0, name


def _classes_of_numbers(values: NDArray[Any]) -> tuple[str, ...] | None:
    """Return the numbers as texts where they are 0, 1, 2 ... without a gap, so that each is its own place."""
    different = np.unique(values)
    is_count = values.dtype.kind in "iu" and np.array_equal(different, np.arange(len(different)))
    return tuple(map(str, different.tolist())) if is_count else None
