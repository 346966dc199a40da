"""Weight files that are cut, torn, half written, something else, or that would run code or read other files if they were let."""

from __future__ import annotations

import ast
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from pipeline.errors import WeightsError
from pipeline.network import matconvnet
from pipeline.network.known_weights import wanted_layers
from pipeline.network.weights import read_file

from .matconvnet_writer import GENERATIONS
from .weight_files import Door, keras_arrays, make_weights, save_mat, shrink_networks, write_keras_2

PACKAGE = Path(__file__).parent.parent / "pipeline"
KERNEL = "block1_conv1/block1_conv1/kernel:0"
SHAPE = (3, 3, 3, 4)


@pytest.fixture(autouse=True)
def few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_networks(monkeypatch)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.h5"
    write_keras_2(path, keras_arrays(make_weights(classifier=False)))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_file(path, wanted_layers("vgg19", False))
    message = str(caught.value)
    assert message.startswith(f"network.weights: {path} ")
    assert "Expected weights of vgg19: imagenet-vgg-verydeep-19.mat (" in message
    assert message.isprintable()
    assert len(message) < 3000
    return message


def test_nothing_in_the_program_can_run_what_a_file_says() -> None:
    dangerous = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
    # Processes of this program hand tables to one another so, by pipes that nobody else can write to.
    for module in sorted({*PACKAGE.rglob("*.py")} - {PACKAGE / "store/collecting.py", PACKAGE / "engines/ray.py"}):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not dangerous & {alias.name.split(".")[0] for alias in node.names}, module
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in dangerous, module
            elif isinstance(node, ast.Call):
                called = node.func
                name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
                plain = isinstance(called, ast.Name)
                assert not (plain and name in ("eval", "exec", "compile", "__import__")), module
                assert name not in ("unsafe_load", "full_load", "mmap", "memmap"), module
                options = {keyword.arg: keyword.value for keyword in node.keywords}
                if "allow_pickle" in options or (name in ("load", "fromfile") and ast.unparse(called).startswith("np.")):
                    assert ast.unparse(options["allow_pickle"]) == "False", module
                if "shell" in options:
                    assert ast.unparse(options["shell"]) == "False", module


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["pth", "old pth", "npy", "npz", "keras", "pickle"])
def test_files_that_run_code_when_they_are_opened_are_named_and_not_opened(tmp_path: Path, kind: str) -> None:
    import pickle

    mark, path = tmp_path / "ran", tmp_path / "weights.h5"
    bomb = pickle.dumps(Bomb(mark), protocol=2)
    if kind == "pth":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", bomb)
    elif kind == "old pth":
        path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bomb)
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.array([Bomb(mark)], object), allow_pickle=True)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, conv1_1=np.array([Bomb(mark)], object))
    elif kind == "keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", '{"class_name": "Lambda"}')
            archive.writestr("model.weights.h5", bomb)
    else:
        path.write_bytes(bomb)
    words = {"pth": "a PyTorch file", "old pth": "a PyTorch file", "npy": "a NumPy array", "npz": "a NumPy archive"}
    words |= {"keras": "a .keras archive", "pickle": "a Python pickle"}
    message = Door(tmp_path).refusal(path)
    assert f"is not a weights file that can be read, got {words[kind]} of" in message
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.h5")
    assert "weights.h5 is a pipe or a device, not a file, got" in Door(tmp_path).refusal(tmp_path / "weights.h5")
    assert "/dev/zero is a pipe or a device, not a file, got" in Door(tmp_path).refusal("/dev/zero")


def put(file: h5py.File, **options: Any) -> None:
    """Puts another kernel of conv1_1, of the right shape unless told otherwise."""
    del file[KERNEL]
    file.create_dataset(KERNEL, **{"shape": SHAPE, "dtype": "f4"} | options)


def _never_written(file: h5py.File) -> None:
    put(file, fillvalue=1.5)


def _partly_written(file: h5py.File) -> None:
    put(file, chunks=(3, 3, 3, 1), fillvalue=1.5)
    file[KERNEL][..., 0] = 1


def _references(file: h5py.File) -> None:
    put(file, dtype=h5py.ref_dtype)


def _external_link(file: h5py.File) -> None:
    del file["block1_conv1"]
    file["block1_conv1"] = h5py.ExternalLink("/etc/passwd", "/")


def _external_storage(file: h5py.File) -> None:
    put(file, external=[("/etc/passwd", 0, 432)])


def _virtual(file: h5py.File) -> None:
    del file[KERNEL]
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", SHAPE)
    file.create_virtual_dataset(KERNEL, layout)


def _names_for_the_terminal(file: h5py.File) -> None:
    for name in file:
        del file[name]
    file["block1_conv1\n\x1b[31mred"] = 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_never_written, "declares an array in conv1_1 that is not stored, got 0 of 1 chunks"),
        (_partly_written, "declares an array in conv1_1 that is not stored, got 1 of 4 chunks"),
        (_references, "that is not stored, got 0 of 1 chunks"),
        (_external_link, "lacks layer conv1_1, got layers conv1_2"),
        (_external_storage, f"keeps data in other files, which are not read, got /{KERNEL}"),
        (_virtual, f"keeps data in other files, which are not read, got /{KERNEL}"),
        (_names_for_the_terminal, r"but no Keras weights of a VGG, got the root block1_conv1\n\x1b[31mred."),
    ],
)
def test_hdf5_files_that_do_not_hold_what_they_should_are_refused(
    weights: Path, change: Callable[[h5py.File], None], words: str
) -> None:
    with h5py.File(weights, "a") as file:
        change(file)
    assert words in refusal(weights)


def test_compressed_arrays_are_read(weights: Path) -> None:
    kernel = make_weights(classifier=False).kernels["conv1_1"][:, :, ::-1]
    for options in (
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "gzip", "chunks": (2, 2, 2, 3)},
        {"shuffle": True},
    ):
        with h5py.File(weights, "a") as file:
            put(file, data=kernel, **options)
        stored = read_file(weights, wanted_layers("vgg19", False))
        np.testing.assert_array_equal(stored.kernels["conv1_1"], kernel[:, :, ::-1])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_mat_file_cut_anywhere_is_refused(tmp_path: Path, generation: str) -> None:
    path = tmp_path / "net.mat"
    save_mat(path, make_weights(classifier=False), generation)
    content = path.read_bytes()
    for size in np.linspace(129, len(content) - 1, 9, dtype=int):
        path.write_bytes(content[:size])
        message = refusal(path)
        assert "truncated" in message or "damaged" in message


@pytest.mark.parametrize("generation", ["old", "new"])
def test_a_mat_file_that_was_allocated_and_not_all_of_it_written_is_refused(tmp_path: Path, generation: str) -> None:
    path = tmp_path / "net.mat"
    save_mat(path, make_weights(classifier=False), generation)
    content = path.read_bytes()
    for first in np.linspace(136, len(content) - 1024, 9, dtype=int):
        path.write_bytes(content[:first] + bytes(len(content) - first))
        assert "damaged" in refusal(path)


@pytest.mark.parametrize("generation", ["old", "new"])
def test_flipped_bits_never_give_anything_but_weights_or_a_refusal(tmp_path: Path, generation: str) -> None:
    path = tmp_path / "net.mat"
    save_mat(path, make_weights(classifier=False), generation)
    content = path.read_bytes()
    generator = np.random.Generator(np.random.PCG64(3))
    refused = []
    for _ in range(60):
        damaged = bytearray(content)
        damaged[int(generator.integers(128, len(content)))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            read_file(path, wanted_layers("vgg19", False))
        except WeightsError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in message for message in refused)


def test_mat_files_too_large_for_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "net.mat"
    save_mat(path, make_weights())
    monkeypatch.setattr(matconvnet, "_LARGEST_BYTES", path.stat().st_size)
    assert "compressed data end early or do not end" in refusal(path)
    monkeypatch.setattr(matconvnet, "_LARGEST_BYTES", path.stat().st_size - 1)
    assert "is too large for a weights file (limit " in refusal(path)


HEADER = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"


def element(kind: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(data) if length is None else length) + data


def array(kind: int, shape: tuple[int, ...], name: bytes, data: bytes) -> bytes:
    dims = struct.pack(f"<{len(shape)}i", *shape) + bytes(len(shape) % 2 * 4)
    head = element(6, struct.pack("<II", kind, 0)) + element(5, dims, 4 * len(shape)) + element(1, name.ljust(8, b"\x00"))
    return head + data


def packed(content: bytes) -> bytes:
    return element(15, zlib.compress(content))


NUMBERS = array(6, (1, 2), b"layers", element(9, bytes(16)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (packed(element(14, NUMBERS, 2_000_000_000)), "larger than what contains it, got 2,000,000,000 of"),
        (
            element(14, array(6, (1, 2), b"layers", element(9, b"", 1 << 30))),
            "contains it, got 1,073,741,824 of",
        ),
        (element(14, array(6, (1 << 30,) * 8, b"layers", element(9, bytes(16)))), "an array is larger than what contains it"),
        (element(14, array(1, (1 << 14, 1 << 14), b"layers", b"")), "has not 268435456 elements of its types, got 0 elements"),
        (
            element(14, array(4, (1 << 14, 1 << 14), b"layers", element(16, b""))),
            "contains it, got 268,435,456 of",
        ),
        (element(14, array(6, (-1, 2), b"layers", element(9, bytes(16)))), "an array of impossible shape, got (-1, 2)"),
        (element(14, array(6, (1,), b"layers", element(9, bytes(8)))), "an array of impossible shape, got (1,)"),
        (
            element(14, array(6, (1, 2), b"layers", element(8, bytes(16)))),
            "of its types, got 1 elements of types [8]",
        ),
        (element(14, array(6, (1, 0), b"layers", b"")), "has not 1 elements of its types, got 0 elements of types []"),
        (element(14, array(5, (1, 2), b"layers", element(9, bytes(16)))), "as no weights file has, got array class 5"),
        (element(14, array(17, (1, 1), b"layers", element(9, bytes(8)))), "an object or a function, as no weights file has"),
        (element(9, bytes(16)), "expected an array, got data type 9"),
        (element(14, element(9, bytes(16))), "an array does not begin as one, got data types (9,)"),
        (packed(element(14, NUMBERS))[:-9] + b"\x00" * 9, "but truncated or damaged, got "),
        (element(14, NUMBERS) + b"abc", "but truncated or damaged, got "),
        (element(14, NUMBERS)[:-8], "is truncated: a variable reaches to byte"),
        (packed(element(14, array(6, (1, 8), b"a\n\x1b[2Jbc", element(2, bytes(8))))), r"the variables a\n\x1b[2Jbc."),
    ],
)
def test_sizes_and_types_of_mat_files_are_checked_before_scipy_takes_them_at_their_word(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "lies.mat"
    path.write_bytes(HEADER + content)
    assert words in refusal(path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    inner = array(6, (1, 1), b"", element(9, bytes(8)))
    for _ in range(2000):
        inner = array(1, (1, 1), b"", element(14, inner))
    (tmp_path / "deep.mat").write_bytes(HEADER + element(14, inner))
    assert "damaged" in refusal(tmp_path / "deep.mat")


@pytest.mark.parametrize("order", ["<", ">"])
def test_mat_files_of_both_byte_orders_pass_the_check(tmp_path: Path, order: str) -> None:
    path = tmp_path / "order.mat"
    numbers = struct.pack(f"{order}IIII", 6, 8, 6, 0) + struct.pack(f"{order}IIii", 5, 8, 1, 1)
    numbers += struct.pack(f"{order}II", 1, 6) + b"things\x00\x00" + struct.pack(f"{order}IId", 9, 8, 2.5)
    mark = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    path.write_bytes(b"MATLAB 5.0".ljust(124) + mark + struct.pack(f"{order}II", 14, len(numbers)) + numbers)
    assert loadmat(path)["things"].tolist() == [[2.5]]
    assert "is a MATLAB file, but no MatConvNet network, got the variables things" in refusal(path)


def test_all_that_scipy_writes_passes_the_check(tmp_path: Path) -> None:
    values = {
        "text": "",
        "words": ["a", "bcd"],
        "logical": np.array([True]),
        "complex": np.ones(3) * 1j,
        "none": np.empty((0, 0)),
        "cells": np.empty((1, 0), object),
        "structs": np.empty((0, 0), [("a", object)]),
    }
    for compressed in (False, True):
        content = values | {"nested": {"a": {"b": np.arange(5, dtype=np.int8)}}}
        savemat(tmp_path / "all.mat", content, do_compression=compressed)
        assert f"but no MatConvNet network, got the variables {', '.join(content)}." in refusal(tmp_path / "all.mat")


def changed(path: Path, change: Callable[[Any, Any], None]) -> Path:
    save_mat(path, make_weights(classifier=False))
    data = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    change(data, next(cell[0, 0] for cell in data["layers"].ravel() if cell[0, 0]["name"][0] == "conv1_1"))
    savemat(path, data, do_compression=True)
    return path


def test_a_pad_of_millions_of_numbers_is_quoted_in_part(tmp_path: Path) -> None:
    def change(data: Any, layer: Any) -> None:
        layer["pad"] = np.full((1, 1_000_000), 7, np.uint8)

    assert "has another pad in conv1_1 (expected 1), got [7.0, 7.0, " in refusal(changed(tmp_path / "net.mat", change))


def test_a_layer_with_a_name_for_the_terminal_is_quoted_without_it(tmp_path: Path) -> None:
    def change(data: Any, layer: Any) -> None:
        layer["name"] = np.array(["conv1_1\n\x1b]0;gone\x07" + "n" * 100_000])

    assert r"lacks layer conv1_1, got layers conv1_1\n\x1b]0;gone\x07nnn" in refusal(changed(tmp_path / "net.mat", change))
