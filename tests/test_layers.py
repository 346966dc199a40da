from __future__ import annotations

import math

import pytest

from pipeline.errors import OptionError
from pipeline.network.architectures import VggTable, foreign_names, layer_table, multiply_adds, output_shapes, smallest_side_px


def names(network: str, *words: str) -> list[str]:
    return [layer.name for layer in VggTable(network).resolve(words)]


def test_vgg19_has_the_43_layers_of_its_file_in_order() -> None:
    table = layer_table("vgg19")
    assert [layer.network_index for layer in table] == list(range(43))
    by_index = {layer.network_index: layer.name for layer in table}
    # Positions as published for the MatConvNet file and for torchvision's features.
    expected = {0: "conv1_1", 1: "relu1_1", 4: "pool1", 9: "pool2", 10: "conv3_1", 18: "pool3", 19: "conv4_1", 27: "pool4"}
    expected |= {28: "conv5_1", 35: "relu5_4", 36: "pool5", 37: "fc6", 38: "relu6", 39: "fc7", 41: "fc8", 42: "prob"}
    assert {index: by_index[index] for index in expected} == expected


def test_networks_have_the_published_number_of_parameters() -> None:
    for network, whole, convolutions in (
        ("vgg19", 143_667_240, 20_024_384),
        ("vgg16", 138_357_544, 14_714_688),
        ("vgg11", 132_863_336, 9_220_480),
        ("vgg13", 133_047_848, 9_404_992),
    ):
        sizes = {
            layer.name: math.prod(layer.kernel_shape) + layer.channels for layer in layer_table(network) if layer.kernel_shape
        }
        assert sum(sizes.values()) == whole
        assert sum(size for name, size in sizes.items() if name.startswith("conv")) == convolutions


def test_names_patterns_and_blocks_mix_keep_network_order_and_drop_doubles() -> None:
    assert names("vgg19", "relu4_1", "block1", "relu?_1", "conv1_1") == [
        *("conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    ]


def test_all_means_the_36_layers_of_the_convolutional_part() -> None:
    assert len(names("vgg19", "all")) == 36
    assert names("vgg19", "all")[-1] == "relu5_4"
    assert len(names("vgg16", "all")) == 30
    assert len(names("vgg19", "*")) == 43
    assert names("vgg19", "softmax") == ["prob"]


def test_names_of_keras_and_torchvision_are_understood() -> None:
    for theirs, ours in (
        (["block4_conv1", "block5_pool"], ["relu4_1", "pool5"]),
        (["fc1", "fc2", "predictions"], ["relu6", "relu7", "prob"]),
        (["block?_conv1"], ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"]),
        (["features.0", "features.20", "features.36"], ["conv1_1", "relu4_1", "pool5"]),
        (["classifier.0", "classifier.4", "classifier.6"], ["fc6", "relu7", "fc8"]),
    ):
        assert names("vgg19", *theirs) == ours
        assert list(foreign_names("vgg19", theirs).values()) == ours
        assert foreign_names("vgg19", [*ours, "all", "block4", "*", "softmax"]) == {}


def test_sets_of_layers_have_names_where_a_network_has_all_of_them() -> None:
    assert names("vgg16", "lpips") == ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]
    assert names("vgg11", "style", "pool5") == ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1", "pool5"]
    with pytest.raises(OptionError, match=r"no layer of vgg13 matches, got 'lpips'.* style of a network that has all of it"):
        names("vgg13", "lpips")


def test_an_unknown_layer_names_the_nearest_ones() -> None:
    with pytest.raises(OptionError, match=r"layers: no layer of vgg16 matches, got 'relu4_4'. Expected one of: .*relu4_3"):
        VggTable("vgg16").resolve(["relu4_4"])
    with pytest.raises(OptionError, match=r"got 'zz\*'. Expected one of: conv1_1"):
        VggTable("vgg19").resolve(["zz*"])


def test_odd_sides_are_rounded_as_the_padding_says() -> None:
    # The chain published for 326 x 458 with rounding up; rounding down parts from it at pool2.
    up, down = output_shapes("vgg19", (326, 458), "same"), output_shapes("vgg19", (326, 458), "valid")
    assert [up[f"pool{n}"][:2] for n in range(1, 5)] == [(163, 229), (82, 115), (41, 58), (21, 29)]
    assert [down[f"pool{n}"][:2] for n in range(1, 3)] == [(163, 229), (81, 114)]


def test_a_layer_that_does_not_fit_the_input_says_what_would() -> None:
    layers = VggTable("vgg19").resolve(["fc6"])
    assert smallest_side_px("vgg19", layers[0], "same") == 193
    assert smallest_side_px("vgg19", layers[0], "valid") == 224
    assert VggTable("vgg19", "same").plan(layers, (224, 256))[0].shape == (1, 2, 4096)
    with pytest.raises(OptionError, match=r"too small for layer fc6, got 128 x 128 px. Expected sides of at least 193 px"):
        VggTable("vgg19", "same").plan(layers, (128, 128))


def test_the_cost_to_relu4_1_is_the_published_one() -> None:
    shapes = output_shapes("vgg19", (224, 224), "same")
    until = [layer for layer in layer_table("vgg19") if layer.network_index <= 20]
    assert sum(2e-9 * multiply_adds(layer, shapes[layer.name]) for layer in until) == pytest.approx(24.2, abs=0.1)
