"""Reading and writing MatConvNet files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from pipeline.errors import WeightsError
from pipeline.network import layers
from pipeline.network.known_weights import wanted_layers
from pipeline.network.weights import read_file

from .matconvnet_writer import GENERATIONS, write_matconvnet
from .weight_files import make_weights, shrink_networks


@pytest.fixture(autouse=True)
def few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_networks(monkeypatch)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.mat"
    write_matconvnet(path, make_weights(), "new")
    return path


def save_changed(path: Path, change: Callable[[dict[str, Any]], None], *, compressed: bool = False) -> None:
    """Loads a file, changes it and saves it again."""
    data = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    change(data)
    savemat(path, data, do_compression=compressed)


def layer_struct(data: dict[str, Any], name: str) -> Any:
    return next(cell[0, 0] for cell in data["layers"].ravel() if cell[0, 0]["name"][0] == name)


def refusal(path: Path, network: str = "vgg19", classifier: bool = False) -> str:
    with pytest.raises(WeightsError) as caught:
        read_file(path, wanted_layers(network, classifier))
    message = str(caught.value)
    assert message.startswith(f"network.weights: {path} ")
    assert f"Expected weights of {network}: imagenet-vgg-verydeep-{network[3:]}.mat (" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_writing_then_reading_gives_the_same_arrays(tmp_path: Path, network: str, generation: str, padding: str) -> None:
    weights = make_weights(network, pool_padding=padding, mean_pixel=np.array([1.5, 2.25, 200.1]))
    path = tmp_path / "net.mat"
    write_matconvnet(path, weights, generation)
    stored = read_file(path, wanted_layers(network, classifier=True))
    assert list(stored.kernels) == list(weights.kernels)
    for name, kernel in weights.kernels.items():
        assert stored.kernels[name].dtype == stored.biases[name].dtype == np.float32
        assert stored.kernels[name].flags.c_contiguous
        np.testing.assert_array_equal(stored.kernels[name], kernel)
        np.testing.assert_array_equal(stored.biases[name], weights.biases[name])
    assert stored.mean_pixel.dtype == np.float64
    np.testing.assert_array_equal(stored.mean_pixel, [1.5, 2.25, 200.1])
    assert stored.pool_padding == padding
    assert list(tmp_path.iterdir()) == [path]


def test_published_positions_of_fields_are_kept_for_readers_that_use_them(tmp_path: Path) -> None:
    weights = make_weights()
    old, new = tmp_path / "old.mat", tmp_path / "new.mat"
    write_matconvnet(old, weights, "old")
    write_matconvnet(new, weights, "new")
    data = loadmat(old)
    assert data["layers"].shape == (1, 43)
    kernel, bias = data["layers"][0][2][0][0][0][0]
    np.testing.assert_array_equal(kernel, weights.kernels["conv1_2"])
    assert bias.shape == (1, 4)
    assert data["layers"][0][2][0][0][-2][0] == "conv1_2"
    assert data["normalization"][0][0][0].shape == (224, 224, 3)
    assert data["layers"][0][0][0, 0].dtype.names == ("weights", "pad", "type", "name", "stride")
    data = loadmat(new)
    kernel, bias = data["layers"][0][2][0][0][2][0]
    np.testing.assert_array_equal(kernel, weights.kernels["conv1_2"])
    assert bias.shape == (4, 1)
    assert isinstance(data["layers"][0][2][0][0][0][0], str)
    np.testing.assert_array_equal(data["meta"]["normalization"][0][0][0][0][2][0][0], layers.MEAN_PIXEL_RGB)
    assert data["layers"][0][4][0, 0]["pad"].tolist() == [[0, 1, 0, 1]]


def test_generations_say_in_words_which_they_are(tmp_path: Path) -> None:
    found = []
    for generation in GENERATIONS:
        write_matconvnet(tmp_path / "net.mat", make_weights(), generation)
        found.append(read_file(tmp_path / "net.mat", wanted_layers("vgg19", False)).layout)
    assert found == ["MatConvNet to beta16", "MatConvNet from beta17", "MatConvNet before beta11"]


def test_the_mean_of_a_constant_image_is_exactly_its_colour(tmp_path: Path) -> None:
    write_matconvnet(tmp_path / "net.mat", make_weights(), "old")
    stored = read_file(tmp_path / "net.mat", wanted_layers("vgg19", False))
    assert tuple(stored.mean_pixel) == layers.MEAN_PIXEL_RGB


def test_a_mean_image_that_is_not_constant_is_averaged(whole: Path) -> None:
    image = np.zeros((2, 2, 3))
    image[0, 0] = 100, 40, 20

    def change(data: dict[str, Any]) -> None:
        data["meta"][0, 0]["normalization"][0, 0]["averageImage"] = image

    save_changed(whole, change)
    np.testing.assert_array_equal(read_file(whole, wanted_layers("vgg19", False)).mean_pixel, [25, 10, 5])


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (1, 1, 3)])
def test_a_mean_stored_as_one_colour_in_single_precision_is_the_known_one(whole: Path, shape: tuple[int, ...]) -> None:
    def change(data: dict[str, Any]) -> None:
        data["meta"][0, 0]["normalization"][0, 0]["averageImage"] = np.float32(layers.MEAN_PIXEL_RGB).reshape(shape)

    save_changed(whole, change)
    assert tuple(read_file(whole, wanted_layers("vgg19", False)).mean_pixel) == layers.MEAN_PIXEL_RGB


def test_a_file_without_a_normalisation_has_the_known_mean(whole: Path) -> None:
    save_changed(whole, lambda data: data.pop("meta"))
    assert tuple(read_file(whole, wanted_layers("vgg19", False)).mean_pixel) == layers.MEAN_PIXEL_RGB


def test_layers_are_found_by_name_wherever_they_stand(whole: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["layers"] = data["layers"][:, ::-1]

    save_changed(whole, change)
    stored = read_file(whole, wanted_layers("vgg19", True))
    np.testing.assert_array_equal(stored.kernels["conv3_2"], make_weights().kernels["conv3_2"])


def test_trailing_axes_that_matlab_dropped_are_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layers, "CLASSES", 1)
    weights = make_weights()
    path = tmp_path / "net.mat"
    write_matconvnet(path, weights, "new")

    def change(data: dict[str, Any]) -> None:
        layer_struct(data, "fc8")["weights"][0, 0] = weights.kernels["fc8"][:, :, :, 0]

    save_changed(path, change)
    stored = read_file(path, wanted_layers("vgg19", True))
    np.testing.assert_array_equal(stored.kernels["fc8"], weights.kernels["fc8"])


def test_double_precision_becomes_float32(whole: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        pair = layer_struct(data, "conv1_1")["weights"]
        pair[0, 0] = pair[0, 0].astype(np.float64)

    save_changed(whole, change)
    kernel = read_file(whole, wanted_layers("vgg19", False)).kernels["conv1_1"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, make_weights().kernels["conv1_1"])


def test_a_file_of_the_other_network_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "net.mat"
    write_matconvnet(path, make_weights("vgg16"), "new")
    message = refusal(path, "vgg19")
    assert "is a vgg16 file, got its 13 convolutions" in message
    assert "set network=vgg16" in message
    assert "534,904,783 bytes, MD5 106118b7cf60435e6d8e04f6a6dc3657" in message
    write_matconvnet(path, make_weights("vgg19"), "old")
    assert "is a vgg19 file, got its 16 convolutions" in refusal(path, "vgg16")


def test_a_file_without_classifier_is_refused_only_where_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "net.mat"
    write_matconvnet(path, make_weights(classifier=False), "new")
    assert "has no classifier (a 'notop' file), got no layer fc6, fc7, fc8" in refusal(path, classifier=True)
    assert "fc6" not in read_file(path, wanted_layers("vgg19", False)).kernels


def test_other_networks_are_refused_by_what_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path) -> None:
    save_changed(whole, lambda data: layer_struct(data, "relu1_1").__setitem__("type", "lrn"))
    assert "is a VGG-F, VGG-M, VGG-S or AlexNet file" in refusal(whole)
    monkeypatch.setattr(layers, "CLASSES", 2622)
    write_matconvnet(whole, make_weights("vgg16"), "new")
    assert "is a VGG-Face file, got 2622 classes in fc8" in refusal(whole, "vgg16")
    path = tmp_path / "other.mat"
    savemat(path, {"net": {"layers": 1}})
    assert "as the original VGG-Face package, which is not read, got the variables net" in refusal(path)
    savemat(path, {"layers": 1, "params": 2, "vars": 3})
    assert "is a DagNN file (a network as a graph), which is not read, got the variables layers, params, vars" in refusal(path)
    savemat(path, {"layers": {"name": "a"}})
    assert "is a DagNN file" in refusal(path)
    savemat(path, {"layers": np.ones(3)})
    assert "an entry of 'layers' is not one struct" in refusal(path)
    savemat(path, {"x": 1})
    assert "is a MATLAB file, but no MatConvNet network, got the variables x" in refusal(path)


def change_layer(name: str, field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: layer_struct(data, name).__setitem__(field, value)


def change_kernel(name: str, value: Any, position: int = 0) -> Callable[[dict[str, Any]], None]:
    return lambda data: layer_struct(data, name)["weights"].__setitem__((0, position), value)


def add_convolution(data: dict[str, Any]) -> None:
    layer_struct(data, "relu1_1")["type"] = "conv"
    layer_struct(data, "relu1_1")["name"] = "conv1_3"


NAN = np.zeros((3, 3, 3, 4), np.float32)
NAN[0, 0, 0, :2] = np.nan, np.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_layer("conv3_4", "name", "conv9_9"), "lacks layer conv3_4"),
        (change_layer("relu3_4", "name", "conv3_4"), "two layers of the same name, got conv3_4"),
        (add_convolution, "is not a vgg19 file, got also layer conv1_3"),
        (change_layer("conv2_1", "pad", [[0]]), "has another pad in conv2_1 (expected 1), got [0.0]"),
        (change_layer("conv2_1", "stride", [[2, 1]]), "has another stride in conv2_1 (expected 1), got [2.0, 1.0]"),
        (change_layer("pool2", "pool", [[3, 3]]), "has another pool in pool2 (expected 2), got [3.0, 3.0]"),
        (change_layer("pool2", "pad", [[1, 1, 1, 1]]), "has another pad in pool2 (expected [0 1 0 1] or [0 0 0 0])"),
        (change_layer("pool2", "pad", [[0, 0, 0, 0]]), "pads some pooling layers and not others"),
        (change_layer("conv2_1", "weights", []), "another shape in conv2_1 (expected (3, 3, 4, 5)), got (0,)"),
        (change_kernel("conv1_1", np.zeros((4, 3, 3, 3))), "another shape in conv1_1 (expected (3, 3, 3, 4)), got (4, 3, 3, 3)"),
        (change_kernel("conv1_1", np.zeros(7), 1), "another number of biases in conv1_1 (expected 4), got 7"),
        (change_kernel("conv1_1", np.zeros((3, 3, 3, 4), "i4")), "has no floating-point values in conv1_1, got int32"),
        (change_kernel("conv1_1", NAN), "NaN or infinite values in conv1_1, got 2 of 108 values"),
        (change_kernel("conv1_1", np.full((3, 3, 3, 4), 1e300)), "NaN or infinite values in conv1_1, got 108 of 108 values"),
    ],
)
def test_a_file_with_a_wrong_layer_is_refused(whole: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    save_changed(whole, change)
    assert words in refusal(whole)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((2, 2, 4)), "an average image that is not RGB, got (2, 2, 4)"),
        (np.full((1, 1, 3), 300.0), "an average image outside 0..255"),
        ("text", "a normalisation that cannot be read"),
    ],
)
def test_a_file_with_a_wrong_mean_is_refused(whole: Path, image: Any, words: str) -> None:
    def change(data: dict[str, Any]) -> None:
        data["meta"][0, 0]["normalization"][0, 0]["averageImage"] = image

    save_changed(whole, change)
    assert words in refusal(whole)


def test_scipys_own_errors_become_refusals(monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("scipy.io.loadmat", fail)
    assert " bytes: no room. Expected" in refusal(whole)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read, got [Errno" in refusal(tmp_path / "gone.mat")
