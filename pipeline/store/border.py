"""What a file of a run folder must be before anything of it is believed: a tree of its own, arrays that are stored.

A run folder may come from a stranger. HDF5 follows links to every file and device of this machine, reads arrays that lie in other
files, allocates whatever a header declares and unpacks whatever a stream holds. All that is asked for here, before it does so.

Promise: what is read of a file takes no more memory than some copies of the file, or of what its chunks declare, which deflate
can make 1032 times as large as they are.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import h5py

from . import format
from .damage import HDF5_READ_ERRORS, damaged
from .storage import DEFLATE_FACTOR, filters_of, stored_bytes

# A layer's name becomes part of messages and of file names.
_LAYER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# Far more than any network has, than a list may have, and than a file needs.
_MOST_CHANNELS = 1 << 20
_MOST_LAYERS, _MOST_COLUMNS, _MOST_ATTRIBUTES = 1000, 2000, 1000
# Source: HDF5 file format: an attribute in the header of its object, where this program's all are, has less than 64 KiB.
_ATTRIBUTE_BYTES = 1 << 16
# The last for a user's own True and False.
_ATTRIBUTE_KINDS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)
# What else lies in a file: what it is held to is for :mod:`~pipeline.store.summaries`, which reads it.
_STATISTICS = "statistics"
_PARTS = {"features": "layer {}", "images": "column {!r} of /images", "checksums": "/checksums/{}"}


def check_attribute_sizes(node: h5py.Group | h5py.Dataset, path: Path, of: str) -> None:
    """Makes sure that attributes are texts and numbers, and few and small.

    Args:
        node: The root, or a layer.
        path: Of the file, for messages.
        of: Whose attributes they are, likewise.

    Raises:
        StoreError: They are not.
    """
    count = h5py.h5a.get_num_attrs(node.id)
    if count > _MOST_ATTRIBUTES:
        raise damaged(path, f"the attributes of {of}", f"{count} of them")
    for number in range(count):
        attribute = h5py.h5a.open(node.id, index=number)
        size_bytes, kind = attribute.get_storage_size(), attribute.get_type().get_class()
        if size_bytes > _ATTRIBUTE_BYTES or kind not in _ATTRIBUTE_KINDS:
            name = attribute.name.decode("utf-8", "replace")[:100]
            got = f"{size_bytes} bytes" if size_bytes > _ATTRIBUTE_BYTES else "neither text nor number"
            raise damaged(path, f"attribute {name!r} of {of}", got)


def member(group: h5py.Group, name: str) -> Any:
    """Gives what lies in a group under a name; follows no link.

    Raises:
        KeyError: There is nothing.
        ValueError: It is a link.
    """
    # HDF5 takes a name with a slash for a path, and follows what is on the way.
    link = None if "/" in name else group.get(name, getlink=True)
    if link is None:
        raise KeyError(f"no {name!r}")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"a link to {_target(link)}, which is not followed")
    return group[name]


def _target(link: Any) -> str:
    path = str(getattr(link, "path", "another place"))
    return repr(f"{link.filename}:{path}" if isinstance(link, h5py.ExternalLink) else path)


def check_groups(file: h5py.File, path: Path) -> None:
    """Makes sure that the groups of a shard or index are its own; what is in them is for :func:`own_node` to look at.

    What is missing is for whoever needs it.

    Raises:
        StoreError: One leads out of the file, or holds more than any run has.
    """
    try:
        # Places of texts in the file are counted from its beginning, in eight bytes.
        if file.userblock_size or file.id.get_create_plist().get_sizes() != (8, 8):
            raise ValueError("a file with a block of another program before it")
        for place in (*_PARTS, _STATISTICS):
            if file.get(place, getlink=True) is None:
                continue
            group = member(file, place)
            if not isinstance(group, h5py.Group):
                raise ValueError(f"no group /{place}")
            if len(group) > (_MOST_COLUMNS if place == "images" else _MOST_LAYERS):
                raise ValueError(f"{len(group)} members of /{place}")
    except HDF5_READ_ERRORS as error:
        raise damaged(path, "the tree", error) from error


def check_tree(file: h5py.File, path: Path) -> None:
    """Makes sure of the same, and that all arrays are the file's own; of layers, that they are such as this program writes.

    At native size a layer's images are looked at when they are read.

    Raises:
        StoreError: Something leads out of the file, or is declared and cannot be there.
    """
    check_groups(file, path)
    part = "the tree"
    try:
        for place, words in _PARTS.items():
            for name in file.get(place, ()):
                part = words.format(name[:100])
                if place == "features":
                    own_node(file, path, place, name)
                else:
                    # What is of another kind may be the user's own, and is refused if it is asked for.
                    check_place(place, member(file[place], name))
    except HDF5_READ_ERRORS as error:
        raise damaged(path, part, error) from error


def own_node(file: h5py.File, path: Path, place: str, name: str) -> Any:
    """Gives a layer, a column or the checksums of a layer, if it is such as this program writes.

    Args:
        file: Of which :func:`check_groups` has made sure.
        path: Of the file.
        place: ``features``, ``images`` or ``checksums``.
        name: Of what lies there.

    Raises:
        KeyError: There is nothing.
        ValueError: It is something else, or leads out of the file.
    """
    node = member(file[place], name)
    _check_node(place, name, node, path.stat().st_size)
    return node


def _check_node(place: str, name: str, node: Any, file_bytes: int) -> None:
    """Makes sure that a node may be read."""
    if place == "features":
        if not _LAYER_NAME.fullmatch(name):
            raise ValueError("a name that no layer has")
        if isinstance(node, h5py.Group):
            return
    check_place(place, node)
    kind = node.id.get_type()
    if place == "images" and name not in format.NUMBER_COLUMNS:
        is_ours = isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    else:
        is_ours = kind.get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT) and kind.get_size() <= 8
    if not is_ours:
        raise ValueError(f"another type than is stored there: {node.dtype.kind!r} of {kind.get_size()} bytes")
    is_whole = node.id.get_create_plist().get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    if is_whole and math.prod(node.shape) * stored_bytes(node) > file_bytes:
        raise ValueError(f"shape {node.shape} in a file of {file_bytes} bytes")
    if node.ndim != (4 if place == "features" else 1):
        raise ValueError(f"shape {node.shape}")


def check_place(place: str, node: Any) -> None:
    """Makes sure that an array is in its file; asks for no shape, for which HDF5 may have to ask a virtual one's sources.

    Args:
        place: The group of the root below which it lies. Of ``features`` alone it may be virtual.
        node: What should be an array.

    Raises:
        ValueError: It is none, or its values are elsewhere.
    """
    if not isinstance(node, h5py.Dataset):
        raise ValueError("no array")
    properties = node.id.get_create_plist()
    if properties.get_external_count():
        raise ValueError("data in another file, which is not read")
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        _check_sources(place, properties)
    filters_of(properties)


def _check_sources(place: str, properties: Any) -> None:
    if place != "features":
        raise ValueError("a virtual array")
    for number in range(properties.get_virtual_count()):
        folder, _, name = properties.get_virtual_filename(number).rpartition("/")
        if folder != format.SHARD_FOLDER or not format.SHARD_NAME.fullmatch(name):
            raise ValueError(f"a source {f'{folder}/{name}'[:200]!r} that is no shard of the run")


def check_layer(node: h5py.Dataset | h5py.Group) -> None:
    """Makes sure that a layer says of itself what a layer can be.

    Raises:
        ValueError: It does not.
    """
    channels, dtype = int(node.attrs["channels"]), str(node.attrs["dtype"])
    if not 1 <= channels <= _MOST_CHANNELS or dtype not in format.STORED_DTYPES:
        raise ValueError(f"{channels} channels, {dtype}")
    int(node.attrs["stride_px"]), int(node.attrs["network_index"])


def check_image(node: Any, file_bytes: int) -> h5py.Dataset:
    """Holds one image's array at native size to what :func:`check_tree` holds the others to, and gives it.

    Raises:
        ValueError: It is another thing.
    """
    if not isinstance(node, h5py.Dataset):
        raise ValueError("no array")
    properties, kind = node.id.get_create_plist(), node.id.get_type()
    if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError("data in another file, which is not read")
    if kind.get_class() != h5py.h5t.FLOAT or node.ndim != 3:
        raise ValueError(f"{node.dtype} of shape {node.shape}")
    # Of an array in chunks all are there, or reading fails at the first that is not.
    if math.prod(node.shape) * kind.get_size() > file_bytes * DEFLATE_FACTOR:
        raise ValueError(f"shape {node.shape} in a file of {file_bytes} bytes")
    filters_of(properties)
    return node
