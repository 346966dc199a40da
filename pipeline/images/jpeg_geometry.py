"""Where the samples of a JPEG are while they become pixels: sizes, strides and places, as machine code reads them.

Samples are kept in a window of little more than one row of MCUs, so that they stay in the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

COLOURS = 3
SIDE = 8
# A pair of chroma: as bytes, and as words of a line between two rows.
PAIR_BYTES, LINE_BYTES = 2, 4

# Blocks that are read beyond the last; they may hold anything.
SPARE_BLOCKS = 3

# Rows of the window: one before those of a row of MCUs, and one behind.
MARGIN_ROWS = 1
# On both sides of a row, and the largest register.
MARGIN_BYTES = 64
# As many as the largest processor writes at once.
_LARGEST_STEP = 64

# Ways from samples to rows of RGB.
GREY, SAME, TWICE, WIDE, BOTH, TALL = WAYS = range(6)

# Chroma of fewer columns, or of one sample a block, is repeated, not interpolated. Source: libjpeg-turbo, jdsample.c.
_FEWEST_INTERPOLATED = 3


class Geometry(NamedTuple):
    """Where everything is, as the code reads it: int64 in this order. Strides and places count bytes.

    Attributes:
        way: From samples to RGB.
        width: Of the output.
        height: Of the output.
        output_stride: Of the output.
        luma_side: Samples that a block of luma becomes in each direction.
        chroma_side: Likewise of chroma.
        blocks_across: Luma blocks of a row.
        blocks_down: Rows of luma blocks in a row of MCUs.
        chroma_across: Chroma blocks of a row, 0 in a grey image.
        chroma_width: In samples.
        chroma_height: In samples.
        halved: 1 where a row of chroma stands for two rows.
        luma_stride: From one row of samples to the next.
        plane_stride: Likewise of one kind of chroma.
        woven_stride: Likewise of both.
        planes: Where they are in the window; luma is at the beginning.
        woven: Where both kinds are.
        lines: Where two lines are.
        line_stride: From one to the other.
        spare: Where the end of a row is written.
        window_bytes: Of all.
        luma_unit: Among the coefficients (numbers of 16 bits), from a block of luma to the next.
        luma_plane: From a coefficient of such a block to the next.
        chroma_unit: As ``luma_unit``, of chroma.
        chroma_plane: As ``luma_plane``, of chroma.
        blue: Where the first kind of chroma begins there.
        red: Where the second does.
        coefficients: How many there are.
    """

    way: int
    width: int
    height: int
    output_stride: int
    luma_side: int
    chroma_side: int
    blocks_across: int
    blocks_down: int
    chroma_across: int
    chroma_width: int
    chroma_height: int
    halved: int
    luma_stride: int
    plane_stride: int
    woven_stride: int
    planes: int
    woven: int
    lines: int
    line_stride: int
    spare: int
    window_bytes: int
    luma_unit: int
    luma_plane: int
    chroma_unit: int
    chroma_plane: int
    blue: int
    red: int
    coefficients: int

    @property
    def blocks(self) -> int:
        """Gives the blocks of a row of MCUs; the strip holds :data:`SPARE_BLOCKS` more."""
        return self.blocks_across * self.blocks_down + 2 * self.chroma_across

    def array(self) -> NDArray[np.int64]:
        """Gives it for the code."""
        return np.array(self, np.int64)


def geometry_of(
    width: int, height: int, sampling: tuple[int, int] | None, ratio: int = 1, output_stride: int | None = None
) -> Geometry:
    """Lays out an image.

    Args:
        width: As the file has it, in px.
        height: In px.
        sampling: Columns and rows of luma for one of chroma, 1 or 2 each; None: grey.
        ratio: 1, 2, 4 or 8, by which both are divided, rounded up.
        output_stride: Bytes from one row of the output to the next; by default, as many as a row has.
    """
    across, down = sampling or (1, 1)
    mcus = -(-width // (SIDE * across))
    side = SIDE // ratio
    # Chroma is reduced less where it then needs no interpolation. Source: libjpeg-turbo, jdmaster.c.
    chroma_side = side * 2 if sampling == (2, 2) and ratio > 1 else side
    chroma_width = -(-width * chroma_side // (across * SIDE))
    chroma_height = -(-height * chroma_side // (down * SIDE))
    width, height = -(-width // ratio), -(-height // ratio)
    if sampling is None:
        way = GREY
    elif chroma_side > side:
        way = SAME
    elif across == 1:
        way = TALL if down == 2 and side > 1 else SAME
    elif chroma_width >= _FEWEST_INTERPOLATED and side > 1:
        way = BOTH if down == 2 else WIDE
    else:
        way = TWICE
    halved = int(down == 2 and chroma_side == side)
    luma_stride = _rounded(max(mcus * across * side, width)) + MARGIN_BYTES
    plane_stride = _rounded(max(mcus * chroma_side, chroma_width)) + MARGIN_BYTES
    woven_stride = PAIR_BYTES * plane_stride + 2 * MARGIN_BYTES
    line_stride = LINE_BYTES * plane_stride + 2 * MARGIN_BYTES
    sizes = [
        (down * side + 2 * MARGIN_ROWS) * luma_stride,
        2 * chroma_side * plane_stride,
        (chroma_side + 2 * MARGIN_ROWS) * woven_stride,
        2 * line_stride,
        COLOURS * _LARGEST_STEP,
    ]
    if sampling is None:
        sizes[1:4] = [0, 0, 0]
    places = [0]
    for size in sizes:
        places.append(places[-1] + size)
    chroma_across = 0 if sampling is None else mcus
    luma_unit, luma_plane, luma_size = _layout(side, mcus * across * down)
    chroma_unit, chroma_plane, chroma_size = _layout(chroma_side, chroma_across)
    red = luma_size + chroma_size
    return Geometry(
        way, width, height, COLOURS * width if output_stride is None else output_stride,
        side, chroma_side, mcus * across, down, chroma_across, chroma_width, chroma_height, halved,
        luma_stride, plane_stride, woven_stride, places[1], places[2], places[3], line_stride, places[4], places[5],
        luma_unit, luma_plane, chroma_unit, chroma_plane, luma_size, red, red + chroma_size + SPARE_BLOCKS * SIDE * SIDE,
    )  # fmt: skip


def _layout(side: int, blocks: int) -> tuple[int, int, int]:
    """Gives, of a component, from block to block, from coefficient to coefficient, and all of it."""
    if side == SIDE:
        return SIDE * SIDE, 1, blocks * SIDE * SIDE
    plane = _rounded(blocks)
    # And a plane for what is not wanted.
    return 1, plane, (side * side + 1) * plane


def _rounded(count: int) -> int:
    return -(-count // _LARGEST_STEP) * _LARGEST_STEP
