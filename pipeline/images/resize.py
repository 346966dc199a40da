"""Bring images to one size as Pillow does, on the host and in batches on a device.

Each axis is a product with a matrix of weights: a filter around the centre of every output position, widened where the image
shrinks. ``bicubic`` and ``lanczos`` overshoot at hard edges, so each pass is cut off at 0 and 255, and their order is Pillow's.

- :func:`fit_canvas`, first, in the loader: an image with a side above :data:`CANVAS_SIDE_PX` would make a canvas too large for a
  batch, so Pillow resizes it, as all where the filter is ``nearest``. That leaves nothing to be scaled.
- :func:`resize_batch`: a batch in one canvas, two matrix products on the device (a GPU, or TensorFlow on a CPU); or
- :func:`resize_on_host`: one image by sparse products, in the loader, where the network itself runs on the CPU. Both agree with
  the same sums in float64 within 0.01 grey levels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse

if TYPE_CHECKING:
    import tensorflow as tf

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]

# A batch of 32 in a canvas of this side is 100 MB as uint8 and 400 MB as float32; one image of 100 megapixels would be 10 GB.
CANVAS_SIDE_PX = 1024

COLOURS = 3

# An image that ``crop`` scales to a longer side than this is not scaled as a whole: a strip of 1 x 200,000 px would be gigabytes.
LONGEST_SCALED_PX = 2**14

# Support of each filter in pixels of the larger scale. Source: Pillow, src/libImaging/Resample.c, BILINEAR, BICUBIC, LANCZOS.
# What ``nearest`` has picked is not scaled any more.
SUPPORT = {"nearest": 1.0, "bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}


@dataclass(frozen=True, slots=True)
class ResizeSpec:
    """How every image of a run is brought to one size.

    Attributes:
        size_px: (height, width) of the result.
        mode: ``squash``: both sides to size. ``crop``: scaled to cover the size, the long side rounded down (as torchvision's
            Resize), and the centre kept. ``pad``: scaled to fit inside, centred, the rest zero after the mean is removed.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
    """

    size_px: tuple[int, int]
    mode: str
    interpolation: str


class Geometry(NamedTuple):
    """Where an image lies in its result, all in px; or each of a batch, as tensors (B,).

    Attributes:
        height, width: Of the image.
        scaled_height, scaled_width: Once it is scaled; the result may show a part of it, or padding around it.
        top, left: Position in the scaled image of the result's first row and column; negative where the result is padded.
    """

    height: int
    width: int
    scaled_height: int
    scaled_width: int
    top: int
    left: int

    @property
    def rows_first(self) -> Any:
        """Whether the vertical pass comes first. Source: Pillow 13, where rows shrink by far more pixels than columns."""
        return (self.height > self.scaled_height) & (self.height - self.scaled_height > 2 * (self.width - self.scaled_width))

    def seen(self, axis: int, spec: ResizeSpec) -> range:
        """Return the positions along an axis of the scaled image that the result shows."""
        return range(max(0, self[4 + axis]), min(self[2 + axis], self[4 + axis] + spec.size_px[axis]))


# What a failed row has in place of one: nothing of it is seen.
NO_IMAGE = Geometry(0, 0, 0, 0, 0, 0)


@functools.lru_cache(4096)
def place_image(height: int, width: int, spec: ResizeSpec) -> Geometry:
    """Return where an image of this height and width in px lies in the result; both are 0 where there is none."""
    if not height:
        return NO_IMAGE
    size, target, scaled = (height, width), spec.size_px, [*spec.size_px]
    # One side has the target's length, the other keeps the proportions.
    larger_scale = 0 if target[0] * width >= target[1] * height else 1
    if spec.mode == "crop":
        side, other = larger_scale, 1 - larger_scale
        scaled[other] = max(target[other], target[side] * size[other] // size[side])
    elif spec.mode == "pad":
        side, other = 1 - larger_scale, larger_scale
        scaled[other] = max(1, min(target[other], round(target[side] * size[other] / size[side])))
    # Source: torchvision CenterCrop rounds half the surplus to even.
    surplus = [have - want for have, want in zip(scaled, target, strict=True)]
    return Geometry(height, width, *scaled, *(round(px / 2) if px >= 0 else -(-px // 2) for px in surplus))


def dct_reduction(height: int, width: int, spec: ResizeSpec) -> int:
    """Return the factor 1, 2, 4 or 8 by which a JPEG may be shrunk while decoding for ``data.decode=fast``.

    Both sides stay at least twice what they are scaled to, so that the antialiased filter still decides what is seen.
    """
    place = place_image(height, width, spec)
    shrinks = min(height / place.scaled_height, width / place.scaled_width)
    return next((ratio for ratio in (8, 4, 2) if shrinks >= 2 * ratio), 1)


def fit_canvas(pixels: Pixels, spec: ResizeSpec) -> Pixels:
    """Return what a batch holds of an image, (h, w, 3) RGB, sides at most :data:`CANVAS_SIDE_PX` or those of the result.

    It is the image, or its final pixels where it is too large or the filter is ``nearest``: :func:`place_image` does not scale or
    move those.
    """
    if spec.interpolation != "nearest" and max(pixels.shape[:2]) <= CANVAS_SIDE_PX:
        return pixels
    # The visible part of what Pillow's resize makes of it, bit for bit.
    place = place_image(*pixels.shape[:2], spec)
    rows, columns = place.seen(0, spec), place.seen(1, spec)
    image, resampling = Image.fromarray(pixels), Image.Resampling[spec.interpolation.upper()]
    if max(place.scaled_height, place.scaled_width) > LONGEST_SCALED_PX:
        # Pillow takes the bounds as float32, so here, and only here, it may round a few pixels otherwise.
        down, across = place.height / place.scaled_height, place.width / place.scaled_width
        box = (columns.start * across, rows.start * down, columns.stop * across, rows.stop * down)
        return np.asarray(image.resize((len(columns), len(rows)), resampling, box))
    scaled = np.asarray(image.resize((place.scaled_width, place.scaled_height), resampling))
    return np.ascontiguousarray(scaled[rows.start : rows.stop, columns.start : columns.stop])


def resize_on_host(
    pixels: Pixels, spec: ResizeSpec, mean_pixel: NDArray[np.floating], scale_pixel: NDArray[np.floating] | None = None
) -> Array:
    """Resize one image, (h, w, 3) RGB as decoded, and :func:`standardise` it: (H, W, 3), zero where it is padded."""
    pixels = fit_canvas(pixels, spec)
    place = place_image(*pixels.shape[:2], spec)
    # Rows of R, G, B, R, G, B ...: NumPy moves pairs of axes ten times as fast as triples of numbers.
    values = pixels.astype(np.float32).reshape(place.height, -1)
    is_clipped = spec.interpolation in ("bicubic", "lanczos")
    # What is never cut off may be weighted in either order.
    for axis in (0, 1) if place.rows_first or not is_clipped else (1, 0):
        source, scaled, seen = place[axis], place[2 + axis], place.seen(axis, spec)
        if scaled == source == len(seen):
            continue
        matrix = _axis_matrix(source, scaled, seen, spec.interpolation, COLOURS if axis else 1)
        # A sparse product adds up whole rows of its right factor, so what is resampled must be that one's first axis.
        product = matrix @ (np.ascontiguousarray(values.T) if axis else values)
        if is_clipped:
            np.clip(product, 0.0, 255.0, out=product)
        values = np.ascontiguousarray(product.T) if axis else product
    height, width = len(values), values.shape[1] // COLOURS
    values -= np.tile(mean_pixel.astype(np.float32), width)
    if scale_pixel is not None:
        values /= np.tile(scale_pixel.astype(np.float32), width)
    if (height, width) == spec.size_px:
        return values.reshape(height, width, COLOURS)
    padded = np.zeros((*spec.size_px, COLOURS), np.float32)
    top, left = max(0, -place.top), max(0, -place.left)
    padded[top : top + height, left : left + width] = values.reshape(height, width, COLOURS)
    return padded


@functools.lru_cache(256)
def _axis_matrix(source: int, scaled: int, seen: range, interpolation: str, interleaved: int) -> Any:
    """Return the weights of one axis, in float64 as Pillow's, then rounded to float32.

    The axis has ``source`` pixels of ``interleaved`` values each; ``seen`` of its ``scaled`` positions are in the result.

    Returns:
        ``scipy.sparse.csr_array`` (len(seen) * interleaved, source * interleaved), of rows that sum to 1.
    """
    scale = source / scaled
    widened = max(1.0, scale)
    centers = (np.array(seen) + 0.5) * scale
    support = SUPPORT[interpolation] * widened
    # Source: Pillow, Resample.c, precompute_coeffs.
    low = np.maximum(0, (centers - support + 0.5).astype(np.int64))
    high = np.minimum(source, (centers + support + 0.5).astype(np.int64))
    taps = low[:, None] + np.arange(int((high - low).max()))
    weights = np.where(taps < high[:, None], _weigh(interpolation, (taps + 0.5 - centers[:, None]) / widened, np), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    # As many entries in each row, some of them zero: the matrix is made without sorting any.
    positions = np.minimum(taps, source - 1)[:, None, :] * interleaved + np.arange(interleaved)[:, None]
    entries = np.repeat(weights.astype(np.float32), interleaved, axis=0)
    starts = np.arange(0, entries.size + 1, taps.shape[1], dtype=np.int32)
    parts = entries.ravel(), positions.ravel().astype(np.int32), starts
    return sparse.csr_array(parts, shape=(len(entries), source * interleaved))


def _weigh(interpolation: str, x: Any, library: Any) -> Any:
    """Return the filter's weight at each distance, in pixels of the larger scale; ``library`` is NumPy or TensorFlow."""
    x = abs(x)
    if interpolation in ("nearest", "bilinear"):
        return library.maximum(0.0, 1.0 - x)
    if interpolation == "bicubic":
        # Source: Keys, "Cubic convolution interpolation for digital image processing", 1981, a = -0.5.
        near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        return library.where(x < 1.0, near, library.where(x < 2.0, far, 0.0))
    # sin(a) / a is 1 at 0, and to any precision here where a is this small.
    angle = math.pi * library.maximum(x, 1e-8)
    return library.where(x < 3.0, library.sin(angle) * library.sin(angle / 3.0) * 3.0 / angle**2, 0.0)


def standardise(images: Any, mean_pixel: NDArray[np.float64], scale_pixel: NDArray[np.float64] | None) -> Any:
    """Subtract the mean colour from images, (..., 3) RGB in 0..255, float32 of NumPy or TensorFlow, and divide by the scale."""
    images = images - mean_pixel.astype(np.float32)
    return images if scale_pixel is None else images / scale_pixel.astype(np.float32)


def resize_batch(
    canvas: tf.Tensor,
    geometry: tf.Tensor,
    spec: ResizeSpec,
    mean_pixel: NDArray[np.float64],
    scale_pixel: NDArray[np.float64] | None = None,
) -> tf.Tensor:
    """Resize a batch and standardise it: two batched matrix products of operations that all have a kernel for GPUs.

    Args:
        canvas: (B, h, w, 3) uint8 RGB; image i fills the top left corner of row i.
        geometry: (B, 6) float64, the :class:`Geometry` of each; :data:`NO_IMAGE` gives a row of zeros.
        spec: Of the run.
        mean_pixel: (3,) R, G, B in 0..255, as the next.
        scale_pixel: None: nothing is divided.

    Returns:
        (B, H, W, 3) float32, zero where an image is padded.
    """
    import tensorflow as tf  # Late: plots resize on the host, without waiting for it.

    place = Geometry(*tf.unstack(geometry, num=6, axis=1))
    canvas_height, canvas_width = tf.unstack(tf.shape(canvas)[1:3])
    rows, seen_rows = _axis_weights(place, 0, canvas_height, spec)
    columns, seen_columns = _axis_weights(place, 1, canvas_width, spec)
    # Planes, so that both axes are a product of matrices: B x 3 x h x w. First to a type that GPUs can transpose.
    planes = tf.transpose(tf.cast(canvas, tf.float32), [0, 3, 1, 2])

    def along_rows(values: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(tf.matmul(rows[:, None], values), 0.0, 255.0)

    def along_columns(values: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(tf.matmul(values, columns[:, None], transpose_b=True), 0.0, 255.0)

    values = along_columns(along_rows(planes))  # B x 3 x H x W
    if spec.interpolation in ("bicubic", "lanczos"):
        values = tf.where(place.rows_first[:, None, None, None], values, along_rows(along_columns(planes)))
    images = standardise(tf.transpose(values, [0, 2, 3, 1]), mean_pixel, scale_pixel)
    seen = (seen_rows[:, :, None] & seen_columns[:, None, :])[..., None]
    return tf.ensure_shape(tf.where(seen, images, 0.0), (None, *spec.size_px, 3))


def _axis_weights(place: tuple[tf.Tensor, ...], axis: int, positions: tf.Tensor, spec: ResizeSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the weights of one axis, (B, target, positions) float32, and which outputs show the image, (B, target)."""
    import tensorflow as tf

    lengths, scaled, offsets = place[axis], place[2 + axis], place[4 + axis]
    # Centres in float64, where a pixel's position is exact enough; what is left of them is below a pixel.
    scale = lengths / tf.maximum(scaled, 1.0)
    widened = tf.maximum(scale, 1.0)
    outputs = offsets[:, None] + tf.constant(np.arange(spec.size_px[axis]), tf.float64)
    centers = (outputs + 0.5) * scale[:, None]
    whole = tf.floor(centers)
    sources = tf.range(tf.cast(positions, tf.float32))
    distance = (sources - tf.cast(whole, tf.float32)[:, :, None]) + (0.5 - tf.cast(centers - whole, tf.float32))[:, :, None]
    weights = _weigh(spec.interpolation, distance / tf.cast(widened, tf.float32)[:, None, None], tf)
    weights = tf.where(sources < tf.cast(lengths, tf.float32)[:, None, None], weights, 0.0)
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, 2, keepdims=True))
    seen = (outputs >= 0.0) & (outputs < scaled[:, None])
    return tf.where(seen[:, :, None], weights, 0.0), seen
