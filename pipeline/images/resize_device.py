"""Resizing and mean subtraction of a whole batch in one device graph: for a GPU.

Takes the loader's :class:`~pipeline.records.Batch`; gives float32 (B, H, W, 3) on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ..records import Batch
from .tables import BLOCK, ResizeSpec, axis_table, plan_resize

# Images of a batch resampled at the same time; each is independent of the others, so this changes no number.
PARALLEL_IMAGES = 4


def _offsets(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Gives where each of some parts starts in their concatenation, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _resample(pixels: tf.Tensor, starts: tf.Tensor, weights: tf.Tensor, target: int) -> tf.Tensor:
    """Multiplies the first axis by a banded matrix: (n, m) any dtype -> (target, m) float32, cut off at 0 and 255.

    Source: Pillow, src/libImaging/Resample.c: each of its two passes clips what the sharper filters overshoot.
    """
    window = tf.shape(weights)[2]
    windows = tf.gather(pixels, starts[:, None] + tf.range(window)[None, :])  # blocks x window x m
    product = tf.matmul(weights, tf.cast(windows, tf.float32))  # blocks x BLOCK x m
    return tf.clip_by_value(tf.reshape(product, [-1, tf.shape(pixels)[1]])[:target], 0.0, 255.0)


class DeviceResize:
    """Brings the images of a batch to one size and removes the mean colour, on the device.

    Args:
        spec: Size, mode and filter.
        mean_pixel: (3,) float64, R, G, B in 0..255.
        device: TensorFlow's name of the device, ``/CPU:0`` or ``/GPU:0``.
    """

    def __init__(self, spec: ResizeSpec, mean_pixel: NDArray[np.float64], device: str) -> None:
        self._spec = spec
        with tf.device(device):
            self._mean = tf.constant(mean_pixel, tf.float32)
        self._device = device
        offsets, vector = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.int32)
        matrix, band = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.float32)
        pixels, flags = tf.TensorSpec([None], tf.uint8), tf.TensorSpec([None], tf.bool)
        self._graph = tf.function(
            self._resize_batch,
            input_signature=[pixels, offsets, vector, vector, flags, matrix, band, offsets, matrix, band, offsets],
            autograph=False,
        )

    def __call__(self, batch: Batch) -> Any:
        """Gives (B, H, W, 3) float32 on the device, mean removed; rows of failed images are zero."""
        heights, widths = (np.array([image.shape[axis] for image in batch.images], np.int32) for axis in (0, 1))
        plans = [
            plan_resize(int(source[0]), int(source[1]), self._spec) if height else None
            for source, height in zip(batch.sources_px, heights, strict=True)
        ]
        bands = []
        for axis, target in enumerate(self._spec.size_px):
            window_starts = np.zeros((len(batch), -(-target // BLOCK)), np.int32)
            weights = [np.empty(0, np.float32)] * len(batch)
            for row, plan in enumerate(plans):
                if plan is not None:
                    table = axis_table(plan.rows if axis == 0 else plan.columns)
                    window_starts[row] = table.starts
                    weights[row] = table.weights.ravel()
            bands += [window_starts, np.concatenate(weights), _offsets([len(part) for part in weights])]
        rows_first = np.array([plan is not None and plan.rows_first for plan in plans])
        # Flat, so that images of differing sizes go to the device in one piece.
        pixels = np.concatenate([image.reshape(-1) for image in batch.images])
        pixel_starts = _offsets([image.size for image in batch.images])
        with tf.device(self._device):
            return self._graph(pixels, pixel_starts, heights, widths, rows_first, *bands)

    def _resize_batch(
        self,
        pixels: tf.Tensor,
        pixel_starts: tf.Tensor,
        heights: tf.Tensor,
        widths: tf.Tensor,
        rows_first: tf.Tensor,
        row_starts: tf.Tensor,
        row_weights: tf.Tensor,
        row_weight_starts: tf.Tensor,
        column_starts: tf.Tensor,
        column_weights: tf.Tensor,
        column_weight_starts: tf.Tensor,
    ) -> tf.Tensor:
        target_height, target_width = self._spec.size_px

        def band(weights: tf.Tensor, starts: tf.Tensor, window_starts: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
            blocks = tf.shape(window_starts)[1]
            part = weights[starts[row] : starts[row + 1]]
            return tf.reshape(part, tf.stack([blocks, BLOCK, tf.size(part) // (blocks * BLOCK)]))

        def resize(row: tf.Tensor) -> tf.Tensor:
            height, width = heights[row], widths[row]
            rows = band(row_weights, row_weight_starts, row_starts, row)
            columns = band(column_weights, column_weight_starts, column_starts, row)
            image = tf.reshape(pixels[pixel_starts[row] : pixel_starts[row + 1]], tf.stack([height, width, 3]))

            def resample_rows(image: tf.Tensor) -> tf.Tensor:
                width = tf.shape(image)[1]
                image = tf.reshape(image, tf.stack([-1, width * 3]))
                image = _resample(image, row_starts[row], rows, target_height)
                return tf.reshape(image, tf.stack([target_height, width, 3]))

            def resample_columns(image: tf.Tensor) -> tf.Tensor:
                height = tf.shape(image)[0]
                image = tf.reshape(tf.transpose(image, [1, 0, 2]), tf.stack([-1, height * 3]))
                image = _resample(image, column_starts[row], columns, target_width)
                return tf.transpose(tf.reshape(image, tf.stack([target_width, height, 3])), [1, 0, 2])

            image = tf.cond(
                rows_first[row],
                lambda: resample_columns(resample_rows(image)),
                lambda: resample_rows(resample_columns(image)),
            )
            # What shows no image is padding: its weights are zero, and it must be zero after the mean is removed too.
            shown = tf.reduce_sum(rows, 2) != 0.0, tf.reduce_sum(columns, 2) != 0.0
            mask = tf.reshape(shown[0], [-1, 1])[:target_height] & tf.reshape(shown[1], [1, -1])[:, :target_width]
            return tf.where(mask[:, :, None], image - self._mean, 0.0)

        def resize_or_zero(row: tf.Tensor) -> tf.Tensor:
            return tf.cond(heights[row] > 0, lambda: resize(row), lambda: tf.zeros([target_height, target_width, 3]))

        return tf.map_fn(
            resize_or_zero,
            tf.range(tf.size(heights)),
            parallel_iterations=PARALLEL_IMAGES,
            fn_output_signature=tf.TensorSpec([target_height, target_width, 3], tf.float32),
        )
