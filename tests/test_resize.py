from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.resize import (
    CANVAS_SIDE_PX,
    LONGEST_SCALED_PX,
    ResizeSpec,
    dct_reduction,
    fit_canvas,
    place_image,
    resize_on_host,
)
from pipeline.network.vgg import DeviceFunctions, first_step, infer_on_host
from pipeline.records import Batch, ImageStatus

from . import oracle
from .conftest import MEAN_PIXEL
from .plain_script import to_size

Resized = Callable[[Sequence[NDArray[np.uint8]], ResizeSpec], NDArray[np.float32]]

# Grey levels: of the same sums in float64, and of Pillow's bytes. Pillow rounds each pass by half a level; the second pass of a
# sharp filter makes up to 1.3 times as much of the first one's.
EXACT, ROUNDED = 0.01, 1.15

# Up and down, one pixel, strips, hard at the border of the canvas, sides of 8000 px.
SIZES = [(1, 1), (1, 300), (300, 1), (37, 53), (64, 48), (375, 500), (500, 250), (224, 448)]
SIZES += [(1024, 1023), (1024, 1025), (1100, 1300), (2400, 500), (8000, 8), (9, 8000)]
FILTERS = ["nearest", "bilinear", "bicubic", "lanczos"]
QUICK = {("squash", "bilinear"), ("crop", "lanczos"), ("pad", "nearest")}


def stripes(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Hard black and white edges: what makes the sharp filters overshoot."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 2, (-(-height // 5), -(-width // 5), 3), dtype=np.uint8)
    return small.repeat(5, axis=0).repeat(5, axis=1)[:height, :width] * np.uint8(255)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_images(folder: Path, with_bad: bool = True) -> None:
    """Writes images of several sizes, one of them too large for a canvas, and among them three bad ones."""
    folder.mkdir()
    for number, size in enumerate([(64, 64), (60, 131), (150, 61), (1100, 40), (77, 65), (33, 90)]):
        Image.fromarray(noise(*size, number)).save(folder / f"{number}.png")
    if with_bad:
        whole = (folder / "0.png").read_bytes()
        for name, content in (("1 cut.png", whole[:200]), ("2 empty.jpg", b""), ("3 page.jpg", b"<p>")):
            (folder / name).write_bytes(content)


def batch_of(images: Sequence[NDArray[Any] | None]) -> Batch:
    """A batch whose canvas holds these images; None is a failed row."""
    held = [np.zeros((0, 0, 3), np.uint8) if image is None else image for image in images]
    sizes = np.array([image.shape[:2] for image in held], np.int32)
    canvas = np.zeros((len(held), *sizes.max(axis=0), 3), held[0].dtype)
    for row, image in enumerate(held):
        canvas[row, : image.shape[0], : image.shape[1]] = image
    statuses = [
        ImageStatus(10 + row, "corrupt: test" if image is None else "", *map(int, sizes[row]), 0, "")
        for row, image in enumerate(images)
    ]
    return Batch(tuple(statuses), canvas, sizes)


def on_host(images: Sequence[NDArray[np.uint8]], spec: ResizeSpec) -> NDArray[np.float32]:
    """What the loader makes of images where the network runs on the CPU."""
    mean_pixel = MEAN_PIXEL.astype(np.float32)
    return np.stack([resize_on_host(image, spec, mean_pixel) for image in images])


@cache
def device_function(spec: ResizeSpec) -> Any:
    """The first step, traced once for all tests."""
    return first_step(spec, MEAN_PIXEL)


def on_device(images: Sequence[NDArray[np.uint8]], spec: ResizeSpec) -> NDArray[np.float32]:
    """What the device functions make of them before the first layer."""
    batch = batch_of([fit_canvas(image, spec) for image in images])
    found = np.zeros((len(images), *spec.size_px, 3), np.float32)
    network = DeviceFunctions(lambda *inputs: [("images", device_function(spec)(*inputs).numpy())], spec)
    for features in network(batch):
        found[features.indices - 10] = features.values
    assert (found.dtype, found.shape) == (np.float32, (len(images), *spec.size_px, 3))
    return np.asarray(found)


@pytest.fixture(params=["host", "device"])
def resized(request: pytest.FixtureRequest) -> Resized:
    return on_host if request.param == "host" else on_device


def expected(
    image: NDArray[np.uint8], spec: ResizeSpec, resize: Callable[..., NDArray[np.float64]] = oracle.resize
) -> NDArray[np.float64]:
    return np.nan_to_num(to_size(image, [*spec.size_px], spec.mode, spec.interpolation, resize) - MEAN_PIXEL)


@pytest.mark.parametrize(
    ("mode", "interpolation"),
    [
        pytest.param(mode, interpolation, marks=() if (mode, interpolation) in QUICK else pytest.mark.slow)
        for mode in ("squash", "crop", "pad")
        for interpolation in FILTERS
    ],
)
def test_images_of_the_canvas_are_resized_as_in_double_precision_and_larger_ones_as_pillow_does(
    mode: str, interpolation: str, resized: Resized
) -> None:
    spec = ResizeSpec((64, 56), mode, interpolation)
    for make in (stripes, noise):
        images = [make(*size) for size in SIZES]
        for image, found in zip(images, resized(images, spec), strict=True):
            place = place_image(*image.shape[:2], spec)
            if max(place.scaled_height, place.scaled_width) > LONGEST_SCALED_PX:
                continue  # which a test of its own has
            if max(image.shape[:2]) > CANVAS_SIDE_PX or interpolation == "nearest":
                error = np.abs(found - expected(image, spec, oracle.by_pillow)).max()
                assert error <= 1e-4, (make.__name__, image.shape, error)
            else:
                error = np.abs(found - expected(image, spec)).max()
                assert error <= EXACT, (make.__name__, image.shape, error)
                assert np.abs(found - expected(image, spec, oracle.by_pillow)).max() <= ROUNDED, (make.__name__, image.shape)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_images_are_enlarged_as_exactly_as_they_are_reduced(interpolation: str, resized: Resized) -> None:
    # Where a pixel's position as a single would be off by a hundredth of a pixel's width.
    spec = ResizeSpec((1500, 40), "squash", interpolation)
    image = stripes(1021, 60)
    assert np.abs(resized([image], spec)[0] - expected(image, spec)).max() <= EXACT


def test_a_large_image_is_pillows_bit_for_bit() -> None:
    for interpolation in FILTERS:
        for size in ((1025, 300), (3000, 2000), (20, 5000)):
            image = stripes(*size)
            found = fit_canvas(image, ResizeSpec((64, 56), "squash", interpolation))
            np.testing.assert_array_equal(found, oracle.by_pillow(image, 64, 56, interpolation))
            assert place_image(*found.shape[:2], ResizeSpec((64, 56), "squash", interpolation))[:2] == (64, 56)
    image = noise(CANVAS_SIDE_PX, 30)
    assert fit_canvas(image, ResizeSpec((64, 56), "squash", "bicubic")) is image


@pytest.mark.parametrize("interpolation", FILTERS)
def test_enormous_strips_cost_no_memory(interpolation: str, resized: Resized) -> None:
    spec = ResizeSpec((32, 32), "crop", interpolation)
    # Scaled as a whole this would be 32 x 6,400,000 px.
    strip = noise(1, 200_000)
    assert place_image(1, 200_000, spec).scaled_width == 6_400_000
    found = resized([strip], spec)[0] + MEAN_PIXEL
    assert np.abs(found[:, 16] - strip[0, 100_000]).max() < 130
    assert np.ptp(found, axis=0).max() < 1e-3


def test_neighbours_and_batch_size_change_no_bit_on_the_host_and_hardly_one_on_the_device(resized: Resized) -> None:
    spec = ResizeSpec((64, 56), "crop", "bicubic")
    images = [noise(*size, seed=index) for index, size in enumerate([(1, 1), (37, 53), (375, 500), (1100, 1300), (9, 8000)])]
    together = resized(images, spec)
    for index, image in enumerate(images):
        np.testing.assert_allclose(resized([image], spec)[0], together[index], rtol=0, atol=0 if resized is on_host else 1e-3)
    np.testing.assert_allclose(resized(images[::-1], spec), together[::-1], rtol=0, atol=0 if resized is on_host else 1e-3)


@pytest.mark.parametrize(
    ("size", "factor"),
    [((224, 224), 1), ((447, 9000), 1), ((895, 1000), 1), ((900, 1000), 2), ((1800, 2000), 4), ((9000, 9000), 8)],
)
def test_a_jpeg_is_reduced_to_no_less_than_twice_the_target(size: tuple[int, int], factor: int) -> None:
    assert dct_reduction(*size, ResizeSpec((224, 224), "squash", "bilinear")) == factor


# -- From a batch to features --------------------------------------------------------------------------------------------------


def test_a_scale_divides_what_the_mean_has_left_and_padding_stays_zero() -> None:
    image, scale = noise(30, 21, 1), np.array([58.395, 57.12, 57.375])
    spec = ResizeSpec((16, 16), "pad", "bilinear")
    right = expected(image, spec) / scale
    host = resize_on_host(image, spec, MEAN_PIXEL.astype(np.float32), scale.astype(np.float32))
    place = np.array([place_image(30, 21, spec)], np.float64)
    device = np.asarray(first_step(spec, MEAN_PIXEL, scale)(image[None], place))[0]
    for found in (host, device):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, right, atol=0.01 / 57)
        assert not found[:, :2].any()
    (features,) = infer_on_host(batch_of([image]), lambda images: [("images", np.asarray(images))], MEAN_PIXEL, scale)
    np.testing.assert_allclose(features.values[0], (image - MEAN_PIXEL) / scale, atol=1e-6)
    native = first_step(None, MEAN_PIXEL, scale)(image[None])
    np.testing.assert_allclose(np.asarray(native), features.values, atol=1e-6)


def test_every_step_of_a_device_has_the_same_number_of_rows() -> None:
    seen = []

    def network(canvas: Any, geometry: Any) -> Any:
        seen.append((canvas.shape, geometry.shape))
        yield "relu1_1", np.arange(len(canvas), dtype=np.float32)

    spec = ResizeSpec((16, 16), "squash", "bilinear")
    functions = DeviceFunctions(network, spec, fills=True)
    (features,) = functions(replace(batch_of([noise(20, 30), None, noise(30, 20)]), full_rows=5))
    assert seen == [((5, 30, 30, 3), (5, 6))]
    assert (features.indices.tolist(), features.values.tolist()) == ([10, 12], [0.0, 2.0])
    assert not list(functions(batch_of([None])))
