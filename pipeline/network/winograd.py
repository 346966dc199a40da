"""3 x 3 convolutions with fewer multiplications: the numbers of Winograd's F(4x4, 3x3).

A room below :mod:`~pipeline.network.kernels`, which computes with them. The image is cut into tiles of 4 x 4 outputs.
Transformed tile and transformed kernel are multiplied position by position: 36 products for 16 outputs instead of 144. The sums
are those of the direct convolution, only rounding differs: about 2e-6 a layer, relative norm, against float64.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# F(4 x 4, 3 x 3): outputs of a tile along each side, and the kernel's side.
KERNEL_SIDE = 3
TILE = 4
# Inputs, and positions of the transformed space, along each side of a tile.
SIDE = TILE + KERNEL_SIDE - 1

# Where the polynomials are evaluated; one more point lies at infinity. Two thirds of the error of the usual 0, 1, -1, 2, -2.
# Tiles of 6 x 6 have three times the error and were no faster.
# Source: Barabasz, Anderson, Soodhalter & Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for
# Deep Neural Networks", arXiv 1803.10986.
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)

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
    """Gives a kernel in the transformed space, computed in float64 and rounded once.

    Args:
        kernel: (3, 3, cin, cout), as ``tf.nn.conv2d`` takes it.

    Returns:
        (36, cin, cout) float32: four times the bytes.
    """
    _, matrix, _ = transform_matrices()
    flat = np.kron(matrix, matrix) @ kernel.reshape(KERNEL_SIDE**2, -1).astype(np.float64)
    return flat.astype(np.float32).reshape(SIDE**2, *kernel.shape[2:])
