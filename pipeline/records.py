"""The nouns: frozen records that the stages hand to one another. NumPy only; every stage may import this, it imports no stage.

``Manifest -> Batch -> FeatureBatch -> shard``: a row keeps its ``index`` (row in the run) from one end to the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .image_records import ImageRecord as ImageRecord
from .image_records import ImageSource as ImageSource
from .image_records import Manifest as Manifest
from .image_records import digest_images as digest_images
from .sharding import Part as Part
from .sharding import ShardSpec as ShardSpec
from .sharding import Share as Share
from .sharding import plan_shards as plan_shards

OK = "ok"
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """What became of one image: the row of the status table. Every manifest row gets exactly one.

    Attributes:
        index: Row in the run.
        error: Why it failed, one line; ``""`` for an image that is ``ok``.
        height_px: Height after EXIF orientation, before resizing; 0 where the image could not be decoded.
        width_px: Width, likewise.
        file_bytes: Size of the file as read.
        sha256: Of the file as read, hex; ``""`` where it could not be read.
    """

    index: int
    error: str
    height_px: int
    width_px: int
    file_bytes: int
    sha256: str

    @property
    def word(self) -> str:
        """``"ok"`` or ``"failed"``, as stored in ``/images/status``."""
        return FAILED if self.error else OK


@dataclass(frozen=True, slots=True)
class Batch:
    """B decoded images, and one status for each.

    Attributes:
        statuses: (B) one a row, in the order of the manifest.
        images: (B, h, w, 3) uint8 RGB, a canvas: image i fills the top left corner of row i. Or, where the loader resizes,
            (B, H, W, 3) float32 of one size, mean removed. Zero for a failed row.
        sizes_px: (B, 2) int32, (height, width) of what row i of the canvas holds; of an image that the loader has resized, or
            whose JPEG was reduced while decoding, smaller than the status says.
    """

    statuses: tuple[ImageStatus, ...]
    images: NDArray[Any]
    sizes_px: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.statuses)

    @property
    def indices(self) -> NDArray[np.int64]:
        """(B,) rows of the run."""
        return np.array([status.index for status in self.statuses], np.int64)

    @property
    def good(self) -> NDArray[np.int64]:
        """(n,) int64, which rows of the batch have not failed."""
        return np.flatnonzero([not status.error for status in self.statuses])

    def image(self, row: int) -> NDArray[Any]:
        """Give the pixels of one row, (h', w', 3), without what lies beside them in the canvas."""
        height, width = self.sizes_px[row]
        return self.images[row, :height, :width]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of a network, as its table gives it.

    Attributes:
        name: ``conv1_1``, ``relu1_1``, ``pool1``, ``fc6``, ``prob`` ...
        kind: ``conv``, ``relu``, ``pool``, ``fc`` (a convolution without padding) or ``softmax``.
        network_index: Position in the network, from 0; the index in the MatConvNet file.
        block: 1 to 5 for the convolutional part, 6 for the classifier.
        kernel_shape: (height, width, channels in, channels out) for ``conv`` and ``fc``, else None.
        channels: Channels of the output.
        stride_px: Distance in input pixels between neighbouring positions of the output.
    """

    name: str
    kind: str
    network_index: int
    block: int
    kernel_shape: tuple[int, int, int, int] | None
    channels: int
    stride_px: int


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """A layer whose activations are stored, and the shape of a row of it.

    Attributes:
        layer: The layer.
        shape: (h, w, c) of one image's activations; None at native size, where images differ.
    """

    layer: LayerSpec
    shape: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Activations of one layer for n images. Images that failed are not among them.

    Attributes:
        layer: Name of the layer.
        indices: (n,) int64, ascending: which rows of the run these are.
        values: (n, h, w, c) float32.
    """

    layer: str
    indices: NDArray[np.int64]
    values: NDArray[np.float32]


def digest_identity(identity: Mapping[str, str]) -> str:
    """Gives the run digest: SHA-256, hex, of the identity."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All that the store must know of a run, or of its parts up to one of them, before its first row.

    Attributes:
        manifest: The rows, those of all parts.
        features: What is stored for each, in network order.
        dtype: ``float32`` or ``float16``.
        compression: ``gzip`` or ``none``. Cannot change a number, so it is not part of the identity.
        images_per_shard: Rows a shard; the last of a part may have fewer.
        options: All but the images that can change a number, option -> value as text.
        attributes: Further root attributes of every file: text, or float64 arrays.
        chosen: Which of the options the program has chosen itself: a run that is there already keeps its own.
        before: The parts that the last one extends; none for a run that was never extended.
    """

    manifest: Manifest
    features: tuple[FeatureSpec, ...]
    dtype: str
    compression: str
    images_per_shard: int
    options: Mapping[str, str]
    attributes: Mapping[str, str | NDArray[np.float64]] = field(default_factory=dict)
    chosen: frozenset[str] = frozenset()
    before: tuple[Part, ...] = ()

    @property
    def first_row(self) -> int:
        """Index of the last part's first row."""
        return self.before[-1].stop if self.before else 0

    @property
    def identity(self) -> dict[str, str]:
        """All that can change a number: the options, the images of the last part, and the run that it extends."""
        identity = {**self.options, "images": f"{len(self.manifest) - self.first_row} rows, digest {self.manifest.digest}"}
        if self.before:
            identity["extends"] = f"{self.first_row} rows, digest {self.before[-1].digest}"
        return identity

    @property
    def digest(self) -> str:
        """Digest of the identity, and so of all parts: two runs with the same digest have the same features."""
        return digest_identity(self.identity)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, in order."""
        return (*self.before, Part(self.digest, len(self.manifest)))

    def shards(self) -> tuple[ShardSpec, ...]:
        """Gives the shard plan of all parts, a function of their numbers of rows and ``images_per_shard`` alone."""
        return plan_shards([*(part.stop for part in self.before), len(self.manifest)], self.images_per_shard)


class Sink(Protocol):
    """Where the loop's results go. The store's writer is one."""

    def put_statuses(self, statuses: Sequence[ImageStatus]) -> None:
        """Takes what became of some images. Features of an image may come before or after its status."""

    def put_features(self, features: FeatureBatch) -> None:
        """Takes activations; may return before they are stored, and blocks while too much is waiting."""

    def close(self) -> None:
        """Finishes all; raises what went wrong in the background."""

    def abort(self) -> None:
        """Drops what is unfinished, leaving no partial file behind."""
