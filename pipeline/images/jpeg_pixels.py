"""What comes after entropy decoding in a JPEG: coefficients in, rows of RGB out, one row of MCUs at a time.

Samples are kept in a window of little more than one row of MCUs, so that they stay in the cache. Where chroma has half the rows,
the last row of pixels waits for the chroma below it, which the next row of MCUs brings.

Source: libjpeg-turbo, jdmainct.c, jdsample.c for the edges: the first and last row and column of samples are repeated.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, Code, Processor, integer, new_function
from .jpeg_colour import add_rows
from .jpeg_geometry import BOTH, GREY, MARGIN_BYTES, MARGIN_ROWS, PAIR_BYTES, SAME, TWICE, WAYS, WIDE, Geometry
from .jpeg_idct import add_full_blocks
from .jpeg_lanes import QUAD, WORD, Words, copy_bytes
from .jpeg_planes import add_low_blocks

# coefficients of a row of MCUs, the furthest of each block, geometry, window, output, number of the row of MCUs
PIXELS = [POINTER, POINTER, POINTER, POINTER, POINTER, INTEGER]

# Rows of RGB where each depends on one row of chroma.
_ROWS_OF = {GREY: "jpeg_grey", SAME: "jpeg_same", TWICE: "jpeg_twice", WIDE: "jpeg_wide"}


def add_pixels(module: Any, processor: Processor, is_reduced: bool) -> str:
    """Adds a function that turns a row of MCUs to pixels, to be called for each in turn; gives its name.

    It writes rows of the image as soon as all that they depend on is there; with the last row of MCUs all that are left. It
    reads ``coefficients`` numbers, and ``blocks`` + :data:`SPARE_BLOCKS` bytes that tell how far each block goes (0: to its
    first coefficient), and writes nowhere but into the window and the image, whatever the coefficients are.

    Coefficients are dequantised, int16; first luma, a row of blocks after the other, then the two kinds of chroma. Of blocks
    that become all their samples, each lies row by row; of others each coefficient lies in a plane of its own, and one plane
    is not looked at.

    Args:
        module: Added to.
        processor: For which.
        is_reduced: Whether blocks may become fewer than all samples.
    """
    blocks = module.globals[(add_low_blocks if is_reduced else add_full_blocks)(module, processor)]
    add_rows(module, processor)
    _add_weave(module, processor)
    function = new_function(module, "jpeg_pixels", PIXELS)
    _Writer(function, processor, blocks).write()
    return "jpeg_pixels"


def _add_weave(module: Any, processor: Processor) -> None:
    """Adds ``jpeg_weave``: two planes, bytes of a row, from one row to the next; where to, from one row to the next; rows."""
    function = new_function(module, "jpeg_weave", [POINTER, POINTER, INTEGER, POINTER, INTEGER, INTEGER])
    blue, red, stride, woven, woven_stride, rows = function.args
    code = Code(function, 1)
    words, builder = Words(code, processor), code.builder
    with code.loop(0, rows) as row:
        start = builder.mul(row, stride)
        target = words.at(woven, builder.mul(row, woven_stride))
        with code.loop(0, stride, words.words) as place:
            pair = [words.load_widened(plane, builder.add(start, place)) for plane in (blue, red)]
            both = builder.or_(pair[0], builder.shl(pair[1], words.constant(WORD, 8)))
            words.store(both, target, builder.mul(place, integer(PAIR_BYTES)))
    builder.ret_void()


class _Writer:
    """Writes the function of :func:`add_pixels`."""

    def __init__(self, function: Any, processor: Processor, blocks: Any) -> None:
        self._code = Code(function, 1)
        self._builder = self._code.builder
        self._words = Words(self._code, processor)
        self._module, self._blocks = function.module, blocks
        self._coefficients, self._furthest, geometry, self._window, self._output, self._number = function.args
        fields = [self._words.load(geometry, 8 * place, QUAD) for place in range(len(Geometry._fields))]
        self._is = Geometry(*fields)
        self._rows = self._builder.mul(self._is.blocks_down, self._is.luma_side)
        self._top = self._builder.mul(self._number, self._rows)

    def write(self) -> None:
        builder = self._builder
        self._transform()
        end = builder.append_basic_block()
        after_each = [builder.append_basic_block() for _ in WAYS]
        switch = builder.switch(self._is.way, end)
        for way, block in enumerate(after_each):
            switch.add_case(ir.Constant(INTEGER, way), block)
            builder.position_at_end(block)
            if way in _ROWS_OF:
                self._at_once(self._module.globals[_ROWS_OF[way]])
            else:
                self._between_rows(self._interpolate_both if way == BOTH else self._interpolate_tall)
            builder.branch(end)
        builder.position_at_end(end)
        builder.ret_void()

    def _transform(self) -> None:
        """Fills the window with the samples of this row of MCUs."""
        builder, words, it = self._builder, self._words, self._is
        with self._code.loop(0, it.blocks_down) as row:
            first = builder.mul(row, it.blocks_across)
            target = self._luma(self._down(builder.mul(row, it.luma_side)))
            place = builder.mul(first, it.luma_unit)
            self._transform_row(it.luma_side, place, it.luma_plane, first, it.blocks_across, target, it.luma_stride)
        luma = builder.mul(it.blocks_down, it.blocks_across)
        with builder.if_then(builder.icmp_signed(">", it.chroma_across, integer(0))):
            size = builder.mul(it.plane_stride, it.chroma_side)
            blue = words.at(self._window, it.planes)
            red = words.at(blue, size)
            behind = builder.add(luma, it.chroma_across)
            for place, first, target in ((it.blue, luma, blue), (it.red, behind, red)):
                how = it.chroma_side, place, it.chroma_plane, first, it.chroma_across
                self._transform_row(*how, target, it.plane_stride)
            woven = self._woven(integer(MARGIN_ROWS))
            self._call("jpeg_weave", blue, red, it.plane_stride, woven, it.woven_stride, it.chroma_side)
            with self._code.loop(MARGIN_ROWS, self._down(it.chroma_side)) as row:
                # The first and last pair are repeated.
                here = self._woven(row)
                words.store(words.load(here, 0, WORD), here, -PAIR_BYTES)
                last = words.at(here, builder.mul(it.chroma_width, integer(PAIR_BYTES)))
                words.store(words.load(last, -PAIR_BYTES, WORD), last)

    def _transform_row(self, side: Any, place: Any, plane: Any, first: Any, count: Any, samples: Any, stride: Any) -> None:
        coefficients = self._words.at(self._coefficients, self._builder.mul(place, integer(2)))
        furthest = self._words.at(self._furthest, first)
        self._builder.call(self._blocks, [side, coefficients, plane, furthest, count, samples, stride])

    def _call(self, name: str, *arguments: Any) -> None:
        self._builder.call(self._module.globals[name], arguments)

    def _down(self, row: Any) -> Any:
        """Gives the row of the window for one of this row of MCUs."""
        return self._builder.add(row, integer(MARGIN_ROWS))

    def _luma(self, row: Any) -> Any:
        return self._words.at(self._window, self._builder.mul(row, self._is.luma_stride))

    def _woven(self, row: Any) -> Any:
        place = self._builder.add(self._is.woven, self._builder.mul(row, self._is.woven_stride))
        return self._words.at(self._window, self._builder.add(place, integer(MARGIN_BYTES)))

    def _line(self, number: int) -> Any:
        place = self._builder.add(self._is.lines, self._builder.mul(self._is.line_stride, integer(number)))
        return self._words.at(self._window, self._builder.add(place, integer(MARGIN_BYTES)))

    def _emit(self, row_of: Any, row: Any, luma: Any, chroma: Any, other: Any) -> None:
        """Writes one row of the image."""
        output = self._words.at(self._output, self._builder.mul(row, self._is.output_stride))
        spare = self._words.at(self._window, self._is.spare)
        self._builder.call(row_of, [luma, chroma, other, output, spare, self._is.width])

    def _at_once(self, row_of: Any) -> None:
        builder = self._builder
        left = builder.sub(self._is.height, self._top)
        with self._code.loop(0, self._code.smaller(left, self._rows)) as row:
            chroma = self._woven(self._down(builder.lshr(row, self._is.halved)))
            self._emit(row_of, builder.add(self._top, row), self._luma(self._down(row)), chroma, chroma)

    def _between_rows(self, interpolate: Any) -> None:
        """Writes the rows between each row of chroma and the next."""
        builder, it, words = self._builder, self._is, self._words

        def copy_chroma(source: Any, target: Any) -> None:
            """Copies with the pairs before and behind."""
            places = [words.at(self._woven(row), -MARGIN_BYTES) for row in (source, target)]
            copy_bytes(self._code, places[0], places[1], it.woven_stride)

        with builder.if_then(builder.icmp_signed("==", self._number, integer(0))):
            copy_chroma(integer(MARGIN_ROWS), integer(0))
        left = builder.sub(it.chroma_height, builder.mul(self._number, it.chroma_side))
        is_last = builder.icmp_signed("<=", left, it.chroma_side)
        with builder.if_then(is_last):
            copy_chroma(left, builder.add(left, integer(1)))
        gaps = builder.select(is_last, builder.add(left, integer(1)), it.chroma_side)
        with self._code.loop(0, gaps) as gap:
            double = builder.mul(gap, integer(2))
            row = builder.sub(builder.add(self._top, double), integer(1))
            interpolate(gap, row, double)
        with builder.if_then(builder.not_(is_last)):
            copy_chroma(it.chroma_side, integer(0))
            copy_bytes(self._code, self._luma(self._rows), self._luma(integer(0)), it.luma_stride)

    def _where_inside(self, row: Any) -> Any:
        builder = self._builder
        inside = builder.and_(builder.icmp_signed(">=", row, integer(0)), builder.icmp_signed("<", row, self._is.height))
        return builder.if_then(inside)

    def _interpolate_both(self, gap: Any, row: Any, luma: Any) -> None:
        builder = self._builder
        chroma = self._woven(gap), self._woven(builder.add(gap, integer(1)))
        lines = self._line(0), self._line(1)
        self._call("jpeg_lines", *chroma, *lines, self._is.chroma_width)
        for place, line in enumerate(lines):
            number = builder.add(row, integer(place))
            with self._where_inside(number):
                samples = self._luma(builder.add(luma, integer(place)))
                self._emit(self._module.globals["jpeg_both"], number, samples, line, line)

    def _interpolate_tall(self, gap: Any, row: Any, luma: Any) -> None:
        builder = self._builder
        chroma = [self._woven(gap), self._woven(builder.add(gap, integer(1)))]
        for place, name in enumerate(("jpeg_lower", "jpeg_upper")):
            number = builder.add(row, integer(place))
            with self._where_inside(number):
                samples = self._luma(builder.add(luma, integer(place)))
                self._emit(self._module.globals[name], number, samples, *chroma[:: 1 - 2 * place])
