"""Pillow's antialiased resampling as banded matrices: where each output pixel comes from, and with what weight. NumPy only.

Stands below the loader, which hands over only the part of an image that is needed (:mod:`~pipeline.images.resample`), and what
multiplies by the tables of :func:`axis_table`. Both derive everything from an image's own height and width and the
:class:`ResizeSpec`, so neighbours in a batch and the batch size cannot change a number.

Resampling is separable: rows and columns are two products with matrices that are zero but for a band. A table holds
that band in blocks of :data:`BLOCK` output positions, each with the window of input it reads.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .filters import FILTERS

# Output positions that share a window of input: small enough that little of a window is multiplied by zero when an
# image shrinks, large enough for a matrix product to be worth its call.
BLOCK = 16

# Above this many pixels in the part that is needed, the axis that is resampled first, if it shrinks at least by HOST_SHRINK,
# is resampled by the loader, and only the result is handed over: a 48-megapixel photograph would cost 144 MB a row of the batch.
HOST_PIXELS = 2**20
HOST_SHRINK = 2.0

# Above this many pixels after that, both axes are resampled on the host.
HOST_PIXELS_LEFT = 2**24

# Filters without negative weights, whose two passes may be done in either order.
COMMUTING = ("nearest", "bilinear")

# Nearest neighbour is followed step by step as Pillow does; beyond this many steps the closed form is used.
NEAREST_STEPS = 2**24


@dataclass(frozen=True, slots=True)
class ResizeSpec:
    """How every image of a run is brought to one size.

    Attributes:
        size_px: (height, width) of the result.
        mode: ``squash``: both sides to size, proportions lost. ``crop``: the image is scaled to cover the size, its long
            side rounded down (as torchvision's Resize), and the centre is kept. ``pad``: scaled to fit inside, centred, the
            rest filled with the mean colour, which is zero after the mean is removed.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``; all but the first antialiased as Pillow's.
    """

    size_px: tuple[int, int]
    mode: str
    interpolation: str


@dataclass(frozen=True, slots=True)
class AxisPlan:
    """What happens to one axis of one image.

    Attributes:
        source: Length of the decoded image along this axis, px.
        resized: Length it is scaled to, px.
        offset: Position in the scaled image of the result's first pixel; negative where the result is padded.
        target: Length of the result, px.
        interpolation: The filter.
        first: First source position that is needed.
        stop: Position after the last one.
        on_host: Whether the host resamples this axis, so that the device gets one position for each visible output.
    """

    source: int
    resized: int
    offset: int
    target: int
    interpolation: str
    first: int
    stop: int
    on_host: bool

    @property
    def visible(self) -> tuple[int, int]:
        """First and stop of the scaled positions that the result shows."""
        return max(0, self.offset), min(self.resized, self.offset + self.target)

    def as_result(self) -> AxisPlan:
        """Gives the plan by which the loader makes what it hands over of an axis that it resamples itself."""
        first, stop = self.visible
        return replace(self, offset=first, target=stop - first, first=0, stop=self.source, on_host=False)

    @property
    def handed_over(self) -> int:
        """Length of this axis in the pixels that the device gets."""
        first, stop = self.visible
        return stop - first if self.on_host else self.stop - self.first


def _scaled_sides(height: int, width: int, spec: ResizeSpec) -> tuple[int, int]:
    target_height, target_width = spec.size_px
    if spec.mode == "squash":
        return target_height, target_width
    rows_decide = target_height * width >= target_width * height  # the height needs the larger scale
    if spec.mode == "crop":
        if rows_decide:
            return target_height, max(target_width, target_height * width // height)
        return max(target_height, target_width * height // width), target_width
    if rows_decide:
        return max(1, min(target_height, round(target_width * height / width))), target_width
    return target_height, max(1, min(target_width, round(target_height * width / height)))


class ResizePlan(NamedTuple):
    """What happens to one image.

    Attributes:
        rows: The vertical axis.
        columns: The horizontal axis.
        rows_first: Which axis is resampled first. The sharper filters overshoot at hard edges and each pass cuts that
            off at 0 and 255, so with them the order shows in the result.
    """

    rows: AxisPlan
    columns: AxisPlan
    rows_first: bool


@functools.lru_cache(maxsize=4096)
def plan_resize(height: int, width: int, spec: ResizeSpec) -> ResizePlan:
    """Gives what happens to the rows and to the columns of an image of this size.

    Args:
        height: Of the decoded image, px, at least 1.
        width: Likewise.
        spec: The run's.
    """
    axes = []
    for source, resized, target in zip((height, width), _scaled_sides(height, width, spec), spec.size_px, strict=True):
        # Source: torchvision CenterCrop rounds half the surplus to even.
        offset = round((resized - target) / 2) if resized >= target else -((target - resized) // 2)
        first_visible, stop_visible = max(0, offset), min(resized, offset + target)
        low, _ = _reach(source, resized, first_visible, spec.interpolation)
        _, high = _reach(source, resized, stop_visible - 1, spec.interpolation)
        axes.append(AxisPlan(source, resized, offset, target, spec.interpolation, low, high, False))
    rows, columns = axes
    shrinks = [axis.source > HOST_SHRINK * axis.resized for axis in axes]
    if spec.interpolation in COMMUTING:
        # Rows are several times as fast, since all values of one have the same weight.
        rows_first = shrinks[0] or not shrinks[1] or rows.handed_over * columns.handed_over <= HOST_PIXELS
    else:
        # Source: Pillow 13, Image.resize: the rows go first where they shrink by much more pixels than the columns.
        rows_first = rows.source > rows.resized and rows.source - rows.resized > 2 * (columns.source - columns.resized)
    if rows.handed_over * columns.handed_over > HOST_PIXELS:
        if rows_first and shrinks[0]:
            rows = replace(rows, on_host=True)
        elif not rows_first and shrinks[1]:
            columns = replace(columns, on_host=True)
        if rows.handed_over * columns.handed_over > HOST_PIXELS_LEFT:
            rows, columns = replace(rows, on_host=True), replace(columns, on_host=True)
    return ResizePlan(rows, columns, rows_first)


def _reach(source: int, resized: int, position: int, interpolation: str) -> tuple[int, int]:
    """Gives the first source position that a scaled position may read, and the one after the last."""
    scale = source / resized
    if interpolation == "nearest":
        # One more on each side than the closed form, for the sums of nearest_positions.
        middle = int((position + 0.5) * scale)
        return max(0, min(source - 1, middle - 1)), min(source, middle + 2)
    center, support = (position + 0.5) * scale, FILTERS[interpolation].support * max(1.0, scale)
    return max(0, int(center - support + 0.5)), min(source, int(center + support + 0.5))


def nearest_positions(source: int, resized: int, first: int, stop: int) -> NDArray[np.int64]:
    """Gives the source position of each scaled position in [first, stop).

    Pillow adds the scale up step by step in double precision, so at exact ties its choice depends on the sum so far.
    Source: Pillow, src/libImaging/Geometry.c, ImagingScaleAffine.
    """
    scale = source / resized
    if stop <= NEAREST_STEPS:
        steps = np.full(stop, scale)
        steps[0] = scale * 0.5
        positions = np.add.accumulate(steps)[first:]
    else:
        positions = (np.arange(first, stop) + 0.5) * scale
    return np.clip(positions.astype(np.int64), 0, source - 1)


class AxisTable(NamedTuple):
    """A banded resampling matrix for one axis.

    Attributes:
        starts: (blocks,) int32, first input position of each block's window.
        weights: (blocks, block, window) float32; rows past the target and rows that show padding are zero.
    """

    starts: NDArray[np.int32]
    weights: NDArray[np.float32]


@functools.lru_cache(maxsize=128)
def axis_table(plan: AxisPlan, block: int = BLOCK) -> AxisTable:
    """Gives the weights that turn the pixels handed over into the result, along one axis.

    Computed in float64 as Pillow computes its own, then rounded to float32. Tables are kept for the next images of the same
    size: at most 128, of a few hundred kB at the most for a result of 224 px.

    Args:
        plan: Of the axis.
        block: Output positions that share a window.
    """
    first, stop = plan.visible
    positions = np.arange(first, stop)
    if plan.on_host:
        low = positions - first
        high = low + 1
    elif plan.interpolation == "nearest":
        low = nearest_positions(plan.source, plan.resized, first, stop) - plan.first
        high = low + 1
    else:
        scale = plan.source / plan.resized
        widened = max(1.0, scale)
        support = FILTERS[plan.interpolation].support * widened
        centers = (positions + 0.5) * scale
        low = np.maximum(0, (centers - support + 0.5).astype(np.int64)) - plan.first
        high = np.minimum(plan.source, (centers + support + 0.5).astype(np.int64)) - plan.first
    blocks = -(-plan.target // block)
    rows = positions - plan.offset
    block_of_row = rows // block
    starts = np.zeros(blocks, np.int64)
    ends = np.zeros(blocks, np.int64)
    used = np.unique(block_of_row)
    starts[used] = [low[block_of_row == number].min() for number in used]
    ends[used] = [high[block_of_row == number].max() for number in used]
    window = int((ends - starts).max())
    starts = np.minimum(starts, plan.handed_over - window)

    taps = starts[block_of_row][:, None] + np.arange(window)
    inside = (taps >= low[:, None]) & (taps < high[:, None])
    if plan.on_host or plan.interpolation == "nearest":
        band = inside.astype(np.float64)
    else:
        weight = FILTERS[plan.interpolation].weight
        band = np.where(inside, weight((taps + plan.first + 0.5 - centers[:, None]) / widened), 0.0)
        total = band.sum(axis=1, keepdims=True)
        band = np.divide(band, total, out=band, where=total != 0.0)
    weights = np.zeros((blocks * block, window), np.float32)
    weights[rows] = band
    return AxisTable(starts.astype(np.int32), weights.reshape(blocks, block, window))


def dct_reduction(height: int, width: int, spec: ResizeSpec) -> int:
    """Gives the factor 1, 2, 4 or 8 by which a JPEG may be shrunk while decoding for ``data.decode=fast``.

    Both sides stay at least twice what they are scaled to, so that the antialiased filter still decides what is seen.
    """
    scaled_height, scaled_width = _scaled_sides(height, width, spec)
    room = min(height / scaled_height, width / scaled_width) / 2.0
    return 2 ** min(3, max(0, math.floor(math.log2(room)))) if room >= 1.0 else 1
