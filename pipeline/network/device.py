"""Where the network runs: finds the device that ``runtime.device`` means, and how many images it takes at a time."""

from __future__ import annotations

import subprocess
from typing import Any, NamedTuple

import tensorflow as tf

from ..errors import OptionError
from .backend import TENSORFLOW

# Images read and resized together on a CPU: enough for all threads to have some while the next are made ready.
CPU_BATCH = 8
CPU_BATCH_A_THREAD = 4
LARGEST_CPU_BATCH = 64

# Images of a step on a GPU, at most: more would only wait longer to be read. Fewer where half of its memory holds fewer: of the
# largest layers, of 64 channels, an input, an output and what cuDNN needs beside them; the rest is for kernels and resizing.
GPU_BATCH = 128
GPU_BATCH_WHERE_NOBODY_TELLS = 64
LARGEST_CHANNELS = 64
LAYERS_IN_MEMORY = 4
FLOAT_BYTES = 4
DRIVER_SECONDS = 20
REFERENCE_PIXELS = 224 * 224

# Images of differing sizes go through the network one by one anyway; more would only wait in memory.
NATIVE_BATCH = 2


class Device(NamedTuple):
    """A device and its way of working.

    Attributes:
        name: TensorFlow's name, ``/CPU:0`` or ``/GPU:0``.
        kind: ``cpu`` or ``gpu``.
        batch_size: Images read and resized together.
        step_images: Images that the network takes at a time, the same for every step, or None: all there are, since it changes
            no number. On a GPU it is the batch size, so there the batch size can change a number, within the contract's
            tolerance; with the TensorFlow backend on a CPU it is 1 and cannot.
        asynchronous: Whether the network computes while its caller goes on.
    """

    name: str
    kind: str
    batch_size: int
    step_images: int | None
    asynchronous: bool


def choose_device(requested: str, batch_size: int | None, size_px: tuple[int, int] | None, backend: str, threads: int) -> Device:
    """Finds the device and sets TensorFlow up for it.

    Args:
        requested: ``auto``, ``cpu`` or ``gpu``.
        batch_size: The user's, or None for the device's own.
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
    if size_px is None:
        # On a CPU the layers of one large image are computed by all threads; one more would double the memory.
        return Device(f"/{kind.upper()}:0", kind, batch_size or NATIVE_BATCH, 1, kind == "gpu")
    if not gpus:
        fitting = max(1, LARGEST_CPU_BATCH * REFERENCE_PIXELS // (size_px[0] * size_px[1]))
        if backend == TENSORFLOW:
            return Device("/CPU:0", kind, batch_size or min(CPU_BATCH, fitting), 1, False)
        chosen = batch_size or min(max(CPU_BATCH, CPU_BATCH_A_THREAD * threads), fitting)
        return Device("/CPU:0", kind, chosen, None, True)
    chosen = batch_size or gpu_batch(size_px, gpu_memory_bytes())
    return Device("/GPU:0", kind, chosen, chosen, True)


def _shown(gpus: list[Any], requested: str) -> list[Any]:
    """Lets TensorFlow see these GPUs and no others; gives those that it sees.

    One process uses one GPU. Those it does not use it must not see: TensorFlow would reserve their memory.

    Raises:
        OptionError: A GPU is asked for, and an earlier run in this process has decided otherwise.
    """
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


def gpu_batch(size_px: tuple[int, int], memory_bytes: int | None) -> int:
    """Gives the images of a step on a GPU.

    Args:
        size_px: (height, width) of the input.
        memory_bytes: Of the GPU; None where nobody tells.
    """
    pixels = size_px[0] * size_px[1]
    if memory_bytes is None:
        return max(1, GPU_BATCH_WHERE_NOBODY_TELLS * REFERENCE_PIXELS // pixels)
    image_bytes = pixels * LARGEST_CHANNELS * FLOAT_BYTES * LAYERS_IN_MEMORY
    return max(1, min(GPU_BATCH, memory_bytes // 2 // image_bytes))


def gpu_memory_bytes() -> int | None:
    """Gives the memory of the smallest GPU, as its driver says; TensorFlow does not tell. None where there is no answer."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=True).stdout.split()
        return min(int(mebibytes) for mebibytes in found) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
