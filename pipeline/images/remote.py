"""Images at addresses: listed in pages, with the rules of a folder, and read by as many threads as the network has patience for.

Stands beside the folder and the list of paths; what they give is the same :class:`~pipeline.records.Manifest`.
"""

from __future__ import annotations

import posixpath
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..records import ImageRecord, Manifest, digest_images
from ..storage.address import Address, is_address
from ..storage.connection import FIRST_PAUSES_SECONDS, StorageError
from ..storage.objects import Entry, list_objects, look_at, read
from .decode import ImageDecodeError, image_extensions
from .manifest import SYSTEM_FOLDERS, first_folders, words_for_extension
from .reading import read_file, refuse_too_large

# Requests under way at a time: an object store answers each after some 10 to 50 ms, and any number of them at once.
READS_AT_ONCE = 32
# Of a list: so many objects are asked for one by one; where there are more, the folder that they share is listed.
ASKED_ONE_BY_ONE = 200


class RemoteImages:
    """What reads images at addresses; see :class:`~pipeline.records.ImageSource`.

    Args:
        modified_seconds: (N,) float64, when each was last written, by its place; 0 where nobody can say.

    Attributes:
        kind: As stored with the run.
        reads_at_once: How many reads are worth having under way; see :mod:`.loader`.
    """

    kind = "address"
    reads_at_once = READS_AT_ONCE

    def __init__(self, modified_seconds: NDArray[np.float64]) -> None:
        self._modified_seconds = modified_seconds

    def read(self, record: ImageRecord) -> bytes:
        """Reads one image whole.

        Raises:
            ImageError: It is too large, or is not as it was listed.
            OSError: It is missing, or this user may not read it.
            DatasetError: The storage refuses everything, or does not answer: no fault of the image.
        """
        if not is_address(record.path):
            return read_file(record.path)
        refuse_too_large(record.file_bytes)
        address = Address(record.path)
        try:
            # A byte more than there should be, so that what has grown since is not read to its end.
            found = read(address, 0, record.file_bytes + 1, is_exact=False) if record.file_bytes else b""
            changed = len(found) != record.file_bytes or (not found and look_at(address).size > 0)
        except StorageError as error:
            raise refused(address, error) from error
        if changed:
            raise ImageDecodeError("unreadable: the file changed since it was listed")
        return found

    def modified_seconds(self, record: ImageRecord) -> float:
        """Gives when an image was last written, as it was listed."""
        seconds = float(self._modified_seconds[record.place]) if record.place >= 0 else 0.0
        return seconds or float("inf")


def refused(address: Address, error: OSError) -> DatasetError:
    """Gives the one line for a storage that does not give what it should."""
    return DatasetError(
        f"{address}: the storage refuses, got {error.strerror or error}. Expected images that can be read. Check the address, "
        "the credentials and the network, then run again: finished shards are kept."
    )


def list_address(folder: Address) -> Manifest:
    """Lists the images below an address as :func:`~.manifest.list_folder` does below a folder: same order, same rules.

    Raises:
        DatasetError: It cannot be listed, or holds no image.
    """
    found = _Found()
    try:
        for page in list_objects(folder):
            for entry in page:
                found.take(entry)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DatasetError(
            f"data.dir: cannot be listed, got {error.strerror or error} for {str(folder)!r}. Expected an address that can. Check "
            "the address, the credentials and the network."
        ) from error
    if not found.keys:
        often = sorted(found.skipped.items(), key=lambda item: (-item[1], item[0]))
        skipped = ", ".join(f"{count} {reason}" for reason, count in often[:5]) or "nothing"
        raise DatasetError(
            f"data.dir: no images among {found.files} objects, got {str(folder)!r}. Expected some with one of the extensions "
            f"{' '.join(sorted(image_extensions()))}. Skipped: {skipped}. Check the address."
        )
    # Python compares strings by code point, which is the order of their UTF-8 bytes.
    order = sorted(range(len(found.keys)), key=found.keys.__getitem__)
    keys = tuple(found.keys[old] for old in order)
    sizes, modified = (np.array(column)[order] for column in (found.sizes, found.modified_seconds))
    return _manifest(str(folder), keys, first_folders(keys), sizes, modified, {}, {}, dict(sorted(found.skipped.items())))


class _Found:
    """What a listing has shown; of what is no image, no more than how many there are."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.sizes: list[int] = []
        self.modified_seconds: list[float] = []
        self.skipped: Counter[str] = Counter()
        self.files = 0
        self._passed_over: set[str] = set()

    def take(self, entry: Entry) -> None:
        *folders, name = entry.name.split("/")
        for depth, folder in enumerate(folders):
            reason = "hidden folder" if folder.startswith(".") else "system folder" if folder in SYSTEM_FOLDERS else ""
            if reason:
                # Once, as in a walk, which does not go into it.
                path = "/".join(folders[: depth + 1])
                self.skipped[reason] += path not in self._passed_over
                self._passed_over.add(path)
                return
        self.files += 1
        extension = posixpath.splitext(name)[1].lower()
        if name.startswith("."):
            self.skipped["hidden file"] += 1
        elif extension not in image_extensions():
            self.skipped[words_for_extension(extension)] += 1
        else:
            self.keys.append(entry.name)
            self.sizes.append(entry.size)
            self.modified_seconds.append(entry.modified_seconds)


def listed_images(
    root: str, keys: Sequence[str], labels: Sequence[str], places: Sequence[str], metadata: Mapping[str, tuple[str, ...]]
) -> Manifest:
    """Gives the manifest of images that a list names.

    Args:
        root: Address or folder that keys are relative to.
        keys: (N) unique.
        labels: (N).
        places: (N) where each is: an address, or an absolute path.
        metadata: Further columns, each (N).

    Raises:
        DatasetError: The storage refuses.
    """
    addresses = [Address(place) for place in places if is_address(place)]
    found = _ask_each(addresses) if len(addresses) <= ASKED_ONE_BY_ONE else _ask_folders(addresses)
    for place in places:
        if not is_address(place):
            with suppress(OSError, ValueError):
                info = Path(place).stat()
                found[Address(place)] = (info.st_size if stat.S_ISREG(info.st_mode) else 0, info.st_mtime)
    known = [found.get(Address(place), (0, 0.0)) for place in places]
    sizes, modified = np.array([size for size, _ in known], np.int64), np.array([seconds for _, seconds in known])
    paths = {row: place for row, (key, place) in enumerate(zip(keys, places, strict=True)) if place != f"{root}/{key}"}
    return _manifest(root, tuple(keys), labels, sizes, modified, paths, metadata, {})


def _ask_each(addresses: Sequence[Address]) -> dict[Address, tuple[int, float]]:
    def ask(address: Address) -> tuple[int, float]:
        try:
            entry = look_at(address, FIRST_PAUSES_SECONDS)
        except StorageError as error:
            raise refused(address, error) from error
        except OSError:
            # A row of no bytes here, and a failed one with its reason later.
            return 0, 0.0
        return entry.size, entry.modified_seconds

    with ThreadPoolExecutor(READS_AT_ONCE, "ask") as pool:
        return dict(zip(addresses, pool.map(ask, addresses), strict=True))


def _ask_folders(addresses: Sequence[Address]) -> dict[Address, tuple[int, float]]:
    """Lists the folder that all addresses of one bucket lie in, and keeps what is asked for."""
    wanted = set(addresses)
    buckets: dict[str, list[str]] = {}
    for address in addresses:
        buckets.setdefault("/".join(address.text.split("/", 3)[:3]), []).append(address.parent.text)
    found: dict[Address, tuple[int, float]] = {}
    for parents in buckets.values():
        folder = Address(_common_folder(parents))
        try:
            for page in list_objects(folder):
                found |= {
                    address: (entry.size, entry.modified_seconds) for entry in page if (address := folder / entry.name) in wanted
                }
        except FileNotFoundError:
            continue
        except OSError as error:
            raise refused(folder, error) from error
    return found


def _common_folder(folders: Sequence[str]) -> str:
    first, last = min(folders).split("/"), max(folders).split("/")
    shared = next(
        (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last))
    )
    return "/".join(first[:shared])


def _manifest(
    root: str,
    keys: tuple[str, ...],
    labels: Sequence[str],
    sizes: NDArray[np.int64],
    modified_seconds: NDArray[np.float64],
    paths: Mapping[int, str],
    metadata: Mapping[str, tuple[str, ...]],
    skipped: Mapping[str, int],
) -> Manifest:
    sizes = sizes.astype(np.int64)
    digest = digest_images(keys, labels, sizes, metadata)
    source = RemoteImages(modified_seconds)
    places = np.arange(len(keys), dtype=np.int64)
    return Manifest(root, keys, tuple(labels), sizes, paths, metadata, skipped, digest, source, places)
