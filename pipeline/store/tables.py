"""Shards and indexes opened for reading: what they say of the run, their columns and checksums; but for the values of layers."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..sharding import Part, ShardSpec, plan_shards
from ..storage import RemotePath
from . import format
from .damage import (
    NO_LOCKS,
    ForeignError,
    UnreadableError,
    damaged,
    foreign,
    of_another_run,
    own_node,
    reading,
    require_file,
    system_errno,
    unreadable,
)

Column = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.object_]

_log = logging.getLogger(__name__)


def read_column(file: h5py.File, path: Path, name: str) -> Column:
    """Return one column of ``/images``: numbers, or an object array of str.

    Args:
        file: Open shard or index.
        path: Of the file, for messages.
        name: One that is there.

    Raises:
        StoreError: It is damaged.
    """
    with reading(path, f"column {name!r} of /images"):
        dataset = own_node(file["images"], name)
        values: Column = dataset[()] if name in format.NUMBER_COLUMNS else np.asarray(dataset.asstr()[()], object)
        if (got := column_checksum(values)) != int(dataset.attrs["crc32"]):
            raise ValueError(f"checksum {got:08x}")
    return values


def read_checksums(file: h5py.File, path: Path, layer: str) -> NDArray[np.uint32]:
    """Return ``/checksums/<layer>``, one a row.

    Raises:
        StoreError: It is damaged.
    """
    with reading(path, f"/checksums/{layer}"):
        dataset = own_node(file["checksums"], layer)
        if dataset.dtype != np.dtype("<u4"):
            raise ValueError(f"{dataset.dtype} of shape {dataset.shape}")
        values: NDArray[np.uint32] = dataset[()]
    return values


def column_checksum(values: Column) -> int:
    """Return the CRC-32 of a column: of its little-endian bytes, or of its texts in UTF-8, each ended by a NUL byte."""
    if values.dtype == object:
        return zlib.crc32("".join(f"{text}\0" for text in values).encode())
    return zlib.crc32(values.astype(values.dtype.newbyteorder("<")).tobytes())


def open_file(path: Path) -> h5py.File:
    """Open a shard or an index for reading; what is taken of its groups, :func:`~pipeline.store.damage.own_node` looks at.

    Args:
        path: Of the file.

    Raises:
        StoreError: It is missing, a link, cannot be read, is damaged, leads out of itself, is not of this program or of a later
            version of the format.
    """
    opened = _open_hdf5(path)
    try:
        with reading(path, "the root"):
            _check_root(opened, path)
            for name in ("features", "images", "checksums", "statistics"):
                if not isinstance(own_node(opened, name), h5py.Group):
                    raise ValueError(f"no group /{name}")
    except BaseException:
        opened.close()
        raise
    return opened


def _check_root(file: h5py.File, path: Path) -> None:
    kind, version = file.attrs.get("format"), file.attrs.get("format_version")
    if kind != format.FORMAT or version is None:
        raise ForeignError(
            f"{path}: not a file of this program, got format {kind!r}. Expected {format.FORMAT!r}. "
            f"Give a run folder, its {format.INDEX_NAME} or one of its shards."
        )
    if int(version) != format.FORMAT_VERSION:
        is_later = int(version) > format.FORMAT_VERSION
        raise ForeignError(
            f"{path}: written by {'a later' if is_later else 'an earlier'} version of this program, got format version "
            f"{int(version)}. Expected {format.FORMAT_VERSION}. "
            f"{'Update the program' if is_later else 'Extract again with output.existing=replace'}."
        )
    found = str(file.attrs["run_digest"])
    if hashlib.sha256(str(file.attrs["identity"]).encode()).hexdigest() != found:
        raise damaged(path, "attribute 'run_digest' of the root", f"{found[:12]}, which is not that of the identity")


def _open_hdf5(path: Path) -> h5py.File:
    """Open any HDF5 file for reading; without a lock where the file system has none."""
    require_file(path)
    try:
        if isinstance(path, RemotePath):
            source: Any = path.ranges()
        else:
            with path.open("rb") as file:
                file.read(1)
            source = path
    except OSError as error:
        raise unreadable(path, error) from error
    with reading(path, "the HDF5 file"):
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
    """Tell whether this is a whole HDF5 file of another program; of what is damaged nobody can tell.

    Raises:
        UnreadableError: It is in use, or the system does not let us read it.
    """
    try:
        with _open_hdf5(path) as file, reading(path, "the root"):
            return bool(file.attrs.get("format") != format.FORMAT)
    except UnreadableError:
        raise
    except StoreError:
        return False


def read_parts(file: h5py.File, path: Path) -> tuple[Part, ...]:
    """Return the parts of the run, up to its own, that a shard or index names.

    Raises:
        StoreError: They are damaged.
    """
    with reading(path, "the root"):
        # A run that was never extended has one part, and no attributes about it.
        stops = [int(stop) for stop in file.attrs.get("part_stops", [file.attrs["rows"]])]
        digests = [str(digest) for digest in file.attrs.get("part_digests", [file.attrs["run_digest"]])]
        # Before their shards are counted out.
        if len(stops) != len(digests) or [0, *stops] != sorted({0, *stops}):
            raise ValueError(f"parts that end at rows {stops[:5]}")
        if stops[-1] > format.MOST_ROWS or not 0 <= stops[-1] // int(file.attrs["images_per_shard"]) <= format.MOST_SHARDS:
            raise ValueError(f"{stops[-1]} rows in shards of {file.attrs['images_per_shard']}")
    return tuple(map(Part, digests, stops))


def read_plan(file: h5py.File, path: Path) -> tuple[tuple[str, ...], tuple[ShardSpec, ...]]:
    """Return the digest that the shards of each part have, and the shard plan of all parts, that a shard or index names.

    Raises:
        StoreError: They are damaged.
    """
    parts = read_parts(file, path)
    shards = plan_shards([part.stop for part in parts], int(file.attrs["images_per_shard"]))
    return tuple(part.digest for part in parts), shards


def check_shard(file: h5py.File, path: Path, digest: str, shard: ShardSpec) -> None:
    """Compare an open file with the run and the rows that it should be of.

    Raises:
        StoreError: It is of another run, of other rows, or damaged.
    """
    with reading(path, "the root"):
        found = str(file.attrs["run_digest"])
        first, rows = int(file.attrs["first_row"]), len(own_node(file["images"], "key"))
    if found != digest:
        raise of_another_run(path, found, digest)
    if (first, rows) != (shard.first, shard.rows):
        got = f"rows {first} to {first + rows - 1}"
        raise foreign(path, f"not the shard that its name says, got {got}", f"{shard.first} to {shard.stop - 1}")


def layer_names(file: h5py.File) -> list[str]:
    """Return the layers of an open file, in network order."""
    group = file["features"]
    return sorted(group, key=lambda name: int(own_node(group, name).attrs["network_index"]))
