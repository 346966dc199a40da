"""Weight files for tests, of networks with few channels, and ``load_weights`` without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.errors import WeightsError
from pipeline.network import architectures, known_weights, weights
from pipeline.network.known_weights import Wanted, Weights, files_for
from pipeline.network.weights import content_digest, load_weights, random_weights, read_file

Arrays = dict[str, tuple[Any, Any]]

NOTOP = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
WHOLE = "vgg19_weights_tf_dim_ordering_tf_kernels.h5"
MAT = "imagenet-vgg-verydeep-19.mat"


def shrink_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives all networks few channels, so that a whole file has some kilobytes."""
    monkeypatch.setattr(architectures, "BLOCK_CHANNELS", (4, 5, 6, 7, 8))
    monkeypatch.setattr(architectures, "FC_CHANNELS", 9)
    monkeypatch.setattr(architectures, "CLASSES", 10)


def make_weights(network: str = "vgg19", classifier: bool = True, **changes: Any) -> Weights:
    """Gives random weights whose biases are 0, 1, 2 ..., so that an exchanged one shows."""
    plain = random_weights(Wanted(network, classifier), seed=1)
    biases = {name: np.arange(bias.size, dtype=np.float32) for name, bias in plain.biases.items()}
    return replace(plain, biases=biases, **changes)


def keras_name(name: str) -> str:
    classifier = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    return classifier.get(name) or f"block{name[4]}_conv{name[6]}"


def keras_arrays(stored: Weights) -> Arrays:
    """Gives Keras' name -> (kernel, bias) as Keras has them: conv1_1 in B, G, R; the classifier's kernels as matrices."""
    arrays = {}
    for name, kernel in stored.kernels.items():
        if name == "conv1_1":
            kernel = kernel[:, :, ::-1]
        if name.startswith("fc"):
            kernel = kernel.reshape(-1, kernel.shape[3])
        arrays[keras_name(name)] = (kernel, stored.biases[name])
    return arrays


def write_keras_2(path: Path, arrays: Arrays) -> None:
    with h5py.File(path, "w") as file:
        for name, (kernel, bias) in arrays.items():
            file[f"{name}/{name}/kernel:0"], file[f"{name}/{name}/bias:0"] = kernel, bias


def save_keras(path: Path, stored: Weights) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_keras_2(path, keras_arrays(stored))


@pytest.fixture
def few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_networks(monkeypatch)


def read(path: Path, network: str = "vgg19", classifier: bool = False) -> Weights:
    return read_file(path, Wanted(network, classifier))


def refusal(path: Path, network: str = "vgg19", classifier: bool = False) -> str:
    """Gives the line for a file that cannot be used."""
    with pytest.raises(WeightsError) as caught:
        read(path, network, classifier)
    message = str(caught.value)
    assert message.startswith(f"network.weights: {path} ")
    assert f"Expected weights of {network}: {files_for(network, classifier)[0].words}" in message
    assert message.isprintable()
    assert len(message) < 3000
    return message


def assert_same_weights(found: Weights, expected: Weights) -> None:
    arrays = [*found.kernels.values(), *found.biases.values()]
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays)
    assert found.mean_pixel.dtype == np.float64
    # Of all names, shapes and numbers, in order.
    assert content_digest(found) == content_digest(expected)


class Loader:
    """``load_weights`` with every folder inside one temporary folder, and no server behind the addresses."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.keras_home = root / "weights", root / "keras"
        self.lines: list[str] = []
        monkeypatch.setattr(weights, "FOLDER", self.folder)
        monkeypatch.setenv("KERAS_HOME", str(self.keras_home))
        monkeypatch.setenv("TORCH_HOME", str(root / "torch"))
        for family in known_weights.BASE_URLS:
            monkeypatch.setitem(known_weights.BASE_URLS, family, f"http://127.0.0.1:9/{family}")

    def __call__(self, source: str | Path, network: str = "vgg19", classifier: bool = False, seed: int = 0) -> Weights:
        given = {"seed": seed, "classifier": classifier, "progress": False, "log": self.lines.append}
        return load_weights(network, str(source), **given)

    def refusal(self, source: str | Path, network: str = "vgg19", classifier: bool = False) -> str:
        with pytest.raises(WeightsError) as caught:
            self(source, network, classifier)
        assert "\n" not in str(caught.value)
        return str(caught.value)
