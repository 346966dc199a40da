"""Where the network runs: the device that ``runtime.device`` means, its precision, and how many and how large images it takes."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf

from ..errors import DeviceMemoryError, OptionError, printable
from ..images.resize import CANVAS_SIDE_PX, COLOURS
from ..machine import available_bytes
from ..records import Device, Gpu
from .architectures import TENSORFLOW

# TensorFlow's name of the host.
HOST = "/CPU:0"

FLOAT32 = "float32"
TENSOR_FLOAT = "tf32"
BFLOAT = "bfloat16"

# Largest relative error (norm) of a layer up to relu5_4, against float64. Of a photograph at 224 px with random weights, on a CPU
# (tests/test_network.py): 6e-7, 1.2e-3 with factors rounded to 10 bits before each product, 9.0e-3 with bfloat16 kept.
# Trained weights cancel more, so there is a margin.
TOLERANCES = {FLOAT32: 1e-5, TENSOR_FLOAT: 1e-2, BFLOAT: 5e-2}

# Images read and resized together on a CPU: enough for all threads to have some while the next are made ready.
CPU_BATCH = 8
CPU_BATCH_A_THREAD = 4
LARGEST_CPU_BATCH = 64

# Images of a step on a GPU, at most: more would only wait longer to be read.
GPU_BATCH = 128
# On a GPU: one batch is uploaded while another is computed and a third is fetched. TensorFlow begins an upload when all is done
# that was queued before; two batches more, where they fit, ask for it early enough. Source: 2.21, GPUUtil::CopyCPUTensorToGPU.
BATCHES_IN_FLIGHT, MOST_IN_FLIGHT = 3, 5
# Of the memory that is free, on the GPU and on the host, batches may take so much: kernels need some, and the encoder.
USABLE_SHARE = 0.75
# Of an image on the host: as read, as TensorFlow's argument, and in pinned memory.
COPIES_ON_HOST = 3
LARGEST_CHANNELS = 64
# A convolution reads one layer, makes another, and a third waits to be written; cuDNN or the encoder needs some more.
LAYERS_IN_MEMORY = 4
FLOAT_BYTES = 4
# The canvas of a batch as uint8, as float32, in planes, and once more resized along one axis.
CANVAS_BYTES = CANVAS_SIDE_PX**2 * COLOURS * (1 + 3 * FLOAT_BYTES)
GPU_BYTES_WHERE_NOBODY_TELLS = 6 << 30
DRIVER = Path("/proc/driver/nvidia/version")
# Where cuDNN has no memory to try its algorithms TensorFlow says "not found", "unknown" or "internal".
# Source: tensorflow/tensorflow issues 45068 and 60713.
# A copy between host and GPU finds its destination "not initialized".
MEMORY_WORDS = ("No algorithm worked", "ALLOC_FAILED", "RESOURCE_EXHAUSTED", "out of memory", "Dst tensor is not initialized")
LONGEST_TEXT = 120
REFERENCE_PIXELS = 224 * 224

BYTES_WHERE_NOBODY_TELLS = 16 << 30


def choose_device(
    requested: str,
    batch_size: int | None,
    size_px: tuple[int, int] | None,
    backend: str,
    threads: int,
    *,
    row_bytes: int = 0,
    number: int = 0,
    warn: Callable[[str], object] = print,
) -> Device:
    """Find the device and set TensorFlow up for it.

    Args:
        requested: ``auto``, ``cpu`` or ``gpu``.
        batch_size: The user's, or None for the device's own.
        size_px: (height, width) of all images, or None at native size.
        backend: What a CPU uses, ``tensorflow`` or ``winograd``.
        threads: Of the network on a CPU.
        row_bytes: Of all features of one image, as they are stored.
        number: Of this process among those on the machine: of several GPUs it takes one.
        warn: Told where there is a GPU that TensorFlow does not see.

    Raises:
        OptionError: A GPU is asked for and TensorFlow sees none.
    """
    gpus, place, count = claim_gpu(requested, number)
    if not count and requested != "cpu" and has_driver() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        warn(
            "runtime.device: TensorFlow sees no GPU, got an NVIDIA driver. Expected one as new as the CUDA of `pip install "
            "'deep-feature-pipeline[gpu]'`. Install that, or set runtime.device=cpu. TensorFlow says why it sees none: "
            "python -c \"import tensorflow; tensorflow.config.list_physical_devices('GPU')\""
        )
    if requested == "gpu" and not gpus:
        raise OptionError(
            "runtime.device: TensorFlow sees no GPU here, got gpu. Expected a CUDA device, the `gpu` extra, and a process whose "
            "first run was not on the CPU. Install it, or use runtime.device=cpu."
        )
    if not gpus:
        most = CPU_BATCH if backend == TENSORFLOW else max(CPU_BATCH, CPU_BATCH_A_THREAD * threads)
        if size_px is not None:
            return Device(HOST, "cpu", batch_size or min(most, _rows_on_cpu(size_px)))
        # At native size the CPU's own engine computes the layers of one image by all threads.
        return Device(HOST, "cpu", (batch_size or most) if backend == TENSORFLOW else 1)
    details, build = tf.config.experimental.get_device_details(gpus[0]), tf.sysconfig.get_build_info()
    memory = gpu_memory(int(gpus[0].name.rpartition(":")[2])) or (GPU_BYTES_WHERE_NOBODY_TELLS, 0)
    versions = str(build.get("cuda_version", "?")), str(build.get("cudnn_version", "?"))
    gpu = Gpu(str(details.get("device_name", "GPU")), place, count, *memory, *versions)
    if size_px is None:
        return Device("/GPU:0", "gpu", batch_size or GPU_BATCH, gpu=gpu)
    return Device("/GPU:0", "gpu", *plan_batches(image_bytes(size_px, row_bytes), _free_bytes(gpu), batch_size), gpu)


def claim_gpu(requested: str, number: int) -> tuple[list[Any], int, int]:
    """Let TensorFlow see the one GPU that this process takes, if any, and no other, whose memory it would reserve.

    To be called before anything is computed, with arguments of :func:`choose_device`. Returns that GPU alone, or none; its number
    among the machine's; how many there are.
    """
    gpus = tf.config.list_physical_devices("GPU") if requested != "cpu" else []
    place, count = number % max(1, len(gpus)), len(gpus)
    gpus = gpus[place : place + 1]
    try:
        tf.config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        # A process decides once, with its first use of TensorFlow. A CPU can be used in any case.
        gpus = [gpu for gpu in gpus if gpu in tf.config.get_visible_devices("GPU")]
    return gpus, place, count


def image_bytes(size_px: tuple[int, int], row_bytes: int) -> tuple[int, int]:
    """Return the bytes that an image of a batch takes at most, on the GPU and on the host, with its features as stored."""
    pixels = size_px[0] * size_px[1]
    # The canvas is gone when the network runs.
    network = pixels * LARGEST_CHANNELS * FLOAT_BYTES * LAYERS_IN_MEMORY
    return max(CANVAS_BYTES, network) + row_bytes, COPIES_ON_HOST * max(CANVAS_SIDE_PX**2, pixels) * COLOURS + row_bytes


def plan_batches(image_bytes: tuple[int, int], free_bytes: tuple[int, int], batch_size: int | None) -> tuple[int, int]:
    """Return the images of a batch, and how many batches may be on their way through the device at a time.

    Bytes are those of an image, and those that are free, on the GPU and on the host; without a batch size three batches fit.
    """
    # On the host there is one more: the batch that is being stored.
    fitting = int(min(USABLE_SHARE * free / taken for free, taken in zip(free_bytes, image_bytes, strict=True)))
    batch_size = batch_size or max(1, min(GPU_BATCH, fitting // (BATCHES_IN_FLIGHT + 1)))
    return batch_size, max(1, min(MOST_IN_FLIGHT, fitting // batch_size - 1))


def native_rows(device: Device, bytes_a_pixel: float, height: int, width: int) -> int:
    """Return how many images of one size a step takes at native size; the bytes are those of all layers for each pixel."""
    if device.gpu is None:
        fitting = _rows_on_cpu((height, width))
    else:
        taken = image_bytes((height, width), int(height * width * bytes_a_pixel))
        fitting, _ = plan_batches(taken, _free_bytes(device.gpu), None)
    return min(device.batch_size, fitting)


def _rows_on_cpu(size_px: tuple[int, int]) -> int:
    return max(1, LARGEST_CPU_BATCH * REFERENCE_PIXELS // math.prod(size_px))


def _free_bytes(gpu: Gpu) -> tuple[int, int]:
    return gpu.free_bytes, available_bytes() or BYTES_WHERE_NOBODY_TELLS


# Once a process: what TensorFlow has taken since is still its own.
@functools.cache
def gpu_memory(number: int) -> tuple[int, int] | None:
    """Return the free and the whole memory of a GPU in bytes; None where the driver does not tell.

    By the driver's own functions, which see what TensorFlow sees: ``CUDA_VISIBLE_DEVICES``, and of a GPU that is divided (MIG)
    this process's instance. ``number`` is CUDA's, among those that this process may see.
    """
    device, context, free, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    # Source: NVIDIA, CUDA Driver API. The primary context is the one that TensorFlow uses, so it stays.
    calls: list[Callable[[], int]] = [
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), number),
        lambda: cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        lambda: cuda.cuCtxPushCurrent_v2(context),
        lambda: cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)),
        lambda: cuda.cuCtxPopCurrent_v2(ctypes.byref(context)),
    ]
    return (free.value, total.value) if all(call() == 0 for call in calls) else None


def has_driver() -> bool:
    """Return whether NVIDIA's driver is installed."""
    return DRIVER.exists() or shutil.which("nvidia-smi") is not None


def set_precision(precision: str, kind: str) -> None:
    """Tell TensorFlow, for the whole process, whether a GPU may use TensorFloat-32: 10 bits of each factor.

    Raises:
        OptionError: The device's kind is ``cpu`` and another precision than float32 is asked for.
    """
    if kind == "cpu" and precision != FLOAT32:
        raise OptionError(
            f"runtime.precision: a CPU computes in float32 and TensorFlow sees no GPU here, got {precision}. Expected float32."
        )
    tf.config.experimental.enable_tensor_float_32_execution(precision == TENSOR_FLOAT)


@contextmanager
def memory_errors(layer: str, inputs: Sequence[Any] = ()) -> Iterator[None]:
    """Raise as ``DeviceMemoryError`` what TensorFlow raises where the device's memory does not suffice for a layer or weights."""
    try:
        yield
    except tf.errors.OpError as error:
        text = str(error.message) or "out of memory"
        if not (isinstance(error, tf.errors.ResourceExhaustedError) or any(word in text for word in MEMORY_WORDS)):
            raise
        got = f"an input of {' x '.join(map(str, inputs[0].shape))}" if inputs else "the weights"
        raise DeviceMemoryError(
            f"{layer}: the device is out of memory ({printable(text.splitlines()[0], LONGEST_TEXT)}), got {got}. "
            "Expected memory for that. Lower batch_size or data.size, or use runtime.device=cpu."
        ) from error
