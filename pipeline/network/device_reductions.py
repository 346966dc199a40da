"""The reductions of :mod:`.reductions` as operations of a device, for whole batches of maps of one size. They round otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from ..records import Reduction, Transform
from .host_reductions import MATRICES, RMAC_EPS, cells, regions, scaled_components, triangle

Operation = Callable[[Any], Any]


def on_device(reduction: Reduction, length: int, transform: Transform | None) -> Operation:
    """Return the function of one reduction of maps or vectors of so many values, whose shapes the graph must know.

    See :func:`.reductions.prepare`.
    """
    if transform is not None:
        mean = tf.constant(transform.mean)
        components = tf.constant(scaled_components(transform, bool(reduction.parameters["whiten"])))
        return lambda values: tf.matmul(_flat(values) - mean, components, transpose_b=True)
    if reduction.name not in MATRICES:
        return partial(OPERATIONS[reduction.name], **reduction.parameters)
    matrix = MATRICES[reduction.name](length, **reduction.parameters)
    if reduction.name == "srp":
        entries = matrix.tocoo()
        places = tf.constant(np.stack([entries.row, entries.col], 1).astype(np.int64))
        sparse = {"a_indices": places, "a_values": tf.constant(entries.data), "a_shape": tf.constant(matrix.shape, tf.int64)}
        # (components, length) x (n, length)^T
        return lambda values: tf.transpose(tf.raw_ops.SparseTensorDenseMatMul(**sparse, b=_flat(values), adjoint_b=True))
    constant = tf.constant(matrix)
    if reduction.name == "units":
        return lambda values: tf.gather(_flat(values), constant, axis=1)
    return lambda values: tf.matmul(_flat(values), constant, transpose_b=True)


def _flat(values: tf.Tensor) -> tf.Tensor:
    return tf.reshape(values, [-1, values.shape[1:].num_elements()])


def _normalized(values: tf.Tensor) -> tf.Tensor:
    flat = _flat(values)
    return tf.math.divide_no_nan(flat, tf.norm(flat, axis=1, keepdims=True))


def _mean(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(values, [1, 2])


def _maximum(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(values, [1, 2])


def _mean_and_maximum(values: tf.Tensor) -> tf.Tensor:
    return tf.concat([_mean(values), _maximum(values)], 1)


def _generalized_mean(values: tf.Tensor, p: float, eps: float) -> tf.Tensor:
    clipped = tf.maximum(values, eps)
    largest = tf.reduce_max(clipped, [1, 2], keepdims=True)
    return largest[:, 0, 0] * _mean((clipped / largest) ** p) ** (1 / p)


def _regional_maxima(values: tf.Tensor, levels: int) -> tf.Tensor:
    found = [
        _maximum(values[:, top : top + side_y, left : left + side_x])
        for top, left, side_y, side_x in regions(values.shape[1], values.shape[2], levels)
    ]
    return tf.add_n([maxima / (tf.norm(maxima, axis=1, keepdims=True) + RMAC_EPS) for maxima in found])


def _grid(values: tf.Tensor, side: int) -> tf.Tensor:
    rows, columns = (cells(length, side) for length in values.shape[1:3])
    return tf.concat([_mean(values[:, top:bottom, left:right]) for top, bottom in rows for left, right in columns], 1)


def _gram(values: tf.Tensor, form: str) -> tf.Tensor:
    _, height, width, channels = values.shape
    flat = tf.reshape(values, [-1, height * width, channels])
    products = tf.reshape(tf.matmul(flat, flat, transpose_a=True), [-1, channels * channels]) / (height * width)
    if form == "full":
        return products
    rows, columns = triangle(channels)
    return tf.gather(products, tf.constant(rows * channels + columns), axis=1)


# Reduction -> what computes it of maps and its parameters, ``l2`` of vectors.
OPERATIONS: dict[str, Callable[..., tf.Tensor]] = {
    "avg": _mean,
    "max": _maximum,
    "catavgmax": _mean_and_maximum,
    "gem": _generalized_mean,
    "rmac": _regional_maxima,
    "grid": _grid,
    "gram": _gram,
    "l2": _normalized,
}
