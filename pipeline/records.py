"""The records that the stages hand to one another, frozen. NumPy only; every stage may import this, it imports no stage.

``Manifest -> Batch -> FeatureBatch -> shard``: a row keeps its ``index`` (row in the run) from one end to the other. A run
(:class:`RunSpec`) is cut into shards, see :mod:`~pipeline.sharding`.
"""

from __future__ import annotations

import hashlib
import json
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
    """One row of the manifest: an image that somebody wants features of, whether or not it can be read.

    Attributes:
        index: Row in the run, from 0.
        key: The name a person reads: path relative to the data folder, ``/`` on every system. Unique in a run.
        path: Where the file is, for this machine.
        label: First folder of the key, or the list's ``label`` column; ``""`` if none.
        file_bytes: Size of the file when it was listed; 0 where it could not be found.
        source: What reads it, if it is no local file; then ``path`` is for people, or for this source.
        place: Which of the source's images it is; -1 where the source has it no longer, or goes by ``path``.
    """

    index: int
    key: str
    path: str
    label: str
    file_bytes: int
    source: ImageSource | None = None
    place: int = -1


class ImageSource(Protocol):
    """Where images are that are no local files: tar files, a data set, an object store.

    One for all rows, so it must be safe in threads and after a fork; and picklable, small for what it holds: it is sent to every
    machine that has a share in the run. What it has open, it opens when it is first asked.
    """

    @property
    def kind(self) -> str:
        """One word, stored with the run."""

    def read(self, record: ImageRecord) -> bytes:
        """Return the bytes of one image.

        Raises:
            ImageError: It cannot be used; the text begins with ``unreadable``, ``too large`` or ``not a regular file``.
            OSError: It is missing or cannot be read, as of a file.
        """

    def modified_seconds(self, record: ImageRecord) -> float:
        """Return when it was last written, in seconds since 1970; later than now where that is unknown.

        Raises:
            OSError: It is missing or cannot be asked.
        """


@dataclass(frozen=True, slots=True)
class Manifest:
    """The images of a run, in order: row i of everything that is written is image i of this.

    Stored by column, since a run may have millions of rows.

    Attributes:
        root: Folder that keys are relative to.
        keys: (N) unique names, in the order of the run.
        labels: (N) labels, ``""`` where there is none.
        file_bytes: (N,) int64, size of each file when it was listed.
        paths: Where a file is, by index, for those that do not lie at ``root/key``.
        metadata: Further columns of the list, each (N) strings.
        skipped: Files passed over while walking a folder: reason -> how many. For the report alone.
        digest: By :func:`digest_images`; of an extended run, of the rows that its last part has added.
        source: What reads the images, if they are no local files.
        places: (N) int64, which of the source's images each row is, -1 where it has it no longer; None where it goes by paths.
    """

    root: str
    keys: Sequence[str]
    labels: Sequence[str]
    file_bytes: NDArray[np.int64]
    paths: Mapping[int, str]
    metadata: Mapping[str, Sequence[str]]
    skipped: Mapping[str, int]
    digest: str
    source: ImageSource | None = None
    places: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> ImageRecord:
        key, path = self.keys[index], self.paths.get(index)
        if path is None:
            path = os.path.join(self.root, key) if self.source is None else f"{self.root}/{key}"  # noqa: PTH118 (a millionfold)
        place = -1 if self.places is None else int(self.places[index])
        return ImageRecord(index, key, path, self.labels[index], int(self.file_bytes[index]), self.source, place)

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))


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
        full_rows: Rows of a batch that is not the last one; of no meaning at native size.
    """

    statuses: tuple[ImageStatus, ...]
    images: NDArray[Any]
    sizes_px: NDArray[np.int32]
    full_rows: int = 1

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

    def rows(self) -> list[Batch]:
        """Return a batch of each row."""
        parts = zip(self.statuses, self.images, self.sizes_px, strict=True)
        return [Batch((status,), image[None], size_px[None]) for status, image, size_px in parts]

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
class Reduction:
    """One step that makes a vector of an image's activations, or another vector of a vector; see :mod:`.network.reductions`.

    Attributes:
        name: ``avg``, ``gem``, ``srp`` ...
        parameters: Name -> value, all that its result depends on.
    """

    name: str
    parameters: Mapping[str, int | float | str | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Transform:
    """A fitted transform of the reduction ``pca``: the principal components of a sample of vectors.

    Attributes:
        mean: (d,) float32, of the sample.
        components: (n, d) float32, orthonormal, by falling variance.
        explained_variance: (n,) float64, variance of the sample along each.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    explained_variance: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What is stored of a layer: its activations, or what reductions make of them; and the shape of a row of it.

    Attributes:
        layer: The layer.
        shape: (h, w, c) of one image's activations, None at native size, where images differ; (d,) of a vector.
        reductions: Applied one after the other; none: the activations are stored as they are.
    """

    layer: LayerSpec
    shape: tuple[int, ...] | None
    reductions: tuple[Reduction, ...] = ()

    @property
    def name(self) -> str:
        """Of the dataset: ``relu5_1``, ``relu5_1.avg.l2``."""
        return ".".join([self.layer.name, *(reduction.name for reduction in self.reductions)])

    @property
    def channels(self) -> int:
        """Length of the last axis."""
        return self.shape[-1] if self.shape else self.layer.channels

    def with_components(self, counts: Mapping[str, int]) -> FeatureSpec:
        """Return the feature with other numbers of components, reduction -> number."""
        steps = [
            replace(step, parameters={**step.parameters, "n_components": counts[step.name]}) if step.name in counts else step
            for step in self.reductions
        ]
        lengths = [int(step.parameters["n_components"]) for step in steps if "n_components" in step.parameters]
        return replace(self, reductions=tuple(steps), shape=(lengths[-1],) if lengths else self.shape)


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Activations of one layer for n images, or vectors made of them. Images that failed are not among them.

    Attributes:
        layer: Name of the feature, :attr:`FeatureSpec.name`.
        indices: (n,) int64, ascending: which rows of the run these are.
        values: (n, h, w, c) or (n, d), float32.
    """

    layer: str
    indices: NDArray[np.int64]
    values: NDArray[np.float32]


def digest_identity(identity: Mapping[str, str]) -> str:
    """Return the run digest: SHA-256, hex, of the identity."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All that the store must know of a run, or of its parts up to one of them, before its first row.

    Attributes:
        manifest: The rows, those of all parts.
        features: What is stored for each, layers in network order.
        dtype: ``float32`` or ``float16``.
        compression: ``gzip`` or ``none``. Cannot change a number, so it is not part of the identity.
        images_per_shard: Rows a shard; the last of a part may have fewer.
        options: All but the images that can change a number, option -> value as text.
        attributes: Further root attributes of every file: text, or float64 arrays.
        chosen: Which of the options the program has chosen itself: an existing run keeps its own.
        before: The parts that the last one extends; none for a run that was never extended.
        transforms: Of reductions that are fitted: name of the feature up to the reduction -> transform.
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
    transforms: Mapping[str, Transform] = field(default_factory=dict)

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
        """Return the shards of all parts, a function of their numbers of rows and ``images_per_shard`` alone."""
        return plan_shards([*(part.stop for part in self.before), len(self.manifest)], self.images_per_shard)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, as TensorFlow and its driver describe it.

    Attributes:
        model: NVIDIA's name.
        number: Among those that this process may see.
        count: Of them.
        free_bytes: Of its memory when this process came to it.
        total_bytes: Of its memory; 0 where the driver does not tell.
        cuda: Version that TensorFlow was built for.
        cudnn: Likewise.
    """

    model: str
    number: int
    count: int
    free_bytes: int
    total_bytes: int
    cuda: str
    cudnn: str


@dataclass(frozen=True, slots=True)
class Device:
    """A device and its way of working.

    Attributes:
        name: TensorFlow's name, ``/CPU:0`` or ``/GPU:0``.
        kind: ``cpu`` or ``gpu``.
        batch_size: Images read, resized and computed together, at most; at native size such as have one height and width.
        in_flight: Batches on the device at a time: while one is uploaded, another is computed and a third is fetched. Each then
            holds the features of all its layers. With 1, a layer is handed over before the next one is computed.
        gpu: None of a CPU.
        device_bytes: What all batches in flight take there, at most; 0 where nobody knows before.
        host_bytes: Likewise on the host.
    """

    name: str
    kind: str
    batch_size: int
    in_flight: int = 1
    gpu: Gpu | None = None
    device_bytes: int = 0
    host_bytes: int = 0

    def step_rows(self, rows: int) -> int:
        """Return the images of a batch where so many are to be computed in all.

        On a GPU every step is filled up to one size, which costs as much as if it were full: they are made equal, so that of 167
        rows 84 and 83 are computed and not 128 and 39 filled up to 128.
        """
        return -(-rows // -(-rows // self.batch_size)) if self.gpu and rows else self.batch_size

    def attributes(self, precision: str) -> dict[str, str]:
        """Return what a file says of the device that it was made on."""
        found = {"device": self.kind, "precision": precision}
        if self.gpu:
            found |= {"gpu": self.gpu.model, "gpu_memory_bytes": str(self.gpu.total_bytes), "cuda": self.gpu.cuda}
            found |= {"cudnn": self.gpu.cudnn, "batch_size": str(self.batch_size)}
        return found
