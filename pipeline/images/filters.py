"""The filters of antialiased resampling, as Pillow defines them. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


class Filter(NamedTuple):
    """How far a filter reaches in source pixels at scale 1, its weight at a distance, and Pillow's name for it."""

    support: float
    weight: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    pillow: Image.Resampling


# Source: Pillow, src/libImaging/Resample.c: supports, the cubic's a = -0.5, Lanczos of 3 lobes.
FILTERS: dict[str, Filter] = {
    "bilinear": Filter(1.0, _bilinear, Image.Resampling.BILINEAR),
    "bicubic": Filter(2.0, _bicubic, Image.Resampling.BICUBIC),
    "lanczos": Filter(3.0, _lanczos, Image.Resampling.LANCZOS),
}
