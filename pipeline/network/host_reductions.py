"""The reductions of :mod:`.reductions` on a CPU, an image at a time. NumPy and SciPy only.

Everything here depends on one image alone: sums go over the positions in an order that neither batch nor threads change.
Matrices are made of the raw 64-bit integers of NumPy's ``Philox`` bit generator, Philox4x64-10, whose stream is the same on every
machine and in every version (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), with key (seed, stream).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any

import numpy as np
import scipy.sparse
import threadpoolctl
from numpy.typing import NDArray
from scipy.special import ndtri

from ..records import Reduction, Transform
from .reductions import nonzeros

Array = NDArray[np.float32]
Reducer = Callable[[Array], Array]

# Of the key of each generator.
STREAMS = {"units": 1, "srp": 2, "gaussian": 3, "pca": 4}
RMAC_EPS = 1e-6
# Share of a region that should overlap with its neighbour, and how many regions lie along the longer side. Source: R-MAC's code.
RMAC_OVERLAP, RMAC_STEPS = 0.4, range(2, 8)
# Entries of a Gaussian matrix are multiples of this before they are scaled, so that the last bit of a library's function
# does not count.
GAUSSIAN_GRID = 2.0**-12


# -- Matrices ------------------------------------------------------------------------------------------------------------------


def _generator(name: str, seed: int) -> np.random.Philox:
    return np.random.Philox(key=[seed, STREAMS[name]])


def chosen_places(name: str, length: int, n_components: int, seed: int) -> NDArray[np.int64]:
    """Return (n_components,) int64, ascending: the places of the smallest of ``length`` raw integers of a stream."""
    return np.sort(np.argsort(_generator(name, seed).random_raw(length), kind="stable")[:n_components])


def sparse_matrix(length: int, n_components: int, density: float, seed: int) -> scipy.sparse.csr_matrix:
    """Return a sparse random matrix, (n_components, length) float32.

    As scikit-learn's ``SparseRandomProjection`` (Li et al. 2006): entries are 0 or, with probability ``density``, +v or -v, where
    v is 1 / sqrt(density n_components). Here each row has one entry in each of k = round(density length) strips of nearly equal
    length, strip s from floor(s length / k) on. The entry of row r and strip s comes of raw integer u = r k + s: its upper 32
    bits, times the length of the strip, over 2^32 are its place there, its lowest bit is the sign, 1 for -v.
    """
    strips = nonzeros(length, density)
    bounds = np.arange(strips + 1, dtype=np.int64) * length // strips
    raw = _generator("srp", seed).random_raw(n_components * strips).reshape(n_components, strips)
    places = bounds[:-1] + (((raw >> np.uint64(32)) * np.diff(bounds).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
    value = np.float32(1 / math.sqrt(strips / length * n_components))
    values = np.where(raw & np.uint64(1), -value, value)
    ends = np.arange(0, values.size + 1, strips)
    return scipy.sparse.csr_matrix((values.reshape(-1), places.reshape(-1), ends), (n_components, length))


def gaussian_matrix(length: int, n_components: int, seed: int) -> Array:
    """Return a Gaussian random matrix, (n_components, length) float32, of variance 1 / n_components.

    Entry i, in C order, is the normal quantile of (u + 0.5) / 2^53, u being the upper 53 bits of raw integer i, rounded to a
    multiple of 2^-12 and divided by sqrt(n_components).
    """
    generator = _generator("gaussian", seed)
    matrix = np.empty((n_components, length), np.float32)
    for row in matrix:
        upper = (generator.random_raw(length) >> np.uint64(11)).astype(np.float64)
        row[:] = np.round(ndtri((upper + 0.5) * 2.0**-53) / GAUSSIAN_GRID) * (GAUSSIAN_GRID / math.sqrt(n_components))
    return matrix


# Reduction -> what makes its matrix, or the places of its values, of the length of what it takes and its parameters.
MATRICES: dict[str, Callable[..., Any]] = {
    "units": partial(chosen_places, "units"),
    "srp": sparse_matrix,
    "gaussian": gaussian_matrix,
}


# -- One image at a time -------------------------------------------------------------------------------------------------------


def on_host(reduction: Reduction, length: int, transform: Transform | None) -> Reducer:
    """Return the function of one reduction of an image's map or vector of so many values; see :func:`.reductions.prepare`."""
    if transform is not None:
        mean, components = transform.mean, scaled_components(transform, bool(reduction.parameters["whiten"]))
        return lambda values: np.asarray(components @ (values.reshape(-1) - mean))
    if reduction.name not in MATRICES:
        return partial(STEPS[reduction.name], **reduction.parameters)
    matrix = MATRICES[reduction.name](length, **reduction.parameters)
    if reduction.name == "units":
        return lambda values: np.take(values, matrix)
    return lambda values: np.asarray(matrix @ values.reshape(-1))


def scaled_components(transform: Transform, whiten: bool) -> Array:
    """Return the matrix that a centred vector is multiplied by, (n, d) float32."""
    if not whiten:
        return transform.components
    return (transform.components / np.sqrt(transform.explained_variance)[:, None]).astype(np.float32)


def fit_pca(sample: Array, n_components: int) -> Transform:
    """Fit principal components as scikit-learn's ``PCA(svd_solver="full")``, in double precision.

    The entry of each with the largest magnitude is positive.

    Args:
        sample: (m, d) float32, m above ``n_components``.
        n_components: At most d.
    """
    mean = sample.mean(axis=0, dtype=np.float64)
    with one_blas_thread():
        _, singular, components = np.linalg.svd(sample - mean, full_matrices=False)
    components, singular = components[:n_components], singular[:n_components]
    components *= np.sign(np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1))
    return Transform(mean.astype(np.float32), components.astype(np.float32), singular**2 / (len(sample) - 1))


def mean_of_sums(sums: Array, positions: int) -> Array:
    """Return the mean of each channel, (c,), of the sums of a map's rows, (h, c), and its number of positions."""
    mean: Array = (sums.sum(axis=0, dtype=np.float64) / positions).astype(np.float32)
    return mean


def _mean(values: Array) -> Array:
    # Each row from left to right in single precision, as the CPU's engine adds them up.
    return mean_of_sums(np.add.reduce(values, axis=1, initial=np.float32(0)), math.prod(values.shape[:2]))


def _maximum(values: Array) -> Array:
    result: Array = values.reshape(-1, values.shape[-1]).max(axis=0)
    return result


def _mean_and_maximum(values: Array) -> Array:
    return np.concatenate([_mean(values), _maximum(values)])


def _generalized_mean(values: Array, p: float, eps: float) -> Array:
    # Over the maximum of each channel: powers of large values would leave single precision.
    clipped = np.maximum(values, np.float32(eps))
    largest = _maximum(clipped)
    clipped /= largest
    mean: Array = largest * _mean(np.power(clipped, np.float32(p), out=clipped)) ** np.float32(1 / p)
    return mean


def _regional_maxima(values: Array, levels: int) -> Array:
    total = np.zeros(values.shape[-1], np.float64)
    for top, left, side_y, side_x in regions(*values.shape[:2], levels):
        largest = _maximum(values[top : top + side_y, left : left + side_x]).astype(np.float64)
        total += largest / (math.sqrt(largest @ largest) + RMAC_EPS)
    return total.astype(np.float32)


@lru_cache
def regions(height: int, width: int, levels: int) -> tuple[tuple[int, int, int, int], ...]:
    """Return the regions of R-MAC, (top, left, height, width) each: the whole map, then those of each level."""
    short, long = min(height, width), max(height, width)
    # How many more regions lie along the longer side: those whose overlap is nearest to what it should be.
    overlaps = [abs((short**2 - short * (long - short) / (steps - 1)) / short**2 - RMAC_OVERLAP) for steps in RMAC_STEPS]
    more = overlaps.index(min(overlaps)) + 1
    more_y, more_x = more * (height > width), more * (width > height)
    found = [(0, 0, height, width)]
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if side == 0:
            break
        rows = _starts(height, side, level + more_y)
        found += [(top, left, side, side) for top in rows for left in _starts(width, side, level + more_x)]
    return tuple(found)


def _starts(length: int, side: int, count: int) -> list[int]:
    half, step = math.floor(side / 2 - 1), (length - side) / (count - 1) if count > 1 else 0.0
    return [math.floor(half + number * step) - half for number in range(count)]


def cells(length: int, count: int) -> list[tuple[int, int]]:
    """Return the first row and the one after the last of each cell of a side."""
    return [(number * length // count, -(-(number + 1) * length // count)) for number in range(count)]


def _grid(values: Array, side: int) -> Array:
    height, width = values.shape[:2]
    means = [
        values[top:bottom, left:right].mean(axis=(0, 1), dtype=np.float64)
        for top, bottom in cells(height, side)
        for left, right in cells(width, side)
    ]
    return np.concatenate(means).astype(np.float32)


def _gram(values: Array, form: str) -> Array:
    flat = values.reshape(-1, values.shape[-1])
    products: Array = flat.T @ flat
    products /= np.float32(len(flat))
    chosen: Array = products[triangle(len(products))] if form == "triangle" else products.reshape(-1)
    return chosen


@lru_cache
def triangle(channels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the upper triangle, row by row."""
    return np.triu_indices(channels)


def _normalized(values: Array) -> Array:
    norm = math.sqrt(np.square(values, dtype=np.float64).sum())
    flat: Array = values.reshape(-1)
    return flat / np.float32(norm) if norm else flat


# Reduction -> what computes it of a map and its parameters, ``l2`` of a vector.
STEPS: dict[str, Callable[..., Array]] = {
    "avg": _mean,
    "max": _maximum,
    "catavgmax": _mean_and_maximum,
    "gem": _generalized_mean,
    "rmac": _regional_maxima,
    "grid": _grid,
    "gram": _gram,
    "l2": _normalized,
}


def reduce_rows(reducer: Reducer, values: Array, pool: Executor) -> Array:
    """Reduce the activations of n images, (n, h, w, c) or (n, d) -> (n, d), each for itself, by the threads of a pool."""
    return np.stack([*pool.map(reducer, values)])


def one_blas_thread() -> AbstractContextManager[object]:
    """Have BLAS compute each product in the thread that asks for it, during the block: divided, it would be rounded otherwise."""
    limit: AbstractContextManager[object] = threadpoolctl.threadpool_limits(1, "blas")
    return limit
