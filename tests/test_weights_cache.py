"""The cache of large weight files: a second start reads it alone, and it never gives anything but the file's numbers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.network import weights
from pipeline.network.known_weights import wanted_layers

from .weight_files import Door, save_mat, shrink_networks


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Door:
    shrink_networks(monkeypatch)
    return Door(tmp_path)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr(weights, "read_matconvnet", fail)


def test_a_second_start_reads_the_cache_alone(door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_mat(tmp_path / "net.mat", door("random", classifier=True), "old")
    first = door(tmp_path / "net.mat", classifier=True)
    forbid_reading(monkeypatch)
    for classifier in (True, False):
        second = door(tmp_path / "net.mat", classifier=classifier)
        assert (second.source, second.pool_padding, second.recognised) == (first.source, first.pool_padding, first.recognised)
        np.testing.assert_array_equal(second.mean_pixel, first.mean_pixel)
        for name, kernel in second.kernels.items():
            assert kernel.dtype == np.float32
            np.testing.assert_array_equal(kernel, first.kernels[name])
            np.testing.assert_array_equal(second.biases[name], first.biases[name])
    assert door(tmp_path / "net.mat", classifier=True).sha256 == first.sha256


def test_the_classifier_is_cached_only_when_asked_for(door: Door, tmp_path: Path) -> None:
    save_mat(tmp_path / "net.mat", door("random", classifier=True))
    door(tmp_path / "net.mat")
    assert [path.name.split("-")[2] for path in door.cache.iterdir()] == ["convolutions.npz"]
    door(tmp_path / "net.mat", classifier=True)
    assert sorted(path.name.split("-")[2] for path in door.cache.iterdir()) == ["convolutions.npz", "whole.npz"]


def test_a_changed_file_is_read_again_and_its_former_cache_dropped(door: Door, tmp_path: Path) -> None:
    path = tmp_path / "net.mat"
    save_mat(path, door("random"))
    first = door(path)
    save_mat(path, door("random", seed=1))
    os.utime(path, ns=(1, 1))
    assert door(path).sha256 == door("random", seed=1).sha256 != first.sha256
    assert len(list(door.cache.iterdir())) == 1


def damage_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_pickle(path: Path) -> None:
    np.savez(path, conv1_1=np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    "damage",
    [
        damage_middle,
        make_pickle,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
    ],
)
def test_a_damaged_cache_is_made_again(door: Door, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    save_mat(tmp_path / "net.mat", door("random"))
    door(tmp_path / "net.mat")
    (cached,) = door.cache.iterdir()
    damage(cached)
    wanted = wanted_layers("vgg19", False)
    assert weights.load_cached(door.cache, tmp_path / "net.mat", wanted) is None
    again = door(tmp_path / "net.mat")
    assert (again.sha256, again.pool_padding) == (door("random").sha256, "same")
    assert weights.load_cached(door.cache, tmp_path / "net.mat", wanted) is not None
    assert not any("warning" in line for line in door.lines)


def test_a_cache_that_cannot_be_written_is_logged_and_no_more(door: Door, tmp_path: Path) -> None:
    save_mat(tmp_path / "net.mat", door("random"))
    door.cache.write_bytes(b"a file where the folder should be")
    assert door(tmp_path / "net.mat").sha256 == door("random").sha256
    assert any(line.startswith("weights cache: ") and "is not written" in line for line in door.lines)


def test_the_cache_lies_where_the_system_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.default_cache_folder() == tmp_path / "deep-feature-pipeline"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert weights.default_cache_folder() == tmp_path / ".cache" / "deep-feature-pipeline"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert weights.default_cache_folder() == tmp_path / "local" / "deep-feature-pipeline"


def test_without_a_home_there_is_no_cache(door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    save_mat(tmp_path / "net.mat", door("random"))
    assert door(tmp_path / "net.mat", cache_folder=None).sha256 == door("random").sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.mat"]


def test_scipy_is_not_loaded_for_a_cached_file(door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_mat(tmp_path / "net.mat", door("random"))
    door(tmp_path / "net.mat")

    def fail(*arguments: Any) -> None:
        raise AssertionError("the MATLAB file was opened")

    monkeypatch.setattr("scipy.io.loadmat", fail)
    assert door(tmp_path / "net.mat").sha256 == door("random").sha256
