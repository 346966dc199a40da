"""What a run folder holds, finished or not, without reading a feature: tables, attributes, and the sizes that HDF5 keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import StoreError
from ..records import ShardSpec, plan_shards
from . import damage, format, tables
from .damage import HDF5_READ_ERRORS
from .file_checks import require_own_shards
from .found import listing_paths
from .identity import check_plan, read_identity
from .listing import read_header
from .reader import no_such_run, open_run
from .sizes import LayerHolding as LayerHolding
from .sizes import Sizes, layers_of

# Datasets whose size is asked for, one a layer and shard, at native size one a layer and image. Of more than these a sample of
# shards is taken, spread over the run: opening them all would take minutes.
DATASETS_ASKED = 10_000

FINISHED = "finished"
UNFINISHED = "not finished"
EXTENDING = "an extension is not finished"
LACKING = "shards are missing"
ONE_SHARD = "one shard of a run"


@dataclass(frozen=True, slots=True)
class Holdings:
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
    layers: tuple[LayerHolding, ...]
    is_sampled: bool
    attributes: Mapping[str, Any]
    identity: Mapping[str, str]
    unreadable: tuple[str, ...]


def look_into(path: Path) -> Holdings:
    """Says what a run folder, the run of a ``features.h5``, or one shard holds.

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
            return _Folder(path if is_folder else path.parent).holdings()
    except OSError as error:  # a name too long, a folder that is another user's
        raise damage.unreadable(Path(error.filename or path), error) from error
    try:
        return _look_into_shard(path)
    except HDF5_READ_ERRORS as error:
        raise tables.damaged(path, "the tree", error) from error


def _look_into_shard(path: Path) -> Holdings:
    with open_run(path) as run:  # for its refusals
        (spec,), attributes = run.shards, run.attributes
        errors = run.images["error"]
    sizes = Sizes(run.layers)
    sizes.ask(path, errors == "")
    with tables.open_file(path) as file:
        layers = layers_of(file, path, sizes, int((errors == "").sum()))
    return Holdings(
        path,
        ONE_SHARD,
        spec.first,
        spec.rows,
        spec.rows,
        tuple(error for error in errors if error),
        1,
        1,
        int(attributes["images_per_shard"]),
        (spec.rows,),
        layers,
        False,
        attributes,
        _identity_of(attributes),
        (),
    )


def _identity_of(attributes: Mapping[str, Any]) -> Mapping[str, str]:
    """Gives the identity that a file has.

    Raises:
        ValueError: It is none.
    """
    found = read_identity(str(attributes["identity"]))
    if found is None:
        raise ValueError("an identity that no run has")
    return found


class _Folder:
    """A run folder while it is looked into."""

    def __init__(self, folder: Path) -> None:
        require_own_shards(folder)
        self.folder = folder
        shards = folder / format.SHARD_FOLDER
        self.there = {path.name for path in shards.iterdir()} if shards.is_dir() else set()
        lists = {path.name: read_header(path) for path in listing_paths(folder)}
        self.listed = {name: header for name, header in lists.items() if header}
        self.unreadable = [name for name in lists if name not in self.listed]
        self.refused: StoreError | None = None
        index = folder / format.INDEX_NAME
        self.index = self._open(index) if index.is_symlink() or index.exists() else None

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

    def holdings(self) -> Holdings:
        names = sorted(name for name in self.there if format.SHARD_NAME.fullmatch(name))
        if not (names or self.listed or self.index or self.unreadable):
            raise damage.no_run(self.folder, format.INDEX_NAME)
        # What speaks for the run: the file that knows most of its parts.
        lead, where = self.index, self.folder / format.INDEX_NAME
        for name in reversed(names):
            if lead is not None:
                break
            where = self.folder / format.SHARD_FOLDER / name
            lead = self._open(where)
        if lead is None and not self.listed:
            if self.refused:
                raise self.refused
            path = self.folder / self.unreadable[-1]
            is_list = format.MANIFEST_NAME.fullmatch(path.name)
            raise damage.damaged_list(path) if is_list else damage.damaged(path, "the HDF5 file", "no other to go by")
        try:
            return self._describe(lead, where)
        except HDF5_READ_ERRORS as error:
            where = where if lead else self.folder / format.manifest_name(0)
            raise tables.damaged(where, "the tree" if lead else "the list of images", error) from error
        finally:
            for file in filter(None, (self.index, lead)):
                file.close()

    def _describe(self, lead: h5py.File | None, where: Path) -> Holdings:
        attributes = dict(lead.attrs) if lead else {}
        stops = [part.stop for part in tables.read_parts(lead, where)] if lead else []
        identity = _identity_of(attributes) if lead else {}
        while header := self.listed.get(format.manifest_name(len(stops))):
            if header.first_row != (stops[-1] if stops else 0):
                break  # of an earlier run
            stops.append(header.first_row + header.rows)
            identity = identity or header.identity
        if not stops:
            raise damage.missing_list(self.folder / format.manifest_name(0))
        step = int(attributes.get("images_per_shard") or identity["output.images_per_shard"])
        check_plan(stops, step)
        plan = plan_shards(stops, step)
        finished = [shard for shard in plan if shard.file_name in self.there]
        indexed = int(self.index.attrs["rows"]) if self.index else 0
        errors = self._errors(finished, indexed)
        is_native = identity.get("data.size") == "native"
        sizes, is_sampled = self._sizes(finished, errors, identity["layers"].split(","), is_native)
        good = sum(int((errors[shard] == "").sum()) for shard in finished if shard in errors)
        if lead:
            layers = layers_of(lead, where, sizes, good)
        else:
            layers = tuple(
                LayerHolding(name, None, identity["output.dtype"], 0, 0, 0, 0) for name in identity["layers"].split(",")
            )
        lacking = any(shard.stop <= indexed and shard.file_name not in self.there for shard in plan)
        state = LACKING if lacking else FINISHED if indexed == stops[-1] else EXTENDING if indexed else UNFINISHED
        return Holdings(
            self.folder,
            state,
            0,
            stops[-1],
            sum(shard.rows for shard in finished),
            tuple(error for shard in finished if shard in errors for error in errors[shard] if error),
            len(finished),
            len(plan),
            step,
            tuple(np.diff([0, *stops]).tolist()),
            layers,
            is_sampled,
            attributes,
            identity,
            tuple(dict.fromkeys(self.unreadable)),
        )

    def _errors(self, finished: Sequence[ShardSpec], indexed: int) -> dict[ShardSpec, tables.Column]:
        """Gives why rows have failed, "" for the good ones: from the index as far as it goes, then from the shards."""
        found: dict[ShardSpec, tables.Column] = {}
        path = self.folder / format.INDEX_NAME
        if self.index:
            try:
                column = _rows_of(tables.read_column(self.index, path, "error"), indexed, path)
                found = {shard: column[shard.first : shard.stop] for shard in finished if shard.stop <= indexed}
            except damage.DamagedError:
                self.unreadable.append(format.INDEX_NAME)
        for shard in finished:
            if shard in found:
                continue
            path = self.folder / format.SHARD_FOLDER / shard.file_name
            if file := self._open(path):
                with file:
                    try:
                        found[shard] = _rows_of(tables.read_column(file, path, "error"), shard.rows, path)
                    except damage.DamagedError:
                        self.unreadable.append(format.shard_path(shard.file_name))
        return found

    def _sizes(
        self,
        finished: Sequence[ShardSpec],
        errors: Mapping[ShardSpec, tables.Column],
        layers: Sequence[str],
        is_native: bool,
    ) -> tuple[Sizes, bool]:
        """Asks the shards, or so many of them as can be asked at once; tells whether these were not all."""
        known = [shard for shard in finished if shard in errors]
        datasets = sum(shard.rows if is_native else 1 for shard in known) * len(layers)
        count = max(1, math.ceil(len(known) * min(1.0, DATASETS_ASKED / max(1, datasets))))
        places = np.linspace(0, len(known) - 1, count).round().astype(int) if known else ()
        sizes = Sizes(layers)
        for shard in [known[place] for place in places]:
            path = self.folder / format.SHARD_FOLDER / shard.file_name
            try:
                with damage.reading(path, "the tree"):
                    sizes.ask(path, errors[shard] == "")
            except (damage.DamagedError, damage.ForeignError):
                self.unreadable.append(format.shard_path(shard.file_name))
        return sizes, len(places) < len(known)


def _rows_of(column: tables.Column, rows: int, path: Path) -> tables.Column:
    """Gives a column, if it has a value for each row."""
    if len(column) != rows:
        raise tables.damaged(path, "the table /images", f"{len(column)} rows where there are {rows}")
    return column
