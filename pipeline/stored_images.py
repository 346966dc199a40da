"""From a row of a stored run back to its image: where it was, and how to read it again. No list of images is made for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import ImageError
from .images.reading import words_for
from .images.remote import RemoteImages
from .images.tar import COLUMN, TarError, find_in_tar
from .records import ImageRecord
from .storage.address import is_address
from .store.reader import Run


def image_place(run: Run, row: int) -> str:
    """Gives where the image of a row was, in words."""
    root, key, tar = _place(run, row)
    if tar:
        return f"{Path(root, tar)}: {key}"
    return _address(root, key) if is_address(root) or is_address(key) else str(Path(root, key))


def find_image(run: Run, row: int) -> ImageRecord:
    """Finds the image of a row again.

    Raises:
        ImageError: It cannot be found, for the reason given.
    """
    root, key, tar = _place(run, row)
    kind = str(run.attributes.get("data_source", ""))
    if kind == RemoteImages.kind:
        size_bytes = int(run.images["bytes"][row])
        return ImageRecord(row, key, _address(root, key), "", size_bytes, RemoteImages(np.zeros(0)))
    if kind not in ("", "tar"):
        raise ImageError(f"not looked for: the images were in {kind}")
    if not tar:
        return ImageRecord(row, key, str(Path(root, key)), "", 0)
    try:
        return find_in_tar(str(Path(root, tar)), key, tar)
    except TarError as error:
        raise ImageError(f"unreadable: {error}") from error
    except OSError as error:
        raise ImageError(words_for(error)) from error


def _address(root: str, key: str) -> str:
    # What lay outside the folder of a list has all of its address, or its path, as key.
    return key if is_address(key) or key.startswith("/") else f"{root}/{key}"


def _place(run: Run, row: int) -> tuple[str, str, str]:
    """Gives the folder of the images, the key, and of images in tar files the path of the tar file in that folder."""
    is_tar = run.attributes.get("data_source") == "tar" and COLUMN in run.images
    tar = str(run.images[COLUMN][row]) if is_tar else ""
    return str(run.attributes.get("data_root", "")), str(run.images["key"][row]), tar
