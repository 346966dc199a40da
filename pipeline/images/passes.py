"""Vector code of resampling: the two passes, along the columns and along the rows of an image.

Each output is a sum over a window of neighbours, from the first to the last, cut off at 0 and 255 as each of Pillow's passes is;
then something is taken off it, the mean colour after the last pass and nothing after the first.

Source: Pillow, src/libImaging/Resample.c.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, Code, MachineCode, Processor, integer, new_function

COLOURS = 3
# A pixel is moved as a vector of 4; what is beyond the third colour is written over by the next pixel, or padding.
PIXEL_LANES = 4
PADDING = PIXEL_LANES - COLOURS

LARGEST_LEVEL = 255.0

# Tables: the first neighbour of each output (int32), neighbours of each, their weights (outputs, neighbours) float32.
TABLE = [POINTER, INTEGER, POINTER]
# image, rows, floats a row; table, outputs a row; (outputs x 3) to take off, output, line (outputs x 3 + 1) of scratch
ALONG_COLUMNS = [POINTER, INTEGER, INTEGER, *TABLE, INTEGER, POINTER, POINTER, POINTER]
# image, floats a row; table, output rows; floats of an output row, as many to take off, output, floats from one row to the next
ALONG_ROWS = [POINTER, INTEGER, *TABLE, INTEGER, INTEGER, POINTER, POINTER, INTEGER]


def compile_passes(processor: Processor) -> MachineCode:
    """Makes ``along_columns`` and ``along_rows``; images are float32, their rows begin where they say, colours last."""
    module = ir.Module()
    _add_along_columns(module, processor)
    _add_along_rows(module, processor)
    return MachineCode(module, processor, {"along_columns": ALONG_COLUMNS, "along_rows": ALONG_ROWS})


def _add_along_columns(module: Any, processor: Processor) -> None:
    function = new_function(module, "along_columns", ALONG_COLUMNS)
    image, rows, stride, starts, window, weights, outputs, off, output, line = function.args
    code = Code(function, processor.lanes)
    builder, pixels = code.builder, code.of_lanes(PIXEL_LANES)
    floats = builder.mul(outputs, integer(COLOURS))
    with code.loop(0, rows) as row:
        source = code.at(image, builder.mul(row, stride))
        with code.loop(0, outputs) as place:
            start = code.at(source, builder.mul(code.load_integer(starts, place), integer(COLOURS)))
            factors = code.at(weights, builder.mul(place, window))

            def step(tap: Any, sums: list[Any], start: Any = start, factors: Any = factors) -> list[Any]:
                value = pixels.load(start, builder.mul(tap, integer(COLOURS)))
                return [pixels.multiply_add(pixels.load_everywhere(factors, tap), value, sums[0])]

            (total,) = pixels.accumulate(window, 1, [pixels.constant(0.0)], step)
            pixels.store(total, line, builder.mul(place, integer(COLOURS)))
        target = code.at(output, builder.mul(row, floats))

        def finish(part: Code, place: Any, target: Any = target) -> None:
            part.store(_finished(part, part.load(line, place), part.load(off, place)), target, place)

        code.every_float(floats, finish)
    builder.ret_void()


def _add_along_rows(module: Any, processor: Processor) -> None:
    function = new_function(module, "along_rows", ALONG_ROWS)
    image, stride, starts, window, weights, rows, floats, off, output, output_stride = function.args
    code = Code(function, processor.lanes)
    builder = code.builder
    with code.loop(0, rows) as row:
        source = code.at(image, builder.mul(code.load_integer(starts, row), stride))
        factors = code.at(weights, builder.mul(row, window))
        target = code.at(output, builder.mul(row, output_stride))

        def finish(part: Code, place: Any, source: Any = source, factors: Any = factors, target: Any = target) -> None:
            def step(tap: Any, sums: list[Any]) -> list[Any]:
                value = part.load(code.at(source, builder.mul(tap, stride)), place)
                return [part.multiply_add(part.load_everywhere(factors, tap), value, sums[0])]

            (total,) = part.accumulate(window, 1, [part.constant(0.0)], step)
            part.store(_finished(part, total, part.load(off, place)), target, place)

        code.every_float(floats, finish)
    builder.ret_void()


def _finished(code: Code, total: Any, off: Any) -> Any:
    level = code.smallest(code.largest(total, code.constant(0.0)), code.constant(LARGEST_LEVEL))
    return code.builder.fsub(level, off)
