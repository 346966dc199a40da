"""No image of which a part is missing becomes one that is good and black, or grey, where the part should be."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images.decode import decode_image

from .bad_images import encode, error_of, picture, png_of, tiff, whole_files

ENDS_EARLY = "truncated: the file ends early, or was never written to the end: "
LIBTIFF = "corrupt: the data are damaged, or not all there"
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


WHOLE = {name: content for name, _, content in whole_files()} | {
    "plain PPM": b"P3 4 4 9 " + b"7 " * 48,
    "PFM": b"Pf 4 4 -1.0\n" + np.full(16, 0.5, "<f4").tobytes(),
}


@pytest.mark.parametrize("cuts", [20, pytest.param(2**30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_short_is_whole_or_fails(name: str, cuts: int) -> None:
    data = WHOLE[name]
    whole = decode_image(data)[0]
    for size in range(0, len(data), max(1, len(data) // cuts)):
        try:
            pixels = decode_image(data[:size])[0]
        except ImageError:
            continue
        # What lies behind the pixels is nobody's loss.
        assert np.array_equal(pixels, whole), size


def scanlines(values: NDArray[np.uint8], bits: int) -> bytes:
    """Gives rows of values (h, w, n) as PNG has them, unfiltered."""
    height, width, count = values.shape
    if bits == 8:
        rows = values.reshape(height, width * count)
    else:
        planes = np.unpackbits(values.reshape(height, width, 1), axis=2)[:, :, 8 - bits :]
        rows = np.packbits(planes.reshape(height, width * bits), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in rows)


def png_bytes(values: NDArray[np.uint8], bits: int, interlaced: bool) -> bytes:
    if not interlaced:
        return scanlines(values, bits)
    passes = (values[top::down, left::across] for left, top, across, down in ADAM7)
    return b"".join(scanlines(part, bits) for part in passes if part.size)


PNGS = {
    "grey": (0, 8, 1),
    "bits": (0, 1, 1),
    "palette of 4": (3, 2, 1),
    "palette": (3, 8, 1),
    "colour": (2, 8, 3),
    "alpha": (6, 8, 4),
}


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("kind", PNGS)
@pytest.mark.parametrize("size", [(13, 9)])
def test_a_png_whose_stream_ends_early_and_properly_fails(kind: str, interlaced: bool, size: tuple[int, int]) -> None:
    colour, bits, count = PNGS[kind]
    draw = np.random.default_rng(1)
    for black in (False, True):
        values = draw.integers(0, 2**bits, (*size, count), dtype=np.uint8)
        if black:
            values[size[0] // 2 :] = 0
        raw = png_bytes(values, bits, interlaced)
        palette = (
            [(b"PLTE", bytes(range(256)) * 3)] if colour == 3 and bits == 8 else [(b"PLTE", bytes(range(12)))] * (colour == 3)
        )

        def make(content: bytes, palette: list[tuple[bytes, bytes]] = palette) -> bytes:
            header = struct.pack(">IIBBBBB", size[1], size[0], bits, colour, 0, 0, int(interlaced))
            packed = zlib.compress(content)
            parts = [(b"IDAT", packed[at : at + 7]) for at in range(0, len(packed), 7)]
            return png_of((b"IHDR", header), *palette, *parts, (b"tEXt", b"a\0b"), (b"IEND", b""))

        pixels = decode_image(make(raw))[0]
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(make(raw))).convert("RGBA").convert("RGB"))) or colour == 6
        for length in {*range(0, len(raw), max(1, len(raw) // 15)), len(raw) - 1}:
            assert error_of(make(raw[:length])).startswith("truncated: "), (black, length)
        # More than there should be is nobody's loss.
        assert np.array_equal(decode_image(make(raw + bytes(50)))[0], pixels)


def test_what_a_small_png_holds_beyond_its_pixels_is_not_inflated() -> None:
    packer = zlib.compressobj(9)
    zeros = bytes(1 << 20)
    begun = packer.compress(bytes(72)) + packer.flush(zlib.Z_FULL_FLUSH)
    # Equal from one flush to the next: 16 GiB of zeros in 16 MB.
    again = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    data = png_of((b"IHDR", header), (b"IDAT", begun + again * 16384), (b"IEND", b""))
    began = time.monotonic()
    assert not decode_image(data)[0].any()
    assert time.monotonic() - began < 3


def test_a_tiff_without_some_of_its_strips_fails() -> None:
    grey = np.asarray(picture(3).convert("L"))
    strips = [grey[top : top + 10].tobytes() for top in range(0, 40, 10)]
    for whole in (tiff(strips, rows=10), tiff([grey.tobytes()]), tiff([grey.tobytes()], rows=2**32 - 1)):
        assert np.array_equal(decode_image(whole)[0][:, :, 0], grey)
    for some in (strips[:3], strips[:1], [*strips[:3], b""]):
        assert error_of(tiff(some, rows=10)) == LIBTIFF
    packed = [zlib.compress(strip) for strip in strips]
    assert np.array_equal(decode_image(tiff(packed, rows=10, compression=8))[0][:, :, 0], grey)
    short = [*packed[:3], zlib.compress(strips[3][:300])]
    assert error_of(tiff(short, rows=10, compression=8)) == LIBTIFF


def test_a_tiff_without_some_of_its_tiles_or_planes_fails() -> None:
    grey = np.zeros((48, 64), np.uint8)
    grey[:40, :56] = np.asarray(picture(3).convert("L"))
    tiles = [grey[top : top + 16, left : left + 16].tobytes() for top in range(0, 48, 16) for left in range(0, 64, 16)]
    options = {"tile_width": 16, "tile_height": 16}
    assert np.array_equal(decode_image(tiff(tiles, **options))[0][:, :, 0], grey[:40, :56])
    assert error_of(tiff(tiles[:11], **options)) == LIBTIFF
    planes = [bytes([value]) * 2240 for value in (10, 20, 30)]
    separate = {"samples": 3, "photometric": 2, "planar": 2, "rows": 40}
    assert decode_image(tiff(planes, **separate))[0][0, 0].tolist() == [10, 20, 30]
    assert error_of(tiff(planes[:2], **separate)) == LIBTIFF


def test_a_jpeg_in_a_tiff_that_ends_early_fails() -> None:
    grey = picture(3).convert("L")
    jpeg = encode(grey, "JPEG", "L")
    assert decode_image(tiff([jpeg], compression=7))[0].shape == (40, 56, 3)
    assert error_of(tiff([jpeg[: len(jpeg) // 2]], compression=7)) == f"{ENDS_EARLY}0 of 1 JPEGs in it have an end"


def test_a_jpeg2000_without_some_of_its_tiles_fails() -> None:
    data = encode(picture(3), "JPEG2000", tile_size=(16, 16))
    starts = [place for place in range(len(data)) if data[place : place + 4] == b"\xff\x90\0\x0a"]
    assert len(starts) == 12
    for start in starts:
        assert error_of(data[:start] + bytes(start % 2 * 1000)) == f"{ENDS_EARLY}its code stream has no end"
