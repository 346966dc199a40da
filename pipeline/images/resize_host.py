"""Resizing and mean subtraction of a whole batch where there is no GPU: vector code, an image a thread.

Takes the loader's :class:`~pipeline.records.Batch`; gives float32 (B, H, W, 3). The same sums as
:mod:`~pipeline.images.resize_device`, without the products that its blocks multiply by zero.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..records import Batch
from ..vector_code import this_processor
from .passes import COLOURS, PADDING, compile_passes
from .resample import AxisTable, ResizePlan, ResizeSpec, axis_table, plan_resize

Array = NDArray[np.float32]

# Rows of an image that are floats at a time; a photograph as a whole would leave the cache.
ROWS_AT_ONCE = 64


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
        self._code = compile_passes(this_processor())
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="resize")

    def __call__(self, batch: Batch) -> Array:
        """Gives (B, H, W, 3) float32, mean removed; rows of failed images are zero."""
        results = np.zeros((len(batch), *self._spec.size_px, COLOURS), np.float32)
        futures = []
        stop = 0
        for result, height, width, source in zip(results, batch.heights_px, batch.widths_px, batch.sources_px, strict=True):
            start, stop = stop, stop + int(height) * int(width) * COLOURS
            if height:
                pixels = batch.pixels[start:stop].reshape(height, width * COLOURS)
                plan = plan_resize(int(source[0]), int(source[1]), self._spec)
                futures.append(self._pool.submit(self._resize, pixels, plan, result))
        for future in futures:
            future.result()
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
        nothing = np.zeros(max(width * COLOURS, pixels.shape[1]), np.float32)
        if plan.rows_first:
            between = np.empty((height, pixels.shape[1] + PADDING), np.float32)
            for first in range(0, height, ROWS_AT_ONCE):
                part = AxisTable(rows.starts[first : first + ROWS_AT_ONCE], rows.weights[first : first + ROWS_AT_ONCE])
                start, stop = int(part.starts.min()), int(part.starts.max()) + part.weights.shape[2]
                floats = pixels[start:stop].astype(np.float32)
                self._along_rows(floats, part.starts - np.int32(start), part.weights, nothing, between[first:], pixels.shape[1])
            between[:, pixels.shape[1] :] = 0.0
            self._along_columns(between, columns, off, result)
        else:
            between = np.empty((len(pixels), width * COLOURS), np.float32)
            for first in range(0, len(pixels), ROWS_AT_ONCE):
                part_pixels = pixels[first : first + ROWS_AT_ONCE]
                floats = np.zeros((len(part_pixels), pixels.shape[1] + PADDING), np.float32)
                floats[:, : pixels.shape[1]] = part_pixels
                self._along_columns(floats, columns, nothing, between[first : first + ROWS_AT_ONCE])
            self._along_rows(between, rows.starts, rows.weights, off, result.reshape(height, -1), width * COLOURS)
        # What shows no image is padding, and the network must see zero there.
        result[: shown.start] = 0.0
        result[shown.stop :] = 0.0

    def _along_columns(self, image: Array, table: AxisTable, off: Array, output: Array) -> None:
        outputs, window = len(table.starts), table.weights.shape[2]
        line = np.empty(outputs * COLOURS + PADDING, np.float32)
        self._code["along_columns"](
            *(image.ctypes.data, len(image), image.shape[1]),
            *(table.starts.ctypes.data, window, table.weights.ctypes.data, outputs),
            *(off.ctypes.data, output.ctypes.data, line.ctypes.data),
        )

    def _along_rows(
        self, image: Array, starts: NDArray[np.int32], weights: Array, off: Array, output: Array, floats: int
    ) -> None:
        self._code["along_rows"](
            *(image.ctypes.data, image.shape[1]),
            *(starts.ctypes.data, weights.shape[2], weights.ctypes.data, len(starts)),
            *(floats, off.ctypes.data, output.ctypes.data, output.shape[1]),
        )
