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
from pipeline.store.attributes import write_attributes

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
    return lambda file: write_attributes(file, attributes)


def layer(**attributes: Any) -> Edit:
    return lambda file: write_attributes(file[LAYER], attributes)


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
        write_attributes(file, {"identity": text, "run_digest": digest})

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


def _foreign_bomb(file: h5py.File) -> None:
    """The same in chunks that HDF5 itself would have to read."""
    shape = file[LAYER].shape
    remade(LAYER, shape=shape, dtype="<f4", chunks=(2, 40, 80, 3), compression="gzip", shuffle=True)(file)
    packed = zlib.compress(bytes(200 << 20), 1)
    for row in (0, 2):
        for top in (0, 40):
            file[LAYER].id.write_direct_chunk((row, top, 0, 0), packed)


def _column_bomb(file: h5py.File) -> None:
    remade("images/height", shape=(4,), dtype="<i4", chunks=(4,), compression="gzip")(file)
    file["images/height"].id.write_direct_chunk((0,), zlib.compress(bytes(10 << 20), 9))


def many_attributes(file: h5py.File) -> None:
    for number in range(1100):
        file.attrs[f"a{number}"] = number


def type_in_place(file: h5py.File) -> None:
    del file[LAYER]
    file[LAYER] = np.dtype("<f4")


# Name -> (file, edit, words that the error has). All are found when the run is opened or read.
TREES: dict[str, tuple[str, Edit, str]] = {
    "external link for a layer": (
        SHARD,
        put(LAYER, h5py.ExternalLink("/etc/hostname", "/x")),
        "'/etc/hostname:/x', which is not",
    ),
    "external link for a layer of the index": (
        INDEX,
        put(LAYER, h5py.ExternalLink(SHARD, LAYER)),
        "a link to 'shards/shard-00001",
    ),
    "external link for all layers": (SHARD, put("features", h5py.ExternalLink("../x.h5", "/")), "a link to '../x.h5:/'"),
    "external link for a column": (
        INDEX,
        put("images/key", h5py.ExternalLink("/x", "/k")),
        "column 'key' of /images is damaged, got",
    ),
    "soft link for a layer": (SHARD, put(LAYER, h5py.SoftLink("/features/conv1_1")), "a link to '/features/conv1_1'"),
    "soft link in a circle": (SHARD, put(LAYER, h5py.SoftLink(f"/{LAYER}")), "a link to '/features/relu4_1'"),
    "soft link for checksums": (SHARD, put("checksums/relu4_1", h5py.SoftLink("/images/width")), "/checksums/relu4_1 is damaged"),
    "source outside the folder": (INDEX, _sources("../../elsewhere.h5"), "a source '../../elsewhere.h5' that is no shard"),
    "source of the root": (INDEX, _sources("/etc/hostname"), "a source '/etc/hostname' that is no shard"),
    "source by way of the folder above": (INDEX, _sources("shards/../../x.h5"), "a source 'shards/../../x.h5' that is no shard"),
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
    "hard links in a circle": (INDEX, lambda file: file["features"].__setitem__("loop", file["/"]), "the tree is damaged"),
    "a folder among the columns": (SHARD, lambda file: file["images"].__setitem__("x", file["/"]), "column 'x' of /images"),
    "a type in place of a layer": (SHARD, type_in_place, "layer relu4_1 is damaged, got no array"),
    "a name of two lines": (
        INDEX,
        lambda file: file["features"].__setitem__("a\n\x1b[31mb", file[LAYER]),
        r"layer a\n\x1b[31mb is damaged, got a name that no layer has",
    ),
    "a name of a folder above": (INDEX, lambda file: file["features"].__setitem__("..", file[LAYER]), "layer .. is damaged"),
    "a thousand attributes": (SHARD, many_attributes, "the attributes of the root is damaged"),
    "an attribute of references": (
        SHARD,
        lambda file: file.attrs.__setitem__("r", file.ref),
        "attribute 'r' of the root is damaged",
    ),
    "an attribute of pairs": (
        SHARD,
        lambda file: file[LAYER].attrs.__setitem__("p", np.zeros(2, "i4,f8")),
        "attribute 'p' of layer relu4_1 is damaged, got neither text nor number",
    ),
    "lists of numbers in an attribute": (
        INDEX,
        lambda file: file.attrs.create("v", np.array([np.arange(3), None], object)[:1], dtype=h5py.vlen_dtype("i4")),
        "attribute 'v' of the root is damaged, got neither text nor number",
    ),
    "2^60 rows": (SHARD, root(rows=np.int64(2**60)), "the root is damaged, got parts that end at rows"),
    "2^60 rows of the index": (INDEX, root(rows=np.int64(2**60)), "the root is damaged, got parts that end at rows"),
    "a billion shards": (INDEX, root(rows=np.int64(10**9), images_per_shard=np.int64(1)), "rows in 1000000000 shards"),
    "rows below nothing": (INDEX, root(rows=np.int64(-1)), "the root is damaged, got parts that end at rows [-1]"),
    "endless rows": (INDEX, root(rows=np.float64("inf")), "the root is damaged, got cannot convert float infinity"),
    "rows in words": (INDEX, root(rows="many"), "the root is damaged, got invalid literal"),
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
    "2^40 channels": (SHARD, layer(channels=np.int64(2**40)), "is damaged, got 1099511627776 channels, float32"),
    "2^40 channels of the index": (INDEX, layer(channels=np.int64(2**40)), "the tree is damaged, got 1099511627776 channels"),
    "an unknown dtype": (INDEX, layer(dtype="float128"), "the tree is damaged, got 3 channels, float128"),
    "a stride in words": (INDEX, layer(stride_px="far"), "the tree is damaged, got invalid literal"),
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
    "chunks larger than the rows": (
        SHARD,
        remade(LAYER, shape=(4, 80, 80, 3), maxshape=(None,) * 4, dtype="<f4", chunks=(16, 2048, 2048, 3), compression="gzip"),
        "is damaged, got chunks (16, 2048, 2048, 3) of shape (4, 80, 80, 3)",
    ),
    "chunks of this program's that are larger": (
        SHARD,
        remade(LAYER, shape=(4, 80, 80, 3), maxshape=(None, 80, 80, 3), dtype="<f4", chunks=(50_000, 80, 80, 3)),
        "layer relu4_1 is damaged, got chunks (50000, 80, 80, 3) of shape (4, 80, 80, 3)",
    ),
    "packed chunks of this program's that are larger": (
        SHARD,
        remade(
            LAYER, shape=(4, 80, 80, 3), maxshape=(None, 80, 80, 3), dtype="<f4", chunks=(50_000, 80, 80, 3), compression="gzip"
        ),
        "layer relu4_1 is damaged, got chunks (50000, 80, 80, 3) of shape (4, 80, 80, 3)",
    ),
    "rows that were never stored": (
        SHARD,
        remade(LAYER, shape=(4, 80, 80, 3), dtype="<f4", chunks=(2, 40, 80, 3), compression="gzip"),
        "is damaged",
    ),
    "a filter that needs a plug-in": (
        SHARD,
        remade(LAYER, data=np.zeros((4, 80, 80, 3), "<f4"), chunks=(1, 80, 80, 3), compression="lzf"),
        "layer relu4_1 is damaged, got filters [32000] in place of gzip",
    ),
    "a filter that packs numbers": (
        SHARD,
        remade("images/height", data=np.zeros(4, "<i4"), chunks=(4,), scaleoffset=4),
        "column 'height' of /images is damaged, got filters [6] in place of gzip",
    ),
    "a chunk that inflates to 200 MB": (
        SHARD,
        _bomb,
        "layer relu4_1, row 4 (folder1/image é4.jpg) is damaged, got a stream of more",
    ),
    "another program's chunk that does": (
        SHARD,
        _foreign_bomb,
        "layer relu4_1, row 4 (folder1/image é4.jpg) is damaged, got a stream of more than 76800 bytes",
    ),
    "a column that does": (SHARD, _column_bomb, "column 'height' of /images is damaged, got a stream of more than 16 bytes"),
    "2^50 rows of a column": (
        INDEX,
        remade("images/bytes", shape=(2**50,), dtype="<i8"),
        "column 'bytes' of /images is damaged, got shape (1125899906842624,) in a file of",
    ),
    "2^50 rows of a column in chunks": (
        INDEX,
        remade("images/bytes", shape=(2**50,), dtype="<i8", chunks=(2**20,)),
        "column 'bytes' of /images is damaged, got 0 chunks of 1048576 rows for 1125899906842624",
    ),
    "a column of fewer rows": (INDEX, remade("images/label", data=["x"]), "column 'label' of /images is damaged, got "),
    "a column of texts of 2 GB": (
        INDEX,
        remade("images/label", shape=(10,), dtype="S2000000000", chunks=(1,)),
        "column 'label' of /images is damaged, got another type than is stored there",
    ),
    "a column of references": (
        INDEX,
        remade("images/label", shape=(10,), dtype=h5py.ref_dtype),
        "column 'label' of /images is damaged, got another type than is stored there",
    ),
    "a table for a column": (INDEX, remade("images/width", shape=(10, 10), dtype="<i4"), "column 'width' of /images is damaged"),
    "a layer of whole numbers": (SHARD, remade(LAYER, shape=(4, 80, 80, 3), dtype="<i8", chunks=(1, 80, 80, 3)), "is damaged"),
    "an index of rows of no height": (INDEX, remade(LAYER, shape=(10, 0, 80, 3), dtype="<f4"), "of shape (10, 0, 80, 3)"),
    "an index of rows of no channels": (INDEX, remade(LAYER, shape=(10, 80, 80, 0), dtype="<f4"), "of shape (10, 80, 80, 0)"),
    "rows of no width": (SHARD, remade(LAYER, shape=(4, 80, 0, 3), dtype="<f4"), "of shape (4, 80, 0, 3)"),
    "an index of rows of terabytes": (
        INDEX,
        remade(LAYER, shape=(10, 2**20, 2**20, 3), dtype="<f4", chunks=(1, 64, 2**20, 3)),
        "layer relu4_1 is damaged, got (80, 80, 3), float32 where the run has (1048576, 1048576, 3)",
    ),
}


STATISTICS = "statistics/relu4_1"


def _counted_anew(name: str, **options: Any) -> Edit:
    """Puts another array among the statistics, with a right checksum where that can be known."""

    def edit(file: h5py.File) -> None:
        remade(f"{STATISTICS}/{name}", **options)(file)
        if "data" in options:
            checksums = json.loads(file.attrs["statistics_checksums"])
            checksums[f"relu4_1/{name}"] = zlib.crc32(np.asarray(options["data"]).tobytes())
            write_attributes(file, {"statistics_checksums": json.dumps(checksums)})

    return edit


def _histogram_of(name: str) -> Edit:
    def edit(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((256,), "<i8")
        layout[:] = h5py.VirtualSource(name, f"{STATISTICS}/histogram", (256,), "<i8")
        del file[f"{STATISTICS}/histogram"]
        file[STATISTICS].create_virtual_dataset("histogram", layout)

    return edit


def _histogram_bomb(file: h5py.File) -> None:
    remade(f"{STATISTICS}/histogram", shape=(256,), dtype="<i8", chunks=(256,), compression="gzip")(file)
    file[f"{STATISTICS}/histogram"].id.write_direct_chunk((0,), zlib.compress(bytes(200 << 20), 1))


def _link(name: str, target: str, node: str = "/x") -> Edit:
    """Links to a file beside the run folder, from there: HDF5 takes a link from the folder of its file."""

    def edit(file: h5py.File) -> None:
        above = "../.." if Path(file.filename).parent.name == "shards" else ".."
        put(name, h5py.ExternalLink(f"{above}/{target}", node))(file)

    return edit


def _behind_a_link(file: h5py.File) -> None:
    """Names a layer whose statistics lie behind a link on the way."""
    file["statistics/x"] = 0
    _link("statistics/x", "pipe")(file)
    checksums = json.loads(file.attrs["statistics_checksums"])
    write_attributes(file, {"statistics_checksums": json.dumps({**checksums, "x/y/rows": 0})})


# Name -> (edit, words that the error has). Each is found when statistics are read; pipe and outside.h5 lie beside the run folder.
SUMMARIES: dict[str, tuple[Edit, str]] = {
    "another file": (_link(STATISTICS, "outside.h5", STATISTICS), "outside.h5:statistics/relu4_1', which"),
    "a pipe": (_link(STATISTICS, "pipe"), "pipe:/x', which is not followed"),
    "a pipe for one number": (_link(f"{STATISTICS}/rows", "pipe"), "pipe:/x', which is not"),
    "a pipe on the way": (_behind_a_link, "/statistics/x/y is damaged, got "),
    "another layer's": (put(STATISTICS, h5py.SoftLink("/statistics/conv1_1")), "a link to '/statistics/conv1_1', which is not"),
    "all in another file": (_link("statistics", "outside.h5", "/statistics"), "the tree is damaged, got a link"),
    "no group": (put("statistics", np.zeros(3)), "the tree is damaged, got no group /statistics"),
    "an array for a layer": (put(STATISTICS, np.zeros(3)), "/statistics/relu4_1 is damaged, got "),
    "gigabytes that are not stored": (
        _counted_anew("histogram", shape=(2**28,), dtype="<i8", chunks=(2**20,)),
        "got histogram of shape (268435456,) and type int64 in place of (256,) and int64",
    ),
    "channels that no layer has": (
        _counted_anew("channel_maximum", shape=(2**30,), dtype="<f4", chunks=(2**20,)),
        "got channel_maximum of shape (1073741824,) and type float32 in place of (3,) and float32",
    ),
    "a histogram that was never stored": (
        _counted_anew("histogram", shape=(256,), dtype="<i8"),
        "got 256 rows of which none is stored",
    ),
    "a number that was never stored": (_counted_anew("zeros", shape=(), dtype="<i8"), "got 1 rows of which none is stored"),
    "a histogram that inflates to 200 MB": (_histogram_bomb, "got a stream of more than 2048 bytes"),
    "a histogram in another file": (
        _counted_anew("histogram", shape=(256,), dtype="<i8", external=[("/etc/hostname", 0, 2048)]),
        "got data in another file, which is not read",
    ),
    "a histogram made of another": (_histogram_of("shards/shard-00000-of-00003.h5"), "got a virtual array"),
    "two numbers of rows": (
        _counted_anew("rows", data=np.array([1, 2], "<i8")),
        "got rows of shape (2,) and type int64 in place of () and int64",
    ),
    "one channel fewer": (
        _counted_anew("channel_minimum", data=np.zeros(2, "<f4")),
        "got channel_minimum of shape (2,) and type float32 in place of (3,) and float32",
    ),
    "rows in words": (
        _counted_anew("rows", data=np.bytes_(b"many")),
        "got rows of shape () and type |S4 in place of () and int64",
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
