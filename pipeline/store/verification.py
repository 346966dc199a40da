"""Whether a run folder is whole and unchanged: every byte against ``SHA256SUMS``, every row, and all files against the plan.

HDF5 may crash on a file that is not as it was written, or never come back. One that its digest cannot vouch for is read by
another process, ``python -m pipeline.store.verification``, which is ended after a time.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from ..errors import StoreError
from ..sharding import Part, ShardSpec
from ..storage import local_copy
from . import damage, disk, format, tables
from .damage import DamagedError, ForeignError, UnreadableError, UnsureError, require_file
from .digests import OWN, Digests
from .reader import no_such_run
from .run_contents import RunContents, finished_shards, part_number, read_run_contents
from .shard_reader import ShardLayer

# A file is read in so many seconds, and one more for each so many bytes, or the process that reads it hangs.
TIMEOUT_SECONDS, SLOWEST_BYTES_A_SECOND = 120.0, 2 << 20
MOST_FINDINGS = 10

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class FileCheck:
    """What came of one file.

    Attributes:
        findings: What is wrong with it. Of one that has lost its rows there would be as many as rows, so the rest of a file is
            not read after :data:`MOST_FINDINGS`.
        digest: SHA-256, hex; "" where it could not be read.
        parts: Of the run, up to the file's own; none where the file does not tell.
    """

    findings: list[StoreError] = field(default_factory=list)
    digest: str = ""
    parts: tuple[Part, ...] = ()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Make a finding of what the block raises."""
        try:
            yield
        except StoreError as error:
            self.findings.append(error)


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What came of a run folder: its files held to their digests, to the plan and to each other.

    Attributes:
        folder: The run folder.
        findings: Path from the run folder -> what is wrong; the files in order, :data:`~pipeline.store.format.DIGESTS_NAME` last.
        damaged: Shards and index that are to be removed and made again.
        unread: Files that are in use or could not be read, of which nothing is known.
        wrong_lines: Names whose lines in ``SHA256SUMS`` are not true of the files.
        files: How many were checked.
        file_bytes: Size of them all.
        rows: Of the run; 0 where no file tells.
    """

    folder: Path
    findings: Mapping[str, list[StoreError]]
    damaged: list[str]
    unread: list[str]
    wrong_lines: list[str]
    files: int
    file_bytes: int
    rows: int

    @property
    def count(self) -> int:
        """How many findings there are; none: the run is whole and unchanged."""
        return sum(map(len, self.findings.values()))


def verify_folder(
    folder: Path,
    workers: int,
    progress: Callable[[int, int], object] = lambda done_bytes, total_bytes: None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> VerifyResult:
    """Check a run folder, and write nothing.

    Args:
        folder: A run folder.
        workers: Files that are read at a time.
        progress: Called with the size of each file that has been checked, and that of all.
        timeout_seconds: For a small file that another process reads; a large one has more.

    Raises:
        StoreError: There is no such folder, or nothing of a run in it; ``SHA256SUMS`` cannot be read.
    """
    contents = require_run(folder)
    digests = Digests(folder)
    # Links, pipes and folders of these names too, which are not opened and are findings.
    names = [name for name in (*contents.files, *contents.special) if OWN.fullmatch(name)]
    sizes = {name: (folder / name).lstat().st_size for name in names}
    checks, total_bytes, stop = dict[str, FileCheck](), sum(sizes.values()), Event()
    with ThreadPoolExecutor(workers, "verify") as pool:
        try:
            progress(0, total_bytes)
            found = pool.map(lambda name: _check_file(folder / name, digests.by_name.get(name), stop, timeout_seconds), names)
            for name, check in zip(names, found, strict=True):
                checks[name] = check
                progress(sizes[name], total_bytes)
        except BaseException:
            # Ctrl-C must not wait for a file of terabytes.
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return _compare(folder, digests, checks, contents, total_bytes)


def require_run(folder: Path, images: bool = True) -> RunContents:
    """Return what a run folder holds.

    Args:
        folder: Of a run.
        images: Whether its manifests are read and checked whole.

    Raises:
        StoreError: There is no such folder, or nothing of a run in it.
    """
    try:
        if not folder.exists():
            raise no_such_run(folder)
        if not folder.is_dir():
            raise damage.no_run(folder, "a file, a pipe or a device")
        contents = read_run_contents(folder, images)
    except OSError as error:
        raise damage.unreadable(folder, error) from error
    if not any(name.endswith(".h5") for name in (*contents.files, *contents.special)):
        raise damage.no_run(folder)
    return contents


def _check_file(
    path: Path, expected: str | None, stop: Event | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> FileCheck:
    """Check a file of any kind; HDF5 in this process where it has the digest that is expected of it."""
    check = FileCheck()
    try:
        require_file(path)
        with local_copy(path) as here:
            digest = disk.file_digest(here, stop)
            if path.name.endswith(".h5"):
                check = check_hdf5(here, stop) if digest == expected else check_in_child(here, stop, timeout_seconds)
            # By the name that a person knows.
            check.findings = [type(error)(str(error).replace(str(here), str(path))) for error in check.findings]
            check.digest = digest
    except OSError as error:
        check.findings.append(damage.unreadable(path, error))
    except StoreError as error:
        check.findings.append(error)
    return check


def check_hdf5(path: Path, stop: Event | None = None) -> FileCheck:
    """Check a file by what its name says it is, a shard or the index, in this process.

    Args:
        path: Of the file.
        stop: Once set, reading stops and the result means nothing.
    """
    check = FileCheck()
    with check.noting(), damage.reading(path, "the HDF5 file"), tables.open_file(path) as file:
        check.parts = tables.read_parts(file, path)
        for name in sorted({*file["images"], *format.TEXT_COLUMNS, *format.NUMBER_COLUMNS}):
            with check.noting():
                tables.read_column(file, path, name)
        if path.name == format.INDEX_NAME:
            return check
        digests, plan = tables.read_plan(file, path)
        shard = next((shard for shard in plan if (shard.file_name, shard.part) == (path.name, len(digests) - 1)), None)
        if shard is None:
            raise damage.extra_file(path, plan[-1].file_name, len(plan))
        tables.check_shard(file, path, digests[-1], shard)
        for layer in json.loads(str(file.attrs["identity"]))["layers"].split(","):
            with check.noting():
                for error in ShardLayer(path, digests[-1], shard, layer).examine():
                    if (stop and stop.is_set()) or len(check.findings) >= MOST_FINDINGS:
                        return check
                    if error is not None:
                        check.findings.append(error)
    return check


def check_in_child(path: Path, stop: Event | None = None, timeout_seconds: float = TIMEOUT_SECONDS) -> FileCheck:
    """Check a file as :func:`check_hdf5` does, in another process; one that crashes or hangs is a finding.

    Args:
        path: Of the file.
        stop: Once set, the process is ended and the result means nothing.
        timeout_seconds: For a small file; a large one has more.
    """
    home = str(Path(__file__).parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))}
    until = time.monotonic() + timeout_seconds + path.lstat().st_size / SLOWEST_BYTES_A_SECOND
    # Not by multiprocessing, which would run a script of the user's again.
    command = [sys.executable, "-m", __name__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    reply, said = process.communicate(timeout=0.2)
                    break
                if time.monotonic() > until or (stop and stop.is_set()):
                    process.kill()
        finally:
            process.kill()
    if process.returncode == 0:
        check: FileCheck = pickle.loads(reply)
        return check
    last = said.decode(errors="replace").strip().rpartition("\n")[2]
    ended = f"an end of the process that read it, exit code {process.returncode} {last}".rstrip()
    got = f"no answer from HDF5 for {timeout_seconds:g} s" if time.monotonic() > until else ended
    # The machine may have failed, and not the file.
    return FileCheck([UnsureError(str(damage.damaged(path, "the HDF5 file", got)))])


def _compare(
    folder: Path, digests: Digests, checks: Mapping[str, FileCheck], contents: RunContents, file_bytes: int
) -> VerifyResult:
    """Hold the files to the plan, the manifests and ``SHA256SUMS``, besides what each has told of itself."""
    by_name, known = digests.by_name, contents.parts
    findings = {name: [*check.findings] for name, check in checks.items()}

    def add(name: str, error: StoreError) -> None:
        findings.setdefault(name, []).append(error)

    plan = [format.shard_path(shard.file_name) for shard in contents.plan]
    missing = [name for name in plan if name not in checks]
    for name in missing:
        there = f"{len(plan) - len(missing)} of {len(plan)} shards"
        add(name, damage.missing_file(folder / name, "shard", there))
    for name, check in checks.items():
        is_other = any(part != of_run for part, of_run in zip(check.parts, known, strict=False))
        if is_other and not check.findings:
            add(name, damage.of_another_run(folder / name, check.parts[-1].digest, known[-1].digest))
    # The first manifest that does not go on from those before it.
    name = format.manifest_name(len(contents.planned))
    if name not in checks and contents.lost:
        add(name, damage.missing_file(folder / name, "manifest", "no such file"))
    elif name in checks and not findings[name]:
        got = "one of another run" if contents.manifests[name] else "none that agrees with its own digest"
        add(name, damage.damaged(folder / name, "the manifest", got))

    changed = [name for name, check in checks.items() if check.digest and check.digest != by_name.get(name, check.digest)]
    absent = [name for name in by_name if name not in checks and not (folder / name).exists()]
    for name in changed:
        if not findings[name]:
            got = f"SHA-256 {checks[name].digest[:12]} in place of {by_name[name][:12]}"
            add(name, damage.damaged(folder / name, "the file", got))
    for name in absent:
        if name not in findings and name != format.INDEX_NAME:
            add(name, damage.missing_file(folder / name, "file", f"a line in {format.DIGESTS_NAME} and no file"))
    for name in checks:
        if name not in by_name:
            happened = f"there is no line for {name}, got a file that nobody can say to be unchanged"
            add(format.DIGESTS_NAME, damage.wrong_digests(digests.path, happened))

    damaged = []
    for name in checks:
        kinds = {type(error) for error in findings[name]}
        if name.endswith(".h5") and ForeignError not in kinds and (name in changed or DamagedError in kinds):
            damaged.append(name)
    index, shards = checks.get(format.INDEX_NAME), finished_shards([*checks])
    # While it is there, a reader takes all rows that it has for whole.
    without = [part_number(Path(name).name) for name in (*damaged, *missing)]
    if index and not findings[format.INDEX_NAME] and any(part < len(index.parts) for part in without):
        damaged.append(format.INDEX_NAME)
    # An index over some rows may be right for those: it stays.
    count = len(plan) or format.planned_shards(shards)
    if index is None:
        add(format.INDEX_NAME, damage.unfinished(folder, len(shards), count))
    elif 0 < len(index.parts) < len(known) and index.parts == known[: len(index.parts)]:
        rows = f"{format.INDEX_NAME} over the first {index.parts[-1].stop} of {known[-1].stop} rows"
        add(format.INDEX_NAME, damage.unfinished(folder, len(shards), count, rows))

    def is_unread(name: str) -> bool:
        # Of a file that has changed enough is known if no more than memory was wanting.
        kinds = {type(error) for error in findings[name]}
        return UnreadableError in kinds or (UnsureError in kinds and name not in changed)

    last = [*format.DIGESTED_NAMES, format.DIGESTS_NAME]
    names = sorted(sorted(filter(findings.get, findings)), key=lambda name: last.index(name) if name in last else -1)
    parts = [*known, *(part for check in checks.values() for part in check.parts)]
    return VerifyResult(
        folder=folder,
        findings={name: findings[name] for name in names},
        damaged=damaged,
        unread=[name for name in names if is_unread(name)],
        wrong_lines=[*absent, *changed],
        files=len(checks),
        file_bytes=file_bytes,
        rows=max((part.stop for part in parts), default=0),
    )


def repair(result: VerifyResult) -> list[str]:
    """Remove the shards and the index that are damaged, and the lines of ``SHA256SUMS`` that are wrong; nothing else.

    Where a file is in use or could not be read, nothing is removed: what others say of it may be wrong too. Whoever calls it
    holds the folder's lock, and has held it since before the folder was verified.

    Args:
        result: Of the folder.

    Returns:
        What was removed: paths from the run folder, and ``SHA256SUMS: <name>`` for a line.

    Raises:
        StoreError: The disk refuses.
    """
    if result.unread:
        return []
    digests = Digests(result.folder)
    lines = [name for name in digests.by_name if name in {*result.damaged, *result.wrong_lines}]
    removed = [*result.damaged, *(f"{format.DIGESTS_NAME}: {name}" for name in lines)]
    for name in sorted(result.damaged, key=lambda name: name != format.INDEX_NAME):
        disk.remove(result.folder / name)
    # A power cut must not bring back a damaged file without the line that accuses it.
    for folder in {(result.folder / name).parent for name in result.damaged}:
        disk.sync(folder)
    digests.drop(lines)
    return removed


def complete_digests(folder: Path, finished: Iterable[ShardSpec]) -> dict[Path, StoreError]:
    """Add the lines that a killed run has left out, once those shards have been checked.

    Args:
        folder: The run folder, locked.
        finished: The shards that are there and belong to the run.

    Returns:
        Those of them that are damaged, and have got no line -> what is wrong.

    Raises:
        StoreError: The disk refuses; a shard can neither be trusted nor removed: it is in use, cannot be read, is of another run.
    """
    digests = Digests(folder)
    names = sorted(format.shard_path(shard.file_name) for shard in finished)
    without = [name for name in names if name not in digests.by_name]
    if without:
        _log.info("%s: %d finished shards have no line yet; checking them", digests.path, len(without))
    damaged: dict[Path, StoreError] = {}
    for name in without:
        check = _check_file(folder / name, None)
        for error in check.findings:
            if not isinstance(error, DamagedError):
                # Whatever this is, it is no leftover of a kill.
                raise error
            damaged.setdefault(folder / name, error)
        if not check.findings:
            digests.add(name, check.digest)
    return damaged


def main() -> None:
    """Check the file that is named, and write what came of it to stdout."""
    # Ctrl-C is for whoever started this process, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pickle.dump(check_hdf5(Path(sys.argv[1])), sys.stdout.buffer)


if __name__ == "__main__":
    # Not as __main__, whose classes nobody could unpickle.
    from pipeline.store import verification

    verification.main()
