"""The picture that the network saw, made again from the file; and when it cannot be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.plot import input_picture

from .conftest import MEAN_PIXEL, PHOTOGRAPHS
from .processes import run_python


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_of(path: Path, size: str = "native", resize: str = "squash", interpolation: str = "bilinear", **options: str) -> Any:
    """What a run of one image says of it."""
    options = {"decode": "exact", **options, "size": size, "resize": resize, "interpolation": interpolation}
    identity = json.dumps({f"data.{name}": value for name, value in options.items()})
    return SimpleNamespace(
        attributes={"identity": identity, "mean_pixel": MEAN_PIXEL, "data_root": str(path.parent)},
        images={
            name: np.array([value], object) for name, value in {"key": path.name, "bytes": 0, "sha256": sha256_of(path)}.items()
        },
    )


def test_a_resized_picture_is_the_one_pillow_makes_and_needs_no_tensorflow() -> None:
    path = PHOTOGRAPHS / "animals/chelsea.jpg"
    expected = np.asarray(Image.open(path).resize((48, 64), Image.Resampling.BICUBIC)).astype(int)
    seen = input_picture(run_of(path, "64x48", interpolation="bicubic"), 0)
    assert (seen.dtype, seen.shape) == (np.uint8, (64, 48, 3))
    assert np.abs(seen - expected).max() <= 1
    program = "import sys, pipeline.images.reading, pipeline.images.resize; print('tensorflow' in sys.modules)"
    assert run_python(program).stdout == "False\n"


def test_what_pads_is_the_mean_colour_and_native_size_is_the_file_itself() -> None:
    path = PHOTOGRAPHS / "sky/rocket.jpg"
    padded = input_picture(run_of(path, "64x64", "pad"), 0)
    np.testing.assert_array_equal(padded[0, 0], np.rint(MEAN_PIXEL))
    assert np.ptp(padded[32]) > 50
    np.testing.assert_array_equal(input_picture(run_of(path), 0), np.asarray(Image.open(path)))


def test_a_jpeg_that_was_reduced_while_decoding_is_reduced_again(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.open(PHOTOGRAPHS / "animals/chelsea.jpg").resize((900, 600)).save(path, quality=95)
    exact, reduced = (input_picture(run_of(path, "60x60", decode=decode), 0) for decode in ("exact", "fast"))
    assert exact.shape == reduced.shape
    assert 0 < np.abs(exact.astype(int) - reduced).max() < 60


def test_a_file_that_is_not_what_was_extracted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (5, 4), "red").save(path)
    run = run_of(path)

    def reason() -> str:
        with pytest.raises(ImageError) as raised:
            input_picture(run, 0)
        return str(raised.value)

    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert reason() == "changed: the file is not the one that the features were made from"
    path.unlink()
    assert reason() == "missing: file not found"
