"""``python -m pipeline.reduce``: make a smaller run of a finished one, by reductions of what it stores. Loads no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from . import cli, signals
from .errors import NetworkError, OptionError, StoreError
from .records import OK, FeatureBatch, ImageStatus

if TYPE_CHECKING:
    from .config import ReduceOptions
    from .network.host_reductions import Reducer
    from .progress import Made, Progress, Stopwatch
    from .records import FeatureSpec, RunSpec, Transform
    from .store.reader import Run
    from .store.run_folder import RunFolder

    # What is read -> the features that are made of it, and how; None: as it is.
    Reducers = Mapping[str, Sequence[tuple[str, Reducer | None]]]

# Activations of a layer that are read at once.
BLOCK_BYTES = 256 << 20
WHEN_STOPPED = "finished shards are kept. Run the command again to go on."


def reduce_run(options: ReduceOptions) -> None:
    """Write a run of the images and statuses of a finished one, and of reductions of its layers, shard by shard.

    Raises:
        OptionError: A layer is not stored; reductions do not fit together.
        PipelineError: The run cannot be read, or the new one not written; finished shards are kept.
    """
    from .job import finish_run, make_missing, say_plan
    from .pca import with_transforms
    from .plan import plan_reduced_run
    from .progress import Stopwatch, log_to_file, log_to_terminal
    from .store import format
    from .store.index_file import read_run_spec
    from .store.reader import open_run
    from .store.run_folder import open_folder

    signals.raise_in_main_thread()
    watch = Stopwatch()
    with log_to_terminal() as kept_lines, open_run(options.run) as run, ExitStack() as stack:
        if run.attributes["file_kind"] != format.INDEX:
            raise StoreError(f"{run.path}: not a whole run, got a shard. Expected a run folder. Name the folder of its run.")
        if options.folder.absolute() == run.path.parent:
            raise OptionError(f"name: that of the run itself, got {options.name!r}. Expected another. Choose another name.")
        wanted = _wanted({name: run[name].layer for name in run.layers}, options)
        spec = read_run_spec(run.path.parent)
        devices = {name: str(run.attributes[name]) for name in format.DEVICE_ATTRIBUTES if name in run.attributes}
        spec = replace(spec, attributes={**spec.attributes, **devices})
        stored = {feature.name: feature for feature in spec.features}
        planned = plan_reduced_run(spec, options, [(stored[name], chain) for name, chain in wanted])
        target = stack.enter_context(open_folder(options.folder, planned, options.output.existing))
        source = _Source(run, _find_rows(spec, target), [stored[name] for name in dict.fromkeys(name for name, _ in wanted)])
        # Of shards made before, images may have been mended or changed since.
        sha256, again = run.images["sha256"][source.rows], []
        for shard in target.finished:
            with open_run(target.path / format.shard_path(shard.file_name)) as found:
                if (found.images["sha256"] != sha256[shard.first : shard.stop]).any():
                    again.append(shard)
        target.make_again(again)
        say_plan(target)
        with with_transforms(options.reduction, target, source.sample):
            target.prepare()
        stack.enter_context(log_to_file(target.path / format.LOG_NAME, kept_lines))
        stack.enter_context(signals.clearing(target.drop_partial_files))
        try:
            made = make_missing(target, partial(source.make_shards, target) if target.missing else None, 0, watch)
        except NetworkError as error:
            raise NetworkError(f"{str(error).partition(' Use ')[0]} Extract it with output.dtype=float32.") from error
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


class _Source:
    """The run that is reduced: ``rows`` of it for each row of the new one, and ``bases``, what of it is read."""

    def __init__(self, run: Run, rows: NDArray[np.int64], bases: Sequence[FeatureSpec]) -> None:
        self.run, self.rows, self.bases = run, rows, bases

    def make_shards(self, target: RunFolder, progress: Progress, watch: Stopwatch) -> Made:
        """Make the missing shards: an engine, see :mod:`pipeline.extract`."""
        from .machine import usable_cores
        from .progress import Made
        from .store import format
        from .store.reader import open_run
        from .store.writer import Writer

        columns = [self.run.images[name][self.rows] for name in ("error", "height", "width", "bytes", "sha256")]
        # By this time it is told which images have changed since they were read: no later than the features were made.
        shards = [self.run.path.parent / format.shard_path(shard.file_name) for shard in self.run.shards]
        created = min(str(open_run(path).attributes["created"]) for path in shards)
        reducers = self._prepare(target.spec.features, target.spec.transforms)
        made = Made("cpu")
        for part, missing in target.parts():
            part = replace(part, attributes={**part.attributes, "created": created})
            writer = Writer(target.path, part, missing, usable_cores(), digests=target.digests())
            try:
                for shard in missing:
                    rows = np.arange(shard.first, shard.stop)
                    told = zip(rows.tolist(), *(column[rows].tolist() for column in columns), strict=True)
                    statuses = [ImageStatus(*of_image) for of_image in told]
                    with watch.stage("store"):
                        writer.put_statuses(statuses)
                    rows = rows[[not status.error for status in statuses]]
                    for batch in watch.over(self._reduced(rows, reducers), "reduce"):
                        with watch.stage("store"):
                            writer.put_features(batch)
                    progress.count(statuses)
                with watch.stage("finish"):
                    writer.close()
            except BaseException:
                writer.abort()
                raise
            made.add(writer)
        return made

    def sample(self, features: Sequence[FeatureSpec], rows: NDArray[np.int64]) -> Iterator[FeatureBatch]:
        """Yield features of some images; see :data:`pipeline.pca.TakeSample`."""
        rows = rows[self.run.images["status"][self.rows[rows]] == OK]
        return self._reduced(rows, self._prepare(features, {}))

    def _prepare(self, features: Sequence[FeatureSpec], transforms: Mapping[str, Transform]) -> Reducers:
        from .network.host_reductions import on_host
        from .network.reductions import prepare

        found: dict[str, list[tuple[str, Reducer | None]]] = {}
        for feature in features:
            # Of what is stored of its layer with the most of its reductions.
            of_layer = [base for base in self.bases if base.layer.name == feature.layer.name]
            fitting = [base for base in of_layer if base.reductions == feature.reductions[: len(base.reductions)]]
            base = max(fitting, key=lambda base: len(base.reductions))
            done = len(base.reductions)
            reducer = prepare(feature, base.shape, on_host, transforms, done) if done < len(feature.reductions) else None
            found.setdefault(base.name, []).append((feature.name, reducer))
        return found

    def _reduced(self, rows: NDArray[np.int64], reducers: Reducers) -> Iterator[FeatureBatch]:
        """Yield the features of rows that are ok, some rows of a layer at a time; at native size each image for itself."""
        from .machine import usable_cores
        from .network.host_reductions import one_blas_thread, reduce_rows

        with ThreadPoolExecutor(usable_cores(), "reduce") as pool, one_blas_thread():
            for base, wanted in reducers.items():
                layer = self.run[base]
                step = max(1, BLOCK_BYTES // (math.prod(layer.row_shape) * 4)) if layer.row_shape else 1
                for first in range(0, len(rows), step):
                    block = rows[first : first + step]
                    stored = np.asarray(layer.read(self.rows[block]), np.float32)
                    for name, reducer in wanted:
                        yield FeatureBatch(name, block, reduce_rows(reducer, stored, pool) if reducer else stored)


def main() -> None:
    """Run the command; leave with exit code 2 for a wrong option, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM."""
    cli.start("pipeline.reduce", reduce_run, when_stopped=WHEN_STOPPED)


if __name__ == "__main__":
    main()
