"""Vector code of matrix products: those of Winograd's algorithm, and the direct convolution of three colours.

A block of a few rows and columns is summed in registers from the first term to the last, always in this order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..vector_code import FLOAT, INTEGER, POINTER, Code, Processor, integer, new_function
from .winograd import KERNEL_SIDE, SIDE

PLANES = SIDE**2
COLOURS = 3
# Steps of a sum written out one after the other: fewer jumps. All numbers of channels are multiples of it.
UNROLLED = 2

# data, floats a plane, kernel, products, floats a plane; rows (tiles), columns
MULTIPLY = [POINTER, INTEGER, POINTER, POINTER, INTEGER, INTEGER, INTEGER]
# padded image, its width, kernel, bias, floor; rows, columns, channels of the output; output
CONVOLVE_COLOURS = [POINTER, INTEGER, POINTER, POINTER, FLOAT, INTEGER, INTEGER, INTEGER, POINTER]


def pack_columns(matrices: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Gives matrices (n, inner, columns) as the products read them: (n, columns / block, inner, block)."""
    count, inner, columns = matrices.shape
    return matrices.reshape(count, inner, columns // block, block).transpose(0, 2, 1, 3)


def add_multiply(module: Any, processor: Processor, inner: int) -> None:
    """``multiply_<inner>``: 36 products, (rows, inner) by (inner, columns)."""
    function = new_function(module, f"multiply_{inner}", MULTIPLY)
    # All sizes would be twice the code; instead a block of an odd number of rows begins one early.
    sizes = sorted({1, *range(2, processor.rows, 2), processor.rows})
    blocks = [(rows, _add_block_product(module, processor, inner, rows)) for rows in sizes]
    data, data_plane, kernel, products, products_plane, rows, columns = function.args
    code = Code(function, processor.lanes)
    builder, width = code.builder, processor.lanes * processor.columns
    largest, most = blocks[-1][1], processor.rows
    whole = builder.mul(builder.sdiv(rows, integer(most)), integer(most))
    rest = builder.sub(rows, whole)
    with code.loop(0, PLANES) as plane:
        left = code.at(data, builder.mul(plane, data_plane))
        plane_kernel = code.at(kernel, builder.mul(plane, builder.mul(columns, integer(inner))))
        plane_products = code.at(products, builder.mul(plane, products_plane))
        with code.loop(0, columns, width) as column:
            right = code.at(plane_kernel, builder.mul(column, integer(inner)))
            output = code.at(plane_products, column)

            def block(function: Any, row: Any, right: Any = right, output: Any = output, left: Any = left) -> None:
                source, target = code.at(left, builder.mul(row, integer(inner))), code.at(output, builder.mul(row, columns))
                builder.call(function, [source, right, target, columns])

            with code.loop(0, whole, most) as row:
                block(largest, row)
            smaller = 0
            for size, function in blocks:
                # Of the rest as many rows as this block has, or fewer; of fewer than that in all, one by one.
                enough = builder.icmp_signed(">=", rows, integer(size))
                fits = code.every(
                    builder.icmp_signed(">", rest, integer(smaller)), builder.icmp_signed("<=", rest, integer(size))
                )
                with builder.if_then(fits), builder.if_else(enough) as (early, single):
                    with early:
                        block(function, builder.sub(rows, integer(size)))
                    with single, code.loop(0, rows) as row:
                        block(blocks[0][1], row)
                smaller = size
    builder.ret_void()


def _add_block_product(module: Any, processor: Processor, inner: int, rows: int) -> Any:
    """(data (rows, inner), kernel (inner, block), output, floats an output row): sums stay in registers till the end."""
    function = new_function(module, f"block_{inner}_{rows}", [POINTER, POINTER, POINTER, INTEGER])
    function.linkage = "internal"
    data, kernel, output, stride = function.args
    code = Code(function, processor.lanes)
    builder, columns = code.builder, processor.columns

    def step(counter: Any, sums: list[Any]) -> list[Any]:
        left = code.at(data, counter)
        right = code.at(kernel, builder.mul(counter, integer(columns * processor.lanes)))
        for further in range(UNROLLED):
            factors = [code.load(right, (further * columns + column) * processor.lanes) for column in range(columns)]
            for row in range(rows):
                value = code.load_everywhere(left, row * inner + further)
                for column in range(columns):
                    place = row * columns + column
                    sums[place] = code.multiply_add(value, factors[column], sums[place])
        return sums

    sums = code.accumulate(inner, UNROLLED, [code.constant(0.0)] * (rows * columns), step)
    for row in range(rows):
        line = code.at(output, builder.mul(stride, integer(row)))
        for column in range(columns):
            code.store(sums[row * columns + column], line, column * processor.lanes)
    builder.ret_void()
    return function


def add_convolve_colours(module: Any, processor: Processor) -> None:
    """A direct 3 x 3 convolution of 3 channels: too few for Winograd's algorithm to save anything."""
    many, one = (_add_colour_block(module, processor, pixels) for pixels in (processor.rows, 1))
    function = new_function(module, "convolve_colours", CONVOLVE_COLOURS)
    image, image_width, kernel, bias, floor, rows, columns, channels, output = function.args
    code = Code(function, processor.lanes)
    builder, width = code.builder, processor.lanes * processor.columns
    line = builder.mul(image_width, integer(COLOURS))
    last = builder.sub(columns, integer(processor.rows))
    with code.loop(0, rows) as row:
        row_image = code.at(image, builder.mul(row, line))
        row_output = code.at(output, builder.mul(row, builder.mul(columns, channels)))
        with code.loop(0, channels, width) as channel:
            part = code.at(kernel, builder.mul(channel, integer(KERNEL_SIDE**2 * COLOURS)))

            def block(
                function: Any,
                pixel: Any,
                part: Any = part,
                channel: Any = channel,
                row: tuple[Any, Any] = (row_image, row_output),
            ) -> None:
                source = code.at(row[0], builder.mul(pixel, integer(COLOURS)))
                target = code.at(row[1], builder.add(builder.mul(pixel, channels), channel))
                builder.call(function, [source, line, part, code.at(bias, channel), floor, target, channels])

            with builder.if_else(builder.icmp_signed(">=", last, integer(0))) as (wide, narrow):
                # The last block begins early, so that it ends with the row; what is computed twice is the same.
                with wide, code.loop(0, builder.add(last, integer(processor.rows)), processor.rows) as pixel:
                    block(many, code.smaller(pixel, last))
                with narrow, code.loop(0, columns) as pixel:
                    block(one, pixel)
    builder.ret_void()


def _add_colour_block(module: Any, processor: Processor, pixels: int) -> Any:
    """(image, floats a line, kernel (27, block), bias, floor, output, floats an output pixel) for some neighbouring pixels."""
    arguments = [POINTER, INTEGER, POINTER, POINTER, FLOAT, POINTER, INTEGER]
    function = new_function(module, f"colour_block_{pixels}", arguments)
    function.linkage = "internal"
    image, line, kernel, bias, floor, output, stride = function.args
    code = Code(function, processor.lanes)
    builder, columns = code.builder, processor.columns
    inner = KERNEL_SIDE * COLOURS

    def step(down: Any, sums: list[Any]) -> list[Any]:
        left = code.at(image, builder.mul(down, line))
        right = code.at(kernel, builder.mul(down, integer(inner * columns * processor.lanes)))
        for tap in range(inner):
            factors = [code.load(right, (tap * columns + column) * processor.lanes) for column in range(columns)]
            for pixel in range(pixels):
                value = code.load_everywhere(left, pixel * COLOURS + tap)
                for column in range(columns):
                    place = pixel * columns + column
                    sums[place] = code.multiply_add(value, factors[column], sums[place])
        return sums

    sums = code.accumulate(KERNEL_SIDE, 1, [code.constant(0.0)] * (pixels * columns), step)
    lowest = code.everywhere(floor)
    for pixel in range(pixels):
        target = code.at(output, builder.mul(stride, integer(pixel)))
        for column in range(columns):
            value = builder.fadd(sums[pixel * columns + column], code.load(bias, column * processor.lanes))
            code.store(code.largest(value, lowest), target, column * processor.lanes)
    builder.ret_void()
    return function
