"""Two classes of pictures, their features, and a linear probe on them: with tf.data, and with PyTorch where it is installed.

``python -m tests.examples.linear_probe folder`` makes everything in the folder: stripes against dots, features by untrained
weights, and the accuracy on pictures that were held out.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import Run, open_run

PICTURES = 160
SIDE_PX = 48
LAYER = "relu2_1"
EPOCHS = 10


def make_pictures(folder: Path) -> None:
    """Draws stripes and dots of any direction, period and phase, in noise, into a folder a class."""
    random = np.random.default_rng(0)
    across, down = np.meshgrid(np.arange(SIDE_PX), np.arange(SIDE_PX))
    for number in range(PICTURES):
        name = ("stripes", "dots")[number % 2]
        angle, period = random.uniform(0, np.pi), random.uniform(5, 9)
        turned = np.exp(1j * angle) * (across + 1j * down)
        waves = [np.cos(2 * np.pi / period * axis + random.uniform(0, 2 * np.pi)) for axis in (turned.real, turned.imag)]
        # Of the same variance.
        pattern = waves[0] if name == "stripes" else (waves[0] + waves[1]) / 2**0.5
        grey = 128 + 40 * pattern[..., None] + random.normal(0, 15, (SIDE_PX, SIDE_PX, 3))
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number:03d}.png")


def probe_with_tensorflow(run: Run, held_out: Any) -> float:
    """Trains on all rows that are not held out; gives the accuracy on those that are."""
    import keras

    train = run.tf_dataset(LAYER, label="label", where=~held_out, shuffle=True, batch_size=16)
    test = run.tf_dataset(LAYER, label="label", where=held_out, batch_size=16)
    keras.utils.set_random_seed(0)
    pooling, normalization = keras.layers.GlobalAveragePooling2D(), keras.layers.BatchNormalization(momentum=0.9)
    probe = keras.Sequential([pooling, normalization, keras.layers.Dense(len(train.class_names))])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    probe.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    probe.fit(train, epochs=EPOCHS, verbose=0)
    return float(probe.evaluate(test, verbose=0)[1])


def probe_with_pytorch(run: Run, held_out: Any) -> float:
    """The same with PyTorch."""
    import torch
    from torch.utils.data import DataLoader

    train = run.torch_dataset(LAYER, label="label", where=~held_out, shuffle=True, batch_size=16)
    test = run.torch_dataset(LAYER, label="label", where=held_out)
    torch.manual_seed(0)
    probe = torch.nn.Sequential(torch.nn.LazyBatchNorm1d(), torch.nn.LazyLinear(len(train.classes)))
    optimizer = None
    for _ in range(EPOCHS):
        for features, labels in DataLoader(train, batch_size=None):
            loss = torch.nn.functional.cross_entropy(probe(features.mean((1, 2))), labels)
            optimizer = optimizer or torch.optim.Adam(probe.parameters(), 0.01)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    probe.eval()
    right = 0
    with torch.no_grad():
        for features, labels in DataLoader(test, batch_size=16, num_workers=0):
            right += int((probe(features.mean((1, 2))).argmax(1) == labels).sum())
    return right / len(test)


def main(folder: Path) -> None:
    """Makes pictures and features, and prints the accuracy of each probe."""
    make_pictures(folder / "pictures")
    options = [f"data.dir={folder / 'pictures'}", f"data.size={SIDE_PX}", f"output.dir={folder}", "name=features"]
    subprocess.run([sys.executable, "-m", "pipeline.run", *options, f"layers=[{LAYER}]", "network.weights=random"], check=True)
    run = open_run(folder / "features")
    # Every fourth picture of each class; pictures of a folder follow one another.
    held_out = np.arange(len(run)) % 4 == 0
    print(f"tf.data: accuracy {probe_with_tensorflow(run, held_out):.2f} on {held_out.sum()} pictures that were held out")
    if importlib.util.find_spec("torch"):
        print(f"PyTorch: accuracy {probe_with_pytorch(run, held_out):.2f} on {held_out.sum()} pictures that were held out")
    else:
        print("PyTorch: not installed (pip install torch)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
