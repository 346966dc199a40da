"""One HDF5 file of a run, shard or index, checked as a whole: tables, statistics, and every row against its checksum.

A file that differs from its digest, or has none, may crash HDF5 or make it hang: :func:`check_in_child` has another process read
it, ``python -m pipeline.store.hdf5_check``, and ends that after a time.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import h5py
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import FAILED, OK, Part, ShardSpec
from . import format, tables
from .damage import HDF5_READ_ERRORS, DamagedError, ForeignError, UnreadableError, UnsureError, damaged
from .rows import ShardLayer
from .tables import Column

# A file is read in so many seconds, and one more for each so many bytes, or the process that reads it hangs.
TIMEOUT_SECONDS, SLOWEST_BYTES_A_SECOND = 120.0, 2 << 20
# Findings of one file that are kept: of one that has lost its rows there are as many as rows.
FINDINGS_KEPT = 20

# What a finding says of its file: making it again mends it; it is whole and another's; the machine may have failed, which the
# digest tells; it is in use or cannot be read, so that nothing is known.
DAMAGED, FOREIGN, UNSURE, UNREAD = "damaged", "foreign", "unsure", "unread"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a file.

    Attributes:
        line: For the user.
        kind: :data:`DAMAGED`, or :data:`FOREIGN`, :data:`UNSURE` or :data:`UNREAD`, for which the file must be kept.
    """

    line: str
    kind: str


def make_finding(error: StoreError) -> Finding:
    """Make a finding of an error."""
    kinds = ((DamagedError, DAMAGED), (ForeignError, FOREIGN), (UnsureError, UNSURE), (UnreadableError, UNREAD))
    return Finding(str(error), next((kind for of, kind in kinds if isinstance(error, of)), UNSURE))


@dataclass(slots=True)
class FileCheck:
    """What came of one file.

    Attributes:
        findings: The first :data:`FINDINGS_KEPT`.
        uncounted: How many more there were.
        parts: Of the run, up to the file's own; none where the file does not tell.
        images_per_shard: Of the run.
        layers: Of the run.
        tables: ``/images/<column>`` and ``/checksums/<layer>`` -> CRC-32 of the rows of each shard that it covers, in order.
        failed: Failed rows.
        row_bytes: Bytes of values that were read and held to their checksums.
    """

    findings: list[Finding] = field(default_factory=list)
    uncounted: int = 0
    parts: tuple[Part, ...] = ()
    images_per_shard: int = 0
    layers: tuple[str, ...] = ()
    tables: Mapping[str, list[int]] = field(default_factory=dict)
    failed: int = 0
    row_bytes: int = 0

    def add(self, error: StoreError) -> None:
        """Add a finding."""
        if len(self.findings) < FINDINGS_KEPT:
            self.findings.append(make_finding(error))
        else:
            self.uncounted += 1


def check_file(path: Path, stop: Event | None = None) -> FileCheck:
    """Check a file by what its name says it is, a shard or the index, in this process.

    Args:
        path: Of the file.
        stop: Once set, reading stops and the result means nothing.
    """
    check = FileCheck()
    try:
        with tables.open_file(path) as file:
            _check(file, path, check, stop or Event())
    except StoreError as error:
        check.add(error)
    except (*HDF5_READ_ERRORS, MemoryError) as error:
        check.add(damaged(path, "the HDF5 file", error))
    return check


def check_in_child(path: Path, stop: Event | None = None, timeout_seconds: float = TIMEOUT_SECONDS) -> FileCheck:
    """Check a file as :func:`check_file` does, in another process; one that crashes or hangs is a finding.

    Args:
        path: Of the file.
        stop: Once set, the process is ended and the result means nothing.
        timeout_seconds: For a small file; a large one has more.
    """
    home = str(Path(__file__).parent.parent.parent)
    paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    command, environment = [sys.executable, "-m", __name__, str(path)], {**os.environ, "PYTHONPATH": paths}
    until = time.monotonic() + timeout_seconds + path.lstat().st_size / SLOWEST_BYTES_A_SECOND
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        try:
            while True:
                try:
                    reply, said = process.communicate(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > until or (stop and stop.is_set()):
                        process.kill()
                        reply, said = process.communicate()
                        got = f"no answer from HDF5 for {timeout_seconds:g} s"
                        return FileCheck([Finding(str(damaged(path, "the HDF5 file", got)), UNSURE)])
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        check: FileCheck = pickle.loads(reply)
        return check
    if process.returncode < 0:
        got = f"a crash of HDF5, {signal.Signals(-process.returncode).name}, while it was read"
    else:
        lines = said.decode(errors="replace").split("\n")
        got = f"an end of the process that read it, exit code {process.returncode} {next(filter(None, reversed(lines)), '')}"
    return FileCheck([Finding(str(damaged(path, "the HDF5 file", got)), UNSURE)])


def _check(file: h5py.File, path: Path, check: FileCheck, stop: Event) -> None:
    is_index = path.name == format.INDEX_NAME
    digests, plan = tables.read_plan(file, path)
    check.images_per_shard = int(file.attrs["images_per_shard"])
    check.parts = tables.read_parts(file, path)
    if not is_index:
        plan = tuple(shard for shard in plan if shard.file_name == path.name and shard.part == len(digests) - 1)
        if not plan:
            raise ForeignError(
                f"{path}: not a shard of the plan that it names, got {file.attrs['rows']} rows of the run, "
                f"{check.images_per_shard} a shard. Expected a name as that plan has. Put the right one back, or "
                f"remove this one and run the extraction again."
            )
        tables.check_shard(file, path, digests[-1], plan[0])
    columns = _check_columns(file, path, plan, check)
    check.layers = _layer_names(file)
    found: dict[str, NDArray[Any]] = {f"/images/{name}": values for name, values in columns.items()}
    for layer in check.layers:
        try:
            checksums = tables.read_checksums(file, path, layer)
            if checksums.shape != (plan[-1].stop - plan[0].first,):
                raise damaged(path, f"/checksums/{layer}", f"shape {checksums.shape}")
            found[f"/checksums/{layer}"] = checksums
        except StoreError as error:
            check.add(error)
    check.tables = {name: [_checksum(values, plan[0].first, shard) for shard in plan] for name, values in found.items()}
    if "status" not in columns:
        return
    check.failed = int((columns["status"] == FAILED).sum())
    if not is_index:
        for layer in check.layers:
            try:
                for wrong_rows, size_bytes in ShardLayer(path, digests[-1], plan[0], layer).examine():
                    if stop.is_set():
                        return
                    check.row_bytes += size_bytes
                    for wrong in wrong_rows:
                        check.add(wrong)
            except StoreError as error:
                check.add(error)


def _checksum(values: NDArray[Any], first_row: int, shard: ShardSpec) -> int:
    return tables.column_checksum(values[shard.first - first_row : shard.stop - first_row])


def _layer_names(file: h5py.File) -> tuple[str, ...]:
    """Return the layers that the identity names, and all others that are there."""
    named = [name for name in str(json.loads(str(file.attrs["identity"])).get("layers", "")).split(",") if name]
    return tuple(dict.fromkeys([*named, *sorted({*file["features"], *file["checksums"]})]))


def _check_columns(file: h5py.File, path: Path, plan: tuple[ShardSpec, ...], check: FileCheck) -> dict[str, Column]:
    """Return the columns of ``/images`` that are whole and of one length."""
    rows = plan[-1].stop - plan[0].first
    columns: dict[str, Column] = {}
    for name in sorted({*file["images"], *format.TEXT_COLUMNS, *format.NUMBER_COLUMNS}):
        try:
            values = tables.read_column(file, path, name)
            if len(values) != rows:
                raise damaged(path, f"column {name!r} of /images", f"{len(values)} rows in place of {rows}")
            columns[name] = values
        except StoreError as error:
            check.add(error)
        except MemoryError as error:
            check.add(damaged(path, f"column {name!r} of /images", error))
    if {"status", "error"} <= columns.keys():
        for row, got in _wrong_statuses(columns["status"], columns["error"]):
            check.add(damaged(path, f"the status of row {plan[0].first + row}", got))
    return columns


def _wrong_statuses(statuses: Column, errors: Column) -> Iterator[tuple[int, str]]:
    for row, (status, error) in enumerate(zip(statuses, errors, strict=True)):
        if status not in (OK, FAILED) or (status == OK) == bool(error):
            yield row, f"{status!r} with the error {error!r}"


def main() -> None:
    """Check the file that is named, and write what came of it to stdout."""
    # Ctrl-C is for whoever started this process, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    # Whatever a library prints must not come into the reply.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as reply:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        pickle.dump(check_file(Path(sys.argv[1])), reply)


def _limit_memory() -> None:
    """Let a damaged length end in an error of this process, and a crash leave no copy of its memory on the disk."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or hard > memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, hard))


if __name__ == "__main__":
    # Not as __main__, whose classes nobody could unpickle.
    from pipeline.store import hdf5_check

    hdf5_check.main()
