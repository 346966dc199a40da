"""What may be read of a run folder: files of its own, and in them arrays of their own, no larger than the file can hold.

This program makes no links in a run folder; what one leads to is somebody else's, anywhere on this machine: links are refused.
HDF5 would follow them, read arrays whose values lie in other files, and allocate whatever a header declares.
"""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import Any

import h5py

from ..errors import StoreError
from . import format
from .damage import HDF5_READ_ERRORS, damaged, not_a_file, unreadable

# Group of a file -> the words for what lies in it; statistics are looked at when they are read.
_MEMBERS = {"features": "layer {}", "images": "column {!r} of /images", "checksums": "/checksums/{}"}
# Source: RFC 1951: 258 bytes from 2 bits at the most.
DEFLATE_FACTOR = 1032
# A chunk may be larger than a small array in it.
_SPARE_BYTES = 1 << 20


def require_file(path: Path) -> None:
    """Make sure that a name in a run folder is a regular file: no link, and nothing that would be waited for.

    Raises:
        StoreError: It is missing or something else.
    """
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
        raise not_a_file(path, kinds.get(stat.S_IFMT(mode), "a device or socket"))


def read_small(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file of a run folder that is never large, such as its options.

    Raises:
        StoreError: It is missing, no regular file, cannot be read, or is larger.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > most_bytes:
        raise StoreError(
            f"{path}: too large for what it is, got more than {most_bytes} bytes. Expected what this program has written. "
            f"Put it back, or remove it."
        )
    return content


def require_own_shards(folder: Path) -> None:
    """Make sure that the folder of shards of a run folder is no link.

    Raises:
        StoreError: It is one.
    """
    shards = folder / format.SHARD_FOLDER
    if shards.is_symlink():
        raise not_a_file(shards, "a link")


def check_tree(file: h5py.File, path: Path, all_nodes: bool) -> None:
    """Make sure that the groups of a shard or index lie in it; what is missing is for whoever needs it.

    Args:
        file: Open for reading.
        path: Of the file, for messages.
        all_nodes: Whether to look at all arrays now; otherwise :func:`own_node` is for those that are read.

    Raises:
        StoreError: Something leads out of the file, or is declared and cannot be there.
    """
    part = "the tree"
    try:
        for name in (*_MEMBERS, "statistics"):
            if name in file and not isinstance(own_node(file, name), h5py.Group):
                raise ValueError(f"no group /{name}")
        for group, words in _MEMBERS.items() if all_nodes else ():
            for name in file.get(group, ()):
                part = words.format(name)
                own_node(file[group], name)
    except HDF5_READ_ERRORS as error:
        raise damaged(path, part, error) from error


def own_node(group: h5py.Group, name: str) -> Any:
    """Return the array or group that lies in a group under a name; follow no link.

    Raises:
        KeyError: There is nothing.
        ValueError: It is a link, its values lie elsewhere, or it is larger than its file can be.
    """
    if "/" in name or group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type != h5py.h5l.TYPE_HARD:
        raise ValueError("a link, which is not followed")
    node = group[name]
    if isinstance(node, h5py.Dataset):
        _check_dataset(node)
    elif not isinstance(node, h5py.Group):
        raise ValueError("no array")
    return node


def _check_dataset(node: h5py.Dataset) -> None:
    properties = node.id.get_create_plist()
    if properties.get_external_count():
        raise ValueError("data in another file, which is not read")
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        for number in range(properties.get_virtual_count()):
            folder, _, name = properties.get_virtual_filename(number).rpartition("/")
            if folder != format.SHARD_FOLDER or not format.SHARD_NAME.fullmatch(name):
                raise ValueError(f"a source {f'{folder}/{name}'[:200]!r} that is no shard of the run")
        return
    is_chunked = properties.get_layout() == h5py.h5d.CHUNKED
    # Of a layer, chunks of failed rows are not stored; what is, is bounded by its stream.
    if is_chunked and node.ndim == len(format.AXES.split(",")):
        return
    file_bytes = h5py.h5i.get_file_id(node.id).get_filesize()
    values = max(math.prod(node.shape), math.prod(node.chunks) if is_chunked else 0)
    if values * node.id.get_type().get_size() > max(
        _SPARE_BYTES * is_chunked, file_bytes * (DEFLATE_FACTOR if is_chunked else 1)
    ):
        raise ValueError(f"shape {node.shape} in a file of {file_bytes} bytes")
