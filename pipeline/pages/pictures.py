"""Small pictures within the page: feature maps in colours, photographs; as data that needs no other file."""

from __future__ import annotations

import base64
import functools
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Source: Matplotlib's viridis (CC0), every 32nd colour; between them straight lines.
_COLOURS = (
    *((68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141)),
    *((39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37)),
)
# What is not a number.
_NOTHING = (128, 128, 128)
_LEVELS = 255
JPEG_QUALITY = 80


def feature_map(values: NDArray[np.floating], low: float, high: float) -> bytes:
    """Gives a map as PNG: the smallest value dark, the largest bright.

    Args:
        values: (h, w); NaN where there is none.
        low: What is darkest.
        high: What is brightest.
    """
    reach = high - low
    scaled = (values.astype(np.float64) - low) / reach if reach > 0.0 else np.zeros(values.shape)
    levels = np.clip(np.nan_to_num(scaled) * (_LEVELS - 1) + 0.5, 0, _LEVELS - 1).astype(np.uint8)
    levels[np.isnan(values)] = _LEVELS
    picture = Image.fromarray(levels).convert("L")
    picture.putpalette(_palette())
    return _encoded(picture, "PNG", optimize=True)


def photograph(pixels: NDArray[np.uint8]) -> bytes:
    """Gives (h, w, 3) as JPEG."""
    return _encoded(Image.fromarray(pixels), "JPEG", quality=JPEG_QUALITY)


def data_address(picture: bytes) -> str:
    """Gives the address that is the picture itself."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def smaller(values: NDArray[np.floating], side: int) -> NDArray[np.floating]:
    """Gives the means of squares of (h, w, ...), as large as they must be for no side to be longer; edges fill no square."""
    height, width = values.shape[:2]
    step = -(-max(height, width) // side)
    if step == 1:
        return values
    down, across = min(step, height), min(step, width)
    rows, columns = height // down, width // across
    squares = values[: rows * down, : columns * across].astype(np.float64)
    means: NDArray[np.floating] = squares.reshape(rows, down, columns, across, *values.shape[2:]).mean((1, 3))
    return means


def as_square(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Gives a row of numbers as lines of a square, NaN after the last."""
    width = math.isqrt(len(values) - 1) + 1
    padded = np.full(-(-len(values) // width) * width, np.nan)
    padded[: len(values)] = values
    return padded.reshape(-1, width)


@functools.cache
def _palette() -> list[int]:
    at = np.linspace(0, len(_COLOURS) - 1, _LEVELS)
    colours = [np.interp(at, range(len(_COLOURS)), [colour[part] for colour in _COLOURS]) for part in range(3)]
    return [*np.rint(np.stack(colours, 1)).astype(int).ravel().tolist(), *_NOTHING]


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
