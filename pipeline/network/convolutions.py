"""Convolutions on the CPU, a strip of images at a time, with what comes before and after them while the strip is in the cache.

A room beside :mod:`~pipeline.network.operations`. Arrays are float32 (h, w, c), C order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..vector_code import MachineCode, Processor
from .layers import POOL_STRIDE
from .memory import CACHE_LINE_BYTES, FLOAT_BYTES, Memory
from .operations import Pooling, Strip, Workspace, cut, rows_of
from .products import COLOURS, PLANES, pack_columns
from .winograd import KERNEL_SIDE, TILE, transform_kernel

Array = NDArray[np.float32]

NO_FLOOR = float("-inf")

# Tiles of a strip times its channels, in and out: transformed tiles are made, multiplied and summed while in the cache ...
STRIP_SIZE = 16_000
# ... and on fewer tiles, reading the kernel costs more than that saves. Best of 42 to 448 at 224, 112, 56 and 28 px.
SMALLEST_STRIP_TILES = 64

# Of a kernel that is transformed, so that its numbers in float64 stay in the cache.
CHANNELS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ColourConvolution:
    """The 3 x 3 convolution of an image's three channels, directly, with its bias.

    Attributes:
        kernel: As the code reads it: (1, cout / block, 27, block).
        bias: (cout,) float32.
        rectified: Whether a ReLU follows.
    """

    kernel: Array
    bias: Array
    rectified: bool

    def output_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Gives (h, w, c) of the output."""
        return height, width, len(self.bias)

    def strips(self, height: int, width: int, images: int = 1) -> list[Strip]:
        """Cuts into some rows each."""
        return cut(height, width, SMALLEST_STRIP_TILES)

    def run(
        self, code: MachineCode, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip
    ) -> None:
        """Convolves a strip of every image."""
        for image, output in zip(images, outputs, strict=True):
            self.convolve(code, workspace, image, rows_of(output, strip), strip.first * TILE)

    def convolve(self, code: MachineCode, workspace: Workspace, image: Array, target: Array, first: int) -> None:
        """Computes some rows of the output, from the first on, as many as the target has."""
        height, width, _ = image.shape
        rows = len(target)
        padded = workspace.take("padded", rows + 2, width + 2, COLOURS)
        padded[:, 0] = padded[:, -1] = 0.0
        above, below = max(first - 1, 0), min(first + rows + 1, height)
        padded[: above - first + 1] = 0.0
        padded[below - first + 1 :] = 0.0
        padded[above - first + 1 : below - first + 1, 1:-1] = image[above:below]
        code["convolve_colours"](
            *(padded.ctypes.data, width + 2, self.kernel.ctypes.data, self.bias.ctypes.data, _floor(self.rectified)),
            *(rows, width, len(self.bias), target.ctypes.data),
        )


@dataclass(frozen=True, slots=True)
class Convolution:
    """A 3 x 3 convolution by Winograd's algorithm, with its bias.

    Attributes:
        kernel: As the code reads it: (36, cout / block, cin, block).
        bias: (cout,) float32.
        rectified: Whether a ReLU follows.
        pooling: What follows that, if anything.
        colours: What comes before, if that is it; its output is larger than any other and never leaves the cache then.
    """

    kernel: Array
    bias: Array
    rectified: bool
    pooling: Pooling | None
    colours: ColourConvolution | None

    def output_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Gives (h, w, c) of the output."""
        shape = height, width, len(self.bias)
        return self.pooling.output_shape(*shape) if self.pooling else shape

    def strips(self, height: int, width: int, images: int = 1) -> list[Strip]:
        """Cuts into as many tiles as the cache takes; maps smaller than that are not cut."""
        tiles = STRIP_SIZE // (self._channels + len(self.bias))
        return cut(height, width, max(SMALLEST_STRIP_TILES, tiles) // images)

    def run(
        self, code: MachineCode, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip
    ) -> None:
        """Convolves, rectifies and pools a strip of every image."""
        height, width, _ = images[0].shape
        targets = [rows_of(output, strip) for output in outputs]
        if self.pooling:
            rows = len(rows_of(images[0], strip))
            targets = list(workspace.take("strip", len(images), rows, width, len(self.bias)))
        sources = [image.ctypes.data for image in images]
        if self.colours:
            # The strip and a row on each side of it; the address is where the first row of the image would be.
            first, stop = max(strip.first * TILE - 1, 0), min((strip.first + strip.rows) * TILE + 1, height)
            before = workspace.take("colours", len(images), stop - first, width, self._channels)
            for image, rows_before in zip(images, before, strict=True):
                self.colours.convolve(code, workspace, image, rows_before, first)
            sources = [rows_before.ctypes.data - first * rows_before[0].nbytes for rows_before in before]
        self._convolve(code, workspace, sources, (height, width), targets, strip)
        if self.pooling:
            for target, output in zip(targets, outputs, strict=True):
                self.pooling.pool(code, target, rows_of(output, strip, POOL_STRIDE))

    @property
    def _channels(self) -> int:
        return int(self.kernel.shape[2])

    def _convolve(
        self,
        code: MachineCode,
        workspace: Workspace,
        sources: Sequence[int],
        size: tuple[int, int],
        targets: Sequence[Array],
        strip: Strip,
    ) -> None:
        """Convolves images that begin at these addresses."""
        (height, width), channels = size, self._channels
        columns, count = -(-width // TILE), len(self.bias)
        tiles = strip.rows * columns
        # Planes a multiple of 4096 bytes apart would fall into the same few lines of the cache.
        data_plane, products_plane = (len(sources) * tiles * size + CACHE_LINE_BYTES // FLOAT_BYTES for size in (channels, count))
        data = workspace.take("data", PLANES, data_plane).ctypes.data
        products = workspace.take("products", PLANES, products_plane).ctypes.data
        scratch = workspace.take("tile", PLANES, max(channels, count)).ctypes.data
        for place, source in enumerate(sources):
            start = data + place * tiles * channels * FLOAT_BYTES
            code["transform_input"](
                *(source, height, width, channels, strip.first, strip.rows, columns),
                *(start, data_plane, scratch),
            )
        code[f"multiply_{channels}"](
            *(data, data_plane, self.kernel.ctypes.data, products, products_plane),
            *(len(sources) * tiles, count),
        )
        for place, target in enumerate(targets):
            start = products + place * tiles * count * FLOAT_BYTES
            code["transform_output"](
                *(start, products_plane, self.bias.ctypes.data, _floor(self.rectified)),
                *(height, width, count, strip.first, strip.rows, columns),
                *(target.ctypes.data, scratch),
            )


def make_convolution(
    kernel: NDArray[np.float32],
    bias: NDArray[np.float32],
    processor: Processor,
    *,
    rectified: bool,
    pooling: Pooling | None = None,
    colours: ColourConvolution | None = None,
) -> Convolution:
    """Prepares a convolution by Winograd's algorithm.

    Args:
        kernel: (3, 3, cin, cout) float32, as ``tf.nn.conv2d`` takes it.
        bias: (cout,) float32.
        processor: Whose code will read it.
        rectified: Whether a ReLU follows.
        pooling: What follows that, if anything.
        colours: What comes before, if it is to be done in the same pass.
    """
    channels, count = kernel.shape[2:]
    block = processor.lanes * processor.columns
    packed = Memory().take(PLANES, count // block, channels, block)
    for first in range(0, channels, CHANNELS_AT_ONCE):
        part = slice(first, first + CHANNELS_AT_ONCE)
        packed[:, :, part] = pack_columns(transform_kernel(kernel[:, :, part]), block)
    return Convolution(packed, _aligned(bias), rectified, pooling, colours)


def make_colour_convolution(
    kernel: NDArray[np.float32], bias: NDArray[np.float32], processor: Processor, *, rectified: bool
) -> ColourConvolution:
    """Prepares the convolution of an image's channels.

    Args:
        kernel: (3, 3, 3, cout) float32.
        bias: (cout,) float32.
        processor: Whose code will read it.
        rectified: Whether a ReLU follows.
    """
    block = processor.lanes * processor.columns
    packed = _aligned(pack_columns(kernel.reshape(1, KERNEL_SIDE**2 * COLOURS, len(bias)), block))
    return ColourConvolution(packed, _aligned(bias), rectified)


def _aligned(values: NDArray[np.float32]) -> Array:
    result = Memory().take(*values.shape)
    result[...] = values
    return result


def _floor(rectified: bool) -> float:
    return 0.0 if rectified else NO_FLOOR
