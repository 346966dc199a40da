"""Reading Keras' weight files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.network import architectures

from .weight_files import (
    Arrays,
    assert_same_weights,
    few_channels,
    keras_arrays,
    keras_name,
    make_weights,
    read,
    refusal,
    write_keras_2,
)

__all__ = ["few_channels"]
pytestmark = pytest.mark.usefixtures("few_channels")


def write_keras_1(path: Path, arrays: Arrays) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("block1_pool")
        for name, (kernel, bias) in arrays.items():
            file[f"{name}/{name}_W_1:0"], file[f"{name}/{name}_b_1:0"] = kernel, bias


@pytest.mark.parametrize("write", [write_keras_1, write_keras_2])
@pytest.mark.parametrize(("network", "in_file"), [("vgg16", True), ("vgg19", False)])
def test_every_layout_gives_the_same_arrays(
    tmp_path: Path, network: str, write: Callable[[Path, Arrays], None], in_file: bool
) -> None:
    path = tmp_path / "weights.h5"
    write(path, keras_arrays(make_weights(network, in_file)))
    if in_file:
        assert_same_weights(read(path, network, classifier=True), make_weights(network))
    else:
        assert "has no classifier (a 'notop' file), got layers conv1_1" in refusal(path, network, classifier=True)
    stored = read(path, network)
    assert_same_weights(stored, make_weights(network, classifier=False))
    assert (stored.pool_padding, stored.source) == ("same", "Keras")


def test_a_model_that_keras_itself_saves_is_read(tmp_path: Path) -> None:
    import keras

    arrays = keras_arrays(make_weights())
    values = image = keras.layers.Input((224, 224, 3))
    for layer in architectures.layer_table("vgg19"):
        if layer.kind == "conv":
            values = keras.layers.Conv2D(layer.channels, 3, padding="same", name=keras_name(layer.name))(values)
        elif layer.kind == "pool":
            values = keras.layers.MaxPooling2D(name=layer.name)(values)
        elif layer.kind == "fc":
            values = keras.layers.Flatten()(values) if layer.name == "fc6" else values
            values = keras.layers.Dense(layer.channels, name=keras_name(layer.name))(values)
    model = keras.Model(image, values, name="vgg19")
    for name, pair in arrays.items():
        model.get_layer(name).set_weights(pair)
    keras.Sequential([keras.layers.Input((224, 224, 3)), model]).save(tmp_path / "a.h5")
    assert_same_weights(read(tmp_path / "a.h5", classifier=True), make_weights())
    model.save_weights(tmp_path / "a.weights.h5")
    assert "Give what Keras 3 has saved with network=keras network.model=VGG19." in refusal(tmp_path / "a.weights.h5")


def test_hdf5_files_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file["features/relu4_1"] = np.zeros(3)
    assert "is an HDF5 file, but no Keras weights of a VGG as Keras 1 and 2 save them, got the root features" in refusal(path)
    with h5py.File(path, "w"):
        pass
    assert "got the root (empty)" in refusal(path)


def put(file: h5py.File, **options: Any) -> None:
    """Puts another kernel of conv1_1."""
    del file["block1_conv1/block1_conv1/kernel:0"]
    file.create_dataset("block1_conv1/block1_conv1/kernel:0", **options)


def test_compressed_arrays_are_read_links_not_followed_and_what_is_not_stored_is_refused(tmp_path: Path) -> None:
    path, kernel = tmp_path / "weights.h5", make_weights(classifier=False).kernels["conv1_1"][:, :, ::-1]
    write_keras_2(path, keras_arrays(make_weights(classifier=False)))
    with h5py.File(path, "a") as file:
        put(file, data=kernel, compression="gzip", shuffle=True, fletcher32=True, chunks=(2, 2, 2, 3))
        file["optimizer_weights/Adam/m/block1_conv1/kernel:0"] = kernel
        file["model_weights"] = h5py.ExternalLink("other.h5", "/secret")
        file["block1_conv2/extra"] = h5py.SoftLink("/block1_conv1")
        file["block1_conv1/again"] = file["block1_conv1"]
    assert_same_weights(read(path), make_weights(classifier=False))
    with h5py.File(path, "a") as file:
        put(file, shape=(3, 3, 3, 4), dtype="f4")
    assert "declares an array in conv1_1 that is not stored, got 0 bytes" in refusal(path)
    with h5py.File(path, "a") as file:
        del file["block1_conv1"]
        file["block1_conv1"] = h5py.ExternalLink("/etc/passwd", "/")
    assert "lacks layer conv1_1, got layers conv1_2" in refusal(path)
