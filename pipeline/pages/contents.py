"""What the page of a run says, as nouns. The door's rooms fill them; the rooms of this wing turn them into a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..statistics import LayerStatistics


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the run: its name, its seconds of wall time, what it is, and what makes it shorter."""

    name: str
    seconds: float
    meaning: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Cause:
    """Images that failed alike.

    Attributes:
        word: What their errors have in common.
        count: How many.
        examples: (key, error) of the first of them.
    """

    word: str
    count: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """A layer: its name, the shape of a row (None: native size), and its statistics."""

    name: str
    shape: tuple[int, int, int] | None
    channels: int
    statistics: LayerStatistics


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMap:
    """One channel of one image, or all channels of a layer that has no map.

    Attributes:
        channel: Number; None: all channels, one a pixel.
        values: (h, w) floats; NaN where there is none.
        low: Smallest value of the layer's map, before it was made smaller.
        high: Largest.
    """

    channel: int | None
    values: NDArray[np.floating]
    low: float
    high: float


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


@dataclass(frozen=True, slots=True)
class Contents:
    """All that the page says.

    Attributes:
        name: Of the run.
        network: Its name.
        command: That makes the run.
        warning: What a reader must know first; ``""`` if nothing.
        changed: Options that differ from their defaults, name -> (value, default) as text.
        unchanged: The others, name -> value.
        facts: What else was run, name -> text.
        versions: Of libraries.
        rows: Of the run.
        failed: Of these.
        causes: Of failures, most frequent first.
        skipped: Files passed over while listing: reason -> how many.
        figures: What to see first, name -> text.
        stages: In order.
        bottleneck: Name of the stage that limited the run; ``""`` where nothing was made.
        threads_seconds: Seconds of background threads by work.
        layers: Those of the run, in network order.
        samples: Rows spread over the run.
        sampled_layers: Layers that the samples show.
    """

    name: str
    network: str
    command: str
    warning: str
    changed: Mapping[str, tuple[str, str]]
    unchanged: Mapping[str, str]
    facts: Mapping[str, str]
    versions: Mapping[str, str]
    rows: int
    failed: int
    causes: tuple[Cause, ...]
    skipped: Mapping[str, int]
    figures: Mapping[str, str]
    stages: tuple[Stage, ...]
    bottleneck: str
    threads_seconds: Mapping[str, float]
    layers: tuple[LayerFacts, ...]
    samples: tuple[Sample, ...]
    sampled_layers: tuple[str, ...]
