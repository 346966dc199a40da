"""Tells files and trainings apart by their content: the first bytes of a file, the first values of conv1_1. Reads no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAT5 = "a MATLAB 5 file"
HDF5 = "an HDF5 file"
MAT73 = "a MATLAB v7.3 file"
TORCH = "a PyTorch file"
KERAS_ARCHIVE = "a .keras archive"

NOT_KNOWN = "not known"

# Of a zip archive's end, where its table of contents is. Enough for the hundreds of members that an archive of weights has; a
# table of millions must not be read to say what a file is.
_ZIP_END_BYTES = 1 << 20
# Source: PKWARE APPNOTE 6.3, 4.3.12 and 4.3.16: an entry of the table, its name after 46 bytes; the end of the table.
_ZIP_ENTRY, _ZIP_ENTRY_BYTES, _ZIP_END = b"PK\x01\x02", 46, b"PK\x05\x06"

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Beginning of the file -> what it is. The HDF5 and MATLAB signatures are not at a fixed place and are looked for first.
_BEGINNINGS = (
    (b"\x93NUMPY", "a NumPy array"),
    # Source: torch/serialization.py, MAGIC_NUMBER of files before PyTorch 1.6, pickled with protocol 2.
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", TORCH),
    (b"\x80", "a Python pickle"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)


def file_format(path: Path) -> str:
    """Gives what a file is, by its content; its name is not looked at.

    Returns:
        :data:`MAT5`, :data:`HDF5`, or other words for a message.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        return "an empty file"
    is_hdf5 = any(start[at : at + 8] == _HDF5_SIGNATURE for at in (0, 512, 1024, 2048))
    if start.startswith(b"MATLAB 7.3") or (is_hdf5 and start[126:128] in (b"IM", b"MI")):
        return MAT73
    if is_hdf5:
        return HDF5
    # Source: MAT-File Format, version 5 header: bytes 124..127 are the version, 0x0100, and "MI" in the writer's byte order.
    if start[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
        return MAT5
    if start.startswith(b"PK"):
        return _zip_format(path)
    if b"VGG_ILSVRC" in start[:64]:
        return "a Caffe model"
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file itself"
    for beginning, words in _BEGINNINGS:
        if start.startswith(beginning):
            return words
    return f"a file of unknown format (first bytes {start[:8].hex(' ')})"


def _zip_format(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _ZIP_END_BYTES))
        end = file.read(_ZIP_END_BYTES)
    if _ZIP_END not in end:
        return "a damaged zip archive"
    names, place = [], 0
    while (place := end.find(_ZIP_ENTRY, place)) >= 0:
        first = place + _ZIP_ENTRY_BYTES
        names.append(end[first : first + int.from_bytes(end[place + 28 : place + 30], "little")].decode("utf-8", "replace"))
        place = first
    if any(name.endswith("data.pkl") for name in names):
        return TORCH
    if "model.weights.h5" in names:
        return KERAS_ARCHIVE
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive"
    return "a zip archive"


# Kernel of conv1_1 to output channel 0, [row, column] of one input colour.
# Source: print of the old imagenet-vgg-verydeep-19.mat, equal to Keras' VGG19 file to 2.8e-7.
_VGG19_BLUE = (
    (0.34119523, 0.33999205, -0.04484424),
    (0.23215917, 0.08978214, -0.30331427),
    (-0.07260912, -0.246675, -0.33683276),
)
# Source: print of Keras' VGG16 file, devincody/CS179final_project, src/h5_utils.cpp.
_VGG16_BLUE = (
    (0.42947057, 0.373467, -0.061360113),
    (0.27476987, 0.038680777, -0.36722335),
    (-0.05746817, -0.26224968, -0.35009676),
)
# Source: print of torchvision's vgg19-dcbb9e9d.pth, first filter.
_TORCHVISION_VGG19_RED = (
    (-0.05347426, -0.04925704, -0.06794177),
    (0.01531445, 0.04506842, 0.0021444),
    (0.03622622, 0.01999945, 0.01986402),
)
# Words, the plane, and where it stands (R, G, B = 0, 1, 2) if the kernel takes RGB.
_FINGERPRINTS = (
    ("VGG-19 of Simonyan & Zisserman (Caffe)", _VGG19_BLUE, 2),
    ("VGG-16 of Simonyan & Zisserman (Caffe)", _VGG16_BLUE, 2),
    ("torchvision's VGG-19, another training (RGB in 0..1, other mean)", _TORCHVISION_VGG19_RED, 0),
)
# Copies in half precision still agree; other trainings differ by 0.1 and more, swapped axes by 0.1 (VGG) or 0.05 (torchvision).
_TOLERANCE = 1e-3


def recognise_training(kernel: NDArray[Any]) -> str:
    """Gives which training conv1_1 comes from, and in which order its axes and colours are.

    Args:
        kernel: (3, 3, 3, channels) kernel of conv1_1, as it would be used: [row, column, R G B, channel].

    Returns:
        ``"VGG-19 of Simonyan & Zisserman (Caffe), RGB, HWIO"``; with ``BGR`` or ``WHIO`` where the kernel is not in the order in
        which it would be used; :data:`NOT_KNOWN` for any other training.
    """
    if kernel.shape[:3] != (3, 3, 3):
        return NOT_KNOWN
    for words, values, position in _FINGERPRINTS:
        plane = np.array(values)
        for colours, index in (("RGB", position), ("BGR", 2 - position)):
            for order, candidate in (("HWIO", kernel[:, :, index, 0]), ("WHIO", kernel[:, :, index, 0].T)):
                if np.allclose(candidate, plane, rtol=0, atol=_TOLERANCE):
                    return f"{words}, {colours}, {order}"
    return NOT_KNOWN
