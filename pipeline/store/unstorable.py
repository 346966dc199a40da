"""What is said of a value that cannot be stored: the one line that names image and layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import NetworkError
from ..records import RunSpec
from . import codec


def value_error(spec: RunSpec, index: int, layer: str, values: NDArray[np.float32]) -> NetworkError:
    """Gives the one line for a row with a value that cannot be stored."""
    got = codec.first_unstorable(values, spec.dtype)
    where = f"{spec.manifest.keys[index]}: layer {layer}"
    if np.isfinite(got):
        return NetworkError(
            f"{where} has a value that float16 cannot hold, got {got:g}. Expected values from -65504 to 65504. "
            f"Use output.dtype=float32."
        )
    return NetworkError(
        f"{where} has a value that is not finite, got {got:g}. Expected finite numbers. Check network.weights and the image."
    )
