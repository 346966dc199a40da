"""Vector code of resampling: the two passes, along the columns and along the rows of an image.

Each output is a sum over a window of neighbours, from the first to the last, cut off at 0 and 255 as each of Pillow's passes is;
then something is taken off it, the mean colour after the last pass and nothing after the first.

Source: Pillow, src/libImaging/Resample.c.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from ..vector_code import INTEGER, POINTER, Code, MachineCode, Processor, compiled_once, integer, new_function, this_processor
from .tables import AxisTable

COLOURS = 3
# A pixel is moved as a vector of 4; what is beyond the third colour is written over by the next pixel, or padding.
PIXEL_LANES = 4
PADDING = PIXEL_LANES - COLOURS

# Rows that a weight along the columns is loaded for at once: sums that do not wait for each other.
ROWS_TOGETHER = 4

# Rows between the two passes at a time: those of a photograph stay in the cache.
STRIP_ROWS = 16

LARGEST_LEVEL = 255.0

# Tables: the first neighbour of each output (int32), neighbours of each, their weights (outputs, neighbours) float32.
TABLE = [POINTER, INTEGER, POINTER]
# image, rows, floats a row; table, outputs a row; (outputs x 3) to take off, output, scratch (rows together, outputs x 3 + 1)
ALONG_COLUMNS = [POINTER, INTEGER, INTEGER, *TABLE, INTEGER, POINTER, POINTER, POINTER]
# image, values a row; table, output rows; values of an output row, as many to take off, output, values from one row to the next
ALONG_ROWS = [POINTER, INTEGER, *TABLE, INTEGER, INTEGER, POINTER, POINTER, INTEGER]
# image, values a row; table of the rows, output rows; table of the columns, outputs a row; (values) of zeros, (outputs x 3) to
# take off, output; scratch: (strip rows, values + 1), (rows together, outputs x 3 + 1)
ALONG_BOTH = [POINTER, INTEGER, *TABLE, INTEGER, *TABLE, INTEGER, POINTER, POINTER, POINTER, POINTER, POINTER]
# What images are made of: before and after a pass along the rows.
FLOATS, BYTES = "floats", "bytes"
ROWS = ((BYTES, BYTES), (BYTES, FLOATS), (FLOATS, FLOATS))


@compiled_once
def compiled_passes() -> MachineCode:
    """Gives ``along_columns``, of floats, ``along_rows_<before>_<after>`` and ``along_both``, of bytes, the rows first.

    A byte is rounded and has nothing taken off it.
    """
    processor, module = this_processor(), ir.Module()
    functions = {"along_columns": ALONG_COLUMNS, "along_both": ALONG_BOTH}
    _add_along_columns(module, processor)
    for before, after in ROWS:
        functions[_add_along_rows(module, processor, before, after)] = ALONG_ROWS
    _add_along_both(module, processor)
    return MachineCode(module, processor, functions)


def _add_along_columns(module: Any, processor: Processor) -> None:
    function = new_function(module, "along_columns", ALONG_COLUMNS)
    image, rows, stride, starts, window, weights, outputs, off, output, lines = function.args
    code = Code(function, processor.lanes)
    builder, pixels = code.builder, code.of_lanes(PIXEL_LANES)
    floats = builder.mul(outputs, integer(COLOURS))
    line_floats = builder.add(floats, integer(PADDING))

    def rows_together(first: Any, count: int) -> None:
        numbers = [builder.add(first, integer(row)) for row in range(count)]
        sources = [code.at(image, builder.mul(number, stride)) for number in numbers]
        scratch = [code.at(lines, builder.mul(line_floats, integer(row))) for row in range(count)]
        with code.loop(0, outputs) as place:
            start = builder.mul(code.load_integer(starts, place), integer(COLOURS))
            factors = code.at(weights, builder.mul(place, window))

            def step(tap: Any, sums: list[Any]) -> list[Any]:
                offset, factor = builder.add(start, builder.mul(tap, integer(COLOURS))), pixels.load_everywhere(factors, tap)
                return [
                    pixels.multiply_add(factor, pixels.load(source, offset), total)
                    for source, total in zip(sources, sums, strict=True)
                ]

            totals = pixels.accumulate(window, 1, [pixels.constant(0.0)] * count, step)
            for total, line in zip(totals, scratch, strict=True):
                pixels.store(total, line, builder.mul(place, integer(COLOURS)))
        for number, line in zip(numbers, scratch, strict=True):
            target = code.at(output, builder.mul(number, floats))

            def finish(part: Code, place: Any, target: Any = target, line: Any = line) -> None:
                part.store(_finished(part, part.load(line, place), part.load(off, place)), target, place)

            code.every_float(floats, finish)

    whole = builder.sub(rows, builder.srem(rows, integer(ROWS_TOGETHER)))
    with code.loop(0, whole, ROWS_TOGETHER) as row:
        rows_together(row, ROWS_TOGETHER)
    with code.loop(whole, rows) as row:
        rows_together(row, 1)
    builder.ret_void()


def _add_along_rows(module: Any, processor: Processor, before: str, after: str) -> str:
    name = f"along_rows_{before}_{after}"
    function = new_function(module, name, ALONG_ROWS)
    image, stride, starts, window, weights, rows, values, off, output, output_stride = function.args
    code = Code(function, processor.lanes)
    builder = code.builder
    with code.loop(0, rows) as row:
        source = builder.mul(code.load_integer(starts, row), stride)
        factors = code.at(weights, builder.mul(row, window))
        target = builder.mul(row, output_stride)

        def finish(part: Code, place: Any, source: Any = source, factors: Any = factors, target: Any = target) -> None:
            def step(tap: Any, sums: list[Any]) -> list[Any]:
                offset = builder.add(builder.add(source, builder.mul(tap, stride)), place)
                value = part.load(image, offset) if before == FLOATS else part.load_bytes(image, offset)
                return [part.multiply_add(part.load_everywhere(factors, tap), value, sums[0])]

            (total,) = part.accumulate(window, 1, [part.constant(0.0)], step)
            if after == FLOATS:
                part.store(_finished(part, total, part.load(off, place)), output, builder.add(target, place))
            else:
                part.store_bytes(_finished(part, total, part.constant(0.0)), output, builder.add(target, place))

        code.every_float(values, finish)
    builder.ret_void()
    return name


def _add_along_both(module: Any, processor: Processor) -> None:
    function = new_function(module, "along_both", ALONG_BOTH)
    image, values, row_starts, row_window, row_weights, rows, *of_columns, outputs, nothing, off, output, strip, lines = (
        function.args
    )
    along_rows, along_columns = (module.globals[name] for name in (f"along_rows_{BYTES}_{FLOATS}", "along_columns"))
    code = Code(function, processor.lanes)
    builder = code.builder
    strip_values = builder.add(values, integer(PADDING))
    with code.loop(0, rows, STRIP_ROWS) as first:
        count = code.smaller(integer(STRIP_ROWS), builder.sub(rows, first))
        # A start has as many bytes as a float.
        table = code.at(row_starts, first), row_window, code.at(row_weights, builder.mul(first, row_window))
        builder.call(along_rows, [image, values, *table, count, values, nothing, strip, strip_values])
        target = code.at(output, builder.mul(first, builder.mul(outputs, integer(COLOURS))))
        builder.call(along_columns, [strip, count, strip_values, *of_columns, outputs, off, target, lines])
    builder.ret_void()


def _finished(code: Code, total: Any, off: Any) -> Any:
    level = code.smallest(code.largest(total, code.constant(0.0)), code.constant(LARGEST_LEVEL))
    return code.builder.fsub(level, off)


def pass_along_columns(
    image: NDArray[np.float32], table: AxisTable, off: NDArray[np.float32], output: NDArray[np.float32]
) -> None:
    """Resamples every row of an image.

    Args:
        image: (h, w x 3 + :data:`PADDING`), colours last.
        table: Of the columns, each output with a window of its own.
        off: (W x 3) to take off.
        output: (h, W, 3) or (h, W x 3), written.
    """
    outputs = len(table.starts)
    lines = np.empty((ROWS_TOGETHER, outputs * COLOURS + PADDING), np.float32)
    compiled_passes()["along_columns"](
        *(image.ctypes.data, *image.shape),
        *(table.starts.ctypes.data, table.weights.shape[2], table.weights.ctypes.data, outputs),
        *(off.ctypes.data, output.ctypes.data, lines.ctypes.data),
    )


def pass_along_rows(
    image: NDArray[np.floating | np.uint8],
    table: AxisTable,
    off: NDArray[np.float32] | None,
    output: NDArray[np.floating | np.uint8],
    values: int,
) -> None:
    """Resamples every column of an image.

    Args:
        image: (h, m) float32 or uint8.
        table: Of the rows, each output with a window of its own.
        off: (values,) to take off; None for bytes.
        output: (H, M) float32 or uint8, written.
        values: Of each row, not above m and M.
    """
    before, after = (BYTES if part.dtype == np.uint8 else FLOATS for part in (image, output))
    compiled_passes()[f"along_rows_{before}_{after}"](
        *(image.ctypes.data, image.shape[1]),
        *(table.starts.ctypes.data, table.weights.shape[2], table.weights.ctypes.data, len(table.starts)),
        *(values, 0 if off is None else off.ctypes.data, output.ctypes.data, output.shape[1]),
    )


def pass_along_both(
    image: NDArray[np.uint8], rows: AxisTable, columns: AxisTable, off: NDArray[np.float32], output: NDArray[np.float32]
) -> None:
    """Resamples every column of an image, then every row; the same sums as by the two passes, a strip at a time.

    Args:
        image: (h, w x 3).
        rows: Table of the rows.
        columns: Of the columns.
        off: (W x 3) to take off.
        output: (H, W, 3), written.
    """
    values, outputs = image.shape[1], len(columns.starts)
    # What is past the last value of a row is multiplied by nothing, but must be a number.
    strip = np.zeros((STRIP_ROWS, values + PADDING), np.float32)
    nothing = np.zeros(values, np.float32)
    lines = np.empty((ROWS_TOGETHER, outputs * COLOURS + PADDING), np.float32)
    compiled_passes()["along_both"](
        *(image.ctypes.data, values),
        *(rows.starts.ctypes.data, rows.weights.shape[2], rows.weights.ctypes.data, len(rows.starts)),
        *(columns.starts.ctypes.data, columns.weights.shape[2], columns.weights.ctypes.data, outputs),
        *(nothing.ctypes.data, off.ctypes.data, output.ctypes.data, strip.ctypes.data, lines.ctypes.data),
    )
