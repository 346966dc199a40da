"""Vector code of Winograd's algorithm around its products: tiles of pixels into 36 planes, and planes into tiles of outputs.

A *plane* is one of the 36 positions of the transformed space: a matrix with a row a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..vector_code import FLOAT, INTEGER, POINTER, Code, Processor, integer, new_function
from .winograd import SIDE, TILE, transform_matrices

# image, height, width, channels; first row of tiles, rows of tiles, tiles a row; data, floats a plane; scratch (36, channels)
TRANSFORM_INPUT = [POINTER, *[INTEGER] * 3, *[INTEGER] * 3, POINTER, INTEGER, POINTER]
# products, floats a plane, bias, floor; height, width, channels; first row of tiles, rows of tiles, tiles a row;
# output, from the first of these rows on; scratch (16, channels)
TRANSFORM_OUTPUT = [POINTER, INTEGER, POINTER, FLOAT, *[INTEGER] * 3, *[INTEGER] * 3, POINTER, POINTER]


def _weighted_sums(code: Code, matrix: Any, values: Sequence[Any]) -> list[Any]:
    """Gives matrix @ values, its numbers written into the code."""
    results = []
    for weights in matrix:
        total = None
        # Those of weight one first: they need no multiplication.
        terms = sorted(zip(weights, values, strict=True), key=lambda term: abs(term[0]) != 1.0)
        for weight, value in terms:
            if weight == 0.0:
                continue
            if total is None:
                total = value if weight == 1.0 else code.builder.fmul(value, code.constant(float(weight)))
            elif abs(weight) == 1.0:
                total = code.builder.fadd(total, value) if weight > 0 else code.builder.fsub(total, value)
            else:
                total = code.multiply_add(value, code.constant(float(weight)), total)
        results.append(total)
    return results


def add_transform_input(module: Any, processor: Processor) -> None:
    """Tiles of 6 x 6 input pixels, 4 apart, zero outside the image, into 36 planes."""
    tile = _add_tile_input(module, processor)
    function = new_function(module, "transform_input", TRANSFORM_INPUT)
    image, height, width, channels, first, tile_rows, tile_columns, data, plane, scratch = function.args
    code = Code(function, processor.lanes)
    builder = code.builder
    line = builder.mul(width, channels)
    with code.loop(0, tile_rows) as row, code.loop(0, tile_columns) as column:
        top = builder.sub(builder.mul(builder.add(first, row), integer(TILE)), integer(1))
        left = builder.sub(builder.mul(column, integer(TILE)), integer(1))
        source = code.at(image, builder.add(builder.mul(top, line), builder.mul(left, channels)))
        output = code.at(data, builder.mul(builder.add(builder.mul(row, tile_columns), column), channels))
        inside = code.every(
            builder.icmp_signed(">=", top, integer(0)),
            builder.icmp_signed(">=", left, integer(0)),
            builder.icmp_signed("<=", builder.add(top, integer(SIDE)), height),
            builder.icmp_signed("<=", builder.add(left, integer(SIDE)), width),
        )
        with builder.if_else(inside) as (within, across):
            with within:
                builder.call(tile, [source, line, channels, output, plane])
            with across:
                with code.loop(0, SIDE) as down, code.loop(0, SIDE) as right:
                    y, x = builder.add(top, down), builder.add(left, right)
                    there = code.every(
                        builder.icmp_unsigned("<", y, height),  # below zero is large
                        builder.icmp_unsigned("<", x, width),
                    )
                    pixel = code.at(image, builder.add(builder.mul(y, line), builder.mul(x, channels)))
                    target = code.at(scratch, builder.mul(builder.add(builder.mul(down, integer(SIDE)), right), channels))
                    with builder.if_else(there) as (copied, empty):
                        with copied, code.loop(0, channels, code.lanes) as channel:
                            code.store(code.load(pixel, channel), target, channel)
                        with empty, code.loop(0, channels, code.lanes) as channel:
                            code.store(code.constant(0.0), target, channel)
                builder.call(tile, [scratch, builder.mul(channels, integer(SIDE)), channels, output, plane])
    builder.ret_void()


def _add_tile_input(module: Any, processor: Processor) -> Any:
    """(6 x 6 pixels, floats a line, channels, output, floats a plane): B @ pixels @ B^T, for a vector of channels at a time."""
    function = new_function(module, "tile_input", [POINTER, INTEGER, INTEGER, POINTER, INTEGER])
    function.linkage = "internal"
    source, line, channels, output, plane = function.args
    code = Code(function, processor.lanes)
    builder = code.builder
    _, _, matrix = transform_matrices()
    with code.loop(0, channels, code.lanes) as channel:
        start = code.at(source, channel)
        columns = []
        for right in range(SIDE):
            pixels = [
                code.load(start, builder.add(builder.mul(line, integer(down)), builder.mul(channels, integer(right))))
                for down in range(SIDE)
            ]
            columns.append(_weighted_sums(code, matrix, pixels))
        for down in range(SIDE):
            for right, value in enumerate(_weighted_sums(code, matrix, [column[down] for column in columns])):
                code.store(value, output, builder.add(channel, builder.mul(plane, integer(down * SIDE + right))))
    builder.ret_void()
    return function


def add_transform_output(module: Any, processor: Processor) -> None:
    """36 planes of products into tiles of 4 x 4 outputs, plus bias, at least floor; what lies outside the image is dropped."""
    tile = _add_tile_output(module, processor)
    function = new_function(module, "transform_output", TRANSFORM_OUTPUT)
    products, plane, bias, floor, height, width, channels, first, tile_rows, tile_columns, output, scratch = function.args
    code = Code(function, processor.lanes)
    builder = code.builder
    line = builder.mul(width, channels)
    with code.loop(0, tile_rows) as row, code.loop(0, tile_columns) as column:
        source = code.at(products, builder.mul(builder.add(builder.mul(row, tile_columns), column), channels))
        top, left = builder.mul(row, integer(TILE)), builder.mul(column, integer(TILE))
        target = code.at(output, builder.add(builder.mul(top, line), builder.mul(left, channels)))
        rows_left = builder.sub(height, builder.mul(builder.add(first, row), integer(TILE)))
        columns_left = builder.sub(width, left)
        whole = code.every(
            builder.icmp_signed(">=", rows_left, integer(TILE)), builder.icmp_signed(">=", columns_left, integer(TILE))
        )
        with builder.if_else(whole) as (within, across):
            with within:
                builder.call(tile, [source, plane, bias, floor, channels, target, line])
            with across:
                row_floats = builder.mul(channels, integer(TILE))
                builder.call(tile, [source, plane, bias, floor, channels, scratch, row_floats])
                stop_down, stop_right = code.smaller(rows_left, integer(TILE)), code.smaller(columns_left, integer(TILE))
                with code.loop(0, stop_down) as down, code.loop(0, builder.mul(stop_right, channels), code.lanes) as place:
                    value = code.load(scratch, builder.add(builder.mul(down, row_floats), place))
                    code.store(value, target, builder.add(builder.mul(down, line), place))
    builder.ret_void()


def _add_tile_output(module: Any, processor: Processor) -> Any:
    """(products, floats a plane, bias, floor, channels, 4 x 4 outputs, floats a line): A @ products @ A^T + bias."""
    arguments = [POINTER, INTEGER, POINTER, FLOAT, INTEGER, POINTER, INTEGER]
    function = new_function(module, "tile_output", arguments)
    function.linkage = "internal"
    source, plane, bias, floor, channels, output, line = function.args
    code = Code(function, processor.lanes)
    builder = code.builder
    matrix, _, _ = transform_matrices()
    lowest = code.everywhere(floor)
    with code.loop(0, channels, code.lanes) as channel:
        start = code.at(source, channel)
        columns = []
        for right in range(SIDE):
            values = [code.load(start, builder.mul(plane, integer(down * SIDE + right))) for down in range(SIDE)]
            columns.append(_weighted_sums(code, matrix, values))
        added = code.load(bias, channel)
        for down in range(TILE):
            for right, value in enumerate(_weighted_sums(code, matrix, [column[down] for column in columns])):
                result = code.largest(builder.fadd(value, added), lowest)
                place = builder.add(builder.mul(line, integer(down)), builder.mul(channels, integer(right)))
                code.store(result, output, builder.add(channel, place))
    builder.ret_void()
    return function
