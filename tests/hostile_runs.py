"""Run folders as a stranger might make them: what is done to a file of a whole run, by name."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.records import digest_identity

Edit = Callable[[h5py.File], object]
SHARD, INDEX = "shards/shard-00001-of-00003.h5", "features.h5"
LAYER = "features/relu4_1"


def put(name: str, link: Any) -> Edit:
    """Puts something else in the place of a node."""

    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return edit


def root(**attributes: Any) -> Edit:
    """Sets attributes of the root, with right checksums."""
    return lambda file: file.attrs.update(attributes)


def layer(**attributes: Any) -> Edit:
    return lambda file: file[LAYER].attrs.update(attributes)


def remade(name: str, *, attributes: bool = True, **options: Any) -> Edit:
    """Makes an array anew, with its attributes."""

    def edit(file: h5py.File) -> None:
        old = dict(file[name].attrs)
        folder, _, last = name.rpartition("/")
        del file[name]
        new = file[folder].create_dataset(last, **options)
        for key, value in old.items() if attributes else ():
            new.attrs[key] = value

    return edit


def identity(change: Callable[[dict[str, Any]], Any]) -> Edit:
    """Changes the identity, and all that follows from it."""

    def edit(file: h5py.File) -> None:
        options = json.loads(file.attrs["identity"])
        found = change(options)
        text = found if isinstance(found, str) else json.dumps(found if found is not None else options)
        digest = digest_identity(json.loads(text)) if text.startswith("{") and len(text) > 1 else "0" * 64
        file.attrs.update({"identity": text, "run_digest": digest})

    return edit


def _sources(name: str) -> Edit:
    def edit(file: h5py.File) -> None:
        shape, old = file[LAYER].shape, dict(file[LAYER].attrs)
        layout = h5py.VirtualLayout(shape, "<f4")
        layout[:] = h5py.VirtualSource(name, LAYER, shape, "<f4")
        del file[LAYER]
        file["features"].create_virtual_dataset("relu4_1", layout, fillvalue=np.nan).attrs.update(old)

    return edit


def _bomb(file: h5py.File) -> None:
    """Lets a chunk of this program's own shape inflate to a thousand times its size."""
    node = file[LAYER]
    node.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(200 << 20), 1))


# Name -> (file, edit, words that the error has). All are found when the run is opened or read.
TREES: dict[str, tuple[str, Edit, str]] = {
    "external link for a layer": (
        SHARD,
        put(LAYER, h5py.ExternalLink("/etc/hostname", "/x")),
        "a link, which is not followed",
    ),
    "external link for all layers": (SHARD, put("features", h5py.ExternalLink("../x.h5", "/")), "a link, which is not"),
    "external link for a column": (
        INDEX,
        put("images/key", h5py.ExternalLink("/x", "/k")),
        "column 'key' of /images is damaged, got",
    ),
    "soft link for a layer": (SHARD, put(LAYER, h5py.SoftLink("/features/conv1_1")), "a link, which is not"),
    "soft link for checksums": (SHARD, put("checksums/relu4_1", h5py.SoftLink("/images/width")), "/checksums/relu4_1 is damaged"),
    "source outside the folder": (INDEX, _sources("../../elsewhere.h5"), "a source '../../elsewhere.h5' that is no shard"),
    "source of the root": (INDEX, _sources("/etc/hostname"), "a source '/etc/hostname' that is no shard"),
    "virtual layer of a shard": (SHARD, _sources("shards/shard-00000-of-00003.h5"), "layer relu4_1 is damaged"),
    "values in another file": (
        SHARD,
        remade(LAYER, shape=(4, 80, 80, 3), dtype="<f4", external=[("/etc/hostname", 0, 4 * 80 * 80 * 3 * 4)]),
        "layer relu4_1 is damaged, got data in another file, which is not read",
    ),
    "a column in another file": (
        INDEX,
        remade("images/height", shape=(10,), dtype="<i4", external=[("/etc/hostname", 0, 40)]),
        "column 'height' of /images is damaged, got data in another file",
    ),
    "2^60 rows": (SHARD, root(rows=np.int64(2**60)), "the root is damaged, got parts that end at rows"),
    "rows below nothing": (INDEX, root(rows=np.int64(-1)), "the root is damaged, got parts that end at rows [-1]"),
    "no images a shard": (INDEX, root(images_per_shard=np.int64(0)), "the root is damaged, got 0 images a shard"),
    "-5 images a shard": (SHARD, root(images_per_shard=np.int64(-5)), "the root is damaged, got -5 images a shard"),
    "another first row": (SHARD, root(first_row=np.int64(2**62)), "is damaged, got a first row 4611686018427387904 at which no"),
    "parts that go back": (
        INDEX,
        root(part_stops=np.array([8, 4, 10]), part_digests=np.array(["0" * 64] * 3, object)),
        "parts that end at rows [8, 4, 10]",
    ),
    "parts of no digest": (
        INDEX,
        root(part_stops=np.array([10]), part_digests=np.array(["../x"], object)),
        "digests that are none",
    ),
    "more parts than digests": (
        INDEX,
        root(part_stops=np.array([5, 10]), part_digests=np.array(["0" * 64], object)),
        "1 digests of 2 parts",
    ),
    "2^40 rows that are not stored": (
        SHARD,
        remade(LAYER, shape=(2**40, 80, 80, 3), dtype="<f4", chunks=(1, 80, 80, 3)),
        "layer relu4_1 is damaged, got shape (1099511627776, 80, 80, 3) for 4 rows",
    ),
    "a row of terabytes": (
        SHARD,
        remade(LAYER, shape=(4, 2**20, 2**20, 3), dtype="<f4", chunks=(1, 64, 2**20, 3)),
        "layer relu4_1 is damaged, got (1048576, 1048576, 3) where the run has (80, 80, 3)",
    ),
    "terabytes in one piece": (
        SHARD,
        remade(LAYER, shape=(4, 2**20, 2**20, 3), dtype="<f4"),
        "layer relu4_1 is damaged, got shape (4, 1048576, 1048576, 3) in a file of",
    ),
    "rows that were never stored": (
        SHARD,
        remade(LAYER, shape=(4, 80, 80, 3), dtype="<f4", chunks=(2, 40, 80, 3), compression="gzip"),
        "is damaged",
    ),
    "a chunk that inflates to 200 MB": (
        SHARD,
        _bomb,
        "layer relu4_1, row 4 (folder1/image é4.jpg) is damaged, got a stream of more",
    ),
    "2^50 rows of a column": (
        INDEX,
        remade("images/bytes", shape=(2**50,), dtype="<i8"),
        "column 'bytes' of /images is damaged, got shape (1125899906842624,) in a file of",
    ),
    "a column of fewer rows": (INDEX, remade("images/label", data=["x"]), "column 'label' of /images is damaged, got "),
    "a layer of whole numbers": (SHARD, remade(LAYER, shape=(4, 80, 80, 3), dtype="<i8", chunks=(1, 80, 80, 3)), "is damaged"),
    "an index of rows of terabytes": (
        INDEX,
        remade(LAYER, shape=(10, 2**20, 2**20, 3), dtype="<f4", chunks=(1, 64, 2**20, 3)),
        "layer relu4_1 is damaged, got (80, 80, 3), float32 where the run has (1048576, 1048576, 3)",
    ),
}


STATISTICS = "statistics/relu4_1"


def _link(name: str, target: str, node: str = "/x") -> Edit:
    """Links to a file beside the run folder, from there: HDF5 takes a link from the folder of its file."""

    def edit(file: h5py.File) -> None:
        above = "../.." if Path(file.filename).parent.name == "shards" else ".."
        put(name, h5py.ExternalLink(f"{above}/{target}", node))(file)

    return edit


# Name -> (edit, words that the error has). Each is found when statistics are read; pipe and outside.h5 lie beside the run folder.
SUMMARIES: dict[str, tuple[Edit, str]] = {
    "another file": (_link(STATISTICS, "outside.h5", STATISTICS), "got a link, which is not followed"),
    "a pipe": (_link(STATISTICS, "pipe"), "got a link, which is not followed"),
    "all in another file": (_link("statistics", "outside.h5", "/statistics"), "the tree is damaged, got a link"),
    "a histogram in another file": (
        remade(f"{STATISTICS}/histogram", shape=(256,), dtype="<i8", external=[("/etc/hostname", 0, 2048)]),
        "got data in another file, which is not read",
    ),
}


IDENTITIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no JSON": lambda options: "{",
    "nested": lambda options: "[" * 100_000,
    "a list": lambda options: "[]",
    "a number": lambda options: "1e999",
    "no images": lambda options: options.pop("images") and None,
    "images in other words": lambda options: options.update(images="../../etc, digest x"),
    "endless images": lambda options: options.update(images="9" * 5000 + " rows, digest " + "0" * 64),
    "numbers": lambda options: options.update(layers=7),
    "shards in words": lambda options: options.update({"output.images_per_shard": "few"}),
    "no images a shard": lambda options: options.update({"output.images_per_shard": "0"}),
    "an extension of nothing": lambda options: options.update(extends="-3 rows, digest x"),
}


def _listing(path: Path, change: Callable[[list[Any]], list[Any]]) -> bytes:
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return gzip.compress(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in change(lines)))


def _header(**values: Any) -> Callable[[Path], bytes]:
    return lambda path: _listing(path, lambda lines: [{**lines[0], **values}, *lines[1:]])


def _rows(**values: Any) -> Callable[[Path], bytes]:
    return lambda path: _listing(path, lambda lines: [lines[0], {**lines[1], **values}])


def endless_rows(file: h5py.File) -> None:
    """Declares more bytes a row than a number of eight bytes has, 2^95."""
    remade(LAYER, shape=(10, 2**31, 2**31, 2**31), dtype="<f4", chunks=(1, 64, 64, 3))(file)


# What a list of images becomes.
LISTINGS: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda path: b"",
    "no gzip": lambda path: b"[]",
    "a bomb of one line": lambda path: gzip.compress(bytes(200 << 20), 1),
    "a bomb of many lines": lambda path: _listing(path, lambda lines: [lines[0], b"[]\n" * (12 << 20)]),
    "a bomb of many lists": lambda path: _listing(path, lambda lines: [lines[0], b"[" + b"[]," * (15 << 20) + b"0]"]),
    "nested": lambda path: gzip.compress(b"[" * 1_000_000),
    "a list": lambda path: gzip.compress(b"[]\n"),
    "no identity": _header(identity=None),
    "an identity of numbers": _header(identity={"images": 3}),
    "rows below nothing": _header(rows=-1),
    "gone rows in words": _header(gone=["x"]),
    "gone rows beyond all numbers": _header(gone=[10**400]),
    "keys that are numbers": _rows(key=[1] * 10),
    "sizes beyond all numbers": _rows(bytes=[10**30] * 10),
    "sizes that are lists": _rows(bytes=[[]] * 10),
    "fewer labels": _rows(label=[]),
    "columns that are none": _rows(columns=7),
    "half a character": _rows(key=["\ud800"] * 10),
}


def refill(path: Path, kind: str, outside: Path) -> None:
    """Puts something that is no file of its own in the place of one."""
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
