"""A finished run as one object: layers by name, rows by index, images by key. Shards and index are hidden behind it."""

from __future__ import annotations

import fnmatch
import functools
import operator
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, StoreError, nearest
from ..formatting import Shown
from ..machine import usable_cores
from ..storage import RemotePath, path_of, refresh
from ..training.batches import ROWS_AT_ONCE, Batches, Examples, select_rows
from . import disk, format, tables
from .damage import DamagedError, missing_file, no_run, no_such_run, own_node, reading, require_own_shards, unfinished
from .run_contents import read_run_contents
from .shard_reader import ShardLayer
from .statistics import LayerStatistics, read_statistics
from .tables import Column, ImageTable

# Keys compared for the nearest one in a message; all of a large run would take minutes.
KEYS_COMPARED = 5000


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a finished run.

    Args:
        path: A run folder, its ``features.h5``, or one shard; of a shard, row 0 is the shard's first row.

    Raises:
        StoreError: There is no run, it is not finished, or a shard of it is missing.
    """
    path = place_of(path)
    with reading(path, ""):  # a name too long, a folder that is another user's
        if path.is_dir():
            folder, path = path, path / format.INDEX_NAME
            if not path.exists():
                contents = read_run_contents(folder, images=False)
                raise unfinished(folder, len(contents.shards), len(contents.plan)) if contents.shards else no_run(folder)
        elif not path.exists():
            raise no_such_run(path)
        elif path.is_symlink():
            # What the caller has named is followed; what lies in a run folder is not.
            path = path.resolve()
    try:
        return Run(path)
    except DamagedError as error:
        if path.name == format.INDEX_NAME or format.SHARD_NAME.fullmatch(path.name):
            raise
        # A file of a user's is not to be called damaged, with the advice to remove it.
        raise no_run(path, "another file") from error


def choose_layers(stored: Collection[str], words: Sequence[str]) -> list[str]:
    """Return the stored layers that names, patterns, blocks or ``all`` mean, in network order."""
    chosen: set[str] = set()
    for word in words:
        if block := re.fullmatch(r"block([1-5])", word):
            found = [name for name in stored if re.match(rf"(conv|relu|pool){block[1]}(_|\.|$)", name)]
        else:
            # A reduced layer may be named as it was when it was asked for: relu5_1:avg.
            found = fnmatch.filter(stored, "*" if word == "all" else word.replace(":", "."))
        if not found:
            known = nearest(word, [*stored, "all"])
            raise OptionError(f"layers: not stored in this run, got {word!r}. Expected one of: {known}. Leave it out for all.")
        chosen.update(found)
    return [name for name in stored if name in chosen]


def place_of(path: str | os.PathLike[str]) -> Path:
    """Return the path of a run, or what stands for it at an address; an OptionError where nothing installed reads that."""
    found = path if isinstance(path, RemotePath) else path_of("run", os.fspath(path))
    refresh(found)
    return found


def beside(path: Path) -> tuple[Path, str]:
    """Return where results of an opened file go, and how their names begin: beside the run, with its name and a shard's.

    Of a run at an address it is the present folder. A folder below that is relative, as a person would type it.
    """
    is_shard = path.parent.name == format.SHARD_FOLDER
    run = path.parent.parent if is_shard else path.parent if path.name == format.INDEX_NAME else path.parent / path.stem
    folder = Path() if isinstance(path, RemotePath) else run.parent
    if folder.is_relative_to(here := Path.cwd()):
        folder = folder.relative_to(here)
    return folder, f"{run.name}-{path.stem}" if is_shard else run.name


# Threads that read, at least. A disk reads several chunks at the same time; on what is in memory 16 threads on 2 cores are 7 %
# slower than 4. An object store answers each request after some 10 to 50 ms.
LEAST_THREADS, LEAST_THREADS_REMOTE = 4, 16


@functools.cache
def _threads(process: int, least: int) -> ThreadPoolExecutor:
    """Return the threads that read rows in a process; a forked one has none of its parent's."""
    return ThreadPoolExecutor(max(least, usable_cores()), "rows")


class Layer:
    """One layer's activations of all images, indexed as a NumPy array along the first axis; read when asked for.

    ``layer[17]`` is one image, (h, w, c), of a reduced layer a vector, (d,); ``layer[3:9]``, ``layer[mask]``, ``layer[[4, 2]]``
    are (n, h, w, c) or (n, d), at native size a list of (h, w, c). A failed image is NaN, at native size (1, 1, c). Further
    indices apply to what was read. In all methods a StoreError says which shard is missing, or which row is damaged.

    Attributes:
        name: Of what is stored.
        layer: Of the network, that it is of: ``name`` but for reductions.
        dtype: Of the stored values.
        channels: Channels of the layer.
        stride_px: Input pixels between neighbouring positions.
        row_shape: (h, w, c) of an image, (d,) of a vector; None at native size, where images differ.
        chunk_rows: Rows that are stored together: reading one costs as much as reading all.
    """

    def __init__(self, run: Run, name: str, node: h5py.Dataset | h5py.Group) -> None:
        self._run = run
        # Where the chunks of every shard lie that was ever read, some 20 bytes a row: asking HDF5 costs more than reading a row,
        # and a shuffled pass reads another shard for almost every row.
        self._shards: dict[int, ShardLayer] = {}
        self.name, self.layer = name, str(node.attrs.get("layer", name))
        self.dtype = np.dtype(format.STORED_DTYPES[str(node.attrs["dtype"])])
        self.channels = int(node.attrs["channels"])
        self.stride_px = int(node.attrs["stride_px"])
        self.row_shape: tuple[int, ...] | None = None if isinstance(node, h5py.Group) else node.shape[1:]
        self.chunk_rows = format.chunk_shape(self.row_shape, self.dtype.itemsize)[0] if self.row_shape else 1

    @property
    def shape(self) -> tuple[int | None, ...]:
        """(N, h, w, c), or (N, d) of vectors; h and w are None at native size."""
        return len(self), *(self.row_shape or (None, None, self.channels))

    def __len__(self) -> int:
        return len(self._run)

    def __getitem__(self, wanted: Any) -> Any:
        # As all of a dataset of h5py is read.
        is_all = wanted is ... or (isinstance(wanted, tuple) and not wanted)
        wanted, *rest = (slice(None),) if is_all else wanted if isinstance(wanted, tuple) else (wanted,)
        rows = select_rows(wanted, len(self), f"layer {self.name}")
        if isinstance(rows, int):
            return self.read(np.array([rows]))[0][tuple(rest)]
        many = self.read(rows)
        return many[(slice(None), *rest)] if isinstance(many, np.ndarray) else [values[tuple(rest)] for values in many]

    def __iter__(self) -> Iterator[NDArray[np.floating]]:
        # Some at a time, so that threads share the work and a chunk of several rows is decoded once.
        step = max(self.chunk_rows, ROWS_AT_ONCE)
        for first in range(0, len(self), step):
            yield from self[first : first + step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self._run.to_numpy(self.name, failed=True), dtype)

    def shape_of(self, row: int) -> tuple[int, ...]:
        """Return (h, w, c), or (d,), of one image that is ok, at native size too; reads none of its values."""
        shard, local = self._locate(row)
        return shard.shape(local)

    def bands(self, row: int, every: int = 1) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Yield one image that is ok by chunks, from top to bottom: each chunk's first map row, and (h', w, c), read-only.

        A chunk is about 1 MiB at native size, otherwise all of an image up to 1 GiB. Damage may be told after the last one.
        ``every``: map rows from the beginning of one chunk to that of the next, at least: those between are left out, but for the
        last, and the row's checksum cannot be compared.
        """
        shard, local = self._locate(row)
        return shard.bands(local, every)

    def _locate(self, row: int) -> tuple[ShardLayer, int]:
        number, local = self._run._locate(np.asarray(row))
        return self._shard(int(number)), int(local)

    def _shard(self, number: int) -> ShardLayer:
        """Return the layer in a shard, which HDF5 is asked for once."""
        found = self._shards.get(number)
        if not found:
            spec, path = self._run.shards[number], self._run._paths[number]
            refresh(path)
            found = self._shards[number] = ShardLayer(path, self._run._parts[spec.part].digest, spec, self.name)
        return found

    def chunk_starts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first row of the chunk that each row lies in, (n,): reading one of its rows costs as much as all."""
        return rows - self._run._locate(rows)[1] % self.chunk_rows

    def read(self, rows: NDArray[np.int64], alone: bool = False) -> Any:
        """Read rows (n,), each in [0, N), in any order, repeated or not, each chunk once, several at once.

        ``alone``: whether the calling thread decodes them all, for a process that has such as it beside it.

        Returns:
            (n, h, w, c); at native size a list of (h, w, c).
        """
        is_native = self.row_shape is None
        found: Any = [None] * len(rows) if is_native else np.empty((len(rows), *(self.row_shape or ())), self.dtype)
        order = np.argsort(rows, kind="stable")
        numbers, local = self._run._locate(rows[order])
        for number in np.unique(numbers).tolist():
            self._shard(number)
        starts = np.flatnonzero(np.diff(self.chunk_starts(rows[order]), prepend=-1)).tolist()

        def read_chunk(start: int, stop: int) -> None:
            number, places, wanted = int(numbers[start]), order[start:stop].tolist(), local[start:stop].tolist()
            try:
                of_rows = self._shard(number).read(wanted, found[places[0]])
            except StoreError:
                # The shard may have been made anew since it was opened: what is there now says whether anything is wrong.
                self._shards.pop(number, None)
                of_rows = self._shard(number).read(wanted)
            for place, values in zip(places, of_rows, strict=True):
                if is_native:
                    found[place] = np.full((1, 1, self.channels), np.nan, self.dtype) if values is None else values.copy()
                elif values is None or not np.may_share_memory(values, found[place]):  # it was not read there
                    found[place] = np.nan if values is None else values

        least = LEAST_THREADS_REMOTE if isinstance(self._run.path, RemotePath) else LEAST_THREADS
        each = map if alone or len(starts) < 2 else _threads(os.getpid(), least).map
        for _ in each(read_chunk, starts, [*starts[1:], len(rows)]):
            pass
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.getitem, (self._run, self.name)

    def __repr__(self) -> str:
        return f"<layer {self.name}: {self.shape} {self.dtype}>"


class Run(Shown, AbstractContextManager["Run"]):
    """The activations and the table of images of a finished run, made by :func:`open_run`. May be pickled, and used after a fork.

    Attributes:
        path: The file that was opened: the index, or a shard.
        layers: Names of the layers, in network order.
        shards: Which rows of the run lie in which shard; of a shard that was opened, it alone.
        images: The table: column -> (N,) array; text columns are object arrays of str.
        attributes: Attributes of the root: digests, config, network, versions.
    """

    def __init__(self, path: Path) -> None:
        # Absolute: the run must still be found after a change of the working directory.
        self.path = path.absolute()
        with tables.open_file(path) as file:
            self._parts, plan = tables.read_plan(file, path)
            with reading(path, "the tree"):
                self.attributes: dict[str, Any] = dict(file.attrs)
                rows, columns = len(own_node(file["images"], "key")), tuple(file["images"])
                if self.attributes["file_kind"] == format.SHARD:
                    plan = tuple(shard for shard in plan if shard.first == int(self.attributes["first_row"]))
                    self._paths = [self.path]
                else:
                    require_own_shards(self.path.parent)
                    folder = self.path.parent / format.SHARD_FOLDER
                    there, self._paths = {*disk.names_in(folder)}, [folder / shard.file_name for shard in plan]
                    # HDF5 would read a missing shard as NaN, as if all its images had failed.
                    if missing := [path for path in self._paths if path.name not in there]:
                        raise missing_file(missing[0], f"{len(plan) - len(missing)} of {len(plan)} shards")
                self.shards = plan
                if rows != sum(shard.rows for shard in plan):
                    raise ValueError(f"a table /images of {rows} rows")
                # Each part ends with a shard of its own length: rows cannot be found by division.
                self._firsts = np.array([shard.first - plan[0].first for shard in plan], np.int64)
                self.layers = tuple(tables.layer_names(file))
                self._layers = {name: Layer(self, name, file["features"][name]) for name in self.layers}
        self.images: Mapping[str, Column] = ImageTable(self.path, columns, rows)

    def _locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the number of the shard that has each row, and the row's place in it."""
        numbers = np.searchsorted(self._firsts, rows, side="right") - 1
        return numbers, rows - self._firsts[numbers]

    @cached_property
    def statistics(self) -> dict[str, LayerStatistics]:
        """Layer -> range, mean, zeros, dead channels and a sampled histogram, gathered while values were written."""
        with tables.open_file(self.path) as file:
            return read_statistics(file, self.path, self.layers)

    def __len__(self) -> int:
        return self.shards[-1].stop - self.shards[0].first

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __getitem__(self, layer: str) -> Layer:
        if layer not in self._layers:
            known = nearest(str(layer), self.layers)
            raise StoreError(f"{self.path}: no such layer, got {layer!r}. Expected one of: {known}. See run.layers.")
        return self._layers[layer]

    def row(self, key: str) -> int:
        """Return the row of an image by its key, the path relative to the data folder with ``/``.

        Raises:
            StoreError: There is no such key; the nearest ones are given.
        """
        found = self._rows_by_key.get(format.plain_text(key))
        if found is None:
            known = nearest(key, [*self._rows_by_key][:KEYS_COMPARED])[:300]
            raise StoreError(f"{self.path}: no such image, got {key!r}. Expected a key such as: {known}. See run.images['key'].")
        return found

    @cached_property
    def _rows_by_key(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.images["key"])}

    def batches(
        self,
        layers: str | Sequence[str],
        batch_size: int,
        *,
        label: Any = None,
        where: Any = None,
        failed: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Return batches of NumPy arrays, (features, labels), decoded by all cores while the last one is in use.

        Each time they are iterated is the next epoch, in another order if shuffled.

        Args:
            layers: A name: features are (n, h, w, c), at native size a list of (h, w, c); or names: layer -> such.
            batch_size: Rows a batch; the last may have fewer.
            label: Column of :attr:`images`, or one value a row of the run. Numbers stay as they are; texts become numbers of
                the ``classes``, int64, see :class:`~pipeline.training.batches.Examples`. None: labels are None.
            where: Which rows: a mask over all rows of the run, rows, or a slice. None: all.
            failed: Whether to keep failed images, whose features are NaN.
            shuffle: Whether rows come in a random order: a uniform permutation where a row is 64 KiB or more; else see
                :mod:`pipeline.training.batches`.
            seed: Of the order. The same seed gives the same epochs, on every machine.
            drop_last: Leave out a last batch that is not full.
            share: (rank, ranks): the part of one of several processes. Shuffled, all get the same number, and up to
                ``ranks - 1`` rows are left out of an epoch, others each time; in order, nothing is left out.

        Raises:
            StoreError: There is no such layer, column or row, or no row is left.
            OptionError: An option is out of range.
        """
        examples = Examples(self, layers, label=label, where=where, failed=failed)
        return Batches(examples, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, share=share)

    def torch_dataset(
        self, layers: str | Sequence[str], *, shuffle: bool = False, batch_size: int | None = None, **options: Any
    ) -> Any:
        """Return a dataset for PyTorch. The other ``options`` are those of :meth:`batches`: ``label``, ``where``, ``seed`` ...

        Without ``shuffle`` and ``batch_size`` a map-style dataset, which leaves order and batches to a DataLoader. With either
        of them an iterable one, which reads ahead with all cores and needs no worker processes: for whole batches
        ``DataLoader(dataset, batch_size=None)``. Items are features, or (features, label) where ``label`` is given.

        ``batch_size`` is rows an item, None: items are single rows. ``share`` is (rank, ranks) of iterable ones, by default those
        of ``torch.distributed``, where it has been started.
        """
        from ..training import torch_data

        if batch_size is None and not shuffle:
            return torch_data.RowDataset(self.batches(layers, 1, **options).examples)
        options = {"share": torch_data.rank_and_ranks(), **options}
        if batch_size is None:
            options["drop_last"] = False
        rows = ROWS_AT_ONCE if batch_size is None else batch_size
        batches = self.batches(layers, rows, shuffle=shuffle, **options)
        return torch_data.StreamDataset(batches, is_batched=batch_size is not None)

    def tf_dataset(
        self, layers: str | Sequence[str], *, batch_size: int | None = None, drop_remainder: bool = False, **options: Any
    ) -> Any:
        """Return a ``tf.data.Dataset``. The other ``options`` are those of :meth:`batches`: ``label``, ``where``, ``shuffle`` ...

        Elements are features, or (features, label) where ``label`` is given; each pass, ``repeat`` included, is the next epoch.
        Its ``class_names`` are the texts that labels are numbers of. At native size height and width of an element are
        unknown, and batches are ragged tensors.

        ``batch_size`` is rows an element, None: elements are single rows. ``drop_remainder`` leaves out a last batch that is not
        full, and makes ``batch_size`` a part of the shapes.
        """
        from ..training.tf_data import as_dataset

        is_native = any(self[name].row_shape is None for name in ([layers] if isinstance(layers, str) else layers))
        rows, drop_last = (ROWS_AT_ONCE, False) if batch_size is None or is_native else (batch_size, drop_remainder)
        return as_dataset(self.batches(layers, rows, drop_last=drop_last, **options), batch_size, drop_remainder)

    def to_numpy(self, layers: str | Sequence[str], **options: Any) -> Any:
        """Return rows as one array, (n, h, w, c), or layer -> such; with a ``label`` (features, labels).

        The ``options`` are ``label``, ``where`` and ``failed`` of :meth:`batches`. A StoreError where memory does not suffice.
        """
        return Examples(self, layers, **options).read_all()

    def close(self) -> None:
        """Forget where chunks lie in the shards; reading asks again."""
        for layer in self._layers.values():
            layer._shards.clear()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Run], tuple[Path]]:
        return Run, (self.path,)

    def _table(self) -> tuple[str, Sequence[str], Iterable[Sequence[str]]]:
        caption = f"run {str(self.path)!r}: {len(self)} images, {self.attributes['network']}, made {self.attributes['created']}"
        rows = []
        for name, layer in self._layers.items():
            shape = " x ".join("native" if side is None else str(side) for side in layer.shape)
            rows.append([name, shape, str(layer.dtype), str(layer.channels), f"{layer.stride_px} px"])
        return caption, ("layer", "shape", "dtype", "channels", "stride"), rows
