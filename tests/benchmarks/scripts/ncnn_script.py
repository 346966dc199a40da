"""ncnn, as a program: Pillow in threads, one extractor a core, h5py without compression; what a user would write for speed.

``python -m tests.benchmarks.scripts.ncnn_script MODEL_FOLDER PHOTOGRAPHS OUTPUT LAYER``
"""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.machine import usable_cores

from ..rivals import MEAN_PIXEL, SIDE_PX, ncnn_call


def main(model: str, photographs: str, output: str, layer: str) -> None:
    """Writes ``features`` (n, c, h, w), the files in the order of their names."""
    call = ncnn_call(Path(model), [layer], 1)
    mean = np.array(MEAN_PIXEL, np.float32)
    paths = sorted(Path(photographs).glob("*.jpg"))

    def extract(path: Path) -> NDArray[np.float32]:
        with Image.open(path) as picture:
            pixels = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
        return call((np.asarray(pixels, np.float32) - mean).transpose(2, 0, 1))[0]

    cores = usable_cores()
    with ThreadPoolExecutor(cores) as pool, h5py.File(Path(output), "w") as file:
        waiting = deque(pool.submit(extract, path) for path in paths[: 4 * cores])
        for row in range(len(paths)):
            features = waiting.popleft().result()
            if row == 0:
                file.create_dataset("features", (len(paths), *features.shape), "float32", chunks=(1, *features.shape))
            file["features"][row] = features
            waiting.extend(pool.submit(extract, path) for path in paths[row + 4 * cores :][:1])


if __name__ == "__main__":
    main(*sys.argv[1:])
