"""What the CPU does to a strip of images in one thread: what an operation is, ReLU, pooling.

A room between :mod:`~pipeline.network.kernels`, which it calls, and :mod:`~pipeline.network.cpu`, which shares the work out;
the convolutions are next door. All images of a call have one size; arrays are float32 (h, w, c), C order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..vector_code import MachineCode
from .layers import POOL_STRIDE, pooled_side
from .memory import Memory
from .winograd import TILE

Array = NDArray[np.float32]

NO_FLOOR = float("-inf")

# Tiles of a strip of what only moves values.
STRIP_TILES = 64


class Strip(NamedTuple):
    """Some rows of a map, in units of 4: the first, and how many."""

    first: int
    rows: int


class Workspace(threading.local):
    """Memory that each thread uses again and again: by name, as large as was ever asked for."""

    def __init__(self) -> None:
        self._memory = Memory()
        self._arrays: dict[str, Array] = {}

    def take(self, name: str, *shape: int) -> Array:
        """Gives an array of this shape, of whatever values."""
        count = int(np.prod(shape))
        if name not in self._arrays or self._arrays[name].size < count:
            self._arrays[name] = self._memory.take(count)
        return self._arrays[name][:count].reshape(shape)


class Operation(Protocol):
    """One pass over a map."""

    def output_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Gives (h, w, c) of what it makes of a map."""

    def strips(self, height: int, width: int, images: int = 1) -> list[Strip]:
        """Cuts maps of this size; each strip can be computed by itself."""

    def run(
        self, code: MachineCode, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip
    ) -> None:
        """Computes a strip of every image.

        Args:
            code: The kernels.
            workspace: Scratch memory.
            images: (h, w, c) each.
            outputs: As :meth:`output_shape` says, for each; the rows of this strip are written.
            strip: From :meth:`strips`.
        """


@dataclass(frozen=True, slots=True)
class Pooling:
    """2 x 2 pooling with stride 2.

    Attributes:
        kind: ``max`` or ``avg``.
        padding: ``same`` or ``valid``.
    """

    kind: str
    padding: str

    def output_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Gives (h, w, c) of the output."""
        return pooled_side(height, self.padding), pooled_side(width, self.padding), channels

    def strips(self, height: int, width: int, images: int = 1) -> list[Strip]:
        """Cuts into some rows each."""
        return cut(height, width, STRIP_TILES)

    def run(
        self, code: MachineCode, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip
    ) -> None:
        """Pools a strip of every image."""
        for image, output in zip(images, outputs, strict=True):
            self.pool(code, rows_of(image, strip), rows_of(output, strip, POOL_STRIDE))

    def pool(self, code: MachineCode, image: Array, output: Array) -> None:
        """Pools an image, or some rows of it that begin at an even one."""
        height, width, channels = image.shape
        code[f"pool_{self.kind}"](image.ctypes.data, height, width, channels, *output.shape[:2], output.ctypes.data)


@dataclass(frozen=True, slots=True)
class Rectification:
    """A ReLU by itself, where what is before it is stored too."""

    def output_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Gives the shape of the input."""
        return height, width, channels

    def strips(self, height: int, width: int, images: int = 1) -> list[Strip]:
        """Cuts into some rows each."""
        return cut(height, width, STRIP_TILES)

    def run(
        self, code: MachineCode, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip
    ) -> None:
        """Rectifies a strip of every image."""
        for image, output in zip(images, outputs, strict=True):
            np.maximum(rows_of(image, strip), 0.0, out=rows_of(output, strip))


def cut(height: int, width: int, tiles: int) -> list[Strip]:
    """Cuts a map into strips of about so many tiles."""
    rows = -(-height // TILE)
    step = max(1, tiles // -(-width // TILE))
    return [Strip(first, min(step, rows - first)) for first in range(0, rows, step)]


def rows_of(image: Array, strip: Strip, stride: int = 1) -> Array:
    """Gives a strip's rows of a map whose rows are so many of the strip's."""
    return image[strip.first * TILE // stride : (strip.first + strip.rows) * TILE // stride]
