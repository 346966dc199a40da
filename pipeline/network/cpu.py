"""The convolutional part of a VGG network on a CPU, by Winograd's algorithm, on all cores.

Takes float32 (n, H, W, 3) with the mean removed, or what a part before this one gives; gives a layer's activations as
:class:`Pending`: other threads compute them while the caller goes on. Images lie side by side, each on one thread; where they are
few or large, every map is cut into strips for all threads instead. Either way each value is computed by the same operations in
the same order, so no number depends on the batch, the threads, or which of the two was done.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import NetworkError
from ..records import LayerSpec
from ..vector_code import MachineCode, Processor, this_processor
from .convolutions import make_colour_convolution, make_convolution
from .kernels import compile_kernels
from .layers import CLASSIFIER_BLOCK, layer_table
from .memory import FLOAT_BYTES, Memory
from .operations import Operation, Pooling, Rectification, Workspace
from .products import COLOURS
from .weights import Weights

Array = NDArray[np.float32]

# Images whose small maps are multiplied by a kernel together, since reading it takes longer than the arithmetic for one.
GROUP_IMAGES = 4

# Where the threads' own maps would need more together, images go one by one and all threads share each.
SIDE_BY_SIDE_BYTES = 2 << 30


class Pending:
    """Activations that are being computed; ``numpy.asarray`` waits for them.

    Attributes:
        values: float32 (n, h, w, c), not to be read before :meth:`wait`.
        shape: Of the values.
        parts: For each part of the images: where it is, and what is done when it is.
    """

    def __init__(self, values: Array, parts: Sequence[tuple[slice, Future[None]]] = ()) -> None:
        self.values = values
        self.shape = values.shape
        self.parts = parts

    def wait(self) -> Array:
        """Gives the activations once they are there.

        Raises:
            NetworkError: There is too little memory.
        """
        try:
            for _, future in self.parts:
                future.result()
        except MemoryError as error:
            raise out_of_memory(self.shape) from error
        return self.values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.wait()


class Workers:
    """The threads, their memory and their code, shared by all parts of a network.

    Args:
        code: The kernels, for all numbers of channels that occur.
        count: Threads.
    """

    def __init__(self, code: MachineCode, count: int) -> None:
        self.code = code
        self.count = count
        self.workspace = Workspace()
        self.memory = Memory()
        self.pool = ThreadPoolExecutor(count, thread_name_prefix="network")


class Part:
    """Some operations one after the other.

    Args:
        operations: At least one.
        workers: Who does them.
    """

    def __init__(self, operations: Sequence[Operation], workers: Workers) -> None:
        self._operations = tuple(operations)
        self._workers = workers

    def __call__(self, images: Any) -> Pending:
        """Starts the computation.

        Args:
            images: (n, h, w, c) float32; from a part before this one, as it gave them.

        Raises:
            NetworkError: There is too little memory.
        """
        given = images if isinstance(images, Pending) else Pending(np.ascontiguousarray(np.asarray(images), np.float32))
        count, height, width, channels = given.shape
        shapes = self._shapes(height, width, channels)
        try:
            if count < self._workers.count or self._own_bytes(shapes) > SIDE_BY_SIDE_BYTES:
                return Pending(self._strip_by_strip(given.wait(), shapes))
            values = self._workers.memory.take(count, *shapes[-1])
        except MemoryError as error:
            raise out_of_memory((count, *shapes[-1])) from error
        parts: Sequence[tuple[slice, Future[None] | None]] = given.parts
        parts = parts or [(part, None) for part in _groups(count, self._workers.count)]
        submit = self._workers.pool.submit
        return Pending(
            values, [(part, submit(self._run_group, before, given.values[part], values[part])) for part, before in parts]
        )

    def _shapes(self, height: int, width: int, channels: int) -> list[tuple[int, int, int]]:
        """Gives the shape of the input and of what each operation makes of the one before."""
        shapes = [(height, width, channels)]
        for operation in self._operations:
            shapes.append(operation.output_shape(*shapes[-1]))
        return shapes

    def _own_bytes(self, shapes: Sequence[tuple[int, int, int]]) -> int:
        inner = [math.prod(shape) for shape in shapes[1:-1]]
        return 2 * max(inner, default=0) * FLOAT_BYTES * self._workers.count

    def _strip_by_strip(self, images: Array, shapes: Sequence[tuple[int, int, int]]) -> Array:
        """Computes all images, all threads at one operation on one image."""
        workers = self._workers
        values = images
        for operation, shape in zip(self._operations, shapes[1:], strict=True):
            outputs = workers.memory.take(len(images), *shape)
            for image, output in zip(values, outputs, strict=True):
                strips = operation.strips(image.shape[0], image.shape[1])
                futures = [
                    workers.pool.submit(operation.run, workers.code, workers.workspace, [image], [output], strip)
                    for strip in strips
                ]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    # Ctrl-C must not wait for the rest of a large image.
                    for future in futures:
                        future.cancel()
                    raise
            values = outputs
        return values

    def _run_group(self, before: Future[None] | None, images: Array, outputs: Array) -> None:
        """Computes some images in this thread: large maps one by one, small ones together."""
        if before is not None:
            before.result()
        shapes = self._shapes(*images.shape[1:])
        inputs = zip(self._operations, shapes[:-1], strict=True)
        alone = [len(operation.strips(shape[0], shape[1], len(images))) > 1 for operation, shape in inputs]
        split = alone.index(False) if False in alone else len(alone)
        if 0 < split < len(alone):
            between = self._workers.workspace.take("between", len(images), *shapes[split])
        else:
            between = outputs if split else images
        for image, output in zip(images, between, strict=True):
            self._run(self._operations[:split], [image], [output])
        self._run(self._operations[split:], list(between), list(outputs))

    def _run(self, operations: Sequence[Operation], images: Sequence[Array], outputs: Sequence[Array]) -> None:
        workers = self._workers
        for place, operation in enumerate(operations):
            targets = outputs
            if place < len(operations) - 1:
                # The maps before and after an operation, in turns.
                shape = operation.output_shape(*images[0].shape)
                targets = list(workers.workspace.take(f"map {place % 2}", len(images), *shape))
            for strip in operation.strips(images[0].shape[0], images[0].shape[1], len(images)):
                operation.run(workers.code, workers.workspace, images, targets, strip)
            images = targets


def prepare_parts(
    weights: Weights, wanted: Sequence[LayerSpec], *, pooling: str, kernel_order: str, threads: int
) -> dict[str, Part]:
    """Makes what computes the layers wanted, those of the classifier excepted. Needs no TensorFlow, so it can be done meanwhile.

    Args:
        weights: Kernels (HWIO, RGB), biases and the padding of the pooling layers.
        wanted: In network order.
        pooling: ``max`` or ``avg``.
        kernel_order: ``hwio``, or ``whio``: first two axes of the kernels swapped.
        threads: That will compute.

    Returns:
        Name of a wanted layer -> the part from the one before, or from the image, to it; and ``pool5`` to the classifier.
    """
    table = layer_table(weights.network)[: wanted[-1].network_index + 1]
    maps = [layer for layer in table if layer.block < CLASSIFIER_BLOCK]
    channels = {layer.kernel_shape[2] for layer in maps if layer.kind == "conv" and layer.kernel_shape}
    workers = Workers(compile_kernels(this_processor(), sorted(channels)), threads)
    ends = {layer.name for layer in wanted} | {maps[-1].name}
    parts: dict[str, list[LayerSpec]] = {}
    start = 0
    for stop, layer in enumerate(maps, start=1):
        if layer.name in ends:
            parts[layer.name] = maps[start:stop]
            start = stop
    pooled = Pooling(pooling, weights.pool_padding)

    def make(step: _Step) -> Operation:
        if step.layer.kind != "conv":
            return Rectification() if step.layer.kind == "relu" else pooled
        convolution = partial(
            make_convolution,
            *factors(step.layer),
            rectified=step.rectified,
            pooling=pooled if step.pooled else None,
        )
        if step.before:
            return convolution(colours=make_colour_convolution(*factors(step.before.layer), rectified=step.before.rectified))
        if step.layer.kernel_shape and step.layer.kernel_shape[2] == COLOURS:
            return make_colour_convolution(*factors(step.layer), rectified=step.rectified)
        return convolution()

    def factors(layer: LayerSpec) -> tuple[NDArray[np.float32], NDArray[np.float32], Processor]:
        kernel = weights.kernels[layer.name]
        kernel = kernel if kernel_order == "hwio" else kernel.transpose(1, 0, 2, 3)
        return kernel, weights.biases[layer.name], this_processor()

    steps = {name: _plan(part) for name, part in parts.items()}
    made = workers.pool.map(make, itertools.chain.from_iterable(steps.values()))
    return {name: Part(list(itertools.islice(made, len(of_part))), workers) for name, of_part in steps.items()}


class _Step(NamedTuple):
    """Layers that are computed in one pass: the first, whether ReLU and pooling follow, and the step taken in before it."""

    layer: LayerSpec
    rectified: bool
    pooled: bool
    before: _Step | None


def _plan(layers: Sequence[LayerSpec]) -> list[_Step]:
    steps: list[_Step] = []
    kinds = [layer.kind for layer in layers]
    place = 0
    while place < len(layers):
        layer = layers[place]
        convolved = layer.kind == "conv"
        of_colours = layer.kernel_shape is not None and layer.kernel_shape[2] == COLOURS
        rectified = convolved and kinds[place + 1 : place + 2] == ["relu"]
        pooled = rectified and not of_colours and kinds[place + 2 : place + 3] == ["pool"]
        before = steps.pop() if convolved and steps and steps[-1].layer.name == "conv1_1" else None
        steps.append(_Step(layer, rectified, pooled, before))
        place += 1 + rectified + pooled
    return steps


def out_of_memory(shape: Sequence[int | None]) -> NetworkError:
    """Gives the error of a machine that has no room for activations of this shape, or for what they are made from."""
    return NetworkError(
        f"network: out of memory, got activations of {' x '.join(map(str, shape))} float32. Expected room for them. "
        "Lower batch_size, runtime.workers or data.size."
    )


def _groups(count: int, workers: int) -> list[slice]:
    """Cuts so many images into parts of nearly equal size, a multiple of the workers of them where there are enough."""
    parts = -(-count // (GROUP_IMAGES * workers)) * workers
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds) if stop > start]
