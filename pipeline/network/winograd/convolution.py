"""Operations on a strip of a map in one thread: convolution with what comes before and after it, ReLU, pooling.

All images of a call have one size; arrays are float32 (h, w, c), C order.
"""

from __future__ import annotations

import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..architectures import POOL_STRIDE, pooled_side
from .codegen import FLOAT_BYTES, MachineCode, Processor
from .kernels import COLOURS, KERNEL_SIDE, NO_FLOOR, PLANES, TILE, transform_matrices

Array = NDArray[np.float32]

CACHE_LINE_BYTES = 64

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


class Image(NamedTuple):
    """What an operation does with an image.

    Attributes:
        source: (h, w, c).
        output: As :meth:`Operation.output_shape` says.
        sums: Layer -> (h', c) float32, zero: gets the sums of the rows of what is computed of it, as by
            :func:`~pipeline.network.host_reductions.sum_rows`. The height is rounded up to a multiple of 4.
    """

    source: Array
    output: Array
    sums: Mapping[str, Array]

    def put(self, layer: str, first: int, sums: Array) -> None:
        """Put the sums of some rows of a layer, from the first on, where they belong, if anybody wants them."""
        if layer in self.sums:
            self.sums[layer][first : first + len(sums)] = sums


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

    def rectify(self, values: Array, output: Array, floor: float = 0.0) -> Array:
        """Write values, at least floor, to an array that may be the same; return the sums of their rows, before and after."""
        rows, columns, channels = values.shape
        sums = self.take("row sums", 2, rows, channels)
        places = output.ctypes.data, sums[0].ctypes.data, sums[1].ctypes.data
        self.code["rectify"](values.ctypes.data, floor, rows, columns, channels, *places)
        return sums


class Operation(ABC):
    """One pass over a map; each strip can be computed by itself."""

    @abstractmethod
    def shapes(self, height: int, width: int, channels: int) -> dict[str, tuple[int, int, int]]:
        """Return the layers that are computed and their (h, w, c), given that of the input; the output comes last."""

    def output_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Return (h, w, c) of the output."""
        return [*self.shapes(height, width, channels).values()][-1]

    def strips(self, height: int, width: int, images: int = 1, least: int = 1) -> list[Strip]:
        """Cut maps of this size, of which so many are computed together; into a multiple of so many strips."""
        return cut(height, width, SMALLEST_STRIP_TILES, least)

    @abstractmethod
    def run(self, workspace: Workspace, images: Sequence[Image], strip: Strip) -> None:
        """Compute a strip of every image.

        Args:
            workspace: The kernels, and memory for what is between them.
            images: Of one size; the rows of this strip are written to their outputs.
            strip: From :meth:`strips`.
        """


@dataclass(frozen=True, slots=True)
class Pooling(Operation):
    """2 x 2 pooling with stride 2.

    Attributes:
        kind: ``max`` or ``avg``.
        padding: ``same`` or ``valid``.
        layer: Its name.
    """

    kind: str
    padding: str
    layer: str = ""

    def shapes(self, height: int, width: int, channels: int) -> dict[str, tuple[int, int, int]]:
        """Return the layer and its (h, w, c)."""
        return {self.layer: (pooled_side(height, self.padding), pooled_side(width, self.padding), channels)}

    def run(self, workspace: Workspace, images: Sequence[Image], strip: Strip) -> None:
        """Pool a strip of every image."""
        for image in images:
            self.pool(workspace, strip.of(image.source), image, strip)

    def pool(self, workspace: Workspace, rows: Array, image: Image, strip: Strip) -> None:
        """Pool a strip of an image, whose rows are given."""
        height, width, channels = rows.shape
        target = strip.of(image.output, POOL_STRIDE)
        workspace.code[f"pool_{self.kind}"](rows.ctypes.data, height, width, channels, *target.shape[:2], target.ctypes.data)
        if self.layer in image.sums:
            image.put(self.layer, strip.first * TILE // POOL_STRIDE, workspace.rectify(target, target, NO_FLOOR)[1])


@dataclass(frozen=True, slots=True)
class ReLU(Operation):
    """A ReLU by itself, where what is before it is stored too.

    Attributes:
        layer: Its name.
    """

    layer: str = ""

    def shapes(self, height: int, width: int, channels: int) -> dict[str, tuple[int, int, int]]:
        """Return the layer and its (h, w, c)."""
        return {self.layer: (height, width, channels)}

    def run(self, workspace: Workspace, images: Sequence[Image], strip: Strip) -> None:
        """Rectify a strip of every image."""
        for image in images:
            image.put(self.layer, strip.first * TILE, workspace.rectify(strip.of(image.source), strip.of(image.output))[1])


@dataclass(frozen=True, slots=True)
class DirectConvolution(Operation):
    """The 3 x 3 convolution of an image's three channels, with its bias.

    Attributes:
        kernel: As the code reads it: (1, cout / block, 27, block).
        bias: (cout,) float32.
        relu: Whether a ReLU follows.
        layers: Names of the convolution and of the ReLU.
    """

    kernel: Array
    bias: Array
    relu: bool
    layers: tuple[str, str] = ("", "")

    def shapes(self, height: int, width: int, channels: int) -> dict[str, tuple[int, int, int]]:
        """Return the layers and their (h, w, c)."""
        return dict.fromkeys(self.layers, (height, width, len(self.bias)))

    def run(self, workspace: Workspace, images: Sequence[Image], strip: Strip) -> None:
        """Convolve a strip of every image."""
        for image in images:
            self.convolve(workspace, image, strip.of(image.output), strip, strip.first * TILE)

    def convolve(self, workspace: Workspace, image: Image, target: Array, strip: Strip, first: int) -> None:
        """Compute rows of the output, from the first on, as many as the target has: a strip, and maybe a row on each side."""
        height, width, _ = image.source.shape
        rows = len(target)
        padded = workspace.take("padded", rows + 2, width + 2, COLOURS)
        padded[:, 0] = padded[:, -1] = 0.0
        above, below = max(first - 1, 0), min(first + rows + 1, height)
        padded[: above - first + 1] = 0.0
        padded[below - first + 1 :] = 0.0
        padded[above - first + 1 : below - first + 1, 1:-1] = image.source[above:below]
        floor = _floor(self.relu)
        # What is added up before the ReLU is rectified in a step of its own.
        is_summed = any(layer in image.sums for layer in self.layers)
        workspace.code["convolve_colours"](
            *(padded.ctypes.data, width + 2, self.kernel.ctypes.data, self.bias.ctypes.data, NO_FLOOR if is_summed else floor),
            *(rows, width, len(self.bias), target.ctypes.data),
        )
        if is_summed:
            start = strip.first * TILE
            for layer, sums in zip(self.layers, workspace.rectify(target, target, floor), strict=True):
                image.put(layer, start, sums[start - first : start - first + strip.rows * TILE])


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
        layers: Names of the convolution and of the ReLU.
    """

    kernel: Array
    bias: Array
    relu: bool
    pooling: Pooling | None
    before: DirectConvolution | None
    layers: tuple[str, str] = ("", "")

    def shapes(self, height: int, width: int, channels: int) -> dict[str, tuple[int, int, int]]:
        """Return the layers and their (h, w, c), the output's last."""
        found = self.before.shapes(height, width, channels) if self.before else {}
        shape = height, width, len(self.bias)
        return found | dict.fromkeys(self.layers, shape) | (self.pooling.shapes(*shape) if self.pooling else {})

    def strips(self, height: int, width: int, images: int = 1, least: int = 1) -> list[Strip]:
        """Cut into as many tiles as the cache takes; maps smaller than that are not cut for its sake."""
        tiles = STRIP_SIZE // (self._channels + len(self.bias))
        return cut(height, width, max(SMALLEST_STRIP_TILES, tiles) // images, least)

    def run(self, workspace: Workspace, images: Sequence[Image], strip: Strip) -> None:
        """Convolve, rectify and pool a strip of every image."""
        height, width, _ = images[0].source.shape
        targets = [strip.of(image.output) for image in images]
        if self.pooling:
            targets = list(workspace.take("strip", len(images), len(strip.of(images[0].source)), width, len(self.bias)))
        sources = [image.source.ctypes.data for image in images]
        if self.before:
            # The strip and a row on each side of it; the address is where the first row of the image would be.
            first, stop = max(strip.first * TILE - 1, 0), min((strip.first + strip.rows) * TILE + 1, height)
            before = workspace.take("before", len(images), stop - first, width, self._channels)
            for image, rows_before in zip(images, before, strict=True):
                self.before.convolve(workspace, image, rows_before, strip, first)
            sources = [rows_before.ctypes.data - first * rows_before[0].nbytes for rows_before in before]
        self._convolve(workspace, sources, height, width, targets, [image.sums for image in images], strip)
        if self.pooling:
            for image, target in zip(images, targets, strict=True):
                self.pooling.pool(workspace, target, image, strip)

    @property
    def _channels(self) -> int:
        return int(self.kernel.shape[2])

    def _convolve(
        self,
        workspace: Workspace,
        sources: Sequence[int],
        height: int,
        width: int,
        targets: Sequence[Array],
        sums: Sequence[Mapping[str, Array]],
        strip: Strip,
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
        is_summed = any(layer in sums[0] for layer in self.layers)
        unused = workspace.take("unused", strip.rows * TILE, count)
        for index, (target, of_image) in enumerate(zip(targets, sums, strict=True)):
            start = products + index * tiles * count * FLOAT_BYTES
            both = [strip.of(of_image[layer]) if layer in of_image else unused for layer in self.layers]
            code["transform_output_summed" if is_summed else "transform_output"](
                *(start, products_plane, self.bias.ctypes.data, _floor(self.relu)),
                *(height, width, count, strip.first, strip.rows, columns),
                *(target.ctypes.data, scratch),
                *([one.ctypes.data for one in both] if is_summed else ()),
            )


def prepare_convolution(
    kernel: Array,
    bias: Array,
    processor: Processor,
    *,
    relu: bool,
    pooling: Pooling | None = None,
    before: DirectConvolution | None = None,
    layers: tuple[str, str] = ("", ""),
) -> WinogradConvolution:
    """Prepare a convolution by Winograd's algorithm.

    Args:
        kernel: (3, 3, cin, cout) float32, as ``tf.nn.conv2d`` takes it.
        bias: (cout,) float32.
        processor: Whose code will read it.
        relu: Whether a ReLU follows.
        pooling: What follows that, if anything.
        before: The direct convolution before it, if it is to be done in the same pass.
        layers: Names of the convolution and of the ReLU.
    """
    channels, count = kernel.shape[2:]
    block = processor.lanes * processor.columns
    packed = _empty(PLANES, count // block, channels, block)
    for first in range(0, channels, CHANNELS_AT_ONCE):
        part = slice(first, first + CHANNELS_AT_ONCE)
        packed[:, :, part] = _pack(transform_kernel(kernel[:, :, part]), block)
    return WinogradConvolution(packed, _copy(bias), relu, pooling, before, layers)


def prepare_direct_convolution(
    kernel: Array, bias: Array, processor: Processor, *, relu: bool, layers: tuple[str, str] = ("", "")
) -> DirectConvolution:
    """Prepare the convolution of an image's channels.

    Args:
        kernel: (3, 3, 3, cout) float32.
        bias: (cout,) float32.
        processor: Whose code will read it.
        relu: Whether a ReLU follows.
        layers: Names of the convolution and of the ReLU.
    """
    packed = _pack(kernel.reshape(1, KERNEL_SIDE**2 * COLOURS, len(bias)), processor.lanes * processor.columns)
    return DirectConvolution(_copy(packed), _copy(bias), relu, layers)


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


def cut(height: int, width: int, tiles: int, least: int) -> list[Strip]:
    """Cut a map into nearly equal strips of at most about so many tiles, a multiple of ``least`` of them if it has the rows."""
    rows = -(-height // TILE)
    count = -(-rows // max(1, tiles // -(-width // TILE)))
    count = min(rows, -(-count // least) * least)
    bounds = [rows * number // count for number in range(count + 1)]
    return [Strip(first, stop - first) for first, stop in itertools.pairwise(bounds)]


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
