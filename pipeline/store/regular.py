"""What a name in a run folder must be: a file of its own. No HDF5 here.

This program makes no links; what one leads to is somebody else's, anywhere on this machine.
"""

from __future__ import annotations

import stat
from pathlib import Path

from ..errors import StoreError
from . import format
from .damage import not_a_file, unreadable


def require_file(path: Path) -> None:
    """Makes sure that a name in a run folder is a regular file: no link, and nothing that would be waited for.

    Raises:
        StoreError: It is missing or something else.
    """
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if stat.S_ISREG(mode):
        return
    kinds = ((stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"))
    raise not_a_file(path, next((words for is_kind, words in kinds if is_kind(mode)), "a device or socket"))


def read_small(path: Path, most_bytes: int) -> bytes:
    """Gives a file of a run folder that is never large, such as its options; of one that is, no more is read than tells so.

    Args:
        path: Of the file.
        most_bytes: That it may have.

    Raises:
        StoreError: It is missing, something else than a file, cannot be read, or is larger.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > most_bytes:
        raise StoreError(
            f"{path}: too large for what it is, got more than {most_bytes} bytes. Expected what this program has written. "
            f"Put it back, or remove it."
        )
    return content


def require_own_shards(folder: Path) -> None:
    """Makes sure that the shards of a run folder lie in it: a link in their place leads out of it.

    Raises:
        StoreError: There is a link.
    """
    shards = folder / format.SHARD_FOLDER
    if shards.is_symlink():
        raise not_a_file(shards, "a link")
