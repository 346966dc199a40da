"""The loop that makes shards: batches in, features out; the stages it is handed, set up as the options say; the local engine.

An engine is a context manager that is opened for a run; what it yields makes the missing shards. The other one is
:func:`pipeline.ray_engine.open_ray`.
"""

from __future__ import annotations

import inspect
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .config import Options
from .errors import DeviceMemoryError
from .formatting import words_for_bytes
from .images.resize import ResizeSpec, dct_reduction, fit_canvas, resize_on_host
from .machine import total_bytes, usable_cores
from .network import load_tensorflow
from .network.architectures import WINOGRAD
from .network.host_reductions import one_blas_thread
from .network.keras_models import AnyWeights, KerasWeights
from .network.reductions import averaged_layers
from .network.winograd import prepare_segments
from .progress import LOGGER, Made, Progress, Stopwatch
from .records import Batch, Device, FeatureBatch, ImageStatus, Manifest, RunSpec
from .sharding import ShardSpec
from .signals import leaving_at_once
from .store.codec import FLOAT16_LIMIT
from .store.digests import Digests
from .store.format import row_bytes
from .store.run_folder import RunFolder
from .store.writer import Writer

if TYPE_CHECKING:
    from .images.loader import ImageLoader

Item = TypeVar("Item")
Extracted: TypeAlias = tuple[Batch, Iterable[FeatureBatch]]
# Told of every batch when its features have been handed over; may raise to stop.
Done: TypeAlias = Callable[[Sequence[ImageStatus]], None]
# Makes what is missing in a run folder, tells the progress, and returns what was made.
Engine: TypeAlias = Callable[[Progress, Stopwatch], Made]


@dataclass(frozen=True, slots=True)
class Stages:
    """What the loop is handed."""

    device: Device
    # The rows with these indices, in batches.
    load: Callable[[Manifest, NDArray[np.int64]], ImageLoader | Generator[Batch, None, None]]
    compute: Callable[[Batch], Iterable[FeatureBatch]]  # of its good images, one layer after the other, when asked for
    threads: int  # that encode
    attributes: Mapping[str, str]  # what a file says of the device that it was made on
    overflow_fails_row: bool = False  # an image with a value that float16 cannot hold fails; else the writer refuses it
    memory_fails_row: bool = False  # an image that is too large for the device fails: at native size on a GPU


def make_shards(
    folder: Path, part: RunSpec, shards: Sequence[ShardSpec], stages: Stages, digests: Digests, watch: Stopwatch, done: Done
) -> Writer:
    """Make shards of one part of a run, whose images are read as one sequence; return their writer, which has counted them.

    All are finished when this returns; those of which all has come, when it raises. No partial file is left behind.
    """
    part = replace(part, attributes={**part.attributes, **stages.attributes})
    writer = Writer(folder, part, shards, stages.threads, digests=digests)
    try:
        # Reading stops before what is unfinished is dropped.
        with closing(extract(part.manifest, rows_of(shards), stages, watch)) as batches:
            for batch, layers in batches:
                with watch.stage("store"):
                    writer.put_statuses(batch.statuses)
                for features in layers:
                    with watch.stage("store"):
                        writer.put_features(features)
                    # A large layer must not wait in memory for the next one to be computed.
                    del features
                done(batch.statuses)
        with watch.stage("finish"):
            writer.close()
    except BaseException:
        writer.abort()
        raise
    return writer


def rows_of(shards: Sequence[ShardSpec]) -> NDArray[np.int64]:
    """Return (n,) int64, the rows of these shards in their order."""
    return np.concatenate([np.arange(shard.first, shard.stop) for shard in shards])


def extract(manifest: Manifest, rows: NDArray[np.int64], stages: Stages, watch: Stopwatch) -> Generator[Extracted, None, None]:
    """Run these rows, (n,), through the stages; to be closed.

    Yields batches, with a status for each image, and the features of those that did not fail, computed when asked for.
    """
    loading = iter(stages.load(manifest, rows))
    try:
        with one_blas_thread():
            for batch, layers in _computed(watch.over(in_thread(loading), "read"), stages, watch):
                layers = watch.over(layers, "network")
                # Features cannot be taken back once they have been handed over: where an image may fail, all layers come first.
                if stages.memory_fails_row:
                    try:
                        layers = [*layers]
                    except DeviceMemoryError as error:
                        # At native size all images of a batch have one size: where one does not fit alone, none does.
                        words = f"too large for the memory of the GPU: {str(error).partition('. ')[0]}; set data.size"
                        batch, layers = _failed(batch, dict.fromkeys(batch.indices.tolist(), words)), []
                if stages.overflow_fails_row:
                    batch, layers = _fail_overflow(batch, [*layers])
                yield batch, layers
    finally:
        # After Ctrl-C a thread that nobody waits for any more may still be in it.
        if inspect.getgeneratorstate(loading) != inspect.GEN_RUNNING:
            loading.close()


def _failed(batch: Batch, errors: Mapping[int, str]) -> Batch:
    """Return a batch in which further images have failed, row of the run -> why."""
    return replace(batch, statuses=tuple(replace(one, error=errors.get(one.index, one.error)) for one in batch.statuses))


def _fail_overflow(batch: Batch, layers: Sequence[FeatureBatch]) -> tuple[Batch, Sequence[FeatureBatch]]:
    """Fail the images of which a layer has a finite value that float16 cannot hold, and leave their features out."""
    errors: dict[int, str] = {}
    for features in layers:
        for index, values in zip(features.indices.tolist(), features.values, strict=True):
            largest = float(values.flat[np.abs(values).argmax()])
            # What a device has made float16 is infinite.
            if abs(largest) >= FLOAT16_LIMIT and (abs(largest) < math.inf or values.dtype == np.float16):
                errors.setdefault(index, f"overflow: {features.layer} has a value of {largest:g}, float16 holds up to 65504")
    if not errors:
        return batch, layers
    good = []
    for features in layers:
        keep = ~np.isin(features.indices, [*errors])
        good.append(FeatureBatch(features.layer, features.indices[keep], features.values[keep]))
    return _failed(batch, errors), good


def _computed(batches: Iterable[Batch], stages: Stages, watch: Stopwatch) -> Iterator[Extracted]:
    """Yield each batch with its features, in order."""
    if stages.device.in_flight == 1:
        for batch in batches:
            yield batch, stages.compute(batch)
        return
    waiting: deque[tuple[Batch, Future[list[FeatureBatch]]]] = deque()

    def first() -> Extracted:
        batch, future = waiting.popleft()
        with watch.stage("network"):
            return batch, future.result()

    with ThreadPoolExecutor(stages.device.in_flight, "device") as pool:
        for batch in batches:
            waiting.append((batch, pool.submit(lambda batch: list(stages.compute(batch)), batch)))
            # One more than the threads: all of them have work while a batch is stored and the next one is read.
            if len(waiting) > stages.device.in_flight:
                yield first()
        while waiting:
            yield first()


def in_thread(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Take items in another thread: whoever waits for one in the main thread hears Ctrl-C at once, and not when it is there."""
    pool = ThreadPoolExecutor(1, "load")
    end = object()
    try:
        while (item := pool.submit(next, items, end).result()) is not end:
            yield item  # type: ignore[misc]  # mypy does not know that it is none of the items
            del item
    finally:
        # Without waiting: a disk that does not answer may have it.
        pool.shutdown(wait=False)


def make_stages(options: Options, spec: RunSpec, weights: AnyWeights) -> Stages:
    """Load TensorFlow and make the stages; raise ``OptionError`` where the device asked for is not there."""
    data, network, runtime, size_px = options.data, options.network, options.runtime, options.data.size
    backend, threads = spec.options["runtime.backend"], runtime.workers or usable_cores()
    if size_px is None:
        # cuDNN would try its algorithms for each new size, seconds an image.
        os.environ.setdefault("TF_CUDNN_USE_AUTOTUNE", "0")
    of_vgg: dict[str, Any] = {"pooling": network.pooling}
    preparing: Future[Any] | None = None
    if not isinstance(weights, KerasWeights) and backend == WINOGRAD and runtime.device != "gpu":
        layers = list(dict.fromkeys(feature.layer for feature in spec.features))
        arguments = {"threads": threads, "averaged": averaged_layers(spec.features), **of_vgg}
        # While TensorFlow is loaded.
        preparing = ThreadPoolExecutor(1).submit(prepare_segments, weights, layers, **arguments)
    load_tensorflow()
    from .images.loader import ImageLoader
    from .network.device import BYTES_WHERE_NOBODY_TELLS, FLOAT_BYTES, USABLE_SHARE, choose_device, native_rows, set_precision
    from .network.keras_network import build_network
    from .network.vgg import DeviceFunctions, Layers, Network, first_step, infer_on_host

    device = choose_device(
        *(runtime.device, options.batch_size, size_px, backend, threads),
        row_bytes=row_bytes(spec.features, spec.dtype),
        number=options.part.number - 1 if options.part else 0,
        warn=LOGGER.warning,
    )
    set_precision(runtime.precision, device.kind)
    # On a GPU TensorFlow computes.
    parts = preparing.result() if preparing and device.kind == "cpu" else None
    resize = ResizeSpec(size_px, data.resize, data.interpolation) if size_px else None
    mean, scale = weights.mean_pixel, weights.scale_pixel
    how: dict[str, Any] = {"device": device.name, "size_px": size_px, "transforms": spec.transforms}
    how |= {"dtype": "float32", "first": None} if parts else {"dtype": spec.dtype, "first": first_step(resize, mean, scale)}
    layers_of: Layers
    if isinstance(weights, KerasWeights):
        layers_of = build_network(weights, spec.features, **how)
    else:
        of_vgg |= {"precision": runtime.precision, "parts": parts, "threads": threads}
        layers_of = Network(weights, spec.features, **of_vgg, **how)
    compute: Callable[[Batch], Iterable[FeatureBatch]]
    if parts:
        compute = partial(infer_on_host, network=layers_of, mean_pixel=None if resize else mean, scale_pixel=scale)
    else:
        compute = DeviceFunctions(layers_of, resize, fills=device.kind == "gpu", warn=LOGGER.warning)
    # What the loader's workers do to each decoded image.
    prepare: Callable[[NDArray[np.uint8]], NDArray[Any]]
    if resize is None:
        memory_bytes = device.gpu.free_bytes if device.gpu else total_bytes() or BYTES_WHERE_NOBODY_TELLS
        assert isinstance(layers_of, Network)
        prepare = partial(layers_of.check_native_size, memory_bytes=int(memory_bytes * USABLE_SHARE))
    elif parts:
        prepare = partial(resize_on_host, spec=resize, mean_pixel=mean, scale_pixel=scale)
    else:
        prepare = partial(fit_canvas, spec=resize)
    bytes_a_pixel = FLOAT_BYTES * sum(feature.layer.channels / feature.layer.stride_px**2 for feature in spec.features)

    def load(manifest: Manifest, indices: NDArray[np.int64]) -> ImageLoader:
        return ImageLoader(
            manifest,
            indices,
            batch_size=device.step_rows(len(indices)) if resize else None,
            native_rows=partial(native_rows, device, bytes_a_pixel),
            workers=threads,
            prepare=prepare,
            size_px=size_px if parts else None,
            ratio_for=partial(dct_reduction, spec=resize) if resize and data.decode == "fast" else None,
        )

    say_device(device, options)
    return Stages(
        *(device, load, compute, threads, device.attributes(runtime.precision)),
        overflow_fails_row=options.output.dtype == "float16" and options.output.overflow == "row",
        memory_fails_row=device.kind == "gpu" and resize is None,
    )


def say_device(device: Device, options: Options) -> None:
    """Say where the network runs; where other GPUs are idle, how to use them."""
    gpu, batches = device.gpu, f"{options.runtime.precision}, batches of {device.batch_size}"
    if gpu is None:
        LOGGER.info("device: cpu, %s", batches)
        return
    memory = f"{words_for_bytes(gpu.free_bytes)} free" + f" of {words_for_bytes(gpu.total_bytes)}" * bool(gpu.total_bytes)
    where = f"GPU {gpu.number} of {gpu.count}, {gpu.model}, {memory}"
    LOGGER.info("device: %s; %s, %d at a time; CUDA %s, cuDNN %s", where, batches, device.in_flight, gpu.cuda, gpu.cudnn)
    if gpu.count > 1 and options.part is None and options.engine.name == "local":
        LOGGER.info("device: the others are not used. Use engine=ray, or a process each, part=1/%d and so on.", gpu.count)


def make_parts(run_folder: RunFolder, stages: Stages, progress: Progress, watch: Stopwatch) -> Made:
    """Make the missing shards of a run, those of one part after the other; tell the progress, and return what was made."""
    made = Made(stages.device.kind)
    for part, missing in run_folder.parts():
        made.add(make_shards(run_folder.path, part, missing, stages, run_folder.digests(), watch, progress.count))
    return made


@contextmanager
def open_local(options: Options, weights: AnyWeights, run_folder: RunFolder) -> Iterator[Engine]:
    """Make the stages, and yield what makes the missing shards in this process."""
    with leaving_at_once():
        stages = make_stages(options, run_folder.spec, weights)
    yield partial(make_parts, run_folder, stages)
