from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ImageError, OptionError
from pipeline.images.decode import decode_image
from pipeline.images.resize import ResizeSpec
from pipeline.network.architectures import VggTable
from pipeline.network.device import TOLERANCES, choose_device, gpu_memory, set_precision
from pipeline.network.vgg import Network
from pipeline.network.winograd import prepare_segments

from . import oracle
from .conftest import MEAN_PIXEL
from .test_resize import on_host

TOLERANCE = 1e-5


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """A smooth coloured picture with the mean removed, (1, h, w, 3)."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(9 * rows + 5 * columns * (channel + 1) + phase) for channel, phase in enumerate(phases)]
    return (100 * np.stack(waves, axis=-1)[None]).astype(np.float32)


def run(weights: Any, words: list[str], image: Any, fixed: bool = True, **options: Any) -> dict[str, NDArray[np.float32]]:
    network = build(weights, words, tuple(image.shape[1:3]) if fixed else None, **options)
    found = {name: np.asarray(values) for name, values in network(image)}
    assert all(values.dtype == np.float32 for values in found.values())
    return found


def differences(found: dict[str, NDArray[np.float32]], expected: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    for name, values in found.items():
        assert values.shape == (1, *expected[name].shape), name
    return {name: oracle.relative_error(values[0], expected[name]) for name, values in found.items()}


@pytest.mark.parametrize(("network", "layers"), [("vgg19", 37), ("vgg16", 31)])
@pytest.mark.parametrize("backend", ["tensorflow", "winograd"])
def test_every_convolutional_layer_agrees_with_the_oracle(network: str, layers: int, backend: str, thin_weights: Any) -> None:
    # Odd sides from pool3 on; asked for alone and all together, since alone ReLU and pooling are taken in.
    weights, image = thin_weights(network), picture(24, 20)
    expected = oracle.forward(image[0].astype(np.float64), weights.kernels, weights.biases, network, until="pool5")
    for words in (["block1", "block2", "block3", "block4", "block5"], ["relu2_1", "pool4"]):
        found = run(weights, words, image, backend=backend)
        errors = differences(found, expected)
        assert len(errors) == (2 if "pool4" in words else layers)
        assert max(errors.values()) < TOLERANCE, errors
    if backend == "winograd":
        # Another arithmetic, or the engine was not used.
        assert not np.array_equal(found["relu2_1"], run(weights, ["relu2_1"], image)["relu2_1"])


@pytest.mark.parametrize(
    ("pooling", "padding", "backend"),
    [("max", "same", "tensorflow"), ("avg", "valid", "tensorflow"), ("avg", "same", "winograd"), ("max", "valid", "winograd")],
)
def test_odd_sides_are_pooled_as_told(pooling: str, padding: str, backend: str, thin_weights: Any) -> None:
    weights, image = replace(thin_weights(), pool_padding=padding), picture(19, 17)
    options: Any = {"round_up": padding == "same", "mean": pooling == "avg", "until": "pool4"}
    expected = oracle.forward(image[0].astype(np.float64), weights.kernels, weights.biases, **options)
    found = run(weights, ["pool1", "pool2", "pool3", "pool4"], image, pooling=pooling, backend=backend)
    errors = differences(found, expected)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.slow
def test_features_of_every_photograph_agree_with_the_oracle_up_to_the_classifier(photographs: Path, random_weights: Any) -> None:
    weights = random_weights("vgg19", classifier=True)
    layers = ["relu1_1", "pool3", "relu4_1", "relu5_4", "fc7"]
    paths = sorted(path for path in photographs.glob("*/*") if path.suffix in (".jpg", ".png"))
    assert len(paths) >= 5
    for path in paths:
        seen = on_host([decode_image(path.read_bytes())[0]], ResizeSpec((224, 224), "squash", "bilinear"))
        with Image.open(path) as image:
            exact = oracle.resize(np.asarray(image.convert("RGB")), 224, 224, "bilinear") - MEAN_PIXEL
        expected = oracle.forward(exact, weights.kernels, weights.biases, until="fc7")
        for backend in ("tensorflow", "winograd"):
            errors = differences(run(weights, layers, seen, backend=backend), expected)
            assert max(errors.values()) < TOLERANCE, (path, backend, errors)


@pytest.mark.slow
def test_the_classifier_agrees_with_the_oracle(random_weights: Any) -> None:
    weights, image = random_weights("vgg19", classifier=True), picture(224, 224)
    expected = oracle.forward(image[0].astype(np.float64), weights.kernels, weights.biases)
    found = run(weights, ["pool5", "fc*", "relu6", "prob"], image)
    # The softmax raises e to scores in the hundreds, and their rounding with them: it is held to the scores found.
    raised = np.exp(found["fc8"].astype(np.float64) - found["fc8"].max())
    np.testing.assert_allclose(found.pop("prob"), raised / raised.sum(), rtol=1e-5, atol=1e-12)
    errors = differences(found, expected)
    assert max(errors.values()) < TOLERANCE, errors
    # A larger input: the classifier slides over the map, with the same kernels.
    wide = picture(224, 260)
    expected = oracle.forward(wide[0].astype(np.float64), weights.kernels, weights.biases)
    for fixed in (True, False):
        for backend in ("tensorflow", "winograd"):
            errors = differences(run(weights, ["fc6", "fc8"], wide, fixed=fixed, backend=backend), expected)
            assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.slow
def test_the_classifier_takes_a_batch_image_by_image(random_weights: Any) -> None:
    weights = random_weights("vgg19", classifier=True)
    images = np.concatenate([picture(193, 193, seed) for seed in range(3)])
    network = build(weights, ["fc7"], (193, 193), backend="winograd")
    together, first = (np.asarray(next(network(batch))[1]) for batch in (images, images[:1]))
    assert together.shape == (3, 1, 1, 4096)
    np.testing.assert_array_equal(together[:1], first)
    assert len(np.unique(together[:, 0, 0, 0])) == 3


def test_a_batch_size_that_nobody_chose_fits_the_device() -> None:
    assert choose_device("cpu", None, (224, 224), "tensorflow", 16).batch_size == 8
    assert choose_device("cpu", None, (224, 224), "winograd", 2).batch_size == 8
    assert choose_device("cpu", None, (224, 224), "winograd", 16).batch_size == 64
    assert choose_device("cpu", None, (1000, 1000), "winograd", 16).batch_size == 3
    assert choose_device("cpu", 32, (224, 224), "winograd", 2) == choose_device("auto", 32, (224, 224), "winograd", 2)
    # Native size: the CPU's own engine takes an image at a time, whoever says what.
    assert choose_device("cpu", 3, None, "winograd", 2).batch_size == 1


@pytest.mark.parametrize("fails_at", [None, "cuInit", "cuMemGetInfo_v2"])
def test_the_driver_is_asked_for_the_memory_of_the_gpu_that_this_process_sees(
    fails_at: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cuda:
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any) -> int:
                if name == "cuDeviceGet":
                    arguments[0]._obj.value = 40 + arguments[1]
                if name == "cuDevicePrimaryCtxRetain":
                    assert arguments[1].value == 43
                if name == "cuMemGetInfo_v2":
                    arguments[0]._obj.value, arguments[1]._obj.value = 70 << 30, 80 << 30
                return 3 if name == fails_at else 0

            return call

    gpu_memory.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Cuda())
    assert gpu_memory(3) == (None if fails_at else (70 << 30, 80 << 30))
    gpu_memory.cache_clear()


def test_images_that_cannot_go_through_at_native_size_are_refused_with_the_reason(thin_weights: Any) -> None:
    network = build(replace(thin_weights(), pool_padding="valid"), ["pool5"], None)
    image = np.zeros((200, 32, 3), np.uint8)
    assert network.check_native_size(image, 10**9) is image
    with pytest.raises(ImageError, match="too small: 200 x 31 px, layer pool5 needs sides of 32 px"):
        network.check_native_size(image[:, 1:], 10**9)
    with pytest.raises(ImageError, match="too large for memory: 2000 x 1000 px need 2 GB at native size, 1 GB may be used"):
        network.check_native_size(np.zeros((2000, 1000, 3), np.uint8), 10**9)


def build(weights: Any, words: list[str], size_px: Any, *, backend: str = "tensorflow", **options: Any) -> Network:
    wanted, settings = VggTable(weights.network).resolve(words), {"pooling": "max"} | options
    parts = prepare_segments(weights, wanted, threads=2, **settings) if backend == "winograd" else None
    features = VggTable(weights.network, weights.pool_padding).plan(wanted, size_px)
    return Network(weights, features, device="/CPU:0", size_px=size_px, parts=parts, **settings)


# -- Precisions of a GPU


LAYERS = ["relu1_1", "relu3_1", "relu4_1", "relu5_4"]
# Of a float32's 23 bits TensorFloat-32 keeps 10. Source: NVIDIA A100 whitepaper, "TensorFloat-32".
DROPPED_BITS = 13


def shorten(values: tf.Tensor) -> tf.Tensor:
    """Rounds to TensorFloat-32, to nearest."""
    bits = tf.bitcast(values, tf.int32) + (1 << (DROPPED_BITS - 1))
    return tf.bitcast(tf.bitwise.bitwise_and(bits, -(1 << DROPPED_BITS)), tf.float32)


@pytest.mark.parametrize("side", [32, pytest.param(224, marks=pytest.mark.slow)])
def test_each_precision_keeps_its_tolerance(
    side: int, photographs: Path, thin_weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = thin_weights()
    with Image.open(photographs / "animals/chelsea.jpg") as picture:
        image = np.asarray(picture.convert("RGB").resize((side, side)), np.float64) - MEAN_PIXEL
    expected = oracle.forward(image, weights.kernels, weights.biases, until="relu5_4")

    def errors_of(precision: str) -> dict[str, float]:
        return differences(run(weights, LAYERS, image[None].astype(np.float32), fixed=False, precision=precision), expected)

    def with_short_factors(values: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
        return convolve(shorten(values), shorten(kernel), stride, padding)

    errors = {precision: errors_of(precision) for precision in ("bfloat16", "float32")}
    convolve = tf.nn.conv2d
    monkeypatch.setattr(tf.nn, "conv2d", with_short_factors)
    errors["tf32"] = errors_of("tf32")
    print({name: f"{max(found.values()):.1e}" for name, found in errors.items()})
    for precision, found in errors.items():
        assert max(found.values()) < TOLERANCES[precision], (precision, found)
    # Each is a different arithmetic, or the option would do nothing.
    assert errors["float32"]["relu5_4"] * 20 < errors["tf32"]["relu5_4"] < errors["bfloat16"]["relu5_4"] / 2


def test_what_only_a_gpu_does_is_refused_where_there_is_none() -> None:
    with pytest.raises(OptionError, match=r"runtime\.precision: .* sees no GPU here, got tf32\. Expected float32"):
        set_precision("tf32", "cpu")
