"""The loader alone: JPEGs decoded, or decoded and resized to one size, into batches; no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.machine import usable_cores

from .photographs import make_differing, make_photographs
from .rivals import MEAN_PIXEL, SIDE_PX
from .sides import measure_sides
from .table import Bench, Line

BATCH = 8


def make_loader(photographs: Path, resize: bool) -> Any:
    """Gives the program's loader, with its antialiased resizing where that is asked for."""
    from pipeline.images.folder import list_folder
    from pipeline.images.loader import ImageLoader
    from pipeline.images.resize import ResizeSpec, resize_on_host

    manifest, spec = list_folder(photographs), ResizeSpec((SIDE_PX, SIDE_PX), "squash", "bilinear")
    settings: dict[str, Any] = {"batch_size": BATCH, "workers": usable_cores()}
    if resize:
        mean_pixel = np.array(MEAN_PIXEL, np.float32)
        settings |= {"prepare": partial(resize_on_host, spec=spec, mean_pixel=mean_pixel), "size_px": spec.size_px}
    return ImageLoader(manifest, np.arange(len(manifest)), **settings)


def ours(photographs: Path, resize: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """The program's loader; made once, as the rival's dataset is."""
    loader = make_loader(photographs, resize)

    def batches() -> Iterator[Any]:
        for batch in loader:
            assert not any(status.error for status in batch.statuses)
            yield batch.images

    return {}, _passing(batches)


def stock(photographs: Path, resize: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """The same pieces of tf.data as ours and nothing else: no hashes, no statuses, no bad files, TensorFlow's own resizing."""
    import simplejpeg
    import tensorflow as tf

    def decode(path: bytes) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(Path(path.decode()).read_bytes())
        return pixels

    def load(path: Any) -> Any:
        image = tf.ensure_shape(tf.numpy_function(decode, [path], tf.uint8), (None, None, 3))
        return tf.image.resize(image, (SIDE_PX, SIDE_PX), antialias=True) if resize else image

    paths = [str(path) for path in sorted(photographs.glob("*.jpg"))]
    dataset = tf.data.Dataset.from_tensor_slices(paths).map(load, num_parallel_calls=usable_cores(), deterministic=True)
    dataset = (dataset.batch(BATCH) if resize else dataset.padded_batch(BATCH)).prefetch(1)
    return {}, _passing(dataset.as_numpy_iterator)


def measure(bench: Bench) -> Iterator[Line]:
    """The loader alone against the same pieces of tf.data without hashes, statuses and care, images a second.

    Batches of canvases, and resized on the host; images of one size, and all of different sizes.
    """
    for what, folder in (
        ("500 x 375 px", make_photographs(bench.folder / "photographs", bench.images)),
        ("all sizes different, 250 to 500 px", make_differing(bench.folder / "differing", bench.images)),
    ):
        for resize in (False, True):
            sides = {"ours": partial(ours, folder, resize), "stock": partial(stock, folder, resize)}
            figures, _ = measure_sides(sides, bench.turns)
            line = f"loader, {what}, {'resized' if resize else 'in canvases'}: stock tf.data"
            yield Line(line, "images/s", figures["ours"], figures["stock"], goal=0.8)


def _passing(batches: Callable[[], Iterable[Any]]) -> Callable[[], float]:
    """Gives what times a pass over all batches, after one that is not timed."""

    def turn() -> float:
        began = time.perf_counter()
        images = sum(len(batch) for batch in batches())
        return images / (time.perf_counter() - began)

    turn()
    return turn
