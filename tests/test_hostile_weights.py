"""Weight files that somebody made to run code, to read other files, to fill the memory or never to end."""

from __future__ import annotations

import ast
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.errors import WeightsError
from pipeline.network import apart
from pipeline.network.keras_h5 import read_keras
from pipeline.network.matconvnet import read_matconvnet
from pipeline.network.stored import wanted_layers

from .test_mat_outline import HEADER, array, element, packed
from .weight_files import Door, keras_arrays, make_weights, save_mat, shrink_networks, write_keras_2

PACKAGE = Path(__file__).parent.parent / "pipeline"
KERNEL = "block1_conv1/block1_conv1/kernel:0"
SHAPE = (3, 3, 3, 4)
MEBIBYTE = 1 << 20


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
        (read_matconvnet if path.suffix == ".mat" else read_keras)(path, wanted_layers("vgg19", False))
    message = str(caught.value)
    assert message.startswith("network.weights: ")
    assert message.isprintable()
    assert len(message) < 3000
    return message


def test_nothing_in_the_program_can_run_what_a_file_says() -> None:
    dangerous = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
    # Processes of this program hand tables to one another so, by pipes that nobody else can write to.
    for room in sorted({*PACKAGE.rglob("*.py")} - {PACKAGE / "store/collecting.py"}):
        for node in ast.walk(ast.parse(room.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not dangerous & {alias.name.split(".")[0] for alias in node.names}, room
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in dangerous, room
            elif isinstance(node, ast.Call):
                called = node.func
                name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
                plain = isinstance(called, ast.Name)
                assert not (plain and name in ("eval", "exec", "compile", "__import__")), room
                assert name not in ("unsafe_load", "full_load", "mmap", "memmap"), room
                options = {keyword.arg: keyword.value for keyword in node.keywords}
                if "allow_pickle" in options or (name in ("load", "fromfile") and ast.unparse(called).startswith("np.")):
                    assert ast.unparse(options["allow_pickle"]) == "False", room
                if "shell" in options:
                    assert ast.unparse(options["shell"]) == "False", room


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


def test_an_archive_with_millions_of_members_is_named_by_its_end(tmp_path: Path) -> None:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 9) + bytes(16) + b"a/b/c.npy"
    (tmp_path / "weights.h5").write_bytes(b"PK\x03\x04" + entry * 400_000 + b"PK\x05\x06" + bytes(18))
    assert "got a NumPy archive of 22,000,026 bytes" in Door(tmp_path).refusal(tmp_path / "weights.h5")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.h5")
    assert "weights.h5 is a pipe or a device, not a file, got" in Door(tmp_path).refusal(tmp_path / "weights.h5")
    assert "/dev/zero is a pipe or a device, not a file, got" in Door(tmp_path).refusal("/dev/zero")


def put(file: h5py.File, **options: Any) -> None:
    """Puts another kernel of conv1_1, of the right shape unless told otherwise."""
    del file[KERNEL]
    file.create_dataset(KERNEL, **{"shape": SHAPE, "dtype": "f4"} | options)


def store_chunk(file: h5py.File, content: bytes, **options: Any) -> None:
    put(file, chunks=SHAPE, **options)
    file[KERNEL].id.write_direct_chunk((0, 0, 0, 0), content)


def _never_written(file: h5py.File) -> None:
    put(file, fillvalue=1.5)


def _partly_written(file: h5py.File) -> None:
    put(file, chunks=(3, 3, 3, 1), fillvalue=1.5)
    file[KERNEL][..., 0] = 1


def _absurd_chunks(file: h5py.File) -> None:
    put(file, chunks=(1024, 1024, 16, 60), maxshape=(None,) * 4, compression="gzip")
    file[KERNEL].id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(1000)))


def _inflating_chunk(file: h5py.File) -> None:
    store_chunk(file, zlib.compress(bytes(100 * MEBIBYTE), 9), compression="gzip")


def _twice_deflated(file: h5py.File) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(SHAPE)
    properties.set_deflate(9)
    properties.set_filter(h5py.h5z.FILTER_DEFLATE, 0, (9,))
    _low_level(file, properties)


def _filter_of_a_plug_in(file: h5py.File) -> None:
    store_chunk(file, bytes(10), compression="lzf")


def _low_level(file: h5py.File, properties: Any) -> None:
    del file[KERNEL]
    group = file[KERNEL.rpartition("/")[0]]
    space = h5py.h5s.create_simple(SHAPE)
    h5py.h5d.create(group.id, b"kernel:0", h5py.h5t.IEEE_F32LE, space, properties)
    group["kernel:0"].id.write_direct_chunk((0, 0, 0, 0), zlib.compress(zlib.compress(bytes(MEBIBYTE))))


def _references(file: h5py.File) -> None:
    put(file, dtype=h5py.ref_dtype)


def _soft_link_to_itself(file: h5py.File) -> None:
    del file[KERNEL]
    file[KERNEL] = h5py.SoftLink(f"/{KERNEL}")


def _external_link(file: h5py.File) -> None:
    file["block9"] = h5py.ExternalLink("/etc/passwd", "/")


def _external_storage(file: h5py.File) -> None:
    put(file, external=[("/etc/passwd", 0, 432)])


def _virtual(file: h5py.File) -> None:
    del file[KERNEL]
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", SHAPE)
    file.create_virtual_dataset(KERNEL, layout)


def _many_names(file: h5py.File) -> None:
    for number in range(10_001):
        file.create_group(f"n{number}")


def _deep(file: h5py.File) -> None:
    file.create_group("/".join("abcdefghijklmnopqrst"))


def _names_for_the_terminal(file: h5py.File) -> None:
    file["block1_conv1\n\x1b[31mred"] = h5py.SoftLink("/x")


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (_never_written, "declares an array in conv1_1 that is not stored, got 0 of 1 chunks"),
        (_partly_written, "declares an array in conv1_1 that is not stored, got 1 of 4 chunks"),
        (_absurd_chunks, "has chunks larger than their array in conv1_1, got 4,026,531,840 of 432 bytes"),
        (_inflating_chunk, "has a chunk in conv1_1 that unpacks to more than its array, got over 496 bytes"),
        (_twice_deflated, "is compressed in a way that is not read in conv1_1 (expected gzip), got filters [1, 1]"),
        (_filter_of_a_plug_in, "is compressed in a way that is not read in conv1_1 (expected gzip), got filters [32000]"),
        (_references, "has not one kernel and one bias in conv1_1, got float32(4,), object(3, 3, 3, 4)"),
        (_soft_link_to_itself, f"has a link out of the file or to another place, which is not followed, got {KERNEL}"),
        (_external_link, "has a link out of the file or to another place, which is not followed, got block9"),
        (_external_storage, f"keeps data in other files, which are not read, got {KERNEL}"),
        (_virtual, f"keeps data in other files, which are not read, got {KERNEL}"),
        (_many_names, "has too many groups and arrays for a weights file, got 10,017 objects"),
        (_deep, "has too many or too deeply nested groups for a weights file"),
        (_names_for_the_terminal, r"which is not followed, got block1_conv1\n\x1b[31mred."),
    ],
)
def test_hdf5_files_that_ask_for_more_than_they_hold_are_refused(
    weights: Path, attack: Callable[[h5py.File], None], words: str
) -> None:
    with h5py.File(weights, "a") as file:
        attack(file)
    assert words in refusal(weights)


def test_compressed_arrays_are_read_as_long_as_they_unpack_to_what_they_declare(weights: Path) -> None:
    kernel = make_weights(classifier=False).kernels["conv1_1"][:, :, ::-1]
    for options in (
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "gzip", "chunks": (2, 2, 2, 3)},
        {"shuffle": True},
    ):
        with h5py.File(weights, "a") as file:
            put(file, data=kernel, **options)
        stored = read_keras(weights, wanted_layers("vgg19", False))
        np.testing.assert_array_equal(stored.kernels["conv1_1"], kernel[:, :, ::-1])


def numbers(name: bytes, count: int, data_type: int = 2, array_class: int = 9) -> bytes:
    return element(14, array(array_class, (1, count), name, element(data_type, bytes(count))))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (packed(numbers(b"layers", 2_000_000, 16, 4)), "has a text too long for a weights file (limit 1,000,000), got 2,000,000"),
        (packed(numbers(b"a\n\x1b[2Jbc", 8)), r"is a MATLAB file, but no MatConvNet network, got the variables a\n\x1b[2Jbc."),
        (element(14, array(6, (1 << 30,) * 8, b"layers", element(9, bytes(8)))), "fewer data than elements, got 8 bytes for"),
        (element(14, array(6, (1,), b"layers", element(9, bytes(8)))), "an array of impossible shape, got (1,)"),
        (
            element(14, element(6, struct.pack("<II", 6, 0)) + element(5, bytes(8)) + element(1, b"", 1 << 31)),
            "an array is larger than what contains it, got 2,147,483,648",
        ),
        (element(14, array(17, (1, 1), b"layers", element(9, bytes(8)))), "an object or a function, as no weights file has"),
        (element(14, array(3, (1, 1), b"layers", element(9, bytes(8)))), "an object or a function, as no weights file has"),
        (packed(element(14, array(1, (1, 200_000), b"layers", struct.pack("<II", 14, 0) * 200_000))), "too many arrays"),
    ],
    ids=["text", "names", "exabytes", "one axis", "name length", "opaque object", "object", "cells"],
)
def test_mat_files_that_ask_for_more_than_they_hold_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "net.mat"
    path.write_bytes(HEADER + content)
    assert words in refusal(path)


def changed(path: Path, change: Callable[[Any, Any], None]) -> Path:
    from scipy.io import loadmat, savemat

    save_mat(path, make_weights(classifier=False))
    data = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    change(data, next(cell[0, 0] for cell in data["layers"].ravel() if cell[0, 0]["name"][0] == "conv1_1"))
    savemat(path, data, do_compression=True)
    return path


def test_a_mean_image_of_millions_of_numbers_is_not_unpacked_into_doubles(tmp_path: Path) -> None:
    def change(data: Any, layer: Any) -> None:
        data["meta"][0, 0]["normalization"][0, 0]["averageImage"] = np.zeros((2400, 2400, 3), np.uint8)

    message = refusal(changed(tmp_path / "net.mat", change))
    assert "has an average image of more than 16,000,000 numbers, got (2400, 2400, 3)" in message


def test_a_pad_of_millions_of_numbers_is_quoted_in_part(tmp_path: Path) -> None:
    def change(data: Any, layer: Any) -> None:
        layer["pad"] = np.full((1, 1_000_000), 7, np.uint8)

    assert "has another pad in conv1_1 (expected 1), got [7.0, 7.0, " in refusal(changed(tmp_path / "net.mat", change))


def test_a_layer_with_a_name_for_the_terminal_is_quoted_without_it(tmp_path: Path) -> None:
    def change(data: Any, layer: Any) -> None:
        layer["name"] = np.array(["conv1_1\n\x1b]0;gone\x07" + "n" * 100_000])

    assert r"lacks layer conv1_1, got layers conv1_1\n\x1b]0;gone\x07nnn" in refusal(changed(tmp_path / "net.mat", change))


def test_an_unknown_hdf5_file_is_read_in_another_process(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the HDF5 library was let near a stranger's file")

    monkeypatch.setattr("pipeline.network.weights.read_keras", never)
    loaded = Door(tmp_path)(weights)
    expected = make_weights(classifier=False)
    for name, kernel in expected.kernels.items():
        np.testing.assert_array_equal(loaded.kernels[name], kernel)
        np.testing.assert_array_equal(loaded.biases[name], expected.biases[name])
        assert loaded.kernels[name].dtype == loaded.biases[name].dtype == np.float32
        assert loaded.kernels[name].flags.c_contiguous
        assert loaded.kernels[name].flags.aligned
    with h5py.File(weights, "a") as file:
        _external_link(file)
    assert "which is not followed, got block9" in Door(tmp_path).refusal(weights)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.abort()", "reading it crashes the HDF5 library, got signal 6"),
        ("import os; os._exit(3)", "reading it crashes the HDF5 library, got exit code 3"),
        ("import time; time.sleep(60)", "reading it does not end, got nothing in 1 s"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="signals have no such numbers here")
def test_a_file_that_crashes_or_stalls_the_library_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    monkeypatch.setattr(apart, "_CODE", code)
    monkeypatch.setattr(apart, "SECONDS", 1.0)
    assert words in Door(tmp_path).refusal(weights)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
def test_a_file_that_takes_more_memory_than_it_may_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = weights.read_bytes()
    # Source: HDF5 File Format Specification, III.D: the size of a local heap, which the library takes before it reads it.
    place = content.index(b"HEAP") + 8
    weights.write_bytes(content[:place] + struct.pack("<Q", 3 << 29) + content[place + 8 :])
    monkeypatch.setattr(apart, "MEMORY_BYTES", 1 << 30)
    assert "is a truncated or damaged HDF5 file, got " in Door(tmp_path).refusal(weights)


def limited(path: Path, memory_bytes: int) -> str:
    """Gives what reading a MATLAB file says in a process that may take so much memory besides what it has at the start."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "import scipy.io\n"
        "from pipeline.network.matconvnet import read_matconvnet\n"
        "from pipeline.network.stored import wanted_layers\n"
        "from pipeline.errors import WeightsError\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "limit = pages * resource.getpagesize() + int(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try:\n"
        "    read_matconvnet(Path(sys.argv[1]), wanted_layers('vgg19', False))\n"
        "except WeightsError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(memory_bytes)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return done.stdout


def deflated_zeros(count: int, beginning: bytes) -> bytes:
    """Gives what inflates to a beginning and so many MiB of zeros, without making these; its end and checksum are missing."""
    deflate = zlib.compressobj(9)
    start = deflate.compress(beginning) + deflate.flush(zlib.Z_FULL_FLUSH)
    deflate = zlib.compressobj(9, wbits=-15)
    return start + (deflate.compress(bytes(MEBIBYTE)) + deflate.flush(zlib.Z_FULL_FLUSH)) * count


def end_of_deflated(count: int, beginning: bytes) -> bytes:
    """Gives the last block, which is empty, and the checksum."""
    checksum, zeros = zlib.adler32(beginning), bytes(MEBIBYTE)
    for _ in range(count):
        checksum = zlib.adler32(zeros, checksum)
    return b"\x03\x00" + struct.pack(">I", checksum)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
def test_a_mat_file_that_inflates_to_a_hundred_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.mat"
    path.write_bytes(HEADER + element(15, deflated_zeros(100_000, NUMBERS_OF_2_MB)))
    assert path.stat().st_size < 110 * MEBIBYTE
    assert "compressed data go on after the end of a variable" in limited(path, 64 * MEBIBYTE)


NUMBERS_OF_2_MB = numbers(b"layers", 2_000_000)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
def test_the_largest_mat_file_that_is_read_takes_no_more_than_three_gigabytes(tmp_path: Path) -> None:
    count = 1_390 * MEBIBYTE
    tag = struct.pack("<II", 6, 8) + struct.pack("<II", 9, 0) + struct.pack("<IIii", 5, 8, 1, count)
    inside = tag + element(1, b"layers\0\0")[:4] + struct.pack("<I", 6) + b"layers\0\0" + struct.pack("<II", 2, count)
    whole = struct.pack("<II", 14, len(inside) + count) + inside
    path = tmp_path / "bomb.mat"
    path.write_bytes(HEADER + element(15, deflated_zeros(1_390, whole) + end_of_deflated(1_390, whole)))
    message = limited(path, 3_000_000_000)
    assert "is no MatConvNet network: an entry of 'layers' is not one struct, got uint8" in message
    assert path.stat().st_size < 2 * MEBIBYTE
