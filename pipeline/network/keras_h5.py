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
from .known_weights import StoredWeights, Wanted, WrongFileError, wanted_layers

# (names of the groups, name of the dataset) -> dataset.
Datasets = dict[tuple[str, ...], Any]

_CLASSIFIER = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}
# Of the optimizer's state; its arrays bear the layers' names too.
_NOT_LAYERS = ("optimizer", "optimizer_weights")


def read_keras(path: Path, wanted: Wanted) -> StoredWeights:
    """Read the wanted layers of a Keras file; others are not read.

    Args:
        path: An HDF5 file: weights alone (``save_weights``) or a whole model (``save("x.h5")``).
        wanted: Which layers, of which shapes.

    Raises:
        WrongFileError: The file is of another kind or network, lacks a layer, or keeps data outside itself.
        Exception: Of any type, as h5py raises what the damage leads to.
    """
    # Late: a run with a MatConvNet file or random weights does without.
    import h5py

    with h5py.File(path, "r") as file:
        datasets: Datasets = {}

        # Visits each object once, and follows no soft or external links.
        def visit(name: str, item: Any) -> None:
            place = tuple(name.split("/"))
            if isinstance(item, h5py.Dataset) and place[0] not in _NOT_LAYERS:
                datasets[place] = item

        file.visititems(visit)
        layers, layout = _layers(datasets)
        if not layers:
            found = f"the root {', '.join(list(file)[:6]) or '(empty)'}"
            raise WrongFileError("is an HDF5 file, but no Keras weights of a VGG", found)
        wanted.check_names(layers.keys())
        kernels, biases = {}, {}
        for name in wanted.shapes:
            kernels[name], biases[name] = wanted.accept(name, *_parameters(name, layers[name]))
    kernels["conv1_1"] = np.ascontiguousarray(kernels["conv1_1"][:, :, ::-1])
    # The files say nothing of pooling; the training they come from rounds odd sides up.
    return StoredWeights(kernels, biases, np.array(MEAN_PIXEL_RGB, dtype=np.float64), "same", layout)


def _layers(datasets: Datasets) -> tuple[dict[str, list[Any]], str]:
    """Return MatConvNet's name of each layer -> its datasets, and words for the layout."""
    if any(place[-2:-1] == ("vars",) for place in datasets):
        groups: dict[tuple[str, ...], list[Any]] = {}
        for place, dataset in datasets.items():
            groups.setdefault(place[:-1], []).append(dataset)
        return _layers_by_order(groups) or _layers_by_attribute(groups), "Keras 3 weights"
    layers: dict[str, list[Any]] = {}
    for place, dataset in datasets.items():
        if name := next(filter(None, map(_matconvnet_name, reversed(place[:-1]))), ""):
            layers.setdefault(name, []).append(dataset)
    old = any(place[-1].endswith(("_W_1:0", "_W:0")) for place in datasets)
    return layers, "Keras 1 weights" if old else "Keras 2 weights"


def _layers_by_order(groups: dict[tuple[str, ...], list[Any]]) -> dict[str, list[Any]]:
    """Name the layers of a plain VGG as Keras 3 does when loading: ``conv2d``, ``conv2d_1`` ... in the order of the model."""
    found = [(re.fullmatch(r"(conv2d|dense)(?:_(\d+))?", place[-2]), place) for place in groups if len(place) > 1]
    ordered = sorted((match[1], int(match[2] or 0), place) for match, place in found if match)
    dense = [place for kind, _, place in ordered if kind == "dense"]
    if len({place[:-2] for _, _, place in ordered}) == 1:
        for network in NETWORKS:
            names = wanted_layers(network, classifier=bool(dense)).shapes
            # The classifier's layers come last in both.
            if len(names) == len(ordered) and len(dense) in (0, len(_CLASSIFIER)):
                return {name: groups[place] for name, (_, _, place) in zip(names, ordered, strict=True)}
    return {}


def _layers_by_attribute(groups: dict[tuple[str, ...], list[Any]]) -> dict[str, list[Any]]:
    """Name the layers of a model that has a VGG among others, by the attribute in which newer Keras 3 keeps them.

    Only where the order does not tell: HDF5 1.14 crashes or never ends on some damaged attributes.
    """
    layers: dict[str, list[Any]] = {}
    for members in groups.values():
        stored_name = members[0].parent.attrs.get("name", "")
        if name := _matconvnet_name(stored_name if isinstance(stored_name, str) else ""):
            layers.setdefault(name, []).extend(members)
    return layers


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
        if dataset.is_virtual or dataset.external:
            raise WrongFileError("keeps data in other files, which are not read", f"{dataset.name}")
        # HDF5 gives fill values for what is not stored, as after a program that was stopped while it saved.
        if dataset.chunks is None:
            total, stored = 1, int(dataset.id.get_storage_size() > 0)
        else:
            sides = zip(dataset.shape, dataset.chunks, strict=True)
            total, stored = math.prod(-(-side // step) for side, step in sides), dataset.id.get_num_chunks()
        if stored < total:
            raise WrongFileError(f"declares an array in {name} that is not stored", f"{stored:,} of {total:,} chunks")
    return kernels[0], biases[0]
