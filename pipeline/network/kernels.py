"""What a VGG network computes on a CPU, as vector code: Winograd convolutions in three steps, conv1_1, pooling.

A room above :mod:`~pipeline.network.transforms` and :mod:`~pipeline.network.products`. Arrays are float32, C order, channels
last; the number of channels is a multiple of 64, but for the three of an image. Every value is computed by the same operations in
the same order wherever it lies, so neither the number of images, nor strips, nor threads change a bit of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, Code, MachineCode, Processor, integer, new_function
from .products import CONVOLVE_COLOURS, MULTIPLY, add_convolve_colours, add_multiply
from .transforms import TRANSFORM_INPUT, TRANSFORM_OUTPUT, add_transform_input, add_transform_output

# image, height, width, channels; output rows, output columns, output
POOL = [POINTER, *[INTEGER] * 3, INTEGER, INTEGER, POINTER]


def compile_kernels(processor: Processor, inner: Sequence[int]) -> MachineCode:
    """Makes the kernels.

    Args:
        processor: Made for this one.
        inner: Numbers of input channels, for each of which there is a ``multiply_<channels>``.
    """
    module = ir.Module()
    signatures = {"transform_input": TRANSFORM_INPUT, "transform_output": TRANSFORM_OUTPUT, "convolve_colours": CONVOLVE_COLOURS}
    add_transform_input(module, processor)
    add_transform_output(module, processor)
    add_convolve_colours(module, processor)
    for kind in ("max", "avg"):
        _add_pool(module, processor, kind)
        signatures[f"pool_{kind}"] = POOL
    for channels in inner:
        add_multiply(module, processor, channels)
        signatures[f"multiply_{channels}"] = MULTIPLY
    return MachineCode(module, processor, signatures)


def _add_pool(module: Any, processor: Processor, kind: str) -> None:
    """Pools 2 x 2 with stride 2; what lies outside the image counts for nothing."""
    function = new_function(module, f"pool_{kind}", POOL)
    image, height, width, channels, rows, columns, output = function.args
    code = Code(function, processor.lanes)
    builder = code.builder
    line = builder.mul(width, channels)
    with code.loop(0, rows) as row, code.loop(0, columns) as column:
        top, left = builder.mul(row, integer(2)), builder.mul(column, integer(2))
        source = code.at(image, builder.add(builder.mul(top, line), builder.mul(left, channels)))
        target = code.at(output, builder.mul(builder.add(builder.mul(row, columns), column), channels))
        # At an odd side the window's second line is its first once more: that changes no maximum and no mean.
        down = builder.select(builder.icmp_signed("<", builder.add(top, integer(1)), height), line, integer(0))
        right = builder.select(builder.icmp_signed("<", builder.add(left, integer(1)), width), channels, integer(0))
        with code.loop(0, channels, code.lanes) as channel:
            corners = [integer(0), right, down, builder.add(down, right)]
            values = [code.load(source, builder.add(channel, corner)) for corner in corners]
            if kind == "max":
                result = code.largest(code.largest(values[0], values[1]), code.largest(values[2], values[3]))
            else:
                pairs = builder.fadd(values[0], values[1]), builder.fadd(values[2], values[3])
                result = builder.fmul(builder.fadd(*pairs), code.constant(0.25))
            code.store(result, target, channel)
    builder.ret_void()
