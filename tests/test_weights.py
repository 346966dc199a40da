"""Weights by words and paths: local copies, downloads, the cache, what a file is told to be, and messages."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.network import known_weights, weights
from pipeline.network.known_weights import KnownFile, Wanted, recognise_training
from pipeline.network.weights import random_weights

from .matconvnet_writer import write_matconvnet
from .weight_files import MAT, NOTOP, WHOLE, Loader, save_keras, shrink_networks


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    shrink_networks(monkeypatch)
    return Loader(tmp_path, monkeypatch)


def test_the_digest_is_that_of_the_numbers_whatever_the_file(load: Loader, tmp_path: Path) -> None:
    plain = load("random", classifier=True)
    found = []
    for generation in ("old", "new", "pre11"):
        write_matconvnet(tmp_path / f"{generation}.mat", plain, generation)
        found.append(load(tmp_path / f"{generation}.mat", classifier=True))
    save_keras(tmp_path / "weights.h5", plain)
    found.append(load(tmp_path / "weights.h5", classifier=True))
    assert {loaded.sha256 for loaded in found} == {plain.sha256}
    assert [loaded.source for loaded in found[2:]] == ["pre11.mat (MatConvNet)", "weights.h5 (Keras)"]
    for array in (plain.kernels["conv3_2"], plain.biases["conv5_3"], plain.mean_pixel):
        array.reshape(-1)[-1] += 1
        assert weights.content_digest(plain) != plain.sha256
        array.reshape(-1)[-1] -= 1


def test_imagenet_takes_a_local_copy_of_any_format(load: Loader) -> None:
    plain = load("random", classifier=True)
    save_keras(load.folder / WHOLE, plain)
    assert load("imagenet").source == f"{WHOLE} (Keras)"
    save_keras(load.folder / NOTOP, load("random"))
    assert load("imagenet").source == f"{NOTOP} (Keras)"
    assert load("imagenet", classifier=True).source == f"{WHOLE} (Keras)"
    write_matconvnet(load.folder / MAT, plain)
    assert load("imagenet").source == load("matconvnet").source == f"{MAT} (MatConvNet)"


def publish(monkeypatch: pytest.MonkeyPatch, path: Path) -> KnownFile:
    """Makes a file the published one of Keras."""
    known = KnownFile("vgg19", "keras", False, f"vgg19/{path.name}", None, hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(known_weights, "KNOWN_FILES", (known,))
    return known


def test_imagenet_takes_keras_own_download_if_it_is_whole(load: Loader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = load.keras_home / "models" / NOTOP
    save_keras(path, load("random"))
    assert f"cannot download http://127.0.0.1:9/keras/vgg19/{NOTOP} to " in load.refusal("imagenet")
    assert f"weights: {path} is passed over, since it is not the published {NOTOP} (80,134,624 bytes" in "".join(load.lines)
    publish(monkeypatch, path)
    assert load("imagenet").sha256 == load("random").sha256


def test_what_is_missing_is_downloaded_once(load: Loader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served = tmp_path / NOTOP
    save_keras(served, load("random"))
    known = publish(monkeypatch, served)
    asked = []

    def fetch(what: KnownFile, target: Path, *, progress: bool) -> None:
        asked.append((what, what.address, progress))
        target.parent.mkdir()
        served.rename(target)

    monkeypatch.setattr(weights, "download_file", fetch)
    assert load("imagenet").sha256 == load("imagenet").sha256 == load("random").sha256
    assert asked == [(known, f"http://127.0.0.1:9/keras/vgg19/{NOTOP}", False)]
    assert f"weights: downloading {known.words} to {load.folder}" in load.lines


def test_what_is_no_file_is_refused_and_not_waited_for(load: Loader, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.h5")
    for path in (tmp_path, tmp_path / "none", tmp_path / "weights.h5", Path("/dev/zero")):
        assert f"{path} is no file, got a folder, a pipe or nothing. Expected weights of vgg19: " in load.refusal(path)


# What a file is.


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def archive(member: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr(member, content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda bomb: bomb, "a file that begins with b'\\x80\\x02cposix"),
        (lambda bomb: archive("model.weights.h5", bomb), "a file that begins with b'PK"),
        (lambda bomb: b"<!DOCTYPE html><title>404</title>", "a file that begins with b'<!DOCTYPE html><titl', of 33 bytes"),
        (lambda bomb: b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(392), "a MATLAB v7.3 file of 520 bytes"),
    ],
)
def test_files_of_other_formats_are_told_by_content_and_nothing_in_them_is_run(
    load: Loader, tmp_path: Path, make: Callable[[bytes], bytes], words: str
) -> None:
    path, mark = tmp_path / "a.h5", tmp_path / "ran"
    bomb = pickle.dumps(Bomb(mark), protocol=2)
    path.write_bytes(make(bomb))
    message = load.refusal(path)
    assert message.startswith(f"network.weights: {path} is not a weights file that can be read, got {words}")
    assert f"{MAT} (534,904,783 bytes, MD5 106118b7cf60435e6d8e04f6a6dc3657) or {NOTOP} (80,134,624 bytes" in message
    assert ("'-v7')" in message) == ("v7.3" in words)
    assert ("network=keras network.model=FILE" in message) == ("v7.3" not in words)
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists()


# Which training it is.

# Output channel 0 of conv1_1, [row][column] = R, G, B. Source: print of the .mat of 2015 in the blog Soul Joy Hub, 2017-06-25.
VGG19_FILTER = [
    [[0.39416704, 0.46418372, 0.34119523], [0.37740308, 0.41810837, 0.33999205], [-0.04594866, -0.04806903, -0.04484424]],
    [[0.2671299, 0.30511212, 0.23215917], [0.09986369, 0.10385381, 0.08978214], [-0.34100872, -0.37314063, -0.30331427]],
    [[-0.07573577, -0.07646758, -0.07260918], [-0.28034249, -0.31070709, -0.246675], [-0.41602272, -0.46453714, -0.33683276]],
]


def published_kernel() -> Any:
    kernel = random_weights(Wanted("vgg19", False), seed=0).kernels["conv1_1"].copy()
    kernel[:, :, :, 0] = VGG19_FILTER
    return kernel


def test_trainings_are_recognised_by_their_first_values(load: Loader) -> None:
    kernel = published_kernel()
    caffe = "VGG-19 of Simonyan & Zisserman (Caffe)"
    assert recognise_training(kernel[:, :, ::-1].transpose(1, 0, 2, 3)) == f"{caffe}, BGR, WHIO"
    assert recognise_training(kernel.astype(np.float16)) == f"{caffe}, RGB, HWIO"
    # Source: prints of torchvision's vgg16, by notebooks that load it.
    kernel[:, :, 0, 0] = [[-0.5537, 0.1427, 0.5290], [-0.5831, 0.3566, 0.7657], [-0.6902, -0.0480, 0.4841]]
    kernel[2, :, 2, 0] = 0.0
    assert recognise_training(kernel) == "torchvision's VGG-16, RGB, HWIO"
    kernel[2, 2, 0, 0] += 0.01
    assert recognise_training(kernel) == "not known"


def test_a_file_in_another_order_is_used_as_stored_with_a_warning(load: Loader, tmp_path: Path) -> None:
    plain, kernel = load("random"), published_kernel()
    found = {"RGB, HWIO": kernel, "BGR, HWIO": kernel[:, :, ::-1], "RGB, WHIO": kernel.transpose(1, 0, 2, 3)}
    for order, stored in found.items():
        write_matconvnet(tmp_path / "net.mat", replace(plain, kernels={**plain.kernels, "conv1_1": stored}))
        loaded = load(tmp_path / "net.mat")
        assert loaded.recognised == f"VGG-19 of Simonyan & Zisserman (Caffe), {order}"
        np.testing.assert_array_equal(loaded.kernels["conv1_1"], stored)
        is_warned = f"conv1_1 is that of {loaded.recognised}. In such a file RGB and HWIO are expected" in load.lines[-1]
        assert is_warned == (order != "RGB, HWIO")
