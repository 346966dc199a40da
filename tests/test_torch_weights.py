"""The VGGs of torchvision and timm: files in their real formats, read and run, against torchvision's definition in float64."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline import extract_features
from pipeline.network import architectures, known_weights
from pipeline.network.weights import TORCH, file_format
from pipeline.plot import input_picture

from . import oracle
from .conftest import THIN_CHANNELS
from .test_weights import Bomb, load, published_kernel
from .weight_files import Loader, assert_same_weights, few_channels, read, refusal

__all__ = ["few_channels", "load"]

State = dict[str, NDArray[Any]]

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
TIMM = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}


def features(network: str) -> Iterator[tuple[str, int, str]]:
    """Gives kind, block and the name here of each layer in torchvision's ``features``."""
    for block, count in enumerate(oracle.BLOCKS[network], start=1):
        for position in range(1, count + 1):
            yield "conv", block, f"conv{block}_{position}"
            yield "relu", block, f"relu{block}_{position}"
        yield "pool", block, f"pool{block}"


def make_state(network: str, classifier: bool = True) -> State:
    """Gives a ``state_dict`` as torchvision's, of the widths that the networks have now."""
    random, inputs = np.random.default_rng(3), 3
    state: State = {}
    for place, (kind, block, _) in enumerate(features(network)):
        if kind == "conv":
            outputs = architectures.BLOCK_CHANNELS[block - 1]
            state[f"features.{place}.weight"] = random.normal(0, np.sqrt(2 / 9 / inputs), (outputs, inputs, 3, 3))
            state[f"features.{place}.bias"] = random.normal(0, 0.1, outputs)
            inputs = outputs
    inputs *= architectures.FC6_SIDE**2
    for place, outputs in ((0, architectures.FC_CHANNELS), (3, architectures.FC_CHANNELS), (6, architectures.CLASSES)):
        if classifier:
            state[f"classifier.{place}.weight"] = random.normal(0, np.sqrt(2 / inputs), (outputs, inputs))
            state[f"classifier.{place}.bias"] = random.normal(0, 0.1, outputs)
        inputs = outputs
    return {name: array.astype(np.float32) for name, array in state.items()}


def as_timm(state: State) -> State:
    """Gives the same under timm's names, where the classifier's first two layers are convolutions."""
    side, renamed = architectures.FC6_SIDE, {}
    for name, array in state.items():
        prefix, _, part = name.rpartition(".")
        if (prefix, part) == ("classifier.0", "weight"):
            array = array.reshape(len(array), -1, side, side)
        elif (prefix, part) == ("classifier.3", "weight"):
            array = array[:, :, None, None]
        renamed[f"{TIMM.get(prefix, prefix)}.{part}"] = array
    return renamed


def save_safetensors(path: Path, state: State, kind: str = "F32") -> None:
    """Writes the format as its README has it: length, header padded to 8 bytes, arrays one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, place = [], 0
    encode = {"F32": lambda x: x, "F16": lambda x: x.astype("<f2"), "BF16": lambda x: (x.view("<u4") >> 16).astype("<u2")}[kind]
    for name, array in state.items():
        data = encode(array).tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [place, place + len(data)]}
        parts.append(data)
        place += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def forward(network: str, state: State, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Gives each layer of torchvision's model, (h, w, c) under the name it has here, for one (h, w, 3) image."""
    kernels, biases = {}, {}
    for place, (kind, _, name) in enumerate(features(network)):
        if kind == "conv":
            kernels[name] = state[f"features.{place}.weight"].transpose(2, 3, 1, 0)
            biases[name] = state[f"features.{place}.bias"]
    for number, place, side in ((6, 0, architectures.FC6_SIDE), (7, 3, 1), (8, 6, 1)):
        # The map is flattened channel by channel.
        weight = state[f"classifier.{place}.weight"]
        kernels[f"fc{number}"] = weight.reshape(len(weight), -1, side, side).transpose(2, 3, 1, 0)
        biases[f"fc{number}"] = state[f"classifier.{place}.bias"]
    return oracle.forward((pixels / 255 - MEAN) / DEVIATION, kernels, biases, network, round_up=False)


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the networks thin layers, and a classifier for images of 64 px."""
    for name, value in (("BLOCK_CHANNELS", THIN_CHANNELS), ("FC6_SIDE", 2), ("FC_CHANNELS", 40), ("CLASSES", 11)):
        monkeypatch.setattr(architectures, name, value)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize(
    ("network", "backend", "size", "write"),
    [
        ("vgg11", "winograd", None, lambda state: state),
        ("vgg16", "tensorflow", [64, 70], as_timm),
        ("vgg19", "winograd", [64, 70], lambda state: state),
    ],
)
def test_a_run_gives_what_torchvisions_definition_gives(
    tmp_path: Path, network: str, backend: str, size: Any, write: Callable[[State], State]
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 10, 3), np.uint8).repeat(8, 0).repeat(7, 1)[:64]
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/a.png")
    state = make_state(network)
    save_safetensors(tmp_path / "any name", write(state))
    options: Any = {"network": network, "backend": backend, "size": size, "weights": tmp_path / "any name", "quiet": True}
    with extract_features(tmp_path / "images", "*", output_dir=tmp_path / "outputs", **options) as run:
        expected = forward(network, state, pixels)
        assert list(run.layers) == list(expected)
        # The last pooling has an odd side, which PyTorch rounds down: 4 x 4 becomes 2 x 2, and 4 x 4.4 too.
        errors = {name: oracle.relative_error(run[name][0], values) for name, values in expected.items()}
        assert {name: run[name][0].shape for name in run.layers} == {name: values.shape for name, values in expected.items()}
        assert max(errors.values()) < 1e-5, errors
        np.testing.assert_allclose(run.attributes["mean_pixel"], 255 * MEAN, rtol=1e-12)
        np.testing.assert_allclose(run.attributes["scale_pixel"], 255 * DEVIATION, rtol=1e-12)
        assert run.attributes["preprocess"].endswith("minus mean_pixel, over scale_pixel")
        assert run.attributes["weights"] == "any name (PyTorch); conv1_1 says: not known"
        np.testing.assert_array_equal(input_picture(run, 0), pixels)


# Reading.


@pytest.mark.usefixtures("few_channels")
@pytest.mark.parametrize("network", oracle.BLOCKS)
def test_both_ways_of_naming_and_all_precisions_give_the_same_arrays(tmp_path: Path, network: str) -> None:
    state = make_state(network)
    for classifier in (False, True):
        found = []
        for name, written in (("torchvision", state), ("timm", as_timm(state))):
            save_safetensors(tmp_path / name, written)
            found.append(read(tmp_path / name, network, classifier))
        assert (found[0].pool_padding, found[0].network) == ("valid", network)
        assert list(found[0].kernels) == list(known_weights.Wanted(network, classifier).shapes)
        assert_same_weights(*found)
    place = {name: place for place, (_, _, name) in enumerate(features(network))}["conv2_1"]
    kernel = state[f"features.{place}.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found[0].kernels["conv2_1"], kernel)
    np.testing.assert_array_equal(found[0].kernels["fc6"][1, 2, 3], state["classifier.0.weight"].reshape(-1, 8, 7, 7)[:, 3, 1, 2])
    for kind, tolerance in (("F16", 1e-3), ("BF16", 1e-2)):
        save_safetensors(tmp_path / kind, state, kind)
        shorter = read(tmp_path / kind, network, True)
        for name, kernel in found[0].kernels.items():
            assert 0 < oracle.relative_error(shorter.kernels[name], kernel.astype(np.float64)) < tolerance


@pytest.mark.usefixtures("few_channels")
def test_what_is_not_the_network_wanted_is_refused(tmp_path: Path) -> None:
    state = make_state("vgg13")
    for change, words in (
        (lambda: None, "is a vgg13 file, got its 10 convolutions"),
        (lambda: state.pop("features.5.bias"), "lacks layer conv2_1, "),
        (lambda: state.update({"features.1.running_mean": np.zeros(4, "f4")}), "is a VGG with batch normalisation"),
        (state.clear, "has no weights of a VGG as torchvision or timm name them, got no tensors"),
    ):
        change()
        save_safetensors(tmp_path / "a", state)
        assert words in refusal(tmp_path / "a")


# By their names.


def test_torchvision_is_timms_file_in_the_folder_and_imagenet_where_there_is_no_other(load: Loader) -> None:
    for network in ("vgg19", "vgg11"):
        save_safetensors(load.folder / f"{network}.tv_in1k.safetensors", as_timm(make_state(network)))
    assert load("torchvision").source == "vgg19.tv_in1k.safetensors (PyTorch)"
    assert load("imagenet", "vgg11", classifier=True).sha256 == load("torchvision", "vgg11", classifier=True).sha256
    assert "cannot download http://127.0.0.1:9/keras/" in load.refusal("imagenet")


def test_without_pytorch_a_line_says_where_the_same_weights_are(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    message = load.refusal("torchvision", "vgg16")
    assert f"{load.folder / 'vgg16-397923af.pth'} is read with PyTorch, got no PyTorch here (" in message
    assert "vgg16-397923af.pth (SHA-256 397923af...). Install it (`pip install torch`), or give the same weights" in message
    assert message.endswith("safetensors: https://huggingface.co/timm/vgg16.tv_in1k/resolve/main/model.safetensors.")
    # As the first bytes of either form say.
    for content in (b"PK\3\4" + bytes(26) + b"archive/data.pkl", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
        (load.folder.parent / "mine.pth").write_bytes(content)
        assert "mine.pth is read with PyTorch" in load.refusal(load.folder.parent / "mine.pth")


def test_torchs_own_download_is_taken_if_it_is_whole(load: Loader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    path = tmp_path / "torch/hub/checkpoints/vgg19-dcbb9e9d.pth"
    save_safetensors(path, make_state("vgg19"))
    assert "cannot download http://127.0.0.1:9/torchvision/vgg19-dcbb9e9d.pth" in load.refusal("torchvision")
    assert f"{path} is passed over, since it is not the published vgg19-dcbb9e9d.pth (574,673,361" in load.lines[-2]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    known = known_weights.KnownFile("vgg19", "torchvision", True, path.name, None, digest)
    monkeypatch.setattr(known_weights, "KNOWN_FILES", (known,))
    assert load("torchvision", classifier=True).sha256 == load(path, classifier=True).sha256


def test_the_original_training_converted_keeps_its_own_input(load: Loader, tmp_path: Path) -> None:
    state = make_state("vgg19")
    state["features.0.weight"] = np.ascontiguousarray(published_kernel()[:, :, ::-1].transpose(3, 2, 0, 1))
    # As jcjohnson/pytorch-vgg counts them.
    for old, new in (("classifier.0", "classifier.1"), ("classifier.3", "classifier.4")):
        for part in ("weight", "bias"):
            state[f"{new}.{part}"] = state.pop(f"{old}.{part}")
    save_safetensors(tmp_path / "vgg19-d01eb7cb", state)
    loaded = load(tmp_path / "vgg19-d01eb7cb", classifier=True)
    assert loaded.recognised == "VGG-19 of Simonyan & Zisserman (Caffe), RGB, HWIO"
    np.testing.assert_array_equal(loaded.kernels["conv1_1"], published_kernel())
    assert (tuple(loaded.mean_pixel), loaded.scale_pixel, loaded.pool_padding) == (architectures.MEAN_PIXEL_RGB, None, "same")


# Against PyTorch itself, where it is installed.


@pytest.mark.parametrize(("network", "form"), [("vgg11", "zip"), ("vgg16", "pickle")])
def test_files_and_numbers_are_those_of_torchvision(tmp_path: Path, network: str, form: str) -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    from torchvision.transforms._presets import ImageClassification

    torch.manual_seed(0)
    model = models.get_model(network, weights=None).eval()
    path = tmp_path / "model"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    assert file_format(path) == TORCH
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (224, 224, 3), np.uint8))
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images/a.png")
    modules = {name: model.features[place] for place, (_, _, name) in enumerate(features(network))}
    modules |= {name: model.classifier[place] for place, name in architectures.TORCHVISION_CLASSIFIER.items()}
    expected: State = {}
    for name, module in modules.items():
        # Copied at once: the ReLUs compute in place.
        module.register_forward_hook(lambda _, given, found, name=name: expected.update({name: found[0].numpy().copy()}))
    with torch.no_grad():
        model(ImageClassification(crop_size=224, resize_size=224)(picture)[None])
    with extract_features(
        tmp_path / "images", [*expected], network=network, weights=path, output_dir=tmp_path, quiet=True
    ) as run:
        assert [*run.layers] == [*expected]
        for name, values in expected.items():
            right = values.transpose(1, 2, 0) if values.ndim == 3 else values[None, None]
            assert oracle.relative_error(run[name][0], right.astype(np.float64)) < 1e-5, name


def test_nothing_in_a_pth_file_is_run(load: Loader, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"features.0.weight": Bomb(tmp_path / "ran")}, tmp_path / "a.pth")
    assert "a.pth holds what is no tensor, or is damaged; nothing in it is run" in load.refusal(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()
