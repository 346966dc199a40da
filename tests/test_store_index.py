"""The index: all shards as one file, wherever it is opened from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store.index_file import build_index
from pipeline.store.reader import open_run

from .stored_runs import NATIVE_SIZES, make_spec, make_values, write_native_run, write_run
from .test_store_damage import change
from .test_store_reader import copy, folder, values

__all__ = ["copy", "folder", "values"]  # fixtures


def test_the_index_opens_from_any_directory_and_after_a_move(
    copy: Path, tmp_path: Path, values: dict[str, NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder of the same names where the program runs must not be taken for the run's own.
    decoy = tmp_path / "decoy"
    write_run(
        decoy, make_spec(identity={"seed": "9"}), values={k: [0 * x for x in v] for k, v in make_values(make_spec()).items()}
    )
    moved = copy.rename(tmp_path / "moved")
    for directory, given in ((decoy, "../moved"), (tmp_path, "moved"), (Path("/"), str(moved))):
        monkeypatch.chdir(directory)
        with h5py.File(f"{given}/features.h5") as file:
            np.testing.assert_array_equal(file["features/relu4_1"][:], values["relu4_1"])
        with open_run(given) as run:
            np.testing.assert_array_equal(run["relu4_1"][:], values["relu4_1"])


def test_the_index_links_the_images_of_native_size(tmp_path: Path) -> None:
    moved = write_native_run(tmp_path / "native").rename(tmp_path / "moved")
    expected = make_values(make_spec(6, {"relu4_1": None}), NATIVE_SIZES)["relu4_1"]
    with h5py.File(moved / "features.h5") as file:
        group = file["features/relu4_1"]
        assert list(group) == [f"{i:09d}" for i in (0, 2, 3, 4, 5)]
        assert group.attrs["axes"] == "height,width,channel"
        assert group.get("000000005", getlink=True).filename == "shards/shard-00001-of-00002.h5"
        np.testing.assert_array_equal(group["000000005"][()], expected[5])


def test_the_index_has_the_tree_of_a_shard(folder: Path) -> None:
    with h5py.File(folder / "features.h5") as index, h5py.File(folder / "shards/shard-00000-of-00003.h5") as shard:
        assert set(index.attrs) == set(shard.attrs)
        assert (index.attrs["file_kind"], index.attrs["first_row"]) == ("index", 0)
        for group in ("features", "images", "checksums"):
            assert set(index[group]) == set(shard[group])
        assert index["features/relu4_1"].is_virtual
        assert np.isnan(index["features/relu4_1"].fillvalue)
        for name in ("axes", "channels", "stride_px", "network_index", "dtype"):
            assert index["features/relu4_1"].attrs[name] == shard["features/relu4_1"].attrs[name]
        assert {source.file_name for source in index["features/relu4_1"].virtual_sources()} == {
            f"shards/shard-0000{n}-of-00003.h5" for n in range(3)
        }


@pytest.mark.parametrize("name", ["features.h5", "shards/shard-00002-of-00003.h5"])
def test_a_reader_of_netcdf_shows_named_axes_and_values(folder: Path, values: dict[str, NDArray[np.float32]], name: str) -> None:
    h5netcdf = pytest.importorskip("h5netcdf")
    with h5netcdf.File(folder / name, "r") as file:
        assert file.variables == {}
        layer = file["features"].variables["relu4_1"]
        assert layer.dimensions == ("image", "height_relu4_1", "width_relu4_1", "channel_relu4_1")
        np.testing.assert_array_equal(layer[-2:], values["relu4_1"][-2:])
        assert {column.dimensions for column in file["images"].variables.values()} == {("image",)}
        assert list(file["images"].variables["key"][-1:]) == ["folder0/image é9.jpg".encode()]


def test_the_index_is_not_built_over_a_missing_foreign_or_damaged_shard(tmp_path: Path) -> None:
    spec = make_spec()
    write_run(tmp_path, spec, index=False)
    path = tmp_path / "shards/shard-00001-of-00003.h5"
    whole, other = path.read_bytes(), make_spec(identity={"seed": "2"})
    of_other = {"run_digest": other.digest, "identity": json.dumps(other.identity, sort_keys=True)}
    path.unlink()
    with pytest.raises(StoreError, match=r"shard-00001-of-00003\.h5: the file is missing"):
        build_index(tmp_path, spec)
    damages: list[tuple[Callable[[h5py.File], object], str]] = [
        (lambda file: file.attrs.update(of_other), f"a file of another run, got run digest {other.digest[:12]}"),
        (lambda file: file["images"].__delitem__("label"), "column 'label' of /images is damaged"),
        (lambda file: file["checksums"].__delitem__("conv1_1"), "/checksums/conv1_1 is damaged"),
    ]
    for damage, words in damages:
        path.write_bytes(whole)
        change(path, damage)
        with pytest.raises(StoreError, match=rf"shard-00001-of-00003\.h5: {words}"):
            build_index(tmp_path, spec)
    assert not (tmp_path / "features.h5").exists()
