"""Rows of a finished run to look at: which, and what of them. Reads the run through its reader, and the images once more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, StoreError
from .feature_maps import FeatureMap, fold, gather, has_extent
from .records import OK, ImageRecord, Manifest
from .report import words_for_bytes
from .store.layer import Layer
from .store.reader import Run

ROWS = 6
LAYERS = 4
ACTIVE_CHANNELS = 2
PICTURE_PX = 224
MAP_PX = 112
# A row that takes more memory is not worth reading for a picture the size of a stamp.
LARGEST_ROW_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image of the run and some of its feature maps.

    Attributes:
        row: In the run.
        key: Of the image.
        label: Likewise.
        size: (height, width) px.
        picture: (h, w, 3) uint8, small; None where the file is not what it was.
        note: Why there is no picture; ``""`` if there is one.
        maps: Layer -> its maps.
        notes: Layer -> why there are no maps.
    """

    row: int
    key: str
    label: str
    size: tuple[int, int]
    picture: NDArray[np.uint8] | None
    note: str
    maps: Mapping[str, tuple[FeatureMap, ...]]
    notes: Mapping[str, str]


def spread(count: int, wanted: int) -> list[int]:
    """Gives so many whole numbers below a count, from the first to the last, alike for the same arguments."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, wanted)).tolist()})


def take_samples(run: Run, manifest: Manifest) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Gives some rows of the images that did not fail, spread over the run, and the layers of which they have maps.

    Args:
        run: All of it.
        manifest: Its rows; where the images are.
    """
    good = np.flatnonzero(run.images["status"] == OK)
    layers = tuple(run.layers[place] for place in spread(len(run.layers), LAYERS))
    rows = [int(good[place]) for place in spread(len(good), ROWS)] if len(good) else []
    return tuple(_sample(run, manifest, row, layers) for row in rows), layers


def _sample(run: Run, manifest: Manifest, row: int, layers: Sequence[str]) -> Sample:
    size = int(run.images["height"][row]), int(run.images["width"][row])
    maps: dict[str, tuple[FeatureMap, ...]] = {}
    notes: dict[str, str] = {}
    for name in layers:
        size_bytes = _row_bytes(run[name], size)
        if size_bytes > LARGEST_ROW_BYTES:
            notes[name] = f"{words_for_bytes(size_bytes)} an image, too much to be read for this page"
            continue
        try:
            maps[name] = _maps(name, np.asarray(run[name][row], np.float32))
        except StoreError as error:
            notes[name] = str(error)
    picture, note = _picture(manifest[row], str(run.images["sha256"][row]))
    key, label = str(run.images["key"][row]), str(run.images["label"][row])
    return Sample(row, key, label, size, picture, note, maps, notes)


def _row_bytes(layer: Layer, size: tuple[int, int]) -> int:
    """Gives the bytes of a row as float32; at native size from the size of the image, which is enough to decide by."""
    sides = [side or math.ceil(px / layer.stride_px) for side, px in zip(layer.shape[1:3], size, strict=True)]
    return sides[0] * sides[1] * layer.channels * 4


def _maps(layer: str, values: NDArray[np.float32]) -> tuple[FeatureMap, ...]:
    """Return channel 0 and the most active ones of (h, w, c); of a layer without a map all channels."""
    height, width, channels = values.shape
    if not has_extent((height, width, channels)):
        return (fold(layer, values),)
    side = -(-max(height, width) // MAP_PX)
    maps = gather(layer, [(0, values)], (height, width, channels), range(channels), side, most_active=channels)
    others = [one for one in maps if one.channel]
    return tuple([one for one in maps if one.channel == 0] + others[:ACTIVE_CHANNELS])


def _picture(record: ImageRecord, sha256: str) -> tuple[NDArray[np.uint8] | None, str]:
    from .images.seen import thumbnail

    try:
        return thumbnail(record, sha256, PICTURE_PX), ""
    except ImageError as error:
        return None, f"no picture: {error}"
    except OSError as error:
        return None, f"no picture: {(error.strerror or type(error).__name__).lower()}"
