"""What Pillow decodes into another picture, or calls damaged though it is whole: refused as unsupported.

Found by decoding every mode and bit depth of every format that :mod:`~pipeline.images.decode` allows, and comparing with what was
encoded (Pillow 13.0). The tests hold Pillow to what it reads rightly.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Sequence

from PIL import Image, PngImagePlugin
from PIL import TiffImagePlugin as tiff

from ..errors import ImageError

# Pillow's own reader of uncompressed TIFF takes planes of 16 bits for planes of 8, and strips that are not there for black.
tiff.READ_LIBTIFF = True
# Pillow refuses a PNG whose texts or colour profile are longer than 1 MiB each, though no pixel depends on them.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 26

# What readers say of a whole file that they have no code for, not of a damaged one.
UNSUPPORTED = re.compile(
    r"(?i)unsupported|not (yet )?supported|unknown (raw|pixel|data)|unrecognized image mode|cannot handle|unable to determine"
)

# How files begin that are pictures, but not read. Source: their specifications.
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
# Source: ITU T.87: the frame header, and how its length begins.
_JPEG_LS_FRAME = b"\xff\xf7\0"
# Source: Truevision TGA specification: bits a pixel, and the image descriptor, whose lower four bits say how many are opacity.
_TGA_BITS, _TGA_DESCRIPTOR = 16, 17
# Source: PNG specification (W3C), 11.2.2: places of bit depth and colour type, and two of the types.
_PNG_BITS, _PNG_COLOUR, _GREY, _RGB = 24, 25, 0, 2
# Source: TIFF 6.0: values of photometric interpretation, planar configuration, sample format and extra samples.
_WHITE_IS_ZERO, _SEPARATE_PLANES, _SIGNED, _MULTIPLIED_ALPHA = 0, 2, 2, 1
# Source: ITU T.800, annex A: start of the code stream and size, with bits and steps of the components; its end.
_J2K_START, _J2K_END, _J2K_COMPONENTS = b"\xff\x4f\xff\x51", b"\xff\xd9", 40


def why_unidentified(data: bytes, formats: Sequence[str]) -> str:
    """Return the status of a file that Pillow's readers of these formats refuse: unsupported, corrupt or not an image."""
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return f"unsupported: {name}"
    # Of ISO media only AVIF is read, whose brand may be second. Source: ISO 23008-12.
    if data[4:8] == b"ftyp" and b"avi" not in data[8:64]:
        return "unsupported: HEIC, HEIF or a video"
    head = data[:16].ljust(16, b"\0")
    name = next((name for name in formats if (accept := Image.OPEN[name][1]) and accept(head) is True), "")
    if not name:
        return f"not an image: begins with {data[:8]!r}"
    if name == "JPEG" and _JPEG_LS_FRAME in data:
        return "unsupported: JPEG-LS"
    if name == "JPEG2000" and len(components := _j2k_components(data)) > 4:
        return f"unsupported: JPEG 2000 of {len(components)} components"
    try:
        Image.OPEN[name][0](io.BytesIO(data), "")
    except Exception as error:
        if UNSUPPORTED.search(str(error)):
            return f"unsupported: {name}: {error}"
        if name == "TIFF" and str(error).isdigit():
            return f"unsupported: TIFF: compression {error}"
    return f"corrupt: the header of this {name} file is damaged or incomplete"


def refuse_unsupported(image: Image.Image, data: bytes) -> None:
    """Refuse, by an ``ImageError``, an image that has been opened, but would become another picture."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ImageError("unsupported: grey of 32 bits, or with a sign")
    check = {"TIFF": _check_tiff, "JPEG2000": _check_jpeg2000, "TGA": _check_tga, "PNG": _check_png}.get(image.format or "")
    if check and (kind := check(image, data)):
        raise ImageError(f"unsupported: {kind}")


def _check_png(image: Image.Image, data: bytes) -> str:
    if data[12:16] == b"CgBI":
        return "PNG of Apple's own kind (CgBI)"
    bits, colour = data[_PNG_BITS], data[_PNG_COLOUR]
    # Pillow compares what it has scaled to 8 bits.
    if "transparency" in image.info and (bits, colour) in ((2, _GREY), (4, _GREY), (16, _RGB)):
        return f"PNG with a transparent colour of {bits} bits a channel"
    return ""


def _check_tga(image: Image.Image, data: bytes) -> str:
    bits, opacity = data[_TGA_BITS], data[_TGA_DESCRIPTOR] & 15
    # Of 16 bits one may be opacity or transparency, and what nothing calls opacity is most often zero.
    if not image.tile or (image.mode == "RGBA" and (bits, opacity) != (32, 8)):  # type: ignore[attr-defined]
        return f"TGA of type {data[2]} and {bits} bits, {opacity} of them opacity"
    return ""


def _check_tiff(image: Image.Image, data: bytes) -> str:
    assert isinstance(image, tiff.TiffImageFile)
    tags, mode = image.tag_v2, image.mode
    bits = tags.get(tiff.BITSPERSAMPLE, (1,))
    is_usual = mode in ("RGB", "RGBA", "CMYK") and len(bits) <= 4 and _MULTIPLIED_ALPHA not in tags.get(tiff.EXTRASAMPLES, ())
    planes = tags.get(tiff.PLANAR_CONFIGURATION) == _SEPARATE_PLANES and len(bits) > 1 and not is_usual
    white_is_zero = tags.get(tiff.PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    refused = {
        # Pillow's own libtiff is built without it.
        "compressed by WebP": image.info.get("compression") == "webp",
        "of signed 8-bit samples": bits == (8,) and tags.get(tiff.SAMPLEFORMAT) == (_SIGNED,),
        "of 12 bits": bits == (12,),
        "of 16 bits whose zero is white": mode.startswith("I;16") and white_is_zero,
        # Read as 16 bits, all would be black.
        "with a palette of 8 bits": mode == "P" and max(tags.get(tiff.COLORMAP, (256,))) < 256,
        f"of {len(bits)} separate planes in mode {mode}": planes,
    }
    return next((f"TIFF {kind}" for kind, is_so in refused.items() if is_so), "")


def _j2k_components(data: bytes) -> list[tuple[int, int, int]]:
    """Return bits, and px from sample to sample across and down, of each component; nothing where no code stream is found."""
    place = data.find(_J2K_START)
    if place < 0 or len(data) < place + _J2K_COMPONENTS + 2:
        return []
    (count,) = struct.unpack_from(">H", data, place + _J2K_COMPONENTS)
    parts = data[place + _J2K_COMPONENTS + 2 :][: 3 * count]
    return [((bits & 0x7F) + 1, across, down) for bits, across, down in zip(parts[::3], parts[1::3], parts[2::3], strict=False)]


def _check_jpeg2000(image: Image.Image, data: bytes) -> str:
    start, components = data.find(_J2K_START), _j2k_components(data)
    if data.find(_J2K_END, start) < 0:
        # Coded data do not contain it. The reader leaves grey what it does not find.
        raise ImageError("truncated: its code stream has no end")
    if len({*components}) > 1 or any(part[1:] != (1, 1) for part in components):
        return "JPEG 2000 with fewer samples or other bits of some components"
    # Of more than 8 bits, Pillow rounds the brightest values up to 256, and stores them as 0; but not of grey of 16 bits.
    if components and components[0][0] != 8 and image.mode != "I;16":
        return f"JPEG 2000 of {components[0][0]} bits in mode {image.mode}"
    # Source: ITU T.800, I.5.3.6: channel, type and association of each. Usual are colours in their order, then opacity.
    if (place := data.find(b"cdef", 0, start)) >= 0:
        (count,) = struct.unpack_from(">H", data, place + 4)
        channels = struct.iter_unpack(">3H", data[place + 6 :][: 6 * count])
        if any((kind, shown) not in ((0, channel + 1), (1, 0)) for channel, kind, shown in channels):
            return "JPEG 2000 with channels in another order or of another meaning"
    return ""
