"""The reductions of :mod:`.reductions` as operations of a device, for whole batches of maps of one size. They round otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow as tf

from ..records import FeatureSpec, Reduction, Transform
from .host_reductions import RMAC_EPS, cells, projection, regions, scaled_components, triangle, unit_places
from .reductions import output_length

Operation = Callable[[Any], Any]


def prepare_on_device(
    feature: FeatureSpec, map_shape: tuple[int, ...], transforms: Mapping[str, Transform] = MappingProxyType({})
) -> Operation:
    """Return a function for a graph that makes a feature of activations: (n, h, w, c) float32 -> (n, d) float32.

    Args:
        feature: With reductions.
        map_shape: (h, w, c) of the layer.
        transforms: Fitted ones, by the name of the feature up to the reduction.
    """
    steps, shape = [], map_shape
    for number, reduction in enumerate(feature.reductions):
        name = replace(feature, reductions=feature.reductions[: number + 1]).name
        steps.append(_operation(reduction, shape, transforms.get(name)))
        shape = (output_length(reduction, shape),)

    def reduce(values: tf.Tensor) -> tf.Tensor:
        for step in steps:
            values = step(values)
        return values

    return reduce


def _operation(reduction: Reduction, shape: tuple[int, ...], transform: Transform | None) -> Operation:
    of: Mapping[str, Any] = reduction.parameters
    length = math.prod(shape)
    if transform is not None:
        mean, components = tf.constant(transform.mean), tf.constant(scaled_components(transform, of["whiten"]))
        return lambda values: tf.matmul(tf.reshape(values, [-1, length]) - mean, components, transpose_b=True)
    if reduction.name == "units":
        places = tf.constant(unit_places(length, of["n_components"], of["seed"]))
        return lambda values: tf.gather(tf.reshape(values, [-1, length]), places, axis=1)
    if reduction.name == "gaussian":
        matrix = tf.constant(projection(reduction, length))
        return lambda values: tf.matmul(tf.reshape(values, [-1, length]), matrix, transpose_b=True)
    if reduction.name == "srp":
        return _sparse_product(projection(reduction, length), length)
    operations: dict[str, Operation] = {
        "avg": _mean,
        "max": _maximum,
        "catavgmax": lambda values: tf.concat([_mean(values), _maximum(values)], 1),
        "gem": lambda values: _generalized_mean(values, of["p"], of["eps"]),
        "rmac": lambda values: _regional_maxima(values, shape, of["levels"]),
        "grid": lambda values: _grid(values, shape, of["side"]),
        "gram": lambda values: _gram(values, shape, of["form"]),
        "l2": lambda values: _normalized(tf.reshape(values, [-1, length])),
    }
    return operations[reduction.name]


def _sparse_product(matrix: Any, length: int) -> Operation:
    entries = matrix.tocoo()
    places = tf.constant(np.stack([entries.row, entries.col], 1).astype(np.int64))
    weights, shape = tf.constant(entries.data), tf.constant(matrix.shape, tf.int64)

    def product(values: tf.Tensor) -> tf.Tensor:
        # (components, length) x (n, length)^T
        flat = tf.reshape(values, [-1, length])
        return tf.transpose(
            tf.raw_ops.SparseTensorDenseMatMul(a_indices=places, a_values=weights, a_shape=shape, b=flat, adjoint_b=True)
        )

    return product


def _normalized(values: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(values, tf.norm(values, axis=1, keepdims=True))


def _mean(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(values, [1, 2])


def _maximum(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(values, [1, 2])


def _generalized_mean(values: tf.Tensor, p: float, eps: float) -> tf.Tensor:
    clipped = tf.maximum(values, eps)
    largest = tf.reduce_max(clipped, [1, 2], keepdims=True)
    return largest[:, 0, 0] * _mean((clipped / largest) ** p) ** (1 / p)


def _regional_maxima(values: tf.Tensor, shape: tuple[int, ...], levels: int) -> tf.Tensor:
    found = [
        _maximum(values[:, top : top + side_y, left : left + side_x])
        for top, left, side_y, side_x in regions(shape[0], shape[1], levels)
    ]
    return tf.add_n([maxima / (tf.norm(maxima, axis=1, keepdims=True) + RMAC_EPS) for maxima in found])


def _grid(values: tf.Tensor, shape: tuple[int, ...], side: int) -> tf.Tensor:
    rows, columns = (cells(length, side) for length in shape[:2])
    return tf.concat([_mean(values[:, top:bottom, left:right]) for top, bottom in rows for left, right in columns], 1)


def _gram(values: tf.Tensor, shape: tuple[int, ...], form: str) -> tf.Tensor:
    channels = shape[2]
    flat = tf.reshape(values, [-1, shape[0] * shape[1], channels])
    products = tf.reshape(tf.matmul(flat, flat, transpose_a=True), [-1, channels * channels]) / (shape[0] * shape[1])
    if form == "full":
        return products
    rows, columns = triangle(channels)
    return tf.gather(products, tf.constant(rows * channels + columns), axis=1)
