"""A run as a ``tf.data.Dataset``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from .batches import Batches, Columns


def as_dataset(batches: Batches, batch_size: int | None, drop_remainder: bool) -> tf.data.Dataset:
    """Return a dataset of so many rows an element, at native size ragged tensors, or of single rows; see ``Run.tf_dataset``."""
    examples = batches.examples
    is_split = batch_size is None or examples.is_native
    lead: tuple[int | None, ...] = () if is_split else (batch_size if drop_remainder else None,)
    specs: Columns = {name: _spec((*lead, *layer.shape[1:]), layer.dtype) for name, layer in examples.layers.items()}
    if examples.labels is not None:
        specs[None] = _spec((*lead, *examples.labels.shape[1:]), examples.labels.dtype)

    def elements() -> Iterator[Any]:
        for columns in batches.next_epoch():
            if is_split:
                yield from examples.items(columns)
            else:
                yield examples.item(columns)

    dataset = tf.data.Dataset.from_generator(elements, output_signature=examples.item(specs))
    count = batches.rows if is_split else len(batches)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(count))
    if examples.is_native and batch_size is not None:
        dataset = dataset.ragged_batch(batch_size, drop_remainder)
    dataset = dataset.prefetch(1)
    dataset.class_names = examples.classes
    return dataset


def _spec(shape: tuple[int | None, ...], dtype: np.dtype[Any]) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.as_dtype(dtype.newbyteorder("=")))
