"""The ways of convolving, and which one a run uses: a part of its identity, so known before TensorFlow is loaded."""

from __future__ import annotations

DIRECT = "direct"
WINOGRAD = "winograd"

# F(4 x 4, 3 x 3): outputs of a tile along each side, and the kernel's side.
KERNEL_SIDE = 3
TILE = 4


def choose_convolution(requested: str) -> str:
    """Gives the method that a run uses on a CPU; on a GPU cuDNN chooses, within the same tolerance.

    Winograd's is faster at every size and for every number of images, so nothing else needs to be known.

    Args:
        requested: ``auto``, ``direct`` or ``winograd``.

    Returns:
        ``direct`` or ``winograd``.
    """
    return WINOGRAD if requested == "auto" else requested
