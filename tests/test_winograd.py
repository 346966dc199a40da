from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.network.convolution import repays_compiling, suits
from pipeline.network.layers import layer_table, output_shapes
from pipeline.network.winograd import compiled_convolve, convolve, transform_kernel, transform_matrices

from . import oracle

ONE_LAYER = 2e-6
ALL_LAYERS = 1e-5


def draw(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def smooth(height: int, width: int) -> NDArray[np.float32]:
    """A coloured picture with the mean removed, (h, w, 3); unlike noise, its channels agree and large sums cancel."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    return (100 * np.stack([np.sin(9 * rows + 5 * columns * (channel + 1)) for channel in range(3)], axis=-1)).astype(np.float32)


def convolutions(until: str, side: int) -> list[tuple[int, int, tuple[int, int, int, int]]]:
    shapes = output_shapes("vgg19", (side, side), "same")
    layers = list(itertools.takewhile(lambda layer: layer.name != until, layer_table("vgg19")))
    return [(*shapes[layer.name][:2], layer.kernel_shape) for layer in layers if layer.kernel_shape]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_matrices_give_the_correlation_itself(seed: int) -> None:
    output, kernel, data = transform_matrices()
    values, taps = draw((6,), seed).astype(np.float64), draw((3,), seed + 9).astype(np.float64)
    np.testing.assert_allclose(output @ ((kernel @ taps) * (data @ values)), np.correlate(values, taps), rtol=0, atol=1e-13)


def test_a_kernel_is_transformed_in_float64_and_rounded_once() -> None:
    kernel = draw((3, 3, 5, 7), 0)
    matrix = transform_matrices()[1]
    expected = np.einsum("ia,abcd,jb->ijcd", matrix, kernel.astype(np.float64), matrix)
    transformed = transform_kernel(kernel)
    assert transformed.shape == (36, 5, 7)
    assert transformed.dtype == np.float32
    np.testing.assert_allclose(transformed.reshape(6, 6, 5, 7), expected, rtol=6e-8, atol=1e-12)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (13, 2), (1, 30), (28, 28)])
def test_every_size_agrees_with_the_oracle(size: tuple[int, int], relu: bool) -> None:
    images, kernel, bias = draw((2, *size, 16), 0), draw((3, 3, 16, 24), 1), draw((24,), 2)
    found = convolve(images, transform_kernel(kernel), bias, relu)
    assert found.shape == (2, *size, 24)
    assert found.dtype == tf.float32
    for row, image in zip(found.numpy(), images, strict=True):
        expected = oracle.convolve(image.astype(np.float64), kernel, bias, 1)
        assert oracle.relative_error(row, np.maximum(expected, 0) if relu else expected) < ONE_LAYER


@pytest.mark.parametrize("size", [(83, 81), (9, 1700), (404, 16)])
def test_strips_leave_no_seam(size: tuple[int, int]) -> None:
    images, kernel, bias = draw((2, *size, 4), 0), draw((3, 3, 4, 3), 1), draw((3,), 2)
    found = compiled_convolve(images, transform_kernel(kernel), bias, False).numpy()
    assert found.shape == (2, *size, 3)
    for row, image in zip(found, images, strict=True):
        difference = np.abs(row - oracle.convolve(image.astype(np.float64), kernel, bias, 1))
        assert difference.max() < 1e-4


def test_errors_do_not_add_up_over_the_network(random_weights: Any) -> None:
    weights, picture = random_weights(), smooth(64, 60)
    expected = oracle.forward(picture.astype(np.float64), weights.kernels, weights.biases, until="relu5_4")
    values, errors = tf.constant(picture[None]), {}
    for layer in itertools.takewhile(lambda layer: layer.name != "pool5", layer_table("vgg19")):
        if layer.kind == "conv":
            kernel = transform_kernel(weights.kernels[layer.name])
            values = convolve(values, kernel, weights.biases[layer.name], relu=False)
        else:
            values = tf.nn.relu(values) if layer.kind == "relu" else tf.nn.max_pool2d(values, 2, 2, "SAME")
        errors[layer.name] = oracle.relative_error(values.numpy()[0], expected[layer.name])
    assert len(errors) == 36
    assert max(errors.values()) < ALL_LAYERS, errors


def test_one_image_has_one_result_however_often_and_from_however_many_threads() -> None:
    images = [tf.constant(draw((1, 28, 28, 64), seed)) for seed in range(3)]
    kernel, bias = tf.constant(transform_kernel(draw((3, 3, 64, 64), 7))), tf.constant(draw((64,), 8))

    def run(index: int) -> bytes:
        return bytes(compiled_convolve(images[index], kernel, bias, True).numpy().tobytes())

    first = [run(index) for index in range(3)]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(run, [0, 1, 2] * 8))
    assert again == first * 8


def test_layers_of_equal_shape_share_one_compilation() -> None:
    traces = compiled_convolve.experimental_get_tracing_count()
    for seed in range(3):
        compiled_convolve(
            tf.constant(draw((1, 6, 10, 8), seed)), transform_kernel(draw((3, 3, 8, 8), seed)), np.zeros(8, "f"), False
        )
    assert compiled_convolve.experimental_get_tracing_count() == traces + 1


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ((224, 224, (3, 3, 3, 64)), False),
        ((2000, 2000, (3, 3, 3, 64)), False),
        ((224, 224, (3, 3, 64, 64)), True),
        ((112, 112, (3, 3, 128, 128)), True),
        ((28, 28, (3, 3, 512, 512)), True),
        ((14, 14, (3, 3, 512, 512)), False),
        ((32, 32, (3, 3, 64, 64)), False),
        ((224, 224, (1, 1, 64, 64)), False),
        ((224, 224, (7, 7, 512, 4096)), False),
    ],
)
def test_a_layer_is_chosen_by_its_shape(layer: tuple[int, int, tuple[int, int, int, int]], expected: bool) -> None:
    assert suits(*layer) is expected


@pytest.mark.parametrize(("until", "images"), [("relu4_1", 90), ("relu5_4", 72)])
def test_a_short_job_is_not_worth_compiling_for(until: str, images: int) -> None:
    layers = convolutions(until, 224)
    assert not repays_compiling(layers, images - 1)
    assert repays_compiling(layers, images + 1)


def test_small_images_never_repay_compiling() -> None:
    assert not repays_compiling(convolutions("relu5_4", 32), 10**9)


def test_one_large_image_repays_compiling() -> None:
    assert repays_compiling(convolutions("relu5_4", 2560), 1)
