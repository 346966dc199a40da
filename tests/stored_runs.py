"""Small runs for the tests of the store: specifications, activations, and the loop that puts them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.records import FeatureBatch, FeatureSpec, ImageStatus, LayerSpec, Manifest, Reduction, RunSpec, digest_images
from pipeline.sharding import Share
from pipeline.store.index_file import build_index
from pipeline.store.reader import open_run
from pipeline.store.run_folder import RunFolder, open_folder
from pipeline.store.writer import Writer

Shape = tuple[int, ...]


def make_feature(name: str, shape: Shape | None, network_index: int, channels: int = 0) -> FeatureSpec:
    layer, *steps = name.split(".")
    spec = LayerSpec(layer, "relu", network_index, 1, None, shape[-1] if shape else channels, 8)
    return FeatureSpec(spec, shape, tuple(map(Reduction, steps)))


def make_spec(
    rows: int = 10,
    shapes: Mapping[str, Shape | None] | None = None,
    *,
    dtype: str = "float32",
    compression: str = "gzip",
    images_per_shard: int = 4,
    identity: Mapping[str, str] | None = None,
    metadata: Mapping[str, tuple[str, ...]] | None = None,
    keys: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> RunSpec:
    shapes = {"conv1_1": (5, 4, 3), "relu4_1": (80, 80, 3)} if shapes is None else shapes
    keys = keys or [f"folder{i % 3}/image é{i}.jpg" for i in range(rows)]
    labels, sizes = tuple(labels or (key.rpartition("/")[0] for key in keys)), np.full(rows, 1234, np.int64)
    digest = digest_images(keys, labels, sizes, metadata or {})
    manifest = Manifest("/data", tuple(keys), labels, sizes, {}, metadata or {}, {}, digest)
    return RunSpec(
        manifest=manifest,
        features=tuple(make_feature(name, shape, number, 3) for number, (name, shape) in enumerate(shapes.items())),
        dtype=dtype,
        compression=compression,
        images_per_shard=images_per_shard,
        options={
            "layers": ",".join(shapes),
            "output.dtype": dtype,
            "output.images_per_shard": str(images_per_shard),
            **(identity or {}),
        },
        attributes={"network": "vgg19", "mean_pixel": np.array([123.68, 116.779, 103.939])},
    )


def make_statuses(spec: RunSpec, failed: Sequence[int] = ()) -> list[ImageStatus]:
    statuses = [ImageStatus(i, "", 300 + i, 400 + i, 1234 + i, f"{i:064x}") for i in range(len(spec.manifest))]
    failures = [ImageStatus(i, "truncated after 17 bytes", 0, 0, 17, "") for i in range(len(spec.manifest))]
    return [failures[i] if i in failed else status for i, status in enumerate(statuses)]


def make_values(spec: RunSpec, native: Mapping[int, tuple[int, int]] | None = None) -> dict[str, list[NDArray[np.float32]]]:
    """Gives sparse activations that depend on layer and key alone, as a network's do: layer -> row -> (h, w, c).

    ``native``: row -> map size, where shapes are None; others are small.
    """
    values: dict[str, list[NDArray[np.float32]]] = {}
    for feature in spec.features:
        values[feature.name] = []
        for row, key in enumerate(spec.manifest.keys):
            seed = zlib.crc32(f"{feature.name} {key}".encode("utf-8", "backslashreplace"))
            shape = feature.shape or (*(native or {}).get(row, (2 + seed % 5, 2 + seed % 7)), feature.channels)
            drawn = np.random.default_rng(seed).standard_normal(shape)
            values[feature.name].append(np.maximum(drawn, 0).astype(np.float16).astype(np.float32))
    return values


def put_rows(
    writer: Writer,
    rows: Sequence[int],
    values: Mapping[str, list[NDArray[np.float32]]],
    statuses: Sequence[ImageStatus],
    batch_size: int = 3,
) -> None:
    """Puts these rows as the loop does: in order, in batches, failed ones without features."""
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        writer.put_statuses([statuses[row] for row in batch])
        ok = [row for row in batch if not statuses[row].error]
        for layer, of_layer in values.items():
            is_even = len({of_layer[row].shape for row in ok}) == 1
            for some in [ok] if is_even else [[row] for row in ok]:
                writer.put_features(FeatureBatch(layer, np.array(some, np.int64), np.stack([of_layer[row] for row in some])))


def make_missing(
    folder: RunFolder,
    failed: Sequence[int] = (),
    values: Mapping[str, list[NDArray[np.float32]]] | None = None,
    *,
    shards: int | None = None,
    statuses: Mapping[int, ImageStatus] | None = None,
    workers: int = 2,
    batch_size: int = 3,
) -> dict[str, list[NDArray[np.float32]]]:
    """Writes missing shards of an open folder, or so many; gives the activations. ``statuses``: row -> another one."""
    folder.prepare()
    made = dict(make_values(folder.spec) if values is None else values)
    left = len(folder.missing) if shards is None else shards
    for part, missing in folder.parts():
        writer = Writer(folder.path, part, missing[:left], workers, folder.digests())
        rows = [row for shard in missing[:left] for row in range(shard.first, shard.stop)]
        try:
            told = [(statuses or {}).get(status.index, status) for status in make_statuses(part, failed)]
            put_rows(writer, rows, made, told, batch_size)
            writer.close()
        except BaseException:
            writer.abort()
            raise
        left -= len(missing[:left])
    return made


def write_run(
    folder: Path,
    spec: RunSpec,
    failed: Sequence[int] = (),
    values: Mapping[str, list[NDArray[np.float32]]] | None = None,
    existing: str = "resume",
    index: bool = True,
    **how: Any,
) -> dict[str, list[NDArray[np.float32]]]:
    """Writes what is missing of a run, index included, by :func:`make_missing`."""
    with open_folder(folder, spec, existing) as run_folder:
        made = make_missing(run_folder, failed, values, **how)
        if index:
            build_index(folder, run_folder.spec)
    return made


def write_share(folder: Path, spec: RunSpec, share: Share, failed: Sequence[int] = (), existing: str = "resume") -> bool:
    """Makes a share of a run, as one of several processes; tells whether it has written the index."""
    with open_folder(folder, spec, existing, share) as run_folder:
        make_missing(run_folder, failed, workers=1)
        with run_folder.alone():
            if run_folder.lacking() or run_folder.is_extended():
                return False
            run_folder.gather_digests()
            # As pipeline.job does, which takes a second to load.
            index = folder / "features.h5"
            if not index.exists() or open_run(index).attributes["run_digest"] != run_folder.spec.digest:
                build_index(folder, run_folder.spec)
            return True


NATIVE_SIZES = {i: (3 + i, 9 - i) for i in range(6)}


def write_native_run(folder: Path) -> Path:
    """Writes six images of :data:`NATIVE_SIZES`, of which the second has failed; gives the folder."""
    spec = make_spec(6, {"relu4_1": None}, images_per_shard=4)
    write_run(folder, spec, failed=[1], values=make_values(spec, NATIVE_SIZES))
    return folder
