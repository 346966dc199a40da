"""What Pillow decodes into another picture, or calls damaged though it is whole: put right, or refused as unsupported.

Found by decoding every mode and bit depth of every format that :mod:`~pipeline.images.decode` allows, and comparing with what was
encoded (Pillow 13.0). What Pillow reads rightly does not come here. And whether all pixels that a header promises are in the
file, for formats whose readers fill in what is missing and say nothing.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, ImagePalette
from PIL import TiffImagePlugin as tiff

from ..errors import ImageError

# What readers say of a whole file that they have no code for, not of a damaged one.
UNSUPPORTED = re.compile(
    r"(?i)unsupported|not (yet )?supported|unknown (raw|pixel|data)|unrecognized image mode|cannot handle|unable to determine"
)

# Of formats that are pictures, but not read. Source: their specifications; of ISO media, the brands of HEIF (ISO 23008-12).
_SIGNATURES = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"II\xbc\x01": "JPEG XR",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"DDS ": "DDS",
    b"8BPS": "Photoshop document",
    b"\0\0\1\0": "icon (ICO)",
    b"\x0a\5\1": "PCX",
    b"P7\n": "PAM",
    b"PF\n": "PFM in colour",
}
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1", b"avci", b"avcs"})

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Of what is inflated only to be counted, at a time.
_PIECE_BYTES = 1 << 24
# Source: PNG specification (W3C), 8.2: first column and row, and steps between columns and rows, of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# Source: the same, 11.2.2: colour type -> values a pixel.
_PNG_VALUES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Of the chunks that a reader may pass over, those that change what is seen; and in which texts Pillow looks for an orientation.
_PNG_NEEDED = (b"tRNS", b"eXIf")
_PNG_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
# Longer ones may hold more than Pillow reads.
_LONGEST_TEXT_BYTES = 1 << 17
# What Apple's tools for iPhones write first: pixels without zlib's frame, blue before red, alpha multiplied in.
_APPLE_CHUNK = b"CgBI"
_PNG_BITS, _PNG_COLOUR = 24, 25

# Pillow's own reader of uncompressed TIFF takes planes of 16 bits for planes of 8, and strips that are not there for black.
tiff.READ_LIBTIFF = True
# Source: Truevision TGA specification, image descriptor: its lower four bits are how many of a pixel's are opacity.
_TGA_DESCRIPTOR = 17
# Source: TIFF 6.0: values of photometric interpretation, planar configuration and compression.
_WHITE_IS_ZERO, _SEPARATE_PLANES, _JPEG_IN_TIFF = 0, 2, 7
_END_OF_JPEG = b"\xff\xd9"
# Where the end of a strip's JPEG is looked for: what a program may have put behind it, so that the next one begins evenly.
_TAIL_BYTES = 1024

# Source: ITU T.800, annex A: start of the code stream and size, with bits and steps of the components; its end.
_J2K_START, _J2K_END = b"\xff\x4f\xff\x51", b"\xff\xd9"
_J2K_COMPONENTS = 40


def why_unidentified(data: bytes, formats: Sequence[str]) -> str:
    """Return the status of a file that Pillow's readers of these formats refuse: unsupported, corrupt or not an image."""
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return f"unsupported: {name}"
    # Some brands are AVIF's too.
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[:64]:
        return "unsupported: HEIC or HEIF"
    for name in formats:
        reader, accept = Image.OPEN[name]
        with suppress(Exception):  # Fewer bytes than the signature has: IndexError, struct.error.
            if accept is not None and accept(data[:16]) is True:
                break
    else:
        return f"not an image: begins with {data[:8]!r}"
    try:
        reader(io.BytesIO(data), "")
    except Exception as error:
        if UNSUPPORTED.search(str(error)):
            return f"unsupported: {name}: {error}"
        if name == "TIFF" and str(error).isdigit():  # A key that Pillow does not find.
            return f"unsupported: {name}: compression {error}"
        if name == "JPEG2000" and len(components := _j2k_components(data)) > 4:
            return f"unsupported: JPEG 2000 of {len(components)} components"
    return f"corrupt: the header of this {name} file is damaged or incomplete"


def refused_kind(image: Image.Image, data: bytes) -> str:
    """Say why an image that has been opened would become another picture; nothing where it does not.

    What can be put right before the pixels are loaded is.
    """
    if isinstance(image, tiff.TiffImageFile):
        return _refused_tiff(image)
    if image.format == "JPEG2000":
        return _refused_jpeg2000(image, data)
    if image.format == "TGA" and image.mode == "RGBA" and data[16] == 16 and data[_TGA_DESCRIPTOR] & 15:
        # Some take it for opacity, some for transparency.
        return "TGA of 16 bits with one of transparency"
    if image.format == "TGA" and not image.tile:  # type: ignore[attr-defined]
        return f"TGA of type {data[2]} and {data[16]} bits"
    if image.format == "PNG" and data[12:16] == _APPLE_CHUNK:
        return "PNG of Apple's own kind (CgBI)"
    if image.format == "PNG" and "transparency" in image.info:
        bits, is_grey = data[_PNG_BITS], data[_PNG_COLOUR] == 0
        if bits == 16 and not is_grey:
            return "PNG with a transparent colour of 16 bits a channel"
        if is_grey and bits in (2, 4):
            # Pillow compares what it has scaled to 8 bits.
            image.info["transparency"] *= 255 // (2**bits - 1)
    return ""


def corrected(image: Image.Image, data: bytes) -> Image.Image:
    """Return the right picture for an image that has been loaded: most often the image itself."""
    if isinstance(image, tiff.TiffImageFile):
        tags, is_deep = image.tag_v2, image.mode.startswith("I;16")
        values = np.asarray(image) if is_deep or image.mode == "F" else None
        if values is not None and is_deep and tags.get(tiff.BITSPERSAMPLE) == (12,):
            values = ((values.astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16)
            image = Image.fromarray(values)
        if values is not None and tags.get(tiff.PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO) == _WHITE_IS_ZERO:
            with np.errstate(invalid="ignore"):  # What is no number is refused later.
                return Image.fromarray((65535 if is_deep else 1) - values)
    elif image.format == "TGA" and image.mode == "RGBA" and not data[_TGA_DESCRIPTOR] & 15:
        # None of its bits are opacity, whatever is in them: most often zeros, which would leave white alone.
        return image.convert("RGB")
    elif image.format == "JPEG2000" and image.mode not in ("P", "PA", "I;16") and _j2k_components(data)[0][0] > 8:
        return _unwrapped(image, data)
    return image


def missing_parts(image: Image.Image, data: bytes) -> str:
    """Say what of an image that has been opened is in its file, where that is not all; nothing where all seems there.

    Readers of the other formats refuse a file without its end; tests hold them to that.
    """
    if image.format == "PNG":
        return _missing_png_bytes(image, data)
    if isinstance(image, tiff.TiffImageFile) and image.tag_v2.get(tiff.COMPRESSION) == _JPEG_IN_TIFF:
        return _missing_jpegs(image.tag_v2, data)
    if image.format == "JPEG2000" and data.find(_J2K_END, data.find(_J2K_START)) < 0:
        # Coded data do not contain it. The reader leaves grey what it does not find.
        return "its code stream has no end"
    return ""


# -- PNG -----------------------------------------------------------------------------------------------------------------------


def without_metadata(data: bytes) -> bytes:
    """Return a PNG without what no pixel depends on: Pillow refuses a picture whose texts or colour profile are long or damaged.

    What is no PNG, or has damaged headers, is returned as it is, for the reader to refuse.

    Raises:
        ImageError: Its pixels are not what was written, by their checksums, which Pillow does not look at.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return data
    kept, view = [_PNG_SIGNATURE], memoryview(data)
    for kind, start, stop in _png_chunks(data):
        # Source: PNG specification (W3C), 5.4: a small first letter marks what a reader may pass over.
        is_needed = not kind[:1].islower() or kind in _PNG_NEEDED or stop > len(data)
        body, checksum = view[start + 4 : stop - 4], view[stop - 4 : stop]
        if kind == b"IDAT" and stop <= len(data) and zlib.crc32(body) != int.from_bytes(checksum, "big"):
            raise ImageError(f"corrupt: the checksum of its pixels from byte {start} on is wrong")
        if is_needed or (data.startswith(_PNG_ORIENTATION, start + 8) and stop - start <= _LONGEST_TEXT_BYTES):
            kept.append(data[start:stop])
    return b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, place and end of each chunk of a PNG; the last may end behind the file. What is no chunk is the last."""
    place = len(_PNG_SIGNATURE)
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place) if place + 8 <= len(data) else (0, b"")
        stop = place + 12 + size if kind.isalpha() else len(data)
        yield kind, place, stop
        place = stop


def _missing_png_bytes(image: Image.Image, data: bytes) -> str:
    width, height, bits, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    # Pillow takes the end of the stream for that of the picture and leaves zeros: where the last row has others, all are there.
    if not interlace and np.asarray(image.crop((0, image.height - 1, image.width, image.height))).any():
        return ""
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sides = [(-(-(width - left) // across), -(-(height - top) // down)) for left, top, across, down in passes]
    # A byte before each row says how it is filtered.
    row_bytes = [1 + (columns * bits * _PNG_VALUES[colour] + 7) // 8 for columns, _ in sides]
    expected = sum(size * rows for size, (columns, rows) in zip(row_bytes, sides, strict=True) if columns > 0 and rows > 0)
    # Those behind another chunk Pillow does not read.
    behind = itertools.dropwhile(lambda chunk: chunk[0] != b"IDAT", _png_chunks(data))
    parts = itertools.takewhile(lambda chunk: chunk[0] == b"IDAT", behind)
    packed, stream, found = b"".join(data[start + 8 : stop - 4] for _, start, stop in parts), zlib.decompressobj(), 0
    # No further than what is expected: a bomb may hold a million times as much.
    while packed and not stream.eof and found < expected:
        found += len(stream.decompress(packed, _PIECE_BYTES))
        packed = stream.unconsumed_tail
    return f"{found} of {expected} bytes of pixels are there" if found < expected else ""


# -- TIFF ----------------------------------------------------------------------------------------------------------------------


def _refused_tiff(image: tiff.TiffImageFile) -> str:
    tags = image.tag_v2
    bits = tags.get(tiff.BITSPERSAMPLE, (1,))
    if image.info.get("compression") == "webp":  # Pillow's own libtiff is built without it.
        return "TIFF compressed by WebP"
    if bits == (8,) and tags.get(tiff.SAMPLEFORMAT) == (2,):
        return "TIFF of signed 8-bit samples"
    is_usual = image.mode in ("RGB", "RGBA", "CMYK") and len(bits) <= 4 and 1 not in tags.get(tiff.EXTRASAMPLES, ())
    if tags.get(tiff.PLANAR_CONFIGURATION) == _SEPARATE_PLANES and len(bits) > 1 and not is_usual:
        return f"TIFF of {len(bits)} separate planes in mode {image.mode}"
    if image.mode in ("I", "F") and tags.prefix == b"MM":
        # libtiff gives the processor's order of bytes, as Pillow knows of 16 bits without a sign alone.
        image.tile = [tile._replace(args=(tile.args[0].replace("B", "N"), *tile.args[1:])) for tile in image.tile]  # type: ignore[index]
    if image.mode == "P" and (colours := tags.get(tiff.COLORMAP)) and max(colours) < 256:
        # Of 16 bits each, as they should be, these would all be black: a programmer's error that libtiff knows too.
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    return ""


def _missing_jpegs(tags: Any, data: bytes) -> str:
    """Look for the end of each JPEG in a TIFF: libtiff fills in what is missing before it, and only warns."""
    places = (tiff.TILEOFFSETS, tiff.TILEBYTECOUNTS) if tiff.TILEOFFSETS in tags else (tiff.STRIPOFFSETS, tiff.STRIPBYTECOUNTS)
    offsets, sizes = (tags.get(place, ()) for place in places)
    ends = [(max(at, at + size - _TAIL_BYTES), at + size) for at, size in zip(offsets, sizes, strict=False)]
    there = sum(data.rfind(_END_OF_JPEG, first, stop) >= 0 for first, stop in ends)
    return f"{there} of {len(ends)} JPEGs in it have an end" if there < len(ends) else ""


# -- JPEG 2000 -----------------------------------------------------------------------------------------------------------------


def _j2k_components(data: bytes) -> list[tuple[int, int, int]]:
    """Return bits, and px from sample to sample across and down, of each component; nothing where no code stream is found."""
    place = data.find(_J2K_START)
    if place < 0 or len(data) < place + _J2K_COMPONENTS + 2:
        return []
    (count,) = struct.unpack_from(">H", data, place + _J2K_COMPONENTS)
    parts = data[place + _J2K_COMPONENTS + 2 :][: 3 * count]
    return [((bits & 0x7F) + 1, across, down) for bits, across, down in zip(parts[::3], parts[1::3], parts[2::3], strict=False)]


def _refused_jpeg2000(image: Image.Image, data: bytes) -> str:
    components = _j2k_components(data)
    if not components:
        return ""
    head, bits, has_palette = data[: data.find(_J2K_START)], {part[0] for part in components}, image.mode in ("P", "PA")
    channels = head.find(b"cdef")
    if len(bits) > 1 or any(part[1:] != (1, 1) for part in components):
        return "JPEG 2000 with fewer samples or other bits of some components"
    if min(bits) < 8:
        return f"JPEG 2000 of {min(bits)} bits"
    if channels >= 0 and not has_palette:
        colours = len(components) - (len(components) in (2, 4) and image.mode != "CMYK")
        usual = [(number, 0, number + 1) for number in range(colours)] + [(colours, 1, 0)] * (colours < len(components))
        if sorted(struct.iter_unpack(">3H", head[channels + 6 : channels + 6 + 6 * len(usual)])) != usual:
            return "JPEG 2000 with channels in another order or of another meaning"
    return ""


def _unwrapped(image: Image.Image, data: bytes) -> Image.Image:
    """Return white where Pillow rounds values of more than 8 bits up to 256, which it stores as 0."""
    # The same code stream, said to be of 8 bits, is not rounded but clipped: what is bright there is white and not black.
    place, count = data.find(_J2K_START) + _J2K_COMPONENTS + 2, len(image.getbands())
    claimed = bytearray(data)
    claimed[place : place + 3 * count : 3] = bytes([7]) * count
    with Image.open(io.BytesIO(claimed), formats=("JPEG2000",)) as clipped:
        bright = np.asarray(clipped) >= 128
    values = np.asarray(image)
    return Image.frombytes(image.mode, image.size, np.where((values == 0) & bright, np.uint8(255), values).tobytes())
