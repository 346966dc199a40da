"""The picture that the network saw of an image, made again from its file; and small copies. No TensorFlow."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from ..records import ImageRecord, ImageStatus
from .decode import decode_image
from .reading import read_again
from .resize import ResizeSpec, dct_reduction, resize_on_host

# More would take seconds and gigabytes for a picture the size of a stamp. JPEGs of this size are reduced while they are decoded.
MAX_PIXELS = 64_000_000


def seen_picture(
    record: ImageRecord, status: ImageStatus, resize: ResizeSpec | None, mean_pixel: NDArray[np.float64], is_reduced: bool
) -> NDArray[np.uint8]:
    """Return the picture that the network saw: decoded, turned, resized as in the run.

    Args:
        record: Where it should be.
        status: What the run says of it; its digest must still be the file's.
        resize: The run's; None: native size.
        mean_pixel: (3,) float64, the run's: what pads.
        is_reduced: Whether JPEGs are reduced while decoding (``data.decode=fast``).

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: The file is gone, has changed, or cannot be read.
    """
    data = _read(record, status.sha256)
    if resize is None:
        return decode_image(data)[0]
    pixels, _ = decode_image(data, (lambda height, width: dct_reduction(height, width, resize)) if is_reduced else None)
    return restore_image(resize_on_host(pixels, resize, mean_pixel.astype(np.float32)), mean_pixel)


def restore_image(values: NDArray[np.float32], mean_pixel: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the picture that the network saw: add the mean colour, round, clip to 0..255.

    Args:
        values: (..., 3) float32, mean removed.
        mean_pixel: (3,) float64, R, G, B in 0..255.

    Returns:
        Same shape, uint8 RGB.
    """
    return np.clip(np.rint(values + mean_pixel), 0, 255).astype(np.uint8)


def thumbnail(record: ImageRecord, sha256: str, side_px: int) -> NDArray[np.uint8]:
    """Return a small copy of an image.

    Args:
        record: Which image.
        sha256: Of the file as it was when its features were made, hex.
        side_px: Of the longer side, at most.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        ImageError: The file is gone, has changed, cannot be read, or is too large.
    """

    def refuse(pixels: int) -> None:
        if pixels > MAX_PIXELS:
            raise ImageError(f"too large: {pixels} px, limit {MAX_PIXELS} px")

    def ratio_for(height: int, width: int) -> int:
        return next((ratio for ratio in (8, 4, 2) if max(height, width) >= 2 * ratio * side_px), 1)

    pixels, _ = decode_image(_read(record, sha256), ratio_for, refuse)
    picture = Image.fromarray(pixels)
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _read(record: ImageRecord, sha256: str) -> bytes:
    data = read_again(record)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ImageError("changed: the file is not the one that the features were made from")
    return data
