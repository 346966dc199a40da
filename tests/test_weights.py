"""The door to the weights: words, paths, downloads, messages."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import OptionError
from pipeline.network import known_weights, layers, weights
from pipeline.network.known_weights import KnownFile, wanted_layers
from pipeline.network.weights import file_format, random_weights

from .weight_files import MAT, NOTOP, WHOLE, Door, save_keras, save_mat, shrink_networks


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Door:
    shrink_networks(monkeypatch)
    return Door(tmp_path)


def test_random_weights_are_he_normal_and_without_biases() -> None:
    loaded = random_weights(wanted_layers("vgg19", classifier=False), seed=7)
    assert len(loaded.kernels) == len(loaded.biases) == 16
    assert (
        sum(kernel.size for kernel in loaded.kernels.values()) + sum(bias.size for bias in loaded.biases.values()) == 20_024_384
    )
    for name, kernel in loaded.kernels.items():
        assert kernel.dtype == loaded.biases[name].dtype == np.float32
        assert not loaded.biases[name].any()
        deviation = float(np.sqrt(2 / (9 * kernel.shape[2])))
        assert kernel.std() == pytest.approx(deviation, rel=0.05 if name == "conv1_1" else 0.01)
        assert abs(kernel.mean()) < 0.1 * deviation
    assert loaded.mean_pixel.dtype == np.float64
    assert tuple(loaded.mean_pixel) == layers.MEAN_PIXEL_RGB
    assert (loaded.network, loaded.pool_padding, loaded.recognised) == ("vgg19", "same", "not known")
    assert loaded.source == "random (He normal, seed 7)"


def test_random_convolutions_do_not_depend_on_the_classifier(door: Door) -> None:
    without, with_classifier, other = door("random"), door("random", classifier=True), door("random", seed=1)
    assert list(with_classifier.kernels)[-3:] == ["fc6", "fc7", "fc8"]
    for name, kernel in without.kernels.items():
        np.testing.assert_array_equal(kernel, with_classifier.kernels[name])
    assert (without.kernels["conv1_1"] != other.kernels["conv1_1"]).all()
    assert len({without.sha256, with_classifier.sha256, other.sha256}) == 3


def test_a_negative_seed_is_refused(door: Door) -> None:
    with pytest.raises(OptionError, match=r"^seed: negative, got -1\. Expected an integer of at least 0\."):
        door("random", seed=-1)


@pytest.mark.parametrize("classifier", [False, True])
@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_the_digest_is_that_of_the_numbers_whatever_the_file(door: Door, tmp_path: Path, network: str, classifier: bool) -> None:
    plain = door("random", network, classifier)
    found = []
    for generation in ("old", "new", "pre11"):
        save_mat(tmp_path / f"{generation}.mat", plain, generation)
        found.append(door(tmp_path / f"{generation}.mat", network, classifier))
    save_keras(tmp_path / "weights.h5", plain)
    found.append(door(tmp_path / "weights.h5", network, classifier))
    assert {loaded.sha256 for loaded in found} == {plain.sha256}
    assert [loaded.source for loaded in found] == [
        "old.mat (MatConvNet to beta16)",
        "new.mat (MatConvNet from beta17)",
        "pre11.mat (MatConvNet before beta11)",
        "weights.h5 (Keras 2 weights)",
    ]


def test_the_digest_changes_with_every_array(door: Door) -> None:
    plain = door("random")
    names = list(plain.kernels)
    original = weights.content_digest(plain.kernels, plain.biases, plain.mean_pixel, names)
    assert original == plain.sha256
    for place in (plain.kernels["conv3_2"], plain.biases["conv5_4"], plain.mean_pixel):
        flat = place.reshape(-1)
        before, flat[-1] = flat[-1], flat[-1] + 1
        assert weights.content_digest(plain.kernels, plain.biases, plain.mean_pixel, names) != original
        flat[-1] = before


def test_the_digest_does_not_depend_on_memory_order(door: Door) -> None:
    plain = door("random")
    turned = {name: np.asfortranarray(kernel) for name, kernel in plain.kernels.items()}
    assert weights.content_digest(turned, plain.biases, plain.mean_pixel, list(turned)) == plain.sha256


def test_imagenet_takes_a_local_copy_of_any_format(door: Door) -> None:
    plain = door("random", classifier=True)
    save_keras(door.folder / WHOLE, plain)
    assert door("imagenet").source == f"{WHOLE} (Keras 2 weights)"
    save_keras(door.folder / NOTOP, door("random"))
    assert door("imagenet").source == f"{NOTOP} (Keras 2 weights)"
    assert door("imagenet", classifier=True).source == f"{WHOLE} (Keras 2 weights)"
    save_mat(door.folder / MAT, plain)
    assert door("imagenet").source == door("matconvnet").source == f"{MAT} (MatConvNet from beta17)"


def test_a_named_file_with_an_unknown_checksum_is_read_with_a_warning(door: Door) -> None:
    save_keras(door.folder / NOTOP, door("random"))
    md5 = hashlib.md5((door.folder / NOTOP).read_bytes()).hexdigest()
    door("imagenet")
    (line,) = (line for line in door.lines if "warning" in line)
    assert f"has MD5 {md5}, which is not that of a published {NOTOP} (80,134,624 bytes, MD5 253f8cb5" in line
    (door.folder / NOTOP).rename(door.folder / "mine.h5")
    door.lines.clear()
    door(door.folder / "mine.h5")
    assert not any("warning" in line for line in door.lines)


def publish(monkeypatch: pytest.MonkeyPatch, path: Path, family: str, classifier: bool) -> KnownFile:
    """Makes a file the published one of its family."""
    content = path.read_bytes()
    known = KnownFile("vgg19", family, classifier, f"vgg19/{path.name}", len(content), hashlib.md5(content).hexdigest())
    others = [old for old in known_weights.KNOWN_FILES if old.name != path.name]
    monkeypatch.setattr(known_weights, "KNOWN_FILES", (known, *others))
    return known


def test_imagenet_takes_keras_own_download_if_it_is_whole(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    path = door.keras_cache / NOTOP
    save_keras(path, door("random"))
    message = door.refusal("imagenet")
    assert (
        f"weights: {path} is passed over, since it is not the published file (MD5 253f8cb515780f3b799900260a226db6)" in door.lines
    )
    assert message.startswith(f"network.weights: cannot download http://127.0.0.1:9/keras/vgg19/{NOTOP}, got ")
    publish(monkeypatch, path, "keras", False)
    assert door("imagenet").sha256 == door("random").sha256
    assert not any("warning" in line for line in door.lines)


def test_a_download_of_keras_that_cannot_be_read_is_passed_over(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    save_keras(door.keras_cache / NOTOP, door("random"))
    monkeypatch.setattr(weights, "_md5", fail)
    door.refusal("imagenet")
    assert any("is passed over, since it cannot be read: [Errno 13] Permission denied" in line for line in door.lines)


def test_keras_home_is_honoured(door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "home" / "models" / NOTOP
    save_keras(path, door("random"))
    publish(monkeypatch, path, "keras", False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    assert door("imagenet", keras_cache=None).source == f"{NOTOP} (Keras 2 weights)"
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    (tmp_path / "home").rename(tmp_path / "user" / ".keras")
    assert door("imagenet", keras_cache=None).source == f"{NOTOP} (Keras 2 weights)"


@pytest.mark.parametrize(
    ("source", "classifier", "name", "size"),
    [
        ("imagenet", False, f"keras/vgg19/{NOTOP}", "80,134,624 bytes, MD5 253f8cb515780f3b799900260a226db6"),
        ("imagenet", True, f"keras/vgg19/{WHOLE}", "574,710,816 bytes, MD5 cbe5617147190e668d6c5d5026f83318"),
        ("matconvnet", False, f"matconvnet/{MAT}", "534,904,783 bytes, MD5 106118b7cf60435e6d8e04f6a6dc3657"),
    ],
)
def test_without_network_and_weights_the_message_tells_all_that_helps(
    door: Door, source: str, classifier: bool, name: str, size: str
) -> None:
    message = door.refusal(source, classifier=classifier)
    assert message.startswith(f"network.weights: cannot download http://127.0.0.1:9/{name}, got ")
    assert size in message
    assert f"Put that file into {door.folder} by hand" in message
    assert "network.weights=random" in message
    assert list(door.folder.iterdir()) == []


def test_published_files_are_asked_for_at_their_published_addresses() -> None:
    addresses = [known.address(known_weights.BASE_URLS) for known in known_weights.KNOWN_FILES]
    assert addresses[:3] == [
        "https://www.vlfeat.org/matconvnet/models/imagenet-vgg-verydeep-19.mat",
        f"https://storage.googleapis.com/tensorflow/keras-applications/vgg19/{NOTOP}",
        f"https://storage.googleapis.com/tensorflow/keras-applications/vgg19/{WHOLE}",
    ]
    assert [address.replace("16", "19") for address in addresses[3:]] == addresses[:3]


def test_what_is_missing_is_downloaded_once(door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served = tmp_path / NOTOP
    save_keras(served, door("random"))
    known = publish(monkeypatch, served, "keras", False)
    asked = []

    def fetch(what: KnownFile, address: str, target: Path, *, progress: bool) -> None:
        asked.append((what, address, progress))
        target.parent.mkdir()
        served.rename(target)

    monkeypatch.setattr(weights, "download_file", fetch)
    assert door("imagenet").sha256 == door("imagenet").sha256 == door("random").sha256
    assert asked == [(known, f"http://127.0.0.1:9/keras/vgg19/{NOTOP}", False)]
    assert f"weights: downloading {known.words} to {door.folder}" in door.lines


def test_the_extension_does_not_matter(door: Door, tmp_path: Path) -> None:
    plain = door("random")
    save_keras(tmp_path / "really-keras.mat", plain)
    save_mat(tmp_path / "really-matlab.h5", plain)
    assert door(tmp_path / "really-keras.mat").sha256 == door(tmp_path / "really-matlab.h5").sha256 == plain.sha256
    assert (file_format(tmp_path / "really-keras.mat"), file_format(tmp_path / "really-matlab.h5")) == (
        weights.HDF5,
        weights.MAT5,
    )


def test_a_path_that_leads_nowhere_is_refused_with_the_words_that_are_known(door: Door, tmp_path: Path) -> None:
    message = door.refusal("imagnet")
    assert message.startswith("network.weights: imagnet does not exist, got 'imagnet'. Expected weights of vgg19: ")
    assert message.endswith("or one of the words: imagenet.")
    assert "is a folder, not a file" in door.refusal(tmp_path)


def test_a_path_through_a_folder_that_may_not_be_searched_is_refused(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", fail)
    assert "a.mat cannot be reached ([Errno 13] Permission denied), got 'secret/a.mat'" in door.refusal("secret/a.mat")


def test_a_file_that_cannot_be_opened_is_refused(door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.mat").touch()
    monkeypatch.setattr(weights, "file_format", fail)
    assert "a.mat cannot be read, got [Errno 13] Permission denied" in door.refusal(tmp_path / "a.mat")


def test_a_file_of_full_size_is_read_from_every_format(tmp_path: Path) -> None:
    door = Door(tmp_path)
    plain = door("random")
    save_keras(tmp_path / "net.h5", plain)
    save_mat(tmp_path / "net.mat", plain, "old")
    assert door(tmp_path / "net.h5").sha256 == plain.sha256
    assert door(tmp_path / "net.mat").sha256 == plain.sha256
    assert door(tmp_path / "net.mat").kernels["conv5_4"].shape == (3, 3, 512, 512)


def test_importing_the_door_loads_no_heavy_library() -> None:
    code = (
        "import pipeline.network.weights, sys; print(sorted({'tensorflow', 'keras', 'scipy', 'h5py', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
