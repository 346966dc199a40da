"""The loader alone: JPEGs decoded, or decoded and resized to one size, into batches; no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .photographs import make_differing, make_photographs
from .rows import Bench, Line, interleave, row
from .sides import Side, usable_cores

SIDE_PX = 224
BATCH = 8


def ours(photographs: str, resize: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """The program's loader, and its antialiased resizing where that is asked for."""
    from pipeline.images.folder import list_folder
    from pipeline.images.loader import ImageLoader
    from pipeline.images.resize import ResizeSpec, resize_on_host

    manifest = list_folder(Path(photographs))
    spec = ResizeSpec((SIDE_PX, SIDE_PX), "squash", "bilinear")
    mean_pixel = np.array([123.68, 116.779, 103.939], np.float32)

    # Made once, as each rival's dataset is.
    loader = ImageLoader(
        manifest,
        np.arange(len(manifest)),
        batch_size=BATCH,
        workers=usable_cores(),
        prepare=partial(resize_on_host, spec=spec, mean_pixel=mean_pixel) if resize else None,
        size_px=spec.size_px if resize else None,
    )

    def batches() -> Iterator[Any]:
        for batch in loader:
            assert not any(status.error for status in batch.statuses)
            yield batch.images

    return {}, _passing(batches, len(manifest))


def stock(photographs: str, resize: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """The same pieces of tf.data as ours and nothing else: no hashes, no statuses, no bad files, TensorFlow's own resizing."""
    import simplejpeg
    import tensorflow as tf

    def decode(path: bytes) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(Path(path.decode()).read_bytes())
        return pixels

    def load(path: Any) -> Any:
        image = tf.ensure_shape(tf.numpy_function(decode, [path], tf.uint8), (None, None, 3))
        return tf.image.resize(image, (SIDE_PX, SIDE_PX), antialias=True) if resize else image

    paths = [str(path) for path in sorted(Path(photographs).glob("*.jpg"))]
    dataset = tf.data.Dataset.from_tensor_slices(paths).map(load, num_parallel_calls=usable_cores(), deterministic=True)
    dataset = (dataset.batch(BATCH) if resize else dataset.padded_batch(BATCH)).prefetch(1)
    return {}, _passing(dataset.as_numpy_iterator, len(paths))


@row("loader", "the loader alone against the same pieces of tf.data without hashes, statuses and care, images a second")
def measure_loader(bench: Bench) -> Iterator[Line]:
    """Batches of canvases, and resized on the host; images of one size, and all of different sizes."""
    for what, folder in (
        ("500 x 375 px", make_photographs(bench.folder / "photographs", bench.images)),
        ("all sizes different, 250 to 500 px", make_differing(bench.folder / "differing", bench.images)),
    ):
        for resize in (False, True):
            with ExitStack() as stack:
                arguments = {"photographs": str(folder), "resize": resize}
                sides = {name: stack.enter_context(Side(f"reading:{name}", **arguments)) for name in ("ours", "stock")}
                figures = interleave({name: side.turn for name, side in sides.items()}, bench.turns)
            line = f"loader, {what}, {'resized' if resize else 'in canvases'}: stock tf.data"
            yield Line(line, "images/s", figures["ours"], figures["stock"], goal=0.8)


def _passing(batches: Callable[[], Iterable[Any]], images: int) -> Callable[[], float]:
    """Gives what times a pass over all batches, after one that is not timed."""

    def turn() -> float:
        began = time.perf_counter()
        seen = 0
        for batch in batches():
            seen += len(batch)
        assert seen >= images, (seen, images)
        return images / (time.perf_counter() - began)

    turn()
    return turn
