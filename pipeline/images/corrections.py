"""What Pillow decodes into another picture, or calls damaged though it is whole: put right, or refused as unsupported.

Found by decoding every mode and bit depth of every format that :mod:`~pipeline.images.decode` allows, and comparing with what was
encoded (Pillow 13.0). What Pillow reads rightly does not come here.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from PIL import Image, ImagePalette, TiffImagePlugin

from .completeness import J2K_START, PNG_SIGNATURE, png_chunks

# What readers say of a whole file that they have no code for.
_UNSUPPORTED = re.compile(
    r"unsupported|not (yet )?supported|unknown (raw|pixel|data)|unrecognized image mode|cannot handle|unable to determine",
    re.I,
)

# Of formats that are pictures, but not read. Source: their specifications; of ISO media, the brands of HEIF (ISO 23008-12).
_SIGNATURES = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"II\xbc\x01": "JPEG XR",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"DDS ": "DDS",
    b"8BPS\0\x02": "PSB (large Photoshop document)",
}
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1", b"avci", b"avcs"})

# Source: PNG specification (W3C), 11.3; APNG; the extensions: chunks without which the first picture is the same.
_PNG_METADATA = frozenset(
    b"iCCP tEXt zTXt iTXt gAMA cHRM sRGB cICP mDCV cLLI sBIT bKGD hIST pHYs sPLT tIME acTL fcTL fdAT oFFs pCAL sCAL sTER".split()
)
# In these Pillow looks for an orientation.
_PNG_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
# Longer ones may hold more than Pillow reads.
_LONGEST_TEXT_BYTES = 1 << 17
# What Apple's tools for iPhones write first: pixels without zlib's frame, blue before red, alpha multiplied in.
_APPLE_CHUNK = b"CgBI"
_PNG_BITS, _PNG_COLOUR = 24, 25

# Source: TIFF 6.0; sample format 2 is signed, ink set 2 others than CMYK.
_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES = 258, 259, 262, 266, 277
_PLANAR, _COLOUR_MAP, _INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBSAMPLING = 284, 320, 332, 338, 339, 530
_WHITE_IS_ZERO, _INKS, _YCBCR = 0, 5, 6

# Source: Adobe Photoshop file formats: modes, and the resource that names alpha channels: 0 is the picture's transparency.
_PSD_BITMAP, _PSD_MULTICHANNEL, _PSD_ALPHA_NAMES = 0, 7, 0x41D
_PSD_MODES = {0: "bitmap", 1: "grey", 2: "indexed", 3: "RGB", 4: "CMYK", 7: "multichannel", 8: "duotone", 9: "Lab"}

# Source: ITU T.800, annex A: bits and steps of the components in the first segment; annex I: colour spaces.
_J2K_COMPONENTS = 40
_J2K_COLOURS, _J2K_SYCC = (0, 12, 15, 16, 17, 18), 18


def is_unsupported(text: str) -> bool:
    """Tell whether a reader's words mean that it has no code for a file, not that the file is damaged."""
    return bool(_UNSUPPORTED.search(text))


def why_unidentified(data: bytes, formats: Sequence[str]) -> str:
    """Return the status of a file that no reader takes: unsupported, corrupt or not an image.

    Args:
        data: The whole file.
        formats: Names of Pillow's readers, all of which have refused it.
    """
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
    kind = ""
    try:
        reader(io.BytesIO(data), "")
    except Exception as error:
        kind = _unread_kind(name, data, error)
    return f"unsupported: {kind}" if kind else f"corrupt: the header of this {name} file is damaged or incomplete"


def _unread_kind(name: str, data: bytes, error: Exception) -> str:
    """Name the kind of a picture that its reader has refused; nothing where it is damaged."""
    if name == "TIFF":
        return _tiff_kind(data)
    if name == "PSD" and isinstance(error.__cause__, KeyError):
        bits, mode = struct.unpack_from(">HH", data, 22)
        return f"PSD of {bits} bits in {_PSD_MODES.get(mode, 'an unknown')} mode"
    if name == "JPEG2000" and (components := _j2k_components(data)) and len(components) > 4:
        return f"JPEG 2000 of {len(components)} components"
    return f"{name}: {error}" if is_unsupported(str(error)) else ""


def refused_kind(image: Image.Image, data: bytes) -> str:
    """Say why an image that has been opened would become another picture; nothing where it does not.

    What can be put right before the pixels are loaded is.
    """
    if image.format == "TIFF" and isinstance(image, TiffImagePlugin.TiffImageFile):
        return _refused_tiff(image)
    if image.format == "JPEG2000":
        return _refused_jpeg2000(image, data)
    if image.format == "PSD" and data[25] in (_PSD_BITMAP, _PSD_MULTICHANNEL):
        return f"PSD in {_PSD_MODES[data[25]]} mode"
    if image.format == "TGA" and image.mode == "RGBA" and data[16] == 16:
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
    if image.format == "TIFF" and isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if image.mode.startswith("I;16") and tags.get(_BITS) == (12,):
            image = Image.fromarray(((np.asarray(image).astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16))
        if tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO and (image.mode == "F" or image.mode.startswith("I;16")):
            with np.errstate(invalid="ignore"):  # What is no number is refused later.
                image = Image.fromarray((1 if image.mode == "F" else 65535) - np.asarray(image))
    elif image.format == "PSD" and image.mode == "RGBA" and _is_selection(image, data):
        return image.convert("RGB")
    elif image.format == "JPEG2000" and image.mode not in ("P", "PA", "I;16"):
        bits = _j2k_components(data)[0][0]
        if bits < 8:
            most = 2**bits - 1
            return image.point([round((value >> (8 - bits)) * 255 / most) for value in range(256)] * len(image.getbands()))
        if bits > 8:
            return _unwrapped(image, data)
    return image


def without_metadata(data: bytes) -> bytes:
    """Return a PNG without what no pixel depends on: Pillow refuses a picture whose texts or colour profile are long or damaged.

    What is no PNG, or a damaged one, is returned as it is, for the reader to refuse.
    """
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept = [PNG_SIGNATURE]
    for kind, start, stop in png_chunks(data):
        has_orientation = data.startswith(_PNG_ORIENTATION, start + 8) and stop - start <= _LONGEST_TEXT_BYTES
        if kind not in _PNG_METADATA or has_orientation or stop > len(data):
            kept.append(data[start:stop])
    return b"".join(kept)


def _tiff_kind(data: bytes) -> str:
    """Describe the samples of a TIFF whose directory can be read."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if b"\x2b" in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        if not tags[256] or not tags[257]:
            return ""
        bits, photometric, compression = tags.get(_BITS, (1,)), tags[_PHOTOMETRIC], tags.get(_COMPRESSION, 1)
        kind = f"{tags.get(_SAMPLES, 1)} x {bits[0]} bits, format {tags.get(_SAMPLE_FORMAT, (1,))[0]}"
        return f"TIFF of {kind}, photometric {photometric}, compression {compression}"
    except Exception:  # As any reader's.
        return ""


def _refused_tiff(image: TiffImagePlugin.TiffImageFile) -> str:
    tags = image.tag_v2
    bits, photometric = tags.get(_BITS, (1,)), tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO)
    is_raw = image.info.get("compression") == "raw"
    if image.info.get("compression") == "webp":  # Pillow's own libtiff is built without it.
        return "TIFF compressed by WebP"
    if bits == (8,) and tags.get(_SAMPLE_FORMAT) == (2,):
        return "TIFF of signed 8-bit samples"
    if photometric == _INKS and tags.get(_INK_SET) == 2:
        return "TIFF of inks other than CMYK"
    if photometric == _YCBCR and is_raw and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        return "TIFF of uncompressed YCbCr with fewer samples of colour"
    if tags.get(_PLANAR) == 2 and len(bits) > 1:
        if image.mode not in ("RGB", "RGBA", "CMYK") or 1 in tags.get(_EXTRA_SAMPLES, ()):
            return f"TIFF of separate planes in mode {image.mode}"
        if is_raw and tags.get(_FILL_ORDER) == 2:
            return "TIFF of separate planes with the lowest bit first"
        if is_raw and bits[0] == 16:
            # Pillow reads such planes as if they had 8 bits, unless each says otherwise.
            order = ";16L" if tags.prefix == b"II" else ";16B"
            image.tile = [tile._replace(args=(f"{tile.args[0]}{order}", *tile.args[1:])) for tile in image.tile]  # type: ignore[index]
    if image.mode == "P" and (colours := tags.get(_COLOUR_MAP)) and max(colours) < 256:
        # Of 16 bits each, as they should be, these would all be black: a programmer's error that libtiff knows too.
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    return ""


def _is_selection(image: Image.Image, data: bytes) -> bool:
    """Tell whether the fourth channel of a PSD is no transparency but something that was selected once."""
    names = [body for number, _, body in getattr(image, "resources", ()) if number == _PSD_ALPHA_NAMES]
    identifiers = struct.unpack(f">{len(names[0]) // 4}I", names[0][: len(names[0]) // 4 * 4]) if names else ()
    if identifiers and all(identifiers):
        return True
    place = 26
    for _ in range(2):  # Colours, then resources.
        place += 4 + int.from_bytes(data[place : place + 4], "big")
    # A negative number of layers says that the first channel more is their transparency.
    return (
        bool(int.from_bytes(data[place : place + 4], "big"))
        and int.from_bytes(data[place + 8 : place + 10], "big", signed=True) > 0
    )


def _j2k_components(data: bytes) -> list[tuple[int, int, int]]:
    """Return bits, and px from sample to sample across and down, of each component; nothing where no code stream is found."""
    place = data.find(J2K_START)
    if place < 0 or len(data) < place + _J2K_COMPONENTS + 2:
        return []
    (count,) = struct.unpack_from(">H", data, place + _J2K_COMPONENTS)
    parts = data[place + _J2K_COMPONENTS + 2 :][: 3 * count]
    return [((bits & 0x7F) + 1, across, down) for bits, across, down in zip(parts[::3], parts[1::3], parts[2::3], strict=False)]


def _refused_jpeg2000(image: Image.Image, data: bytes) -> str:
    components = _j2k_components(data)
    if not components:
        return ""
    place, bits = data.find(J2K_START), {part[0] for part in components}
    has_palette = image.mode in ("P", "PA")
    is_thinned = any(part[1:] != (1, 1) for part in components)
    colour, channels = (data.find(kind, 0, place) for kind in (b"colr\1", b"cdef"))
    space = struct.unpack_from(">I", data, colour + 7)[0] if colour >= 0 else 16
    if space not in _J2K_COLOURS:
        return f"JPEG 2000 in colour space {space}"
    if len(bits) > 1 or (bits != {8} and (space == _J2K_SYCC or is_thinned or has_palette)):
        return f"JPEG 2000 of {', '.join(map(str, sorted(bits)))} bits with palette, YCbCr or unequal components"
    if b"pclr" in data[:place] and not has_palette:
        return "JPEG 2000 with a palette of more than 8 bits or of greys"
    if is_thinned:
        right, bottom, left, top, across, down = struct.unpack_from(">6I", data, place + 8)
        sides = [(right - left, across, left), (bottom - top, down, top)]
        if len(components) < 3 or any(side % part[1 + axis] for part in components for axis in (0, 1) for side in sides[axis]):
            return "JPEG 2000 of odd sides with fewer samples of colour"
    if channels >= 0 and not has_palette:
        (count,) = struct.unpack_from(">H", data, channels + 4)
        entries = sorted(struct.iter_unpack(">3H", data[channels + 6 : channels + 6 + 6 * count]))
        colours = len(components) - (len(components) in (2, 4) and image.mode != "CMYK")
        usual = [(number, 0, number + 1) for number in range(colours)] + [(colours, 1, 0)] * (colours < len(components))
        if entries != usual:
            return "JPEG 2000 with channels in another order or of another meaning"
    return ""


def _unwrapped(image: Image.Image, data: bytes) -> Image.Image:
    """Return white where Pillow rounds values of more than 8 bits up to 256, which it stores as 0.

    The same code stream, said to be of 8 bits, is not rounded but clipped: what is bright there is white and not black. Its other
    pixels are of no use, unless it is coded with loss.
    """
    place = data.find(J2K_START) + _J2K_COMPONENTS + 2
    claimed = bytearray(data)
    claimed[place : place + 3 * len(image.getbands()) : 3] = bytes([7]) * len(image.getbands())
    with Image.open(io.BytesIO(claimed), formats=("JPEG2000",)) as clipped:
        bright = np.asarray(clipped) >= 128
    values = np.asarray(image)
    return Image.frombytes(image.mode, image.size, np.where((values == 0) & bright, np.uint8(255), values).tobytes())
