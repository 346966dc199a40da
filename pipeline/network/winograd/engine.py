"""The convolutional part of a VGG network on all cores of a CPU.

Images lie side by side, each on one thread; where they are few or large, every map is cut into strips for all threads instead.
Either way each value is computed by the same operations in the same order, so no number depends on the batch, the threads, or
which of the two was done.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import NetworkError
from ...records import LayerSpec
from ..architectures import CLASSIFIER_BLOCK, layer_table
from ..host_reductions import mean_of_sums
from .codegen import FLOAT_BYTES, MachineCode, host_processor
from .convolution import CACHE_LINE_BYTES, Array, Maps, Pass, Pooling, Strip, Workspace, aligned, prepare_convolution
from .kernels import COLOURS, TILE, compile_kernels

if TYPE_CHECKING:
    from ..known_weights import Weights

# Images whose small maps are multiplied by a kernel together, since reading it takes longer than the arithmetic for one.
GROUP_IMAGES = 4

# Where the threads' own maps would need more together, images go one by one and all threads share each.
SIDE_BY_SIDE_BYTES = 2 << 30

# Free memory above this is given back to the system, the longest unused first.
KEPT_BYTES = 1 << 30
# A larger piece is not used for a small array.
LARGEST_WASTE = 1.25
# Row of the batch, its activations (h, w, c), and layers on the way -> their means as maps of one position, (1, 1, c).
Done = Callable[[int, Array, Mapping[str, Array]], None]


class MemoryPool:
    """Memory of activations, used again: the system would clear it first. Safe for any number of threads.

    An array from here is an ordinary one. When the last view of it is gone, wherever that was, its memory is free for the next.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []
        # An array can go in the middle of taking another, in the same thread.
        self._lock = threading.RLock()

    def take(self, *shape: int) -> Array:
        """Return an array of whatever values, its beginning on a cache line.

        Raises:
            MemoryError: The system has no more.
        """
        count_bytes = int(np.prod(shape)) * FLOAT_BYTES + CACHE_LINE_BYTES
        with self._lock:
            fitting = [piece for piece in self._free if count_bytes <= piece.size <= count_bytes * LARGEST_WASTE]
            best = min(fitting, key=len, default=None)
            self._free = [piece for piece in self._free if piece is not best]
        piece = np.empty(count_bytes, np.uint8) if best is None else best
        # What all views are of: NumPy looks no further than the buffer that it was made from.
        owner = np.frombuffer(piece.data, np.uint8)
        weakref.finalize(owner, self._give_back, piece).atexit = False
        return aligned(owner, *shape)

    def _give_back(self, piece: NDArray[np.uint8]) -> None:
        with self._lock:
            self._free.append(piece)
            while sum(piece.size for piece in self._free) > KEPT_BYTES:
                del self._free[0]


@dataclass(frozen=True, eq=False)
class Pending:
    """Activations that are being computed; ``numpy.asarray`` waits for them.

    Attributes:
        values: float32 (n, h, w, c), not to be read before :meth:`wait`.
        groups: For each group of the images: where it is, and what is done when it is.
    """

    values: Array
    groups: Sequence[tuple[slice, Future[None]]] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return self.values.shape

    def wait(self) -> Array:
        """Return the activations once they are there.

        Raises:
            NetworkError: There is too little memory.
        """
        try:
            for _, future in self.groups:
                future.result()
        except MemoryError as error:
            raise _out_of_memory(self.shape) from error
        return self.values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.wait()


class Workers:
    """The threads, their memory and their code, the kernels for all numbers of channels; shared by all segments of a network."""

    def __init__(self, code: MachineCode, count: int) -> None:
        self.count = count
        self.workspace = Workspace(code)
        self.memory = MemoryPool()
        self.pool = ThreadPoolExecutor(count, thread_name_prefix="network")


@dataclass(frozen=True, slots=True)
class Segment:
    """Some passes one after the other, at least one."""

    passes: Sequence[Pass]
    workers: Workers
    averaged: Collection[str] = ()  # layers on the way of which the means are wanted, if they are computed here

    def __call__(self, images: Any, done: Done | None = None) -> Pending:
        """Start the computation.

        Args:
            images: (n, h, w, c) float32; from a segment before this one, as it gave them.
            done: Called in the thread that has computed an image, while its activations may still be in a cache.

        Raises:
            NetworkError: There is too little memory.
        """
        given = images if isinstance(images, Pending) else Pending(np.ascontiguousarray(np.asarray(images), np.float32))
        count, workers = len(given.values), self.workers
        shapes, sums, positions = [given.shape[1:]], dict[str, Array](), dict[str, int]()
        for one in self.passes:
            layers = one.shapes(*shapes[-1])
            shapes.append([*layers.values()][-1])
            for layer in layers.keys() & self.averaged:
                rows, columns, channels = layers[layer]
                sums[layer] = np.zeros((count, -(-rows // TILE) * TILE, channels), np.float32)
                positions[layer] = rows * columns

        def finish(row: int, values: Array) -> None:
            if done:
                done(row, values, {name: mean_of_sums(sums[name][row], positions[name])[None, None] for name in sums})

        own_bytes = 2 * max(map(math.prod, shapes[1:-1]), default=0) * FLOAT_BYTES * workers.count
        try:
            if count < workers.count or own_bytes > SIDE_BY_SIDE_BYTES:
                outputs = self._strip_by_strip(given.wait(), sums)
                for row, values in enumerate(outputs):
                    finish(row, values)
                return Pending(outputs)
            maps = Maps(given.values, workers.memory.take(count, *shapes[-1]), sums)
        except MemoryError as error:
            raise _out_of_memory((count, *shapes[-1])) from error

        def compute(group: slice, before: Future[None] | None) -> None:
            if before is not None:
                before.result()
            self._run_group(maps.of(group), shapes)
            for row, values in enumerate(maps.outputs[group], group.start):
                finish(row, values)

        groups: Sequence[tuple[slice, Future[None] | None]] = given.groups
        groups = groups or [(group, None) for group in _groups(count, workers.count)]
        return Pending(maps.outputs, [(group, workers.pool.submit(compute, group, before)) for group, before in groups])

    def _strip_by_strip(self, images: Array, sums: Mapping[str, Array]) -> Array:
        """Compute all images, all threads at one pass over one image."""
        workers = self.workers
        for one in self.passes:
            maps = Maps(images, workers.memory.take(len(images), *one.output_shape(images)), sums)
            for image in range(len(images)):
                step, strips = maps.of(slice(image, image + 1)), iter(one.strips(images.shape[1:3], least=workers.count))

                def work(one: Pass = one, step: Maps = step, strips: Iterator[Strip] = strips) -> None:
                    for strip in strips:
                        one.run(workers.workspace, step, strip)

                try:
                    for future in [workers.pool.submit(work) for _ in range(workers.count)]:
                        future.result()
                except BaseException:
                    # Ctrl-C must not wait for the rest of a large image.
                    deque(strips, 0)
                    raise
            images = maps.outputs
        return images

    def _run_group(self, maps: Maps, shapes: Sequence[Sequence[int]]) -> None:
        """Compute some images in this thread: large maps one by one, small ones together."""
        images, passes = len(maps.sources), self.passes
        alone = [len(one.strips(shape[:2], images)) > 1 for one, shape in zip(passes, shapes[:-1], strict=True)]
        split = [*alone, False].index(False)
        between = maps.sources
        if split:
            is_all = split == len(passes)
            between = maps.outputs if is_all else self.workers.workspace.take("between", images, *shapes[split])
            for image in range(images):
                self._run(passes[:split], maps._replace(outputs=between).of(slice(image, image + 1)))
        self._run(passes[split:], maps._replace(sources=between))

    def _run(self, passes: Sequence[Pass], maps: Maps) -> None:
        workspace, sources = self.workers.workspace, maps.sources
        for index, one in enumerate(passes, start=1):
            outputs = maps.outputs
            if index < len(passes):
                # The maps before and after a pass, in turns.
                outputs = workspace.take(f"map {index % 2}", len(sources), *one.output_shape(sources))
            step = Maps(sources, outputs, maps.sums)
            for strip in one.strips(sources.shape[1:3], len(sources)):
                one.run(workspace, step, strip)
            sources = outputs


def prepare_segments(
    weights: Weights,
    wanted: Sequence[LayerSpec],
    *,
    pooling: str,
    threads: int,
    averaged: Collection[str] = (),
) -> dict[str, Segment]:
    """Prepare the layers wanted, those of the classifier excepted. Needs no TensorFlow, so it can be done while that is loaded.

    The first segment takes float32 (n, H, W, 3) with the mean removed, each other one what the one before it gave. Each returns a
    layer's activations as :class:`Pending`: other threads compute them while the caller goes on.

    Args:
        weights: Kernels (HWIO, RGB), biases and the padding of the pooling layers.
        wanted: In network order.
        pooling: ``max`` or ``avg``.
        threads: That will compute.
        averaged: Names of those wanted of which the means are enough: they end no segment, see :data:`Done`.

    Returns:
        Name of a wanted layer -> the segment from the one before, or from the image, to it; and ``pool5`` to the classifier.
    """
    table = layer_table(weights.network)[: wanted[-1].network_index + 1]
    maps = [layer for layer in table if layer.block < CLASSIFIER_BLOCK]
    channels = {layer.kernel_shape[2] for layer in maps if layer.kernel_shape} - {COLOURS}
    processor = host_processor()
    workers = Workers(compile_kernels(processor, tuple(sorted(channels))), threads)

    def prepare(layers: Sequence[LayerSpec]) -> Pass:
        found: dict[str, Any] = {}
        for place, layer in enumerate(layers):
            names = [following.name for following in layers[place : place + 2] if following.kind != "pool"]
            if layer.kind == "conv":
                prepared = prepare_convolution(weights.kernels[layer.name], weights.biases[layer.name], processor, *names)
                found["direct" if _takes_colours(layer) else "winograd"] = prepared
            elif layer.kind == "pool":
                found["pooling"] = Pooling(pooling, weights.pool_padding, layer.name)
            elif place == 0:
                found["relu"] = layer.name
        return Pass(**found)

    ends = {layer.name for layer in wanted} - {*averaged} | {maps[-1].name}
    passes: dict[str, list[list[LayerSpec]]] = {}
    start = 0
    for stop, layer in enumerate(maps, start=1):
        if layer.name in ends:
            passes[layer.name] = _passes(maps[start:stop])
            start = stop
    prepared = workers.pool.map(prepare, itertools.chain.from_iterable(passes.values()))
    return {name: Segment([*itertools.islice(prepared, len(of_one))], workers, averaged) for name, of_one in passes.items()}


def _passes(layers: Sequence[LayerSpec]) -> list[list[LayerSpec]]:
    """Divide layers: ReLU and pooling go with what is before them, a convolution with the one of an image's channels."""
    passes: list[list[LayerSpec]] = []
    for layer in layers:
        kinds = [before.kind for before in passes[-1]] if passes else []
        if (kinds and layer.kind != "conv") or (kinds == ["conv", "relu"] and _takes_colours(passes[-1][0])):
            passes[-1].append(layer)
        else:
            passes.append([layer])
    return passes


def _takes_colours(layer: LayerSpec) -> bool:
    return layer.kernel_shape is not None and layer.kernel_shape[2] == COLOURS


def _out_of_memory(shape: Sequence[int | None]) -> NetworkError:
    """Return the error of a machine that has no memory for activations of this shape, or for what they are made from."""
    return NetworkError(
        f"network: out of memory, got activations of {' x '.join(map(str, shape))} float32. Expected memory for them. "
        "Lower batch_size, runtime.workers or data.size."
    )


def _groups(count: int, workers: int) -> list[slice]:
    """Cut so many images into groups of nearly equal size, a multiple of the workers of them where there are enough."""
    groups = -(-count // (GROUP_IMAGES * workers)) * workers
    bounds = [count * group // groups for group in range(groups + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds) if stop > start]
