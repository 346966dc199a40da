"""What the CPU does to a strip of images: convolution with what follows it, ReLU, pooling, in one thread.

A room between :mod:`~pipeline.network.kernels`, which it calls, and :mod:`~pipeline.network.cpu`, which shares the work out.
All images of a call have one size; arrays are float32 (h, w, c), C order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..vector_code import MachineCode, Processor
from .convolution import KERNEL_SIDE, TILE
from .layers import POOL_STRIDE, pooled_side
from .memory import CACHE_LINE_BYTES, FLOAT_BYTES, Memory
from .products import COLOURS, PLANES, pack_columns
from .winograd import transform_kernel

Array = NDArray[np.float32]

NO_FLOOR = float("-inf")

# Tiles of a strip times its channels, in and out: transformed tiles are made, multiplied and summed while in the cache ...
STRIP_SIZE = 28_000
# ... and on fewer tiles, reading the kernel costs more than that saves. Best of 42 to 448 at 224, 112, 56 and 28 px.
SMALLEST_STRIP_TILES = 64

# Of a kernel that is transformed, so that its numbers in float64 stay in the cache.
CHANNELS_AT_ONCE = 16


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
        return _cut(height, width, SMALLEST_STRIP_TILES)

    def run(
        self, code: MachineCode, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip
    ) -> None:
        """Pools a strip of every image."""
        for image, output in zip(images, outputs, strict=True):
            self.pool(code, _rows(image, strip), _rows(output, strip, POOL_STRIDE))

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
        return _cut(height, width, SMALLEST_STRIP_TILES)

    def run(
        self, code: MachineCode, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip
    ) -> None:
        """Rectifies a strip of every image."""
        for image, output in zip(images, outputs, strict=True):
            np.maximum(_rows(image, strip), 0.0, out=_rows(output, strip))


@dataclass(frozen=True, slots=True)
class Convolution:
    """A 3 x 3 convolution with its bias, and what follows it while the strip is in the cache.

    Attributes:
        kernel: As the kernels read it: (36, cout / block, cin, block), or (1, cout / block, 27, block) of three channels.
        bias: (cout,) float32.
        rectified: Whether a ReLU follows.
        pooling: What follows that, if anything.
    """

    kernel: Array
    bias: Array
    rectified: bool
    pooling: Pooling | None

    def output_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Gives (h, w, c) of the output."""
        shape = height, width, len(self.bias)
        return self.pooling.output_shape(*shape) if self.pooling else shape

    def strips(self, height: int, width: int, images: int = 1) -> list[Strip]:
        """Cuts into as many tiles as the cache takes; maps smaller than that are not cut."""
        tiles = STRIP_SIZE // (self.kernel.shape[2] + len(self.bias))
        return _cut(height, width, max(SMALLEST_STRIP_TILES, tiles) // images)

    def run(
        self, code: MachineCode, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip
    ) -> None:
        """Convolves, rectifies and pools a strip of every image."""
        _, width, channels = images[0].shape
        targets = [_rows(output, strip) for output in outputs]
        if self.pooling:
            rows = len(_rows(images[0], strip))
            buffer = workspace.take("strip", len(images), rows, width, len(self.bias))
            targets = list(buffer)
        if channels == COLOURS:
            for image, target in zip(images, targets, strict=True):
                self._convolve_colours(code, workspace, image, target, strip.first * TILE)
        else:
            self._convolve_tiles(code, workspace, images, targets, strip)
        if self.pooling:
            for target, output in zip(targets, outputs, strict=True):
                self.pooling.pool(code, target, _rows(output, strip, POOL_STRIDE))

    @property
    def _floor(self) -> float:
        return 0.0 if self.rectified else NO_FLOOR

    def _convolve_tiles(
        self, code: MachineCode, workspace: Workspace, images: Sequence[Array], targets: Sequence[Array], strip: Strip
    ) -> None:
        height, width, channels = images[0].shape
        columns, count = -(-width // TILE), len(self.bias)
        tiles = strip.rows * columns
        # Planes a multiple of 4096 bytes apart would fall into the same few lines of the cache.
        data_plane, products_plane = (len(images) * tiles * size + CACHE_LINE_BYTES // FLOAT_BYTES for size in (channels, count))
        data = workspace.take("data", PLANES, data_plane).ctypes.data
        products = workspace.take("products", PLANES, products_plane).ctypes.data
        scratch = workspace.take("tile", PLANES, max(channels, count)).ctypes.data
        for place, image in enumerate(images):
            start = data + place * tiles * channels * FLOAT_BYTES
            code["transform_input"](
                *(image.ctypes.data, height, width, channels, strip.first, strip.rows, columns),
                *(start, data_plane, scratch),
            )
        code[f"multiply_{channels}"](
            *(data, data_plane, self.kernel.ctypes.data, products, products_plane),
            *(len(images) * tiles, count),
        )
        for place, target in enumerate(targets):
            start = products + place * tiles * count * FLOAT_BYTES
            code["transform_output"](
                *(start, products_plane, self.bias.ctypes.data, self._floor),
                *(height, width, count, strip.first, strip.rows, columns),
                *(target.ctypes.data, scratch),
            )

    def _convolve_colours(self, code: MachineCode, workspace: Workspace, image: Array, target: Array, first: int) -> None:
        height, width, _ = image.shape
        rows = len(target)
        padded = workspace.take("padded", rows + 2, width + 2, COLOURS)
        padded[:, 0] = padded[:, -1] = 0.0
        above, below = max(first - 1, 0), min(first + rows + 1, height)
        padded[: above - first + 1] = 0.0
        padded[below - first + 1 :] = 0.0
        padded[above - first + 1 : below - first + 1, 1:-1] = image[above:below]
        code["convolve_colours"](
            *(padded.ctypes.data, width + 2, self.kernel.ctypes.data, self.bias.ctypes.data, self._floor),
            *(rows, width, len(self.bias), target.ctypes.data),
        )


def make_convolution(
    kernel: NDArray[np.float32], bias: NDArray[np.float32], processor: Processor, *, rectified: bool, pooling: Pooling | None
) -> Convolution:
    """Prepares a convolution.

    Args:
        kernel: (3, 3, cin, cout) float32, as ``tf.nn.conv2d`` takes it.
        bias: (cout,) float32.
        processor: Whose kernels will read it.
        rectified: Whether a ReLU follows.
        pooling: What follows that, if anything.
    """
    channels, count = kernel.shape[2:]
    block = processor.lanes * processor.columns
    memory = Memory()
    if channels == COLOURS:
        packed = memory.take(1, count // block, KERNEL_SIDE**2 * channels, block)
        packed[...] = pack_columns(kernel.reshape(1, KERNEL_SIDE**2 * channels, count), block)
    else:
        packed = memory.take(PLANES, count // block, channels, block)
        for first in range(0, channels, CHANNELS_AT_ONCE):
            part = slice(first, first + CHANNELS_AT_ONCE)
            packed[:, :, part] = pack_columns(transform_kernel(kernel[:, :, part]), block)
    aligned = memory.take(count)
    aligned[:] = bias
    return Convolution(packed, aligned, rectified, pooling)


def _cut(height: int, width: int, tiles: int) -> list[Strip]:
    rows = -(-height // TILE)
    step = max(1, tiles // -(-width // TILE))
    return [Strip(first, min(step, rows - first)) for first in range(0, rows, step)]


def _rows(image: Array, strip: Strip, stride: int = 1) -> Array:
    """Gives a strip's rows of a map whose rows are so many of the strip's."""
    return image[strip.first * TILE // stride : (strip.first + strip.rows) * TILE // stride]
