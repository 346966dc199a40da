"""Resizing and mean subtraction of a whole batch where there is no GPU: vector code, an image a thread.

Takes the loader's :class:`~pipeline.records.Batch`; gives float32 (B, H, W, 3). The same sums as
:mod:`~pipeline.images.resize_device`, without the products that its blocks multiply by zero.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..records import Batch
from .passes import COLOURS, PADDING, compiled_passes, pass_along_both, pass_along_columns, pass_along_rows
from .resample import ROWS_AT_ONCE
from .tables import ResizePlan, ResizeSpec, axis_table, plan_resize

Array = NDArray[np.float32]


class HostResize:
    """Brings the images of a batch to one size and removes the mean colour.

    Args:
        spec: Size, mode and filter.
        mean_pixel: (3,) float64, R, G, B in 0..255.
        threads: That compute.
    """

    def __init__(self, spec: ResizeSpec, mean_pixel: NDArray[np.float64], threads: int) -> None:
        self._spec = spec
        self._mean = mean_pixel.astype(np.float32)
        compiled_passes()
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="resize")

    def __call__(self, batch: Batch) -> Array:
        """Gives (B, H, W, 3) float32, mean removed; rows of failed images are zero."""
        results = np.empty((len(batch), *self._spec.size_px, COLOURS), np.float32)
        sources = batch.sources_px.tolist()
        rows = iter(range(len(batch)))

        def resize_some() -> None:
            # Whoever is free takes the next one.
            for row in rows:
                image = batch.images[row]
                if image.size:
                    self._resize(image.reshape(len(image), -1), plan_resize(*sources[row], self._spec), results[row])
                else:
                    results[row].fill(0.0)

        for task in [self._pool.submit(resize_some) for _ in range(min(self._threads, len(batch)))]:
            task.result()
        return results

    def _resize(self, pixels: NDArray[np.uint8], plan: ResizePlan, result: Array) -> None:
        """Resizes one image.

        Args:
            pixels: (h, w x 3), what the loader handed over.
            plan: Of the image.
            result: (H, W, 3).
        """
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
