"""What a run folder holds, finished or not, without reading a feature: counts, errors, and the sizes that HDF5 keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import ShardSpec, plan_shards
from . import damage, format, tables
from .file_checks import require_file
from .manifest_file import parse_identity
from .reader import no_such_run, open_run
from .run_contents import RunContents, read_run_contents

# Datasets whose size is asked for, one a layer and shard, at native size one a layer and image. Of more than these a sample of
# shards is taken, spread over the run: opening them all would take minutes.
DATASETS_ASKED = 10_000

FINISHED = "finished"
UNFINISHED = "not finished"
EXTENDING = "an extension is not finished"
LACKING = "shards are missing"
ONE_SHARD = "one shard of a run"


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """A layer of a run, and its bytes.

    Attributes:
        name: Of the layer.
        shape: (h, w, c) of a row; None at native size, or where no file tells.
        dtype: Of the stored values.
        channels: 0 where no file tells.
        stride_px: Likewise.
        raw_bytes: Activations of the good images in the finished shards, before compression.
        stored_bytes: The same, as they lie on the disk.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    channels: int
    stride_px: int
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run holds.

    Attributes:
        path: The run folder, or the shard.
        state: :data:`FINISHED` or one of its neighbours.
        first_row: Of the shard; 0 of a run.
        rows: Of the run as planned, or of the shard.
        rows_finished: Those in finished shards.
        errors: Why rows of them failed, (number of failed rows) texts.
        shards_finished: Files that are there under their names.
        shards_planned: Of the run; 1 of a shard.
        images_per_shard: Rows a shard.
        parts: Rows of each part.
        layers: In network order.
        is_sampled: Whether the sizes are worked out from a part of the shards.
        attributes: Of the root; none of a run without a finished shard.
        identity: All that can change a number, option -> value.
        unreadable: Names of files that are damaged.
    """

    path: Path
    state: str
    first_row: int
    rows: int
    rows_finished: int
    errors: tuple[str, ...]
    shards_finished: int
    shards_planned: int
    images_per_shard: int
    parts: tuple[int, ...]
    layers: tuple[LayerSummary, ...]
    is_sampled: bool
    attributes: Mapping[str, Any]
    identity: Mapping[str, str]
    unreadable: tuple[str, ...]


def summarise_run(path: Path) -> RunSummary:
    """Say what a run folder, the run of a ``features.h5``, or one shard holds.

    Raises:
        StoreError: There is no run; the shard that was asked for is damaged; the system does not let us read.
    """
    try:
        is_folder, exists = path.is_dir(), path.exists()
        if not exists:
            raise no_such_run(path)
        if not is_folder and path.is_symlink():
            # What the caller has named is followed; what lies in a run folder is not.
            path = path.resolve()
        if is_folder or path.name == format.INDEX_NAME:
            return _Folder(path if is_folder else path.parent).summary()
    except OSError as error:  # a name too long, a folder that is another user's
        raise damage.unreadable(Path(error.filename or path), error) from error
    with damage.reading(path, "the tree"):
        return _summarise_shard(path)


def _summarise_shard(path: Path) -> RunSummary:
    with open_run(path) as run:  # for its refusals
        (spec,), attributes = run.shards, run.attributes
        errors = run.images["error"]
    sizes = _Sizes(run.layers)
    sizes.ask(path, errors == "")
    with tables.open_file(path) as file:
        layers = _layers_of(file, path, sizes, int((errors == "").sum()))
    return RunSummary(
        path=path,
        state=ONE_SHARD,
        first_row=spec.first,
        rows=spec.rows,
        rows_finished=spec.rows,
        errors=tuple(error for error in errors if error),
        shards_finished=1,
        shards_planned=1,
        images_per_shard=int(attributes["images_per_shard"]),
        parts=(spec.rows,),
        layers=layers,
        is_sampled=False,
        attributes=attributes,
        identity=parse_identity(str(attributes["identity"])),
        unreadable=(),
    )


class _Folder:
    """A run folder while it is looked into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contents: RunContents = read_run_contents(folder, images=False)
        self.there = self.contents.shards | self.contents.special
        for error in self.contents.unreadable.values():
            raise error
        self.unreadable = [name for name, manifest in self.contents.manifests.items() if manifest is None]
        self.refused: StoreError | None = None
        self.index = self._open(folder / format.INDEX_NAME) if self.contents.has_index else None

    def _open(self, path: Path) -> h5py.File | None:
        try:
            return tables.open_file(path)
        except StoreError as error:
            if isinstance(error, damage.UnreadableError):
                raise
            if not isinstance(error, damage.DamagedError):
                # It may be the whole run that is of another program or version; of shards there may be others.
                if path.parent == self.folder:
                    raise
                self.refused = error
            self.unreadable.append(path.relative_to(self.folder).as_posix())
            return None

    def summary(self) -> RunSummary:
        contents = self.contents
        if not (self.there or contents.manifests or contents.has_index):
            raise damage.no_run(self.folder)
        # What tells of the run besides its manifests: the file that knows most of its parts.
        file, where = self.index, self.folder / format.INDEX_NAME
        for name in sorted(self.there, reverse=True):
            if file is not None:
                break
            where = self.folder / format.shard_path(name)
            file = self._open(where)
        try:
            if file is None and not contents.planned:
                raise self.refused or self._nothing_to_go_by()
            with damage.reading(where, "the tree"):
                return self._describe(file, where)
        finally:
            for opened in filter(None, (self.index, file)):
                opened.close()

    def _nothing_to_go_by(self) -> StoreError:
        if not self.unreadable:
            return damage.missing_manifest(self.folder / format.manifest_name(0))
        path = self.folder / self.unreadable[-1]
        is_manifest = format.MANIFEST_NAME.fullmatch(path.name)
        return damage.damaged_manifest(path) if is_manifest else damage.damaged(path, "the HDF5 file", "no other to go by")

    def _describe(self, file: h5py.File | None, where: Path) -> RunSummary:
        contents = self.contents
        attributes = dict(file.attrs) if file else {}
        stops = [part.stop for part in (tables.read_parts(file, where) if file else ())]
        stops = max(stops, [part.stop for part in contents.parts], key=len)
        identity = parse_identity(str(attributes["identity"])) if file else contents.planned[-1].identity
        step = int(attributes.get("images_per_shard") or identity["output.images_per_shard"])
        plan = plan_shards(stops, step)
        finished = [shard for shard in plan if shard.file_name in self.there]
        indexed = int(self.index.attrs["rows"]) if self.index else 0
        errors = self._errors(finished, indexed)
        names = identity["layers"].split(",")
        sizes, is_sampled = self._sizes(finished, errors, names, identity.get("data.size") == "native")
        good = sum(int((errors[shard] == "").sum()) for shard in finished if shard in errors)
        unknown = tuple(LayerSummary(name, None, identity["output.dtype"], 0, 0, 0, 0) for name in names)
        lacking = any(shard.stop <= indexed and shard.file_name not in self.there for shard in plan)
        return RunSummary(
            path=self.folder,
            state=LACKING if lacking else FINISHED if indexed == stops[-1] else EXTENDING if indexed else UNFINISHED,
            first_row=0,
            rows=stops[-1],
            rows_finished=sum(shard.rows for shard in finished),
            errors=tuple(error for shard in finished if shard in errors for error in errors[shard] if error),
            shards_finished=len(finished),
            shards_planned=len(plan),
            images_per_shard=step,
            parts=tuple(np.diff([0, *stops]).tolist()),
            layers=_layers_of(file, where, sizes, good) if file else unknown,
            is_sampled=is_sampled,
            attributes=attributes,
            identity=identity,
            unreadable=tuple(dict.fromkeys(self.unreadable)),
        )

    def _errors(self, finished: Sequence[ShardSpec], indexed: int) -> dict[ShardSpec, tables.Column]:
        """Return why rows have failed, "" for the good ones: from the index as far as it goes, then from the shards."""
        found: dict[ShardSpec, tables.Column] = {}
        path = self.folder / format.INDEX_NAME
        if self.index:
            try:
                column = _rows_of(tables.read_column(self.index, path, "error"), indexed, path)
                found = {shard: column[shard.first : shard.stop] for shard in finished if shard.stop <= indexed}
            except damage.DamagedError:
                self.unreadable.append(format.INDEX_NAME)
        for shard in finished:
            path = self.folder / format.SHARD_FOLDER / shard.file_name
            if shard not in found and (file := self._open(path)):
                with file:
                    try:
                        found[shard] = _rows_of(tables.read_column(file, path, "error"), shard.rows, path)
                    except damage.DamagedError:
                        self.unreadable.append(format.shard_path(shard.file_name))
        return found

    def _sizes(
        self, finished: Sequence[ShardSpec], errors: Mapping[ShardSpec, tables.Column], layers: Sequence[str], is_native: bool
    ) -> tuple[_Sizes, bool]:
        """Ask the shards, or so many of them as can be asked at once; tell whether these were not all."""
        known = [shard for shard in finished if shard in errors]
        datasets = sum(shard.rows if is_native else 1 for shard in known) * len(layers)
        count = max(1, math.ceil(len(known) * min(1.0, DATASETS_ASKED / max(1, datasets))))
        chosen = np.linspace(0, len(known) - 1, count).round().astype(int) if known else ()
        sizes = _Sizes(layers)
        for shard in [known[number] for number in chosen]:
            path = self.folder / format.SHARD_FOLDER / shard.file_name
            try:
                with damage.reading(path, "the tree"):
                    sizes.ask(path, errors[shard] == "")
            except (damage.DamagedError, damage.ForeignError):
                self.unreadable.append(format.shard_path(shard.file_name))
        return sizes, len(chosen) < len(known)


def _rows_of(column: tables.Column, rows: int, path: Path) -> tables.Column:
    """Return a column, if it has a value for each row."""
    if len(column) != rows:
        raise tables.damaged(path, "the table /images", f"{len(column)} rows where there are {rows}")
    return column


class _Sizes:
    """Adds up the bytes of layers over shards, as HDF5 tells them without reading.

    Args:
        layers: Their names.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self.raw = dict.fromkeys(layers, 0)
        self.stored = dict.fromkeys(layers, 0)
        self.good = 0

    def ask(self, path: Path, good: NDArray[np.bool_]) -> None:
        """Add those of one shard.

        Args:
            path: Of the file.
            good: (rows,) which of its images have not failed.

        Raises:
            StoreError: It is no file of its own.
            ValueError: It is damaged, or its values lie elsewhere; also what else h5py raises.
        """
        count, raw, stored = int(good.sum()), {}, {}
        require_file(path)
        with h5py.File(tables.hdf5_source(path), "r") as file:
            # By h5py's lower half: its upper one takes ten times as long for each dataset.
            features = _own(h5py.h5g.open(file.id, b"/"), b"features")
            for layer in self.raw:
                node = _own(features, layer.encode())
                datasets = list(_members(node)) if isinstance(node, h5py.h5g.GroupID) else [node]
                if any(dataset.get_create_plist().get_layout() == h5py.h5d.VIRTUAL for dataset in datasets):
                    # HDF5 would have to ask the other files for its shape.
                    raise ValueError("data in another file, which is not read")
                values = [math.prod(dataset.shape) * dataset.dtype.itemsize for dataset in datasets]
                if datasets == [node]:
                    values = [values[0] * count // len(good)]
                raw[layer], stored[layer] = sum(values), sum(dataset.get_storage_size() for dataset in datasets)
        # All or nothing of a shard.
        for layer in raw:
            self.raw[layer] += raw[layer]
            self.stored[layer] += stored[layer]
        self.good += count


def _own(group: Any, name: bytes) -> Any:
    # A path would be walked by way of whatever links are on it.
    if b"/" in name or not _is_own(group, name):
        raise ValueError("a link, which is not followed")
    return h5py.h5o.open(group, name)


def _is_own(group: Any, name: bytes) -> bool:
    return bool(group.links.get_info(name).type == h5py.h5l.TYPE_HARD)


def _members(group: Any) -> Iterator[Any]:
    # What a link leads to is not in this file.
    return (h5py.h5d.open(group, name) for name in group if _is_own(group, name))


def _layers_of(file: h5py.File, path: Path, sizes: _Sizes, good: int) -> tuple[LayerSummary, ...]:
    """Return the layers of an open file with their sizes, brought up from the images that were asked to all that are good.

    Raises:
        StoreError: What a layer says of itself has changed.
        ValueError: It is what no layer can be; also what else h5py raises.
    """
    factor = good / sizes.good if sizes.good else 0.0
    found = []
    for name in tables.layer_names(file):
        node = file["features"][name]
        shape = None if isinstance(node, h5py.Group) else tuple(int(side) for side in node.shape[1:])
        raw, stored = (round(part.get(name, 0) * factor) for part in (sizes.raw, sizes.stored))
        facts = node.attrs
        found.append(LayerSummary(name, shape, str(facts["dtype"]), int(facts["channels"]), int(facts["stride_px"]), raw, stored))
    return tuple(found)
