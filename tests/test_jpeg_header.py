"""The short look at a JPEG's header: what it takes is what Pillow would say, and everything odd is left to Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images import decode, jpeg_header
from pipeline.images.decode import decode_image
from pipeline.images.jpeg_header import read_header

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (19, 33, 3), np.uint8))


def jpeg(picture: Image.Image = PICTURE, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


def plain_jpeg_sides(data: bytes) -> tuple[int, int] | None:
    header = read_header(data)
    return (header.height, header.width) if header is not None and header.is_plain else None


def with_segment(marker: int, content: bytes, data: bytes | None = None) -> bytes:
    data = jpeg() if data is None else data
    return data[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + data[2:]


PLAIN = {
    "usual": jpeg(),
    "grey": jpeg(PICTURE.convert("L")),
    "best": jpeg(quality=100, subsampling=0),
    "own codes": jpeg(optimize=True),
    "restarts": jpeg(restart_marker_rows=1),
    "comment": with_segment(0xFE, b"hello"),
}
EXIF = Image.Exif()
EXIF[0x0112] = 6
OTHERS = {
    "empty": b"",
    "no JPEG": b"\x89PNG\r\n\x1a\n",
    "the start alone": jpeg()[:2],
    "cut in the header": jpeg()[:200],
    "turned": jpeg(exif=EXIF),
    "several scans": jpeg(progressive=True),
    "CMYK": jpeg(PICTURE.convert("CMYK")),
    "a profile": jpeg(icc_profile=b"profile"),
    "Adobe's": with_segment(0xEE, b"Adobe\x00\x64\x00\x00\x00\x00\x00"),
    "short JFIF": with_segment(0xE0, b"JFIF\x00"),
    "another JFIF": with_segment(0xE0, b"JFIF\x00\x02\x01\x00\x00\x01\x00\x01\x00\x00"),
    "another APP0": with_segment(0xE0, b"JFXX\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00"),
    "odd quantisation": with_segment(0xDB, b"\x00" * 64),
    "no length": jpeg()[:2] + b"\xff\xfe\x00\x00" + jpeg()[2:],
    "filled": jpeg()[:2] + b"\xff" + jpeg()[2:],
    "two frames": with_segment(0xC0, b"\x08\x00\x01\x00\x01\x01\x01\x11\x00"),
    "12 bits": jpeg().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "no height": jpeg().replace(b"\xff\xc0\x00\x11\x08\x00\x13", b"\xff\xc0\x00\x11\x08\x00\x00"),
    "a longer frame": jpeg().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x12\x08"),
    "a scan of one component": jpeg().replace(b"\xff\xda\x00\x0c\x03", b"\xff\xda\x00\x0c\x01"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_jpegs_have_the_sides_that_pillow_says(name: str) -> None:
    assert plain_jpeg_sides(PLAIN[name]) == (19, 33)
    np.testing.assert_array_equal(decode_image(PLAIN[name])[0], np.asarray(Image.open(io.BytesIO(PLAIN[name])).convert("RGB")))


@pytest.mark.parametrize("name", OTHERS)
def test_what_needs_a_longer_look_gets_it(name: str) -> None:
    assert plain_jpeg_sides(OTHERS[name]) is None


def outcome(data: bytes) -> tuple[bytes, object]:
    try:
        pixels, sides = decode_image(data)
    except ImageError as error:
        return b"", str(error)
    return pixels.tobytes(), (pixels.shape, sides)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_comes_to_the_same_with_and_without_the_short_look(data: st.DataObject) -> None:
    """Bytes changed, put in or taken out, mostly of the header."""
    damaged = bytearray(PLAIN[data.draw(st.sampled_from(sorted(PLAIN)))])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(damaged), 700) - 1))
        value = data.draw(st.one_of(st.sampled_from([0x00, 0xFF, 0xC0, 0xC2, 0xC4, 0xD9, 0xDA, 0xDB, 0xE1]), st.integers(0, 255)))
        how = data.draw(st.sampled_from(["change", "put in", "take out"]))
        damaged[place : place + (how != "put in")] = b"" if how == "take out" else bytes([value])
    file = bytes(damaged)
    # Remembered or not.
    assert [read_header(file) for _ in range(2)] == [jpeg_header._read(file)] * 2
    with_it = outcome(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "read_header", lambda data: None)
        assert outcome(file) == with_it


def test_headers_that_are_remembered_are_short_and_their_own() -> None:
    jpeg_header._read_known.cache_clear()
    thumbnail = with_segment(0xE1, b"Exif\x00\x00" + jpeg(PICTURE.resize((8, 8)))[:900])
    long = with_segment(0xFE, bytes(5000))
    coarse = jpeg(quality=5)
    for data in (jpeg(), thumbnail, long, coarse, jpeg(), coarse):
        assert read_header(data) == jpeg_header._read(data) is not None
    known = jpeg_header._read_known.cache_info()
    assert (known.hits, known.currsize) == (2, 3)  # Up to the thumbnail's scan there is no whole header.
    assert [part.factors for part in read_header(coarse).components] != [part.factors for part in read_header(jpeg()).components]


def test_an_image_that_is_put_to_pillow_too_is_admitted_once() -> None:
    # A scan that is cut short, but with an end.
    data = jpeg()
    cut = data[:-20] + data[-2:]
    assert plain_jpeg_sides(cut) == (19, 33)
    told: list[int] = []
    assert decode_image(cut, admit=told.append)[1] == (19, 33)
    assert told == [19 * 33]
