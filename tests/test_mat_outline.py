"""Damaged and malicious MATLAB files: found out before SciPy reads them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from pipeline.errors import WeightsError
from pipeline.network import mat_outline
from pipeline.network.matconvnet import read_matconvnet
from pipeline.network.matconvnet_writer import GENERATIONS, write_matconvnet
from pipeline.network.stored import wanted_layers

from .weight_files import make_weights, shrink_networks


@pytest.fixture(autouse=True)
def few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_networks(monkeypatch)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.mat"
    write_matconvnet(path, make_weights(), "new")
    return path


def refusal(path: Path, network: str = "vgg19", classifier: bool = False) -> str:
    with pytest.raises(WeightsError) as caught:
        read_matconvnet(path, wanted_layers(network, classifier))
    message = str(caught.value)
    assert message.startswith(f"network.weights: {path} ")
    assert f"Expected weights of {network}: imagenet-vgg-verydeep-{network[3:]}.mat (" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, generation: str) -> None:
    path = tmp_path / "net.mat"
    write_matconvnet(path, make_weights(classifier=False), generation)
    content = path.read_bytes()
    for size in np.linspace(129, len(content) - 1, 9, dtype=int):
        path.write_bytes(content[:size])
        with pytest.raises(WeightsError, match=r"is truncated|is damaged|no MatConvNet network"):
            read_matconvnet(path, wanted_layers("vgg19", False))


@pytest.mark.parametrize("generation", ["old", "new"])
def test_flipped_bits_never_give_anything_but_weights_or_a_refusal(tmp_path: Path, generation: str) -> None:
    path = tmp_path / "net.mat"
    write_matconvnet(path, make_weights(classifier=False), generation)
    content = path.read_bytes()
    generator = np.random.Generator(np.random.PCG64(3))
    refused = []
    for _ in range(60):
        damaged = bytearray(content)
        damaged[int(generator.integers(128, len(content)))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            read_matconvnet(path, wanted_layers("vgg19", False))
        except WeightsError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in message for message in refused)


def test_files_too_large_for_weights_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    monkeypatch.setattr(mat_outline, "LARGEST_BYTES", whole.stat().st_size)
    assert "is too large unpacked (limit " in refusal(whole)
    monkeypatch.setattr(mat_outline, "LARGEST_BYTES", whole.stat().st_size - 1)
    assert "is too large for a weights file (limit " in refusal(whole)


HEADER = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"


def element(kind: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(data) if length is None else length) + data


def array(kind: int, shape: tuple[int, ...], name: bytes, data: bytes) -> bytes:
    dims = struct.pack(f"<{len(shape)}i", *shape)
    head = element(6, struct.pack("<II", kind, 0)) + element(5, dims) + element(1, name.ljust(8, b"\x00"))
    return head + data


def packed(content: bytes) -> bytes:
    return element(15, zlib.compress(content))


NUMBERS = array(6, (1, 2), b"layers", element(9, bytes(16)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (packed(element(14, NUMBERS) + bytes(50_000_000)), "compressed data go on after the end of a variable"),
        (packed(element(14, NUMBERS, 2_000_000_000)), "is too large unpacked (limit 1,500,000,000 bytes), got a variable of"),
        (
            element(14, array(6, (1, 2), b"layers", element(9, b"", 1 << 30))),
            "larger than what contains it, got 1,073,741,824 of",
        ),
        (
            element(14, array(6, (1 << 14, 1 << 14), b"layers", element(9, bytes(16)))),
            "fewer data than elements, got 16 bytes for",
        ),
        (element(14, array(1, (1 << 14, 1 << 14), b"layers", b"")), "larger than what contains it, got 2,147,483,648 of 0"),
        (element(14, array(4, (1 << 14, 1 << 14), b"layers", element(16, b""))), "fewer data than elements, got 0 bytes for"),
        (element(14, array(6, (-1, 2), b"layers", element(9, bytes(16)))), "an array of impossible shape, got (-1, 2)"),
        (element(14, array(6, (1, 2), b"layers", element(8, bytes(16)))), "a place where the format has no such, got 8"),
        (element(14, array(5, (1, 2), b"layers", element(9, bytes(16)))), "as no weights file has, got array class 5"),
        (element(14, array(2, (1, 1), b"layers", element(5, bytes(4) * 2))), "larger than what contains it, got 8 of 4 bytes"),
        (element(9, bytes(16)), "expected an array, got data type 9"),
        (packed(element(14, NUMBERS))[:-9] + b"\x00" * 9, "is damaged in the variable at byte 128"),
        (element(14, NUMBERS) + b"abc", "bytes that belong to no variable, got 3 bytes"),
        (element(14, NUMBERS)[:-8], "is truncated: a variable reaches to byte"),
    ],
)
def test_sizes_that_lie_are_found_before_any_memory_is_taken(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "lies.mat"
    path.write_bytes(HEADER + content)
    assert words in refusal(path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    inner: Any = 1.0
    for _ in range(20):
        inner = {"a": inner}
    savemat(tmp_path / "deep.mat", {"layers": inner})
    assert "is too deeply nested" in refusal(tmp_path / "deep.mat")


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_outline_reads_both_byte_orders(tmp_path: Path, order: str) -> None:
    path = tmp_path / "order.mat"
    numbers = struct.pack(f"{order}IIII", 6, 8, 6, 0) + struct.pack(f"{order}IIii", 5, 8, 1, 1)
    numbers += struct.pack(f"{order}II", 1, 6) + b"layers\x00\x00" + struct.pack(f"{order}IId", 9, 8, 2.5)
    mark = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    path.write_bytes(b"MATLAB 5.0".ljust(124) + mark + struct.pack(f"{order}II", 14, len(numbers)) + numbers)
    assert loadmat(path)["layers"].tolist() == [[2.5]]
    assert mat_outline.variable_names(path) == ("layers",)


def test_the_outline_accepts_all_that_scipy_writes(tmp_path: Path) -> None:
    values = {
        "text": "",
        "words": ["a", "bcd"],
        "logical": np.array([True]),
        "complex": np.ones(3) * 1j,
        "none": np.empty((0, 0)),
    }
    content = values | {"nested": {"a": {"b": np.arange(5, dtype=np.int8)}}}
    for compressed in (False, True):
        savemat(tmp_path / "all.mat", content, do_compression=compressed)
        assert mat_outline.variable_names(tmp_path / "all.mat") == tuple(content)
