"""Where the network runs: finds the device that ``runtime.device`` means, and how many images it takes at a time."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from ..errors import OptionError
from .convolution import DIRECT

# Images read and resized together on a CPU: enough for all threads to have some while the next are made ready.
CPU_BATCH = 8
CPU_BATCH_A_THREAD = 4

# Images of 224 x 224 px a step on a GPU; conv1_1 alone is 12.8 MB an image.
GPU_BATCH = 64
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
            tolerance; with TensorFlow's convolutions on a CPU it is 1 and cannot.
        asynchronous: Whether the network computes while its caller goes on.
    """

    name: str
    kind: str
    batch_size: int
    step_images: int | None
    asynchronous: bool


def choose_device(
    requested: str, batch_size: int | None, size_px: tuple[int, int] | None, convolution: str, threads: int
) -> Device:
    """Finds the device and sets TensorFlow up for it.

    Args:
        requested: ``auto``, ``cpu`` or ``gpu``.
        batch_size: The user's, or None for the device's own.
        size_px: Size of all images, or None at native size.
        convolution: What a CPU uses, ``direct`` or ``winograd``.
        threads: Of the network on a CPU.

    Raises:
        OptionError: A GPU is asked for and TensorFlow sees none.
    """
    gpus = tf.config.list_physical_devices("GPU") if requested != "cpu" else []
    # One process uses one GPU. Those it does not use it must not see: TensorFlow would reserve their memory.
    tf.config.set_visible_devices(gpus[:1], "GPU")
    if requested == "gpu" and not gpus:
        raise OptionError(
            "runtime.device: TensorFlow sees no GPU here, got gpu. Expected a CUDA device and the `gpu` extra "
            "(tensorflow[and-cuda]). Install it, or use runtime.device=cpu."
        )
    # TensorFloat-32 keeps 10 bits of each factor; features must agree with the CPU's to the contract's tolerance.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if gpus:
        tf.config.experimental.set_memory_growth(gpus[0], True)
    kind = "gpu" if gpus else "cpu"
    if size_px is None:
        # On a CPU the layers of one large image are computed by all threads; one more would double the memory.
        return Device(f"/{kind.upper()}:0", kind, batch_size or NATIVE_BATCH, 1, kind == "gpu")
    fitting = max(1, GPU_BATCH * REFERENCE_PIXELS // (size_px[0] * size_px[1]))
    if not gpus:
        if convolution == DIRECT:
            return Device("/CPU:0", kind, batch_size or min(CPU_BATCH, fitting), 1, False)
        chosen = batch_size or min(max(CPU_BATCH, CPU_BATCH_A_THREAD * threads), fitting)
        return Device("/CPU:0", kind, chosen, None, True)
    chosen = batch_size or min(GPU_BATCH, fitting)
    return Device("/GPU:0", kind, chosen, chosen, True)
