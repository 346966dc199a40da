"""Whether a run folder is whole and unchanged: every byte against ``SHA256SUMS``, every row, and all files against the plan.

HDF5 may crash on a file that is not as it was written, or never come back. One that its digest cannot vouch for is read by
another process, which is ended after a time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..errors import StoreError
from ..machine import read_in_child
from ..sharding import Part, ShardSpec
from ..storage import local_copy
from . import damage, disk, format, tables
from .damage import DamagedError, ForeignError, UnreadableError, UnsureError, require_file
from .digests import OWN, Digests
from .run_contents import RunContents, list_files, part_number, read_run_contents
from .shard_reader import ShardLayer

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class FileCheck:
    """What came of one file."""

    findings: list[StoreError] = field(default_factory=list)  # what is wrong with it; of rows that share a chunk one
    digest: str = ""  # SHA-256, hex; "" where it could not be read
    parts: tuple[Part, ...] = ()  # of the run, up to the file's own; none where the file does not tell

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Make a finding of what the block raises."""
        try:
            yield
        except StoreError as error:
            self.findings.append(error)


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What came of a run folder: its files compared with their digests, with the plan and with each other."""

    folder: Path
    findings: Mapping[str, list[StoreError]]  # path from the folder -> what is wrong; none: the run is whole and unchanged
    damaged: list[str]  # shards and index that are to be removed and made again
    unread: list[str]  # files that are in use or could not be read, of which nothing is known
    wrong_lines: list[str]  # names whose lines in SHA256SUMS are not true of the files
    files: int  # how many were checked
    rows: int  # of the run, as its manifests say

    @property
    def count(self) -> int:
        """How many findings there are."""
        return sum(map(len, self.findings.values()))


def verify_folder(folder: Path, workers: int) -> VerifyResult:
    """Check a run folder, so many files at a time, and write nothing; a terminal shows how far it is."""
    require_run(folder)
    contents, digests = read_run_contents(folder), Digests(folder)
    # Links, pipes and folders of these names too, which are not opened and are findings.
    names = [name for name in (*contents.files, *contents.special) if OWN.fullmatch(name)]
    sizes = {name: (folder / name).lstat().st_size for name in names}
    checks: dict[str, FileCheck] = {}
    pool = ThreadPoolExecutor(workers, "verify")
    try:
        found = pool.map(lambda name: _check_file(folder / name, digests.by_name.get(name)), names)
        with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, disable=None, leave=False) as bar:
            for name, checks[name] in zip(names, found, strict=True):
                bar.update(sizes[name])
    finally:
        # Ctrl-C must not wait for a file of terabytes.
        pool.shutdown(wait=False, cancel_futures=True)
    return _compare(folder, digests, checks, contents)


def require_run(folder: Path) -> None:
    """Refuse a folder that is not there, or has nothing of a run in it."""
    with damage.reading(folder, ""):
        if not folder.exists():
            raise damage.no_such_run(folder)
        files, special = list_files(folder)
    if not any(name.endswith(".h5") for name in (*files, *special)):
        raise damage.no_run(folder)


def _check_file(path: Path, expected: str | None) -> FileCheck:
    """Check a file of any kind; HDF5 in this process where it has the digest that is expected of it."""
    check = FileCheck()
    with check.noting(), damage.reading(path, ""):
        require_file(path)
        with local_copy(path) as here:
            check.digest = disk.file_digest(here)
            if path.name.endswith(".h5"):
                found = check_hdf5(here) if check.digest == expected else check_in_child(here)
                check.parts = found.parts
                # By the name that a person knows.
                check.findings += [type(error)(str(error).replace(str(here), str(path))) for error in found.findings]
    return check


def check_hdf5(path: Path) -> FileCheck:
    """Check a file by what its name says it is, a shard or the index, in this process."""
    check = FileCheck()
    with check.noting(), damage.reading(path, "the HDF5 file"), tables.open_file(path) as file:
        check.parts, plan = tables.read_plan(file, path)
        for name in sorted({*file["images"], *format.TEXT_COLUMNS, *format.NUMBER_COLUMNS}):
            with check.noting():
                tables.read_column(file, path, name)
        if path.name == format.INDEX_NAME:
            return check
        digest = check.parts[-1].digest
        shard = next((shard for shard in plan if shard.file_name == path.name), None)
        if shard is None:
            raise damage.foreign(path, f"not in this run's plan of {len(plan)} shards, got an extra file", "a shard of it")
        tables.check_shard(file, path, digest, shard)
        for name in json.loads(str(file.attrs["identity"]))["layers"].split(","):
            with check.noting():
                layer = ShardLayer(path, digest, shard, name)
                for first in range(0, shard.rows, layer.chunk_rows):
                    with check.noting():
                        layer.read(range(first, min(first + layer.chunk_rows, shard.rows)))
    return check


def check_in_child(path: Path) -> FileCheck:
    """Check a file as :func:`check_hdf5` does, in another process; that it crashes, hangs or raises is a finding."""
    try:
        return read_in_child(check_hdf5, path)
    except Exception as error:  # ChildError, and whatever else a file leads HDF5 to
        # The machine may have failed, and not the file.
        return FileCheck([UnsureError(str(damage.damaged(path, "the HDF5 file", error)))])


def _compare(folder: Path, digests: Digests, checks: Mapping[str, FileCheck], contents: RunContents) -> VerifyResult:
    """Compare the files with the plan, the manifests and ``SHA256SUMS``, besides what each has told of itself."""
    by_name, parts = digests.by_name, contents.parts
    findings = {name: [*check.findings] for name, check in checks.items()}

    def add(name: str, error: StoreError) -> None:
        findings.setdefault(name, []).append(error)

    plan = [format.shard_path(shard.file_name) for shard in contents.plan]
    missing = [name for name in plan if name not in checks]
    absent = [name for name in by_name if name not in checks and not (folder / name).exists()]
    for name in dict.fromkeys([*missing, contents.lost, *absent]):
        if name not in checks and name not in ("", format.INDEX_NAME):
            add(name, damage.missing_file(folder / name, "no such file"))
    changed = [name for name, check in checks.items() if check.digest and check.digest != by_name.get(name, check.digest)]
    for name, check in checks.items():
        path = folder / name
        if name not in by_name:
            happened = f"there is no line for {name}, got a file without a digest. Expected one line a file, a digest and a name"
            remedy = "Verify with repair=true, then run the extraction again."
            add(format.DIGESTS_NAME, StoreError(f"{digests.path}: {happened}. {remedy}"))
        if findings[name]:
            continue
        if any(part != of_run for part, of_run in zip(check.parts, parts, strict=False)):
            add(name, damage.of_another_run(path, check.parts[-1].digest, parts[-1].digest))
        elif name == format.manifest_name(len(parts)):
            # It does not go on from those before it.
            add(name, damage.damaged(path, "the manifest", "none of this run that agrees with its own digest"))
        elif name in changed:
            got = f"SHA-256 {check.digest[:12]} in place of {by_name[name][:12]}"
            add(name, damage.damaged(path, "the file", got))

    damaged, unread = [], []
    for name in checks:
        kinds = {*map(type, findings[name])}
        if name.endswith(".h5") and ForeignError not in kinds and (name in changed or DamagedError in kinds):
            damaged.append(name)
        # Of a file that has changed enough is known if no more than memory was wanting.
        if UnreadableError in kinds or (UnsureError in kinds and name not in changed):
            unread.append(name)
    index = checks[format.INDEX_NAME].parts if format.INDEX_NAME in checks else ()
    if not findings.get(format.INDEX_NAME):
        # While it is there, a reader takes all rows that it has for whole.
        if any(part_number(Path(name).name) < len(index) for name in (*damaged, *missing)):
            damaged.append(format.INDEX_NAME)
        # An index over some rows may be right for those: it stays.
        if len(index) < len(parts):
            got = f"{format.INDEX_NAME} over {index[-1].stop if index else 0} of {parts[-1].stop} rows"
            add(format.INDEX_NAME, damage.unfinished(folder, len(plan) - len(missing), len(plan), got))
    findings = {name: found for name, found in findings.items() if found}
    return VerifyResult(folder, findings, damaged, unread, [*absent, *changed], len(checks), parts[-1].stop if parts else 0)


def repair(result: VerifyResult) -> list[str]:
    """Remove the shards and the index that are damaged, and the lines of ``SHA256SUMS`` that are wrong; nothing else.

    Where a file is in use or could not be read, nothing is removed: what others say of it may be wrong too. Whoever calls it
    holds the folder's lock, and has held it since before the folder was verified.

    Returns:
        What was removed: paths from the run folder, and ``SHA256SUMS: <name>`` for a line.
    """
    if result.unread:
        return []
    digests = Digests(result.folder)
    lines = [name for name in digests.by_name if name in {*result.damaged, *result.wrong_lines}]
    disk.remove(*(result.folder / name for name in sorted(result.damaged, key=lambda name: name != format.INDEX_NAME)))
    # A power cut must not bring back a damaged file without the line that accuses it.
    for folder in {(result.folder / name).parent for name in result.damaged}:
        disk.sync(folder)
    digests.drop(lines)
    return [*result.damaged, *(f"{format.DIGESTS_NAME}: {name}" for name in lines)]


def complete_digests(folder: Path, finished: Iterable[ShardSpec]) -> dict[Path, StoreError]:
    """Add the lines that a killed run has left out of finished shards, once these have been checked; the folder is locked.

    Returns:
        Those that are damaged, and have got no line -> what is wrong.

    Raises:
        StoreError: The disk refuses; a shard can neither be trusted nor removed: it is in use, cannot be read, is of another run.
    """
    digests = Digests(folder)
    damaged: dict[Path, StoreError] = {}
    for name in sorted(format.shard_path(shard.file_name) for shard in finished):
        if name not in digests.by_name:
            _log.info("%s: %s has no line yet; checking it", digests.path, name)
            check = _check_file(folder / name, None)
            for error in check.findings:
                if not isinstance(error, DamagedError):
                    # Whatever this is, it is no leftover of a kill.
                    raise error
                damaged.setdefault(folder / name, error)
            if not check.findings:
                digests.add(name, check.digest)
    return damaged
