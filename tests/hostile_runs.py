"""Files of a run that are replaced or changed by hand: what is done to them, by name."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

Edit = Callable[[h5py.File], object]
SHARD, INDEX = "shards/shard-00001-of-00003.h5", "features.h5"
LAYER = "features/relu4_1"


def put(name: str, link: Any) -> Edit:
    """Put something else in the place of a node."""

    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return edit


def root(**attributes: Any) -> Edit:
    """Set attributes of the root."""
    return lambda file: file.attrs.update(attributes)


def layer(**attributes: Any) -> Edit:
    """Set attributes of a layer."""
    return lambda file: file[LAYER].attrs.update(attributes)


# What a list of images becomes.
LISTINGS: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda path: b"",
    "no gzip": lambda path: b"[]",
    "a bomb of one line": lambda path: gzip.compress(bytes(200 << 20), 1),
    "nested": lambda path: gzip.compress(b"[" * 1_000_000),
    "a list": lambda path: gzip.compress(b"[]\n"),
}


def refill(path: Path, kind: str, outside: Path) -> None:
    """Put something that is no file of its own in the place of one."""
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "link to nothing":
        path.symlink_to(outside.parent / "nothing")
    else:
        path.symlink_to(outside)


REFILLS = {
    "pipe": "a pipe",
    "folder": "a folder",
    "link to a device": "a link",
    "link to nothing": "a link",
    "link to a file": "a link",
}
