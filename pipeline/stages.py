"""Makes the stages that need TensorFlow: loader, preprocessing, network, each set up as the options say."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .config import Options
from .extract import Step
from .images.resample import ResizeSpec, dct_reduction, hand_over
from .network.fitting import NativeLimit
from .network.weights import Weights
from .records import Batch, Manifest, RunSpec

if TYPE_CHECKING:
    from .network.device import Device


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
    with _silent_start():
        import_module("tensorflow")
    from .images.loader import load_batches
    from .images.preprocess import FixedSize, NativeSize
    from .network.device import choose_device
    from .network.vgg import Network

    data, size_px = options.data, options.data.size_px
    device = choose_device(options.runtime.device, options.batch_size, size_px)
    network = Network(
        weights,
        [feature.layer for feature in spec.features],
        pooling=options.network.pooling,
        kernel_order=options.network.kernel_order,
        device=device.name,
        size_px=size_px,
    )
    # What the loader's threads do to each decoded image, and how far a JPEG may be reduced while it is decoded.
    reduce: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    ratio_for: Callable[[int, int], int] | None = None
    preprocess: Callable[[Batch], Iterable[Step]]
    if size_px is None:
        reduce = NativeLimit(options.network.name, spec.features, weights.pool_padding)
        preprocess = NativeSize(weights.mean_pixel, device.name)
    else:
        resize = ResizeSpec(size_px, data.resize, data.interpolation)

        def reduce(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return hand_over(pixels, resize)

        if data.decode == "fast":

            def ratio_for(height: int, width: int) -> int:
                return dct_reduction(height, width, resize)

        preprocess = FixedSize(resize, weights.mean_pixel, device.name, device.step_images)

    def load(manifest: Manifest, indices: NDArray[np.int64], workers: int) -> Generator[Batch, None, None]:
        return load_batches(manifest, indices, batch_size=device.batch_size, workers=workers, reduce=reduce, ratio_for=ratio_for)

    return Stages(device, load, preprocess, network)


@contextmanager
def _silent_start() -> Iterator[None]:
    """Keeps from the terminal what TensorFlow's C++ part writes while it loads, and lowers its voice after.

    It tells of CPU instructions and missing GPU drivers on file descriptor 2, where no setting of its own reaches it.
    What is wrong with an installation comes as an exception all the same.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
