"""What the store asks of the disk: files that survive a power cut, and one line for whatever the disk refuses."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StoreError
from ..storage import RemotePath, StorageError
from .format import PARTIAL_SUFFIX

REMOVED_AT_ONCE = 16

# hashlib releases the interpreter's lock for buffers above 2 KiB: threads hash at the same time.
HASH_BYTES = 1 << 20

# What to do about an error of the system, by its number, and about all others.
_REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space or raise the quota",
    errno.EFBIG: "Raise the limit or lower output.images_per_shard",
    errno.EMFILE: "Raise the limit (ulimit -n) or lower batch_size",
}
_REMEDY = "Check the folder, its permissions and the disk, or choose another with output.dir=..."


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a ``StoreError`` of one line for what the disk refuses in the block; what a storage refuses is one already."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise StoreError(
            f"{error.filename or scratch_of(path)}: it cannot be written, got {code} ({error.strerror or error}). Expected a "
            f"folder that can be written. {_REMEDIES.get(error.errno or 0, _REMEDY)}, then run again with "
            "output.existing=resume: finished shards are kept."
        ) from error


def scratch_of(folder: Path) -> Path:
    """Return where files are made: in the folder, or in the scratch folder of one at an address."""
    return folder.scratch if isinstance(folder, RemotePath) else folder


def partial_path(path: Path, mark: str = "") -> Path:
    """Return the name under which a file is written before it is whole; of one at an address, a path in the scratch folder.

    ``mark``: of the process that writes it, where another might write the same file.
    """
    return scratch_of(path).with_name(f"{path.name}.{mark}{PARTIAL_SUFFIX}" if mark else path.name + PARTIAL_SUFFIX)


def write_file(path: Path, content: bytes | memoryview, publish: Callable[[Path], object]) -> None:
    """Write a file, whole or not at all; ``publish`` gives it its name, as :func:`publish` does. May raise a ``StoreError``."""
    partial = partial_path(path)
    try:
        with writing(path):
            partial.write_bytes(content)
            publish(path)
    except BaseException:  # Ctrl-C too
        with suppress(OSError):
            partial.unlink()
        raise


def publish(path: Path, partial: Path | None = None) -> str:
    """Give ``<name>.partial`` its final name, once its bytes are on the disk, and return its SHA-256, hex.

    The order is the promise: bytes, then name, then the folder that holds the name. Whoever sees the final name after a power
    cut sees a whole file. To an address the file is uploaded, and has its name there once all of it has come.

    ``partial``: where the file is now, if not there. Raises an ``OSError`` if the disk refuses.
    """
    partial = partial or partial_path(path)
    sync(partial)
    digest = file_digest(partial)
    if isinstance(path, RemotePath):
        path.upload(partial)
        partial.unlink()
    else:
        partial.replace(path)
        sync(path.parent)
    return digest


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give the name under which a file or folder that somebody has asked for is made; a file takes the place of what is there."""
    partial = partial_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_tree(partial)
    try:
        yield partial
        for path in (partial, *partial.rglob("*")):
            sync(path)
        partial.replace(target)
        sync(target.parent)
    finally:
        with suppress(OSError):
            _remove_tree(partial)


def _remove_tree(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk take the bytes of a file, or the names in a folder, where the system can; an ``OSError`` if it refuses."""
    is_folder = not isinstance(path, RemotePath) and path.is_dir()
    # At an address nothing is to be synced; Windows opens no folders and orders its own metadata.
    if isinstance(path, RemotePath) or (is_folder and os.name != "posix"):
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        # Source: fsync(2): file systems that cannot sync a folder say so with EINVAL; the files in it have been synced.
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def names_in(folder: Path) -> list[str]:
    """Return what lies in a folder, sorted; nothing where there is none."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that a power cut does not take them away; at an address there are none."""
    if not isinstance(folder, RemotePath):
        for path in reversed([folder, *itertools.takewhile(lambda path: not path.exists(), folder.parents)]):
            path.mkdir(exist_ok=True)
            sync(path.parent)


def refuse_unwritable(folder: Path) -> None:
    """Raise an ``OSError`` if no files could be made in a folder, as far as anybody can tell without making any."""
    place = _nearest(folder)
    number = errno.ENOTDIR if not place.is_dir() else 0 if os.access(place, os.W_OK | os.X_OK) else errno.EACCES
    if number:
        raise OSError(number, os.strerror(number), str(place))


def remove(*paths: Path) -> None:
    """Remove files if they are there, the first one before all others; raise a ``StoreError`` if the disk refuses."""

    def unlink(path: Path) -> None:
        with writing(path):
            path.unlink(missing_ok=True)

    for path in paths[:1]:
        unlink(path)
    # Several at a time: at an address each takes as long as the way there and back.
    with ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
        list(pool.map(unlink, paths[1:]))


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that holds this folder, or that will once it is made; at an address that of scratch."""
    return shutil.disk_usage(_nearest(folder)).free


def _nearest(folder: Path) -> Path:
    """Return the folder in which this one is made, or its scratch folder: itself, or the nearest above that is there."""
    folder = scratch_of(folder).absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; raise an ``OSError`` if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
