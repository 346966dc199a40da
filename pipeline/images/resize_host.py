"""Resizing and mean subtraction where there is no GPU: vector code, an image a thread.

Takes an image as decoded; writes float32 into the memory of its batch. The same sums as
:mod:`~pipeline.images.resize_device`, without the products that its blocks multiply by zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .passes import COLOURS, PADDING, compiled_passes, pass_along_both, pass_along_columns, pass_along_rows
from .resample import ROWS_AT_ONCE, hand_over
from .tables import ResizePlan, ResizeSpec, axis_table, plan_resize

Array = NDArray[np.float32]


class HostResize:
    """Brings images to one size and removes the mean colour. Safe for any number of threads.

    Args:
        spec: Size, mode and filter.
        mean_pixel: (3,) float64, R, G, B in 0..255.
    """

    def __init__(self, spec: ResizeSpec, mean_pixel: NDArray[np.float64]) -> None:
        self._spec = spec
        self._mean = mean_pixel.astype(np.float32)
        compiled_passes()

    def memory(self, count: int) -> Array:
        """Gives room for so many images, (count, H, W, 3) float32 of whatever values."""
        return np.empty((count, *self._spec.size_px, COLOURS), np.float32)

    def resize(self, pixels: NDArray[np.uint8], result: Array) -> None:
        """Resizes one image.

        Args:
            pixels: (h, w, 3) RGB, as decoded.
            result: (H, W, 3) RGB, mean removed, zero where the image is padded; written.
        """
        plan = plan_resize(*pixels.shape[:2], self._spec)
        handed = hand_over(pixels, self._spec)
        self._finish(handed.reshape(len(handed), -1), plan, result)

    def _finish(self, pixels: NDArray[np.uint8], plan: ResizePlan, result: Array) -> None:
        """Resizes what was handed over, (h, w x 3)."""
        height, width = self._spec.size_px
        rows, columns = axis_table(plan.rows, 1), axis_table(plan.columns, 1)
        shown = slice(*(position - plan.rows.offset for position in plan.rows.visible))
        off = np.zeros((width, COLOURS), np.float32)
        off[slice(*(position - plan.columns.offset for position in plan.columns.visible))] = self._mean
        if plan.rows_first:
            pass_along_both(pixels, rows, columns, off, result)
        else:
            between = np.empty((len(pixels), width * COLOURS), np.float32)
            floats = np.zeros((ROWS_AT_ONCE, pixels.shape[1] + PADDING), np.float32)
            nothing = np.zeros(width * COLOURS, np.float32)
            for first in range(0, len(pixels), ROWS_AT_ONCE):
                part = pixels[first : first + ROWS_AT_ONCE]
                floats[: len(part), : pixels.shape[1]] = part
                pass_along_columns(floats[: len(part)], columns, nothing, between[first:])
            pass_along_rows(between, rows, off, result.reshape(height, -1), width * COLOURS)
        # What shows no image is padding, and the network must see zero there.
        result[: shown.start] = 0.0
        result[shown.stop :] = 0.0
