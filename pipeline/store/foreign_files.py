"""What lies in a run folder under names that a run needs, and is not of this program: refused, and never touched."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from ..errors import StoreError
from ..records import ShardSpec
from . import format, tables
from .run_contents import manifest_paths, result_paths


def refuse_foreign_folder(folder: Path) -> None:
    """Refuse a folder with files that the run would write over, and no sign that this program has made them.

    Raises:
        StoreError: It is such a folder.
    """
    if not folder.is_dir():
        return
    # What is written before all else has been looked at.
    early = [format.LOCK_NAME, format.DIGESTS_NAME, format.DIGESTS_NAME + format.PARTIAL_SUFFIX]
    early += [path.name for path in folder.iterdir() if format.WRITER_DIGESTS_NAME.fullmatch(path.name)]
    names = [name for name in early if _is_special(folder / name)]
    # Behind a link in its place, shards would be written into another folder.
    names += [name for name in (format.SHARD_FOLDER,) if (folder / name).is_symlink()]
    if not ((folder / format.LOCK_NAME).exists() or result_paths(folder) or manifest_paths(folder)):
        names += [name for name in format.COMPANION_NAMES if (folder / name).exists()]
    if names:
        raise StoreError(
            f"{folder}: not a run folder, got {', '.join(names)} of somebody else. Expected an empty folder, or one that this "
            f"program has written. Choose another with name=... or output.dir=..."
        )


def refuse_foreign_files(folder: Path, shards: Iterable[ShardSpec], parts: int, replaced: Collection[Path]) -> None:
    """Refuse links, folders and files of other programs under the names of files that are to be made.

    HDF5 would follow a link and write over what it leads to; over a folder nothing can be written, which would show at the end.

    Args:
        folder: The run folder.
        shards: Those that are to be made.
        parts: Of the run.
        replaced: Files that will be removed before.

    Raises:
        StoreError: There is such a thing.
    """
    try:
        # Of a million names few are there, and to ask for each takes a minute.
        there = {path.name for path in (folder / format.SHARD_FOLDER).iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        there = set()
    shard_names = (name for shard in shards for name in _with_partial(shard.file_name) if name in there)
    foreign = [path for name in shard_names if (path := folder / format.SHARD_FOLDER / name) not in replaced]
    names = (format.INDEX_NAME, *format.COMPANION_NAMES, *map(format.manifest_name, range(parts)))
    foreign += [path for name in names for path in (folder / own for own in _with_partial(name)) if _is_special(path)]
    index = folder / format.INDEX_NAME
    if index.is_file() and tables.is_foreign(index):
        foreign.append(index)
    if foreign:
        raise foreign_file(foreign[0])


def foreign_file(path: Path) -> StoreError:
    """Return the one line for what lies under the name of a file of the run and is none."""
    kinds = ((path.is_symlink(), "a link"), (path.is_dir(), "a folder"), (path.is_file(), "a file of another program"))
    what = next((words for is_kind, words in kinds if is_kind), "a pipe or device")
    return StoreError(
        f"{path}: not a file that this program has written, got {what}. Expected nothing of this name, since the run needs "
        f"it. Move it away, or choose another folder with name=..."
    )


def _is_special(path: Path) -> bool:
    """Tell whether something other than a regular file is there: a link, a folder, a pipe that would be waited for, a device."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def _with_partial(name: str) -> tuple[str, str]:
    return name, name + format.PARTIAL_SUFFIX
