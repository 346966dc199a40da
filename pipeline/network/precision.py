"""How exactly a GPU multiplies: what ``runtime.precision`` means, and how far its features are from the exact ones.

A CPU computes in float32 always. TensorFloat-32 and bfloat16 shorten the factors of a product, not its sums.
"""

from __future__ import annotations

import tensorflow as tf

from ..errors import OptionError

FLOAT32 = "float32"
TENSOR_FLOAT = "tf32"
BFLOAT = "bfloat16"

# Largest relative error (norm) of a layer up to relu5_4, against float64. Measured on a photograph at 224 px with random weights
# (tests/test_precision.py): 2.7e-6, 1.1e-3, 8.9e-3; the second on a CPU, with factors rounded to 10 bits before each product.
# Trained weights cancel more, so there is room.
TOLERANCES = {FLOAT32: 1e-5, TENSOR_FLOAT: 1e-2, BFLOAT: 5e-2}


def set_precision(precision: str, kind: str) -> None:
    """Tell TensorFlow, for the whole process, whether a GPU may use TensorFloat-32: 10 bits of each factor.

    Args:
        precision: One of :data:`TOLERANCES`.
        kind: Of the device, ``cpu`` or ``gpu``.

    Raises:
        OptionError: The device is a CPU and another precision than float32 is asked for.
    """
    if kind == "cpu" and precision != FLOAT32:
        raise OptionError(
            f"runtime.precision: a CPU computes in float32 and TensorFlow sees no GPU here, got {precision}. Expected float32, "
            "or a GPU. Leave it out, or install the `gpu` extra (tensorflow[and-cuda])."
        )
    tf.config.experimental.enable_tensor_float_32_execution(precision == TENSOR_FLOAT)


def convolve(values: tf.Tensor, kernel: tf.Tensor, padding: str, precision: str) -> tf.Tensor:
    """Convolve with stride 1; of bfloat16 factors where the precision says so.

    Args:
        values: (n, h, w, cin) float32.
        kernel: (kh, kw, cin, cout) float32.
        padding: ``SAME`` or ``VALID``.
        precision: One of :data:`TOLERANCES`.

    Returns:
        (n, h', w', cout) float32.
    """
    if precision != BFLOAT:
        return tf.nn.conv2d(values, kernel, 1, padding)
    short = tf.nn.conv2d(tf.cast(values, tf.bfloat16), tf.cast(kernel, tf.bfloat16), 1, padding)
    return tf.cast(short, tf.float32)
