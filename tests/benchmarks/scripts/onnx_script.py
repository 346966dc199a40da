"""ONNX Runtime: VGG-19 exported and cut at the layer, Pillow in a thread pool, h5py."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..rivals import SIDE_PX, best_batch, onnx_session, seeded_weights, write_onnx_model
from ..sides import usable_cores


def prepare(
    photographs: str, output: str, layer: str, compression: str | None, level: int | None = None
) -> tuple[dict[str, Any], Callable[[], float]]:
    """Gives what is timed, and the batch size.

    Args:
        photographs: Folder of JPEGs.
        output: HDF5 file to write; its dataset ``features`` (n, c, h, w) has the files in the order of their names.
        layer: ``reluN_M``.
        compression: ``gzip`` or None.
        level: Of gzip.
    """
    weights = seeded_weights()
    with tempfile.TemporaryDirectory() as folder:
        session = onnx_session(write_onnx_model(weights, [layer], Path(folder, "vgg19.onnx")), usable_cores())
    mean = weights.mean_pixel.astype(np.float32)
    batch = best_batch(
        lambda images: session.run(None, {"images": images}),
        np.random.default_rng(0).random((16, 3, SIDE_PX, SIDE_PX), np.float32),
    )
    paths = sorted(Path(photographs).glob("*.jpg"))
    pool = ThreadPoolExecutor(usable_cores())

    def read(path: Path) -> NDArray[np.float32]:
        with Image.open(path) as picture:
            pixels = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
        return (np.asarray(pixels, np.float32) - mean).transpose(2, 0, 1)

    def batches() -> Iterator[NDArray[np.float32]]:
        # Two batches ahead of the network, and no more in memory.
        waiting = deque(pool.submit(read, path) for path in paths[: 3 * batch])
        for first in range(0, len(paths), batch):
            yield np.stack([waiting.popleft().result() for _ in paths[first : first + batch]])
            following = first + 3 * batch
            waiting.extend(pool.submit(read, path) for path in paths[following : following + batch])

    def extract() -> float:
        began = time.perf_counter()
        with h5py.File(Path(output), "w") as file:
            written = 0
            for images in batches():
                (features,) = session.run(None, {"images": images})
                if not written:
                    shape = (len(paths), *features.shape[1:])
                    file.create_dataset(
                        "features", shape, "float32", chunks=(1, *shape[1:]), compression=compression, compression_opts=level
                    )
                file["features"][written : written + len(features)] = features
                written += len(features)
        return time.perf_counter() - began

    extract()
    return {"batch": batch}, extract
