"""What the loader hands over of each decoded image: the part that is needed, a large one resampled along one axis.

Stands between :mod:`~pipeline.images.loader` and what resizes batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .passes import COLOURS, PADDING, pass_along_columns, pass_along_rows
from .tables import AxisPlan, ResizeSpec, axis_table, nearest_positions, plan_resize

# Rows of an image that are floats at a time; a photograph as a whole would leave the cache.
ROWS_AT_ONCE = 64


def hand_over(pixels: NDArray[np.uint8], spec: ResizeSpec) -> NDArray[np.uint8]:
    """Gives the part of a decoded image that the device needs; of a large one, already resampled along one axis.

    This pass rounds to whole grey levels, as Pillow's first does; the second then averages errors of at most half a level with
    weights whose absolute sum is below 1.6 (Lanczos), so the result stays within one level.

    Args:
        pixels: (h, w, 3) uint8.
        spec: The run's.

    Returns:
        (h', w', 3) uint8, with the sides :attr:`AxisPlan.handed_over` of ``plan_resize(h, w, spec)``.
    """
    decoded = pixels
    plan = plan_resize(pixels.shape[0], pixels.shape[1], spec)
    # What the host does not resample is only cut, before anything else is done to it.
    if not plan.rows.on_host:
        pixels = pixels[plan.rows.first : plan.rows.stop]
    if not plan.columns.on_host:
        pixels = pixels[:, plan.columns.first : plan.columns.stop]
    passes = [(0, plan.rows), (1, plan.columns)]
    for axis, of_axis in passes if plan.rows_first else passes[::-1]:
        if of_axis.on_host:
            pixels = _resample_on_host(pixels, axis, of_axis)
    # A cut is a view that would keep the whole image in memory.
    return pixels if pixels.flags.c_contiguous and pixels.size == decoded.size else pixels.copy()


def _resample_on_host(pixels: NDArray[np.uint8], axis: int, plan: AxisPlan) -> NDArray[np.uint8]:
    if plan.interpolation == "nearest":
        return np.take(pixels, nearest_positions(plan.source, plan.resized, *plan.visible), axis=axis)
    table = axis_table(plan.as_result(), 1)
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    if axis == 0:
        result = np.empty((len(table.starts), width, COLOURS), np.uint8)
        pass_along_rows(pixels.reshape(height, -1), table, None, result.reshape(len(result), -1), width * COLOURS)
        return result
    result = np.empty((height, len(table.starts), COLOURS), np.uint8)
    nothing = np.zeros(len(table.starts) * COLOURS, np.float32)
    floats = np.zeros((ROWS_AT_ONCE, width * COLOURS + PADDING), np.float32)
    for first in range(0, height, ROWS_AT_ONCE):
        part = result[first : first + ROWS_AT_ONCE]
        floats[: len(part), : width * COLOURS] = pixels[first : first + ROWS_AT_ONCE].reshape(len(part), -1)
        resampled = np.empty(part.shape, np.float32)
        pass_along_columns(floats[: len(part)], table, nothing, resampled)
        np.rint(resampled, out=part, casting="unsafe")
    return result
