"""All 36 layers of one large photograph at its own size: ours stores them; the reference script only evaluates them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .photographs import WIDE_PX, make_photographs
from .sides import run_ours, run_program
from .table import Bench, Line

NOTE = (
    "ours stores all features, gzip; the reference script evaluates the network anew for each layer and stores nothing; one turn"
)


def measure(bench: Bench) -> Iterator[Line]:
    """All 36 layers of one 2560 x 1440 px photograph, stored, against the reference script: seconds and peak memory.

    One turn: the rival alone takes about ten minutes.
    """
    photographs = make_photographs(bench.folder / "wide", 1, WIDE_PX)
    ours = run_ours(bench.folder / "all layers", f"data.dir={photographs}", "layers=all", "data.size=null")
    rival = run_program("tests.benchmarks.all_layers", photographs / "000000.jpg")
    what, settings = "all 36 layers of one 2560 x 1440 px photograph", {"more_is_better": False, "goal": 1.0, "notes": NOTE}
    yield Line(f"{what}, start to exit: reference script", "s", [ours.seconds], [rival.seconds], **settings)
    memory = [ours.peak_bytes / 1e9], [rival.peak_bytes / 1e9]
    yield Line(f"{what}, peak memory: reference script", "GB", *memory, **settings)


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
