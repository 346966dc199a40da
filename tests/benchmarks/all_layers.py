"""All 36 layers of one large photograph at its own size: ours stores them; the reference script only evaluates them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .photographs import WIDE_PX, make_photographs
from .rows import Bench, Line, interleave, row
from .sides import Finished, run_ours, run_program

LEFT_OUT = "the reference takes about ten minutes and was left out: --only reference or --slow measures it"
NOTE = "ours stores all features, gzip; the reference script evaluates the network anew for each layer and stores nothing"


def _ours(bench: Bench) -> Finished:
    photographs = make_photographs(bench.folder / "wide", 1, WIDE_PX)
    output = bench.folder / "all layers"
    finished = run_ours(output, f"data.dir={photographs}", "layers=all", "data.size=null")
    # Some gigabytes each.
    shutil.rmtree(output)
    return finished


def _lines(ours: list[Finished], rival: list[Finished], notes: str) -> Iterator[Line]:
    what = "all 36 layers of one 2560 x 1440 px photograph"
    seconds = [run.seconds for run in ours], [run.seconds for run in rival]
    memory = [run.peak_bytes / 1e9 for run in ours], [run.peak_bytes / 1e9 for run in rival]
    goal = 1.0 if rival else None
    yield Line(f"{what}, start to exit: reference script", "s", *seconds, more_is_better=False, goal=goal, notes=notes)
    yield Line(f"{what}, peak memory: reference script", "GB", *memory, more_is_better=False, goal=goal, notes=notes)


@row("all-layers", "all 36 layers of one 2560 x 1440 px photograph, stored: seconds and peak memory")
def measure(bench: Bench) -> Iterator[Line]:
    """Ours alone."""
    runs: list[Finished] = []

    def turn() -> float:
        runs.append(_ours(bench))
        return runs[-1].seconds

    interleave({"ours": turn}, bench.turns)
    yield from _lines(runs, [], LEFT_OUT)


@row("reference", "the same against the reference script, one turn of each", asked_for_only=True)
def measure_reference(bench: Bench) -> Iterator[Line]:
    """One turn: the rival alone takes about ten minutes."""
    photograph = make_photographs(bench.folder / "wide", 1, WIDE_PX) / "000000.jpg"
    ours = _ours(bench)
    yield from _lines([ours], [run_program("tests.benchmarks.all_layers", photograph)], f"{NOTE}; one turn")


def evaluate_as_the_reference_does(photograph: Path) -> None:
    """Evaluates the network from the input to each of the 36 layers, one after the other, as a TensorFlow 1 session does."""
    import tensorflow as tf
    from PIL import Image

    from pipeline.network.architectures import VggTable, layer_table

    from .rivals import seeded_weights

    weights = seeded_weights()
    table = layer_table("vgg19")
    with tf.Graph().as_default():
        images = tf.compat.v1.placeholder(tf.float32, (1, WIDE_PX[1], WIDE_PX[0], 3))
        tensors, values = {}, images
        for layer in table[: VggTable("vgg19").resolve(["all"])[-1].network_index + 1]:
            if layer.kind == "conv":
                values = tf.nn.conv2d(values, tf.constant(weights.kernels[layer.name]), 1, "SAME")
                values = tf.nn.bias_add(values, weights.biases[layer.name])
            else:
                values = tf.nn.relu(values) if layer.kind == "relu" else tf.nn.max_pool2d(values, 2, 2, "SAME")
            tensors[layer.name] = values
        pixels = np.asarray(Image.open(photograph).convert("RGB"), np.float32) - weights.mean_pixel.astype(np.float32)
        with tf.compat.v1.Session() as session:
            for place, (name, tensor) in enumerate(tensors.items(), start=1):
                found = session.run(tensor, {images: pixels[None]})
                print(f"[{place}/{len(tensors)}] {name} {found.shape}", file=sys.stderr)


if __name__ == "__main__":
    evaluate_as_the_reference_does(Path(sys.argv[1]))
