"""Times the network with direct and with Winograd convolutions, side by side, and prints medians and their ratio.

    python -m tests.benchmarks.convolution [--size 224] [--repeats 9]

Both take one image a call and all cores. They run in turns, a few images each, so that what else the machine does falls on
both alike; where it does much, the CPU time (of all threads) tells more than the wall clock. The first call holds tracing,
compiling and, for Winograd, the transform of the kernels; a shape compiled for one depth serves the next. Weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.network.layers import resolve_layers
from pipeline.network.start import load_tensorflow
from pipeline.network.weights import load_weights

# Each side finds the caches and the allocator as the other left them; in a job it finds them as it left them itself.
IMAGES_A_TURN = 4
DEPTHS = (("relu2_1",), ("relu3_1",), ("relu4_1",), ("relu5_4",), ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"))


def build(weights: Any, layers: Sequence[str], size: int, convolution: str) -> Callable[[Any], Any]:
    """Gives a function that computes these layers of an image and gives the last."""
    from pipeline.network.vgg import Network

    settings = {"pooling": "max", "kernel_order": "hwio", "device": "/CPU:0", "size_px": (size, size)}
    network = Network(weights, resolve_layers("vgg19", layers), convolution=convolution, **settings)
    return lambda image: [np.asarray(values) for _, values in network(image)][-1]


def measure(run: Callable[[], Any]) -> tuple[float, float]:
    """Gives wall and CPU seconds of one image."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(IMAGES_A_TURN):
        run()
    return (time.perf_counter() - wall) / IMAGES_A_TURN, (time.process_time() - cpu) / IMAGES_A_TURN


def main() -> None:
    """Prints a line for each set of layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="side of the input, px")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each side")
    arguments = parser.parse_args()
    load_tensorflow()
    weights = load_weights("vgg19", "random", seed=0, classifier=False, progress=False, log=print)
    image = np.random.default_rng(0).uniform(-120, 130, (1, arguments.size, arguments.size, 3)).astype(np.float32)
    print("milliseconds an image   wall: direct  winograd  ratio  CPU: direct  winograd  first call: direct  winograd difference")
    for layers in DEPTHS:
        runs, first, results = [], [], []
        for convolution in ("direct", "winograd"):
            started = time.perf_counter()
            runs.append(build(weights, layers, arguments.size, convolution))
            results.append(runs[-1](image))
            first.append(time.perf_counter() - started)
        turns = [[measure(lambda run=run: run(image)) for run in runs] for _ in range(arguments.repeats)]
        wall, cpu = ([1000 * statistics.median(turn[side][clock] for turn in turns) for side in (0, 1)] for clock in (0, 1))
        ratio = statistics.median(turn[0][0] / turn[1][0] for turn in turns)
        difference = np.linalg.norm(results[0] - results[1]) / np.linalg.norm(results[0])
        name = layers[0] if len(layers) == 1 else f"{len(layers)} layers to {layers[-1]}"
        print(
            f"{name:24s}{wall[0]:14.1f}{wall[1]:10.1f}{ratio:7.2f}{cpu[0]:14.1f}{cpu[1]:10.1f}"
            f"{first[0]:18.2f} s{first[1]:8.2f} s{difference:12.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
