"""How large the layers of a run are, before compression and on the disk: as HDF5 keeps account of it, without reading."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from . import tables
from .file_checks import require_file


@dataclass(frozen=True, slots=True)
class LayerHolding:
    """A layer of a run, and its bytes.

    Attributes:
        name: Of the layer.
        shape: (h, w, c) of a row; None at native size, or where no file tells.
        dtype: Of the stored values.
        channels: 0 where no file tells.
        stride_px: Likewise.
        raw_bytes: Activations of the good images in the finished shards, before compression.
        stored_bytes: The same, as they lie on the disk.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    channels: int
    stride_px: int
    raw_bytes: int
    stored_bytes: int


class Sizes:
    """Adds up the bytes of layers over shards, as HDF5 tells them without reading.

    Args:
        layers: Their names.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self.raw = dict.fromkeys(layers, 0)
        self.stored = dict.fromkeys(layers, 0)
        self.good = 0

    def ask(self, path: Path, good: NDArray[np.bool_]) -> None:
        """Adds those of one shard.

        Args:
            path: Of the file.
            good: (rows,) which of its images have not failed.

        Raises:
            StoreError: It is no file of its own.
            ValueError: It is damaged, or its values lie elsewhere; also what else h5py raises.
        """
        count, raw, stored = int(good.sum()), {}, {}
        # Not by tables.open_file, which holds all attributes to their checksums: six times as long, of thousands of shards.
        require_file(path)
        with h5py.File(tables.hdf5_source(path), "r") as file:
            # By h5py's lower half: its upper one takes ten times as long for each dataset.
            features = _own(h5py.h5g.open(file.id, b"/"), b"features")
            for layer in self.raw:
                node = _own(features, layer.encode())
                datasets = list(_members(node)) if isinstance(node, h5py.h5g.GroupID) else [node]
                if any(dataset.get_create_plist().get_layout() == h5py.h5d.VIRTUAL for dataset in datasets):
                    # HDF5 would have to ask the other files for its shape.
                    raise ValueError("data in another file, which is not read")
                values = [math.prod(dataset.shape) * dataset.dtype.itemsize for dataset in datasets]
                if datasets == [node]:
                    values = [values[0] * count // len(good)]
                raw[layer], stored[layer] = sum(values), sum(dataset.get_storage_size() for dataset in datasets)
        # All or nothing of a shard.
        for layer in raw:
            self.raw[layer] += raw[layer]
            self.stored[layer] += stored[layer]
        self.good += count


def _own(group: Any, name: bytes) -> Any:
    # A path would be walked by way of whatever links are on it.
    if b"/" in name or not _is_own(group, name):
        raise ValueError("a link, which is not followed")
    return h5py.h5o.open(group, name)


def _is_own(group: Any, name: bytes) -> bool:
    return bool(group.links.get_info(name).type == h5py.h5l.TYPE_HARD)


def _members(group: Any) -> Iterator[Any]:
    # What a link leads to is not in this file.
    return (h5py.h5d.open(group, name) for name in group if _is_own(group, name))


def layers_of(file: h5py.File, path: Path, sizes: Sizes, good: int) -> tuple[LayerHolding, ...]:
    """Gives the layers of an open file with their sizes, brought up from the images that were asked to all that are good.

    Raises:
        StoreError: What a layer says of itself has changed.
        ValueError: It is what no layer can be; also what else h5py raises.
    """
    factor = good / sizes.good if sizes.good else 0.0
    found = []
    for name in tables.layer_names(file):
        node = file["features"][name]
        shape = None if isinstance(node, h5py.Group) else tuple(int(side) for side in node.shape[1:])
        raw, stored = (round(part.get(name, 0) * factor) for part in (sizes.raw, sizes.stored))
        facts = node.attrs
        found.append(LayerHolding(name, shape, str(facts["dtype"]), int(facts["channels"]), int(facts["stride_px"]), raw, stored))
    return tuple(found)
