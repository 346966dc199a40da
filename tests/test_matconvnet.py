"""MatConvNet's files: the three generations, files of other networks, and damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from pipeline.network import architectures, matconvnet

from .matconvnet_writer import write_matconvnet
from .weight_files import assert_same_weights, few_channels, make_weights, read, refusal

__all__ = ["few_channels"]
pytestmark = pytest.mark.usefixtures("few_channels")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has files be read in this process, which is quicker, and right where none makes SciPy crash."""
    monkeypatch.setattr(matconvnet, "read_in_child", lambda function, path, wanted: function(path, wanted))


@pytest.fixture
def whole(here: None, tmp_path: Path) -> Path:
    path = tmp_path / "whole.mat"
    write_matconvnet(path, make_weights(), "new")
    return path


def save_changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Loads a file, changes it and saves it again, without compression."""
    data = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    change(data)
    savemat(path, data)


def layer_struct(data: dict[str, Any], name: str) -> Any:
    return next(cell[0, 0] for cell in data["layers"].ravel() if cell[0, 0]["name"][0] == name)


@pytest.mark.parametrize(
    ("network", "generation", "padding"), [("vgg16", "old", "valid"), ("vgg19", "new", "same"), ("vgg19", "pre11", "valid")]
)
def test_writing_then_reading_gives_the_same_arrays(tmp_path: Path, network: str, generation: str, padding: str) -> None:
    weights = make_weights(network, pool_padding=padding, mean_pixel=np.array([1.5, 2.25, 200.125]))
    path = tmp_path / "net.mat"
    write_matconvnet(path, weights, generation)
    stored = read(path, network, classifier=True)
    assert_same_weights(stored, weights)
    assert stored.pool_padding == padding


RGB = np.array(architectures.MEAN_PIXEL_RGB)
HALF = np.zeros((2, 2, 3))
HALF[0, 0] = 100, 40, 20


@pytest.mark.parametrize(
    ("image", "mean"),
    [
        (np.broadcast_to(RGB, (224, 224, 3)), RGB),
        (HALF, [25, 10, 5]),
        (RGB.astype(np.float32).reshape(3, 1), RGB),  # single precision differs a little
        (None, RGB),
    ],
)
def test_the_mean_is_that_of_the_image_or_the_known_one(whole: Path, image: Any, mean: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        if image is None:
            del data["meta"]
        else:
            data["meta"][0, 0]["normalization"][0, 0]["averageImage"] = image

    save_changed(whole, change)
    np.testing.assert_array_equal(read(whole).mean_pixel, mean)


def test_layers_are_found_by_name_wherever_they_stand_and_in_double_precision(whole: Path) -> None:
    save_changed(whole, lambda data: data.update(layers=data["layers"][:, ::-1]))
    save_changed(whole, change_kernel("conv1_1", make_weights().kernels["conv1_1"].astype(np.float64)))
    assert_same_weights(read(whole), make_weights(classifier=False))


@pytest.mark.usefixtures("here")
def test_files_of_other_networks_are_refused_by_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "net.mat"
    write_matconvnet(path, make_weights("vgg16"), "new")
    message = refusal(path, "vgg19")
    assert "is a vgg16 file, got its 13 convolutions" in message
    assert "set network=vgg16" in message
    assert "534,904,783 bytes, MD5 106118b7cf60435e6d8e04f6a6dc3657" in message
    write_matconvnet(path, make_weights(classifier=False), "new")
    assert "has no classifier (a 'notop' file), got layers conv1_1" in refusal(path, classifier=True)
    assert "fc6" not in read(path).kernels
    for content, words in (
        ({"layers": 1, "params": 2, "vars": 3}, "is a DagNN file (a network as a graph), which is not read, got the variables"),
        ({"layers": np.ones(3)}, "no MatConvNet network with structs in a cell array 'layers', got the variables layers"),
        ({"x": 1}, "is a MATLAB file, but no MatConvNet network with structs in a cell array 'layers', got the variables x"),
    ):
        savemat(path, content)
        assert words in refusal(path)


def change_layer(name: str, field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: layer_struct(data, name).__setitem__(field, value)


def change_kernel(name: str, value: Any, position: int = 0) -> Callable[[dict[str, Any]], None]:
    return lambda data: layer_struct(data, name)["weights"].__setitem__((0, position), value)


def change_mean(image: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["meta"][0, 0]["normalization"][0, 0].__setitem__("averageImage", image)


def add_convolution(data: dict[str, Any]) -> None:
    layer_struct(data, "relu1_1")["type"] = "conv"
    layer_struct(data, "relu1_1")["name"] = "conv1_3"


NAN = np.zeros((3, 3, 3, 4), np.float32)
NAN[0, 0, 0, :2] = np.nan, np.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_layer("conv3_4", "name", "conv9_9"), "lacks layer conv3_4"),
        (change_layer("conv1_1", "name", "conv1_1\n\x1b]0;gone\x07" + "n" * 100_000), r"conv1_1\n\x1b]0;gone\x07nnn"),
        (add_convolution, "is not a vgg19 file, got also layer conv1_3"),
        (change_kernel("conv1_1", np.zeros((4, 3, 3, 3))), "another shape in conv1_1 (expected (3, 3, 3, 4)), got (4, 3, 3, 3)"),
        (change_kernel("conv1_1", np.zeros(7), 1), "another number of biases in conv1_1 (expected 4), got 7"),
        (change_layer("conv2_1", "dilate", 2.0), "has another dilate in conv2_1 (expected 1), got [2.0]"),
        (change_layer("conv5_1", "pad", [[0, 0, 0, 0]]), "has another pad in conv5_1 (expected 1), got [0, 0, 0, 0]"),
        (change_layer("pool4", "stride", [[1, 1]]), "has another stride in pool4 (expected 2), got [1, 1]"),
        (change_layer("pool5", "pad", [[0, 0, 0, 0]]), "has other pads in its pooling layers (expected [0 1 0 1]"),
        (change_kernel("conv1_1", NAN), "NaN or infinite values in conv1_1, got 2 of 108 values"),
        (change_mean(np.zeros((2, 2, 4))), "an average image that is not RGB in 0..255, got (2, 2, 4)"),
        (change_mean("text"), "is a MATLAB 5 file, but truncated or damaged"),
    ],
)
def test_a_file_with_a_wrong_layer_or_mean_is_refused(whole: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    save_changed(whole, change)
    assert words in refusal(whole)
