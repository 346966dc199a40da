"""A set of TensorFlow Datasets, small and made without a network."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Of the split train; in three files of 7, 6 and 7.
IMAGES = 20


def tiny_png(number: int) -> bytes:
    """Gives the bytes of an image, which no two encoders would make alike."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (10 + number, 12, 3), np.uint8)
    Image.fromarray(pixels).save(file, "png", compress_level=number % 3)
    return file.getvalue()


def make_tiny_set(tfds: Any, folder: Path) -> Path:
    """Makes the set ``tiny`` with the splits ``train`` and ``test``; gives the folder of sets."""
    kinds = tfds.features
    features = {
        "image": kinds.Image(),
        "label": kinds.ClassLabel(names=["cat", "dog"]),
        "number": np.int64,
        "share": np.float32,
        "is_odd": np.bool_,
        "caption": kinds.Text(),
        "box": kinds.BBoxFeature(),
    }

    def examples(count: int, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(first, first + count):
            image, label = io.BytesIO(tiny_png(number)), number % 2 if number else -1
            example = {"image": image, "label": label, "number": number, "share": number / 10, "is_odd": bool(number % 2)}
            yield number, {**example, "caption": f"né {number}\0", "box": kinds.BBox(0.0, 0.0, 1.0, 1.0)}

    logging.getLogger("absl").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tfds.dataset_builders.store_as_tfds_dataset(
            "tiny",
            "1.0.0",
            features=kinds.FeaturesDict(features),
            split_datasets={"train": list(examples(IMAGES, 0)), "test": list(examples(3, 50))},
            data_dir=folder,
            download_config=tfds.download.DownloadConfig(num_shards=3),
            disable_shuffling=True,
        )
    return folder
