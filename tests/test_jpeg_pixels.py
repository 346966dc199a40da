"""Coefficients to pixels, held against libjpeg-turbo as simplejpeg and Pillow have it."""

from __future__ import annotations

import functools
import io
import platform
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llvmlite import ir
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.jpeg_geometry import SPARE_BLOCKS, geometry_of
from pipeline.images.jpeg_lanes import lanes_of
from pipeline.images.jpeg_pixels import PIXELS, add_pixels
from pipeline.vector_code import MachineCode, Processor, this_processor

from .jpeg_oracle import Coefficients, read_coefficients

Pixels = NDArray[np.uint8]

PHOTOGRAPHS = sorted((Path(__file__).parent / "photographs").rglob("*.jpg"))
SAMPLINGS = {"Gray": None, "444": (1, 1), "422": (2, 1), "420": (2, 2), "440": (1, 2)}
# What is written behind memory that must not be written.
UNTOUCHED = 77


@functools.cache
def code_for(processor: Processor) -> MachineCode:
    module = ir.Module()
    return MachineCode(module, processor, {add_pixels(module, processor): PIXELS})


def without(processor: Processor, *features: str) -> Processor:
    """Gives the same processor without some features, as an older one."""
    kept = [f"-{feature[1:]}" if feature[1:] in features else feature for feature in processor.features.split(",")]
    return processor._replace(features=",".join(kept))


def processors() -> list[Processor]:
    """Gives this processor and the older ones that it can pass for."""
    here = this_processor()
    avx512 = [part[1:] for part in here.features.split(",") if part.startswith("+avx512")]
    older = [here, without(here, *avx512), without(here, *avx512, "avx2", "avx")]
    # Words are then computed as on a processor that is none of x86.
    return list(dict.fromkeys([*older, without(here, *avx512, "avx2", "avx", "ssse3", "sse4.1", "sse4.2", "sse4a")]))


def decode(coefficients: Coefficients, processor: Processor | None = None, ratio: int = 1, margin: int = 0) -> Pixels:
    """Gives the pixels, and looks whether only they and the window were written; the margin is between rows."""
    geometry = geometry_of(coefficients.width, coefficients.height, coefficients.sampling, ratio)
    stride = geometry.output_stride + margin
    geometry = geometry_of(coefficients.width, coefficients.height, coefficients.sampling, ratio, stride)
    code = code_for(processor or this_processor())
    output = np.full((geometry.height + 2) * stride, UNTOUCHED, np.uint8)
    window = np.full(geometry.window_bytes + 512, UNTOUCHED, np.uint8)
    fields = geometry.array()
    first = coefficients.components[0]
    for number in range(len(first.blocks) // first.down):
        blocks, furthest = coefficients.row_of_mcus(number)
        assert len(blocks) == geometry.blocks
        blocks = np.concatenate([blocks, np.full((SPARE_BLOCKS, 64), 12345, np.int16)])
        furthest = np.concatenate([furthest, np.full(SPARE_BLOCKS, 63, np.uint8)])
        inside = window[256:], output[stride:]
        code["jpeg_pixels"](*(array.ctypes.data for array in (blocks, furthest, fields, *inside)), number)
    rows = output.reshape(-1, stride)
    assert (rows[[0, -1]] == UNTOUCHED).all()
    assert (rows[:, stride - margin :] == UNTOUCHED).all()
    assert (window[:256] == UNTOUCHED).all()
    assert (window[-256:] == UNTOUCHED).all()
    return np.ascontiguousarray(rows[1:-1, : stride - margin]).reshape(geometry.height, geometry.width, 3)


def picture(kind: str, height: int, width: int, seed: int) -> Pixels:
    """Gives (h, w, 3) of noise, of soft colours with some noise, of one colour, or of the strongest contrasts."""
    random = np.random.default_rng(seed)
    if kind == "noise":
        return random.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "extremes":
        return np.where(random.random((height, width, 3)) < 0.5, 0, 255).astype(np.uint8)
    if kind == "flat":
        return np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
    few = Image.fromarray(random.integers(0, 256, (3, 3, 3), np.uint8))
    soft = np.asarray(few.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(soft + random.integers(-9, 10, soft.shape), 0, 255).astype(np.uint8)


def encode(pixels: Pixels, quality: int, sampling: str) -> bytes:
    if sampling == "Gray":
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[:, :, :1]), quality, "GRAY", "Gray")
    return simplejpeg.encode_jpeg(pixels, quality, "RGB", sampling)


def libjpeg_turbo(data: bytes, ratio: int = 1) -> Pixels:
    """Gives the pixels as :mod:`~pipeline.images.decode` had them before."""
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    sides = {"min_height": -(-height // ratio), "min_width": -(-width // ratio)}
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", **sides)
    assert pixels.shape == (*sides.values(), 3)
    return pixels


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 140)),
    quality=st.integers(1, 100),
    kind=st.sampled_from(["noise", "soft", "flat", "extremes"]),
    seed=st.integers(0, 999),
)
def test_pixels_are_those_of_libjpeg_turbo(
    sampling: str, ratio: int, size: tuple[int, int], quality: int, kind: str, seed: int
) -> None:
    # Sides of a few pixels are as long after another number of eighths, which simplejpeg may then take.
    shapes = [[-(-side * eighths // 8) for side in size] for eighths in range(1, 17)]
    assume(shapes.count(shapes[8 // ratio - 1]) == 1)
    data = encode(picture(kind, *size, seed), quality, sampling)
    coefficients = read_coefficients(data)
    assert coefficients.sampling == SAMPLINGS[sampling]
    np.testing.assert_array_equal(decode(coefficients, ratio=ratio), libjpeg_turbo(data, ratio))


@pytest.mark.parametrize("processor", processors()[1:], ids=lambda processor: f"{lanes_of(processor)} lanes")
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_older_processors_give_the_same_pixels(processor: Processor, sampling: str) -> None:
    for seed, (height, width) in enumerate([(33, 131), (17, 30), (3, 5), (40, 64)]):
        data = encode(picture("soft", height, width, seed), 90, sampling)
        np.testing.assert_array_equal(decode(read_coefficients(data), processor), simplejpeg.decode_jpeg(data, "RGB"))


def test_photographs_are_those_of_pillow() -> None:
    for path, quality in zip(PHOTOGRAPHS[:3], (50, 85, 95), strict=True):
        file = io.BytesIO()
        with Image.open(path) as photograph:
            photograph.convert("RGB").crop((40, 40, 237, 171)).save(file, "JPEG", quality=quality)
        np.testing.assert_array_equal(decode(read_coefficients(file.getvalue())), np.asarray(Image.open(file)))


def with_tables_of(data: bytes, factor: int) -> bytes:
    """Gives the same JPEG with other factors of quantisation, so that its numbers are as large as no encoder makes them."""
    changed, place = bytearray(data), 2
    while (marker := changed[place + 1]) != 0xDA:
        length = int.from_bytes(changed[place + 2 : place + 4], "big")
        if marker == 0xDB:
            for table in range(place + 4, place + 2 + length, 65):
                changed[table + 1 : table + 65] = bytes([factor] * 64)
        place += 2 + length
    return bytes(changed)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="libjpeg-turbo overflows otherwise elsewhere")
@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_numbers_that_overflow_do_so_as_in_libjpeg_turbo(sampling: str, ratio: int) -> None:
    for seed, (kind, factor) in enumerate([("noise", 255), ("flat", 255), ("soft", 200), ("extremes", 64), ("flat", 100)]):
        data = with_tables_of(encode(picture(kind, 35, 70, seed), 100, sampling), factor)
        coefficients = read_coefficients(data)
        for processor in processors():
            np.testing.assert_array_equal(decode(coefficients, processor, ratio), libjpeg_turbo(data, ratio))


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_any_coefficients_stay_within_their_memory_and_mean_the_same_everywhere(sampling: str, ratio: int) -> None:
    random = np.random.default_rng(ratio)
    for height, width in [(1, 1), (15, 33), (50, 200), (17, 3), (8, 16)]:
        coefficients = read_coefficients(encode(picture("soft", height, width, 0), 90, sampling))
        for part in coefficients.components:
            part.blocks[...] = random.integers(-(2**15), 2**15, part.blocks.shape)
            part.furthest[...] = random.integers(1, 256, part.furthest.shape)
        first, *others = (decode(coefficients, processor, ratio, margin=7) for processor in processors())
        for other in others:
            np.testing.assert_array_equal(other, first)
