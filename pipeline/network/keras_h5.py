"""Reads Keras' weight files (HDF5) of Keras 1 and 2, as the published ones, with or without the classifier. BGR becomes RGB here.

Kernels are HWIO; conv1_1 takes B, G, R; ``fc1`` is a matrix over the flattened 7 x 7 x 512 map (row, column, channel).
Source: keras ``src/applications/vgg19.py``, ``src/legacy/saving/legacy_h5_format.py``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from .architectures import MEAN_PIXEL_RGB
from .known_weights import Wanted, Weights, WrongFileError

_CLASSIFIER = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}
# Of the optimizer's state; its arrays bear the layers' names too.
_NOT_LAYERS = ("optimizer", "optimizer_weights")


def read_keras(path: Path, wanted: Wanted) -> Weights:
    """Read the wanted layers of a Keras file, of weights alone or a whole model; others are not read.

    Raises:
        WrongFileError: The file is of another kind or network, or lacks a layer.
        Exception: Of any type, as h5py raises what the damage leads to.
    """
    # Late: a run with a MatConvNet file or random weights does without.
    import h5py

    with h5py.File(path, "r") as file:
        layers: dict[str, list[Any]] = {}

        # Visits each object once, and follows no soft or external links.
        def visit(name: str, item: Any) -> None:
            *groups, _ = name.split("/")
            layer = next(filter(None, map(_matconvnet_name, reversed(groups))), "")
            if isinstance(item, h5py.Dataset) and layer and groups[0] not in _NOT_LAYERS:
                layers.setdefault(layer, []).append(item)

        file.visititems(visit)
        if not layers:
            found = f"the root {', '.join(list(file)[:6]) or '(empty)'}"
            remedy = f"Give what Keras 3 has saved with network=keras network.model={wanted.network.upper()}."
            raise WrongFileError("is an HDF5 file, but no Keras weights of a VGG as Keras 1 and 2 save them", found, remedy)
        kernels, biases = wanted.take(layers.keys(), lambda name: _parameters(name, layers[name]))
    kernels["conv1_1"] = np.ascontiguousarray(kernels["conv1_1"][:, :, ::-1])
    # The files say nothing of pooling; the training they come from rounds odd sides up.
    return Weights(wanted.network, kernels, biases, np.array(MEAN_PIXEL_RGB, dtype=np.float64), "same", "Keras")


def _matconvnet_name(keras_name: str) -> str:
    """Return ``conv1_2`` for ``block1_conv2`` and ``fc6`` for ``fc1``; ``""`` for other names."""
    match = re.fullmatch(r"block(\d)_conv(\d)", keras_name)
    return f"conv{match[1]}_{match[2]}" if match else _CLASSIFIER.get(keras_name, "")


def _parameters(name: str, datasets: list[Any]) -> tuple[Any, Any]:
    """Return the datasets of kernel and bias, which differ in their number of axes; names differ from version to version."""
    kernels = [dataset for dataset in datasets if dataset.ndim > 1]
    biases = [dataset for dataset in datasets if dataset.ndim == 1]
    if len(kernels) != 1 or len(biases) != 1:
        shapes = ", ".join(f"{dataset.dtype}{dataset.shape}" for dataset in datasets)
        raise WrongFileError(f"has not one kernel and one bias in {name}", shapes or "nothing")
    # HDF5 gives fill values for what is not stored, as after a program that was stopped while it saved.
    if not all(dataset.id.get_storage_size() for dataset in datasets):
        raise WrongFileError(f"declares an array in {name} that is not stored", "0 bytes")
    return kernels[0], biases[0]
