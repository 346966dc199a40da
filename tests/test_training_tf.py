"""A run as a tf.data.Dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import open_run
from pipeline.store.reader import Run

from .damage import chunk_place, flip
from .stored_runs import make_spec, write_native_run, write_run
from .test_training_batches import OK_ROWS, SHAPES, folder, run

__all__ = ["folder", "run"]  # fixtures


def rows_of(dataset: Any) -> list[int]:
    return [int(width) - 400 for _, widths in dataset for width in np.atleast_1d(widths)]


def test_elements_have_shapes_types_and_a_known_number(run: Run) -> None:
    dataset = run.tf_dataset("large", label="label", batch_size=8)
    assert dataset.element_spec == (tf.TensorSpec((None, 80, 80, 3), tf.float16), tf.TensorSpec((None,), tf.int64))
    assert (len(dataset), dataset.class_names) == (5, ("folder0", "folder1", "folder2"))
    full = run.tf_dataset("large", label="label", batch_size=8, drop_remainder=True)
    assert full.element_spec == (tf.TensorSpec((8, 80, 80, 3), tf.float16), tf.TensorSpec((8,), tf.int64))
    assert [features.shape[0] for features, _ in full] == [8] * 4 == [8] * len(full)
    alone = run.tf_dataset("large", label="height")
    assert alone.element_spec == (tf.TensorSpec((80, 80, 3), tf.float16), tf.TensorSpec((), tf.int32))
    assert (len(alone), alone.class_names) == (38, None)
    named = run.tf_dataset(["small", "large"], batch_size=8)
    assert named.element_spec == {layer: tf.TensorSpec((None, *shape), tf.float16) for layer, shape in SHAPES.items()}


@pytest.mark.parametrize(("layer", "batch_size"), [("large", 6), ("small", None)])
def test_every_pass_is_another_epoch_and_the_seed_repeats_them(run: Run, layer: str, batch_size: int | None) -> None:
    dataset = run.tf_dataset(layer, label="width", shuffle=True, batch_size=batch_size, seed=3)
    epochs = [rows_of(dataset), rows_of(dataset)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == OK_ROWS
    assert epochs[0] != epochs[1]
    again = run.tf_dataset(layer, label="width", shuffle=True, batch_size=batch_size, seed=3)
    assert rows_of(again.repeat(2)) == epochs[0] + epochs[1]
    for features, widths in again:
        np.testing.assert_array_equal(features.numpy(), run[layer][widths.numpy() - 400])


def test_native_sizes_are_unknown_sides_and_batches_ragged(tmp_path: Path) -> None:
    run = open_run(write_native_run(tmp_path))
    alone = run.tf_dataset("relu4_1", label="width", shuffle=True)
    assert alone.element_spec[0] == tf.TensorSpec((None, None, 3), tf.float32)
    for image, width in alone:
        np.testing.assert_array_equal(image.numpy(), run["relu4_1"][int(width) - 400])
    ragged = run.tf_dataset("relu4_1", label="width", batch_size=2)
    images, widths = next(iter(ragged))
    assert isinstance(images, tf.RaggedTensor)
    np.testing.assert_array_equal(images[1].to_tensor().numpy(), run["relu4_1"][2])
    assert widths.numpy().tolist() == [400, 402]
    assert len(ragged) == 3
    assert len(run.tf_dataset("relu4_1", batch_size=2, drop_remainder=True)) == 2


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, make_spec(10, SHAPES))
    path = tmp_path / "shards/shard-00001-of-00003.h5"
    flip(path, chunk_place(path, "large", 2))
    with pytest.raises(tf.errors.OpError, match=r"shard-00001-of-00003\.h5: layer large, row 6 is damaged"):
        list(open_run(tmp_path).tf_dataset("large", batch_size=3, shuffle=True))
