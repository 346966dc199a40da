"""What a run is: its images, what is stored of each, how many a shard holds, and the options that identify it.

How shards follow from that, and the digest, are in :class:`pipeline.records.RunSpec`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import posixpath
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .config import AUTO, DataOptions, Options, ReduceOptions, nested, parameters_of_results, tar_folder, to_yaml
from .errors import OptionError
from .images.folder import list_address, list_folder
from .images.lists import read_list, refuse_all_missing
from .images.tar import list_tars
from .images.tfds import find_set, list_set, sets_folder
from .network import load_tensorflow
from .network.architectures import TENSORFLOW, WINOGRAD, layer_table, output_shapes
from .network.keras_models import AnyWeights, KerasWeights
from .network.reductions import reduce_stored
from .progress import LOGGER
from .records import FeatureSpec, LayerSpec, Manifest, RunSpec, digest_images
from .sharding import plan_images_per_shard
from .storage import RemotePath
from .store import format
from .store.digests import digest_of

# At native size nobody knows how many pixels an image has before it is read; photographs stored as JPEG have about this
# many a byte (500 x 375 px in 40 kB). It decides the number of images a shard and nothing else.
PIXELS_PER_FILE_BYTE = 5.0
# Of files whose size nobody knows: a list of web addresses.
UNKNOWN_FILE_BYTES = 100_000

# Libraries whose version may show in the numbers or in the files.
LIBRARIES = ("tensorflow", "keras", "numpy", "scipy", "h5py", "pillow", "simplejpeg", "isal", "llvmlite")


def list_images(source: DataOptions) -> Manifest:
    """List the images, from wherever the options say that they are, and say how many there are.

    Raises:
        DatasetError: They cannot be listed, or there are none.
        OptionError: See :func:`with_labels`.
    """

    def warn(words: str) -> None:
        LOGGER.warning("images: %s", words)

    if source.tar is not None:
        manifest = list_tars(source.tar, tar_folder(source.tar), warn)
    elif source.tfds is not None:
        root = sets_folder(source.dir)
        # First: TensorFlow takes seconds to load.
        folder = find_set(source.tfds, root)
        load_tensorflow()
        manifest = list_set(folder, source.split, root)
    elif source.list is not None:
        manifest = read_list(source.list, source.dir, warn)
        refuse_all_missing(manifest, source.list)
    elif isinstance(source.dir, RemotePath):
        manifest = list_address(source.dir)
    else:
        assert source.dir is not None
        manifest = list_folder(source.dir)
    manifest = with_labels(manifest, source.label)
    skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest.skipped.items()))
    LOGGER.info("images: %d under %s%s", len(manifest), manifest.root, f"; skipped: {skipped}" if skipped else "")
    return manifest


def with_labels(manifest: Manifest, label: str) -> Manifest:
    """Return the images with the labels of their source (``folder``), of the last folder of each key (``parent``) or of a column.

    Raises:
        OptionError: There is no such column.
    """
    if label == "folder":
        return manifest
    if label == "parent":
        # What the keys of a tar file may begin with is no folder of images.
        tars = manifest.metadata.get("tar", ()) if manifest.source is not None and manifest.source.kind == "tar" else ()
        names = [key.removeprefix(f"{tar}/") for key, tar in zip_longest(manifest.keys, tars, fillvalue="")]
        labels = tuple(posixpath.basename(posixpath.dirname(name)) for name in names)
    elif label in manifest.metadata:
        labels = tuple(manifest.metadata[label])
    else:
        columns = ", ".join(["folder", "parent", *sorted(manifest.metadata)[:20]])
        raise OptionError(f"data.label: there is no such column, got {label!r}. Expected one of: {columns}. Name one of them.")
    digest = digest_images(manifest.keys, labels, manifest.file_bytes, manifest.metadata)
    return replace(manifest, labels=labels, digest=digest)


def plan_run(options: Options, manifest: Manifest, weights: AnyWeights) -> RunSpec:
    """Plan a run of these images; the content of the weights is part of its identity.

    Raises:
        OptionError: The input is too small for a layer, a reduction has more components than values.
    """
    data, network = options.data, options.network
    if isinstance(weights, KerasWeights):
        features = options.features(rows=len(manifest))
        of_network, words, backend, is_bgr = weights.identity, weights.source, TENSORFLOW, weights.is_bgr
    else:
        features = options.features(weights.pool_padding, len(manifest))
        of_network = _pooling_identity(network.name, data.size, features[-1].layer, network.pooling, weights.pool_padding)
        of_network |= {"network.kernel_order": network.kernel_order}
        words = weights.source if network.weights == "random" else f"{weights.source}; conv1_1 says: {weights.recognised}"
        # Winograd's algorithm is the fastest on a CPU at every size. A GPU always uses TensorFlow, within the same tolerance.
        backend, is_bgr = WINOGRAD, False
    identity = {
        "network": network.name,
        "network.weights": weights.sha256,
        **of_network,
        "data.size": "native" if data.size is None else f"{data.size[0]}x{data.size[1]}",
        "output.dtype": options.output.dtype,
        "format_version": str(format.FORMAT_VERSION),
        "runtime.backend": backend if options.runtime.backend == AUTO else options.runtime.backend,
        "runtime.precision": options.runtime.precision,
    }
    if data.size is not None:
        # At native size nothing is resized, so these cannot change a number.
        identity |= {"data.resize": data.resize, "data.interpolation": data.interpolation, "data.decode": data.decode}
        if data.decode == "fast":
            # Before there was such a line, means of neighbouring samples were.
            identity["JPEGs reduced by"] = "lowest frequencies"
    attributes: dict[str, str | NDArray[np.float64]] = {
        # The run is the same whoever makes which part of it.
        "config": to_yaml(nested({**options.given, "part": None})),
        "network": network.name,
        "weights": words,
        "weights_sha256": weights.sha256,
        "preprocess": _preprocess_words(data) + ", over scale_pixel" * (weights.scale_pixel is not None) + ", BGR" * is_bgr,
        "data_root": manifest.root,
        **({"data_source": manifest.source.kind} if manifest.source else {}),
        "mean_pixel": weights.mean_pixel,
        **({} if weights.scale_pixel is None else {"scale_pixel": weights.scale_pixel}),
        **{f"version_{name}": text for name, text in versions().items()},
    }
    return _planned(options, manifest, features, options.output.dtype, identity, attributes)


def plan_reduced_run(source: RunSpec, options: ReduceOptions, wanted: Sequence[tuple[FeatureSpec, Sequence[str]]]) -> RunSpec:
    """Plan the run that a finished one is reduced to, of its images in their order; its parts become one.

    ``wanted``: what is stored, each with a chain of reductions or none.

    Raises:
        OptionError: Reductions do not fit together, or to what they are of.
    """
    features = reduce_stored(wanted, parameters_of_results(options.reduction), len(source.manifest))
    identity = {name: text for name, text in source.options.items() if not name.startswith("reduction.")}
    # A run that has grown since is still the same one.
    identity["reduced from"] = source.parts[0].digest
    images = source.manifest
    manifest = replace(images, digest=digest_images(images.keys, images.labels, images.file_bytes, images.metadata))
    attributes = {name: value for name, value in source.attributes.items() if name != "transforms_sha256"}
    attributes["config"] = to_yaml(nested({**options.given, "run": str(options.run.absolute())}))
    return _planned(options, manifest, features, source.dtype, identity, attributes)


def _planned(
    options: Options | ReduceOptions,
    manifest: Manifest,
    features: tuple[FeatureSpec, ...],
    dtype: str,
    identity: Mapping[str, str],
    attributes: Mapping[str, str | NDArray[np.float64]],
) -> RunSpec:
    """Return a run, with the shards and reductions in its identity, and which options the program has chosen itself."""
    compression, images_per_shard = options.output.compression, options.output.images_per_shard
    if images_per_shard is None:
        row_bytes, chunk_rows = _row_bytes(features, dtype, manifest), format.largest_chunk_rows(features, dtype)
        images_per_shard = plan_images_per_shard(row_bytes, len(manifest), chunk_rows)
    identity = {
        **identity,
        "layers": ",".join(feature.name for feature in features),
        **_reduction_identity(options, features),
        "output.images_per_shard": str(images_per_shard),
    }
    names = ["output.images_per_shard", "runtime.backend", *(name for name in identity if name.endswith(".n_components"))]
    chosen = frozenset(name for name in names if options.given.get(name, "") in (None, AUTO))
    attributes = {**attributes, "compression": compression}
    return RunSpec(manifest, features, dtype, compression, images_per_shard, identity, attributes, chosen)


def _pooling_identity(
    name: str, size_px: tuple[int, int] | None, deepest: LayerSpec, pooling: str, pool_padding: str
) -> dict[str, str]:
    """Return what of the pooling can change a number: nothing before the first pooling layer, the padding only at odd sides."""
    table = layer_table(name)[: deepest.network_index + 1]
    if not any(layer.kind == "pool" for layer in table):
        return {}
    identity = {"network.pooling": pooling}
    up, down = (output_shapes(name, size_px, padding) if size_px else {} for padding in ("same", "valid"))
    if size_px is None or any(up.get(layer.name) != down.get(layer.name) for layer in table):
        identity["network.pool_padding"] = pool_padding
    return identity


def _reduction_identity(options: Options | ReduceOptions, features: Sequence[FeatureSpec]) -> dict[str, str]:
    """Return what the results of reductions depend on; a density of ``auto`` follows from the layer."""
    used = {reduction.name: reduction.parameters for feature in features for reduction in feature.reductions}
    fit = options.reduction["pca"]["fit"] if "pca" in used else None
    return ({"reduction.pca.fit": digest_of(transforms_file(fit))} if fit else {}) | {
        f"reduction.{name}.{key}": str(value if key != "density" else options.given["reduction.srp.density"])
        for name, parameters in sorted(used.items())
        for key, value in parameters.items()
    }


def transforms_file(where: Path) -> Path:
    """Return the file of transforms that ``reduction.pca.fit`` names, itself or by its run folder."""
    return where / format.TRANSFORMS_NAME if where.is_dir() else where


@functools.cache
def versions() -> Mapping[str, str]:
    """Return the version of Python, of this program and of the libraries that may show in the results."""
    found = {"python": platform.python_version()}
    for name in ("deep-feature-pipeline", *LIBRARIES):
        # The program may run from a checkout; TensorFlow may be installed as tensorflow-cpu.
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name.replace("-", "_")] = importlib.metadata.version(name)
    return found


def _row_bytes(features: Sequence[FeatureSpec], dtype: str, manifest: Manifest) -> int:
    values_per_pixel = sum(feature.channels / feature.layer.stride_px**2 for feature in features if feature.shape is None)
    pixels = PIXELS_PER_FILE_BYTE * (float(manifest.file_bytes.mean()) or UNKNOWN_FILE_BYTES)
    return format.row_bytes(features, dtype) + int(pixels * values_per_pixel * format.ITEMSIZE_BYTES[dtype])


def _preprocess_words(data: DataOptions) -> str:
    if data.size is None:
        return "RGB 0..255, native size, minus mean_pixel"
    height, width = data.size
    decode = ", JPEG reduced while decoding" if data.decode == "fast" else ""
    return f"RGB 0..255, {data.resize} to {height} x {width} px, {data.interpolation} (antialiased){decode}, minus mean_pixel"
