"""The bytes of one image file, in; its RGB pixels, out. Every way in which that can fail is one exception with one line.

Stands between the file and the batch: :mod:`~pipeline.images.loader` calls it, once an image, in several threads.

What the pixels of each kind of file are:

- RGB, grey, palette, 1-bit, CMYK, YCCK, YCbCr: as Pillow converts them to RGB. Colour profiles are ignored.
- Anything with transparency (alpha channel, palette or key colour): composited on white.
- 16-bit grey: value / 257, rounded (Pillow's own conversion clips at 255). 16-bit colour: Pillow keeps the high byte.
- 32-bit integer grey: read as 16-bit; values outside 0..65535 fail. Float: 0..1 is black to white; other values fail. There is
  no rule for such values that is right for all files, and a wrong one would fail in silence.
- Animations and files of several pictures: the first. EXIF orientation is applied to all of them.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import ImageError
from .completeness import missing_parts, missing_rows
from .jpeg_decoder import decode_baseline, is_prepared
from .jpeg_header import END_OF_JPEG, MAX_JPEG_SCANS, Header, has_endless_scans, read_header

# Photographs and the output of graphics programs. Left out are formats whose reader runs another program (EPS), is a stub (BUFR,
# GRIB, HDF5, MPEG, WMF), knows its files by so little that it would take text for a picture (XBM, SPIDER, IMT), or takes a
# file without its end for another picture (PCX: a cut colour image becomes a grey one).
# The order is that of Pillow's own trials: TGA has no signature and comes last.
ALLOWED_FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "PSD", "QOI", "SGI", "TGA",
)  # fmt: skip

# Formats that Pillow opens through another one's reader, but whose extensions it registers under their own name.
_OPENED_AS_ANOTHER = ("MPO",)

# Above this, a file is taken for a decompression bomb: 537 MB of pixels.
# Source: Pillow raises DecompressionBombError above 2 * Image.MAX_IMAGE_PIXELS, by default this number.
MAX_PIXELS = 178_956_970

# Source: EXIF 2.3, tag 0x0112: rows and columns of the stored picture change places in 5 to 8.
_FIRST_SIDEWAYS_ORIENTATION = 5

# Pillow decodes run-length coded bitmaps in Python, 0.2 us a pixel, and a kilobyte may declare as many as it likes.
MAX_RUN_LENGTH_BITMAP_PIXELS = 2**24
# Pixels converted to RGB at a time, since Pillow's ways of doing so take three more copies of them.
_STRIP_PIXELS = 2**23

_PILLOW_MODULES = r"PIL\."


class ImageDecodeError(ImageError):
    """These bytes give no picture. The text is one line, ``<word>: <reason>``; equal bytes give an equal text.

    The words: ``empty``, ``not an image``, ``truncated``, ``corrupt``, ``too large``, ``unsupported``, ``out of memory``.
    """


@functools.cache
def image_extensions() -> frozenset[str]:
    """Gives the lower-case file extensions, with their dot, that belong to :data:`ALLOWED_FORMATS`."""
    names = {*ALLOWED_FORMATS, *_OPENED_AS_ANOTHER}
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in names)


def decode_image(
    data: bytes,
    ratio_for: Callable[[int, int], int] | None = None,
    admit: Callable[[int], None] | None = None,
    buffer_for: Callable[[int], NDArray[np.uint8] | None] | None = None,
    *,
    by_library: bool = False,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decodes one image as the module's docstring says.

    Without ``ratio_for`` the pixels are those of Pillow, bit for bit. JPEGs are decoded by code of our own, once that is compiled
    (:mod:`~pipeline.images.jpeg_decoder`), or else by simplejpeg, which give the same pixels in less time (libjpeg-turbo's, with
    the accurate integer DCT); whatever they refuse is put to Pillow, which has the last word. They have refused every truncated
    file that Pillow refuses.

    Args:
        data: The whole file.
        ratio_for: (height, width) in px after orientation -> 1, 2, 4 or 8, by which a JPEG's sides are divided (rounding up)
            while it is decoded: by code of our own where it can be (baseline), else by libjpeg-turbo. Other formats, CMYK JPEGs
            and JPEGs that only Pillow accepts keep their size. None: exact.
        admit: Told how many pixels the header promises before any of them takes memory; may wait.
        buffer_for: Gives memory of so many bytes or more to decode into, or None; the pixels may then lie in it.
        by_library: For a few pictures that nobody computes with, whose reduced pixels may be anybody's: no code is made for them.

    Returns:
        (h, w, 3) uint8 RGB in 0..255, C-contiguous, possibly read-only; and the image's (height, width) in px after
        orientation, before any reduction.

    Raises:
        ImageDecodeError: The bytes are no image, or a damaged or too large one.
    """
    try:
        # Half of the time that is not decoding is Pillow's look at the header, which most files do not need.
        header = read_header(data)
        if header is not None and header.is_plain and header.height * header.width <= MAX_PIXELS:
            if admit is not None:
                admit(header.height * header.width)
            ratio = 1 if ratio_for is None else ratio_for(header.height, header.width)
            own = None if by_library else header
            pixels = _decode_jpeg(data, own, ratio, (header.width, header.height), buffer_for)
            if pixels is not None:
                return pixels, (header.height, header.width)
            admit = None
        return _decode_any(data, None if by_library else header, ratio_for, admit, buffer_for)
    except MemoryError:
        raise ImageDecodeError("out of memory: the decoded image does not fit") from None


def _decode_any(
    data: bytes,
    header: Header | None,
    ratio_for: Callable[[int, int], int] | None,
    admit: Callable[[int], None] | None,
    buffer_for: Callable[[int], NDArray[np.uint8] | None] | None,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decodes what Pillow opens, a JPEG by simplejpeg where it can."""
    _silence_pillow()
    image = _open(data)
    if admit is not None:
        admit(image.width * image.height)
    pixels = None
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        orientation = _orientation(image)
        height, width = image.height, image.width
        if orientation >= _FIRST_SIDEWAYS_ORIENTATION:
            height, width = width, height
        ratio = 1 if ratio_for is None else ratio_for(height, width)
        pixels = _decode_jpeg(data, header, ratio, image.size, buffer_for)
    if pixels is None:
        pixels = _decode_with_pillow(image, data)
        # Only now: PNG may hold its EXIF behind the pixels, and TIFF is turned by Pillow while it loads.
        orientation = _orientation(image)
        height, width = pixels.shape[:2]
        if orientation >= _FIRST_SIDEWAYS_ORIENTATION:
            height, width = width, height
    return np.ascontiguousarray(_turn(pixels, orientation)), (height, width)


def _silence_pillow() -> None:
    # Pillow warns about what a status row says better, or what changes no pixel (a torn EXIF block). A filter for the whole
    # process, looked for before it is added: warnings.catch_warnings is not safe with threads.
    wanted = re.compile(_PILLOW_MODULES)
    if not any(action == "ignore" and module == wanted for action, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)


def _open(data: bytes) -> Image.Image:
    """Reads the header alone, and refuses what must not be decoded."""
    if not data:
        raise ImageDecodeError("empty: the file has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise ImageDecodeError(f"too large: {pixels[1] if pixels else 'too many'} px, limit {MAX_PIXELS} px") from None
    except UnidentifiedImageError:
        raise ImageDecodeError(_why_unidentified(data)) from None
    except MemoryError:
        raise
    except Exception as error:  # Readers raise anything from KeyError to struct.error on damaged headers.
        raise ImageDecodeError(_one_line(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageDecodeError(f"too large: {image.width} x {image.height} px, limit {MAX_PIXELS} px")
    if min(image.size) < 1:
        raise ImageDecodeError(f"corrupt: {image.width} x {image.height} px")
    _refuse_endless(image, data)
    return image


def _refuse_endless(image: Image.Image, data: bytes) -> None:
    """Refuses files of a few kilobytes that would take minutes or hours."""
    if image.format in ("JPEG", "MPO") and has_endless_scans(data):
        raise ImageDecodeError(f"corrupt: more than {MAX_JPEG_SCANS} scans, as no camera or program writes")
    run_length = any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", ()))
    if run_length and image.width * image.height > MAX_RUN_LENGTH_BITMAP_PIXELS:
        raise ImageDecodeError(
            f"too large: {image.width} x {image.height} px, limit {MAX_RUN_LENGTH_BITMAP_PIXELS} px for run-length coded bitmaps"
        )


def _why_unidentified(data: bytes) -> str:
    for name in ALLOWED_FORMATS:
        accept = Image.OPEN[name][1]
        try:
            known = accept is not None and accept(data[:16]) is True
        except Exception:  # Fewer bytes than the signature has: IndexError, struct.error.
            continue
        if known:
            return f"corrupt: the header of this {name} file is damaged or incomplete"
    return f"not an image: begins with {data[:8]!r}"


def _one_line(error: Exception) -> str:
    """Gives ``truncated: ...`` or ``corrupt: ...`` for what a reader raised."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))[:200] or type(error).__name__
    # Pillow's TIFF reader says "Expected to read 8 bytes but only got 3", its raw decoders "not enough image data".
    cut = isinstance(error, EOFError) or any(sign in text.lower() for sign in ("truncat", "only got", "not enough image data"))
    return f"{'truncated' if cut else 'corrupt'}: {text}"


def _decode_jpeg(
    data: bytes,
    header: Header | None,
    ratio: int,
    size: tuple[int, int],
    buffer_for: Callable[[int], NDArray[np.uint8] | None] | None,
) -> NDArray[np.uint8] | None:
    """Decodes a grey or RGB JPEG by our own code or libjpeg-turbo; None where that refuses, warns, or gives another size.

    Reduced pixels differ between the two, so which of them decodes a file must depend on nothing but the file. Without a header
    it is the library.
    """
    width, height = (-(-side // ratio) for side in size)
    buffer = None if buffer_for is None else buffer_for(height * width * 3)
    if (ratio > 1 or is_prepared()) and header is not None and header.components and (header.width, header.height) == size:
        own = decode_baseline(data, header, ratio, buffer)
        if own is not None:
            return own
    if data.rfind(END_OF_JPEG) < 0:
        return None
    try:
        # No smaller than these sides: of the eighths that it can scale by, that is the ratio itself, but for sides of a few px.
        # Strict: what libjpeg only warns of, such as a missing end, is refused.
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, buffer=buffer)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _decode_with_pillow(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    try:
        missing = missing_parts(image, data)
        if not missing:
            image.load()
            missing = missing_rows(image, data)
        if missing:
            raise ImageDecodeError(f"truncated: the file ends early, or was never written to the end: {missing} are there")
        rows = max(1, _STRIP_PIXELS // image.width)
        if rows >= image.height:
            return _as_rgb(image)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            pixels[top:bottom] = _as_rgb(image.crop((0, top, image.width, bottom)))
        return pixels
    except (ImageDecodeError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageDecodeError(f"too large: a part of the file, limit {MAX_PIXELS} px") from None
    except Exception as error:  # As above.
        raise ImageDecodeError(_one_line(error)) from error


def _as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Gives (h, w, 3) uint8 of a loaded image, or of some rows of one."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer)
    # Converting RGB to RGB would copy it.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _deep_grey(image: Image.Image) -> NDArray[np.uint8]:
    """Gives (h, w, 3) uint8 of a grey image of more than 8 bits."""
    values: NDArray[Any] = np.asarray(image)
    low, high = values.min(), values.max()
    limit = 1 if image.mode == "F" else 65535
    if not (low >= 0 and high <= limit):  # So written that NaN is refused too.
        raise ImageDecodeError(f"unsupported: grey values from {low:g} to {high:g}, only 0 to {limit} can be read")
    if image.mode == "F":
        grey = np.rint(values * np.float32(255)).astype(np.uint8)
    else:
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            grey[values == transparent] = 255
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def _orientation(image: Image.Image) -> int:
    """Gives the EXIF orientation, 1 to 8; 1 where there is none or the EXIF block is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # A torn EXIF block raises as many kinds of error as a torn header, and hides no pixel.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns stored rows and columns into seen ones. Source: EXIF 2.3, tag 0x0112."""
    if orientation >= _FIRST_SIDEWAYS_ORIENTATION:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]
