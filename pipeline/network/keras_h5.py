"""Reads Keras' weight files (HDF5) of Keras 1, 2 and 3, with or without the classifier. BGR becomes RGB here.

Kernels are HWIO; conv1_1 takes B, G, R; ``fc1`` is a matrix over the flattened 7 x 7 x 512 map (row, column, channel).
Source: keras ``src/applications/vgg19.py``, ``src/legacy/saving/legacy_h5_format.py``, ``src/saving/saving_lib.py``.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WeightsError
from .layers import MEAN_PIXEL_RGB, NETWORKS
from .stored import StoredWeights, Wanted, wanted_layers

_CLASSIFIER = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}
# Of the optimizer's state; its arrays bear the layers' names too.
_NOT_LAYERS = ("optimizer", "optimizer_weights")
# VGG-19 whole, saved with its optimizer, has about 300 objects, eight groups deep.
_MOST_OBJECTS = 10_000
_DEEPEST = 12

# Source: HDF5, H5Zpublic.h: deflate, shuffle and Fletcher's checksum, which neither need a plug-in nor, but for the first, unpack
# to more than they are.
_DEFLATE, _FILTERS = 1, frozenset((1, 2, 3))
# A chunk may be larger than the array in it, and unpack to a checksum more than its values.
_CHUNK_SPARE_BYTES, _CHECKSUM_BYTES = 1 << 20, 64


def read_keras(path: Path, wanted: Wanted) -> StoredWeights:
    """Reads the wanted layers of a Keras file; others are not read.

    Args:
        path: An HDF5 file: weights alone (``save_weights``) or a whole model (``save("x.h5")``).
        wanted: Which layers, of which shapes.

    Raises:
        WeightsError: The file is damaged, of another kind or network, lacks a layer, or keeps data outside itself.
    """
    # Late: a run with a MatConvNet file or random weights does without.
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return _read(file, path, wanted)
    except WeightsError:
        raise
    except Exception as error:  # h5py raises what the damage leads to: OSError, RuntimeError, KeyError, ValueError, TypeError
        size = path.stat().st_size if path.exists() else 0
        reason = " ".join(str(error).split())
        raise wanted.refusal(path, "is a truncated or damaged HDF5 file", f"{size:,} bytes: {reason}") from error


def _read(file: Any, path: Path, wanted: Wanted) -> StoredWeights:
    layers, layout = _layers(file, path, wanted)
    if not layers:
        raise wanted.refusal(
            path, "is an HDF5 file, but no Keras weights of a VGG", f"the root {', '.join(list(file)[:6]) or '(empty)'}"
        )
    wanted.check_names(path, layers.keys())
    kernels, biases = {}, {}
    for name, expected in wanted.shapes.items():
        kernel, bias = _parameters(path, wanted, name, layers[name])
        shape = tuple(kernel.shape)
        if name.startswith("fc") and shape == (math.prod(expected[:3]), expected[3]):
            shape = expected
        wanted.check_shape(path, name, shape, int(bias.shape[0]))
        for dataset in (kernel, bias):
            _check_storage(path, wanted, name, dataset)
        values = kernel[()].reshape(expected)
        if name == "conv1_1":
            values = values[:, :, ::-1, :]
        kernels[name] = wanted.accept(path, name, values)
        biases[name] = wanted.accept(path, name, bias[()])
    # The files say nothing of pooling; the training they come from rounds odd sides up.
    return StoredWeights(kernels, biases, np.array(MEAN_PIXEL_RGB, dtype=np.float64), "same", layout)


def _layers(file: Any, path: Path, wanted: Wanted) -> tuple[dict[str, list[Any]], str]:
    """Gives MatConvNet's name of each layer -> its datasets, and words for the layout."""
    datasets = _datasets(file, path, wanted)
    if not any(place[-2:-1] == ("vars",) for place in datasets):
        layers: dict[str, list[Any]] = {}
        for place, dataset in datasets.items():
            for group in reversed(place[:-1]):
                if name := _matconvnet_name(group):
                    layers.setdefault(name, []).append(dataset)
                    break
        old = any(place[-1].endswith(("_W_1:0", "_W:0")) for place in datasets)
        return layers, "Keras 1 weights" if old else "Keras 2 weights"
    groups: dict[tuple[str, ...], list[Any]] = {}
    for place, dataset in datasets.items():
        groups.setdefault(place[:-1], []).append(dataset)
    return _layers_by_order(groups) or _layers_by_attribute(groups), "Keras 3 weights"


def _layers_by_order(groups: dict[tuple[str, ...], list[Any]]) -> dict[str, list[Any]]:
    """Names the layers of a plain VGG as Keras 3 does when loading: ``conv2d``, ``conv2d_1`` ... in the order of the model."""
    found = [(re.fullmatch(r"(conv2d|dense)(?:_(\d+))?", place[-2]), place) for place in groups if len(place) > 1]
    ordered = sorted((match[1], int(match[2] or 0), place) for match, place in found if match)
    convolutions = [place for kind, _, place in ordered if kind == "conv2d"]
    dense = [place for kind, _, place in ordered if kind == "dense"]
    if len({place[:-2] for _, _, place in ordered}) != 1:
        return {}
    for network in NETWORKS:
        names = list(wanted_layers(network, classifier=bool(dense)).shapes)
        if len(names) == len(convolutions) + len(dense) and len(dense) in (0, len(_CLASSIFIER)):
            return {name: groups[place] for name, place in zip(names, convolutions + dense, strict=True)}
    return {}


def _layers_by_attribute(groups: dict[tuple[str, ...], list[Any]]) -> dict[str, list[Any]]:
    """Names the layers of a model that has a VGG among others, by the attribute in which newer Keras 3 keeps them.

    Only where the order does not tell: HDF5 1.14 crashes or never ends on some damaged attributes.
    """
    layers: dict[str, list[Any]] = {}
    for members in groups.values():
        stored_name = members[0].parent.attrs.get("name", "")
        if name := _matconvnet_name(stored_name if isinstance(stored_name, str) else ""):
            layers.setdefault(name, []).extend(members)
    return layers


def _datasets(file: Any, path: Path, wanted: Wanted) -> dict[tuple[str, ...], Any]:
    """Gives all datasets by place, the optimizer's left out. Follows nothing that leads out of the file."""
    import h5py

    found: dict[tuple[str, ...], Any] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), file["model_weights"] if _has_group(file, "model_weights") else file)]
    seen = 0
    while waiting:
        place, group = waiting.pop()
        # Before the names are read: a group may have millions.
        if seen + len(group) > _MOST_OBJECTS:
            raise wanted.refusal(path, "has too many groups and arrays for a weights file", f"{seen + len(group):,} objects")
        for name in group:
            seen += 1
            inner = (*place, name)
            if seen > _MOST_OBJECTS or len(inner) > _DEEPEST:
                raise wanted.refusal(path, "has too many or too deeply nested groups for a weights file", f"{seen:,} objects")
            # A link could name any file or device of this machine.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise wanted.refusal(
                    path, "has a link out of the file or to another place, which is not followed", "/".join(inner)
                )
            if not place and name in _NOT_LAYERS:
                continue
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((inner, item))
            elif isinstance(item, h5py.Dataset):
                if item.is_virtual or item.external:
                    raise wanted.refusal(path, "keeps data in other files, which are not read", "/".join(inner))
                found[inner] = item
    return found


def _has_group(file: Any, name: str) -> bool:
    import h5py

    return isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Group)


def _matconvnet_name(keras_name: str) -> str:
    """Gives ``conv1_2`` for ``block1_conv2`` and ``fc6`` for ``fc1``; ``""`` for other names."""
    match = re.fullmatch(r"block(\d)_conv(\d)", keras_name)
    return f"conv{match[1]}_{match[2]}" if match else _CLASSIFIER.get(keras_name, "")


def _parameters(path: Path, wanted: Wanted, name: str, datasets: list[Any]) -> tuple[Any, Any]:
    """Gives the datasets of kernel and bias, which differ in their number of axes; names differ from version to version."""
    numeric = [dataset for dataset in datasets if dataset.dtype.kind == "f"]
    kernels = [dataset for dataset in numeric if dataset.ndim > 1]
    biases = [dataset for dataset in numeric if dataset.ndim == 1]
    if len(kernels) != 1 or len(biases) != 1 or len(datasets) != 2:
        shapes = ", ".join(f"{dataset.dtype}{dataset.shape}" for dataset in datasets)
        raise wanted.refusal(path, f"has not one kernel and one bias in {name}", shapes or "nothing")
    return kernels[0], biases[0]


def _check_storage(path: Path, wanted: Wanted, name: str, dataset: Any) -> None:
    """Makes sure that all of an array is stored, and that HDF5 can unpack it without taking more memory than it needs.

    HDF5 gives fill values for what is not stored, allocates chunks as large as they are declared, and inflates them to whatever
    size they have: a thousand times that of the file.
    """
    chunks = dataset.chunks
    total = 1 if chunks is None else math.prod(-(-side // step) for side, step in zip(dataset.shape, chunks, strict=True))
    found = dataset.id.get_num_chunks() if chunks is not None else int(dataset.id.get_storage_size() > 0)
    if found < total:
        raise wanted.refusal(path, f"declares an array in {name} that is not stored", f"{found:,} of {total:,} chunks")
    if chunks is None:
        return
    chunk_bytes = math.prod(chunks) * dataset.dtype.itemsize
    if chunk_bytes > dataset.nbytes + _CHUNK_SPARE_BYTES:
        raise wanted.refusal(
            path, f"has chunks larger than their array in {name}", f"{chunk_bytes:,} of {dataset.nbytes:,} bytes"
        )
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(place)[0] for place in range(properties.get_nfilters())]
    if not _FILTERS.issuperset(filters) or filters.count(_DEFLATE) > 1:
        raise wanted.refusal(path, f"is compressed in a way that is not read in {name} (expected gzip)", f"filters {filters}")
    if _DEFLATE not in filters:
        return
    for number in range(found):
        mask, packed = dataset.id.read_direct_chunk(dataset.id.get_chunk_info(number).chunk_offset)
        if mask >> filters.index(_DEFLATE) & 1:
            continue
        most = chunk_bytes + _CHECKSUM_BYTES
        if len(zlib.decompressobj().decompress(packed, most + 1)) > most:
            raise wanted.refusal(path, f"has a chunk in {name} that unpacks to more than its array", f"over {most:,} bytes")
