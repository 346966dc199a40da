"""Which layers are convolved by Winograd's algorithm, and when its compilation repays. A function of shapes and numbers alone.

No TensorFlow: the choice is part of a run's identity, which is known before TensorFlow is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..records import LayerSpec
from .layers import layer_table, output_shapes

DIRECT = "direct"
WINOGRAD = "winograd"

# F(4 x 4, 3 x 3): outputs of a tile along each side, and the kernel's side.
KERNEL_SIDE = 3
TILE = 4

# The transforms cost more than they save on few channels (conv1_1 has 3) ...
SMALLEST_CHANNELS = 16
# ... and reading 4 times the kernel's bytes costs more than it saves on few tiles. Measured: equal at 16 tiles of 512 channels
# (14 px) and at 64 of 128 (32 px), faster at 49 of 256 (28 px) and at 25 of 512 (20 px).
SMALLEST_TILES_TIMES_CHANNELS = 10_000

# Making one layer shape ready takes as long as this many multiply-adds of a direct convolution (0.9 s at 1e11 a second), and a
# Winograd layer half as long as a direct one. Constants, not measured anew: the choice must not differ between runs.
COMPILING_MULTIPLY_ADDS = 90_000_000_000
SAVED_FRACTION = 0.5

Shape = tuple[int, int, tuple[int, int, int, int]]


def suits(height: int, width: int, kernel_shape: tuple[int, int, int, int]) -> bool:
    """Tells whether a layer is faster this way than by ``tf.nn.conv2d``, once compiled. A function of its shape alone.

    Args:
        height: Of the layer's input and output, px.
        width: Likewise.
        kernel_shape: (kh, kw, cin, cout).
    """
    tiles = -(-height // TILE) * -(-width // TILE)
    return (
        kernel_shape[:2] == (KERNEL_SIDE, KERNEL_SIDE)
        and kernel_shape[2] >= SMALLEST_CHANNELS
        and tiles * kernel_shape[2] >= SMALLEST_TILES_TIMES_CHANNELS
    )


def repays_compiling(layers: Iterable[Shape], images: int) -> bool:
    """Tells whether so many images save more time than compiling costs: at 224 px 72 to relu5_4, 90 to relu4_1.

    Args:
        layers: (height, width, kernel shape) of every convolution that runs for each image; those that do not suit are left out.
        images: Images of this size in the whole run.
    """
    suited = [layer for layer in layers if suits(*layer)]
    saved = SAVED_FRACTION * sum(height * width * math.prod(kernel) for height, width, kernel in suited)
    return images * saved > len(set(suited)) * COMPILING_MULTIPLY_ADDS


def choose_convolution(
    requested: str, network: str, wanted: Sequence[LayerSpec], size_px: tuple[int, int] | None, pool_padding: str, images: int
) -> str:
    """Gives the method that a run uses on a CPU; on a GPU cuDNN chooses, within the same tolerance.

    Args:
        requested: ``auto``, ``direct`` or ``winograd``.
        network: Its name.
        wanted: Layers that are stored.
        size_px: (height, width) of all inputs; None at native size, where each shape would have to be compiled.
        pool_padding: ``same`` or ``valid``.
        images: Rows of the run, whatever part of them is still to do: the choice must not change in its course.

    Returns:
        ``direct`` or ``winograd``.
    """
    if requested != "auto":
        return requested
    if size_px is None:
        return DIRECT
    shapes = output_shapes(network, size_px, pool_padding)
    convolutions = [
        (*shapes[layer.name][:2], layer.kernel_shape)
        for layer in layer_table(network)[: wanted[-1].network_index + 1]
        if layer.kind == "conv" and layer.kernel_shape
    ]
    return WINOGRAD if repays_compiling(convolutions, images) else DIRECT
