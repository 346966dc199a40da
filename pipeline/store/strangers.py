"""What lies in a run folder that this program has not put there, under names that a run needs: refused, and never touched."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from pathlib import Path

from ..errors import StoreError
from ..records import ShardSpec
from . import format, tables
from .found import listing_paths, result_paths


def refuse_foreign_folder(folder: Path) -> None:
    """Refuses a folder with files that the run would write over, and no sign that this program has made them.

    Raises:
        StoreError: It is such a folder.
    """
    if not folder.is_dir():
        return
    lock = folder / format.LOCK_NAME
    # What is written before all else has been looked at.
    early = [format.LOCK_NAME, format.DIGESTS_NAME, format.DIGESTS_NAME + format.PARTIAL_SUFFIX]
    early += [path.name for path in folder.iterdir() if format.WRITER_DIGESTS_NAME.fullmatch(path.name)]
    names = [name for name in early if (folder / name).is_symlink() or _is_special(folder / name)]
    # Behind a link in its place, shards would be written into another folder.
    names += [name for name in (format.SHARD_FOLDER,) if (folder / name).is_symlink()]
    if not (lock.exists() or result_paths(folder) or listing_paths(folder)):
        names += [name for name in format.COMPANION_NAMES if (folder / name).exists()]
    if names:
        raise StoreError(
            f"{folder}: not a run folder, got {', '.join(names)} of somebody else. Expected an empty folder, or one that this "
            f"program has written. Choose another with name=... or output.dir=..."
        )


def _is_special(path: Path) -> bool:
    """Tells whether something other than a regular file is there: a folder, a pipe that would be waited for, a device."""
    return path.exists() and not path.is_file()


def refuse_strangers(folder: Path, shards: Iterable[ShardSpec], parts: int, replaced: Collection[Path]) -> None:
    """Refuses links, folders and files of other programs under the names of files that are to be made.

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
    new = [folder / format.SHARD_FOLDER / name for shard in shards for name in _with_partial(shard.file_name) if name in there]
    old = [format.INDEX_NAME, *format.COMPANION_NAMES, *map(format.manifest_name, range(parts))]
    strangers = [path for path in new if path not in replaced and (path.is_symlink() or path.exists())]
    strangers += [
        path
        for path in map(folder.joinpath, itertools.chain.from_iterable(map(_with_partial, old)))
        if path.is_symlink() or _is_special(path)
    ]
    index = folder / format.INDEX_NAME
    if index.is_file() and tables.is_foreign(index):
        strangers.append(index)
    if strangers:
        raise stranger(strangers[0])


def stranger(path: Path) -> StoreError:
    """Gives the one line for what lies under the name of a file of the run and is none."""
    kinds = ((path.is_symlink(), "a link"), (path.is_dir(), "a folder"), (path.is_file(), "a file of another program"))
    what = next((words for is_kind, words in kinds if is_kind), "a pipe or device")
    return StoreError(
        f"{path}: not a file that this program has written, got {what}. Expected nothing of this name, since the run needs "
        f"it. Move it away, or choose another folder with name=..."
    )


def _with_partial(name: str) -> tuple[str, str]:
    return name, name + format.PARTIAL_SUFFIX
