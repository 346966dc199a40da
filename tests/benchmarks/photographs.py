"""Folders of photographs to measure with, cut from those in ``tests/photographs``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .sides import REPOSITORY

# The mean size of ImageNet's photographs is about 500 x 375 px.
SMALL_PX = (500, 375)
# What a 12-megapixel camera gives.
LARGE_PX = (4000, 3000)
WIDE_PX = (2560, 1440)

QUALITY = 90

# Grey levels, standard deviation. What is enlarged many times has nothing fine in it, as a sensor's picture always has, and
# would decode several times as fast as one.
SENSOR_NOISE = 4.0


def make_photographs(folder: Path, count: int, size_px: tuple[int, int] = SMALL_PX) -> Path:
    """Makes JPEGs of one size, each another cut of a photograph, every second one mirrored.

    Args:
        folder: Made here where it is not there yet; nothing is done where it is.
        count: How many.
        size_px: (width, height).

    Returns:
        The folder.
    """
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    sources = sorted(path for path in (REPOSITORY / "tests/photographs").glob("*/*.jpg"))
    originals = [Image.open(path).convert("RGB") for path in sources]
    random = np.random.default_rng(0)
    for number in range(count):
        original = originals[number % len(originals)]
        scale = random.uniform(1, 1.3) * max(size_px[0] / original.width, size_px[1] / original.height)
        sides = [max(wanted, int(side * scale)) for wanted, side in zip(size_px, original.size, strict=True)]
        left, top = (int(random.integers(0, side - wanted + 1)) for wanted, side in zip(size_px, sides, strict=True))
        # Only the part that is kept is enlarged.
        factors = [given / side for given, side in zip(original.size, sides, strict=True)]
        box = (left * factors[0], top * factors[1], (left + size_px[0]) * factors[0], (top + size_px[1]) * factors[1])
        picture = original.resize(size_px, Image.Resampling.BICUBIC, box)
        if number % 2:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if size_px != SMALL_PX:
            if number == 0:
                noise = random.normal(0, SENSOR_NOISE, (size_px[1], size_px[0], 3)).astype(np.int16)
            noisy = np.asarray(picture) + np.roll(noise, 97 * number)
            picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{number:06d}.jpg", quality=QUALITY)
    return folder


def make_differing(folder: Path, count: int) -> Path:
    """Makes JPEGs no two of which have the same size, cut from those of :func:`make_photographs`: sides of 250 to 500 px."""
    if folder.is_dir():
        return folder
    whole = make_photographs(folder.with_name(f"{folder.name} whole"), count)
    folder.mkdir()
    for number, path in enumerate(sorted(whole.glob("*.jpg"))):
        with Image.open(path) as picture:
            # Steps that share no factor with the ranges: sizes repeat after 125 x 249 of them.
            size = 250 + number * 7 % 250, 250 + number * 11 % 125
            picture.crop((0, 0, *size)).save(folder / path.name, quality=QUALITY)
    return folder
