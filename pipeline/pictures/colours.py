"""From values to colours."""

from __future__ import annotations

import difflib
import math

import matplotlib
import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError

# What is no finite number: a colour that the usual maps do not have.
NOT_FINITE = (255, 0, 255, 255)


def check_colormap(name: str) -> str:
    """Gives the name of a colour map of Matplotlib's.

    Raises:
        OptionError: There is none of this name.
    """
    known = list(matplotlib.colormaps)
    if name not in known:
        # Names differ in their first letter's size alone: gray, Greys.
        alike = {other.lower(): other for other in known}
        close = difflib.get_close_matches(name.lower(), alike, n=3, cutoff=0.6)
        near = ", ".join(alike[other] for other in close) or "gray, viridis, magma, inferno, cividis, coolwarm"
        raise OptionError(
            f"colormap: there is none of this name, got {name!r}. Expected one of: {near}. "
            f"Matplotlib's documentation shows them all."
        )
    return name


def colour(values: NDArray[np.float32], low: float, high: float, colormap: str) -> NDArray[np.uint8]:
    """Gives (h, w, 4) uint8: from the map's first colour at ``low`` to its last at ``high``, all the first where these are equal.

    Args:
        values: (h, w).
        low: End of the scale; NaN: no value is finite.
        high: Likewise.
        colormap: Name.
    """
    scale = np.zeros(values.shape, np.float64)
    finite = np.isfinite(values)
    if high > low:
        # In double precision, where the difference of two floats is always finite.
        scale[finite] = np.clip((values[finite].astype(np.float64) - low) / (high - low), 0.0, 1.0)
    colours: NDArray[np.uint8] = matplotlib.colormaps[colormap](scale, bytes=True)
    colours[~finite] = NOT_FINITE
    return colours


def common_range(ranges: list[tuple[float, float]]) -> tuple[float, float]:
    """Gives the range that holds these, but for those that are NaN; NaN where all are."""
    known = [(low, high) for low, high in ranges if not math.isnan(low)]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else (math.nan, math.nan)
