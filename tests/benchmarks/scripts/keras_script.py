"""Keras: ``image_dataset_from_directory``, a sub-model of ``keras.applications.VGG19``, ``predict``, h5py with gzip."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

from ..rivals import SIDE_PX, best_batch, keras_model, seeded_weights


def prepare(photographs: Path, output: Path, layer: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """Gives what is timed, and the batch size.

    Args:
        photographs: Folder of JPEGs.
        output: HDF5 file to write; its dataset ``features`` has the files in the order of their names.
        layer: ``reluN_M``.
    """
    import keras
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    model = keras_model(seeded_weights(), layer)
    images = keras.random.uniform((16, SIDE_PX, SIDE_PX, 3), 0, 255).numpy()
    batch = best_batch(model.predict_on_batch, images)

    def extract() -> float:
        began = time.perf_counter()
        dataset = keras.utils.image_dataset_from_directory(
            photographs, labels=None, image_size=(SIDE_PX, SIDE_PX), batch_size=batch, shuffle=False, verbose=False
        )
        dataset = dataset.map(keras.applications.vgg19.preprocess_input, num_parallel_calls=tf.data.AUTOTUNE)
        features = model.predict(dataset.prefetch(tf.data.AUTOTUNE), verbose=0)
        with h5py.File(output, "w") as file:
            file.create_dataset("features", data=features, chunks=(1, *features.shape[1:]), compression="gzip")
        return time.perf_counter() - began

    extract()
    return {"batch": batch}, extract
