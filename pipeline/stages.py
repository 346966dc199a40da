"""Makes the stages that need TensorFlow: loader, preprocessing, network, each set up as the options say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .config import Options
from .images.resize import ResizeSpec, dct_reduction, fit_canvas, resize_on_host
from .machine import usable_cores
from .network.layers import WINOGRAD
from .network.start import load_tensorflow
from .network.weights import Weights
from .network.winograd import prepare_segments
from .records import Batch, FeatureBatch, Manifest, RunSpec

if TYPE_CHECKING:
    from .images.loader import ImageLoader
    from .network.device import Device


@dataclass(frozen=True, slots=True)
class Stages:
    """What the loop is handed, but for the sink.

    Attributes:
        device: Where the network runs.
        load: (manifest, indices (n,) int64, threads) -> a loader of these rows; iterate over it for batches.
        compute: Batch -> features of its good images, one layer after the other.
        in_flight: Batches that may be computed at a time.
    """

    device: Device
    load: Callable[[Manifest, NDArray[np.int64], int], ImageLoader]
    compute: Callable[[Batch], Iterable[FeatureBatch]]
    in_flight: int


def make_stages(options: Options, spec: RunSpec, weights: Weights) -> Stages:
    """Loads TensorFlow and makes the stages.

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
    from .network.device import FLOAT_BYTES, NativeLimit, batches_in_flight, choose_device, gpu_memory_bytes, set_precision
    from .network.inference import DeviceInference, HostInference, first_step
    from .network.vgg import Network

    data, size_px, mean_pixel = options.data, options.data.size_px, weights.mean_pixel
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
        first=None if by_winograd else first_step(resize, mean_pixel),
    )
    compute: Callable[[Batch], Iterable[FeatureBatch]]
    if by_winograd:
        compute = HostInference(network, mean_pixel, is_native=resize is None)
    else:
        compute = DeviceInference(network, resize, device.batch_size if device.kind == "gpu" else None)
    # What the loader's workers do to each decoded image, and how far a JPEG may be reduced while it is decoded.
    prepare: Callable[[NDArray[np.uint8]], NDArray[Any]]
    ratio_for: Callable[[int, int], int] | None = None
    if resize is None:
        prepare = NativeLimit(options.network.name, spec.features, weights.pool_padding)
    else:
        prepare = partial(resize_on_host, spec=resize, mean_pixel=mean_pixel.astype(np.float32))
        if not by_winograd:
            prepare = partial(fit_canvas, spec=resize)
        if data.decode == "fast":
            ratio_for = partial(dct_reduction, spec=resize)

    def load(manifest: Manifest, indices: NDArray[np.int64], workers: int) -> ImageLoader:
        return ImageLoader(
            *(manifest, indices),
            batch_size=device.batch_size if resize else None,
            workers=workers,
            prepare=prepare,
            size_px=size_px if by_winograd else None,
            ratio_for=ratio_for,
        )

    row_bytes = sum(math.prod(feature.shape) for feature in spec.features if feature.shape) * FLOAT_BYTES
    in_flight = batches_in_flight(device, size_px, row_bytes, gpu_memory_bytes() if device.kind == "gpu" else None)
    return Stages(device, load, compute, in_flight)
