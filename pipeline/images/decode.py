"""The bytes of one image file, in; its RGB pixels, out. Every way in which that can fail is one exception with one line.

JPEGs are decoded by simplejpeg (libjpeg-turbo with the accurate DCT, whose pixels are Pillow's bit for bit), all else by Pillow.
What Pillow gets wrong is refused in :mod:`~pipeline.images.unsupported`. The pixels are

- of RGB, grey, palette, 1-bit, CMYK, YCCK, YCbCr: as Pillow converts them to RGB. Colour profiles are ignored.
- of anything with transparency (alpha channel, palette or key colour): composited on white.
- of 16-bit grey: value / 257, rounded (Pillow's own conversion clips at 255); of 16-bit colour: the high byte.
- of animations and files of several pictures: the first. EXIF orientation is applied to all of them.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import ImageError
from .unsupported import UNSUPPORTED, refuse_unsupported, why_unidentified

# Left out are formats whose reader runs another program (EPS), is a stub (BUFR, GRIB, HDF5, MPEG, WMF), knows its files by so
# little that it would take text for a picture (XBM, SPIDER, IMT), takes a file without its end for another picture (PCX), or what
# is selected for transparent (PSD). The order is that of Pillow's own trials: TGA has no signature and comes last.
ALLOWED_FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI", "SGI", "TGA",
)  # fmt: skip

# Above this, a file is taken for a decompression bomb. Source: Pillow's default, 2 * Image.MAX_IMAGE_PIXELS.
MAX_PIXELS = 178_956_970

# Source: EXIF 2.3, tag 0x0112: rows and columns of the stored picture change places in 5 to 8.
_FIRST_SIDEWAYS_ORIENTATION = 5

# Pixels converted to RGB at a time, since Pillow's ways of doing so take three more copies of them.
_STRIP_PIXELS = 2**23

# Source: ITU T.81, B.1: markers of the segments where EXIF and XMP are, and of the scan, which comes behind all segments; frame
# header of a lossless JPEG, with how its length begins.
_APP1, _SCAN, _LOSSLESS = b"\xff\xe1", b"\xff\xda", b"\xff\xc3\0"
# What libjpeg warns of and decodes nevertheless: of no end, with grey for what is missing. Bytes too many before a marker other
# than a restart are nobody's loss. Source: libjpeg-turbo, jerror.h, JWRN_*.
_CORRUPT, _NO_END = "Corrupt JPEG data: ", "Premature end of JPEG file"
_HARMLESS = re.compile(r"extraneous bytes before marker 0x(?!d[0-7])")

# Pillow warns about what a status row says better, or what changes no pixel (a torn EXIF block). A filter for the whole process:
# warnings.catch_warnings is not safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


@functools.cache
def image_extensions() -> frozenset[str]:
    """Return the lower-case file extensions, with their dot, that belong to :data:`ALLOWED_FORMATS`."""
    names = {*ALLOWED_FORMATS, "MPO"}  # Opened by the reader of JPEG.
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in names)


def decode_image(
    data: bytes, ratio_for: Callable[[int, int], int] | None = None, admit: Callable[[int], None] = lambda pixels: None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode one image as the module's docstring says.

    Args:
        data: The whole file.
        ratio_for: (height, width) in px after orientation -> 1, 2, 4 or 8, by which a JPEG's sides are divided (rounding up)
            while it is decoded. Other formats, and rare kinds of JPEG, keep their size. None: all do.
        admit: Told how many pixels the header promises before any of them takes memory; may wait.

    Returns:
        (h, w, 3) uint8 RGB in 0..255, C-contiguous, possibly read-only; and the image's (height, width) in px after
        orientation, before any reduction.

    Raises:
        ImageError: The bytes are no image, or a damaged or too large one. Equal bytes give an equal text; its word is ``empty``,
            ``not an image``, ``truncated``, ``corrupt``, ``too large``, ``unsupported`` or ``out of memory``.
    """
    try:
        if decoded := _decode_jpeg(data, ratio_for, admit):
            return decoded
        image = _open(data)
        admit(image.width * image.height)
        pixels = _decode_by_pillow(image, data)
        # Only now: PNG may hold its EXIF behind the pixels, and TIFF is turned by Pillow while it loads.
        pixels = np.ascontiguousarray(_turn(pixels, _orientation(image)))
        return pixels, pixels.shape[:2]
    except ImageError:
        raise
    except Exception as error:  # Readers raise anything from KeyError to struct.error on damaged files.
        raise ImageError(_one_line(error)) from error


def _decode_jpeg(
    data: bytes, ratio_for: Callable[[int, int], int] | None, admit: Callable[[int], None]
) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
    """Decode a JPEG without opening it by Pillow, which takes ten times as long; None: no JPEG, or too large."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # The second: fewer bytes than a header has.
        return None
    if height * width > MAX_PIXELS:
        return None
    place = 2
    while (marker := data[place : place + 2]).startswith(b"\xff") and marker not in (_APP1, _SCAN):
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    orientation = 1 if marker == _SCAN else _orientation(_open(data))
    size_px = (width, height) if orientation >= _FIRST_SIDEWAYS_ORIENTATION else (height, width)
    admit(height * width)
    is_cmyk = colours in ("CMYK", "YCCK")
    # Of a lossless JPEG, libjpeg-turbo would write all pixels into the memory of fewer.
    ratio = 1 if ratio_for is None or is_cmyk or _LOSSLESS in data else ratio_for(*size_px)
    pixels = _decode_by_libjpeg(data, is_cmyk, -(-height // ratio), -(-width // ratio))
    if pixels is None:
        pixels = _decode_by_pillow(_open(data), data)
    return np.ascontiguousarray(_turn(pixels, orientation)), size_px


def _decode_by_libjpeg(data: bytes, is_cmyk: bool, height: int, width: int) -> NDArray[np.uint8] | None:
    """Decode a JPEG by simplejpeg; None where that refuses it, or warns of what is harmless."""
    try:
        # No smaller than these sides: of the eighths that it can scale by, that is the ratio itself.
        colours = "CMYK" if is_cmyk else "RGB"
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colours, min_height=height, min_width=width)
    except ValueError as error:
        text = str(error)
        if text == _NO_END or (text.startswith(_CORRUPT) and not _HARMLESS.search(text)):
            # Pillow would fill in what is missing or wrong without a word.
            word = "truncated" if "remature end" in text else "corrupt"
            raise ImageError(f"{word}: {text.removeprefix(_CORRUPT)}") from None
        return None
    if is_cmyk:
        # Inverted, as Adobe's programs write it and Pillow takes it.
        return _as_rgb(Image.frombuffer("CMYK", (width, height), pixels, "raw", "CMYK;I", 0, 1))
    return pixels


def _open(data: bytes) -> Image.Image:
    """Read the header alone, and refuse what must not be decoded."""
    if not data:
        raise ImageError("empty: the file has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS)
    except UnidentifiedImageError:
        raise ImageError(why_unidentified(data, ALLOWED_FORMATS)) from None
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"too large: {image.width} x {image.height} px, limit {MAX_PIXELS} px")
    if min(image.size) < 1:
        raise ImageError(f"corrupt: {image.width} x {image.height} px")
    refuse_unsupported(image, data)
    return image


def _one_line(error: Exception) -> str:
    """Return the text of a failed row for what a reader raised."""
    if isinstance(error, MemoryError):
        return "out of memory: the decoded image does not fit"
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))[:200] or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {text}"
    # Pillow's TIFF reader says "Expected to read 8 bytes but only got 3", its raw decoders "not enough image data".
    if isinstance(error, EOFError) or any(sign in text.lower() for sign in ("truncat", "only got", "not enough image data")):
        return f"truncated: {text}"
    if text == "decoder error -2":  # libtiff's
        return "corrupt: the data are damaged, or not all there"
    return f"{'unsupported' if UNSUPPORTED.search(text) else 'corrupt'}: {text}"


def _decode_by_pillow(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """Return (h, w, 3) uint8 of an image that has been opened, as stored."""
    if image.format == "PNG":
        # Its checksums, which Pillow does not look at when it decodes.
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()
    image.load()
    return _as_rgb(image)


def _as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return (h, w, 3) uint8 of a loaded image, converted some rows at a time."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows < image.height:
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, rows):
            pixels[top : top + rows] = _as_rgb(image.crop((0, top, image.width, min(top + rows, image.height))))
        return pixels
    if image.mode.startswith("I"):
        values = np.asarray(image)
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            grey[values == transparent] = 255
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.has_transparency_data:
        # From grey with its alpha multiplied in, Pillow knows no way to colour.
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer)
    # Converting RGB to RGB would copy it.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or the EXIF block is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # A torn EXIF block raises as many kinds of error as a torn header, and hides no pixel.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn stored rows and columns into seen ones. Source: EXIF 2.3, tag 0x0112."""
    if orientation >= _FIRST_SIDEWAYS_ORIENTATION:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]
