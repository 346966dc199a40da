"""Where the network runs: the device that ``runtime.device`` means, its precision, and how many and how large images it takes."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ..errors import ImageError, OptionError
from ..images.resize import CANVAS_SIDE_PX
from ..records import LayerSpec
from .architectures import TENSORFLOW, output_shapes, smallest_side_px

FLOAT32 = "float32"
TENSOR_FLOAT = "tf32"
BFLOAT = "bfloat16"

# Largest relative error (norm) of a layer up to relu5_4, against float64. Measured on a photograph at 224 px with random weights
# (tests/test_precision.py): 2.7e-6, 1.1e-3, 8.9e-3; the second on a CPU, with factors rounded to 10 bits before each product.
# Trained weights cancel more, so there is a margin.
TOLERANCES = {FLOAT32: 1e-5, TENSOR_FLOAT: 1e-2, BFLOAT: 5e-2}

# Images read and resized together on a CPU: enough for all threads to have some while the next are made ready.
CPU_BATCH = 8
CPU_BATCH_A_THREAD = 4
LARGEST_CPU_BATCH = 64

# Images of a step on a GPU, at most: more would only wait longer to be read. Fewer where half of its memory holds fewer
# of the largest layers, of 64 channels; the rest is for kernels and resizing.
GPU_BATCH = 128
LARGEST_CHANNELS = 64
# A convolution reads one layer, makes another, and a third waits to be written; cuDNN or the encoder needs some more.
LAYERS_IN_MEMORY = 4
FLOAT_BYTES = 4
COLOURS = 3
DRIVER_SECONDS = 20
GPU_BYTES_WHERE_NOBODY_TELLS = 6 << 30
REFERENCE_PIXELS = 224 * 224

MEMORY_WHERE_NOBODY_TELLS_BYTES = 16 << 30
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

# On a GPU: one batch is uploaded while another is computed and a third is fetched.
BATCHES_IN_FLIGHT = 3


class Device(NamedTuple):
    """A device and its way of working.

    Attributes:
        name: TensorFlow's name, ``/CPU:0`` or ``/GPU:0``.
        kind: ``cpu`` or ``gpu``.
        batch_size: Images read, resized and computed together. At native size 1. On a GPU every step has as many, the last one
            filled up, so there it can change a number, within the contract's tolerance.
    """

    name: str
    kind: str
    batch_size: int


def choose_device(requested: str, batch_size: int | None, size_px: tuple[int, int] | None, backend: str, threads: int) -> Device:
    """Find the device and sets TensorFlow up for it.

    Args:
        requested: ``auto``, ``cpu`` or ``gpu``.
        batch_size: The user's, or None for the device's own; means nothing at native size.
        size_px: Size of all images, or None at native size.
        backend: What a CPU uses, ``tensorflow`` or ``winograd``.
        threads: Of the network on a CPU.

    Raises:
        OptionError: A GPU is asked for and TensorFlow sees none.
    """
    gpus = tf.config.list_physical_devices("GPU") if requested != "cpu" else []
    gpus = _shown(gpus[:1], requested)
    if requested == "gpu" and not gpus:
        raise OptionError(
            "runtime.device: TensorFlow sees no GPU here, got gpu. Expected a CUDA device and the `gpu` extra "
            "(tensorflow[and-cuda]). Install it, or use runtime.device=cpu."
        )
    if gpus:
        tf.config.experimental.set_memory_growth(gpus[0], True)
    kind = "gpu" if gpus else "cpu"
    name = f"/{kind.upper()}:0"
    if size_px is None:
        # All sizes differ, and the layers of one large image are computed by all threads.
        return Device(name, kind, 1)
    if gpus:
        return Device(name, kind, batch_size or gpu_batch(size_px, gpu_memory_bytes()))
    fitting = max(1, LARGEST_CPU_BATCH * REFERENCE_PIXELS // (size_px[0] * size_px[1]))
    most = CPU_BATCH if backend == TENSORFLOW else max(CPU_BATCH, CPU_BATCH_A_THREAD * threads)
    return Device(name, kind, batch_size or min(most, fitting))


def batches_in_flight(device: Device, size_px: tuple[int, int] | None, row_bytes: int, memory_bytes: int) -> int:
    """Return how many batches may be on their way through the device at a time.

    Args:
        device: As chosen.
        size_px: (height, width) of the input; None at native size.
        row_bytes: Of all features of one image, float32.
        memory_bytes: Free on the GPU.

    Returns:
        1 on a CPU and at native size, where a layer is stored before the next one is computed.
    """
    if device.kind == "cpu" or size_px is None:
        return 1
    # The canvas as uint8 and as float32, the resized images, the features; the network itself has the other half of the memory.
    image_bytes = CANVAS_SIDE_PX**2 * COLOURS * (1 + FLOAT_BYTES) + size_px[0] * size_px[1] * COLOURS * FLOAT_BYTES
    fitting = memory_bytes // 2 // (device.batch_size * (image_bytes + row_bytes))
    return max(1, min(BATCHES_IN_FLIGHT, fitting))


def _shown(gpus: list[Any], requested: str) -> list[Any]:
    """Let TensorFlow see these GPUs and no others, whose memory it would reserve; return those that it sees."""
    try:
        tf.config.set_visible_devices(gpus, "GPU")
    except RuntimeError:
        # A process decides once, with its first run. A CPU can be used in any case.
        gpus = [gpu for gpu in gpus if gpu in tf.config.get_visible_devices("GPU")]
        if requested == "gpu" and not gpus:
            raise OptionError(
                "runtime.device: an earlier run of this process uses the CPU, got gpu. Expected the device of the first run, or "
                "cpu. Start Python anew."
            ) from None
    return gpus


def gpu_batch(size_px: tuple[int, int], memory_bytes: int) -> int:
    """Return the images of a step on a GPU.

    Args:
        size_px: (height, width) of the input.
        memory_bytes: Of the GPU.
    """
    image_bytes = size_px[0] * size_px[1] * LARGEST_CHANNELS * FLOAT_BYTES * LAYERS_IN_MEMORY
    return max(1, min(GPU_BATCH, memory_bytes // 2 // image_bytes))


def gpu_memory_bytes() -> int:
    """Return the free memory of the GPU that has least, as its driver says; TensorFlow does not tell."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=True).stdout.split()
        return min(int(mebibytes) for mebibytes in found) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return GPU_BYTES_WHERE_NOBODY_TELLS


def set_precision(precision: str, kind: str) -> None:
    """Tell TensorFlow, for the whole process, whether a GPU may use TensorFloat-32: 10 bits of each factor.

    Args:
        precision: One of :data:`TOLERANCES`.
        kind: Of the device, ``cpu`` or ``gpu``.

    Raises:
        OptionError: The device is a CPU and another precision than float32 is asked for.
    """
    if kind == "cpu" and precision != FLOAT32:
        raise OptionError(
            f"runtime.precision: a CPU computes in float32 and TensorFlow sees no GPU here, got {precision}. Expected float32, "
            "or a GPU. Leave it out, or install the `gpu` extra (tensorflow[and-cuda])."
        )
    tf.config.experimental.enable_tensor_float_32_execution(precision == TENSOR_FLOAT)


def check_native_size(
    pixels: NDArray[np.uint8], network: str, layer: LayerSpec, pool_padding: str, memory_bytes: int
) -> NDArray[np.uint8]:
    """Return an image, (h, w, 3) uint8, that the network can take at its own size.

    Args:
        pixels: The image.
        network: Its name.
        layer: The deepest that is stored.
        pool_padding: ``same`` or ``valid``.
        memory_bytes: What may be used for one image.

    Raises:
        ImageError: It is too small for the layer, or its layers do not fit into memory.
    """
    height, width = pixels.shape[:2]
    shapes = output_shapes(network, (height, width), pool_padding)
    if layer.name not in shapes:
        smallest = smallest_side_px(network, layer, pool_padding)
        raise ImageError(f"too small: {height} x {width} px, layer {layer.name} needs sides of {smallest} px")
    needed = max(math.prod(shape) for shape in shapes.values()) * FLOAT_BYTES * LAYERS_IN_MEMORY
    if needed > memory_bytes:
        raise ImageError(
            f"too large for memory: {height} x {width} px need {needed / 1e9:.0f} GB at native size, "
            f"{memory_bytes / 1e9:.0f} GB may be used; set data.size"
        )
    return pixels


def machine_bytes() -> int:
    """Return the memory of the machine, or of the container."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return MEMORY_WHERE_NOBODY_TELLS_BYTES
    try:
        # Source: Linux, Documentation/admin-guide/cgroup-v2.rst: the limit of this container, or the word "max".
        return min(physical, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):
        return physical
