"""Small runs for the tests of the store: specifications, activations, and the loop that puts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.records import FeatureBatch, FeatureSpec, ImageStatus, LayerSpec, Manifest, Reduction, RunSpec, digest_images
from pipeline.sharding import Share
from pipeline.store.index_file import build_index
from pipeline.store.run_folder import open_folder
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
) -> RunSpec:
    shapes = {"conv1_1": (5, 4, 3), "relu4_1": (80, 80, 3)} if shapes is None else shapes
    keys = keys or [f"folder{i % 3}/image é{i}.jpg" for i in range(rows)]
    labels, sizes = tuple(key.rpartition("/")[0] for key in keys), np.full(rows, 1234, np.int64)
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
    return [
        ImageStatus(i, "truncated after 17 bytes", 0, 0, 17, "")
        if i in failed
        else ImageStatus(i, "", 300 + i, 400 + i, 1234 + i, f"{i:064x}")
        for i in range(len(spec.manifest))
    ]


def make_values(spec: RunSpec, native: Mapping[int, tuple[int, int]] | None = None) -> dict[str, list[NDArray[np.float32]]]:
    """Gives sparse activations of every image, layer -> row -> (h, w, c); ``native``: row -> map size where shapes are None."""
    random = np.random.default_rng(7)
    values: dict[str, list[NDArray[np.float32]]] = {}
    for feature in spec.features:
        shapes = [feature.shape or (*(native or {})[i], feature.channels) for i in range(len(spec.manifest))]
        values[feature.name] = [
            np.maximum(random.standard_normal(shape), 0).astype(np.float16).astype(np.float32) for shape in shapes
        ]
    return values


def put_rows(
    writer: Writer,
    rows: Sequence[int],
    values: Mapping[str, list[NDArray[np.float32]]],
    statuses: Sequence[ImageStatus],
    batch_size: int = 3,
    statuses_first: bool = True,
) -> None:
    """Puts these rows as the loop does: in order, in batches, failed ones without features."""
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        if statuses_first:
            writer.put_statuses([statuses[row] for row in batch])
        ok = [row for row in batch if not statuses[row].error]
        for layer, of_layer in values.items():
            if len({of_layer[row].shape for row in ok}) == 1:
                writer.put_features(FeatureBatch(layer, np.array(ok, np.int64), np.stack([of_layer[row] for row in ok])))
            else:
                for row in ok:
                    writer.put_features(FeatureBatch(layer, np.array([row], np.int64), of_layer[row][None]))
        if not statuses_first:
            writer.put_statuses([statuses[row] for row in batch])


def write_run(
    folder: Path,
    spec: RunSpec,
    failed: Sequence[int] = (),
    values: Mapping[str, list[NDArray[np.float32]]] | None = None,
    existing: str = "resume",
    index: bool = True,
    statuses: Mapping[int, ImageStatus] | None = None,
    **putting: Any,
) -> dict[str, list[NDArray[np.float32]]]:
    """Writes what is missing of a run, index included; gives the activations of all its rows. ``statuses``: other ones."""
    with open_folder(folder, spec, existing) as run_folder:
        run_folder.prepare()
        made = dict(make_values(run_folder.spec) if values is None else values)
        for part, missing in run_folder.parts():
            writer = Writer(folder, part, missing, workers=2)
            rows = [row for shard in missing for row in range(shard.first, shard.stop)]
            try:
                told = [(statuses or {}).get(status.index, status) for status in make_statuses(part, failed)]
                put_rows(writer, rows, made, told, **putting)
                writer.close()
            except BaseException:
                writer.abort()
                raise
        if index:
            build_index(folder, run_folder.spec)
    return made


def write_share(folder: Path, spec: RunSpec, share: Share, failed: Sequence[int] = (), existing: str = "resume") -> bool:
    """Makes a share of a run, as one of several processes; tells whether it has written the index."""
    from pipeline.job import index_is_whole  # Late: it loads half of the program, and most processes that write runs need none.

    with open_folder(folder, spec, existing, share) as run_folder:
        run_folder.prepare()
        values = make_values(run_folder.spec)
        for part, missing in run_folder.parts():
            writer = Writer(folder, part, missing, workers=1, digests=run_folder.digests())
            for shard in missing:
                put_rows(writer, range(shard.first, shard.stop), values, make_statuses(part, failed))
            writer.close()
        with run_folder.alone():
            if run_folder.lacking() or run_folder.is_extended():
                return False
            run_folder.gather_digests()
            if not index_is_whole(folder, run_folder.spec):
                build_index(folder, run_folder.spec)
            return True


NATIVE_SIZES = {i: (3 + i, 9 - i) for i in range(6)}


def write_native_run(folder: Path) -> Path:
    """Writes six images of :data:`NATIVE_SIZES`, of which the second has failed; gives the folder."""
    spec = make_spec(6, {"relu4_1": None}, images_per_shard=4)
    write_run(folder, spec, failed=[1], values=make_values(spec, NATIVE_SIZES))
    return folder
