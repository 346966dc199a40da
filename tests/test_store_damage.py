"""What the reader says of files that are damaged, missing, foreign or not finished."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store.reader import open_run

from .damage import chunk_place, flip
from .stored_runs import NATIVE_SIZES, make_spec, make_values, write_run
from .test_store_reader import copy, folder, values

__all__ = ["copy", "folder", "values"]  # fixtures

SHARD, INDEX = "shards/shard-00001-of-00003.h5", "features.h5"


def change(path: Path, edit: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        edit(file)


@pytest.mark.parametrize(("layer", "compression"), [("conv1_1", "gzip"), ("relu4_1", "none")])
def test_a_damaged_chunk_names_shard_layer_and_row(tmp_path: Path, compression: str, layer: str) -> None:
    values = write_run(tmp_path, make_spec(compression=compression))
    path = tmp_path / SHARD
    flip(path, chunk_place(path, layer, 2))
    run = open_run(tmp_path)
    errors = {}
    for row in range(10):
        try:
            np.testing.assert_array_equal(run[layer][row], values[layer][row])
        except StoreError as error:
            errors[row] = str(error)
    assert set(errors) <= ({6} if layer == "relu4_1" else {4, 5, 6, 7})
    row, line = max(errors.items())
    first = min(errors)  # what shares a chunk is named together
    assert line.startswith(f"{path}: layer {layer}, row")
    assert f" {first} " in line
    assert line.endswith("Remove this file and run the extraction again: only what is missing is made again.")
    for read in (lambda: run[layer][:], lambda: list(run[layer].bands(row))):
        with pytest.raises(StoreError, match="is damaged"):
            read()


def test_a_row_that_was_never_stored_is_not_taken_for_nan(copy: Path) -> None:
    with h5py.File(copy / "shards/shard-00000-of-00003.h5", "r+") as file:
        attributes, shape = dict(file["features/relu4_1"].attrs), file["features/relu4_1"].shape
        del file["features/relu4_1"]
        new = file["features"].create_dataset("relu4_1", shape, "<f4", chunks=(1, *shape[1:]), fillvalue=np.nan)
        new.attrs.update(attributes)
    with pytest.raises(StoreError, match=r"shard-00000-of-00003.h5: layer relu4_1, row 0 is damaged"):
        open_run(copy)["relu4_1"][0]


def test_a_missing_shard_is_an_error_not_nan(copy: Path) -> None:
    run = open_run(copy)
    path = copy / SHARD
    path.unlink()
    np.testing.assert_array_equal(run["conv1_1"][0], run["conv1_1"][0])
    with pytest.raises(StoreError, match=r"shard-00001-of-00003\.h5: the file is missing, got No such file or directory"):
        run["conv1_1"][5]
    with pytest.raises(StoreError, match=f"^{path}: the file is missing, got 2 of 3 shards. Expected all"):
        open_run(copy)


def test_reader_refuses_a_shard_of_another_run(copy: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "other", make_spec(identity={"seed": "2"}))
    shutil.copy(tmp_path / "other" / SHARD, copy / SHARD)
    run = open_run(copy)
    assert np.isfinite(run["conv1_1"][0]).all()
    found, expected = (opened.attributes["run_digest"][:12] for opened in (open_run(tmp_path / "other"), run))
    with pytest.raises(StoreError, match=f"a file of another run, got run digest {found}. Expected {expected}. Put the run"):
        run["conv1_1"][5]
    shutil.copy(copy / "shards/shard-00000-of-00003.h5", copy / SHARD)
    with pytest.raises(StoreError, match=r"not the shard that its name says, got rows 0 to 3\. Expected 4 to 7"):
        open_run(copy)["conv1_1"][5]


def test_a_damaged_table_is_named(copy: Path) -> None:
    with h5py.File(copy / INDEX, "r+") as file:
        file["images/label"][2] = "dogs"
        file["images/width"][2] = 7
    images = open_run(copy).images
    assert images["height"][2] == 302
    for column in ("label", "width"):
        with pytest.raises(StoreError, match=f"features.h5: column '{column}' of /images is damaged, got checksum"):
            images[column]


def test_files_of_other_programs_and_later_versions_are_refused(copy: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(StoreError, match=r"other.h5: not a file that this version of the program writes, got format None"):
        open_run(tmp_path / "other.h5")
    index = copy / INDEX
    change(index, lambda file: file.attrs.update(format_version=4))
    with pytest.raises(StoreError, match=r"features.h5: not a file .* got format .*, version 4\."):
        open_run(copy)
    index.write_bytes(index.read_bytes()[:5000])
    with pytest.raises(StoreError, match=r"features.h5: the HDF5 file is damaged, got .* Expected the bytes that were written"):
        open_run(copy)


def test_what_is_no_finished_run_says_what_it_is(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cpoy: there is no such run, got a path that does not exist\. Expected one of: copy\."):
        open_run(tmp_path / "cpoy")
    for name in ("photo.jpg", "weights.h5"):
        (tmp_path / name).write_text("mine")
        # Nobody is told to remove a file of his own.
        with pytest.raises(StoreError, match=rf"{name}: not a run, got another file\. Expected a run folder, its features\.h5"):
            open_run(tmp_path / name)
    with pytest.raises(StoreError, match=r"not a run, got no features.h5\. Expected a run folder"):
        open_run(tmp_path)
    (copy / "features.h5").unlink()
    (copy / "shards/shard-00001-of-00003.h5").unlink()
    with pytest.raises(StoreError, match=r"the run is not finished, got 2 of 3 shards and no features.h5\. Expected all"):
        open_run(copy)


@pytest.mark.parametrize(
    ("name", "node", "link"),
    [
        (SHARD, "features/relu4_1", h5py.ExternalLink("/etc/hostname", "/x")),
        (SHARD, "checksums/relu4_1", h5py.SoftLink("/images/width")),
        (INDEX, "images/key", h5py.ExternalLink("/x", "/k")),
    ],
)
def test_a_link_out_of_a_file_is_not_followed(copy: Path, name: str, node: str, link: Any) -> None:
    with h5py.File(copy / name, "r+") as file:
        del file[node]
        file[node] = link
    with pytest.raises(StoreError, match=f"^{copy / name}: .* got a link, which is not followed"):
        open_run(copy).to_numpy("relu4_1", label="key")


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes as on Unix")
@pytest.mark.parametrize("kind", ["a pipe", "a link"])
@pytest.mark.parametrize("name", [SHARD, INDEX])
def test_what_is_no_file_of_its_own_is_not_opened(copy: Path, name: str, kind: str) -> None:
    outside = copy.parent / "outside"
    # A good file of the very run: it is the link that is refused.
    (copy / name).rename(outside)
    if kind == "a pipe":
        os.mkfifo(copy / name)
    else:
        (copy / name).symlink_to(outside)
    with pytest.raises(StoreError, match=rf"of the run, got {kind}\."):
        open_run(copy).to_numpy("relu4_1")


def test_a_folder_of_shards_behind_a_link_is_not_followed_and_what_the_caller_names_is(copy: Path, tmp_path: Path) -> None:
    for number, target in enumerate((copy, copy / INDEX, copy / SHARD)):
        (tmp_path / str(number)).symlink_to(target)
        assert len(open_run(tmp_path / str(number))) == (4 if target == copy / SHARD else 10)
    (copy / "shards").rename(tmp_path / "elsewhere")
    (copy / "shards").symlink_to(tmp_path / "elsewhere")
    for path in (copy, copy / INDEX):
        with pytest.raises(StoreError, match=r"copy/shards: not a file of the run, got a link\."):
            open_run(path)


def test_what_a_user_has_added_to_a_file_changes_nothing(copy: Path, values: dict[str, NDArray[np.float32]]) -> None:
    for name in (SHARD, INDEX):
        with h5py.File(copy / name, "r+") as file:
            file["checksums"].attrs["mine"] = "x"
            file["pca"] = np.zeros((10, 3))
    np.testing.assert_array_equal(open_run(copy)["relu4_1"][:], values["relu4_1"])


# -- Bytes flipped at random: what is read is what was written, or an error; never other values


RUNS: dict[str, Any] = {
    "small": (make_spec(10, {"conv1_1": (5, 4, 3), "relu4_1": (12, 12, 3)}), None),
    "native": (make_spec(6, {"relu4_1": None, "b": None}, images_per_shard=4), NATIVE_SIZES),
    "uncompressed": (make_spec(10, {"relu4_1": (40, 40, 3)}, dtype="float16", compression="none"), None),
}


def everything(path: Path) -> Any:
    """Read all of a run or a shard: its table, and the rows of all layers."""
    with open_run(path) as run:
        table = {name: run.images[name].tolist() for name in run.images}
        rows = {layer: [run[layer][row].tobytes() for row in range(len(run))] for layer in run.layers}
        return table, rows, [run.row(key) for key in table["key"]]


def _changed(content: bytes, dice: random.Random) -> bytes:
    """Return a file with a bit turned over, some bytes or a number changed, or without its end."""
    data = bytearray(content)
    # Half of them at the beginning, where HDF5 keeps what it believes first.
    place = dice.randrange(len(data) if dice.random() < 0.5 else min(len(data), 4096))
    kind, size = dice.randrange(10), dice.choice([1, 2, 4, 8])
    if kind < 5:
        data[place] ^= 1 << dice.randrange(8)
    elif kind < 9:
        data[place : place + size] = dice.choice([b"\xff" * size, bytes(size), dice.randbytes(size)])
    else:
        del data[place:]
    return bytes(data[: len(content)])


def _read(folders: list[Path], jobs: range, replies: Connection) -> None:
    expected = {folder: everything(folder) for folder in folders}
    for job in jobs:
        dice = random.Random(job)
        folder = dice.choice(folders)
        path = dice.choice(sorted(folder.rglob("*.h5")))
        content = path.read_bytes()
        path.write_bytes(_changed(content, dice))
        signal.alarm(20)
        try:
            result = "same" if everything(folder) == expected[folder] else f"other values {job}"
        except StoreError as error:
            result = "one line" if str(error).isprintable() and ". Expected " in str(error) else f"not one line {job}: {error}"
        except BaseException as error:
            result = f"{type(error).__name__} {job}: {error}"
        signal.alarm(0)
        path.write_bytes(content)
        replies.send(result)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="needs an alarm against what never ends")
def test_bytes_changed_anywhere_give_what_was_written_or_one_line(tmp_path: Path) -> None:
    for name, (spec, native) in RUNS.items():
        write_run(tmp_path / name, spec, failed=[1], values=make_values(spec, native))
    found: Counter[str] = Counter()
    good = {path: path.read_bytes() for path in tmp_path.rglob("*.h5")}
    while found.total() < 700:
        # HDF5 itself crashes on, or never comes back from, some of what is no HDF5 any more: another process goes on.
        receive, send = multiprocessing.Pipe(duplex=False)
        jobs = range(found.total(), 700)
        process = multiprocessing.get_context("spawn").Process(
            target=_read, args=([tmp_path / name for name in RUNS], jobs, send)
        )
        process.start()
        send.close()
        try:
            while True:
                found[receive.recv()] += 1
        except EOFError:
            process.join()
        if process.exitcode:
            found["lost"] += 1
            for path, content in good.items():
                path.write_bytes(content)
    print(found)
    assert found["lost"] <= 12
    assert found.keys() <= {"same", "one line", "lost"}
    assert found["one line"] >= 200
