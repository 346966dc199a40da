"""Where the network runs: finds the device that ``runtime.device`` means, and how many images it takes at a time."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from ..errors import OptionError

# Images read, resized and sent to the device together. On a CPU the network takes them one by one: with one image at a
# time its layers stay in the cache and buffers are reused, and more gain nothing (5.5 images a second at 1, 4.1 at 32).
CPU_BATCH = 8

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
        step_images: Images that the network takes at a time; the same for every step. On a GPU it is the batch size, so there
            the batch size can change a number, within the contract's tolerance; on a CPU it is 1 and cannot.
    """

    name: str
    kind: str
    batch_size: int
    step_images: int


def choose_device(requested: str, batch_size: int | None, size_px: tuple[int, int] | None) -> Device:
    """Finds the device and sets TensorFlow up for it.

    Args:
        requested: ``auto``, ``cpu`` or ``gpu``.
        batch_size: The user's, or None for the device's own.
        size_px: Size of all images, or None at native size.

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
        return Device(f"/{kind.upper()}:0", kind, batch_size or NATIVE_BATCH, 1)
    fitting = max(1, GPU_BATCH * REFERENCE_PIXELS // (size_px[0] * size_px[1]))
    if not gpus:
        return Device("/CPU:0", kind, batch_size or min(CPU_BATCH, fitting), 1)
    chosen = batch_size or min(GPU_BATCH, fitting)
    return Device("/GPU:0", kind, chosen, chosen)
