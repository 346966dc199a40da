"""Operations on a strip of a map in one thread: convolution with what comes before and after it, ReLU, pooling.

All images of a call have one size; arrays are float32 (h, w, c), C order.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..architectures import POOL_STRIDE, pooled_side
from .codegen import FLOAT_BYTES, MachineCode, Processor
from .kernels import COLOURS, KERNEL_SIDE, PLANES, TILE, transform_matrices

Array = NDArray[np.float32]

CACHE_LINE_BYTES = 64
NO_FLOOR = float("-inf")

# Tiles of a strip times its channels, in and out: transformed tiles are made, multiplied and summed while in the cache ...
STRIP_SIZE = 16_000
# ... and on fewer tiles, reading the kernel costs more than that saves. Best of 42 to 448 at 224, 112, 56 and 28 px.
SMALLEST_STRIP_TILES = 64

# Of a kernel that is transformed, so that its numbers in float64 stay in the cache.
CHANNELS_AT_ONCE = 16


class Strip(NamedTuple):
    """Some rows of a map, in units of 4: the first, and how many."""

    first: int
    rows: int

    def of(self, image: Array, stride: int = 1) -> Array:
        """Return the strip's rows of a map whose rows are so many of the strip's."""
        return image[self.first * TILE // stride : (self.first + self.rows) * TILE // stride]


class Workspace(threading.local):
    """What a thread computes with: the kernels, and memory that it uses again and again: by name, as large as was ever asked for.

    Args:
        code: The kernels, for all numbers of channels that occur.
    """

    def __init__(self, code: MachineCode) -> None:
        self.code = code
        self._arrays: dict[str, Array] = {}

    def take(self, name: str, *shape: int) -> Array:
        """Return an array of this shape, of whatever values."""
        count = int(np.prod(shape))
        if name not in self._arrays or self._arrays[name].size < count:
            self._arrays[name] = _empty(count)
        return self._arrays[name][:count].reshape(shape)


class Operation(ABC):
    """One pass over a map; each strip can be computed by itself."""

    def output_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Return (h, w, c) of the output."""
        return height, width, channels

    def strips(self, height: int, width: int, images: int = 1) -> list[Strip]:
        """Cut maps of this size, of which so many are computed together."""
        return cut(height, width, SMALLEST_STRIP_TILES)

    @abstractmethod
    def run(self, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip) -> None:
        """Compute a strip of every image.

        Args:
            workspace: The kernels, and memory for what is between them.
            images: (h, w, c) each.
            outputs: As :meth:`output_shape` says, for each; the rows of this strip are written.
            strip: From :meth:`strips`.
        """


@dataclass(frozen=True, slots=True)
class Pooling(Operation):
    """2 x 2 pooling with stride 2.

    Attributes:
        kind: ``max`` or ``avg``.
        padding: ``same`` or ``valid``.
    """

    kind: str
    padding: str

    def output_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Return (h, w, c) of the output."""
        return pooled_side(height, self.padding), pooled_side(width, self.padding), channels

    def run(self, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip) -> None:
        """Pool a strip of every image."""
        for image, output in zip(images, outputs, strict=True):
            self.pool(workspace, strip.of(image), strip.of(output, POOL_STRIDE))

    def pool(self, workspace: Workspace, image: Array, output: Array) -> None:
        """Pool an image, or some rows of it that begin at an even one."""
        height, width, channels = image.shape
        workspace.code[f"pool_{self.kind}"](image.ctypes.data, height, width, channels, *output.shape[:2], output.ctypes.data)


class ReLU(Operation):
    """A ReLU by itself, where what is before it is stored too."""

    def run(self, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip) -> None:
        """Rectify a strip of every image."""
        for image, output in zip(images, outputs, strict=True):
            np.maximum(strip.of(image), 0.0, out=strip.of(output))


@dataclass(frozen=True, slots=True)
class DirectConvolution(Operation):
    """The 3 x 3 convolution of an image's three channels, with its bias.

    Attributes:
        kernel: As the code reads it: (1, cout / block, 27, block).
        bias: (cout,) float32.
        relu: Whether a ReLU follows.
    """

    kernel: Array
    bias: Array
    relu: bool

    def output_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Return (h, w, c) of the output."""
        return height, width, len(self.bias)

    def run(self, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip) -> None:
        """Convolve a strip of every image."""
        for image, output in zip(images, outputs, strict=True):
            self.convolve(workspace, image, strip.of(output), strip.first * TILE)

    def convolve(self, workspace: Workspace, image: Array, target: Array, first: int) -> None:
        """Compute some rows of the output, from the first on, as many as the target has."""
        height, width, _ = image.shape
        rows = len(target)
        padded = workspace.take("padded", rows + 2, width + 2, COLOURS)
        padded[:, 0] = padded[:, -1] = 0.0
        above, below = max(first - 1, 0), min(first + rows + 1, height)
        padded[: above - first + 1] = 0.0
        padded[below - first + 1 :] = 0.0
        padded[above - first + 1 : below - first + 1, 1:-1] = image[above:below]
        workspace.code["convolve_colours"](
            *(padded.ctypes.data, width + 2, self.kernel.ctypes.data, self.bias.ctypes.data, _floor(self.relu)),
            *(rows, width, len(self.bias), target.ctypes.data),
        )


@dataclass(frozen=True, slots=True)
class WinogradConvolution(Operation):
    """A 3 x 3 convolution by Winograd's algorithm, with its bias.

    Attributes:
        kernel: As the code reads it: (36, cout / block, cin, block).
        bias: (cout,) float32.
        relu: Whether a ReLU follows.
        pooling: What follows that, if anything.
        before: The direct convolution before it, if that is done in the same pass: its output is larger than any other and never
            leaves the cache then.
    """

    kernel: Array
    bias: Array
    relu: bool
    pooling: Pooling | None
    before: DirectConvolution | None

    def output_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Return (h, w, c) of the output."""
        shape = height, width, len(self.bias)
        return self.pooling.output_shape(*shape) if self.pooling else shape

    def strips(self, height: int, width: int, images: int = 1) -> list[Strip]:
        """Cut into as many tiles as the cache takes; maps smaller than that are not cut."""
        tiles = STRIP_SIZE // (self._channels + len(self.bias))
        return cut(height, width, max(SMALLEST_STRIP_TILES, tiles) // images)

    def run(self, workspace: Workspace, images: Sequence[Array], outputs: Sequence[Array], strip: Strip) -> None:
        """Convolve, rectify and pool a strip of every image."""
        height, width, _ = images[0].shape
        targets = [strip.of(output) for output in outputs]
        if self.pooling:
            targets = list(workspace.take("strip", len(images), len(strip.of(images[0])), width, len(self.bias)))
        sources = [image.ctypes.data for image in images]
        if self.before:
            # The strip and a row on each side of it; the address is where the first row of the image would be.
            first, stop = max(strip.first * TILE - 1, 0), min((strip.first + strip.rows) * TILE + 1, height)
            before = workspace.take("before", len(images), stop - first, width, self._channels)
            for image, rows_before in zip(images, before, strict=True):
                self.before.convolve(workspace, image, rows_before, first)
            sources = [rows_before.ctypes.data - first * rows_before[0].nbytes for rows_before in before]
        self._convolve(workspace, sources, height, width, targets, strip)
        if self.pooling:
            for target, output in zip(targets, outputs, strict=True):
                self.pooling.pool(workspace, target, strip.of(output, POOL_STRIDE))

    @property
    def _channels(self) -> int:
        return int(self.kernel.shape[2])

    def _convolve(
        self, workspace: Workspace, sources: Sequence[int], height: int, width: int, targets: Sequence[Array], strip: Strip
    ) -> None:
        """Convolve images that begin at these addresses."""
        channels, code = self._channels, workspace.code
        columns, count = -(-width // TILE), len(self.bias)
        tiles = strip.rows * columns
        # Planes a multiple of 4096 bytes apart would fall into the same few lines of the cache.
        data_plane, products_plane = (len(sources) * tiles * size + CACHE_LINE_BYTES // FLOAT_BYTES for size in (channels, count))
        data = workspace.take("data", PLANES, data_plane).ctypes.data
        products = workspace.take("products", PLANES, products_plane).ctypes.data
        scratch = workspace.take("tile", PLANES, max(channels, count)).ctypes.data
        for index, source in enumerate(sources):
            start = data + index * tiles * channels * FLOAT_BYTES
            code["transform_input"](
                *(source, height, width, channels, strip.first, strip.rows, columns),
                *(start, data_plane, scratch),
            )
        code[f"multiply_{channels}"](
            *(data, data_plane, self.kernel.ctypes.data, products, products_plane),
            *(len(sources) * tiles, count),
        )
        for index, target in enumerate(targets):
            start = products + index * tiles * count * FLOAT_BYTES
            code["transform_output"](
                *(start, products_plane, self.bias.ctypes.data, _floor(self.relu)),
                *(height, width, count, strip.first, strip.rows, columns),
                *(target.ctypes.data, scratch),
            )


def prepare_convolution(
    kernel: Array,
    bias: Array,
    processor: Processor,
    *,
    relu: bool,
    pooling: Pooling | None = None,
    before: DirectConvolution | None = None,
) -> WinogradConvolution:
    """Prepare a convolution by Winograd's algorithm.

    Args:
        kernel: (3, 3, cin, cout) float32, as ``tf.nn.conv2d`` takes it.
        bias: (cout,) float32.
        processor: Whose code will read it.
        relu: Whether a ReLU follows.
        pooling: What follows that, if anything.
        before: The direct convolution before it, if it is to be done in the same pass.
    """
    channels, count = kernel.shape[2:]
    block = processor.lanes * processor.columns
    packed = _empty(PLANES, count // block, channels, block)
    for first in range(0, channels, CHANNELS_AT_ONCE):
        part = slice(first, first + CHANNELS_AT_ONCE)
        packed[:, :, part] = _pack(transform_kernel(kernel[:, :, part]), block)
    return WinogradConvolution(packed, _copy(bias), relu, pooling, before)


def prepare_direct_convolution(kernel: Array, bias: Array, processor: Processor, *, relu: bool) -> DirectConvolution:
    """Prepare the convolution of an image's channels.

    Args:
        kernel: (3, 3, 3, cout) float32.
        bias: (cout,) float32.
        processor: Whose code will read it.
        relu: Whether a ReLU follows.
    """
    packed = _pack(kernel.reshape(1, KERNEL_SIDE**2 * COLOURS, len(bias)), processor.lanes * processor.columns)
    return DirectConvolution(_copy(packed), _copy(bias), relu)


def transform_kernel(kernel: Array) -> Array:
    """Return a kernel in the transformed space, computed in float64 and rounded once.

    Args:
        kernel: (3, 3, cin, cout), as ``tf.nn.conv2d`` takes it.

    Returns:
        (36, cin, cout) float32: four times the bytes.
    """
    _, matrix, _ = transform_matrices()
    flat = np.kron(matrix, matrix) @ kernel.reshape(KERNEL_SIDE**2, -1).astype(np.float64)
    return flat.astype(np.float32).reshape(PLANES, *kernel.shape[2:])


def cut(height: int, width: int, tiles: int) -> list[Strip]:
    """Cut a map into strips of about so many tiles."""
    rows = -(-height // TILE)
    step = max(1, tiles // -(-width // TILE))
    return [Strip(first, min(step, rows - first)) for first in range(0, rows, step)]


def aligned(piece: NDArray[np.uint8], *shape: int) -> Array:
    """Return an array that begins on a cache line, else every vector would lie across two; the piece is one line larger."""
    start = -piece.ctypes.data % CACHE_LINE_BYTES
    return piece[start : start + int(np.prod(shape)) * FLOAT_BYTES].view(np.float32).reshape(shape)


def _empty(*shape: int) -> Array:
    return aligned(np.empty(int(np.prod(shape)) * FLOAT_BYTES + CACHE_LINE_BYTES, np.uint8), *shape)


def _copy(values: Array) -> Array:
    result = _empty(*values.shape)
    result[...] = values
    return result


def _pack(matrices: Array, block: int) -> Array:
    """Return matrices (n, inner, columns) as the products read them: (n, columns / block, inner, block)."""
    count, inner, columns = matrices.shape
    return matrices.reshape(count, inner, columns // block, block).transpose(0, 2, 1, 3)


def _floor(relu: bool) -> float:
    return 0.0 if relu else NO_FLOOR
