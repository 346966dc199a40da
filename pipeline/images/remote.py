"""Images at addresses: a folder of them, or a list that lies at an address or names some; read by many threads at a time.

What is given is the same :class:`~pipeline.records.Manifest` as of a folder or list of this machine.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..records import ImageRecord, Manifest
from ..storage import RemotePath, StorageError, is_address, to_address
from .decode import ImageDecodeError
from .lists import images_of_list, read_columns, refuse_repeated
from .manifest import SYSTEM_FOLDERS, first_folders, make_manifest, no_images, readable_keys, reason_to_skip
from .reading import MAX_FILE_BYTES, read_file, refuse_too_large

# Requests under way at a time: an object store answers each after some 10 to 50 ms, and any number of them at once.
READS_AT_ONCE = 32
# Of a list in a bucket: so many images are asked for one by one; where there are more, the folder that they share is listed.
ASKED_ONE_BY_ONE = 200

# Address or path -> bytes, and seconds when it was written. What is not there is not in it.
_Sizes = dict[str, tuple[int, float]]


class RemoteImages:
    """What reads images at addresses; see :class:`~pipeline.records.ImageSource`.

    Args:
        modified_seconds: (N,) float64, when each was last written, by its place; 0 where nobody can say.
        is_list: Whether a list names them, perhaps on very many web servers: one that does not answer fails its images, which
            the same command tries again. Any other stops the run.

    Attributes:
        kind: As stored with the run.
        reads_at_once: How many reads are worth having under way; see :mod:`.loader`.
    """

    kind = "address"
    reads_at_once = READS_AT_ONCE

    def __init__(self, modified_seconds: NDArray[np.float64], is_list: bool = False) -> None:
        self._modified_seconds = modified_seconds
        self._is_list = is_list

    def read(self, record: ImageRecord) -> bytes:
        """Read one image whole.

        Raises:
            ImageError: It is too large, or is not as it was listed; or its web server does not answer.
            OSError: It is missing, or this user may not read it.
            DatasetError: The storage refuses everything, or does not answer: no fault of the image.
        """
        if not is_address(record.path):
            return read_file(record.path)
        refuse_too_large(record.file_bytes)
        path = RemotePath(record.path)
        # Of a list, nobody has asked a web server; and some say no size.
        is_known = record.file_bytes > 0 or not _is_web(record.path)
        try:
            # A byte more than there should be, so that what has grown since is not read to its end.
            data = path.read_range(0, (record.file_bytes if is_known else MAX_FILE_BYTES) + 1)
        except StorageError as error:
            if self._is_list and _is_web(record.path):
                raise ImageDecodeError(f"unreadable: {error.strerror}") from error
            raise refused(error) from error
        if is_known and len(data) != record.file_bytes:
            raise ImageDecodeError("unreadable: the file changed since it was listed")
        refuse_too_large(len(data))
        return data

    def modified_seconds(self, record: ImageRecord) -> float:
        """Return when an image was last written, as it was listed."""
        seconds = float(self._modified_seconds[record.place]) if record.place >= 0 else 0.0
        return seconds or float("inf")


def refused(error: StorageError) -> DatasetError:
    """Return the one line for a storage that does not give what it should."""
    return DatasetError(
        f"{error.filename}: the storage refuses, got {error.strerror}. Expected images that can be read. Check the address, "
        "the credentials and the network, then run again: finished shards are kept."
    )


def _is_web(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def list_address(folder: Path) -> Manifest:
    """List the images below an address as :func:`~.folder.list_folder` does below a folder: same order, same rules.

    Raises:
        DatasetError: It cannot be listed, or holds no image.
    """
    assert isinstance(folder, RemotePath)
    found: dict[str, tuple[int, float]] = {}
    skipped: Counter[str] = Counter()
    passed_over: set[str] = set()
    files = 0
    try:
        for name, size, modified_seconds in folder.find_files():
            closed, reason = _closed_folder(name)
            if closed:
                # Once, as in a walk, which does not go into it.
                skipped[reason] += closed not in passed_over
                passed_over.add(closed)
                continue
            files += 1
            if reason := reason_to_skip(posixpath.basename(name)):
                skipped[reason] += 1
            else:
                found[name] = size, modified_seconds
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DatasetError(
            f"data.dir: cannot be listed, got {error.strerror or error} for {str(folder)!r}. Expected an address that can. Check "
            "the address, the credentials and the network."
        ) from error
    if not found:
        raise no_images("data.dir", f"{files} objects", repr(str(folder)), skipped)
    # Python compares strings by code point, which is the order of their UTF-8 bytes.
    keys = sorted(found)
    return _manifest(str(folder), keys, [found[key] for key in keys], {}, skipped=skipped)


def _closed_folder(name: str) -> tuple[str, str]:
    """Return the first folder on the way to a file that is not looked into, and why; nothing if there is none."""
    folders = name.split("/")[:-1]
    for depth, folder in enumerate(folders):
        reason = "hidden folder" if folder.startswith(".") else "system folder" if folder in SYSTEM_FOLDERS else ""
        if reason:
            return "/".join(folders[: depth + 1]), reason
    return "", ""


def read_addressed_list(listing: Path, base: Path | None, log: Callable[[str], None] = lambda line: None) -> Manifest:
    """Read the images that a list names, as :func:`~.lists.read_list` does, wherever list and images are.

    An entry is an address, or a path that is relative to the folder. Keys are relative to the folder; those of images outside it
    are their whole address, and have no label of their own.

    Args:
        listing: The list.
        base: What relative entries are relative to; None: the list's own folder.
        log: Told what a user should know.

    Raises:
        DatasetError: As there; and the storage refuses.
    """
    columns = read_columns(listing, log)
    folder = listing.parent if base is None else base
    is_remote = isinstance(folder, RemotePath)
    if not is_remote and not isinstance(listing, RemotePath) and not any(map(is_address, columns["path"])):
        return images_of_list(columns, listing, folder, log)
    written = columns.pop("path")
    root = str(folder) if is_remote else str(folder.absolute())
    places = [_place(folder, name) for name in written]
    names = [place[len(root) + 1 :] if place.startswith(f"{root}/") else place for place in places]
    refuse_repeated(names)
    keys, _ = readable_keys(names)
    if "label" not in columns:
        columns["label"] = ["" if is_address(key) else label for key, label in zip(keys, first_folders(keys), strict=True)]
    return listed_images(root, keys, places, columns)


def _place(folder: Path, name: str) -> str:
    """Return the address or the path of an entry of a list."""
    if is_address(name):
        return str(to_address(name))
    if not isinstance(folder, RemotePath):
        return os.path.normpath(folder.absolute() / name)
    if name.startswith("/"):
        raise DatasetError(
            f"data.list: a path of this machine in a list of addresses, got {name[:300]!r}. Expected addresses, or paths "
            f"relative to {str(folder)!r}. Write file://... where a file of this machine is meant."
        )
    protocol, _, rest = str(folder).partition("://")
    return f"{protocol}://{posixpath.normpath(f'{rest}/{name}')}"


def listed_images(root: str, keys: Sequence[str], places: Sequence[str], columns: Mapping[str, Sequence[str]]) -> Manifest:
    """Return the manifest of images that a list names.

    Args:
        root: Address or folder that keys are relative to.
        keys: (N) unique.
        places: (N) where each is: an address, or an absolute path.
        columns: Name -> (N), ``label`` among them.

    Raises:
        DatasetError: The storage refuses.
    """
    # A row of no bytes here, and a failed one with its reason later, where an image is not there. Web servers are not asked: to
    # get a size takes as long as to get an image, and the same list must be the same run also where one did not answer.
    sizes: _Sizes = {}
    buckets = [place for place in places if is_address(place) and not _is_web(place)]
    for place in places:
        if not is_address(place):
            with suppress(OSError, ValueError):
                info = Path(place).stat()
                sizes[place] = (info.st_size if stat.S_ISREG(info.st_mode) else 0, info.st_mtime)
    try:
        sizes |= _ask_folders(buckets) if len(buckets) > ASKED_ONE_BY_ONE else _ask_each(buckets)
    except StorageError as error:
        raise refused(error) from error
    paths = {row: place for row, (key, place) in enumerate(zip(keys, places, strict=True)) if place != f"{root}/{key}"}
    return _manifest(root, keys, [sizes.get(place, (0, 0.0)) for place in places], columns, paths=paths)


def _ask_each(addresses: Sequence[str]) -> _Sizes:
    def ask(address: str) -> tuple[int, float]:
        try:
            info = RemotePath(address).stat()
        except StorageError:
            raise
        except OSError:
            return 0, 0.0
        return info.st_size, info.st_mtime

    with ThreadPoolExecutor(READS_AT_ONCE, "ask") as pool:
        return dict(zip(addresses, pool.map(ask, addresses), strict=True))


def _ask_folders(addresses: Sequence[str]) -> _Sizes:
    """List the folder that all addresses of one bucket lie in, and keep what is asked for."""
    wanted = set(addresses)
    buckets: dict[str, list[str]] = {}
    for address in addresses:
        protocol, _, rest = address.partition("://")
        buckets.setdefault(f"{protocol}://{rest.partition('/')[0]}", []).append(posixpath.dirname(rest))
    found: _Sizes = {}
    for bucket, folders in buckets.items():
        folder = f"{bucket.partition('://')[0]}://{posixpath.commonpath(folders)}"
        with suppress(FileNotFoundError):
            for name, size, modified_seconds in RemotePath(folder).find_files():
                if f"{folder}/{name}" in wanted:
                    found[f"{folder}/{name}"] = size, modified_seconds
    return found


def _manifest(
    root: str,
    keys: Sequence[str],
    sizes: Sequence[tuple[int, float]],
    columns: Mapping[str, Sequence[str]],
    *,
    paths: Mapping[int, str] | None = None,
    skipped: Mapping[str, int] | None = None,
) -> Manifest:
    source = RemoteImages(np.array([seconds for _, seconds in sizes], np.float64), is_list=paths is not None)
    file_bytes = [size for size, _ in sizes]
    return make_manifest(root, keys, file_bytes, columns=columns, paths=paths, skipped=skipped, source=source)
