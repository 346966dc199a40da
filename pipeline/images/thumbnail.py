"""A small picture of an image of a finished run, for people to look at; not on the way of the features."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from ..records import ImageRecord
from .decode import decode_image
from .reading import read_again

# More would take seconds and gigabytes for a picture the size of a stamp. JPEGs of this size are reduced while they are decoded.
MAX_PIXELS = 64_000_000


def thumbnail(record: ImageRecord, sha256: str, side_px: int) -> NDArray[np.uint8]:
    """Gives an image of which the longer side is at most so long.

    Args:
        record: Which image.
        sha256: Of the file as it was when its features were made, hex.
        side_px: Of the longer side.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        ImageError: It is not the image that it was, or too large.
        OSError: It is missing or cannot be read.
    """
    data = read_again(record)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ImageError("changed: the file is not the one that the features were made from")

    def refuse(pixels: int) -> None:
        if pixels > MAX_PIXELS:
            raise ImageError(f"too large: {pixels} px, limit {MAX_PIXELS} px")

    def ratio_for(height: int, width: int) -> int:
        return next((ratio for ratio in (8, 4, 2) if max(height, width) >= 2 * ratio * side_px), 1)

    pixels, _ = decode_image(data, ratio_for, refuse)
    picture = Image.fromarray(pixels)
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return np.asarray(picture)
