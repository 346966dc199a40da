"""A list of images that lies at an address, or names addresses, or both; any other is :mod:`.lists`' alone.

An entry is an address, or a path that is relative to the folder of the list, or to ``data.dir``: both may be at an address.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DatasetError
from ..records import Manifest
from ..storage.address import Address, is_address, to_address
from ..storage.connection import FIRST_PAUSES_SECONDS
from ..storage.objects import download, look_at
from .lists import MAX_LIST_BYTES, images_of_list, read_columns, refuse_repeated
from .manifest import readable_keys, valid_text
from .remote import listed_images


def read_addressed_list(
    listing: Path | Address, base: Path | Address | None, log: Callable[[str], None] = lambda line: None
) -> Manifest:
    """Reads the images that a list names, as :func:`~.lists.read_list` does, wherever list and images are.

    Keys are relative to the folder; those of images outside it are their whole address, and have no label of their own.

    Args:
        listing: The list.
        base: What relative entries are relative to; None: the list's own folder.
        log: Told what a user should know.

    Raises:
        DatasetError: As there; and the storage refuses.
    """
    with _brought_here(listing) as path:
        columns = read_columns(path, log)
    folder = listing.parent if base is None else base
    if isinstance(folder, Path) and isinstance(listing, Path) and not any(map(is_address, columns["path"])):
        return images_of_list(columns, listing, folder, log)
    written = columns.pop("path")
    root = str(folder) if isinstance(folder, Address) else str(Path(folder).absolute())
    places = [_place(folder, name) for name in written]
    names = [place[len(root) + 1 :] if place.startswith(f"{root}/") else place for place in places]
    refuse_repeated(names)
    keys, _ = readable_keys(names)
    metadata = {name: tuple(map(valid_text, values)) for name, values in columns.items()}
    labels = metadata.pop("label", None) or [
        "" if is_address(key) or key.startswith("/") else key.partition("/")[0] * ("/" in key) for key in keys
    ]
    return listed_images(root, keys, labels, places, metadata)


def _place(folder: Path | Address, name: str) -> str:
    """Gives the address or the path of an entry."""
    if is_address(name):
        return str(to_address(name))
    if isinstance(folder, Path):
        return os.path.normpath(folder.absolute() / name)
    if name.startswith("/"):
        raise DatasetError(
            f"data.list: a path of this machine in a list of addresses, got {name[:300]!r}. Expected addresses, or paths "
            f"relative to {str(folder)!r}. Write file://... where a file of this machine is meant."
        )
    protocol, _, rest = folder.text.partition("://")
    return f"{protocol}://{posixpath.normpath(f'{rest}/{name}')}"


@contextmanager
def _brought_here(listing: Path | Address) -> Iterator[Path]:
    """Gives a file of this machine: of a list at an address a copy, whose name no message has."""
    if isinstance(listing, Path):
        yield listing
        return
    with tempfile.TemporaryDirectory(prefix="deep-feature-pipeline-") as folder:
        copy = Path(folder, f"list{listing.suffix}")
        what = f"got {str(listing)!r}. Expected a text, CSV or Parquet file of image paths."
        try:
            size = look_at(listing, FIRST_PAUSES_SECONDS).size
            if size > MAX_LIST_BYTES:
                raise DatasetError(f"data.list: too large ({size} bytes, limit {MAX_LIST_BYTES} bytes), {what} Divide it.")
            download(listing, copy, size)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise DatasetError(
                f"data.list: cannot be read ({why}), {what} Check the address; data.dir takes a folder."
            ) from error
        try:
            yield copy
        except DatasetError as error:
            raise DatasetError(str(error).replace(str(copy), str(listing))) from error
