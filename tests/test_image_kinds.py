"""Every kind of picture becomes the right one, or a failed row that says what it is; never another picture, nor "damaged".

What is right is known from what was encoded. Files that neither Pillow nor NumPy can write lie in ``image_cases``: made by
OpenJPEG 2.5, CharLS, and libjpeg-turbo 2.1 and 3.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images.decode import decode_image

from .bad_images import CASES, encode, error_of, picture, png_of, tiff, whole_files
from .test_decode import on_white

HEIGHT, WIDTH = 40, 56
# (40, 56, 4) of 0 to 1; the first row ends in whole white and black.
VALUES = np.dstack([np.asarray(picture(3)), np.asarray(picture(5))])[..., :4] / 255.0
VALUES[0, -2:] = [[1.0], [0.0]]
BYTES = np.rint(VALUES * 255).astype(np.uint8)
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
# What the files in image_cases show.
RAMPS = np.stack([ROWS * 5, COLUMNS * 4, (ROWS + COLUMNS) * 2], axis=2)
SEPARATE, WHITE_IS_ZERO, RGB, PALETTE = 2, 0, 2, 3


def grey(values: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(values[..., None], 3, axis=2)


def assert_shows(data: bytes, expected: NDArray[Any], within: int = 1) -> None:
    pixels, size_px = decode_image(data)
    assert size_px == expected.shape[:2]
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= within


def packed_bits(values: NDArray[Any], bits: int) -> bytes:
    """Rows of values (h, w), highest bit first, each row from a new byte on."""
    planes = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.astype(np.uint8).reshape(len(values), -1), axis=1).tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("count", [3, 4])
def test_planes_of_16_bits_one_after_the_other(order: str, compression: int, count: int) -> None:
    planes = [np.rint(VALUES[..., plane] * 65535).astype(order + "u2").tobytes() for plane in range(count)]
    if compression == 8:
        planes = list(map(zlib.compress, planes))
    options: dict[str, Any] = {"bits": (16,) * count, "samples": count, "photometric": RGB, "planar": SEPARATE}
    if count == 4:
        options["extra"] = 2
    data = tiff(planes, order, compression=compression, **options)
    assert_shows(data, BYTES[..., :3] if count == 3 else on_white(BYTES), 2)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_grey_whose_zero_is_white(bits: int) -> None:
    values = np.rint((1 - VALUES[..., 0]) * (2**bits - 1)).astype(int)
    data = tiff([packed_bits(values, bits)], bits=bits, photometric=WHITE_IS_ZERO)
    assert_shows(data, grey(255 - np.rint(values * 255.0 / (2**bits - 1))))


def test_a_palette_of_a_tiff_has_16_bits() -> None:
    palette = np.random.default_rng(0).integers(0, 256, (3, 256))
    data = tiff([BYTES[..., 0].tobytes()], photometric=PALETTE, colours=tuple((palette * 257).ravel().tolist()))
    assert_shows(data, palette[:, BYTES[..., 0]].transpose(1, 2, 0), 0)


@pytest.mark.parametrize(
    ("parts", "tags", "kind"),
    [
        ([VALUES[..., :3].astype("<f4").tobytes()], {"bits": (32,) * 3, "samples": 3, "photometric": RGB, "format": (3,) * 3},
         "TIFF: unknown pixel mode"),
        ([BYTES[..., 0].tobytes()], {"compression": 34934}, "TIFF: compression 34934"),
        ([b"RIFF\0\0\0\0WEBP"], {"compression": 50001}, "TIFF compressed by WebP"),
        ([BYTES[..., 0].tobytes()], {"format": 2}, "TIFF of signed 8-bit samples"),
        ([bytes(HEIGHT * WIDTH * 3 // 2)], {"bits": 12}, "TIFF of 12 bits"),
        ([bytes(HEIGHT * WIDTH * 2)], {"bits": 16, "photometric": WHITE_IS_ZERO}, "TIFF of 16 bits whose zero is white"),
        ([bytes(HEIGHT * WIDTH * 4)], {"bits": 32, "format": 3}, "grey of 32 bits, or with a sign"),
        ([bytes(HEIGHT * WIDTH * 4)], {"bits": 32, "format": 2}, "grey of 32 bits, or with a sign"),
        ([BYTES[..., 0].tobytes()], {"photometric": PALETTE, "colours": (*range(256),) * 3}, "TIFF with a palette of 8 bits"),
        ([BYTES[..., 0].tobytes()] * 2, {"bits": (8, 8), "samples": 2, "extra": 2, "planar": SEPARATE},
         "TIFF of 2 separate planes in mode LA"),
    ],
)  # fmt: skip
def test_kinds_of_tiff_that_are_not_read_are_called_unsupported(parts: list[bytes], tags: dict[str, Any], kind: str) -> None:
    assert error_of(tiff(parts, **tags)) == f"unsupported: {kind}"


def jpeg_2000(code_stream: bytes, bits: int, boxes: bytes) -> bytes:
    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), kind) + body

    count = code_stream[41]
    header = box(b"ihdr", struct.pack(">IIHBBBB", HEIGHT, WIDTH, count, bits - 1, 7, 0, 0))
    header += box(b"colr", b"\1\0\0" + struct.pack(">I", 16)) + boxes
    signature = b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return signature + box(b"jp2h", header) + box(b"jp2c", code_stream)


def test_kinds_of_jpeg_2000_that_are_not_read_are_called_unsupported() -> None:
    assert error_of((CASES / "5-components.jp2").read_bytes()) == "unsupported: JPEG 2000 of 5 components"
    assert error_of((CASES / "4-bit.jp2").read_bytes()) == "unsupported: JPEG 2000 of 4 bits in mode RGB"
    assert error_of((CASES / "16-bit-white.jp2").read_bytes()) == "unsupported: JPEG 2000 of 16 bits in mode RGB"
    odd = (CASES / "odd-sides-420.jp2").read_bytes()
    assert error_of(odd) == "unsupported: JPEG 2000 with fewer samples or other bits of some components"
    image = Image.fromarray(BYTES[..., :3])
    stream = encode(image, "JPEG2000", no_jp2=True)
    names = [struct.pack(">3H", number, 0, shown) for number, shown in enumerate((3, 2, 1))]
    backwards = b"\0\0\0\x1ccdef\0\x03" + b"".join(names)
    text = error_of(jpeg_2000(stream, 8, backwards))
    assert text == "unsupported: JPEG 2000 with channels in another order or of another meaning"
    usual = b"".join(struct.pack(">3H", number, 0, number + 1) for number in range(3))
    assert_shows(jpeg_2000(stream, 8, b"\0\0\0\x1ccdef\0\x03" + usual), BYTES[..., :3], 0)


def scanlines(values: NDArray[Any], bits: int) -> bytes:
    """Rows of values (h, w) or (h, w, n) as PNG has them, unfiltered."""
    packed = packed_bits(values.reshape(len(values), -1), bits)
    size = len(packed) // len(values)
    return b"".join(b"\0" + packed[at : at + size] for at in range(0, len(packed), size))


def png(values: NDArray[Any], bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, 0)
    return png_of((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(scanlines(values, bits))), (b"IEND", b""))


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_transparent_grey_is_compared_as_it_is_stored(bits: int) -> None:
    values = np.rint(VALUES[..., 0] * (2**bits - 1)).astype(int)
    key = int(values[5, 5])
    if bits == 16:
        # Another colour, though the same one of 8 bits.
        values[0, 0] = key + 1
    expected = np.where(values == key, 255, np.rint(values * 255 / (2**bits - 1)))
    assert_shows(png(values, bits, 0, (b"tRNS", struct.pack(">H", key))), grey(expected))


@pytest.mark.parametrize(("bits", "colour"), [(2, 0), (4, 0), (16, 2)])
def test_a_transparent_colour_that_pillow_compares_amiss_is_unsupported(bits: int, colour: int) -> None:
    values = np.rint(VALUES[..., : 1 + colour] * (2**bits - 1)).astype(int)
    assert_shows(png(values, bits, colour), np.broadcast_to(np.rint(values * 255.0 / (2**bits - 1)), (HEIGHT, WIDTH, 3)))
    text = error_of(png(values, bits, colour, (b"tRNS", struct.pack(f">{1 + colour}H", *values[5, 5]))))
    assert text == f"unsupported: PNG with a transparent colour of {bits} bits a channel"


METADATA = {
    "a long text": (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_600_000))),
    "a long international text": (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(1_600_000))),
    "a long profile": (b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_600_000))),
}


@pytest.mark.parametrize(("name", "place"), [*((name, "before") for name in METADATA), ("a long text", "behind")])
def test_a_png_is_decoded_whatever_lies_beside_its_pixels(name: str, place: str) -> None:
    data, chunk = png(BYTES[..., :3].astype(int), 8, 2), png_of(METADATA[name])[8:]
    at = data.index(b"IDAT" if place == "before" else b"IEND") - 4
    assert_shows(data[:at] + chunk + data[at:], BYTES[..., :3], 0)


def test_a_png_of_apples_own_kind_is_unsupported() -> None:
    data = png(BYTES[..., :3].astype(int), 8, 2)
    own = png_of((b"CgBI", b"\x50\0\x20\2"))
    assert error_of(own + data[8:]) == "unsupported: PNG of Apple's own kind (CgBI)"


def test_a_bitmap_or_targa_that_is_not_read_is_called_unsupported() -> None:
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 32, 3, WIDTH * HEIGHT * 4, 0, 0, 0, 0)
    masks = struct.pack("<III", 0x3FF00000, 0xFFC00, 0x3FF)
    bitmap = b"BM" + struct.pack("<IHHI", 66 + WIDTH * HEIGHT * 4, 0, 0, 66) + header + masks + bytes(WIDTH * HEIGHT * 4)
    assert error_of(bitmap) == "unsupported: Unsupported BMP bitfields layout"


@pytest.mark.parametrize(
    ("kind", "bits", "descriptor", "words"),
    [
        (2, 16, 0x21, "TGA of type 2 and 16 bits, 1 of them opacity"),
        (2, 32, 0x20, "TGA of type 2 and 32 bits, 0 of them opacity"),
        (1, 16, 0x20, "TGA of type 1 and 16 bits, 0 of them opacity"),
        (2, 32, 0x28, ""),
        (2, 24, 0x20, ""),
    ],
)
def test_of_the_opacity_of_a_targa_only_8_bits_are_sure(kind: int, bits: int, descriptor: int, words: str) -> None:
    header = struct.pack("<BBBHHBHHHHBB", 0, 2 - kind, kind, 0, 256 * (2 - kind), 24, 0, 0, WIDTH, HEIGHT, bits, descriptor)
    colours = np.dstack([BYTES[..., 2::-1], BYTES[..., 3:]])[..., : bits // 8]
    if words:
        assert error_of(header + colours.tobytes() + bytes(768)) == f"unsupported: {words}"
    else:
        assert_shows(header + colours.tobytes(), on_white(BYTES) if bits == 32 else BYTES[..., :3])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("12-bit.jpg", "unsupported: JPEG: cannot handle 12-bit layers"),
        ("jpeg-ls.jpg", "unsupported: JPEG-LS"),
        ("lossless.jpg", ""),
        ("arithmetic.jpg", ""),
        ("odd-sampling.jpg", ""),
    ],
)
def test_rare_codings_of_jpeg_are_read_or_called_unsupported(name: str, text: str) -> None:
    data = (CASES / name).read_bytes()
    if text:
        assert error_of(data) == text
    else:
        assert_shows(data, RAMPS, 0 if name == "lossless.jpg" else 30)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(decode_image(data)[0], expected)


@pytest.mark.parametrize(
    ("begin", "kind"),
    [
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "HEIC, HEIF or a video"),
        (b"\xff\x0a\x09\x0c", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop document"),
    ],
)
def test_pictures_of_other_formats_are_called_by_their_name(begin: bytes, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert error_of(begin + bytes(200)) == f"unsupported: {kind}"


def test_what_is_damaged_is_not_called_unsupported() -> None:
    jpeg = encode(picture(3), "JPEG")
    assert error_of(jpeg.replace(b"\xff\xda", b"\xff\xfe")) == "corrupt: cannot load this image"
    assert error_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif" + bytes(200)).startswith("corrupt: ")
    for name in ("JPEG", "PNG", "TIFF", "JPEG2000", "BMP", "GIF", "WEBP"):
        data = encode(picture(3), name)
        for size in (6, 12, 20, 30):
            assert error_of(data[:size]).split(":")[0] in ("corrupt", "truncated", "not an image"), (name, size)


# -- No image of which a part is missing becomes one that is good, and black or grey where the part should be


LIBTIFF = "corrupt: the data are damaged, or not all there"
WHOLE = {name: content for name, _, content in whole_files()} | {
    "plain PPM": b"P3 4 4 9 " + b"7 " * 48,
    "PGM of 16 bits": b"P5 4 4 65535 " + bytes(range(32)),
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


def test_a_png_whose_pixels_are_not_those_of_its_checksum_is_corrupt() -> None:
    data = encode(picture(3, 200, 300), "PNG")
    for size in range(2000, len(data) - 50, len(data) // 9):
        # As a power cut leaves it: of its full size, but never written to the end.
        assert error_of(data[:size] + bytes(len(data) - size)).startswith("corrupt: broken PNG file (bad header checksum")


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
