"""The generated kernels: Winograd's convolution F(4x4, 3x3) in three steps, the direct convolution of three channels, pooling.

A map is cut into tiles of 4 x 4 outputs, for each of which 6 x 6 inputs are needed. Transformed tile and transformed kernel are
multiplied position by position: 36 products for 16 outputs instead of 144. The sums are those of the direct convolution, only
rounding differs: about 2e-6 a layer, relative norm, against float64. A *plane* is one of the 36 positions of the transformed
space: a matrix with a row a tile.

Arrays are float32, C order, channels last; the number of channels is a multiple of 64, but for the three of an image. Every value
is computed by the same operations in the same order wherever it lies, so neither the number of images, nor strips, nor threads
change a bit of it.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from .codegen import FLOAT, INTEGER, POINTER, Code, MachineCode, Processor, Value

# F(4 x 4, 3 x 3): outputs of a tile along each side, and the kernel's side.
TILE = 4
KERNEL_SIDE = 3
# Inputs, and positions of the transformed space, along each side of a tile.
SIDE = TILE + KERNEL_SIDE - 1
PLANES = SIDE**2

# Where the polynomials are evaluated; one more point lies at infinity. Two thirds of the error of the usual 0, 1, -1, 2, -2.
# Tiles of 6 x 6 have three times the error and were no faster.
# Source: Barabasz, Anderson, Soodhalter & Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for
# Deep Neural Networks", arXiv 1803.10986.
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)

NO_FLOOR = float("-inf")

# Channels of an image: too few for Winograd's algorithm to save anything.
COLOURS = 3
# Steps of a sum written out one after the other: fewer jumps. All numbers of channels are multiples of it.
UNROLLED = 2

Matrix = NDArray[np.float64]


def transform_matrices() -> tuple[Matrix, Matrix, Matrix]:
    """Return the matrices of ``output = A @ ((G @ kernel) * (B @ data))``, 4 outputs of a 3-tap correlation.

    Returns:
        A (4, 6), G (6, 3), B (6, 6).

    Source: Toom-Cook interpolation, section 3 of Barabasz et al.
    """
    output, kernel, data = np.zeros((TILE, SIDE)), np.zeros((SIDE, KERNEL_SIDE)), np.zeros((SIDE, SIDE))
    for row, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        distance = np.prod([point - other for other in others])
        # Moving a power of two from kernel to data rounds nothing and keeps transformed data near the size of the data.
        scale = 2.0 ** np.round(np.log2(np.abs(distance)))
        output[:, row] = point ** np.arange(TILE)
        kernel[row] = point ** np.arange(KERNEL_SIDE) * scale / distance
        data[row, : SIDE - 1] = np.poly(others)[::-1] / scale
    output[-1, -1] = kernel[-1, -1] = 1.0
    data[-1] = np.poly(POINTS)[::-1]
    return output, kernel, data


@cache
def compile_kernels(processor: Processor, channels: tuple[int, ...]) -> MachineCode:
    """Compile the kernels, once a process.

    Args:
        processor: Made for this one.
        channels: Numbers of input channels, for each of which there is a ``multiply_<channels>``.
    """
    module = ir.Module()
    _add_transform_input(module, processor)
    tile = _add_tile_output(module, processor)
    _add_transform_output(module, processor, tile, tile)
    _add_transform_output(module, processor, tile, _add_tile_output(module, processor, summed=True), summed=True)
    _add_convolve_colours(module, processor)
    _add_rectify(module, processor)
    _add_pool(module, processor, "max")
    _add_pool(module, processor, "avg")
    for inner in channels:
        _add_multiply(module, processor, inner)
    return MachineCode(module, processor)


def _weighted_sums(code: Code, matrix: Any, values: Sequence[Value]) -> list[Value]:
    """Return matrix @ values, its numbers written into the code."""
    results = []
    for weights in matrix:
        total: Any = None
        # Those of weight one first: they need no multiplication.
        terms = sorted(zip(weights.tolist(), values, strict=True), key=lambda term: abs(term[0]) != 1.0)
        for weight, value in terms:
            if weight == 0.0:
                continue
            if total is None:
                total = value if weight == 1.0 else value * code.constant(weight)
            elif abs(weight) == 1.0:
                total = total + value if weight > 0 else total - value
            else:
                total = code.multiply_add(value, code.constant(weight), total)
        results.append(total)
    return results


def _add_transform_input(module: Any, processor: Processor) -> None:
    """Transform tiles of 6 x 6 inputs, 4 apart, zero outside the image, into 36 planes.

    Arguments: image, height, width, channels; first row of tiles, rows of tiles, tiles a row; data, floats a plane; scratch
    (36, channels).
    """
    tile = _add_tile_input(module, processor)
    code = Code(module, "transform_input", [POINTER, *[INTEGER] * 6, POINTER, INTEGER, POINTER], processor.lanes)
    image, height, width, channels, first, tile_rows, tile_columns, data, plane, scratch = code.arguments
    line = width * channels
    with code.loop(0, tile_rows) as row, code.loop(0, tile_columns) as column:
        top, left = (first + row) * TILE - 1, column * TILE - 1
        output = data + (row * tile_columns + column) * channels
        is_inside = (top >= 0) & (left >= 0) & (top + SIDE <= height) & (left + SIDE <= width)
        with code.branches(is_inside) as (inside, across):
            with inside:
                code.call(tile, image + (top * line + left * channels), line, channels, output, plane)
            with across:
                with code.loop(0, SIDE) as down, code.loop(0, SIDE) as right:
                    y, x = top + down, left + right
                    target = scratch + (down * SIDE + right) * channels
                    with code.branches(y.is_in(height) & x.is_in(width)) as (copied, empty):
                        with copied, code.loop(0, channels, code.lanes) as channel:
                            code.store(code.load(image + (y * line + x * channels + channel)), target + channel)
                        with empty, code.loop(0, channels, code.lanes) as channel:
                            code.store(code.constant(0.0), target + channel)
                code.call(tile, scratch, channels * SIDE, channels, output, plane)
    code.end()


def _add_tile_input(module: Any, processor: Processor) -> Any:
    """Compute B @ pixels @ B^T for a vector of channels at a time.

    Arguments: 6 x 6 pixels, floats a line, channels; output, floats a plane.
    """
    code = Code(module, "tile_input", [POINTER, INTEGER, INTEGER, POINTER, INTEGER], processor.lanes, internal=True)
    source, line, channels, output, plane = code.arguments
    _, _, matrix = transform_matrices()
    with code.loop(0, channels, code.lanes) as channel:
        columns = []
        for right in range(SIDE):
            pixels = [code.load(source + channel + (line * down + channels * right)) for down in range(SIDE)]
            columns.append(_weighted_sums(code, matrix, pixels))
        for down in range(SIDE):
            for right, value in enumerate(_weighted_sums(code, matrix, [column[down] for column in columns])):
                code.store(value, output + (channel + plane * (down * SIDE + right)))
    return code.end()


def _add_transform_output(module: Any, processor: Processor, tile: Any, whole_tile: Any, *, summed: bool = False) -> None:
    """Transform 36 planes of products into tiles of 4 x 4 outputs, plus bias, at least floor; drop what is outside the image.

    Arguments: products, floats a plane, bias, floor; height, width, channels; first row of tiles, rows of tiles, tiles a row;
    output, from the first of these rows on; scratch (16, channels). If summed also sums before and after floor is applied,
    (4 tile rows, channels) each, to which every output is added, those of a row from left to right.
    """
    name = "transform_output_summed" if summed else "transform_output"
    arguments = [POINTER, INTEGER, POINTER, FLOAT, *[INTEGER] * 6, POINTER, POINTER, *[POINTER] * (2 if summed else 0)]
    code = Code(module, name, arguments, processor.lanes)
    products, plane, bias, floor, height, width, channels, first, tile_rows, tile_columns, output, *rest = code.arguments
    lowest, (scratch, *sums), line = code.broadcast(floor), rest, width * channels
    with code.loop(0, tile_rows) as row, code.loop(0, tile_columns) as column:
        source = products + (row * tile_columns + column) * channels
        top, left = row * TILE, column * TILE
        target = output + (top * line + left * channels)
        row_sums = [start + top * channels for start in sums]
        rows_left, columns_left = height - (first + row) * TILE, width - left
        with code.branches((rows_left >= TILE) & (columns_left >= TILE)) as (whole, across):
            with whole:
                code.call(whole_tile, source, plane, bias, floor, channels, target, line, *row_sums)
            with across:
                row_floats = channels * TILE
                code.call(tile, source, plane, bias, NO_FLOOR, channels, scratch, row_floats)
                lines, pixels = code.smaller(rows_left, TILE), code.smaller(columns_left, TILE)
                with code.loop(0, lines) as down, code.loop(0, pixels) as right, code.loop(0, channels, code.lanes) as channel:
                    offset = right * channels + channel
                    value = code.load(scratch + (down * row_floats + offset))
                    result = code.maximum(value, lowest)
                    code.store(result, target + (down * line + offset))
                    for start, addend in zip(row_sums, (value, result), strict=False):
                        place = start + (down * channels + channel)
                        code.store(code.load(place) + addend, place)
    code.end()


def _add_tile_output(module: Any, processor: Processor, *, summed: bool = False) -> Any:
    """Compute A @ products @ A^T + bias, at least floor, for a vector of channels at a time.

    Arguments: products, floats a plane, bias, floor, channels; 4 x 4 outputs, floats a line; if summed the sums of the four rows
    before and after floor is applied, (4, channels) each.
    """
    arguments = [POINTER, INTEGER, POINTER, FLOAT, INTEGER, POINTER, INTEGER, *[POINTER] * (2 if summed else 0)]
    code = Code(module, "tile_output_summed" if summed else "tile_output", arguments, processor.lanes, internal=True)
    source, plane, bias, floor, channels, output, line, *sums = code.arguments
    matrix, _, _ = transform_matrices()
    lowest = code.broadcast(floor)
    with code.loop(0, channels, code.lanes) as channel:
        columns = []
        for right in range(SIDE):
            values = [code.load(source + channel + plane * (down * SIDE + right)) for down in range(SIDE)]
            columns.append(_weighted_sums(code, matrix, values))
        added = code.load(bias + channel)
        for down in range(TILE):
            places = [start + (channel + channels * down) for start in sums]
            totals = [code.load(place) for place in places]
            for right, product in enumerate(_weighted_sums(code, matrix, [column[down] for column in columns])):
                value = product + added
                result = code.maximum(value, lowest)
                code.store(result, output + (channel + (line * down + channels * right)))
                totals = [total + one for total, one in zip(totals, (value, result), strict=False)]
            for total, place in zip(totals, places, strict=True):
                code.store(total, place)
    return code.end()


def _add_multiply(module: Any, processor: Processor, inner: int) -> None:
    """Multiply 36 times (rows, inner) by (inner, columns): ``multiply_<inner>``.

    A block of a few rows and columns is summed in registers from the first term to the last, always in this order.
    Arguments: data, floats a plane; kernel; products, floats a plane; rows (tiles), columns.
    """
    code = Code(module, f"multiply_{inner}", [POINTER, INTEGER, POINTER, POINTER, *[INTEGER] * 3], processor.lanes)
    # All sizes would be twice the code; instead a block of an odd number of rows begins one early.
    sizes = sorted({1, *range(2, processor.rows, 2), processor.rows})
    blocks = [(rows, _add_block_product(module, processor, inner, rows)) for rows in sizes]
    data, data_plane, kernel, products, products_plane, rows, columns = code.arguments
    (_, single), (most, largest) = blocks[0], blocks[-1]
    whole = rows // most * most
    rest = rows - whole
    with code.loop(0, PLANES) as plane:
        left = data + plane * data_plane
        plane_kernel = kernel + plane * (columns * inner)
        plane_products = products + plane * products_plane
        with code.loop(0, columns, processor.lanes * processor.columns) as column:
            right, output = plane_kernel + column * inner, plane_products + column

            def block(function: Any, row: Value) -> None:
                code.call(function, left + row * inner, right, output + row * columns, columns)

            with code.loop(0, whole, most) as row:
                block(largest, row)
            smaller = 0
            for size, function in blocks:
                # Of the rest as many rows as this block has, or fewer; of fewer than that in all, one by one.
                fits = (rest >= smaller + 1) & (rest <= size)
                with code.builder.if_then(fits.raw), code.branches(rows >= size) as (early, too_few):
                    with early:
                        block(function, rows - size)
                    with too_few, code.loop(0, rows) as row:
                        block(single, row)
                smaller = size
    code.end()


def _add_block_product(module: Any, processor: Processor, inner: int, rows: int) -> Any:
    """Multiply (rows, inner) by (inner, block); all sums stay in registers till the end.

    Arguments: data, kernel, output, floats an output row.
    """
    code = Code(module, f"block_{inner}_{rows}", [POINTER, POINTER, POINTER, INTEGER], processor.lanes, internal=True)
    data, kernel, output, stride = code.arguments
    columns = processor.columns

    def step(counter: Value, sums: list[Value]) -> list[Value]:
        right = kernel + counter * (columns * processor.lanes)
        return _add_products(code, columns, data + counter, right, sums, terms=UNROLLED, stride=inner)

    sums = code.accumulate(inner, UNROLLED, [code.constant(0.0)] * (rows * columns), step)
    for row in range(rows):
        for column in range(columns):
            code.store(sums[row * columns + column], output + stride * row + column * processor.lanes)
    return code.end()


def _add_products(
    code: Code, columns: int, left: Value, right: Value, sums: list[Value], *, terms: int, stride: int
) -> list[Value]:
    """Return sums + left @ right: left has rows so many floats apart, right (terms, block), a block has so many columns."""
    for term in range(terms):
        factors = [code.load(right + (term * columns + column) * code.lanes) for column in range(columns)]
        for row in range(len(sums) // columns):
            value = code.load_broadcast(left + (row * stride + term))
            for index, factor in enumerate(factors, start=row * columns):
                sums[index] = code.multiply_add(value, factor, sums[index])
    return sums


def _add_convolve_colours(module: Any, processor: Processor) -> None:
    """Convolve three channels directly.

    Arguments: padded image, its width; kernel, bias, floor; rows, columns, channels of the output; output.
    """
    many, one = (_add_colour_block(module, processor, pixels) for pixels in (processor.rows, 1))
    arguments = [POINTER, INTEGER, POINTER, POINTER, FLOAT, *[INTEGER] * 3, POINTER]
    code = Code(module, "convolve_colours", arguments, processor.lanes)
    image, image_width, kernel, bias, floor, rows, columns, channels, output = code.arguments
    line, last = image_width * COLOURS, columns - processor.rows
    with code.loop(0, rows) as row, code.loop(0, channels, processor.lanes * processor.columns) as channel:
        row_image, row_output = image + row * line, output + (row * (columns * channels) + channel)
        part = kernel + channel * (KERNEL_SIDE**2 * COLOURS)

        def block(function: Any, pixel: Value) -> None:
            target = row_output + pixel * channels
            code.call(function, row_image + pixel * COLOURS, line, part, bias + channel, floor, target, channels)

        with code.branches(last >= 0) as (wide, narrow):
            # The last block begins early, so that it ends with the row; what is computed twice is the same.
            with wide, code.loop(0, last + processor.rows, processor.rows) as pixel:
                block(many, code.smaller(pixel, last))
            with narrow, code.loop(0, columns) as pixel:
                block(one, pixel)
    code.end()


def _add_colour_block(module: Any, processor: Processor, pixels: int) -> Any:
    """Convolve some neighbouring pixels of three channels.

    Arguments: image, floats a line, kernel (27, block), bias, floor; output, floats an output pixel.
    """
    arguments = [POINTER, INTEGER, POINTER, POINTER, FLOAT, POINTER, INTEGER]
    code = Code(module, f"colour_block_{pixels}", arguments, processor.lanes, internal=True)
    image, line, kernel, bias, floor, output, stride = code.arguments
    columns, inner = processor.columns, KERNEL_SIDE * COLOURS

    def step(down: Value, sums: list[Value]) -> list[Value]:
        right = kernel + down * (inner * columns * processor.lanes)
        return _add_products(code, columns, image + down * line, right, sums, terms=inner, stride=COLOURS)

    sums = code.accumulate(KERNEL_SIDE, 1, [code.constant(0.0)] * (pixels * columns), step)
    lowest = code.broadcast(floor)
    for pixel in range(pixels):
        for column in range(columns):
            value = sums[pixel * columns + column] + code.load(bias + column * processor.lanes)
            code.store(code.maximum(value, lowest), output + stride * pixel + column * processor.lanes)
    return code.end()


def _add_rectify(module: Any, processor: Processor) -> None:
    """Write values, at least floor, to a map that may be the same, and add up its rows from left to right.

    Arguments: values, floor; rows, columns, channels; output; sums before and after floor is applied, (rows, channels) each.
    """
    code = Code(module, "rectify", [POINTER, FLOAT, *[INTEGER] * 3, *[POINTER] * 3], processor.lanes)
    values, floor, rows, columns, channels, output, *sums = code.arguments
    lowest = code.broadcast(floor)
    with code.loop(0, rows) as row, code.loop(0, channels, code.lanes) as channel:

        def step(column: Value, totals: list[Value]) -> list[Value]:
            place = row * (columns * channels) + channel + column * channels
            value = code.load(values + place)
            result = code.maximum(value, lowest)
            code.store(result, output + place)
            return [total + one for total, one in zip(totals, (value, result), strict=True)]

        for total, target in zip(code.accumulate(columns, 1, [code.constant(0.0)] * 2, step), sums, strict=True):
            code.store(total, target + (row * channels + channel))
    code.end()


def _add_pool(module: Any, processor: Processor, kind: str) -> None:
    """Pool 2 x 2 with stride 2; what lies outside the image counts for nothing.

    Arguments: image, height, width, channels; output rows, output columns, output.
    """
    code = Code(module, f"pool_{kind}", [POINTER, *[INTEGER] * 5, POINTER], processor.lanes)
    image, height, width, channels, rows, columns, output = code.arguments
    line = width * channels
    with code.loop(0, rows) as row, code.loop(0, columns) as column:
        top, left = row * 2, column * 2
        source = image + (top * line + left * channels)
        target = output + (row * columns + column) * channels
        # At an odd side the window's second line is its first once more: that changes no maximum and no mean.
        down, right = code.choose(top + 1 < height, line, 0), code.choose(left + 1 < width, channels, 0)
        with code.loop(0, channels, code.lanes) as channel:
            one, two, three, four = (code.load(source + channel + corner) for corner in (0, right, down, down + right))
            if kind == "max":
                result = code.maximum(code.maximum(one, two), code.maximum(three, four))
            else:
                result = ((one + two) + (three + four)) * code.constant(0.25)
            code.store(result, target + channel)
    code.end()
