"""At native size: which images the network can take. Run on each decoded image, before it goes to the device."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..records import FeatureSpec
from .layers import output_shapes, smallest_side_px

FLOAT_BYTES = 4

MEMORY_WHERE_NOBODY_TELLS_BYTES = 16 << 30
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

# A convolution reads one layer, makes another, and a third waits to be written; the encoder needs some more.
LAYERS_IN_MEMORY = 4


class NativeLimit:
    """Lets images through that the network can take, unchanged; others become failed rows.

    Args:
        network: Its name.
        features: What is stored.
        pool_padding: ``same`` or ``valid``.
        memory_bytes: What may be used for one image; None: three quarters of the machine's memory.
    """

    def __init__(self, network: str, features: Sequence[FeatureSpec], pool_padding: str, memory_bytes: int | None = None) -> None:
        self._network = network
        self._deepest = features[-1].layer
        self._pool_padding = pool_padding
        self._smallest_px = smallest_side_px(network, self._deepest, pool_padding)
        self._memory_bytes = usable_bytes() if memory_bytes is None else memory_bytes

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image (h, w, 3) uint8.

        Raises:
            ImageError: It is too small for the deepest layer, or its layers do not fit into memory.
        """
        height, width = pixels.shape[:2]
        if min(height, width) < self._smallest_px:
            raise ImageError(
                f"too small: {height} x {width} px, layer {self._deepest.name} needs sides of {self._smallest_px} px"
            )
        needed = needed_bytes(self._network, (height, width), self._pool_padding)
        if needed > self._memory_bytes:
            raise ImageError(
                f"too large for memory: {height} x {width} px need {needed / 1e9:.0f} GB at native size, "
                f"{self._memory_bytes / 1e9:.0f} GB may be used; set data.size"
            )
        return pixels


def needed_bytes(network: str, size_px: tuple[int, int], pool_padding: str) -> int:
    """Return about the memory that the network needs for one image of this size."""
    shapes = output_shapes(network, size_px, pool_padding)
    return max(math.prod(shape) for shape in shapes.values()) * FLOAT_BYTES * LAYERS_IN_MEMORY


def usable_bytes() -> int:
    """Return the memory that may be used for an image: three quarters of the machine's or the container's."""
    return _machine_bytes() * 3 // 4


def _machine_bytes() -> int:
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return MEMORY_WHERE_NOBODY_TELLS_BYTES
    try:
        # Source: Linux, Documentation/admin-guide/cgroup-v2.rst: the limit of this container, or the word "max".
        return min(physical, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):
        return physical
