from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.preprocess import FixedSize, NativeSize
from pipeline.images.resample import hand_over
from pipeline.images.resize_device import DeviceResize
from pipeline.images.resize_host import HostResize
from pipeline.images.seen import restore_image
from pipeline.images.tables import HOST_PIXELS, ResizeSpec, axis_table, dct_reduction, plan_resize
from pipeline.records import Batch, ImageStatus

from . import oracle
from .conftest import MEAN_PIXEL

Resized = Callable[[Sequence[NDArray[np.uint8] | None], ResizeSpec], NDArray[np.float32]]

# Up and down, one pixel, strips, sides of 8000 px; some large enough to be resampled on the host.
SIZES = [
    (1, 1),
    (1, 300),
    (300, 1),
    (37, 53),
    (64, 48),
    (375, 500),
    (500, 250),
    (224, 448),
    (1100, 1300),
    (2400, 500),
    (8000, 8),
    (9, 8000),
]


def stripes(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Hard black and white edges: what makes the sharp filters overshoot."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 2, (-(-height // 5), -(-width // 5), 3), dtype=np.uint8)
    return small.repeat(5, axis=0).repeat(5, axis=1)[:height, :width] * np.uint8(255)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def batch_of(images: Sequence[NDArray[np.uint8] | None], spec: ResizeSpec | None) -> Batch:
    handed = [
        np.empty((0, 0, 3), np.uint8) if image is None else image if spec is None else hand_over(image, spec) for image in images
    ]
    statuses = [
        ImageStatus(index, "corrupt: test", 0, 0, 0, "") if image is None else ImageStatus(index, "", *image.shape[:2], 0, "")
        for index, image in enumerate(images)
    ]
    sources = np.array([(0, 0) if image is None else image.shape[:2] for image in images], np.int32)
    return Batch(tuple(statuses), tuple(handed), sources)


def on_host(images: Sequence[NDArray[np.uint8] | None], spec: ResizeSpec) -> NDArray[np.float32]:
    """Gives what becomes of images by one worker of the loader."""
    resizer = HostResize(spec, MEAN_PIXEL)
    results = resizer.memory(len(images))
    for image, result in zip(images, results, strict=True):
        # Of whatever values: all of them are to be written.
        result.fill(0.0 if image is None else np.nan)
        if image is not None:
            resizer.resize(image, result)
    return results


@pytest.fixture(params=["host", "device"])
def resized(request: pytest.FixtureRequest) -> Resized:
    def resize(images: Sequence[NDArray[np.uint8] | None], spec: ResizeSpec) -> NDArray[np.float32]:
        if request.param == "host":
            return on_host(images, spec)
        found = np.asarray(DeviceResize(spec, MEAN_PIXEL, "/CPU:0")(batch_of(images, spec)))
        assert found.dtype == np.float32
        return found

    return resize


def expected(image: NDArray[np.uint8], spec: ResizeSpec) -> NDArray[np.float64]:
    (target_height, target_width), (height, width) = spec.size_px, image.shape[:2]
    if spec.mode == "squash":
        return oracle.resize(image, target_height, target_width, spec.interpolation) - MEAN_PIXEL
    if spec.mode == "crop":
        scale = max(target_height / height, target_width / width)
        whole = (
            (target_height, max(target_width, target_height * width // height))
            if scale == target_height / height
            else (max(target_height, target_width * height // width), target_width)
        )
        top, left = round((whole[0] - target_height) / 2), round((whole[1] - target_width) / 2)
        scaled = oracle.resize(image, *whole, spec.interpolation)
        return scaled[top : top + target_height, left : left + target_width] - MEAN_PIXEL
    scale = min(target_height / height, target_width / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    result = np.zeros((target_height, target_width, 3))
    top, left = (target_height - inner[0]) // 2, (target_width - inner[1]) // 2
    result[top : top + inner[0], left : left + inner[1]] = oracle.resize(image, *inner, spec.interpolation) - MEAN_PIXEL
    return result


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("mode", ["squash", "crop", "pad"])
def test_resizing_is_within_one_grey_level_of_pillow(
    mode: str, interpolation: str, resized: Resized, request: pytest.FixtureRequest
) -> None:
    spec = ResizeSpec((64, 56), mode, interpolation)
    for make in (stripes, noise):
        sizes = SIZES
        if request.node.callspec.params["resized"] == "device":
            # Of either kind every second one, since TensorFlow takes its time for each new shape.
            sizes = SIZES[(make is noise) != (mode == "crop") :: 2]
        images = [make(*size) for size in sizes]
        for image, found in zip(images, resized(images, spec), strict=True):
            error = np.abs(found - expected(image, spec)).max()
            on_host = any(axis.on_host for axis in plan_resize(*image.shape[:2], spec)[:2])
            assert error <= (0.85 if on_host else 0.001), (make.__name__, image.shape, error)


def test_some_of_these_sizes_are_resampled_on_the_host() -> None:
    assert HOST_PIXELS < 1100 * 1300
    for interpolation, on_host, shape in [
        ("bilinear", (True, False), (64, 1300, 3)),
        ("bicubic", (False, True), (1100, 56, 3)),
        ("lanczos", (False, True), (1100, 56, 3)),
    ]:
        spec = ResizeSpec((64, 56), "squash", interpolation)
        plan = plan_resize(1100, 1300, spec)
        assert (plan.rows.on_host, plan.columns.on_host) == on_host
        assert hand_over(noise(1100, 1300), spec).shape == shape
    tall = plan_resize(2400, 500, ResizeSpec((64, 56), "squash", "lanczos"))
    assert (tall.rows.on_host, tall.columns.on_host, tall.rows_first) == (True, False, True)
    wide = plan_resize(100, 20_000, ResizeSpec((64, 56), "squash", "bilinear"))
    assert (wide.rows.on_host, wide.columns.on_host, wide.rows_first) == (False, True, False)


def test_resizing_agrees_with_the_picture_pillow_makes(resized: Resized) -> None:
    spec = ResizeSpec((64, 56), "squash", "bilinear")
    image = noise(375, 500)
    picture = np.asarray(Image.fromarray(image).resize((56, 64), Image.Resampling.BILINEAR))
    assert np.abs(resized([image], spec)[0] + MEAN_PIXEL - picture).max() <= 1.0


def test_enormous_strips_cost_no_memory(resized: Resized) -> None:
    spec = ResizeSpec((32, 32), "crop", "bilinear")
    # Scaled as a whole this would be 32 x 6,400,000 px.
    strip = noise(1, 200_000)
    assert hand_over(strip, spec).size <= 300
    assert np.abs(resized([strip], spec)[0] - (strip[0, 100_000] - MEAN_PIXEL)).max() < 256
    both = plan_resize(40_000_000, 1, ResizeSpec((32, 32), "squash", "bilinear"))
    assert both.rows.handed_over * both.columns.handed_over <= 32 * 32


def test_an_image_of_the_target_size_is_not_changed(resized: Resized) -> None:
    image = noise(48, 40)
    for interpolation in ("nearest", "bilinear", "bicubic", "lanczos"):
        found = resized([image], ResizeSpec((48, 40), "squash", interpolation))[0]
        np.testing.assert_array_equal(restore_image(found, MEAN_PIXEL), image)


def test_neighbours_and_batch_size_change_no_bit(resized: Resized) -> None:
    spec = ResizeSpec((64, 56), "crop", "bicubic")
    images = [noise(*size, seed=index) for index, size in enumerate(SIZES)]
    together = resized(images, spec)
    for index, image in enumerate(images):
        np.testing.assert_array_equal(resized([image], spec)[0], together[index])
    np.testing.assert_array_equal(resized(images[::-1], spec), together[::-1])


def test_a_failed_image_is_a_row_of_zeros_and_no_step(resized: Resized, request: pytest.FixtureRequest) -> None:
    spec = ResizeSpec((16, 16), "squash", "bilinear")
    images = [noise(20, 30, 1), None, noise(40, 10, 2)]
    found = resized(images, spec)
    if request.node.callspec.params["resized"] == "device":
        assert not found[1].any()  # On the host that is the loader's, and in its tests.
    steps = list(FixedSize(lambda batch: found, 1)(batch_of(images, spec)))
    assert [step.indices.tolist() for step in steps] == [[0], [2]]
    np.testing.assert_array_equal(np.asarray(steps[1].images)[0], found[2])
    assert list(FixedSize(lambda batch: found, 1)(batch_of([None], spec))) == []


def test_what_the_loader_has_resized_is_taken_as_it_is() -> None:
    images = np.random.default_rng(0).standard_normal((4, 5, 6, 3)).astype(np.float32)
    whole = Batch(tuple(ImageStatus(10 + number, "", 1, 1, 1, "") for number in range(4)), images, np.ones((4, 2), np.int32))
    (step,) = FixedSize(None, None)(whole)
    assert step.images is images
    assert step.indices.tolist() == [10, 11, 12, 13]
    failed = tuple(replace(status, error="corrupt: test") if status.index in (10, 12) else status for status in whole.statuses)
    (step,) = FixedSize(None, None)(replace(whole, statuses=failed))
    assert step.indices.tolist() == [11, 13]
    np.testing.assert_array_equal(step.images, images[[1, 3]])
    assert list(FixedSize(None, None)(replace(whole, statuses=tuple(replace(one, error="x") for one in failed)))) == []


def test_every_step_has_the_same_number_of_rows(resized: Resized) -> None:
    spec = ResizeSpec((16, 16), "squash", "bilinear")
    images = [noise(20, 30, seed) for seed in range(5)]
    steps = list(FixedSize(lambda batch: resized(images, spec), 3)(batch_of(images, spec)))
    assert [step.indices.tolist() for step in steps] == [[0, 1, 2], [3, 4]]
    assert [tuple(step.images.shape) for step in steps] == [(3, 16, 16, 3)] * 2
    np.testing.assert_array_equal(np.asarray(steps[1].images)[:2], resized(images, spec)[3:])


def test_native_size_only_removes_the_mean() -> None:
    images = [noise(5, 7, 1), None, noise(3, 2, 2)]
    steps = list(NativeSize(MEAN_PIXEL, "/CPU:0")(batch_of(images, None)))
    assert [step.indices.tolist() for step in steps] == [[0], [2]]
    for step, image in zip(steps, (images[0], images[2]), strict=True):
        values = np.asarray(step.images)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values[0], image - MEAN_PIXEL, atol=1e-4)


def test_every_weight_of_a_table_lies_inside_its_window_and_rows_sum_to_one() -> None:
    for source, target in [(1, 64), (50, 64), (64, 64), (500, 64), (8000, 61)]:
        table = axis_table(plan_resize(source, source, ResizeSpec((target, target), "squash", "lanczos")).rows)
        assert table.weights.dtype == np.float32
        assert table.starts.min() >= 0
        assert int(table.starts.max()) + table.weights.shape[2] <= source
        np.testing.assert_allclose(table.weights.reshape(-1, table.weights.shape[2])[:target].sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "factor"),
    [((224, 224), 1), ((447, 9000), 1), ((895, 1000), 1), ((900, 1000), 2), ((1800, 2000), 4), ((9000, 9000), 8)],
)
def test_a_jpeg_is_reduced_to_no_less_than_twice_the_target(size: tuple[int, int], factor: int) -> None:
    assert dct_reduction(*size, ResizeSpec((224, 224), "squash", "bilinear")) == factor
