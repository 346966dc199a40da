"""JPEGs: Pillow's pixels bit for bit, at simplejpeg's price; and none of which a part is missing, whatever its coding."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.images import decode
from pipeline.images.decode import decode_image

from .bad_images import CASES, encode, error_of, picture, turned
from .test_decode import as_pillow

END = b"\xff\xd9"


def noise(height: int, width: int, seed: int, levels: int = 256) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, levels, (height, width, 3)) * (255 // (levels - 1))
    return Image.fromarray(values.astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return encode(image, "JPEG", **options)


@st.composite
def encoded(draw: st.DrawFn) -> bytes:
    """A file of any options that an encoder has."""
    height, width, seed = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(0, 1000))
    levels = draw(st.sampled_from([0, 2, 256]))
    image = noise(height, width, seed, levels) if levels else picture(seed, height, width)
    options: dict[str, Any] = {"quality": draw(st.integers(1, 100)), "optimize": draw(st.booleans())}
    options["progressive"] = draw(st.booleans())
    options |= draw(st.sampled_from([{}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 1}, {"restart_marker_blocks": 3}]))
    if draw(st.booleans()):
        options["exif"] = turned(draw(st.integers(1, 8)))
    colours = draw(st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1", "grey", "RGB", "CMYK", "YCCK"]))
    if colours in ("4:4:0", "4:1:1"):
        return simplejpeg.encode_jpeg(np.ascontiguousarray(image), options["quality"], "RGB", colours.replace(":", ""))
    if colours == "grey":
        return jpeg(image.convert("L"), **options)
    if colours == "RGB":
        return jpeg(image, keep_rgb=True, **options)
    if colours in ("CMYK", "YCCK"):
        data = jpeg(image.convert("CMYK"), **options)
        place = data.index(b"Adobe") + 11
        # Which colours the four are is one byte of Adobe's segment.
        return data[:place] + (b"\2" if colours == "YCCK" else b"\0") + data[place + 1 :]
    return jpeg(image, subsampling=colours, **options)


@given(encoded())
@settings(max_examples=30, deadline=None)
def test_the_pixels_are_those_of_pillow(data: bytes) -> None:
    pixels, size_px = decode_image(data)
    expected = as_pillow(data)
    assert size_px == expected.shape[:2]
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)


def test_a_reduced_picture_is_that_of_libjpegs_scaled_decoding() -> None:
    data = jpeg(picture(0, 101, 203))
    for ratio, sides in ((2, (51, 102)), (4, (26, 51)), (8, (13, 26))):
        with Image.open(io.BytesIO(data)) as drafted:
            drafted.draft("RGB", (203 // ratio, 101 // ratio))
            expected = np.asarray(drafted)
        pixels, size_px = decode_image(data, lambda height, width, ratio=ratio: ratio)
        assert (pixels.shape, size_px) == ((*sides, 3), (101, 203))
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_half_a_file_with_an_end_is_not_a_picture(mode: str, options: dict[str, Any]) -> None:
    data = jpeg(picture(1, 120, 160).convert(mode), **options)
    camera = jpeg(picture(1, 120, 160).convert(mode), exif=turned(6), **options)
    # As a power cut leaves it, too: of its full size, or longer, but never written to the end.
    for half in (data[: len(data) // 2], camera[: len(camera) // 2]):
        for end in (END, bytes(len(data) - len(half)), bytes(9 * len(data))):
            assert error_of(half + end).split(":")[0] in ("truncated", "corrupt")


def test_a_restart_that_is_left_out_is_corrupt() -> None:
    data = jpeg(picture(3, 64, 64), restart_marker_blocks=4)
    first, second = data.index(b"\xff\xd1"), data.index(b"\xff\xd2")
    assert error_of(data[:first] + data[second:]).startswith("corrupt: found marker 0xd2 instead of RST1")
    assert error_of(data[:first] + data[first + 2 :]).startswith("corrupt: ")
    assert error_of(data[: first + 2] + data[second:]) == "truncated: premature end of data segment"


def test_a_file_that_only_pillow_takes_has_its_pixels_or_is_truncated() -> None:
    for data in ((CASES / "odd-sampling.jpg").read_bytes(), jpeg(noise(40, 56, 1)).replace(b"JFIF\0\1", b"JFIF\0\7")):
        np.testing.assert_array_equal(decode_image(data)[0], as_pillow(data))
        assert error_of(data[:-100]).startswith("truncated: ")


def test_what_stands_beside_the_coded_data_does_no_harm() -> None:
    data = jpeg(picture(4, 33, 47))
    expected = as_pillow(data)
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    other_frame = b"\xff\xc0\0\x11\x08\0\x01\0\x01\3\1\x11\0\2\x11\0\3\x11\0"
    for changed in (
        data[:frame] + b"\xff\xff\xff" + data[frame:],
        data[:frame] + b"\xff\xfe\0\x15" + other_frame + data[frame:],
        data[:frame] + b"\xff\xe2\0\x06\xff\xda\xff\xd9" + data[frame:],
        data[:scan] + b"\0\0" + data[scan:],
        data[:-2] + b"\0\0\0" + END,
        data + b"\xff\xda" * 300,
        data + jpeg(noise(9, 9, 1)),
    ):
        pixels, size_px = decode_image(changed)
        assert size_px == (33, 47)
        np.testing.assert_array_equal(pixels, expected)


def test_a_small_copy_before_the_orientation_does_not_hide_it() -> None:
    data, small = jpeg(picture(0), exif=turned(6)), jpeg(picture(0, 8, 8))
    place = data.index(b"\xff\xe1")
    changed = data[:place] + b"\xff\xed" + (len(small) + 2).to_bytes(2, "big") + small + data[place:]
    np.testing.assert_array_equal(decode_image(changed)[0], as_pillow(data))


def test_a_plain_file_is_not_opened_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer to open one than all that is done here beside decoding."""
    monkeypatch.setattr(decode, "_open", None)
    told: list[int] = []
    for mode in ("RGB", "L", "CMYK"):
        data = jpeg(picture(0).convert(mode), icc_profile=bytes(300))
        assert decode_image(data, admit=told.append)[1] == (40, 56)
    assert told == [2240] * 3
