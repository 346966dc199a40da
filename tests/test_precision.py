"""The precisions of a GPU, on a CPU: bfloat16 as TensorFlow computes it here too, TensorFloat-32 by rounding its factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline.errors import OptionError
from pipeline.network.architectures import plan_features, resolve_layers
from pipeline.network.device import TOLERANCES, set_precision
from pipeline.network.vgg import Network

from . import oracle
from .conftest import MEAN_PIXEL

LAYERS = ["relu1_1", "relu3_1", "relu4_1", "relu5_4"]
# Of a float32's 23 bits TensorFloat-32 keeps 10. Source: NVIDIA A100 whitepaper, "TensorFloat-32".
DROPPED_BITS = 13


def shorten(values: tf.Tensor) -> tf.Tensor:
    """Rounds to TensorFloat-32, to nearest."""
    bits = tf.bitcast(values, tf.int32) + (1 << (DROPPED_BITS - 1))
    return tf.bitcast(tf.bitwise.bitwise_and(bits, -(1 << DROPPED_BITS)), tf.float32)


def errors_of(image: np.ndarray, weights: Any, expected: dict[str, Any], precision: str) -> dict[str, float]:
    settings = {"pooling": "max", "kernel_order": "hwio", "device": "/CPU:0", "size_px": None}
    network = Network(
        weights, plan_features("vgg19", resolve_layers("vgg19", LAYERS), None, "same"), precision=precision, **settings
    )
    found = {name: np.asarray(values)[0] for name, values in network(image[None].astype(np.float32))}
    assert all(values.dtype == np.float32 for values in found.values())
    return {name: oracle.relative_error(values, expected[name]) for name, values in found.items()}


@pytest.mark.parametrize("side", [32, pytest.param(224, marks=pytest.mark.slow)])
def test_each_precision_keeps_its_tolerance(
    side: int, photographs: Path, thin_weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = thin_weights()
    with Image.open(photographs / "animals/chelsea.jpg") as picture:
        image = np.asarray(picture.convert("RGB").resize((side, side)), np.float64) - MEAN_PIXEL
    expected = oracle.forward(image, weights.kernels, weights.biases, until="relu5_4")
    errors = {"bfloat16": errors_of(image, weights, expected, "bfloat16")}

    def with_short_factors(values: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
        return convolve(shorten(values), shorten(kernel), stride, padding)

    errors["float32"] = errors_of(image, weights, expected, "float32")
    convolve = tf.nn.conv2d
    monkeypatch.setattr(tf.nn, "conv2d", with_short_factors)
    errors["tf32"] = errors_of(image, weights, expected, "tf32")
    print({name: f"{max(found.values()):.1e}" for name, found in errors.items()})
    for precision, found in errors.items():
        assert max(found.values()) < TOLERANCES[precision], (precision, found)
    # Each is a different arithmetic, or the option would do nothing.
    assert errors["float32"]["relu5_4"] * 20 < errors["tf32"]["relu5_4"] < errors["bfloat16"]["relu5_4"] / 2


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_what_only_a_gpu_does_is_refused_where_there_is_none(precision: str) -> None:
    with pytest.raises(OptionError, match=rf"runtime.precision: .* sees no GPU here, got {precision}. Expected float32"):
        set_precision(precision, "cpu")
