"""Coefficients to pixels, held against libjpeg-turbo as simplejpeg and Pillow have it, and fewer pixels against arithmetic."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import ir
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.jpeg_geometry import SPARE_BLOCKS, Geometry, geometry_of
from pipeline.images.jpeg_lanes import lanes_of
from pipeline.images.jpeg_pixels import PIXELS, add_pixels
from pipeline.vector_code import MachineCode, Processor, this_processor

from .jpeg_oracle import Coefficients, pixels_of_low_frequencies, read_coefficients

Pixels = NDArray[np.uint8]

PHOTOGRAPHS = sorted((Path(__file__).parent / "photographs").rglob("*.jpg"))
SAMPLINGS = {"Gray": None, "444": (1, 1), "422": (2, 1), "420": (2, 2), "440": (1, 2)}
# What is written behind memory that must not be written.
UNTOUCHED = 77


@functools.cache
def code_for(processor: Processor, is_reduced: bool) -> MachineCode:
    module = ir.Module()
    return MachineCode(module, processor, {add_pixels(module, processor, is_reduced): PIXELS})


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
    code = code_for(processor or this_processor(), ratio > 1)
    output = np.full((geometry.height + 2) * stride, UNTOUCHED, np.uint8)
    window = np.full(geometry.window_bytes + 512, UNTOUCHED, np.uint8)
    fields = geometry.array()
    first = coefficients.components[0]
    for number in range(len(first.blocks) // first.down):
        blocks, furthest = coefficients.row_of_mcus(number)
        assert len(blocks) == geometry.blocks
        laid_out = lay_out(blocks, geometry)
        furthest = np.concatenate([furthest, np.full(SPARE_BLOCKS, 63, np.uint8)])
        inside = window[256:], output[stride:]
        code["jpeg_pixels"](*(array.ctypes.data for array in (laid_out, furthest, fields, *inside)), number)
    rows = output.reshape(-1, stride)
    assert (rows[[0, -1]] == UNTOUCHED).all()
    assert (rows[:, stride - margin :] == UNTOUCHED).all()
    assert (window[:256] == UNTOUCHED).all()
    assert (window[-256:] == UNTOUCHED).all()
    return np.ascontiguousarray(rows[1:-1, : stride - margin]).reshape(geometry.height, geometry.width, 3)


def lay_out(blocks: NDArray[np.int16], geometry: Geometry) -> NDArray[np.int16]:
    """Gives the coefficients of a row of MCUs as the code takes them, and whatever in between and behind."""
    laid_out = np.full(geometry.coefficients, 12345, np.int16)
    luma, chroma = geometry.blocks_across * geometry.blocks_down, geometry.chroma_across
    parts = [(0, luma, 0, geometry.luma_side, geometry.luma_plane)]
    for number, place in enumerate((geometry.blue, geometry.red)):
        parts.append((luma + number * chroma, chroma, place, geometry.chroma_side, geometry.chroma_plane))
    for first, count, place, side, plane in parts:
        found = blocks[first : first + count].reshape(count, 8, 8)[:, :side, :side].reshape(count, side * side)
        if side == 8:
            laid_out[place : place + found.size] = found.reshape(-1)
        else:
            for number, values in enumerate(found.T):
                laid_out[place + number * plane : place + number * plane + count] = values
    return laid_out


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


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 140))
KINDS = st.sampled_from(["noise", "soft", "flat", "extremes"])


@pytest.mark.parametrize("sampling", SAMPLINGS)
@settings(max_examples=40, deadline=None)
@given(size=SIZES, quality=st.integers(1, 100), kind=KINDS, seed=st.integers(0, 999))
def test_pixels_are_those_of_libjpeg_turbo(sampling: str, size: tuple[int, int], quality: int, kind: str, seed: int) -> None:
    data = encode(picture(kind, *size, seed), quality, sampling)
    coefficients = read_coefficients(data)
    assert coefficients.sampling == SAMPLINGS[sampling]
    np.testing.assert_array_equal(decode(coefficients), simplejpeg.decode_jpeg(data, "RGB"))


@pytest.mark.parametrize("ratio", [2, 4, 8])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@settings(max_examples=25, deadline=None)
@given(size=SIZES, quality=st.integers(1, 100), kind=KINDS, seed=st.integers(0, 999))
def test_fewer_pixels_are_those_of_the_lowest_frequencies(
    sampling: str, ratio: int, size: tuple[int, int], quality: int, kind: str, seed: int
) -> None:
    coefficients = read_coefficients(encode(picture(kind, *size, seed), quality, sampling))
    found, expected = decode(coefficients, ratio=ratio), pixels_of_low_frequencies(coefficients, ratio)
    assert found.shape == expected.shape
    # Samples may be rounded the other way, colours by one more.
    assert np.abs(found - expected).max() <= (1.001 if sampling == "Gray" else 4.0)
    assert np.abs(found - expected).mean() <= 1.0


@pytest.mark.parametrize("processor", processors()[1:], ids=lambda processor: f"{lanes_of(processor)} lanes")
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_older_processors_give_the_same_pixels(processor: Processor, sampling: str) -> None:
    for seed, (height, width) in enumerate([(33, 131), (17, 30), (3, 5), (40, 64)]):
        data = encode(picture("soft", height, width, seed), 90, sampling)
        coefficients = read_coefficients(data)
        np.testing.assert_array_equal(decode(coefficients, processor), simplejpeg.decode_jpeg(data, "RGB"))
        for ratio in (2, 4, 8):
            np.testing.assert_array_equal(decode(coefficients, processor, ratio), decode(coefficients, ratio=ratio))


def test_photographs_are_those_of_pillow() -> None:
    for path, quality in zip(PHOTOGRAPHS[:3], (50, 85, 95), strict=True):
        file = io.BytesIO()
        with Image.open(path) as photograph:
            photograph.convert("RGB").crop((40, 40, 237, 171)).save(file, "JPEG", quality=quality)
        np.testing.assert_array_equal(decode(read_coefficients(file.getvalue())), np.asarray(Image.open(file)))


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
