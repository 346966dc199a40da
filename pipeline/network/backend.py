"""What computes the convolutions, and which of them a run uses: a part of its identity, so known before TensorFlow is loaded."""

from __future__ import annotations

TENSORFLOW = "tensorflow"
WINOGRAD = "winograd"


def choose_backend(requested: str) -> str:
    """Return the backend that a run uses on a CPU. A GPU always uses TensorFlow, within the same tolerance.

    Winograd's algorithm is faster at every size and for every number of images, so nothing else needs to be known.

    Args:
        requested: ``auto``, ``tensorflow`` or ``winograd``.

    Returns:
        ``tensorflow`` or ``winograd``.
    """
    return WINOGRAD if requested == "auto" else requested
