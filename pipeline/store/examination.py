"""One file of a run, shard or index, held to everything that it says of itself: attributes, tables, tree, every row.

What only several files together can tell, and what becomes of the findings, is for :mod:`pipeline.store.verification`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import StoreError
from ..records import FAILED, OK, Part, ShardSpec
from . import format, statistics, tables
from .damage import HDF5_READ_ERRORS, ForeignError, damaged
from .index_file import wrong_sources
from .rows import ShardRows
from .succession import extends
from .tables import Column

# What a damaged file raises besides: an absurd length.
FILE_ERRORS = (*HDF5_READ_ERRORS, MemoryError)
# Attributes of the root that all files of a run have alike. Options of the machine may differ after a resume.
RUN_ATTRIBUTES = ("images_per_shard", "network", "weights_sha256", "preprocess", "mean_pixel")
# What of the identity each part has for itself; the rest is alike too.
PART_OPTIONS = {"images", "extends"}
TREE = {"features", "images", "checksums", "statistics"}

# Of values held at a time, over all files.
WAITING_BYTES = 1 << 30

# Takes a finding; takes a sign of life.
Say = Callable[[StoreError], None]
Alive = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file tells of its run, for comparison with the others.

    Attributes:
        parts: Those of the run, up to the file's own.
        images_per_shard: Of the shard plan.
        attributes: Those of :data:`RUN_ATTRIBUTES` that it has, and the options of the identity, as text.
        layers: Name -> shape of a row, dtype, stride and place in the network, as text.
        columns: Column -> CRC-32 of its part for each shard that the file covers, in order.
        checksums: Layer -> likewise.
        failed: Failed rows.
        row_bytes: Bytes of values that were read and held to their checksums.
    """

    parts: tuple[Part, ...]
    images_per_shard: int
    attributes: dict[str, str]
    layers: dict[str, str]
    columns: dict[str, list[int]]
    checksums: dict[str, list[int]]
    failed: int
    row_bytes: int

    def __post_init__(self) -> None:
        # JSON, through which it comes from another process, has lists alone.
        object.__setattr__(self, "parts", tuple(Part(*part) for part in self.parts))

    @property
    def digest(self) -> str:
        """Digest of the run up to the file's own part."""
        return self.parts[-1].digest


def examine(path: Path, threads: int, waiting_bytes: int, say: Say, alive: Alive) -> Facts | None:
    """Examines a file by what its name says it is: a shard, or the index.

    Args:
        path: Of the file.
        threads: That decode rows.
        waiting_bytes: Of values that they hold at a time; one chunk's always may be.
        say: Called with each finding, by the calling thread.
        alive: Called now and then.

    Returns:
        What it tells of the run; None where that cannot be read.
    """
    try:
        with tables.open_file(path) as file:
            is_index = path.name == format.INDEX_NAME
            parts = tables.read_parts(file, path)
            digests, plan = tables.read_plan(file, path)
            _examine_root(file, path, format.INDEX if is_index else format.SHARD, parts, say)
            if not is_index:
                plan = tuple(shard for shard in plan if shard.file_name == path.name and shard.part == len(parts) - 1)
                if not plan:
                    raise ForeignError(
                        f"{path}: not a shard of the plan that it names, got {file.attrs['rows']} rows of the run, "
                        f"{file.attrs['images_per_shard']} a shard. Expected a name as that plan has. Put the right one back, or "
                        f"remove this one and run the extraction again."
                    )
                tables.check_shard(file, path, digests[-1], plan[0])
            alive()
            columns = _examine_columns(file, path, plan, say, alive)
            layers = []
            for layer in _layer_names(file):
                wrong = list(_wrong_layer(file, path, layer, plan[-1].stop - plan[0].first))
                if is_index and not wrong:
                    sources = wrong_sources(file["features"][layer], layer, plan, columns.get("status"))
                    wrong += [damaged(path, f"layer {layer}", got) for got in sources]
                alive()
                for error in wrong:
                    say(error)
                if not wrong:
                    layers.append(layer)
            if "status" in columns:
                rows_ok = int((columns["status"] == OK).sum())
                for error in statistics.wrong_statistics(file, path, _layer_names(file), rows_ok):
                    say(error)
            row_bytes = 0
            if not is_index and "status" in columns:
                rows = ShardRows(path, digests[-1], plan[0])
                row_bytes = _examine_rows(rows, path, layers, (threads, waiting_bytes), say, alive)
            statuses = columns.get("status", np.zeros(0, object))
            return Facts(
                parts,
                int(file.attrs["images_per_shard"]),
                _run_attributes(file),
                {layer: _layer_words(file["features"][layer]) for layer in layers},
                {name: _parts(values, plan, tables.column_checksum) for name, values in columns.items()},
                {layer: _parts(file["checksums"][layer][()], plan, tables.column_checksum) for layer in layers},
                int((statuses == FAILED).sum()),
                row_bytes,
            )
    except StoreError as error:
        say(error)
    except FILE_ERRORS as error:
        say(damaged(path, "the HDF5 file", error))
    return None


def _run_attributes(file: h5py.File) -> dict[str, str]:
    options = {name: value for name, value in json.loads(str(file.attrs["identity"])).items() if name not in PART_OPTIONS}
    found = {name: repr(_plain(file.attrs[name])) for name in RUN_ATTRIBUTES if name in file.attrs}
    return {**found, "identity": json.dumps(options, sort_keys=True)}


def _examine_root(file: h5py.File, path: Path, kind: str, parts: tuple[Part, ...], say: Say) -> None:
    """Holds the tree and the root's attributes to the format."""
    if (names := {name for name in file if not format.DIMENSION_NAME.fullmatch(name)}) != TREE:
        say(damaged(path, "the tree", f"groups {', '.join(sorted(names))}"))
    options: Any = json.loads(str(file.attrs["identity"]))
    before = parts[-2].stop if len(parts) > 1 else 0
    images = f"{parts[-1].stop - before} rows, digest {file.attrs['manifest_digest']}"
    for option, words in (("images", images), ("extends", extends(parts[:-1]))):
        if "images" in options and options.get(option) != words:
            say(
                damaged(path, f"{option!r} in attribute 'identity' of the root", f"{options.get(option)!r} in place of {words!r}")
            )
    expected = {"file_kind": kind, "rows": parts[-1].stop, **({"first_row": 0} if kind == format.INDEX else {})}
    for name, option in (("images_per_shard", "output.images_per_shard"), ("format_version", "format_version")):
        if option in options:
            expected[name] = int(options[option])
    for name, value in expected.items():
        if file.attrs[name] != value:
            say(damaged(path, f"attribute {name!r} of the root", f"{_plain(file.attrs[name])!r} in place of {value!r}"))


def _examine_columns(file: h5py.File, path: Path, plan: tuple[ShardSpec, ...], say: Say, alive: Alive) -> dict[str, Column]:
    """Gives the columns of ``/images`` that are whole, of one length, each row with one status that the others agree with."""
    rows = plan[-1].stop - plan[0].first
    columns: dict[str, Column] = {}
    for name in sorted({*file["images"], *format.TEXT_COLUMNS, *format.NUMBER_COLUMNS}):
        alive()
        try:
            values = tables.read_column(file, path, name)
            if len(values) != rows:
                raise damaged(path, f"column {name!r} of /images", f"{len(values)} rows in place of {rows}")
            columns[name] = values
        except StoreError as error:
            say(error)
        except MemoryError as error:
            say(damaged(path, f"column {name!r} of /images", error))
    if {"status", "error", "height", "width"} <= columns.keys():
        for row, got in _wrong_statuses(columns):
            say(damaged(path, f"the status of row {plan[0].first + row}", got))
    if "key" in columns and len(set(columns["key"])) != rows:
        say(damaged(path, "column 'key' of /images", f"{len(set(columns['key']))} different keys in {rows} rows"))
    return columns


def _wrong_statuses(columns: Mapping[str, Column]) -> Iterator[tuple[int, str]]:
    for row, (status, error) in enumerate(zip(columns["status"], columns["error"], strict=True)):
        has_size = bool(columns["height"][row] > 0 and columns["width"][row] > 0)
        if status not in (OK, FAILED) or (status == OK) == bool(error):
            yield row, f"{status!r} with the error {error!r}"
        elif status == OK and not has_size:
            yield row, f"ok with a size of {columns['height'][row]} x {columns['width'][row]} px"


def _layer_names(file: h5py.File) -> list[str]:
    """Gives the layers that the identity names, and all others that are there."""
    there = {*file["features"], *file["checksums"]}
    named = [name for name in str(json.loads(str(file.attrs["identity"])).get("layers", "")).split(",") if name]
    return [*named, *sorted(there - set(named))]


def _wrong_layer(file: h5py.File, path: Path, name: str, rows: int) -> Iterator[StoreError]:
    try:
        node, checksums = file["features"][name], tables.read_checksums(file, path, name)
        for got in _wrong_node(node, rows):
            yield damaged(path, f"layer {name}", got)
        if checksums.shape != (rows,):
            yield damaged(path, f"/checksums/{name}", f"shape {checksums.shape}")
    except StoreError as error:
        yield error
    except FILE_ERRORS as error:
        yield damaged(path, f"layer {name}", error)


def _wrong_node(node: h5py.Dataset | h5py.Group, rows: int) -> Iterator[str]:
    """Gives what of a layer's shape, type and fill value is not as its attributes say."""
    dtype = np.dtype(format.STORED_DTYPES[str(node.attrs["dtype"])])
    if isinstance(node, h5py.Group):
        return
    if len(node.shape) != 4 or node.shape[0] != rows or 0 in node.shape or node.shape[3] != node.attrs["channels"]:
        yield f"shape {node.shape} for {rows} rows of {node.attrs['channels']} channels"
    if node.dtype != dtype:
        yield f"dtype {node.dtype} in place of {dtype}"
    if not np.isnan(node.fillvalue):
        yield f"fill value {node.fillvalue} in place of nan"


def _examine_rows(rows: ShardRows, path: Path, layers: Iterable[str], limits: tuple[int, int], say: Say, alive: Alive) -> int:
    """Reads every chunk, some at a time, and gives the bytes of values in all of them."""
    threads, waiting_bytes = limits
    waiting: deque[tuple[Future[tuple[list[StoreError], int]], int]] = deque()
    held_bytes = read_bytes = 0

    def take() -> None:
        nonlocal held_bytes, read_bytes
        task, size_bytes = waiting.popleft()
        found, found_bytes = task.result()
        held_bytes -= size_bytes
        read_bytes += found_bytes
        alive()
        for error in found:
            say(error)

    with ThreadPoolExecutor(threads, "rows") as pool:
        for layer in layers:
            try:
                for group in rows.groups(layer):
                    size_bytes = rows.size_bytes(layer, group)
                    while waiting and (len(waiting) > threads or held_bytes + size_bytes > waiting_bytes):
                        take()
                    waiting.append((pool.submit(rows.examine, layer, group), size_bytes))
                    held_bytes += size_bytes
                for name in rows.unexpected(layer):
                    say(damaged(path, f"layer {layer}", f"a dataset {name!r} of no row"))
            except StoreError as error:
                say(error)
        while waiting:
            take()
    return read_bytes


def _layer_words(node: h5py.Dataset | h5py.Group) -> str:
    shape = "native size" if isinstance(node, h5py.Group) else " x ".join(map(str, node.shape[1:]))
    values = [int(node.attrs[name]) for name in ("channels", "stride_px", "network_index")]
    return f"{shape}, {node.attrs['dtype']}, {values[0]} channels, {values[1]} px, position {values[2]}"


def _parts(values: Column, plan: tuple[ShardSpec, ...], checksum: Callable[[Any], int]) -> list[int]:
    first = plan[0].first
    return [checksum(values[shard.first - first : shard.stop - first]) for shard in plan]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
