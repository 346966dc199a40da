"""Slow, obvious versions of what the program computes, in float64. Shares no code with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import ndtri

Array = NDArray[np.float64]

# Convolutions in each block; then fully connected layers.
BLOCKS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


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
    network: str = "vgg19",
    round_up: bool = True,
    mean: bool = False,
    until: str = "",
) -> dict[str, Array]:
    """Gives the activations of every layer for one image (h, w, 3) with the mean removed, not far beyond ``until``."""
    found: dict[str, Array] = {}
    values = image
    for block, count in enumerate(BLOCKS[network], start=1):
        for name in (f"{block}_{position}" for position in range(1, count + 1)):
            values = found["conv" + name] = convolve(values, kernels["conv" + name], biases["conv" + name], 1)
            values = found["relu" + name] = np.maximum(values, 0.0)
            if until in found:
                return found
        values = found[f"pool{block}"] = pool(values, round_up, mean)
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
            values = np.asarray(plane.resize(size, Image.Resampling[interpolation.upper()]))
            plane = Image.fromarray(np.clip(values, 0.0, 255.0))
        channels.append(np.asarray(plane, np.float64))
    return np.stack(channels, axis=-1)


def by_pillow(pixels: NDArray[np.uint8], height: int, width: int, interpolation: str) -> Array:
    """Gives Pillow's own bytes."""
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()])
    return np.asarray(resized, np.float64)


def relative_error(found: NDArray[np.floating], expected: Array) -> float:
    """Gives the norm of the difference over the norm of what is expected."""
    assert found.shape == expected.shape
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))


# -- Reductions -----------------------------------------------------------------------------------------------------------------


def reduce(name: str, values: Array, rows: int = 0, **options: Any) -> Array:
    """Gives a vector of a map (h, w, c) or a vector; ``rows``: of the run, ``options``: of this reduction."""
    if name in MATRICES:
        return MATRICES[name](values.ravel(), rows, **options)
    return REDUCTIONS[name](values, **options)


def generalized_mean(values: Array, p: float = 3.0, eps: float = 1e-6) -> Array:
    return (np.maximum(values, eps) ** p).mean((0, 1)) ** (1 / p)


def grid(values: Array, side: int = 2) -> Array:
    """Averages cells. Of torch's AdaptiveAvgPool2d: start floor(i h / k), end ceil((i + 1) h / k)."""
    rows, columns = ([(i * n // side, math.ceil((i + 1) * n / side)) for i in range(side)] for n in values.shape[:2])
    return np.concatenate([values[a:b, c:d].mean((0, 1)) for a, b in rows for c, d in columns])


def gram(values: Array, form: str = "triangle") -> Array:
    products = np.einsum("hwi,hwj->ij", values, values) / math.prod(values.shape[:2])
    return products.ravel() if form == "full" else products[np.triu_indices(len(products))]


def regional_maxima(values: Array, levels: int = 3) -> Array:
    """As cirtorch.layers.functional.rmac, line by line."""
    height, width, _ = values.shape
    least = min(width, height)
    step = (max(height, width) - least) / (np.array([2, 3, 4, 5, 6, 7]) - 1)
    number = int(np.argmin(np.abs((least**2 - least * step) / least**2 - 0.4)))
    more_wide, more_high = (number + 1 if height < width else 0), (number + 1 if height > width else 0)
    found = values.max((0, 1))
    found = found / (np.linalg.norm(found) + 1e-6)
    for level in range(1, levels + 1):
        side = math.floor(2 * least / (level + 1))
        half = math.floor(side / 2 - 1)
        across = 0 if level + more_wide == 1 else (width - side) / (level + more_wide - 1)
        down = 0 if level + more_high == 1 else (height - side) / (level + more_high - 1)
        lefts = np.floor(half + np.arange(level + more_wide) * across) - half
        tops = np.floor(half + np.arange(level + more_high) * down) - half
        for top in tops.astype(int):
            for left in lefts.astype(int):
                if side:
                    region = values[top : top + side, left : left + side].max((0, 1))
                    found = found + region / (np.linalg.norm(region) + 1e-6)
    return found


def some_units(values: Array, rows: int, n_components: int = 5000, seed: int = 0) -> Array:
    return values[np.sort(np.argsort(np.random.Philox(key=[seed, 1]).random_raw(values.size), kind="stable")[:n_components])]


def components(rows: int, eps: float) -> int:
    """Gives scikit-learn's johnson_lindenstrauss_min_dim."""
    return int(4 * np.log(max(2, rows)) / (eps**2 / 2 - eps**3 / 3))


def sparse_projection(
    values: Array, rows: int, n_components: Any = "auto", eps: float = 0.1, density: Any = "auto", seed: int = 0
) -> Array:
    """As the docstring of pipeline.network.host_reductions.sparse_matrix defines it, an entry at a time."""
    count, length = components(rows, eps) if n_components == "auto" else n_components, values.size
    strips = min(length, max(1, round(length * (length**-0.5 if density == "auto" else density))))
    raw = np.random.Philox(key=[seed, 2]).random_raw(count * strips).tolist()
    found = np.zeros(count)
    for place, number in enumerate(raw):
        row, strip = divmod(place, strips)
        first, stop = strip * length // strips, (strip + 1) * length // strips
        found[row] += values[first + ((number >> 32) * (stop - first) >> 32)] * (-1 if number & 1 else 1)
    return found / math.sqrt(strips / length * count)


def gaussian_projection(values: Array, rows: int, n_components: Any = "auto", eps: float = 0.1, seed: int = 0) -> Array:
    """As the docstring of pipeline.network.host_reductions.gaussian_matrix defines it."""
    count = components(rows, eps) if n_components == "auto" else n_components
    upper = np.random.Philox(key=[seed, 3]).random_raw(count * values.size) >> np.uint64(11)
    entries = np.round(ndtri((upper.astype(np.float64) + 0.5) / 2**53) * 4096) / 4096
    return entries.reshape(count, -1) @ values / math.sqrt(count)


REDUCTIONS: dict[str, Callable[..., Array]] = {
    "avg": lambda values: values.mean((0, 1)),
    "max": lambda values: values.max((0, 1)),
    "catavgmax": lambda values: np.concatenate([values.mean((0, 1)), values.max((0, 1))]),
    "gem": generalized_mean,
    "rmac": regional_maxima,
    "grid": grid,
    "gram": gram,
    "l2": lambda values: values.ravel() / (np.linalg.norm(values) or 1.0),
}
MATRICES: dict[str, Callable[..., Array]] = {"units": some_units, "srp": sparse_projection, "gaussian": gaussian_projection}
