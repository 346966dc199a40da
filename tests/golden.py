"""Rows and statuses of some option sets over small images, as an earlier version of the program gave them.

``python -m tests.golden write`` makes ``tests/golden.json`` with the program as it is; ``tests/test_golden.py`` holds today's
program against the stored file. The images are drawn from seeds or are photographs of the tests, so the file holds numbers alone:
of each layer and row the CRC-32 of the stored values, their sum, their norm and eight of them, evenly spread.

CRC-32 agree on processors with the same vector instructions only, and only for :data:`UNCHANGED`; the other numbers agree within
a tolerance everywhere.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FILE = Path(__file__).with_suffix(".json")
PHOTOGRAPHS = Path(__file__).parent / "photographs"
PROBES = 8

# Name -> options of ``pipeline.extract_features``. All with seeded weights.
SETS: dict[str, dict[str, Any]] = {
    "default size": {"layers": "relu4_1", "size": 64},
    "crop": {"layers": ["relu2_2", "pool3"], "size": [48, 80], "resize": "crop"},
    "pad, bicubic": {"layers": "relu3_1", "size": 56, "resize": "pad", "interpolation": "bicubic"},
    "squash, lanczos": {"layers": "conv3_1", "size": 72, "interpolation": "lanczos"},
    "crop, nearest": {"layers": "conv2_1", "size": 40, "resize": "crop", "interpolation": "nearest"},
    "native size": {"layers": ["relu1_1", "pool2", "relu4_2"], "size": None},
    "native size, valid": {"layers": "pool4", "size": None, "pool_padding": "valid", "network": "vgg16"},
    "float16": {"layers": "relu2_1", "size": 64, "dtype": "float16"},
    "uncompressed, batches of three": {"layers": ["relu1_2", "relu3_3"], "size": 32, "compression": "none", "batch_size": 3},
    "vgg16, average pooling": {"layers": ["relu3_3", "pool5"], "size": 64, "network": "vgg16", "pooling": "avg"},
    "swapped kernels": {"layers": "relu3_2", "size": 48, "kernel_order": "whio", "seed": 7},
    "classifier": {"layers": ["fc6", "prob"], "size": 224, "images": ["a/plain.png", "b/photograph.jpg"]},
    "TensorFlow's convolutions": {"layers": "relu3_1", "size": 64, "backend": "tensorflow"},
    "reduced JPEGs": {"layers": "relu2_1", "size": 40, "decode": "fast"},
}

# Those with the same bits as before: nothing is resized, or pixels are picked. In the others weights were rounded otherwise.
UNCHANGED = ("crop, nearest", "native size", "native size, valid")

# Images whose rows differ by more than rounding -> by how much of the row's norm, and why. Statuses may not change at all.
CHANGED: dict[str, tuple[float, str]] = {
    "a/large.png": (0.05, "sides above 1024 px: resized by Pillow, which rounds to whole grey levels after each pass"),
}

# Minutes, or covered by another one's options.
SLOW = (
    *("classifier", "vgg16, average pooling", "swapped kernels", "uncompressed, batches of three", "reduced JPEGs"),
    *("default size", "crop", "pad, bicubic", "squash, lanczos", "native size, valid", "float16"),
)


def make_images(folder: Path) -> None:
    """Write some images of several kinds, good and bad ones, into a folder."""

    def noise(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
        # Blocks of 8 px: hard edges, and a compressed size like that of photographs.
        small = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), channels), np.uint8)
        return small.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]

    def encoded(pixels: Any, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(file, kind, **options)
        return file.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(noise(4, 90, 70), "PNG")
    files = {
        "a/plain.png": encoded(noise(1, 64, 64), "PNG"),
        "a/wide.png": encoded(noise(2, 60, 131), "PNG"),
        "a/tall.jpg": encoded(noise(3, 150, 61), "JPEG", quality=90),
        "a/turned.jpg": encoded(noise(5, 66, 99), "JPEG", exif=exif),
        "a/large.png": encoded(noise(6, 1100, 40), "PNG"),
        "b/grey.png": encoded(noise(7, 77, 65)[..., 0], "PNG"),
        "b/clear.png": encoded(noise(8, 65, 77, 4), "PNG"),
        "b/four.jpg": encoded(Image.fromarray(noise(9, 80, 80, 4), "CMYK"), "JPEG"),
        "b/progressive.jpg": encoded(noise(10, 91, 87), "JPEG", progressive=True),
        "b/cut.png": whole[: len(whole) // 2],
        "b/empty.jpg": b"",
        "b/page.jpg": b"<html>none</html>",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with Image.open(PHOTOGRAPHS / "people" / "astronaut.jpg") as image:
        # Cropped and stored without loss: a photograph's content, of a size that is quick at native size.
        image.crop((100, 20, 260, 150)).save(folder / "b" / "photograph.jpg", quality=95)


def extract(name: str, images: Path, output: Path) -> dict[str, Any]:
    """Run an option set; give statuses and the numbers of each row."""
    from pipeline import extract_features

    options = dict(SETS[name])
    listed = options.pop("images", None)
    if listed:
        chosen = output / "images"
        for key in listed:
            (chosen / key).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(images / key, chosen / key)
        images = chosen
    run = extract_features(images, weights="random", output_dir=output, name="run", quiet=True, **options)
    statuses = {
        str(key): [str(status), str(error), int(height), int(width), str(sha256)]
        for key, status, error, height, width, sha256 in zip(
            *(run.images[column] for column in ("key", "status", "error", "height", "width", "sha256")), strict=True
        )
    }
    rows: dict[str, dict[str, list[Any]]] = {}
    for layer in run.layers:
        rows[layer] = {}
        for row, key in enumerate(run.images["key"]):
            if run.images["status"][row] == "ok":
                rows[layer][str(key)] = numbers_of(np.asarray(run[layer][row]))
    return {"statuses": statuses, "rows": rows}


def numbers_of(values: np.ndarray[Any, Any]) -> list[Any]:
    """Give the numbers of a row: shape, CRC-32, sum, norm, probes."""
    import zlib

    flat = values.ravel().astype(np.float64)
    probes = flat[np.linspace(0, flat.size - 1, PROBES).astype(int)]
    return [
        list(values.shape),
        zlib.crc32(np.ascontiguousarray(values).tobytes()),
        float(flat.sum()),
        float(np.linalg.norm(flat)),
        [float(probe) for probe in probes],
    ]


def vector_instructions() -> str:
    """Give what the processor's vector code depends on."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        return "unknown"
    return " ".join(flag for flag in ("avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq") if flag in flags)


def write() -> None:
    """Make the file."""
    found: dict[str, Any] = {"vector instructions": vector_instructions(), "sets": {}}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        make_images(images)
        for number, name in enumerate(SETS):
            found["sets"][name] = extract(name, images, Path(folder, str(number)))
            print(name, flush=True)
    FILE.write_text(json.dumps(found, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["write"]:
        sys.exit("usage: python -m tests.golden write")
    write()
