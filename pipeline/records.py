"""The records that the stages hand to one another, frozen. NumPy only; every stage may import this, it imports no stage.

``Manifest -> Batch -> FeatureBatch -> shard``: a row keeps its ``index`` (row in the run) from one end to the other. A run
(:class:`RunSpec`) is cut into shards, see :mod:`~pipeline.sharding`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .sharding import Part, ShardSpec, plan_shards

OK = "ok"
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One row of the manifest: an image that somebody wants features of, whether or not it can be read."""

    index: int  # row in the run, from 0
    key: str  # path relative to the data folder, `/` on every system; unique in a run
    path: str  # where the file is, for this machine
    label: str  # first folder of the key, or the list's `label` column; "" if none
    file_bytes: int  # when it was listed; 0 where it could not be found
    source: ImageSource | None = None  # what reads it, if it is no local file; then the path is for people, or for this source
    place: int = -1  # which of the source's images it is; -1 where the source has it no longer, or goes by the path


class ImageSource(Protocol):
    """Where images are that are no local files: tar files, a data set, an object store.

    One for all rows: safe in threads and after a fork, and picklable: it opens what it needs when it is first asked. Both methods
    raise OSError for an image that is missing or cannot be read, as of a file.
    """

    @property
    def kind(self) -> str:
        """One word, stored with the run."""

    def read(self, record: ImageRecord) -> bytes:
        """Return the bytes of an image; raise ``ImageError``: ``unreadable``, ``too large`` or ``not a regular file``."""

    def modified_seconds(self, record: ImageRecord) -> float:
        """Return when it was last written, in seconds since 1970; later than now where that is unknown."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The images of a run, in order: row i of everything that is written is image i of this. Millions of rows: by column."""

    root: str  # folder that keys are relative to
    keys: Sequence[str]  # (N) unique names, in the order of the run
    labels: Sequence[str]  # (N), "" where there is none
    file_bytes: NDArray[np.int64]  # (N,) when they were listed
    paths: Mapping[int, str]  # where a file is, by index, for those that do not lie at root/key
    metadata: Mapping[str, Sequence[str]]  # further columns of the list, each (N)
    skipped: Mapping[str, int]  # files passed over while listing: reason -> how many; for the report alone
    digest: str  # by digest_images; of an extended run, of the rows that its last part has added
    source: ImageSource | None = None  # what reads the images, if they are no local files
    places: NDArray[np.int64] | None = None  # (N,) as of ImageRecord; None where the source goes by paths

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> ImageRecord:
        key, path = self.keys[index], self.paths.get(index)
        if path is None:
            path = os.path.join(self.root, key) if self.source is None else f"{self.root}/{key}"  # noqa: PTH118 (a millionfold)
        place = -1 if self.places is None else int(self.places[index])
        return ImageRecord(index, key, path, self.labels[index], int(self.file_bytes[index]), self.source, place)

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(self.__getitem__, range(len(self)))


def digest_images(
    keys: Sequence[str], labels: Sequence[str], file_bytes: NDArray[np.int64], metadata: Mapping[str, Sequence[str]]
) -> str:
    """Return the SHA-256, hex, of keys, labels, sizes and metadata."""
    digest = hashlib.sha256()
    for name, column in (("key", keys), ("label", labels), *sorted(metadata.items())):
        # The number of texts and their lengths go before them: no two manifests can run together into the same stream.
        encoded = [text.encode("utf-8", "surrogateescape") for text in (name, *column)]
        digest.update(np.fromiter((len(encoded), *map(len, encoded)), "<i8", len(encoded) + 1).tobytes())
        digest.update(b"".join(encoded))
        if name == "key":
            digest.update(file_bytes.astype("<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """What became of one image: the row of the status table. Every manifest row gets exactly one."""

    index: int  # row in the run
    error: str  # why it failed, one line; "" for an image that is ok
    height_px: int  # after EXIF orientation, before resizing; 0 where the image could not be decoded
    width_px: int
    file_bytes: int  # of the file as read
    sha256: str  # of the file as read, hex; "" where it could not be read

    @property
    def word(self) -> str:
        """``"ok"`` or ``"failed"``, as stored in ``/images/status``."""
        return FAILED if self.error else OK


@dataclass(frozen=True, slots=True)
class Batch:
    """B decoded images, and one status for each."""

    statuses: tuple[ImageStatus, ...]  # (B) in the order of the manifest
    # (B, h, w, 3) uint8 RGB, a canvas: image i fills the top left corner of row i. Or, where the loader resizes, (B, H, W, 3)
    # float32 of one size, mean removed. Zero for a failed row.
    images: NDArray[Any]
    # (B, 2) height and width of what row i of the canvas holds; of an image that the loader has resized, or whose JPEG was
    # reduced while decoding, smaller than the status says.
    sizes_px: NDArray[np.int32]
    full_rows: int = 1  # of a batch that is not the last one; of no meaning at native size

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


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of a network, as its table gives it."""

    name: str  # conv1_1, relu1_1, pool1, fc6, prob ...
    kind: str  # conv, relu, pool, fc (a convolution without padding) or softmax
    network_index: int  # position in the network, from 0; the index in the MatConvNet file
    block: int  # 1 to 5 for the convolutional part, 6 for the classifier
    kernel_shape: tuple[int, int, int, int] | None  # (height, width, channels in, channels out) of conv and fc
    channels: int  # of the output
    stride_px: int  # input pixels between neighbouring positions of the output


@dataclass(frozen=True, slots=True)
class Reduction:
    """One step that makes a vector of an image's activations, or another vector of a vector; see :mod:`.network.reductions`."""

    name: str
    parameters: Mapping[str, int | float | str | bool] = field(default_factory=dict)  # all that its result depends on


@dataclass(frozen=True, slots=True)
class Transform:
    """A fitted transform of the reduction ``pca``: the principal components of a sample of vectors."""

    mean: NDArray[np.float32]  # (d,) of the sample
    components: NDArray[np.float32]  # (n, d) orthonormal, by falling variance
    explained_variance: NDArray[np.float64]  # (n,) variance of the sample along each


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What is stored of a layer: its activations, or what reductions make of them."""

    layer: LayerSpec
    shape: tuple[int, ...] | None  # (h, w, c) of one image, None at native size, where images differ; (d,) of a vector
    reductions: tuple[Reduction, ...] = ()  # applied one after the other; none: the activations as they are

    @property
    def name(self) -> str:
        """Of the dataset: ``relu5_1``, ``relu5_1.avg.l2``."""
        return ".".join([self.layer.name, *(reduction.name for reduction in self.reductions)])

    @property
    def channels(self) -> int:
        """Length of the last axis."""
        return self.shape[-1] if self.shape else self.layer.channels

    def with_components(self, counts: Mapping[str, int], has_auto_density: bool) -> FeatureSpec:
        """Return the feature with other numbers of components, reduction -> number, and densities of ``auto`` that follow."""
        steps, length = [], 0
        for step in self.reductions:
            parameters = dict(step.parameters)
            if has_auto_density and "density" in parameters and length:
                parameters["density"] = 1 / math.sqrt(length)
            if "n_components" in parameters:
                parameters["n_components"] = length = counts.get(step.name, int(parameters["n_components"]))
            steps.append(replace(step, parameters=parameters))
        return replace(self, reductions=tuple(steps), shape=(length,) if length else self.shape)


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Activations of one layer for n images, or vectors made of them. Images that failed are not among them."""

    layer: str  # FeatureSpec.name
    indices: NDArray[np.int64]  # (n,) ascending: which rows of the run these are
    values: NDArray[np.float32]  # (n, h, w, c) or (n, d)


def part_identity(options: Mapping[str, str], rows: int, digest: str, before: Sequence[Part]) -> dict[str, str]:
    """Return the identity of a run that ends with a part of so many rows; ``digest``: of its images."""
    identity = {**options, "images": f"{rows} rows, digest {digest}"}
    return {**identity, "extends": str(before[-1])} if before else identity


def digest_identity(identity: Mapping[str, str]) -> str:
    """Return the run digest: SHA-256, hex, of the identity."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All that the store must know of a run, or of its parts up to one of them, before its first row."""

    manifest: Manifest  # the rows of all parts
    features: tuple[FeatureSpec, ...]  # layers in network order
    dtype: str  # float32 or float16
    compression: str  # gzip or none; it cannot change a number, so it is not part of the identity
    images_per_shard: int  # the last shard of a part may have fewer
    options: Mapping[str, str]  # all but the images that can change a number
    attributes: Mapping[str, str | NDArray[np.float64]] = field(default_factory=dict)  # further root attributes of every file
    chosen: frozenset[str] = frozenset()  # which of the options the program has chosen itself: an existing run keeps its own
    before: tuple[Part, ...] = ()  # the parts that the last one extends
    transforms: Mapping[str, Transform] = field(default_factory=dict)  # name of the feature up to a fitted reduction -> transform

    @property
    def first_row(self) -> int:
        """Index of the last part's first row."""
        return self.before[-1].stop if self.before else 0

    @property
    def identity(self) -> dict[str, str]:
        """All that can change a number: the options, the images of the last part, and the run that it extends."""
        return part_identity(self.options, len(self.manifest) - self.first_row, self.manifest.digest, self.before)

    @property
    def digest(self) -> str:
        """Digest of the identity, and so of all parts: two runs with the same digest have the same features."""
        return digest_identity(self.identity)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, in order."""
        return (*self.before, Part(self.digest, len(self.manifest)))

    def shards(self) -> tuple[ShardSpec, ...]:
        """Return the shards of all parts, a function of their numbers of rows and ``images_per_shard`` alone."""
        return plan_shards((*(part.stop for part in self.before), len(self.manifest)), self.images_per_shard)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, as TensorFlow and its driver describe it."""

    model: str  # NVIDIA's name
    number: int  # among those that this process may see
    count: int  # of them
    free_bytes: int  # when this process came to it
    total_bytes: int  # 0 where the driver does not tell
    cuda: str  # version that TensorFlow was built for
    cudnn: str  # likewise


@dataclass(frozen=True, slots=True)
class Device:
    """A device and its way of working."""

    name: str  # TensorFlow's, /CPU:0 or /GPU:0
    kind: str  # cpu or gpu
    batch_size: int  # images read, resized and computed together, at most; at native size such as have one height and width
    # Batches on the device at a time: while one is uploaded, another is computed and a third is fetched. Each then holds the
    # features of all its layers. With 1, a layer is handed over before the next one is computed.
    in_flight: int = 1
    gpu: Gpu | None = None

    def step_rows(self, rows: int) -> int:
        """Return the images of a batch where so many are to be computed in all."""
        # On a GPU every step is filled up to one size: of 167 rows 84 and 83 are computed, not 128 and 39 filled up to 128.
        return -(-rows // -(-rows // self.batch_size)) if self.gpu and rows else self.batch_size

    def attributes(self, precision: str) -> dict[str, str]:
        """Return what a file says of the device that it was made on."""
        found = {"device": self.kind, "precision": precision}
        if gpu := self.gpu:
            found |= {"gpu": gpu.model, "gpu_memory_bytes": str(gpu.total_bytes), "cuda": gpu.cuda, "cudnn": gpu.cudnn}
            found["batch_size"] = str(self.batch_size)
        return found
