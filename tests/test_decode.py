from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.images import decode
from pipeline.images.decode import decode_image, image_extensions

from . import bad_images
from .bad_images import CASES, encode, turned


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 of no symmetry, with the soft gradients of a photograph."""
    return np.array(bad_images.picture(3, height, width))


def picture(mode: str, height: int = 43, width: int = 61) -> Image.Image:
    rgb = Image.fromarray(smooth(height, width))
    if mode in ("RGBA", "LA"):
        rgb.putalpha(Image.fromarray(smooth(height, width)[..., 1]))
    return rgb.quantize(32) if mode == "P" else rgb.convert(mode)


def as_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colour, alpha = rgba[..., :3].astype(float), rgba[..., 3:].astype(float)
    return np.floor((colour * alpha + 255 * (255 - alpha)) / 255 + 0.5).astype(np.uint8)


def decoded(data: bytes) -> NDArray[np.uint8]:
    pixels, size_px = decode_image(data)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.shape == (*size_px, 3)
    return pixels


@pytest.mark.parametrize(
    ("file_format", "mode", "options"),
    [
        *(("PNG", mode, {}) for mode in ("1", "L", "P", "RGB")),
        *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB")),
        *(("TIFF", mode, {"compression": "tiff_lzw"}) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB")),
        ("TIFF", "RGB", {}),
        ("TIFF", "RGB", {"compression": "jpeg"}),
        ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
        *(("PPM", mode, {}) for mode in ("1", "L", "RGB")),
        *(("TGA", mode, {"compression": "tga_rle"}) for mode in ("L", "P", "RGB")),
        *(("SGI", mode, {}) for mode in ("L", "RGB")),
        *(("GIF", mode, {}) for mode in ("1", "L", "P")),
        *(("JPEG2000", mode, {}) for mode in ("L", "RGB")),
        *(("WEBP", mode, {"lossless": True}) for mode in ("L", "P", "RGB")),
        ("WEBP", "RGB", {"quality": 60}),
        ("DIB", "RGB", {}),
        ("QOI", "RGB", {}),
        ("AVIF", "RGB", {}),
        ("JPEG", "CMYK", {}),
    ],
)
def test_every_format_and_mode_becomes_rgb_as_pillow_converts_it(file_format: str, mode: str, options: dict[str, Any]) -> None:
    data = encode(picture(mode), file_format, **options)
    np.testing.assert_array_equal(decoded(data), as_pillow(data))


@pytest.mark.parametrize(
    ("file_format", "mode", "options"),
    [
        *((file_format, "RGBA", {}) for file_format in ("PNG", "TIFF", "TGA", "JPEG2000", "QOI", "SGI")),
        *((file_format, "LA", {}) for file_format in ("PNG", "TIFF")),
        ("WEBP", "RGBA", {"lossless": True, "exact": True}),
    ],
)
def test_transparent_images_are_composited_on_white(file_format: str, mode: str, options: dict[str, Any]) -> None:
    image = picture(mode)
    expected = on_white(np.asarray(image.convert("RGBA")))
    np.testing.assert_array_equal(decoded(encode(image, file_format, **options)), expected)


def test_transparent_palette_entries_are_composited_on_white() -> None:
    image = picture("P")
    indices = np.asarray(image)
    colours = np.asarray(image.convert("RGB"))
    by_index = decoded(encode(image, "PNG", transparency=3))
    np.testing.assert_array_equal(by_index, np.where(indices[..., None] == 3, 255, colours))
    np.testing.assert_array_equal(decoded(encode(image, "GIF", transparency=3)), by_index)
    alphas = np.arange(32, dtype=np.uint8) * 8
    by_table = decoded(encode(image, "PNG", transparency=alphas.tobytes()))
    np.testing.assert_array_equal(by_table, on_white(np.dstack([colours, alphas[indices]])))


def test_a_key_colour_is_composited_on_white() -> None:
    rgb = smooth(20, 30)
    rgb[3:7, 4:9] = (1, 2, 3)
    hole = np.zeros((20, 30, 1), bool)
    hole[3:7, 4:9] = True
    pixels = decoded(encode(Image.fromarray(rgb), "PNG", transparency=(1, 2, 3)))
    np.testing.assert_array_equal(pixels, np.where(hole, 255, rgb))


def test_sixteen_bit_grey_is_divided_by_257_and_rounded() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    pgm = b"P5 256 256 65535 " + values.astype(">u2").tobytes()
    big_endian = io.BytesIO()
    Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes()).save(big_endian, "TIFF")
    for data in (encode(Image.fromarray(values), "PNG"), encode(Image.fromarray(values), "TIFF"), pgm, big_endian.getvalue()):
        np.testing.assert_array_equal(decoded(data), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("file_format", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB")]
)
def test_all_exif_orientations_are_applied(file_format: str, mode: str, orientation: int) -> None:
    data = encode(picture(mode, 24, 40), file_format, exif=turned(orientation))
    pixels = decoded(data)
    assert pixels.shape == ((40, 24, 3) if orientation >= 5 else (24, 40, 3))
    np.testing.assert_array_equal(pixels, as_pillow(data))


@pytest.mark.parametrize(
    ("file_format", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("MPO", {})]
)
def test_of_several_frames_the_first_counts(file_format: str, options: dict[str, Any]) -> None:
    first, second = picture("L"), Image.new("L", (61, 43), 200)
    alone = decoded(encode(first, "JPEG" if file_format == "MPO" else file_format, **options))
    pixels = decoded(encode(first, file_format, save_all=True, append_images=[second], **options))
    np.testing.assert_array_equal(pixels, alone)


def test_a_ratio_reduces_jpegs_alone_and_is_asked_with_the_turned_size() -> None:
    asked: list[tuple[int, int]] = []

    def quarter(height_px: int, width_px: int) -> int:
        asked.append((height_px, width_px))
        return 4

    image = picture("RGB", 101, 203)
    pixels, size_px = decode_image(encode(image, "JPEG", exif=turned(8)), quarter)
    assert asked == [(203, 101)]
    assert size_px == (203, 101)
    assert pixels.shape == (51, 26, 3)
    lossless = (CASES / "lossless.jpg").read_bytes()
    for data in (encode(image, "PNG"), encode(image.convert("CMYK"), "JPEG"), lossless):
        pixels, size_px = decode_image(data, quarter)
        np.testing.assert_array_equal(pixels, as_pillow(data))
        assert size_px == pixels.shape[:2]
    assert len(asked) == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "CMYK", "1", "I;16"])
def test_a_large_image_converted_in_strips_is_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.asarray(picture("L"), np.uint16) * 257) if mode == "I;16" else picture(mode)
    options = {"transparency": bytes(range(255))} if mode == "P" else {"transparency": 77} if mode == "L" else {}
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG", **options)
    whole = decoded(data)
    monkeypatch.setattr(decode, "_STRIP_PIXELS", 61 * 7)
    np.testing.assert_array_equal(decoded(data), whole)


def test_extensions_are_those_of_photographs_and_not_of_programs_or_documents() -> None:
    extensions = image_extensions()
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".pfm", ".mpo"} <= extensions
    assert not extensions & {".eps", ".pdf", ".wmf", ".h5", ".hdf", ".mpg", ".grib", ".bufr", ".ico", ".txt", ".psd"}
