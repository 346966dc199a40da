"""A folder of bad images, with good ones among them: what each should become is said beside it."""

from __future__ import annotations

import io
import os
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images.decode import decode_image

CASES = Path(__file__).parent / "image_cases"
OK, FAILED, EITHER, NO_ROW = "ok", "failed", "either", "no row"
ORIENTATION = 0x0112

# Format as Pillow calls it, extension, mode and options of what is cut and spoilt.
KINDS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("JPEG", ".jpg", "RGB", {}),
    ("JPEG", ".jpeg", "RGB", {"progressive": True}),
    ("JPEG", ".jpe", "CMYK", {}),
    ("JPEG", ".jfif", "L", {"restart_marker_rows": 1}),
    ("MPO", ".mpo", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}),
    ("PNG", ".png", "RGB", {}),
    ("PNG", ".apng", "P", {}),
    ("GIF", ".gif", "P", {}),
    ("BMP", ".bmp", "RGB", {}),
    ("DIB", ".dib", "L", {}),
    ("TIFF", ".tif", "RGB", {}),
    ("TIFF", ".tiff", "RGB", {"compression": "tiff_lzw"}),
    ("WEBP", ".webp", "RGB", {}),
    ("WEBP", ".webp", "RGBA", {"lossless": True}),
    ("AVIF", ".avif", "RGB", {}),
    ("JPEG2000", ".jp2", "RGB", {}),
    ("PPM", ".ppm", "RGB", {}),
    ("QOI", ".qoi", "RGB", {}),
    ("SGI", ".sgi", "RGB", {}),
    ("TGA", ".tga", "RGB", {"compression": "tga_rle"}),
    ("TGA", ".tga", "RGB", {}),
    ("GIF", ".gif", "P", {"interlace": 0}),
    ("BMP", ".bmp", "P", {}),
    ("PPM", ".ppm", "1", {}),
    ("TIFF", ".tif", "1", {"compression": "group4"}),
    *(
        ("TIFF", ".tif", "RGB", {"strip_size": 600, **({"compression": name} if name else {})})
        for name in ("", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    ),
    ("JPEG2000", ".jp2", "RGB", {"no_jp2": True}),
    ("JPEG2000", ".jp2", "RGB", {"tile_size": (16, 16)}),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One name in the folder.

    Attributes:
        key: Of its row in a manifest.
        outcome: :data:`OK`, :data:`FAILED`, :data:`EITHER` (a spoilt file may still hold a picture) or :data:`NO_ROW`.
        reason: What the error of a failed row begins with.
    """

    key: str
    outcome: str
    reason: str = ""


def picture(number: int, height: int = 40, width: int = 56) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (3 + number % 7)) + np.cos(columns / (4 + colour)) for colour in range(3)]
    noise = np.random.default_rng(number).normal(0, 0.2, (height, width, 3))
    return Image.fromarray(np.clip((np.dstack(waves) + noise) * 50 + 120, 0, 255).astype(np.uint8))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def encode(image: Image.Image, file_format: str, mode: str = "", **options: Any) -> bytes:
    buffer = io.BytesIO()
    if mode == "RGBA":
        image.putalpha(image.convert("L"))
    (image.convert(mode) if mode else image).save(buffer, file_format, **options)
    return buffer.getvalue()


def whole_files() -> Iterator[tuple[str, str, bytes]]:
    """Gives (name, extension, content) of one good file of each kind."""
    for number, (file_format, extension, mode, options) in enumerate(KINDS):
        name = f"{number:02}-{file_format.lower()}-{mode.lower()}"
        yield name, extension, encode(picture(number), file_format, mode, **options)


def put(folder: Path, key: str, content: bytes, outcome: str = OK, reason: str = "") -> Case:
    """Writes a file, gives what should become of it."""
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Case(key, outcome, reason)


def make_corpus(folder: Path, cuts: int, flips: int) -> list[Case]:
    """Fills a folder, gives what is in it; each kind of file is cut short, and some of its bits turned over, so often."""
    cases: list[Case] = []
    for part in (_good, _wrong_contents, _bombs, _exif, _links_and_special_files, _odd_names):
        cases += part(folder)
    return [*cases, *_cut(folder, cuts), *_flipped(folder, flips)]


def _good(folder: Path) -> Iterator[Case]:
    for name, extension, content in whole_files():
        yield put(folder, f"good/{name}{extension}", content)
    sizes = {"dot": (1, 1), "line": (1, 3000), "column": (3000, 1), "long": (1, 60_000), "high": (60_000, 1)}
    for name, size_px in sizes.items():
        yield put(folder, f"good/{name}.png", encode(picture(1, *size_px), "PNG"))
    # The extension chooses the files, not their readers.
    yield put(folder, "good/really-png.jpg", encode(picture(2), "PNG"))


def _cut(folder: Path, count: int) -> Iterator[Case]:
    for name, extension, content in whole_files():
        for size in np.linspace(1, len(content) - 1, count).astype(int).tolist():
            yield put(folder, f"cut/{name}-{size:06}{extension}", content[:size], EITHER)


def _flipped(folder: Path, count: int) -> Iterator[Case]:
    for name, extension, content in whole_files():
        for number in range(count):
            random = np.random.default_rng(number)
            spoilt = bytearray(content)
            for place in random.integers(len(content) if number % 2 else min(len(content), 64), size=1 + number % 4):
                spoilt[place] ^= 1 << int(random.integers(8))
            yield put(folder, f"flipped/{name}-{number:02}{extension}", bytes(spoilt), EITHER)


def _wrong_contents(folder: Path) -> Iterator[Case]:
    for key, content, reason in (
        ("empty.jpg", b"", "empty: the file has no bytes"),
        ("text.jpg", b"This is not a picture.\n", "not an image: begins with b'This is '"),
        ("page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", "not an image: begins with b'<!DOCTYP'"),
        ("svg.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image: begins with b'<svg xml'"),
        ("script.gif", b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image: begins with b'%!PS-Ado'"),
        ("pdf.jpg", b"%PDF-1.7\n", r"not an image: begins with b'%PDF-1.7'"),
        ("zeros.tif", bytes(5000), "not an image: begins with b'"),
        ("noise.webp", np.random.default_rng(0).bytes(5000), "not an image: begins with b'"),
        ("terminal.bmp", b"\x1b[2J\x1b]0;title\x07", r"not an image: begins with b'\x1b[2J\x1b]0;'"),
        ("zip.png", b"PK\x03\x04" + bytes(100), "not an image: begins with b'PK"),
    ):
        yield put(folder, f"contents/{key}", content, FAILED, reason)


def png(width: int, height: int, colour: int, rows: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Gives a PNG file of one colour, as many rows of which are there, in some kilobytes."""
    row_bytes = (width * {0: 1, 2: 24, 3: 1, 6: 32}[colour] + 7) // 8 + 1
    deflate = zlib.compressobj(9)
    data = b"".join(deflate.compress(bytes(row_bytes)) for _ in range(rows)) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, 1 if colour in (0, 3) else 8, colour, 0, 0, 0)
    return png_of((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b""))


def png_of(*parts: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


TIFF_TAGS = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "samples": 277}
TIFF_TAGS |= {"rows": 278, "planar": 284, "colours": 320, "extra": 338, "format": 339}


def tiff(parts: list[bytes], order: str = "<", **tags: int | tuple[int, ...]) -> bytes:
    """Gives a TIFF, grey and of 40 x 56 px unless its tags say otherwise, from its strips."""
    values: dict[str, int | tuple[int, ...]] = {"width": 56, "height": 40, "bits": 8, "compression": 1, "photometric": 1}
    entries = {TIFF_TAGS[name]: n if isinstance(n, tuple) else (n,) for name, n in {**values, "samples": 1, **tags}.items()}
    places, sizes = 273, 279
    entries[sizes], entries[places] = tuple(map(len, parts)), (0,) * len(parts)
    begin = 8 + 2 + 12 * len(entries) + 4 + sum(4 * len(numbers) for numbers in entries.values() if len(numbers) > 1)
    entries[places] = tuple(begin + sum(map(len, parts[:number])) for number in range(len(parts)))
    directory, behind = b"", b""
    for tag, numbers in sorted(entries.items()):
        field = packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(packed) > 4:
            field = struct.pack(order + "I", 8 + 2 + 12 * len(entries) + 4 + len(behind))
            behind += packed
        directory += struct.pack(order + "HHI", tag, 4, len(numbers)) + field
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries)) + directory + bytes(4)
    return (head + behind).ljust(begin, b"\0") + b"".join(parts)


def error_of(data: bytes) -> str:
    with pytest.raises(ImageError) as raised:
        decode_image(data)
    return str(raised.value)


def _bombs(folder: Path) -> Iterator[Case]:
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000), 9))
    jpeg = encode(picture(0), "JPEG")
    size_at = jpeg.index(b"\xff\xc0") + 5
    bitmap = struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**30, 1, 8, 1, 2, 0, 0, 256, 0) + bytes(1024) + b"\0\1"
    for key, content, reason in (
        ("square.png", png(50_000, 50_000, 2, 100), "too large: Image size (2500000000 pixels)"),
        ("wide.png", png(2**31 - 1, 1, 0, 0), "too large: Image size (2147483647 pixels)"),
        (
            "screen.gif",
            b"GIF89a" + struct.pack("<HHBBBB4HBB", 65535, 65535, 0, 0, 0, 44, 0, 0, 65535, 65535, 0, 2) + b"\0;",
            "too large: Image size (4294836225 pixels)",
        ),
        (
            "huge.jpg",
            jpeg[:size_at] + struct.pack(">HH", 65_500, 65_500) + jpeg[size_at + 4 :],
            "too large: Image size (4290250000 pixels)",
        ),
        ("huge.tif", tiff([bytes(8)], width=2**31 - 1, height=2**31 - 1, rows=2**31 - 1), "too large: "),
        ("huge.bmp", b"BM" + struct.pack("<IHHI", 1080, 0, 0, 1078) + bitmap, "too large: "),
        ("huge.ppm", b"P6 99999 99999 255\n", "too large: Image size (9999800001 pixels)"),
        ("huge.qoi", b"qoif" + struct.pack(">IIBB", 2**30, 2**30, 3, 0), "too large: "),
        ("huge.tga", bytes(2) + b"\2" + bytes(9) + struct.pack("<HHBB", 65535, 65535, 24, 0) + bytes(99), "too large: "),
        ("canvas.webp", b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2, ""),
        ("none.png", png(0, 5, 0, 0), "corrupt: "),
        ("none.gif", b"GIF89a" + bytes(7) + b";", ""),
        ("none.ppm", b"P6 0 5 255\n", ""),
    ):
        yield put(folder, f"bombs/{key}", content, FAILED, reason)
    yield put(folder, "bombs/text.png", png(8, 8, 0, 8, text))


def _exif(folder: Path) -> Iterator[Case]:
    for value in (0, 6, 9, 65535):
        yield put(folder, f"exif/orientation-{value}.jpg", encode(picture(3), "JPEG", exif=turned(value)))
    endless = b"MM\0*\0\0\0\x08" + struct.pack(">H", 5000)
    endless += b"".join(struct.pack(">HHII", 1000 + tag, 1, 60_000, 0) for tag in range(5000))
    for name, block in {
        "torn": b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01",
        "rubbish": b"Exif\0\0rubbish",
        "lost": b"Exif\0\0II*\0\xff\xff\xff\xff",
        "circle": b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8),
        "endless": b"Exif\0\0" + endless,
        "large": b"Exif\0\0" + bytes(65_000),
    }.items():
        for extension, file_format in ((".jpg", "JPEG"), (".png", "PNG"), (".webp", "WEBP")):
            yield put(folder, f"exif/{name}{extension}", encode(picture(4), file_format, exif=block))


def _links_and_special_files(folder: Path) -> Iterator[Case]:
    links = folder / "links"
    (links / "folder.jpg").mkdir(parents=True)
    yield Case("links/folder.jpg", NO_ROW)
    os.mkfifo(links / "pipe.jpg")
    yield Case("links/pipe.jpg", NO_ROW)
    for name, target, outcome, reason in (
        ("dangling.jpg", folder / "nowhere.jpg", FAILED, "missing: file not found"),
        ("circle.jpg", links / "circle.jpg", FAILED, "unreadable: too many levels of symbolic links"),
        ("up", folder, NO_ROW, ""),
        ("device.jpg", Path("/dev/zero"), NO_ROW, ""),
    ):
        (links / name).symlink_to(target)
        yield Case(f"links/{name}", outcome, reason)
    yield put(folder, "links/sparse.jpg", b"", FAILED, "too large: 1073741825 bytes, limit 1073741824 bytes")
    os.truncate(links / "sparse.jpg", 2**30 + 1)


def _odd_names(folder: Path) -> Iterator[Case]:
    content = encode(picture(5), "PNG")
    names = [" leading.png", "two  spaces.png", "it's.png", 'say "x".png', "new\nline.png", "tab\t.png", "\x1b[31mred.png"]
    names += ["back\\slash.png", "%s{0}$HOME`id`.png", "-rf.png", "*?[a].png", "a,b;c.png", "#no.png", "C:.png", "\u202egnp.png"]
    names += ["case.png", "Case.png", "CASE.PNG", "n" * 251 + ".png", "日本語.png", "\U0001f600.png"]
    names += [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    for name in names:
        yield put(folder, f"names/{name}", content)
    put(folder, os.fsdecode(b"names/\xff\xfe.png"), content)
    yield Case(r"names/\xff\xfe.png", OK)
    deep = "/".join(["deep"] + ["d" * 60] * 50)
    yield put(folder, f"{deep}/x.png", content)
