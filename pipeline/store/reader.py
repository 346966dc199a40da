"""A finished run as one object: layers by name, rows by index, images by key. Shards and index are hidden behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py

from ..errors import StoreError, nearest
from ..records import ShardSpec
from ..storage.address import is_address
from ..storage.remote_path import RemotePath, to_path
from . import format, shown, tables
from .damage import missing_shard, no_run, unfinished, unreadable
from .feeding import Feeding
from .file_checks import own_node, require_own_shards
from .layer import Layer
from .shards import Shards
from .statistics import LayerStatistics, Statistics
from .table import Table
from .tables import Column

# Keys compared for the nearest one in a message; all of a large run would take minutes.
KEYS_COMPARED = 5000


def open_run(path: str | os.PathLike[str]) -> Run:
    """Opens a finished run.

    Args:
        path: A run folder, its ``features.h5``, or one shard; of a shard, row 0 is the shard's first row.

    Raises:
        StoreError: There is no run, it is not finished, or a shard of it is missing.
    """
    path = place_of(path)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL byte
        raise unreadable(path, error) from error
    if is_folder:
        require_own_shards(path)
        path = _index_of(path)
    elif not exists:
        raise no_such_run(path)
    elif path.is_symlink():
        # What the caller has named is followed; what lies in a run folder is not.
        path = path.resolve()
    own_name = path.name == format.INDEX_NAME or format.SHARD_NAME.fullmatch(path.name)
    if path.is_file() and not own_name and (isinstance(path, RemotePath) or not h5py.is_hdf5(path)):
        raise StoreError(f"{path}: not a run, got a file that is no HDF5. Expected a run folder, its features.h5 or a shard.")
    return Run(path)


def place_of(path: str | os.PathLike[str]) -> Path:
    """Gives the path of a run, or what stands for it at an address.

    Raises:
        OptionError: Nothing installed reads such an address.
    """
    if isinstance(path, RemotePath):
        return path
    text = os.fspath(path)
    return (to_path("run", text) if is_address(text) else None) or Path(text)


def no_such_run(path: Path) -> StoreError:
    """Gives the one line for a path that does not exist, with the names of the runs beside it."""
    folders = [folder.name for folder in _siblings(path) if (folder / format.INDEX_NAME).exists()]
    known = f" one of: {nearest(path.name, folders)}" if folders else " a run folder, its features.h5 or a shard"
    return StoreError(f"{path}: there is no such run, got a path that does not exist. Expected{known}. Check the path.")


def _siblings(path: Path) -> list[Path]:
    if isinstance(path, RemotePath) and not path.within:
        # The folder above would be listed with all that is in its folders.
        return []
    return sorted(path.parent.iterdir()) if path.parent.is_dir() else []


def _index_of(folder: Path) -> Path:
    index = folder / format.INDEX_NAME
    if index.exists():
        return index
    shards = [path.name for path in _siblings(folder / format.SHARD_FOLDER / "_") if format.SHARD_NAME.fullmatch(path.name)]
    if shards:
        raise unfinished(folder, len(shards), format.planned_shards(shards), format.INDEX_NAME)
    raise no_run(folder, format.INDEX_NAME)


class Run(Feeding):
    """The activations and the table of images of a finished run. Made by :func:`open_run`.

    It may be pickled, and used after a fork: each process opens the shards for itself.

    Attributes:
        path: The file that was opened: the index, or a shard.
        layers: Names of the layers, in network order.
        images: The table: column -> (N,) array; text columns are object arrays of str.
        attributes: Attributes of the root: digests, config, network, versions.
        statistics: Layer -> range, mean, zeros, dead channels and a sampled histogram, gathered while values were written.
    """

    def __init__(self, path: Path) -> None:
        # Absolute: the run must still be found after a change of the working directory.
        self.path = path.absolute()
        with tables.open_file(path) as file:
            digests, plan = tables.read_plan(file, path)
            try:
                self.attributes: dict[str, Any] = dict(file.attrs)
                rows, columns = len(own_node(file["images"], "key")), tables.column_order(file["images"])
                self._shards = Shards(self._locate(plan), digests)
                self.layers = tuple(tables.layer_names(file))
                self._layers = {name: Layer(self._shards, name, file["features"][name]) for name in self.layers}
            except tables.HDF5_READ_ERRORS as error:
                raise tables.damaged(path, "the tree", error) from error
            if rows != len(self._shards):
                raise tables.damaged(path, "the table /images", f"{rows} rows")
        self.images: Mapping[str, Column] = Table(self.path, columns, rows)
        self.statistics: Mapping[str, LayerStatistics] = Statistics(self.path, self.layers)
        self._rows_by_key: dict[str, int] | None = None

    def _locate(self, plan: tuple[ShardSpec, ...]) -> dict[ShardSpec, Path]:
        if self.attributes["file_kind"] == format.SHARD:
            found = {shard: self.path for shard in plan if shard.first == int(self.attributes["first_row"])}
            if not found:
                raise ValueError(f"a first row {self.attributes['first_row']} at which no shard begins")
            return found
        require_own_shards(self.path.parent)
        folder = self.path.parent / format.SHARD_FOLDER
        present = {path.name for path in _siblings(folder / "_")}
        missing = [shard.file_name for shard in plan if shard.file_name not in present]
        if missing:
            # HDF5 would read a missing shard as NaN, as if all its images had failed.
            raise missing_shard(folder / missing[0], len(plan) - len(missing), len(plan))
        return {shard: folder / shard.file_name for shard in plan}

    @property
    def shards(self) -> tuple[ShardSpec, ...]:
        """Which rows of the run lie in which shard."""
        return self._shards.specs

    def __len__(self) -> int:
        return len(self._shards)

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __getitem__(self, layer: str) -> Layer:
        if layer not in self._layers:
            raise StoreError(
                f"{self.path}: no such layer, got {layer!r}. Expected one of: {nearest(str(layer), self.layers)}. "
                f"The run's layers are in run.layers."
            )
        return self._layers[layer]

    def row(self, key: str) -> int:
        """Gives the row of an image.

        Args:
            key: Its path relative to the data folder, with ``/``.

        Raises:
            StoreError: There is no such key; the nearest ones are given.
        """
        if self._rows_by_key is None:
            self._rows_by_key = {name: row for row, name in enumerate(self.images["key"])}
        found = self._rows_by_key.get(format.plain_text(key))
        if found is None:
            name = key.rpartition("/")[2]
            same_name = [other for other in self._rows_by_key if other.rpartition("/")[2] == name]
            known = nearest(key, same_name or [*self._rows_by_key][:KEYS_COMPARED])
            raise StoreError(
                f"{self.path}: no such image, got {key!r}. Expected a key such as: {known[:300]}. "
                f"All keys are in run.images['key']."
            )
        return found

    def close(self) -> None:
        """Closes the shards; reading opens them again."""
        self._shards.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Run], tuple[Path]]:
        return Run, (self.path,)

    def __repr__(self) -> str:
        rows = shown.text_table(shown.LAYER_HEADINGS, map(shown.layer_row, self._layers.values()))
        return f"<{self._caption()}>\n{rows}"

    def _repr_html_(self) -> str:
        return shown.html_table(self._caption(), shown.LAYER_HEADINGS, map(shown.layer_row, self._layers.values()))

    def _caption(self) -> str:
        return f"run {str(self.path)!r}: {len(self)} images, {self.attributes['network']}, made {self.attributes['created']}"
