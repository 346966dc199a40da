"""The picture that the network saw, made again from the file; and when it cannot be."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images.reading import seen_picture
from pipeline.images.resize import ResizeSpec
from pipeline.records import ImageRecord, ImageStatus

from .conftest import MEAN_PIXEL, PHOTOGRAPHS


def record_of(path: Path) -> ImageRecord:
    return ImageRecord(0, path.name, str(path), "", 0)


def status_of(path: Path) -> ImageStatus:
    data = path.read_bytes()
    return ImageStatus(0, "", 0, 0, len(data), hashlib.sha256(data).hexdigest())


def test_a_resized_picture_is_the_one_pillow_makes_and_needs_no_tensorflow() -> None:
    path = PHOTOGRAPHS / "animals/chelsea.jpg"
    expected = np.asarray(Image.open(path).resize((48, 64), Image.Resampling.BICUBIC)).astype(int)
    seen = seen_picture(record_of(path), status_of(path), ResizeSpec((64, 48), "squash", "bicubic"), MEAN_PIXEL, is_reduced=False)
    assert (seen.dtype, seen.shape) == (np.uint8, (64, 48, 3))
    assert np.abs(seen - expected).max() <= 1
    program = "import sys, pipeline.images.reading; print('tensorflow' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "False\n"


def test_what_pads_is_the_mean_colour_and_native_size_is_the_file_itself() -> None:
    path = PHOTOGRAPHS / "sky/rocket.jpg"
    padded = seen_picture(record_of(path), status_of(path), ResizeSpec((64, 64), "pad", "bilinear"), MEAN_PIXEL, is_reduced=False)
    np.testing.assert_array_equal(padded[0, 0], np.rint(MEAN_PIXEL))
    assert np.ptp(padded[32]) > 50
    native = seen_picture(record_of(path), status_of(path), None, MEAN_PIXEL, is_reduced=False)
    np.testing.assert_array_equal(native, np.asarray(Image.open(path)))


def test_a_jpeg_that_was_reduced_while_decoding_is_reduced_again(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.open(PHOTOGRAPHS / "animals/chelsea.jpg").resize((900, 600)).save(path, quality=95)
    spec = ResizeSpec((60, 60), "squash", "bilinear")
    exact, reduced = (
        seen_picture(record_of(path), status_of(path), spec, MEAN_PIXEL, is_reduced) for is_reduced in (False, True)
    )
    assert exact.shape == reduced.shape
    assert 0 < np.abs(exact.astype(int) - reduced).max() < 60


def test_a_file_that_is_not_what_was_extracted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (5, 4), "red").save(path)
    status = status_of(path)

    def reason() -> str:
        with pytest.raises(ImageError) as raised:
            seen_picture(record_of(path), status, None, MEAN_PIXEL, is_reduced=False)
        return str(raised.value)

    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert reason() == "changed: the file is not the one that the features were made from"
    path.unlink()
    assert reason() == "missing: file not found"
    path.mkdir()
    assert reason() == "not a regular file: a folder"
    path.rmdir()
    os.mkfifo(path)
    assert reason() == "not a regular file: a pipe"
    path = Path("\0")
    assert reason().startswith("unreadable: ")
