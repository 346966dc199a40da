"""The convolutional part of a VGG network on all cores of a CPU.

Images lie side by side, each on one thread; where they are few or large, every map is cut into strips for all threads instead.
Either way each value is computed by the same operations in the same order, so no number depends on the batch, the threads, or
which of the two was done.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import NetworkError
from ...records import LayerSpec
from ..architectures import CLASSIFIER_BLOCK, layer_table
from .codegen import FLOAT_BYTES, MachineCode, Processor, host_processor
from .convolution import (
    CACHE_LINE_BYTES,
    Array,
    DirectConvolution,
    Image,
    Operation,
    Pooling,
    ReLU,
    Strip,
    Workspace,
    aligned,
    prepare_convolution,
    prepare_direct_convolution,
)
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


# Row of the batch, its activations (h, w, c).
Done = Callable[[int, Array], None]


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
        piece = self._find(int(np.prod(shape)) * FLOAT_BYTES + CACHE_LINE_BYTES)
        return aligned(np.asarray(_PooledBuffer(piece, self)), *shape)

    def give_back(self, piece: NDArray[np.uint8]) -> None:
        """Keep a piece for the next array."""
        with self._lock:
            self._free.append(piece)
            while sum(piece.size for piece in self._free) > KEPT_BYTES:
                del self._free[0]

    def _find(self, count_bytes: int) -> NDArray[np.uint8]:
        with self._lock:
            fitting = [piece for piece in self._free if count_bytes <= piece.size <= count_bytes * LARGEST_WASTE]
            if fitting:
                best = min(fitting, key=len)
                self._free = [piece for piece in self._free if piece is not best]
                return best
        return np.empty(count_bytes, np.uint8)


class _PooledBuffer:
    """The base of an array; gives the memory back when it is collected."""

    def __init__(self, piece: NDArray[np.uint8], pool: MemoryPool) -> None:
        self._piece = piece
        self._pool = pool
        self.__array_interface__: dict[str, Any] = piece.__array_interface__

    def __del__(self) -> None:
        self._pool.give_back(self._piece)


class Pending:
    """Activations that are being computed; ``numpy.asarray`` waits for them.

    Attributes:
        values: float32 (n, h, w, c), not to be read before :meth:`wait`.
        shape: Of the values.
        groups: For each group of the images: where it is, and what is done when it is.
        sums: Of layers on the way that were asked for: (n, h', c) float32, sums of the rows of each map as by
            :func:`~pipeline.network.host_reductions.sum_rows`, zero where h' is above its height.
        positions: How many each of these maps has.
    """

    def __init__(
        self,
        values: Array,
        groups: Sequence[tuple[slice, Future[None]]] = (),
        sums: Mapping[str, Array] = MappingProxyType({}),
        positions: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.values = values
        self.shape = values.shape
        self.groups = groups
        self.sums = sums
        self.positions = positions

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
    """The threads, their memory and their code, shared by all segments of a network.

    Args:
        code: The kernels, for all numbers of channels that occur.
        count: Threads.
    """

    def __init__(self, code: MachineCode, count: int) -> None:
        self.count = count
        self.workspace = Workspace(code)
        self.memory = MemoryPool()
        self.pool = ThreadPoolExecutor(count, thread_name_prefix="network")


class Segment:
    """Some operations one after the other.

    Args:
        operations: At least one.
        workers: Who does them.
        summed: Layers of which the sums of rows are wanted, if they are computed here.
    """

    def __init__(self, operations: Sequence[Operation], workers: Workers, summed: Collection[str] = ()) -> None:
        self._operations = tuple(operations)
        self._workers = workers
        self._summed = summed

    def __call__(self, images: Any, done: Done | None = None) -> Pending:
        """Start the computation.

        Args:
            images: (n, h, w, c) float32; from a segment before this one, as it gave them.
            done: Called in the thread that has computed an image, while its activations may still be in a cache.

        Raises:
            NetworkError: There is too little memory.
        """
        given = images if isinstance(images, Pending) else Pending(np.ascontiguousarray(np.asarray(images), np.float32))
        count, height, width, channels = given.shape
        shapes = self._shapes(height, width, channels)
        sums, positions = {}, {}
        for operation, shape in zip(self._operations, shapes[:-1], strict=True):
            for layer, (rows, columns, depth) in operation.shapes(*shape).items():
                if layer in self._summed:
                    sums[layer] = np.zeros((count, -(-rows // TILE) * TILE, depth), np.float32)
                    positions[layer] = rows * columns
        try:
            if count < self._workers.count or self._own_bytes(shapes) > SIDE_BY_SIDE_BYTES:
                return Pending(self._strip_by_strip(given.wait(), shapes, sums, done), (), sums, positions)
            values = self._workers.memory.take(count, *shapes[-1])
        except MemoryError as error:
            raise _out_of_memory((count, *shapes[-1])) from error
        groups: Sequence[tuple[slice, Future[None] | None]] = given.groups
        groups = groups or [(group, None) for group in _groups(count, self._workers.count)]
        submit = self._workers.pool.submit
        futures = [(group, submit(self._run_group, before, given.values, values, group, sums, done)) for group, before in groups]
        return Pending(values, futures, sums, positions)

    def _shapes(self, height: int, width: int, channels: int) -> list[tuple[int, int, int]]:
        """Return the shape of the input and of what each operation makes of the one before."""
        shapes = [(height, width, channels)]
        for operation in self._operations:
            shapes.append(operation.output_shape(*shapes[-1]))
        return shapes

    def _own_bytes(self, shapes: Sequence[tuple[int, int, int]]) -> int:
        inner = [math.prod(shape) for shape in shapes[1:-1]]
        return 2 * max(inner, default=0) * FLOAT_BYTES * self._workers.count

    def _strip_by_strip(
        self, images: Array, shapes: Sequence[tuple[int, int, int]], sums: Mapping[str, Array], done: Done | None
    ) -> Array:
        """Compute all images, all threads at one operation on one image."""
        workers = self._workers
        values = images
        for operation, (height, width, _), shape in zip(self._operations, shapes[:-1], shapes[1:], strict=True):
            outputs = workers.memory.take(len(images), *shape)
            for step in _steps(values, outputs, sums):
                strips = iter(operation.strips(height, width, least=workers.count))

                def work(operation: Operation = operation, step: Image = step, strips: Iterator[Strip] = strips) -> None:
                    for strip in strips:
                        operation.run(workers.workspace, [step], strip)

                try:
                    for future in [workers.pool.submit(work) for _ in range(workers.count)]:
                        future.result()
                except BaseException:
                    # Ctrl-C must not wait for the rest of a large image.
                    deque(strips, 0)
                    raise
            values = outputs
        if done:
            for row, output in enumerate(values):
                done(row, output)
        return values

    def _run_group(
        self,
        before: Future[None] | None,
        given: Array,
        values: Array,
        group: slice,
        sums: Mapping[str, Array],
        done: Done | None,
    ) -> None:
        """Compute some images in this thread: large maps one by one, small ones together."""
        if before is not None:
            before.result()
        images, outputs = given[group], values[group]
        shapes = self._shapes(*images.shape[1:])
        inputs = zip(self._operations, shapes[:-1], strict=True)
        alone = [len(operation.strips(shape[0], shape[1], len(images))) > 1 for operation, shape in inputs]
        split = alone.index(False) if False in alone else len(alone)
        if 0 < split < len(alone):
            between = self._workers.workspace.take("between", len(images), *shapes[split])
        else:
            between = outputs if split else images
        sums = {layer: of_all[group] for layer, of_all in sums.items()}
        for step in _steps(images, between, sums):
            self._run(self._operations[:split], [step])
        self._run(self._operations[split:], _steps(between, outputs, sums))
        if done:
            for row, output in enumerate(outputs, group.start):
                done(row, output)

    def _run(self, operations: Sequence[Operation], images: Sequence[Image]) -> None:
        workspace, steps = self._workers.workspace, images
        for index, operation in enumerate(operations):
            height, width, channels = steps[0].source.shape
            if index < len(operations) - 1:
                # The maps before and after an operation, in turns.
                shape = operation.output_shape(height, width, channels)
                outputs = workspace.take(f"map {index % 2}", len(images), *shape)
                steps = [step._replace(output=output) for step, output in zip(steps, outputs, strict=True)]
            else:
                steps = [step._replace(output=image.output) for step, image in zip(steps, images, strict=True)]
            for strip in operation.strips(height, width, len(images)):
                operation.run(workspace, steps, strip)
            steps = [step._replace(source=step.output) for step in steps]


def _steps(images: Array, outputs: Array, sums: Mapping[str, Array]) -> list[Image]:
    """Return what to do with each image of a batch."""
    return [
        Image(image, output, {layer: of_all[row] for layer, of_all in sums.items()})
        for row, (image, output) in enumerate(zip(images, outputs, strict=True))
    ]


def prepare_segments(
    weights: Weights,
    wanted: Sequence[LayerSpec],
    *,
    pooling: str,
    kernel_order: str,
    threads: int,
    summed: Collection[str] = (),
) -> dict[str, Segment]:
    """Prepare the layers wanted, those of the classifier excepted. Needs no TensorFlow, so it can be done while that is loaded.

    The first segment takes float32 (n, H, W, 3) with the mean removed, each other one what the one before it gave. Each returns a
    layer's activations as :class:`Pending`: other threads compute them while the caller goes on.

    Args:
        weights: Kernels (HWIO, RGB), biases and the padding of the pooling layers.
        wanted: In network order.
        pooling: ``max`` or ``avg``.
        kernel_order: ``hwio``, or ``whio``: first two axes of the kernels swapped.
        threads: That will compute.
        summed: Names of those wanted of which the sums of rows are enough, :attr:`Pending.sums`: they end no segment.

    Returns:
        Name of a wanted layer -> the segment from the one before, or from the image, to it; and ``pool5`` to the classifier.
    """
    table = layer_table(weights.network)[: wanted[-1].network_index + 1]
    maps = [layer for layer in table if layer.block < CLASSIFIER_BLOCK]
    channels = {layer.kernel_shape[2] for layer in maps if layer.kernel_shape} - {COLOURS}
    processor = host_processor()
    workers = Workers(compile_kernels(processor, tuple(sorted(channels))), threads)

    def stored(layer: LayerSpec) -> tuple[Array, Array, Processor]:
        kernel = weights.kernels[layer.name]
        return kernel if kernel_order == "hwio" else kernel.transpose(1, 0, 2, 3), weights.biases[layer.name], processor

    def prepare_direct(step: _Step) -> DirectConvolution:
        return prepare_direct_convolution(*stored(step.layer), relu=step.relu is not None, layers=names(step))

    def names(step: _Step) -> tuple[str, str]:
        return step.layer.name, step.relu.name if step.relu else ""

    def pooled(layer: LayerSpec) -> Pooling:
        return Pooling(pooling, weights.pool_padding, layer.name)

    def prepare(step: _Step) -> Operation:
        if step.layer.kind != "conv":
            return ReLU(step.layer.name) if step.layer.kind == "relu" else pooled(step.layer)
        if _takes_colours(step.layer):
            return prepare_direct(step)
        return prepare_convolution(
            *stored(step.layer),
            relu=step.relu is not None,
            pooling=pooled(step.pool) if step.pool else None,
            before=prepare_direct(step.before) if step.before else None,
            layers=names(step),
        )

    ends = {layer.name for layer in wanted} - {*summed} | {maps[-1].name}
    steps: dict[str, list[_Step]] = {}
    start = 0
    for stop, layer in enumerate(maps, start=1):
        if layer.name in ends:
            steps[layer.name] = _plan(maps[start:stop])
            start = stop
    prepared = workers.pool.map(prepare, itertools.chain.from_iterable(steps.values()))
    return {name: Segment(list(itertools.islice(prepared, len(of_one))), workers, summed) for name, of_one in steps.items()}


class _Step(NamedTuple):
    """Layers that are computed in one pass: the first, the ReLU and the pooling that follow, and the step taken in before it."""

    layer: LayerSpec
    relu: LayerSpec | None
    pool: LayerSpec | None
    before: _Step | None


def _plan(layers: Sequence[LayerSpec]) -> list[_Step]:
    steps: list[_Step] = []
    rest = deque(layers)

    def following(kind: str) -> LayerSpec | None:
        return rest.popleft() if rest and rest[0].kind == kind else None

    while rest:
        layer = rest.popleft()
        before = steps.pop() if layer.kind == "conv" and steps and _takes_colours(steps[-1].layer) else None
        relu = following("relu") if layer.kind == "conv" else None
        pool = following("pool") if relu and not _takes_colours(layer) else None
        steps.append(_Step(layer, relu, pool, before))
    return steps


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
