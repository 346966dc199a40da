"""Slow, obvious versions of what the program computes, in float64. Shares no code with it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

# The convolutional part as the paper's table writes it: channels of a convolution, or M for pooling.
COLUMN_D = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
COLUMN_E = [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M"]

PILLOW_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def convolve(values: Array, kernel: NDArray[np.float32], bias: NDArray[np.float32], padding: int) -> Array:
    """Convolves (h, w, cin) with (kh, kw, cin, cout), by definition: one product for each position in the kernel."""
    kernel_height, kernel_width, _, channels = kernel.shape
    padded = np.pad(values, ((padding, padding), (padding, padding), (0, 0)))
    height, width = padded.shape[0] - kernel_height + 1, padded.shape[1] - kernel_width + 1
    total = np.zeros((height, width, channels))
    for row in range(kernel_height):
        for column in range(kernel_width):
            total += padded[row : row + height, column : column + width] @ kernel[row, column].astype(np.float64)
    return total + bias.astype(np.float64)


def pool(values: Array, round_up: bool, mean: bool = False) -> Array:
    """Pools 2 x 2 with stride 2; a window over the edge counts only what lies inside."""
    height, width, channels = values.shape
    rows, columns = ((height + 1) // 2, (width + 1) // 2) if round_up else (height // 2, width // 2)
    pooled = np.empty((rows, columns, channels))
    for row in range(rows):
        for column in range(columns):
            window = values[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1, channels)
            pooled[row, column] = window.mean(axis=0) if mean else window.max(axis=0)
    return pooled


def forward(
    image: Array,
    kernels: dict[str, NDArray[np.float32]],
    biases: dict[str, NDArray[np.float32]],
    column: list[int | str] = COLUMN_E,
    round_up: bool = True,
    mean: bool = False,
    until: str = "",
) -> dict[str, Array]:
    """Gives the activations of every layer for one image (h, w, 3) with the mean removed, up to ``until``."""
    found: dict[str, Array] = {}
    values, block, position = image, 1, 1
    for entry in column:
        if entry == "M":
            values = found[f"pool{block}"] = pool(values, round_up, mean)
            block, position = block + 1, 1
        else:
            name = f"{block}_{position}"
            values = found["conv" + name] = convolve(values, kernels["conv" + name], biases["conv" + name], 1)
            values = found["relu" + name] = np.maximum(values, 0.0)
            position += 1
        if until in found:
            return found
    for number in (6, 7, 8):
        values = found[f"fc{number}"] = convolve(values, kernels[f"fc{number}"], biases[f"fc{number}"], 0)
        if number < 8:
            values = found[f"relu{number}"] = np.maximum(values, 0.0)
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    found["prob"] = raised / raised.sum(axis=-1, keepdims=True)
    return found


def resize(pixels: NDArray[np.uint8], height: int, width: int, interpolation: str) -> Array:
    """Resizes (h, w, 3) uint8 as Pillow does, before Pillow rounds: its float mode, pass by pass, each cut off at 0 and 255.

    The order of the passes is Pillow 13's: rows first where they shrink by more than twice as many pixels as the columns.
    """
    source_height, source_width = pixels.shape[:2]
    rows_first = source_height > height and source_height - height > 2 * (source_width - width)
    between = (source_width, height) if rows_first else (width, source_height)
    channels = []
    for channel in range(3):
        plane = Image.fromarray(pixels[..., channel].astype(np.float32))
        for size in (between, (width, height)):
            values = np.asarray(plane.resize(size, PILLOW_FILTERS[interpolation]))
            plane = Image.fromarray(np.clip(values, 0.0, 255.0))
        channels.append(np.asarray(plane, np.float64))
    return np.stack(channels, axis=-1)


def relative_error(found: NDArray[np.floating], expected: Array) -> float:
    """Gives the norm of the difference over the norm of what is expected."""
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))
