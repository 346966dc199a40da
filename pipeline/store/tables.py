"""Shards and indexes opened for reading: what they say of the run, their columns and checksums; but for the values of layers.

Files hold what a list says of its images as text. In an :class:`ImageTable` a column of numbers becomes numbers again.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError, nearest
from ..formatting import Shown
from ..sharding import Part, ShardSpec, plan_shards
from ..storage import RemotePath
from . import format
from .damage import NO_LOCKS, DamagedError, ForeignError, foreign, of_another_run, own_node, reading, require_file, system_errno

Column = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.object_]

# The columns of the format as a person wants them; HDF5 has sorted them by name.
_OWN = ("key", "label", "status", "error", "height", "width", "bytes", "sha256")
# Rows of a long table that are shown; of a longer one no values are read to be looked at.
SHOWN_ROWS, LARGEST_READ = 10, 100_000
# No leading zeros, underscores or plus signs: 007 and +49 30 are names of something.
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|-?inf|nan|", re.IGNORECASE)

_log = logging.getLogger(__name__)


def read_column(file: h5py.File, path: Path, name: str) -> Column:
    """Return one column of ``/images``: numbers, or an object array of str; refuse a damaged one."""
    with reading(path, f"column {name!r} of /images"):
        dataset = own_node(file["images"], name)
        values: Column = dataset[()] if name in format.NUMBER_COLUMNS else np.asarray(dataset.asstr()[()], object)
        if name in ("label", "status", "error"):
            # The same few texts: each is in memory once.
            values = np.array([*map(sys.intern, values)], object)
        if (got := column_checksum(values)) != int(dataset.attrs["crc32"]):
            raise ValueError(f"checksum {got:08x}")
    return values


def read_checksums(file: h5py.File, path: Path, layer: str) -> NDArray[np.uint32]:
    """Return ``/checksums/<layer>``, one a row; refuse damaged ones."""
    with reading(path, f"/checksums/{layer}"):
        values: NDArray[np.uint32] = own_node(file["checksums"], layer)[()]
    return values


def column_checksum(values: Column) -> int:
    """Return the CRC-32 of a column: of its little-endian bytes, or of its texts in UTF-8, each ended by a NUL byte."""
    if values.dtype == object:
        return zlib.crc32("".join(f"{text}\0" for text in values).encode())
    return zlib.crc32(values.astype(values.dtype.newbyteorder("<")).tobytes())


def open_file(path: Path) -> h5py.File:
    """Open a shard or an index for reading; what is taken of its groups, :func:`~pipeline.store.damage.own_node` looks at.

    Raises:
        StoreError: It is missing, a link, damaged, cannot be read, or is of another program or version of the format.
    """
    opened = _open_hdf5(path)
    try:
        with reading(path, "the root"):
            kind, version = opened.attrs.get("format"), opened.attrs.get("format_version")
            if (kind, version) != (format.FORMAT, format.FORMAT_VERSION):
                raise ForeignError(
                    f"{path}: not a file that this version of the program writes, got format {kind!r}, version {version}. "
                    f"Expected version {format.FORMAT_VERSION} of ours. Read it by its own, or use output.existing=replace."
                )
            for name in ("features", "images", "checksums", "statistics"):
                if not isinstance(own_node(opened, name), h5py.Group):
                    raise ValueError(f"no group /{name}")
    except BaseException:
        opened.close()
        raise
    return opened


def _open_hdf5(path: Path) -> h5py.File:
    """Open any HDF5 file for reading; without a lock where the file system has none."""
    require_file(path)
    with reading(path, "the HDF5 file"):
        source = path.ranges() if isinstance(path, RemotePath) else path
        try:
            return h5py.File(source, "r")
        except OSError as error:
            if system_errno(error) not in NO_LOCKS:
                raise
            _say_no_locks(os.strerror(system_errno(error)))
        return h5py.File(source, "r", locking=False)


@functools.cache
def _say_no_locks(words: str) -> None:
    _log.warning("no locks: the file system has none (%s); files are read without, while nobody should write them", words)


def is_foreign(path: Path) -> bool:
    """Tell whether this is a whole HDF5 file of another program; of what is damaged nobody can tell."""
    with suppress(DamagedError), _open_hdf5(path) as file, reading(path, "the root"):
        return bool(file.attrs.get("format") != format.FORMAT)
    return False


def read_plan(file: h5py.File, path: Path) -> tuple[tuple[Part, ...], tuple[ShardSpec, ...]]:
    """Return the parts of the run that a shard or index names, up to its own, and the shards planned for these."""
    with reading(path, "the root"):
        # A run that was never extended has one part, and no attributes about it.
        stops = [int(stop) for stop in file.attrs.get("part_stops", [file.attrs["rows"]])]
        digests = [str(digest) for digest in file.attrs.get("part_digests", [file.attrs["run_digest"]])]
        if len(stops) != len(digests) or [0, *stops] != sorted({0, *stops}):
            raise ValueError(f"parts that end at rows {stops[:5]}")
        step = int(file.attrs["images_per_shard"])
        if stops[-1] > format.MOST_ROWS or not 0 <= stops[-1] // step <= format.MOST_SHARDS:
            raise ValueError(f"{stops[-1]} rows in shards of {step}")
    return tuple(map(Part, digests, stops)), plan_shards(tuple(stops), step)


def check_shard(file: h5py.File, path: Path, digest: str, shard: ShardSpec) -> None:
    """Refuse an open file that is not of the run, or not of the rows, that it should be of."""
    with reading(path, "the root"):
        found = str(file.attrs["run_digest"])
        first, rows = int(file.attrs["first_row"]), len(own_node(file["images"], "key"))
    if found != digest:
        raise of_another_run(path, found, digest)
    if (first, rows) != (shard.first, shard.rows):
        happened = f"not the shard that its name says, got rows {first} to {first + rows - 1}"
        raise foreign(path, happened, f"{shard.first} to {shard.stop - 1}")


def layer_names(file: h5py.File) -> list[str]:
    """Return the layers of an open file, in network order."""
    group = file["features"]
    return sorted(group, key=lambda name: int(own_node(group, name).attrs["network_index"]))


def as_numbers(texts: Sequence[str]) -> NDArray[np.int64] | NDArray[np.float64] | None:
    """Return a column of texts as numbers, if all of them are.

    Returns:
        (N,) int64 where all are whole; (N,) float64 where all are numbers, ``nan``, ``inf`` or empty, which becomes NaN; None
        where one is anything else (leading zeros are: 007 is a name), a whole number does not fit 64 bits, or none is a number.
    """
    different = set(texts)
    if different and all(map(_WHOLE.fullmatch, different)):
        whole = [*map(int, texts)]
        return np.array(whole, np.int64) if max(map(abs, whole)) < 1 << 63 else None
    if all(map(_NUMBER.fullmatch, different)) and any(map(re.compile("[0-9]").search, different)):
        return np.array([float(text or "nan") for text in texts], np.float64)
    return None


class ColumnError(StoreError, KeyError):
    """There is no such column in the table of images; a KeyError too, as a mapping's users expect."""

    # KeyError's own would put the message in quotes.
    __str__ = StoreError.__str__


class ImageTable(Shown, Mapping[str, NDArray[Any]]):
    """The table of images: column -> (N,) array. A column is read when first asked for.

    The columns of a list, ``label`` among them, are int64 or float64 where all their values are numbers, else object arrays of
    str. A label that is a folder of its key is the name of a class, and str whatever it looks like.
    """

    def __init__(self, path: Path, names: Iterable[str], rows: int) -> None:
        self._path, self._rows = path, rows
        self._names = (*_OWN, *sorted({*names} - {*_OWN}))
        self._columns: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            known = nearest(str(name), self._names)
            raise ColumnError(f"{self._path}: no such column, got {name!r}. Expected one of: {known}. See list(run.images).")
        if name not in self._columns:
            with open_file(self._path) as file:
                # The run may have been extended since it was opened.
                values: NDArray[Any] = read_column(file, self._path, name)[: self._rows]
            if name == "label" or name not in _OWN:
                numbers = as_numbers(values.tolist())
                if numbers is not None and not (name == "label" and _are_folders(values, self["key"])):
                    values = numbers
            self._columns[name] = values
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _table(self) -> tuple[str, Sequence[str], Iterable[Sequence[str]]]:
        caption = f"table of {self._rows} images: {', '.join(self._names)}"
        if self._rows > LARGEST_READ:
            return caption, (), ()
        try:
            # Why images failed, where some did; a digest tells a person nothing.
            names = [name for name in self if name != "sha256" and (name != "error" or any(self[name]))]
            rows = range(min(self._rows, SHOWN_ROWS))
            return caption, ["row", *names], [[str(row), *(str(self[name][row]) for name in names)] for row in rows]
        except StoreError as error:
            # Looking at something must be possible whatever is wrong with it.
            return caption, [str(error)], []


def _are_folders(labels: Column, keys: NDArray[Any]) -> bool:
    return all(label in key.split("/")[:-1] for label, key in zip(labels, keys, strict=True) if label)
