"""The loop that makes shards: batches in, features out; and the stages it is handed, set up as the options say."""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .config import Options
from .images.resize import ResizeSpec, dct_reduction, fit_canvas, resize_on_host
from .machine import usable_cores
from .network import load_tensorflow
from .network.architectures import WINOGRAD
from .network.known_weights import Weights
from .network.winograd import prepare_segments
from .records import Batch, FeatureBatch, ImageStatus, Manifest, RunSpec
from .report import Stopwatch
from .sharding import ShardSpec
from .store.codec import FLOAT16_LIMIT
from .store.writer import DryWriter, Writer

if TYPE_CHECKING:
    from .images.loader import ImageLoader
    from .network.device import Device

Item = TypeVar("Item")

# Told of every batch when its features have been handed over, with how many numbers they are; may raise to stop.
Done = Callable[[Sequence[ImageStatus], int], None]


@dataclass(frozen=True, slots=True)
class Stages:
    """What the loop is handed, but for the sink.

    Attributes:
        device: Where the network runs.
        load: (manifest, indices (n,) int64) -> a loader of these rows; iterate over it for batches.
        compute: Batch -> features of its good images, one layer after the other, computed when asked for.
        overflow_fails_row: Whether an image with a value that float16 cannot hold fails, or the writer is to refuse it.
        in_flight: Batches on the device at a time: while one is uploaded, another is computed and a third is fetched. Each then
            holds the features of all its layers. With 1, a layer is handed over before the next one is computed.
    """

    device: Device
    load: Callable[[Manifest, NDArray[np.int64]], ImageLoader]
    compute: Callable[[Batch], Iterable[FeatureBatch]]
    overflow_fails_row: bool
    in_flight: int


def make_shards(writer: Writer, part: RunSpec, shards: Sequence[ShardSpec], stages: Stages, watch: Stopwatch, done: Done) -> None:
    """Make shards of one part. All are finished when this returns; those of which all has come, when it raises.

    Args:
        writer: Of these shards. It is closed.
        part: The run up to the part.
        shards: In order; their images are read as one sequence.
        stages: Of the run.
        watch: Gets the seconds of each stage.
        done: See :data:`Done`.

    Raises:
        PipelineError: A value cannot be stored, the disk refuses. No partial file is left behind.
    """
    with ExitStack() as stack:
        # Last in, first out: reading stops before what is unfinished is dropped.
        stack.push(lambda kind, error, trace: writer.abort() if kind else None)
        batches = iter(stages.load(part.manifest, rows_of(shards)))
        stack.callback(close_unless_running, batches)
        extract(batches, stages, writer, watch, done)
        with watch.stage("finish"):
            writer.close()


def rows_of(shards: Sequence[ShardSpec]) -> NDArray[np.int64]:
    """Return (n,) int64, the rows of these shards in their order."""
    return np.concatenate([np.arange(shard.first, shard.stop) for shard in shards])


def extract(batches: Iterator[Batch], stages: Stages, sink: Writer | DryWriter, watch: Stopwatch, done: Done) -> None:
    """Run every batch through the stages. Every image gets one status; one that did not fail gets features of each layer.

    Args:
        batches: From the loader, in the order of the manifest.
        stages: Compute the features.
        sink: Takes statuses and features.
        watch: Gets the seconds of each stage.
        done: See :data:`Done`.
    """
    for batch, layers in _computed(watch.over(in_thread(batches), "read"), stages, watch):
        if stages.overflow_fails_row:
            # A row of a layer cannot be taken back once it has been handed over: all layers of the batch come first.
            batch, layers = fail_overflow(batch, [*watch.over(layers, "network")])
        values = 0
        with watch.stage("store"):
            sink.put_statuses(batch.statuses)
        for features in watch.over(layers, "network"):
            values += features.values.size
            with watch.stage("store"):
                sink.put_features(features)
            # A large layer must not wait in memory for the next one to be computed.
            del features
        done(batch.statuses, values)


def fail_overflow(batch: Batch, layers: Sequence[FeatureBatch]) -> tuple[Batch, Sequence[FeatureBatch]]:
    """Fail the images of which a layer has a finite value that float16 cannot hold, and leave their features out.

    Args:
        batch: As it was loaded.
        layers: All layers of its good images.
    """
    errors: dict[int, str] = {}
    for features in layers:
        for index, values in zip(features.indices.tolist(), features.values, strict=True):
            largest = float(values.flat[np.abs(values).argmax()])
            if FLOAT16_LIMIT <= abs(largest) < math.inf:
                errors.setdefault(index, f"overflow: {features.layer} has a value of {largest:g}, float16 holds up to 65504")
    if not errors:
        return batch, layers
    statuses = tuple(replace(status, error=errors.get(status.index, status.error)) for status in batch.statuses)
    kept = [~np.isin(features.indices, [*errors]) for features in layers]
    return replace(batch, statuses=statuses), [
        FeatureBatch(features.layer, features.indices[keep], features.values[keep])
        for features, keep in zip(layers, kept, strict=True)
        if keep.any()
    ]


def _computed(batches: Iterable[Batch], stages: Stages, watch: Stopwatch) -> Iterator[tuple[Batch, Iterable[FeatureBatch]]]:
    """Yield each batch with its features, in order."""
    if stages.in_flight == 1:
        for batch in batches:
            yield batch, stages.compute(batch)
        return
    waiting: deque[tuple[Batch, Future[list[FeatureBatch]]]] = deque()

    def first() -> tuple[Batch, list[FeatureBatch]]:
        batch, future = waiting.popleft()
        with watch.stage("network"):
            return batch, future.result()

    with ThreadPoolExecutor(stages.in_flight, "device") as pool:
        for batch in batches:
            waiting.append((batch, pool.submit(lambda batch: list(stages.compute(batch)), batch)))
            if len(waiting) == stages.in_flight:
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


def close_unless_running(items: Generator[Item, None, None]) -> None:
    """Close a generator, unless a thread that nobody waits for any more is still in it: after Ctrl-C."""
    if inspect.getgeneratorstate(items) != inspect.GEN_RUNNING:
        items.close()


def make_stages(options: Options, spec: RunSpec, weights: Weights) -> Stages:
    """Load TensorFlow and make the stages.

    Raises:
        OptionError: The device asked for is not there.
    """
    backend, threads = spec.identity["runtime.backend"], options.runtime.workers or usable_cores()
    wanted = [feature.layer for feature in spec.features]
    preparing = None
    # While TensorFlow is loaded.
    background = ThreadPoolExecutor(1)
    if backend == WINOGRAD and options.runtime.device != "gpu":
        preparing = background.submit(
            prepare_segments,
            *(weights, wanted),
            pooling=options.network.pooling,
            kernel_order=options.network.kernel_order,
            threads=threads,
        )
    load_tensorflow()
    from .images.loader import ImageLoader
    from .network.device import (
        FLOAT_BYTES,
        batches_in_flight,
        check_native_size,
        choose_device,
        gpu_memory_bytes,
        machine_bytes,
        set_precision,
    )
    from .network.vgg import Network, first_step, infer_on_device, infer_on_host

    data, size_px = options.data, options.data.size
    mean_pixel, scale_pixel = weights.mean_pixel, weights.scale_pixel
    device = choose_device(options.runtime.device, options.batch_size, size_px, backend, threads)
    set_precision(options.runtime.precision, device.kind)
    resize = ResizeSpec(size_px, data.resize, data.interpolation) if size_px else None
    by_winograd = preparing is not None and device.kind == "cpu"
    network = Network(
        weights,
        wanted,
        pooling=options.network.pooling,
        kernel_order=options.network.kernel_order,
        device=device.name,
        size_px=size_px,
        precision=options.runtime.precision,
        # On a GPU TensorFlow computes.
        parts=preparing.result() if preparing is not None and by_winograd else None,
        first=None if by_winograd else first_step(resize, mean_pixel, scale_pixel),
    )
    compute: Callable[[Batch], Iterable[FeatureBatch]]
    if by_winograd:
        compute = partial(infer_on_host, network=network, mean_pixel=None if resize else mean_pixel, scale_pixel=scale_pixel)
    else:
        fill_to = device.batch_size if device.kind == "gpu" else 0
        compute = partial(infer_on_device, network=network, resize=resize, fill_to=fill_to)
    # What the loader's workers do to each decoded image, and how far a JPEG may be reduced while it is decoded.
    prepare: Callable[[NDArray[np.uint8]], NDArray[Any]]
    ratio_for: Callable[[int, int], int] | None = None
    if resize is None:
        prepare = partial(
            check_native_size,
            network=options.network.name,
            layer=spec.features[-1].layer,
            pool_padding=weights.pool_padding,
            memory_bytes=machine_bytes() * 3 // 4,
        )
    else:
        prepare = partial(
            resize_on_host,
            spec=resize,
            mean_pixel=mean_pixel.astype(np.float32),
            scale_pixel=None if scale_pixel is None else scale_pixel.astype(np.float32),
        )
        if not by_winograd:
            prepare = partial(fit_canvas, spec=resize)
        if data.decode == "fast":
            ratio_for = partial(dct_reduction, spec=resize)

    load = partial(
        ImageLoader,
        batch_size=device.batch_size if resize else None,
        workers=threads,
        prepare=prepare,
        size_px=size_px if by_winograd else None,
        ratio_for=ratio_for,
    )
    row_bytes = sum(math.prod(feature.shape) for feature in spec.features if feature.shape) * FLOAT_BYTES
    in_flight = batches_in_flight(device, size_px, row_bytes, gpu_memory_bytes() if device.kind == "gpu" else 0)
    overflow_fails_row = options.output.dtype == "float16" and options.output.overflow == "row"
    return Stages(device, load, compute, overflow_fails_row, in_flight)
