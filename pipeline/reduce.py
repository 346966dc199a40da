"""``python -m pipeline.reduce``: make a smaller run of a finished one, by reductions of what it stores. Loads no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from . import cli, signals
from .errors import OptionError, StoreError
from .records import Batch, FeatureBatch, ImageStatus

if TYPE_CHECKING:
    from .config import ReduceOptions
    from .extract import Stages
    from .network.host_reductions import Reducer
    from .progress import Stopwatch
    from .records import FeatureSpec, Manifest, RunSpec, Transform
    from .store.reader import Run
    from .store.run_folder import RunFolder

# Activations of a layer that are read at once.
BLOCK_BYTES = 256 << 20


def reduce_run(options: ReduceOptions) -> None:
    """Write a run of the images and statuses of a finished one, and of reductions of its layers, shard by shard.

    Raises:
        OptionError: A layer is not stored; reductions do not fit together.
        PipelineError: The run cannot be read, or the new one not written; finished shards are kept.
    """
    from .extract import make_parts
    from .job import finish_run, make_missing, say_plan
    from .pca import with_transforms
    from .plan import plan_reduced_run
    from .progress import Stopwatch, log_to_file, log_to_terminal
    from .store import format
    from .store.index_file import read_run_spec
    from .store.reader import open_run
    from .store.run_folder import open_folder

    watch = Stopwatch()
    with log_to_terminal() as kept_lines, open_run(options.run) as run, ExitStack() as stack:
        if options.folder.absolute() == run.path.parent:
            raise OptionError(f"name: that of the run itself, got {options.name!r}. Expected another. Choose another name.")
        wanted = _wanted({name: run[name].layer for name in run.layers}, options)
        spec = read_run_spec(run.path.parent)
        devices = {name: str(run.attributes[name]) for name in format.DEVICE_ATTRIBUTES if name in run.attributes}
        spec = replace(spec, attributes={**spec.attributes, **devices})
        stored = {feature.name: feature for feature in spec.features}
        planned = plan_reduced_run(spec, options, [(stored[name], chain) for name, chain in wanted])
        target = stack.enter_context(open_folder(options.folder, planned, options.output.existing))
        rows, bases = _find_rows(spec, target), [stored[name] for name in dict.fromkeys(name for name, _ in wanted)]
        # Of shards made before, images may have been mended or changed since.
        sha256, again = run.images["sha256"][rows], []
        for shard in target.finished:
            with open_run(target.path / format.shard_path(shard.file_name)) as found:
                if (found.images["sha256"] != sha256[shard.first : shard.stop]).any():
                    again.append(shard)
        target.make_again(again)
        say_plan(target)

        def take_sample(features: Sequence[FeatureSpec], places: NDArray[np.int64]) -> Iterator[FeatureBatch]:
            sampling = _make_stages(run, rows, bases, features, {}, Stopwatch())
            return (one for batch in sampling.load(spec.manifest, places) for one in sampling.compute(batch))

        with with_transforms(options.reduction, target, take_sample):
            target.prepare()
        stack.enter_context(log_to_file(target.path / format.LOG_NAME, kept_lines))
        stack.enter_context(signals.clearing(target.drop_partial_files))
        engine = None
        if target.missing:
            stages = _make_stages(run, rows, bases, target.spec.features, target.spec.transforms, watch)
            # By this time it is told which images have changed since they were read: no later than the features were made.
            shards = [run.path.parent / format.shard_path(shard.file_name) for shard in run.shards]
            created = min(str(open_run(path).attributes["created"]) for path in shards)
            engine = partial(make_parts, target, replace(stages, attributes={"created": created}))
        made = make_missing(target, engine, 0, watch)
        finish_run(target.path, target.spec, made, watch)


def _wanted(stored: Mapping[str, str], options: ReduceOptions) -> list[tuple[str, tuple[str, ...]]]:
    """Return the names of what is stored that is wanted, each with a chain of reductions or none.

    A word means what is stored unreduced if it can: ``all``, ``relu5*``; else a vector, from which a chain may go on. Layers of
    Keras may have dots in their names: ``stored`` has what is stored -> the layer that it is of.

    Raises:
        OptionError: A word means nothing that is stored, or components that belong to the run.
    """
    from .store.reader import choose_layers

    default = tuple(step for word in options.reduce for step in word.split(":"))
    unreduced = [name for name, layer in stored.items() if name == layer]
    found: list[tuple[str, tuple[str, ...]]] = []
    for word in options.layers or ["all"]:
        name, *chain = word.split(":")
        bases: list[str] = []
        with suppress(OptionError):
            bases = choose_layers(unreduced, [name])
        found += [(base, tuple(chain) or default) for base in bases or choose_layers(stored, [name])]
    for base, _ in found:
        if "pca" in base.removeprefix(stored[base]).split("."):
            raise OptionError(
                f"layers: its components were fitted for the run that has it, got {base}. Expected what it is of. Extract it."
            )
    return found


def _find_rows(spec: RunSpec, target: RunFolder) -> NDArray[np.int64]:
    """Return (N,) the row in the run of each image of the new one, which may have grown in another order.

    Raises:
        StoreError: An image is not there.
    """
    rows = {key: row for row, key in enumerate(spec.manifest.keys)}
    keys = target.spec.manifest.keys
    if lost := [key for key in keys if key not in rows]:
        raise StoreError(
            f"{target.path}: it has images that the run has not, got {len(lost)}, e.g. {lost[0]!r}. Expected images of the run. "
            "Use output.existing=replace, or another name=..."
        )
    return np.array([rows[key] for key in keys], np.int64)


def _make_stages(
    run: Run,
    rows: NDArray[np.int64],
    bases: Sequence[FeatureSpec],
    features: Sequence[FeatureSpec],
    transforms: Mapping[str, Transform],
    watch: Stopwatch,
) -> Stages:
    """Return the stages that make features, each of one of these bases, of what a run stores.

    ``rows``: (N,) of the run, for each row of the new one; ``watch`` counts the time for the stage ``reduce``.
    """
    from .extract import Stages
    from .machine import usable_cores
    from .network.host_reductions import on_host, one_blas_thread, reduce_rows
    from .network.reductions import prepare
    from .records import Device

    reducers: dict[str, list[tuple[str, Reducer]]] = {}
    for feature in features:
        # Of what is stored of its layer with the most of its reductions.
        of_layer = [base for base in bases if base.layer.name == feature.layer.name]
        fitting = [base for base in of_layer if base.reductions == feature.reductions[: len(base.reductions)]]
        base = max(fitting, key=lambda base: len(base.reductions))
        reducer = prepare(feature, base.shape, on_host, transforms, done=len(base.reductions))
        reducers.setdefault(base.name, []).append((feature.name, reducer))
    shapes = [run[base].row_shape for base in reducers]
    # At native size each image for itself.
    step = 1 if None in shapes else max(1, BLOCK_BYTES // (4 * max(math.prod(shape or ()) for shape in shapes)))
    columns = [run.images[name][rows] for name in ("error", "height", "width", "bytes", "sha256")]

    def load(_: Manifest, wanted: NDArray[np.int64]) -> Generator[Batch, None, None]:
        for block in np.split(wanted, range(step, len(wanted), step)):
            told = zip(block.tolist(), *(column[block].tolist() for column in columns), strict=True)
            yield Batch(tuple(ImageStatus(*of_image) for of_image in told), np.zeros(0), np.zeros(0, np.int32))

    def reduced(batch: Batch) -> Iterator[FeatureBatch]:
        indices = batch.indices[batch.good]
        with ThreadPoolExecutor(usable_cores(), "reduce") as pool, one_blas_thread():
            for base, wanted in reducers.items() if len(indices) else ():
                stored = np.asarray(run[base].read(rows[indices]), np.float32)
                for name, reducer in wanted:
                    yield FeatureBatch(name, indices, reduce_rows(reducer, stored, pool))

    return Stages(Device("", "cpu", step), load, lambda batch: watch.over(reduced(batch), "reduce"), usable_cores(), {})


main = partial(cli.start, "pipeline.reduce", reduce_run, when_stopped="finished shards are kept. Run the command again.")

if __name__ == "__main__":
    main()
