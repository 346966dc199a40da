"""Telling files and trainings apart by content."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.network.known_weights import recognise_training, wanted_layers
from pipeline.network.weights import Weights, random_weights

from .weight_files import MAT, NOTOP, Door, save_mat, shrink_networks

# Output channel 0 of conv1_1, [row][column] = R, G, B. Source: print of the .mat of 2015 in the blog Soul Joy Hub, 2017-06-25.
VGG19_FILTER = [
    [[0.39416704, 0.46418372, 0.34119523], [0.37740308, 0.41810837, 0.33999205], [-0.04594866, -0.04806903, -0.04484424]],
    [[0.2671299, 0.30511212, 0.23215917], [0.09986369, 0.10385381, 0.08978214], [-0.34100872, -0.37314063, -0.30331427]],
    [[-0.07573577, -0.07646758, -0.07260918], [-0.28034249, -0.31070709, -0.246675], [-0.41602272, -0.46453714, -0.33683276]],
]


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Door:
    shrink_networks(monkeypatch)
    return Door(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file of 0 bytes"),
        (b"\x93NUMPY\x01\x00", "a NumPy array of 8 bytes"),
        (pickle.dumps({"conv1_1": 1}), "a Python pickle of"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch file of"),
        (b"<!DOCTYPE html><title>404</title>", "a web page, not the file itself of"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself of"),
        (b"\x1f\x8b\x08\x00", "a gzip archive of"),
        (b"PK\x03\x04...", "a damaged zip archive of"),
        (b"\n\x15VGG_ILSVRC_19_layers", "a Caffe model of"),
        (
            b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + b"\x89HDF\r\n\x1a\n",
            "a MATLAB v7.3 file of 520 bytes",
        ),
        (bytes(range(200)), "a file of unknown format (first bytes 00 01 02 03 04 05 06 07) of 200 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["a.mat", "a.h5"])
def test_files_of_other_formats_are_told_by_content(door: Door, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = door.refusal(tmp_path / name)
    assert message.startswith(f"network.weights: {tmp_path / name} is not a weights file that can be read, got {words}")
    assert f"{MAT} (534,904,783 bytes, MD5 106118b7cf60435e6d8e04f6a6dc3657) or {NOTOP} (80,134,624 bytes" in message
    assert ("'-v7')" in message) == ("v7.3" in words)
    assert ("another training" in message) == ("PyTorch" in words)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("archive/data.pkl", "a PyTorch file"),
        ("model.weights.h5", "a .keras archive"),
        ("conv1_1.npy", "a NumPy archive"),
        ("readme.txt", "a zip archive"),
    ],
)
def test_archives_are_told_by_their_members(door: Door, tmp_path: Path, member: str, words: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.h5", "w") as archive:
        archive.writestr(member, b"x")
    message = door.refusal(tmp_path / "a.h5")
    assert f"got {words} of" in message
    assert ("model.save_weights('x.weights.h5')" in message) == ("keras" in words)


def published_kernel() -> Any:
    kernel = random_weights(wanted_layers("vgg19", False), seed=0).kernels["conv1_1"].copy()
    kernel[:, :, :, 0] = VGG19_FILTER
    return kernel


def test_trainings_are_recognised_by_their_first_values(door: Door) -> None:
    kernel = published_kernel()
    caffe = "VGG-19 of Simonyan & Zisserman (Caffe)"
    assert recognise_training(kernel) == f"{caffe}, RGB, HWIO"
    assert recognise_training(kernel[:, :, ::-1]) == f"{caffe}, BGR, HWIO"
    assert recognise_training(kernel.transpose(1, 0, 2, 3)) == f"{caffe}, RGB, WHIO"
    assert recognise_training(kernel[:, :, ::-1].transpose(1, 0, 2, 3)) == f"{caffe}, BGR, WHIO"
    assert recognise_training(kernel.astype(np.float16)) == f"{caffe}, RGB, HWIO"
    # Source: prints of Keras' VGG16 file (devincody/CS179final_project) and of torchvision's vgg19-dcbb9e9d.pth.
    kernel[0, :, 2, 0], kernel[1, :, 2, 0] = [0.42947057, 0.373467, -0.061360113], [0.27476987, 0.038680777, -0.36722335]
    kernel[2, :, 2, 0] = [-0.05746817, -0.26224968, -0.35009676]
    assert recognise_training(kernel) == "VGG-16 of Simonyan & Zisserman (Caffe), RGB, HWIO"
    kernel[0, :, 0, 0], kernel[1, :, 0, 0] = [-0.05347426, -0.04925704, -0.06794177], [0.01531445, 0.04506842, 0.0021444]
    kernel[2, :, :, 0] = np.array([[0.03622622, 0.01999945, 0.01986402]]).T
    assert recognise_training(kernel).startswith("torchvision's VGG-19, another training")
    kernel[2, 2, 0, 0] += 0.01
    assert recognise_training(kernel) == "not known"
    assert recognise_training(np.zeros((3, 3, 3, 4))) == "not known"
    assert recognise_training(np.zeros((5, 5, 3, 4))) == "not known"


@pytest.mark.parametrize(
    ("change", "recognised", "warning"),
    [
        (lambda kernel: kernel, "VGG-19 of Simonyan & Zisserman (Caffe), RGB, HWIO", None),
        (lambda kernel: kernel[:, :, ::-1], "VGG-19 of Simonyan & Zisserman (Caffe), BGR, HWIO", "red and blue exchanged"),
        (
            lambda kernel: kernel.transpose(1, 0, 2, 3),
            "VGG-19 of Simonyan & Zisserman (Caffe), RGB, WHIO",
            "network.kernel_order=whio exchanges them back",
        ),
    ],
)
def test_a_file_in_another_order_is_used_as_stored_with_a_warning(
    door: Door, tmp_path: Path, change: Callable[[Any], Any], recognised: str, warning: str | None
) -> None:
    plain = door("random")
    kernel = np.ascontiguousarray(change(published_kernel()))
    values = {name: getattr(plain, name) for name in Weights.__slots__} | {"kernels": {**plain.kernels, "conv1_1": kernel}}
    save_mat(tmp_path / "net.mat", Weights(**values))
    for _ in ("read", "cached"):
        door.lines.clear()
        loaded = door(tmp_path / "net.mat")
        assert loaded.recognised == recognised
        np.testing.assert_array_equal(loaded.kernels["conv1_1"], kernel)
        warnings = [line for line in door.lines if "warning" in line]
        assert len(warnings) == (warning is not None)
        assert warning is None or warning in warnings[0]
