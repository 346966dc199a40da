from __future__ import annotations

import gc
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import NetworkError
from pipeline.network.architectures import VggTable
from pipeline.network.winograd import prepare_segments
from pipeline.network.winograd.codegen import Processor, host_processor
from pipeline.network.winograd.convolution import Convolution, Pass, Pooling, Strip, prepare_convolution
from pipeline.network.winograd.engine import MemoryPool, Segment, Workers
from pipeline.network.winograd.kernels import compile_kernels

from . import oracle

ONE_LAYER = 3e-6
CHANNELS = (64, 128)

# The newest processors run the code of older ones: LLVM's names, registers as their instructions have them. Blocks for other
# registers are code like any other, only slower.
OLDER = {
    "sse": Processor("x86-64", "", 4, 6, 2),
    "avx2": Processor("x86-64-v3", "", 8, 6, 2),
    "neon's shape": Processor("x86-64-v3", "", 4, 7, 4),
    "avx512's shape": Processor("x86-64-v3", "", 16, 14, 2),
}


def draw(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture(scope="module")
def workers() -> Workers:
    return Workers(compile_kernels(host_processor(), CHANNELS), 2)


def convolution(
    cin: int, cout: int, *, relu: bool = False, processor: Processor | None = None, seed: int = 1
) -> tuple[Convolution, Any]:
    """Gives a convolution and what the oracle needs to do the same."""
    kernel, bias = draw((3, 3, cin, cout), seed), draw((cout,), 2)
    return prepare_convolution(kernel, bias, processor or host_processor(), "conv", *["relu"] * relu), (kernel, bias)


def one_pass(cin: int, cout: int, *, relu: bool = False, pooling: Pooling | None = None) -> tuple[Pass, Any]:
    prepared, weights = convolution(cin, cout, relu=relu)
    return Pass(**{"direct" if cin == 3 else "winograd": prepared}, pooling=pooling), weights


def expect(image: NDArray[np.float32], weights: Any, relu: bool, pooling: Pooling | None) -> NDArray[np.float64]:
    values = oracle.convolve(image.astype(np.float64), *weights, 1)
    values = np.maximum(values, 0.0) if relu else values
    return oracle.pool(values, pooling.padding == "same", pooling.kind == "avg") if pooling else values


@pytest.mark.parametrize(("channels", "relu"), [(3, True), (64, False), (128, True)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (13, 29)])
def test_every_size_agrees_with_the_oracle(size: tuple[int, int], relu: bool, channels: int, workers: Workers) -> None:
    images = draw((2, *size, channels), 0)
    operation, weights = one_pass(channels, 64, relu=relu)
    found = Segment([operation], workers)(images).wait()
    assert found.shape == (2, *size, 64)
    assert found.dtype == np.float32
    for row, image in zip(found, images, strict=True):
        assert oracle.relative_error(row, expect(image, weights, relu, None)) < ONE_LAYER


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(9, 7), (70, 31)])
def test_pooling_in_the_same_pass_is_pooling_after_it(size: tuple[int, int], padding: str, kind: str, workers: Workers) -> None:
    images, pooling = draw((2, *size, 64), 0), Pooling(kind, padding, "pool")
    operation, weights = one_pass(64, 64, relu=True, pooling=pooling)
    together = Segment([operation], workers)(images).wait()
    apart = Segment([one_pass(64, 64)[0], Pass(relu="relu"), Pass(pooling=pooling)], workers)(images).wait()
    np.testing.assert_array_equal(together, apart)
    for row, image in zip(together, images, strict=True):
        assert oracle.relative_error(row, expect(image, weights, True, pooling)) < ONE_LAYER


@pytest.mark.parametrize("size", [(83, 81), (9, 700)])
@pytest.mark.parametrize("channels", [3, 64])
def test_strips_leave_no_seam(size: tuple[int, int], channels: int, workers: Workers) -> None:
    image = draw((1, *size, channels), 0)
    operation, weights = one_pass(channels, 64)
    assert len(operation.strips(size)) > 1
    found = Segment([operation], workers)(image).wait()[0]
    difference = np.abs(found - expect(image[0], weights, False, None))
    assert difference.max() < 1e-3 * np.abs(found).max() / 100


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "sse" else pytest.mark.slow) for name in OLDER])
def test_code_for_older_processors_computes_the_same(name: str) -> None:
    processor = OLDER[name]
    workers = Workers(compile_kernels(processor, (64,)), 1)
    first, of_first = convolution(3, 64, relu=True, processor=processor)
    second, of_second = convolution(64, 128, relu=True, processor=processor, seed=3)
    image, pooling = draw((1, 30, 45, 3), 0), Pooling("max", "same", "pool")
    found = Segment([Pass(direct=first), Pass(winograd=second, pooling=pooling)], workers)(image).wait()[0]
    expected = expect(expect(image[0], of_first, True, None), of_second, True, pooling)
    assert oracle.relative_error(found, expected) < ONE_LAYER


@pytest.mark.parametrize(
    ("network", "pooling", "padding", "words"),
    [
        ("vgg19", "max", "same", [f"block{number}" for number in range(1, 6)]),
        # Nothing stored in between: ReLU, pooling and the first convolution are done in one pass.
        ("vgg16", "avg", "valid", ["pool2"]),
    ],
)
def test_no_layer_depends_on_the_batch_or_the_threads(
    network: str, pooling: str, padding: str, words: list[str], thin_weights: Any
) -> None:
    weights = replace(thin_weights(network), pool_padding=padding)
    wanted = VggTable(network).resolve(words)
    images = 60 * draw((7, 37, 34, 3), 0)

    def features(segments: dict[str, Segment], step: int) -> dict[str, NDArray[np.float32]]:
        found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in segments}
        for first in range(0, len(images), step):
            values: Any = images[first : first + step]
            for name, segment in segments.items():
                values = segment(values)
                found[name].append(np.asarray(values))
        return {name: np.concatenate(rows) for name, rows in found.items()}

    one, three = (prepare_segments(weights, wanted, pooling=pooling, threads=threads) for threads in (1, 3))
    expected = features(three, 1)
    assert list(expected) == [layer.name for layer in wanted]
    # Fewer images than threads are computed strip by strip, others in groups.
    for segments, step in [(one, 7), (three, 4), (three, 7), (one, 3)]:
        for name, rows in features(segments, step).items():
            np.testing.assert_array_equal(rows, expected[name], err_msg=name)


def test_a_segment_goes_on_where_the_one_before_it_is_still_computing(workers: Workers) -> None:
    images = draw((9, 40, 40, 64), 0)
    first, second = one_pass(64, 64)[0], one_pass(64, 128, relu=True)[0]
    together = Segment([first, second], workers)(images).wait()
    waiting = Segment([first], workers)(images)
    np.testing.assert_array_equal(np.asarray(Segment([second], workers)(waiting)), together)


@pytest.mark.parametrize("size", [(5, 3), (90, 61)])
def test_the_first_convolution_in_the_same_pass_is_the_one_before(size: tuple[int, int], workers: Workers) -> None:
    images = draw((3, *size, 3), 0)
    first, second = convolution(3, 64, relu=True)[0], convolution(64, 64, relu=True, seed=3)[0]
    apart = Segment([Pass(direct=first), Pass(winograd=second)], workers)(images).wait()
    together = Segment([Pass(direct=first, winograd=second)], workers)(images).wait()
    np.testing.assert_array_equal(together, apart)


def test_too_little_memory_is_an_error_that_says_what_to_do(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    segment, images = Segment([one_pass(64, 64)[0]], workers), draw((4, 9, 9, 64), 0)

    def refuse(*shape: int) -> None:
        raise MemoryError

    for source in (workers.memory, workers.workspace):
        with monkeypatch.context() as patch:
            patch.setattr(type(source), "take", lambda self, *shape: refuse())
            with pytest.raises(
                NetworkError, match=r"out of memory, got activations of 4 x 9 x 9 x 64 float32. .* Lower batch_size"
            ):
                np.asarray(segment(images))
    assert np.isfinite(segment(images).wait()).all()


def test_an_interrupted_image_leaves_no_work_behind(workers: Workers) -> None:
    started: list[Strip] = []

    class Interrupted(Pass):
        def strips(self, sides: Any, images: int = 1, least: int = 1) -> list[Strip]:
            return [Strip(first, 1) for first in range(50)]

        def run(self, workspace: Any, maps: Any, strip: Strip) -> None:
            started.append(strip)
            time.sleep(0.02)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Segment([Interrupted(relu="relu")], workers)(draw((1, 9, 9, 64), 0))
    workers.pool.submit(int).result()
    assert len(started) < 10


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    source = MemoryPool()
    array = source.take(100, 10)
    array[...] = 7.0
    address, view = array.ctypes.data, array[3:, ::2]
    del array
    gc.collect()
    other = source.take(100, 10)
    other[...] = 3.0
    assert other.ctypes.data != address
    assert np.all(view == 7.0)
    del view
    gc.collect()
    assert source.take(100, 10).ctypes.data == address
