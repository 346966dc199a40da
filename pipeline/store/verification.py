"""Whether a run folder is whole and unchanged: every byte against ``SHA256SUMS``, every row, and all files against the plan.

A file that agrees with its digest is checked in this process; what the digests cannot vouch for, by another one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from ..errors import StoreError
from ..records import Part, ShardSpec, plan_shards
from ..storage import local_copy
from . import damage, disk, format
from .digests import Digests, digest_of, is_own
from .disk import file_digest
from .file_checks import require_file, require_own_shards
from .hdf5_check import DAMAGED, FOREIGN, TIMEOUT_SECONDS, UNREAD, FileCheck, Finding, check_file, check_in_child, make_finding
from .reader import no_such_run
from .run_contents import RunContents, read_run_contents, shard_names

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What came of a run folder.

    Attributes:
        folder: The run folder.
        findings: Path from the run folder -> what is wrong; the files in order, :data:`~pipeline.store.format.DIGESTS_NAME` last.
        uncounted: Further findings that are not among them.
        damaged: Shards and index that are not as they were written: to be removed and made again.
        unread: Files that are in use or could not be read, of which nothing is known.
        wrong_lines: Names whose lines in ``SHA256SUMS`` are not true of the files.
        files: That were checked.
        file_bytes: Their size.
        rows: Of the run; 0 where no file tells.
        failed: Rows of images that have failed, in the shards that could be read.
        layers: Names of the layers.
        row_bytes: Bytes of features that were decoded and held to their checksums.
        indexed: Names of the shards that the index stands over: not all of them, where an extension is not finished.
    """

    folder: Path
    findings: Mapping[str, tuple[Finding, ...]]
    uncounted: int
    damaged: tuple[str, ...]
    unread: tuple[str, ...]
    wrong_lines: tuple[str, ...]
    files: int
    file_bytes: int
    rows: int
    failed: int
    layers: tuple[str, ...]
    row_bytes: int
    indexed: frozenset[str]

    @property
    def count(self) -> int:
        """How many findings there are; none: the run is whole and unchanged."""
        return sum(map(len, self.findings.values())) + self.uncounted


def verify_folder(
    folder: Path,
    workers: int,
    progress: Callable[[int], None] = lambda size_bytes: None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> VerifyResult:
    """Check a run folder, and write nothing.

    Args:
        folder: A run folder.
        workers: Files that are read at a time.
        progress: Called with the size of each file that has been checked.
        timeout_seconds: See :func:`~pipeline.store.hdf5_check.check_in_child`.

    Raises:
        StoreError: There is no such folder, or nothing of a run in it.
    """
    names = files_to_check(folder)
    digests = Digests(folder)
    found, checks = _check_files(folder, names, digests, workers, progress, timeout_seconds)
    return _Comparison(folder, digests, found, checks, read_run_contents(folder)).result()


def files_to_check(folder: Path) -> list[str]:
    """Return the files of a run that are there, as paths from its folder.

    Raises:
        StoreError: There is no such folder, or nothing of a run in it.
    """
    try:
        is_folder, exists = folder.is_dir(), _is_there(folder)
        names = _names(folder) if is_folder else []
    except (OSError, ValueError) as error:
        raise damage.unreadable(folder, error) from error
    if not exists:
        raise no_such_run(folder)
    if not is_folder:
        raise damage.no_run(folder, "a file, a pipe or a device")
    if not any(name.endswith(".h5") for name in names):
        raise damage.no_run(folder)
    return names


def _names(folder: Path) -> list[str]:
    require_own_shards(folder)
    shards = folder / format.SHARD_FOLDER
    there = sorted(path.name for path in shards.iterdir()) if shards.is_dir() else []
    names = [format.shard_path(name) for name in there if format.SHARD_NAME.fullmatch(name)]
    names += sorted(path.name for path in folder.iterdir() if format.MANIFEST_NAME.fullmatch(path.name))
    names += format.DIGESTED_NAMES
    # Links, pipes and folders of these names too, which are not opened and are findings.
    return [name for name in names if _is_there(folder / name)]


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


# SHA-256 of a file, or why there is none.
_Digest = str | StoreError


def _check_files(
    folder: Path, names: list[str], digests: Digests, workers: int, progress: Callable[[int], None], timeout_seconds: float
) -> tuple[dict[str, _Digest], dict[str, FileCheck]]:
    """Return each file's digest, and what came of each HDF5 file."""
    stop = Event()

    def check(name: str) -> tuple[_Digest, FileCheck | None]:
        path = folder / name
        try:
            require_file(path)
            with local_copy(path) as here:
                digest = file_digest(here, stop)
                if not name.endswith(".h5"):
                    return digest, None
                if digest == digests.by_name.get(name):
                    return digest, check_file(here, stop)
                return digest, _renamed(check_in_child(here, stop, timeout_seconds), here, path)
        except OSError as error:
            unread = damage.unreadable(path, error)
            return unread, FileCheck([make_finding(unread)])
        except StoreError as error:
            return error, FileCheck([make_finding(error)])

    with ThreadPoolExecutor(workers, "verify") as pool:
        try:
            tasks = {pool.submit(check, name): name for name in names}
            done: dict[str, tuple[_Digest, FileCheck | None]] = {}
            for task in as_completed(tasks):
                done[tasks[task]] = task.result()
                progress((folder / tasks[task]).lstat().st_size)
        except BaseException:
            # Ctrl-C must not wait for a file of terabytes.
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    found = {name: done[name][0] for name in names}
    return found, {name: checked for name in names if (checked := done[name][1])}


def _renamed(check: FileCheck, here: Path, path: Path) -> FileCheck:
    """Return what came of a file by the name that a person knows, where a copy of it was checked."""
    findings = [replace(finding, line=finding.line.replace(str(here), str(path))) for finding in check.findings]
    return replace(check, findings=findings)


class _Comparison:
    """Holds the files of a folder to their digests, to the plan and to each other.

    Args:
        folder: The run folder.
        digests: What its files should be.
        found: Path from the run folder -> the file's digest, or why it cannot be read; all files there are.
        checks: Likewise -> what came of it; of HDF5 files, and of others that cannot be read.
        contents: Of the folder.
    """

    def __init__(
        self,
        folder: Path,
        digests: Digests,
        found: Mapping[str, _Digest],
        checks: Mapping[str, FileCheck],
        contents: RunContents,
    ) -> None:
        self._folder = folder
        self._digests = digests
        self._found = {**found, **contents.unreadable}
        self._checks = checks
        self._contents = contents
        self._findings: dict[str, list[Finding]] = {name: list(check.findings) for name, check in checks.items()}
        for name, error in contents.unreadable.items():
            self._findings[name] = [make_finding(error)]
        self._changed = {
            name
            for name, digest in self._found.items()
            if isinstance(digest, str) and digest != digests.by_name.get(name, digest)
        }
        self._missing_lines: list[str] = []
        self._run, self._plan = self._planned()

    def _add(self, name: str, error: StoreError) -> None:
        self._findings.setdefault(name, []).append(make_finding(error))

    def _planned(self) -> tuple[tuple[Part, ...], dict[str, ShardSpec]]:
        """Return the parts and the shards of the run: as its manifests say, or else as a file that is as it was written."""
        plan, parts = self._contents.plan, self._contents.parts
        if self._contents.lost or not plan:
            checks = [(name in self._changed, -len(check.parts), name) for name, check in self._checks.items() if check.parts]
            for _, _, name in sorted(checks)[:1]:
                check = self._checks[name]
                if len(check.parts) > len(parts):
                    parts, plan = check.parts, plan_shards([part.stop for part in check.parts], check.images_per_shard)
        return parts, {format.shard_path(shard.file_name): shard for shard in plan}

    def result(self) -> VerifyResult:
        """Return what came of the folder."""
        for name, digest in self._found.items():
            if isinstance(digest, StoreError) and name not in self._findings:
                self._add(name, digest)
        for errors in (self._wrong_parts, self._wrong_manifests, self._wrong_tables, self._wrong_lines):
            for name, error in [*errors()]:
                self._add(name, error)
        for name in sorted(self._changed):
            if not self._findings.get(name):
                found, expected = str(self._found[name]), self._digests.by_name[name]
                got = f"SHA-256 {found[:12]} in place of {expected[:12]}"
                if name in self._checks:
                    got += ": bytes that no value depends on have changed, every row, table and attribute agrees"
                self._add(name, damage.damaged(self._folder / name, "the file", got))
        self._note_extension()
        last = [*format.DIGESTED_NAMES, format.DIGESTS_NAME]
        names = sorted(name for name, found in self._findings.items() if found)
        names.sort(key=lambda name: last.index(name) if name in last else -1)
        findings = {name: tuple(self._findings[name]) for name in names}
        checks = self._checks.values()
        return VerifyResult(
            folder=self._folder,
            findings=findings,
            uncounted=sum(check.uncounted for check in checks),
            damaged=tuple(name for name in self._checks if name in findings and self._must_be_made_again(name)),
            unread=tuple(name for name in names if any(found.kind == UNREAD for found in findings[name])),
            wrong_lines=(*self._missing_lines, *self._changed),
            files=len(self._found),
            file_bytes=sum((self._folder / name).lstat().st_size for name in self._found),
            rows=self._run[-1].stop if self._run else 0,
            failed=sum(check.failed for name, check in self._checks.items() if name != format.INDEX_NAME),
            layers=next((check.layers for check in checks if check.layers), ()),
            row_bytes=sum(check.row_bytes for check in checks),
            indexed=self._indexed(),
        )

    def _must_be_made_again(self, name: str) -> bool:
        kinds = {found.kind for found in self._findings[name]}
        # What is of neither kind says nothing against the file; a digest that differs does.
        return name.endswith(".h5") and FOREIGN not in kinds and (name in self._changed or DAMAGED in kinds)

    def _parts_of(self, name: str) -> tuple[Part, ...]:
        check = self._checks.get(name)
        return check.parts if check else ()

    def _is_of_run(self, name: str) -> bool:
        parts = self._parts_of(name)
        return bool(parts) and parts == self._run[: len(parts)]

    def _indexed(self) -> frozenset[str]:
        parts = len(self._parts_of(format.INDEX_NAME)) or len(self._run)
        return frozenset(name for name, shard in self._plan.items() if shard.part < parts)

    def _wrong_lines(self) -> Iterator[tuple[str, StoreError]]:
        """Hold the lines of ``SHA256SUMS`` to the files that there are."""
        path, by_name = self._digests.path, self._digests.by_name
        for number, text in self._digests.unreadable:
            yield format.DIGESTS_NAME, damage.wrong_digests(path, f"line {number} is damaged, got {text[:120]!r}")
        for name in by_name:
            inner = Path(name)
            is_outside = inner.is_absolute() or ".." in inner.parts
            if name in self._found or (not is_outside and (self._folder / name).exists()):
                continue
            self._missing_lines.append(name)
            if self._findings.get(name):
                continue  # found by the plan
            if not is_outside and is_own(name):
                lost = StoreError(
                    f"{self._folder / name}: the file is missing, got a line in {format.DIGESTS_NAME} and no file. "
                    f"Expected both. Put it back, or run the extraction again, which writes it anew."
                )
                yield name, lost
            else:
                happened = f"a line names a file that is not of the run, got {name[:120]!r}"
                yield format.DIGESTS_NAME, damage.wrong_digests(path, happened)
        for name in self._found:
            if name not in by_name:
                happened = f"there is no line for {name}, got a file that nobody can say to be unchanged"
                yield format.DIGESTS_NAME, damage.wrong_digests(path, happened)

    def _wrong_parts(self) -> Iterator[tuple[str, StoreError]]:
        """Hold the HDF5 files to the plan."""
        shards = [name for name in self._checks if name.endswith(".h5") and name != format.INDEX_NAME]
        there = len({*self._plan} & {*shards})
        for name in self._plan:
            if name not in self._found:
                yield name, damage.missing_shard(self._folder / name, there, len(self._plan))
        for name in shards:
            if self._plan and name not in self._plan:
                yield name, damage.extra_file(self._folder / name, next(iter(self._plan)), len(self._plan))
        if format.INDEX_NAME not in self._found:
            count = len(self._plan) or format.planned_shards(Path(name).name for name in shards)
            yield format.INDEX_NAME, damage.unfinished(self._folder, there, count)
        for name in [*shards, format.INDEX_NAME]:
            parts = self._parts_of(name)
            if parts and not self._findings.get(name) and not self._is_of_run(name):
                expected = self._run[min(len(parts), len(self._run)) - 1].digest
                yield name, damage.of_another_run(self._folder / name, parts[-1].digest, expected)

    def _wrong_manifests(self) -> Iterator[tuple[str, StoreError]]:
        """Hold the manifests to the parts of the run."""
        names = [format.manifest_name(part) for part in range(len(self._run))]
        manifests = self._contents.manifests
        for name in names:
            if name not in self._found:
                yield name, damage.missing_manifest(self._folder / name)
        for name, manifest in manifests.items():
            if not isinstance(self._found.get(name), str):
                continue  # not to be read: found already
            if manifest is None:
                yield name, damage.damaged_manifest(self._folder / name)
            elif self._run and (name not in names or manifest.part != self._run[names.index(name)]):
                part = self._run[names.index(name) if name in names else -1]
                found = manifest.part.digest
                yield name, damage.of_another_run(self._folder / name, found, part.digest, "manifest")

    def _wrong_tables(self) -> Iterator[tuple[str, StoreError]]:
        """Hold the tables of the index to those of the shards."""
        if format.INDEX_NAME not in self._checks or not self._is_of_run(format.INDEX_NAME):
            return
        path, index = self._folder / format.INDEX_NAME, self._checks[format.INDEX_NAME].tables
        for number, (name, shard) in enumerate(self._plan.items()):
            if name not in self._indexed() or self._findings.get(name) or not self._is_of_run(name):
                # Its tables may be what is wrong; the index is held to them once it has been made again.
                continue
            for table, checksums in self._checks[name].tables.items():
                if table not in index:
                    # Said once; a table that is damaged has been found already.
                    if number == 0 and not self._findings.get(format.INDEX_NAME):
                        yield format.INDEX_NAME, damage.damaged(path, table, f"it in {shard.file_name} alone")
                elif index[table][number] != checksums[0]:
                    got = f"other values than {shard.file_name} for rows {shard.first} to {shard.stop - 1}"
                    yield format.INDEX_NAME, damage.damaged(path, table, got)

    def _note_extension(self) -> None:
        """Say so where the index has not all rows yet. It may be right for those that it has, and is no reason to remove it."""
        parts = self._parts_of(format.INDEX_NAME)
        if not self._is_of_run(format.INDEX_NAME) or len(parts) == len(self._run):
            return
        is_whole = not any(self._findings.get(name) for name in (format.INDEX_NAME, *self._indexed()))
        whole = ", which are whole and unchanged" * is_whole
        rows, there = self._run[-1].stop, f"{format.INDEX_NAME} over the first {parts[-1].stop}"
        unfinished = StoreError(
            f"{self._folder}: an extension of the run is not finished, got {there} of {rows} rows{whole}. Expected all {rows}. "
            f"Run the extraction again to go on."
        )
        self._add(format.INDEX_NAME, unfinished)


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
    folder, index = result.folder, format.INDEX_NAME
    # This program makes no links: what one leads to is somebody else's, and so is the link.
    names = [name for name in result.damaged if not (folder / name).is_symlink()]
    lacks_shards = any(name in result.indexed and not (folder / name).exists() for name in result.findings)
    if index not in names and (folder / index).is_file() and (result.indexed & {*names} or lacks_shards):
        # While it is there, a reader takes all rows that it has for whole.
        names.append(index)
    digests = Digests(folder)
    lines = [name for name in digests.by_name if name in {*names, *result.wrong_lines}]
    removed = [*names, *(f"{format.DIGESTS_NAME}: line {number}" for number, _ in digests.unreadable)]
    removed += [f"{format.DIGESTS_NAME}: {name}" for name in lines]
    try:
        # First: a kill in between leaves lines missing, never wrong ones.
        digests.drop(lines)
    except OSError as error:
        raise disk.write_error(digests.path, error) from error
    for name in sorted(names, key=lambda name: name != index):
        disk.remove(folder / name)
    return removed


def complete_digests(folder: Path, finished: Iterable[ShardSpec]) -> dict[Path, str]:
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
    damaged: dict[Path, str] = {}
    try:
        for name in without:
            path = folder / name
            with local_copy(path) as here:
                found = _renamed(check_in_child(here), here, path).findings
                digest = "" if found else digest_of(here)
            if others := [finding for finding in found if finding.kind != DAMAGED]:
                # Whatever this is, it is no leftover of a kill.
                raise StoreError(others[0].line)
            if found:
                damaged[path] = f"damaged: {found[0].line}"
            else:
                digests.add(name, digest)
    except OSError as error:
        raise disk.write_error(digests.path, error) from error
    return damaged


def forget_missing(folder: Path, besides: Collection[str] = ()) -> None:
    """Remove the lines of ``SHA256SUMS`` whose files are not there any more, and those that are torn.

    Args:
        folder: The run folder, locked.
        besides: Names of shards whose lines are removed too.

    Raises:
        StoreError: The disk refuses.
    """
    digests = Digests(folder)
    try:
        digests.drop_missing({*shard_names(folder)}.difference(besides))
    except OSError as error:
        raise disk.write_error(digests.path, error) from error
