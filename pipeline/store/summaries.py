"""The statistics of layers in a file of the store, shard or index: written, read, held to their checksums."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError, nearest
from ..statistics import BINS, HISTOGRAM_STEP, LayerStatistics
from . import format, tables
from .border import check_attribute_sizes, check_place, member, own_node
from .damage import HDF5_READ_ERRORS, damaged
from .storage import check_table


class StatisticsError(StoreError, KeyError):
    """There are no statistics of such a layer; a KeyError too, as a mapping's users expect."""

    # KeyError's own would put the message in quotes.
    __str__ = StoreError.__str__


def write_statistics(file: h5py.File, statistics: Mapping[str, LayerStatistics]) -> None:
    """Writes ``/statistics`` and its checksums, an attribute of the root; before the root's other attributes.

    Args:
        file: Open for writing.
        statistics: Layer -> statistics of the file's rows.
    """
    group, checksums = file.create_group("statistics"), {}
    for layer, of_layer in statistics.items():
        node = group.create_group(layer)
        for (name, dtype), value in zip(format.STATISTICS.items(), astuple(of_layer), strict=True):
            array = np.asarray(value, dtype)
            node.create_dataset(name, data=array)
            checksums[f"{layer}/{name}"] = zlib.crc32(array.tobytes())
    group.attrs["histogram_step"] = np.int64(HISTOGRAM_STEP)
    file.attrs[format.STATISTICS_CHECKSUMS] = json.dumps(checksums)


def read_statistics(file: h5py.File, path: Path) -> dict[str, LayerStatistics]:
    """Return layer -> statistics of an open file's rows.

    Raises:
        StoreError: They are damaged.
    """
    found = {}
    for layer, of_layer in _read_layers(file, path):
        if isinstance(of_layer, StoreError):
            raise of_layer
        found[layer] = of_layer
    return found


def wrong_statistics(file: h5py.File, path: Path, layers: list[str], rows_ok: int) -> Iterator[StoreError]:
    """Gives what of the statistics is not as it was written, or cannot be of these rows.

    Args:
        file: Open shard or index.
        path: Of the file, for messages.
        layers: Of the run.
        rows_ok: Rows of the file that did not fail.
    """
    found = dict(_read_layers(file, path))
    for layer in [*layers, *(name for name in found if name not in layers)]:
        of_layer = found.get(layer)
        if layer not in layers or of_layer is None:
            yield _damaged(path, layer, "none" if of_layer is None else "statistics of no layer")
        elif isinstance(of_layer, StoreError):
            yield of_layer
        elif of_layer.rows != rows_ok:
            yield _damaged(path, layer, f"{of_layer.rows} rows in place of {rows_ok}")


def _read_layers(file: h5py.File, path: Path) -> Iterator[tuple[str, LayerStatistics | StoreError]]:
    try:
        expected: dict[str, int] = json.loads(str(file.attrs[format.STATISTICS_CHECKSUMS]))
        layers = list(dict.fromkeys(name.rpartition("/")[0] for name in expected))
    except HDF5_READ_ERRORS as error:
        raise damaged(path, "the statistics", error) from error
    for layer in layers:
        try:
            group, channels = member(member(file, "statistics"), layer), _channels(file, path, layer)
            values: list[Any] = []
            for name in format.STATISTICS:
                array = _read_array(group, name, path, channels)
                got = zlib.crc32(array.astype(array.dtype.newbyteorder("<")).tobytes())
                if got != expected[f"{layer}/{name}"]:
                    raise ValueError(f"{name} of type {array.dtype} with checksum {got:08x}")
                values.append(array if array.ndim else array.item())
            yield layer, LayerStatistics(*values)
        except StoreError as error:
            yield layer, error
        except (*HDF5_READ_ERRORS, MemoryError) as error:
            yield layer, _damaged(path, layer, error)


def _channels(file: h5py.File, path: Path, layer: str) -> int:
    node = own_node(file, path, "features", layer)
    check_attribute_sizes(node, path, f"layer {layer}")
    return int(node.attrs["channels"])


def _read_array(group: h5py.Group, name: str, path: Path, channels: int) -> NDArray[Any]:
    """Reads one of the statistics of a layer, once it is sure to be in the file and of the size that it must have."""
    node, dtype = member(group, name), np.dtype(format.STATISTICS[name])
    check_place("statistics", node)
    shapes = {"exact_sum": (2,), "exact_sum_of_squares": (2,), "histogram": (BINS,)}
    shape = shapes.get(name, (channels,) if name.startswith("channel_") else ())
    if node.shape != shape or node.dtype != dtype:
        raise ValueError(f"{name} of shape {node.shape} and type {node.dtype} in place of {shape} and {dtype}")
    check_table(node, path)
    return np.asarray(node[()])


def _damaged(path: Path, layer: str, got: object) -> StoreError:
    return damaged(path, f"/statistics/{layer}", got)


class Statistics(Mapping[str, LayerStatistics]):
    """Layer -> its statistics; read when first asked for.

    Args:
        path: Of the index or shard that they are of.
        layers: Of the run.
    """

    def __init__(self, path: Path, layers: tuple[str, ...]) -> None:
        self._path = path
        self._layers = layers
        self._read: dict[str, LayerStatistics] | None = None

    def _found(self) -> dict[str, LayerStatistics]:
        if self._read is None:
            with tables.open_file(self._path) as file:
                found = read_statistics(file, self._path)
            self._read = {layer: found[layer] for layer in self._layers if layer in found}
        return self._read

    def __getitem__(self, layer: str) -> LayerStatistics:
        if layer in self._found():
            return self._found()[layer]
        raise StatisticsError(
            f"{self._path}: no such layer, got {layer!r}. Expected one of: {nearest(str(layer), self._layers)}. "
            f"The run's layers are in run.layers."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(self._found())

    def __repr__(self) -> str:
        return "\n".join(f"{layer}: {of_layer!r}" for layer, of_layer in self.items()) or "<no statistics>"
