"""Makes the stages that need TensorFlow: loader, preprocessing, network, each set up as the options say."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .config import Options
from .extract import Step
from .images.jpeg_decoder import prepare_decoder, prepare_reduced_decoder
from .images.resample import hand_over
from .images.resize_host import HostResize
from .images.tables import ResizeSpec, dct_reduction
from .machine import usable_cores
from .network.backend import WINOGRAD
from .network.fitting import NativeLimit
from .network.start import load_tensorflow
from .network.weights import Weights
from .network.winograd import prepare_segments
from .records import Batch, Manifest, RunSpec

if TYPE_CHECKING:
    from .network.device import Device


# From here on a decoder of our own is worth the quarter of a second that its compiling takes.
MANY_IMAGES = 100


@dataclass(frozen=True, slots=True)
class Stages:
    """What the loop is handed, but for the sink.

    Attributes:
        device: Where the network runs.
        load: (manifest, indices (n,) int64, threads) -> batches of these rows.
        preprocess: Batch -> steps of good images.
        network: Images on the device -> (layer, activations on the device).
    """

    device: Device
    load: Callable[[Manifest, NDArray[np.int64], int], Generator[Batch, None, None]]
    preprocess: Callable[[Batch], Iterable[Step]]
    network: Callable[[Any], Iterable[tuple[str, Any]]]


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
    if len(spec.manifest) - spec.first_row >= MANY_IMAGES:
        background.submit(prepare_decoder)
    if options.data.decode == "fast":
        background.submit(prepare_reduced_decoder)
    load_tensorflow()
    from .images.loader import load_batches
    from .images.preprocess import FixedSize, NativeSize
    from .images.resize_device import DeviceResize
    from .network.device import choose_device
    from .network.precision import set_precision
    from .network.vgg import Network

    data, size_px = options.data, options.data.size_px
    device = choose_device(options.runtime.device, options.batch_size, size_px, backend, threads)
    set_precision(options.runtime.precision, device.kind)
    network = Network(
        weights,
        wanted,
        pooling=options.network.pooling,
        kernel_order=options.network.kernel_order,
        device=device.name,
        size_px=size_px,
        precision=options.runtime.precision,
        # On a GPU TensorFlow computes.
        parts=preparing.result() if preparing and device.kind == "cpu" else None,
    )
    # What the loader's threads do to each decoded image, and how far a JPEG may be reduced while it is decoded.
    reduce: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    resizer: HostResize | None = None
    ratio_for: Callable[[int, int], int] | None = None
    preprocess: Callable[[Batch], Iterable[Step]]
    if size_px is None:
        reduce = NativeLimit(options.network.name, spec.features, weights.pool_padding)
        preprocess = NativeSize(weights.mean_pixel, device.name)
    else:
        resize = ResizeSpec(size_px, data.resize, data.interpolation)
        if data.decode == "fast":

            def ratio_for(height: int, width: int) -> int:
                return dct_reduction(height, width, resize)

        if device.kind == "cpu" and backend == WINOGRAD:
            resizer = HostResize(resize, weights.mean_pixel)
            preprocess = FixedSize(None, device.step_images)
        else:
            reduce = partial(hand_over, spec=resize)
            preprocess = FixedSize(DeviceResize(resize, weights.mean_pixel, device.name), device.step_images)

    def load(manifest: Manifest, indices: NDArray[np.int64], workers: int) -> Generator[Batch, None, None]:
        return load_batches(
            *(manifest, indices),
            batch_size=device.batch_size,
            workers=workers,
            reduce=reduce,
            resizer=resizer,
            ratio_for=ratio_for,
        )

    return Stages(device, load, preprocess, network)
