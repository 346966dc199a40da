"""Passes over a strip of a map in one thread: convolution with what comes before and after it, ReLU, pooling.

All images of a call have one size; arrays are float32, C order, channels last.
"""

from __future__ import annotations

import itertools
import threading
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

    def of(self, maps: Array, stride: int = 1) -> Array:
        """Return the strip's rows of maps, (n, h, ...), whose rows are so many of the strip's."""
        return maps[:, self.first * TILE // stride : (self.first + self.rows) * TILE // stride]


class Maps(NamedTuple):
    """What a pass is given of some images, and where it writes.

    Attributes:
        sources: (n, h, w, c).
        outputs: As :meth:`Pass.shapes` says.
        sums: Layer -> (n, h', c), zero: gets the sums of the rows of what is computed of it, added up from left to right. The
            height is rounded up to a multiple of 4.
    """

    sources: Array
    outputs: Array
    sums: Mapping[str, Array]

    def of(self, images: slice) -> Maps:
        """Return those of some of the images."""
        sums = {layer: of_all[images] for layer, of_all in self.sums.items()}
        return Maps(self.sources[images], self.outputs[images], sums)

    def put(self, layer: str, image: int, first: int, sums: Array) -> None:
        """Put the sums of some rows of a layer, from the first on, where they belong, if anybody wants them."""
        if layer in self.sums:
            self.sums[layer][image, first : first + len(sums)] = sums


class Workspace(threading.local):
    """What a thread computes with: the kernels, and memory that it uses again: by name, as large as was ever asked for."""

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


@dataclass(frozen=True, slots=True)
class Convolution:
    """A 3 x 3 convolution with its bias, and the ReLU behind it."""

    # As the code reads it: transformed, (36, cout / block, cin, block); if it is direct (1, cout / block, 27, block).
    kernel: Array
    bias: Array  # (cout,)
    layers: tuple[str, ...]  # names of the convolution and, if it follows, of the ReLU

    @property
    def floor(self) -> float:
        """What values are at least."""
        return 0.0 if len(self.layers) > 1 else NO_FLOOR


class Pooling(NamedTuple):
    """2 x 2 pooling with stride 2: ``max`` or ``avg``, ``same`` or ``valid``, and the layer's name."""

    kind: str
    padding: str
    layer: str


@dataclass(frozen=True, slots=True)
class Pass:
    """Layers that are computed in one pass over a map, strip by strip, in this order; each may be missing.

    Attributes:
        direct: The convolution of an image's three channels: with another behind it, its output, which is larger than any other,
            never leaves the cache.
        winograd: A convolution by Winograd's algorithm.
        relu: Name of a ReLU by itself, where what is before it is stored too.
        pooling: What follows.
    """

    direct: Convolution | None = None
    winograd: Convolution | None = None
    relu: str = ""
    pooling: Pooling | None = None

    def shapes(self, height: int, width: int, channels: int) -> dict[str, tuple[int, int, int]]:
        """Return the layers that are computed and their (h, w, c), given that of the input; the output comes last."""
        found: dict[str, tuple[int, int, int]] = {}
        for convolution in filter(None, (self.direct, self.winograd)):
            channels = len(convolution.bias)
            found |= dict.fromkeys(convolution.layers, (height, width, channels))
        if self.relu:
            found[self.relu] = height, width, channels
        if self.pooling:
            sides = pooled_side(height, self.pooling.padding), pooled_side(width, self.pooling.padding)
            found[self.pooling.layer] = *sides, channels
        return found

    def output_shape(self, maps: Array) -> tuple[int, int, int]:
        """Return the (h, w, c) of what is computed of maps, (n, h, w, c)."""
        return [*self.shapes(*maps.shape[1:]).values()][-1]

    def strips(self, sides: Sequence[int], images: int = 1, least: int = 1) -> list[Strip]:
        """Cut maps of this height and width, so many computed together, into nearly equal strips that the cache takes.

        There is a multiple of ``least`` of them, if the maps have the rows.
        """
        height, width = sides
        tiles = SMALLEST_STRIP_TILES
        if self.winograd:
            tiles = max(tiles, STRIP_SIZE // (self.winograd.kernel.shape[2] + len(self.winograd.bias))) // images
        rows = -(-height // TILE)
        count = -(-rows // max(1, tiles // -(-width // TILE)))
        count = min(rows, -(-count // least) * least)
        bounds = [rows * number // count for number in range(count + 1)]
        return [Strip(first, stop - first) for first, stop in itertools.pairwise(bounds)]

    def run(self, workspace: Workspace, maps: Maps, strip: Strip) -> None:
        """Compute the rows of a strip, one of :meth:`strips`, of every image; the workspace is the thread's."""
        sources, targets = strip.of(maps.sources), strip.of(maps.outputs)
        last = self.winograd or self.direct
        if self.pooling:
            targets = sources
            if last or self.relu:
                targets = workspace.take("strip", *sources.shape[:3], len(last.bias) if last else sources.shape[3])
        if self.winograd:
            self._convolve(self.winograd, workspace, maps, targets, strip)
        elif self.direct:
            for image, target in enumerate(targets):
                _convolve_colours(self.direct, workspace, maps, image, target, strip, strip.first * TILE)
        elif self.relu:
            for image, (source, target) in enumerate(zip(sources, targets, strict=True)):
                maps.put(self.relu, image, strip.first * TILE, workspace.rectify(source, target)[1])
        if self.pooling:
            code, layer = workspace.code[f"pool_{self.pooling.kind}"], self.pooling.layer
            for image, (rows, target) in enumerate(zip(targets, strip.of(maps.outputs, POOL_STRIDE), strict=True)):
                code(rows.ctypes.data, *rows.shape, *target.shape[:2], target.ctypes.data)
                if layer in maps.sums:
                    maps.put(layer, image, strip.first * TILE // POOL_STRIDE, workspace.rectify(target, target, NO_FLOOR)[1])

    def _convolve(self, convolution: Convolution, workspace: Workspace, maps: Maps, targets: Array, strip: Strip) -> None:
        """Compute a strip of every image by Winograd's algorithm, the direct convolution before it included."""
        images, height, width, _ = maps.sources.shape
        channels, count, code = convolution.kernel.shape[2], len(convolution.bias), workspace.code
        sources = [source.ctypes.data for source in maps.sources]
        if self.direct:
            # The strip and a row on each side of it; the address is where the first row of the image would be.
            first, stop = max(strip.first * TILE - 1, 0), min((strip.first + strip.rows) * TILE + 1, height)
            before = workspace.take("before", images, stop - first, width, channels)
            for image, rows in enumerate(before):
                _convolve_colours(self.direct, workspace, maps, image, rows, strip, first)
            sources = [rows.ctypes.data - first * rows[0].nbytes for rows in before]
        columns = -(-width // TILE)
        tiles = strip.rows * columns
        # Planes a multiple of 4096 bytes apart would fall into the same few lines of the cache.
        data_plane, products_plane = (images * tiles * size + CACHE_LINE_BYTES // FLOAT_BYTES for size in (channels, count))
        data = workspace.take("data", PLANES, data_plane).ctypes.data
        products = workspace.take("products", PLANES, products_plane).ctypes.data
        scratch = workspace.take("tile", PLANES, max(channels, count)).ctypes.data
        for image, source in enumerate(sources):
            start = data + image * tiles * channels * FLOAT_BYTES
            code["transform_input"](source, height, width, channels, strip.first, strip.rows, columns, start, data_plane, scratch)
        kernel, bias = convolution.kernel.ctypes.data, convolution.bias.ctypes.data
        code[f"multiply_{channels}"](data, data_plane, kernel, products, products_plane, images * tiles, count)
        # Of the convolution and of the ReLU, if either is wanted.
        summed = (*convolution.layers, "")[:2] if maps.sums.keys() & convolution.layers else ()
        transform = code["transform_output_summed" if summed else "transform_output"]
        unused = workspace.take("unused", strip.rows * TILE, count)
        area = height, width, count, strip.first, strip.rows, columns
        for image, target in enumerate(targets):
            start = products + image * tiles * count * FLOAT_BYTES
            sums = [strip.of(maps.sums[layer])[image] if layer in maps.sums else unused for layer in summed]
            places = [rows.ctypes.data for rows in (target, *sums)]
            transform(start, products_plane, bias, convolution.floor, *area, places[0], scratch, *places[1:])


def _convolve_colours(
    convolution: Convolution, workspace: Workspace, maps: Maps, image: int, target: Array, strip: Strip, first: int
) -> None:
    """Compute rows of an image, from the first on, as many as the target has: a strip, and maybe a row on each side."""
    source, floor = maps.sources[image], convolution.floor
    height, width, _ = source.shape
    rows = len(target)
    padded = workspace.take("padded", rows + 2, width + 2, COLOURS)
    padded[:, 0] = padded[:, -1] = 0.0
    above, below = max(first - 1, 0), min(first + rows + 1, height)
    padded[: above - first + 1] = 0.0
    padded[below - first + 1 :] = 0.0
    padded[above - first + 1 : below - first + 1, 1:-1] = source[above:below]
    # What is added up before the ReLU is rectified in a step of its own.
    is_summed = any(layer in maps.sums for layer in convolution.layers)
    kernel, bias, least = convolution.kernel.ctypes.data, convolution.bias.ctypes.data, NO_FLOOR if is_summed else floor
    area = rows, width, len(convolution.bias)
    workspace.code["convolve_colours"](padded.ctypes.data, width + 2, kernel, bias, least, *area, target.ctypes.data)
    if is_summed:
        start = strip.first * TILE
        for layer, sums in zip(convolution.layers, workspace.rectify(target, target, floor), strict=False):
            maps.put(layer, image, start, sums[start - first : start - first + strip.rows * TILE])


def prepare_convolution(kernel: Array, bias: Array, processor: Processor, *layers: str) -> Convolution:
    """Prepare a convolution of a kernel (3, 3, cin, cout): direct of an image's three channels, else by Winograd's algorithm.

    The code of the processor will read it; ``layers`` are those of :class:`Convolution`.
    """
    channels, count = kernel.shape[2:]
    block = processor.lanes * processor.columns
    if channels == COLOURS:
        packed = _copy(_pack(kernel.reshape(1, KERNEL_SIDE**2 * COLOURS, count), block))
    else:
        packed = _empty(PLANES, count // block, channels, block)
        for first in range(0, channels, CHANNELS_AT_ONCE):
            part = slice(first, first + CHANNELS_AT_ONCE)
            packed[:, :, part] = _pack(_transform_kernel(kernel[:, :, part]), block)
    return Convolution(packed, _copy(bias), layers)


def _transform_kernel(kernel: Array) -> Array:
    """Return a kernel (3, 3, cin, cout) in the transformed space, (36, cin, cout), computed in float64 and rounded once."""
    _, matrix, _ = transform_matrices()
    flat = np.kron(matrix, matrix) @ kernel.reshape(KERNEL_SIDE**2, -1).astype(np.float64)
    return flat.astype(np.float32).reshape(PLANES, *kernel.shape[2:])


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
