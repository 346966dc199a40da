"""3 x 3 convolutions with fewer multiplications: Winograd's F(4x4, 3x3) in TensorFlow operations, compiled by XLA for the CPU.

A room beside :mod:`~pipeline.network.vgg`, for its layers where :mod:`~pipeline.network.convolution` says so. The image is
cut into tiles of 4 x 4 outputs. Transformed tile and transformed kernel are multiplied position by position: 36 products for
16 outputs instead of 144. The sums are those of the direct convolution, only rounding differs: about 1e-6 a layer, relative
norm, against float64.

One image a call: in a larger call the place of an image among the others can change its last bit.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from .convolution import KERNEL_SIDE, TILE

# Inputs, and positions of the transformed space, along each side of a tile.
SIDE = TILE + KERNEL_SIDE - 1

# Where the polynomials are evaluated; one more point lies at infinity. Two thirds of the error of the usual 0, 1, -1, 2, -2.
# Tiles of 6 x 6 have three times the error and were no faster.
# Source: Barabasz, Anderson, Soodhalter & Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for
# Deep Neural Networks", arXiv 1803.10986.
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)

# Transformed tiles of a strip are made, multiplied and summed while they are in the cache; shorter products are slower.
# Best of 100 to 3136 at 224 px and 64 channels, of 200 to 784 at 112 px and 128 channels, with 1 MiB of L2 cache a core.
TILES_A_STRIP = 400

Array = NDArray[np.float64]


def transform_matrices() -> tuple[Array, Array, Array]:
    """Gives the matrices of ``output = A @ ((G @ kernel) * (B @ data))``, 4 outputs of a 3-tap correlation.

    Returns:
        A (4, 6), G (6, 3), B (6, 6).

    Source: Toom-Cook interpolation, section 3 of Barabasz et al.
    """
    output, kernel, data = np.zeros((TILE, SIDE)), np.zeros((SIDE, KERNEL_SIDE)), np.zeros((SIDE, SIDE))
    for row, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        distance = np.prod([point - other for other in others])
        # Moving a power of two from kernel to data rounds nothing and keeps transformed data near the size of the data.
        scale = 2.0 ** np.round(np.log2(np.abs(distance)))
        output[:, row] = point ** np.arange(TILE)
        kernel[row] = point ** np.arange(KERNEL_SIDE) * scale / distance
        data[row, : SIDE - 1] = np.poly(others)[::-1] / scale
    output[-1, -1] = kernel[-1, -1] = 1.0
    data[-1] = np.poly(POINTS)[::-1]
    return output, kernel, data


def transform_kernel(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gives a kernel as :func:`convolve` takes it, computed in float64 and rounded once.

    Args:
        kernel: (3, 3, cin, cout), as ``tf.nn.conv2d`` takes it.

    Returns:
        (36, cin, cout) float32: four times the bytes.
    """
    _, matrix, _ = transform_matrices()
    flat = np.kron(matrix, matrix) @ kernel.reshape(KERNEL_SIDE**2, -1).astype(np.float64)
    return flat.astype(np.float32).reshape(SIDE**2, *kernel.shape[2:])


def convolve(images: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, relu: bool) -> tf.Tensor:
    """Convolves 3 x 3 with stride 1 and zero padding (SAME), adds the bias, and applies ReLU where asked.

    For use through :data:`compiled_convolve`; uncompiled it is right but slower than ``tf.nn.conv2d``.

    Args:
        images: (B, H, W, cin) float32 of static shape, any H and W.
        kernel: (36, cin, cout) float32, from :func:`transform_kernel`.
        bias: (cout,) float32.
        relu: Whether negative outputs become 0, in the same pass over memory.

    Returns:
        (B, H, W, cout) float32.
    """
    count, height, width, channels = images.shape
    tile_rows, tile_columns = -(-height // TILE), -(-width // TILE)
    strip_rows = -(-tile_rows // -(-tile_rows * tile_columns // TILES_A_STRIP))
    strips = -(-tile_rows // strip_rows)
    strip_px = strip_rows * TILE
    bottom, right = strips * strip_px - height, tile_columns * TILE - width
    # One pixel around the image; at the bottom the rest of a band of tiles, see _convolve_strip.
    padded = tf.pad(images, [[0, 0], [1, TILE - 1 + bottom], [1, 1 + right], [0, 0]])
    if strips == 1:
        outputs = _convolve_strip(padded, kernel, bias, relu)
    else:

        def convolve_part(strip: tf.Tensor) -> tf.Tensor:
            part = tf.slice(padded, [0, strip * strip_px, 0, 0], [count, strip_px + TILE, padded.shape[2], channels])
            return _convolve_strip(part, kernel, bias, relu)

        parts = tf.map_fn(convolve_part, tf.range(strips), fn_output_signature=tf.float32)
        outputs = tf.reshape(tf.transpose(parts, [1, 0, 2, 3, 4]), [count, strips * strip_px, tile_columns * TILE, bias.shape[0]])
    return outputs[:, :height, :width]


# Layers of equal shape share one compilation, since kernels are arguments. To be called in a tf.function that is not itself
# compiled: conv1_1 and the small maps there are left to tf.nn.conv2d, which XLA would make slower.
compiled_convolve = tf.function(convolve, jit_compile=True, autograph=False)


def _convolve_strip(padded: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, relu: bool) -> tf.Tensor:
    """Convolves r rows of c tiles: (b, 4 (r + 1), 4 c + 2, cin) gives (b, 4 r, 4 c, cout); the last two rows do not count."""
    output_matrix, _, data_matrix = transform_matrices()
    count, height, width, channels_in = padded.shape
    rows, columns, channels_out = height // TILE - 1, (width - 2) // TILE, kernel.shape[2]
    # Each transform is a matrix product along one side of the tile and sums of slices along the other. XLA does not fuse the two,
    # and so computes nothing twice; two sums it would fuse into one that does, in twice the time and four times the compiling.
    bands = tf.transpose(tf.reshape(padded, [count, rows + 1, TILE, width, channels_in]), [2, 0, 1, 3, 4])
    taps = tf.concat([bands[:, :, :rows], bands[: SIDE - TILE, :, 1:]], axis=0)  # 6 x b x r x width x cin
    taps = tf.matmul(data_matrix.astype(np.float32), tf.reshape(taps, [SIDE, -1]))
    taps = tf.reshape(taps, [SIDE, count, rows, width, channels_in])
    slices = [taps[:, :, :, tap : tap + TILE * (columns - 1) + 1 : TILE] for tap in range(SIDE)]
    data = tf.stack([_weighted_sum(weights, slices) for weights in data_matrix], axis=1)  # 6 x 6 x b x r x c x cin
    products = tf.matmul(tf.reshape(data, [SIDE**2, -1, channels_in]), kernel)  # 36 x brc x cout
    sums = tf.matmul(output_matrix.astype(np.float32), tf.reshape(products, [SIDE, -1]))
    sums = tf.reshape(sums, [TILE, SIDE, count, rows, columns, channels_out])
    slices = [sums[:, tap] for tap in range(SIDE)]
    outputs = [_weighted_sum(weights, slices) + bias for weights in output_matrix]
    if relu:
        outputs = [tf.nn.relu(output) for output in outputs]
    tiles = tf.transpose(tf.stack(outputs, axis=4), [1, 2, 0, 3, 4, 5])  # b x r x 4 x c x 4 x cout
    return tf.reshape(tiles, [count, TILE * rows, TILE * columns, channels_out])


def _weighted_sum(weights: Array, terms: Sequence[tf.Tensor]) -> tf.Tensor:
    products = [float(weight) * term for weight, term in zip(weights, terms, strict=True) if weight != 0.0]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total
