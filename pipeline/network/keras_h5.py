"""Reads Keras' weight files (HDF5) of Keras 1, 2 and 3, with or without the classifier. BGR becomes RGB here.

Kernels are HWIO; conv1_1 takes B, G, R; ``fc1`` is a matrix over the flattened 7 x 7 x 512 map (row, column, channel).
Source: keras ``src/applications/vgg19.py``, ``src/legacy/saving/legacy_h5_format.py``, ``src/saving/saving_lib.py``.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from .architectures import MEAN_PIXEL_RGB, NETWORKS
from .known_weights import Wanted, Weights, WrongFileError

# Names of nested groups -> the datasets in the innermost one.
Groups = dict[tuple[str, ...], list[Any]]

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
        groups: Groups = {}

        # Visits each object once, and follows no soft or external links.
        def visit(name: str, item: Any) -> None:
            *group, _ = name.split("/")
            if isinstance(item, h5py.Dataset) and group and group[0] not in _NOT_LAYERS:
                groups.setdefault(tuple(group), []).append(item)

        file.visititems(visit)
        layers: dict[str, list[Any]] = {}
        for group, name in _layer_names(groups).items():
            if name:
                layers.setdefault(name, []).extend(groups[group])
        if not layers:
            found = f"the root {', '.join(list(file)[:6]) or '(empty)'}"
            raise WrongFileError("is an HDF5 file, but no Keras weights of a VGG", found)
        kernels, biases = wanted.take(layers.keys(), lambda name: _parameters(name, layers[name]))
    kernels["conv1_1"] = np.ascontiguousarray(kernels["conv1_1"][:, :, ::-1])
    # The files say nothing of pooling; the training they come from rounds odd sides up.
    return Weights(wanted.network, kernels, biases, np.array(MEAN_PIXEL_RGB, dtype=np.float64), "same", "Keras")


def _layer_names(groups: Groups) -> dict[tuple[str, ...], str]:
    """Return MatConvNet's name of the layer whose arrays each group holds; ``""`` for those of others."""
    if all(group[-1] != "vars" for group in groups):  # Keras 1 and 2
        return {group: next(filter(None, map(_matconvnet_name, reversed(group))), "") for group in groups}
    # A plain VGG is named as Keras 3 does when loading: conv2d, conv2d_1 ... in the order of the model.
    found = [(re.fullmatch(r"(conv2d|dense)(?:_(\d+))?", group[-2]), group) for group in groups if len(group) > 1]
    ordered = sorted((match[1], int(match[2] or 0), group) for match, group in found if match)
    dense = sum(kind == "dense" for kind, _, _ in ordered)
    if len({group[:-2] for _, _, group in ordered}) == 1 and dense in (0, len(_CLASSIFIER)):
        for network in NETWORKS:
            # The classifier's layers come last in both.
            names = Wanted(network, classifier=dense > 0).shapes
            if len(names) == len(ordered):
                return {group: name for name, (_, _, group) in zip(names, ordered, strict=True)}
    # Else by the attribute in which newer Keras 3 keeps the names. HDF5 1.14 crashes or never ends on some damaged attributes.
    return {group: _matconvnet_name(str(members[0].parent.attrs.get("name", ""))) for group, members in groups.items()}


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
    for dataset in datasets:
        # HDF5 gives fill values for what is not stored, as after a program that was stopped while it saved.
        if dataset.chunks is None:
            total, stored = 1, int(dataset.id.get_storage_size() > 0)
        else:
            sides = zip(dataset.shape, dataset.chunks, strict=True)
            total, stored = math.prod(-(-side // step) for side, step in sides), dataset.id.get_num_chunks()
        if stored < total:
            raise WrongFileError(f"declares an array in {name} that is not stored", f"{stored:,} of {total:,} chunks")
    return kernels[0], biases[0]
