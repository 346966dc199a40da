"""The same images from a folder, a list, tar files: the same features, bit for bit; and the options that say which."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import extract_features
from pipeline.cli import literal_arguments
from pipeline.errors import ImageError, StoreError
from pipeline.images.reading import read_image
from pipeline.plot import find_image, input_picture

from .processes import composed


def pack(path: Path, photographs: Path, names: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(photographs / name, name)


def test_features_are_the_same_bit_for_bit_from_wherever_the_images_come(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"layers": "relu2_1", "size": 32, "weights": "random", "quiet": True}
    by_folder = extract_features(photographs, **options)
    keys = by_folder.images["key"].tolist()
    pack(Path("shards/s-0.tar"), photographs, keys[:3])
    pq.write_table(pa.table({"path": keys}), "list.parquet")
    by_list = extract_features(photographs, list="list.parquet", **options)
    assert by_list.path.parent.name == "list-vgg19"
    by_tar = extract_features(tar="shards/*.tar", **options)
    assert len(by_tar) == 3
    pack(Path("shards/s-1.tar"), photographs, keys[3:])
    with pytest.raises(StoreError, match=r"4 added \('"):
        extract_features(tar="shards/*.tar", **options)
    by_tar = extract_features(tar="shards/s-?.tar", existing="extend", **options)
    assert by_tar.path.parent.name == "shards-vgg19"
    for run in (by_list, by_tar):
        for column in ("key", "label", "status", "sha256", "bytes", "height"):
            assert run.images[column].tolist() == by_folder.images[column].tolist()
        np.testing.assert_array_equal(run["relu2_1"][:], by_folder["relu2_1"][:])
    assert by_tar.images["tar"].tolist() == ["s-0.tar"] * 3 + ["s-1.tar"] * 4
    assert by_tar.attributes["data_source"] == "tar"
    assert "data_source" not in by_folder.attributes
    # What draws an input finds it in its tar file again, and says where it is not.
    for row, key in enumerate(keys):
        assert read_image(find_image(by_tar, row)) == (photographs / key).read_bytes()
    assert input_picture(by_tar, 5).shape == (32, 32, 3)
    page = (by_tar.path.parent / "report.html").read_text()
    assert "no picture" not in page
    assert page.count("data:image/png") == 6
    Path("shards/s-1.tar").unlink()
    with pytest.raises(ImageError, match="missing: file not found"):
        input_picture(by_tar, 5)
    Path("shards/s-1.tar").write_bytes(b"x" * 999)
    with pytest.raises(ImageError, match="it is no tar file"):
        input_picture(by_tar, 5)


def test_images_of_a_set_are_not_looked_for_and_that_is_said() -> None:
    stored: Any = SimpleNamespace(attributes={"data_source": "tfds", "data_root": "/sets"}, images={"key": ["tiny-train__0"]})
    with pytest.raises(ImageError, match=r"^not looked for: the images were in tfds$"):
        find_image(stored, 0)


def test_tar_files_are_taken_as_typed_and_a_range_that_the_shell_has_spread_is_one_list() -> None:
    for arguments, expected in (
        (["data.tar=shards/*.tar"], "shards/*.tar"),
        (["data.tar=s-{000..012}.tar"], "s-{000..012}.tar"),
        (["data.tar=['a,b.tar',c.tar]"], ["a,b.tar", "c.tar"]),
        (["data.tar=s-0.tar", "data.size=32", "data.tar=s,1.tar"], ["s-0.tar", "s,1.tar"]),
    ):
        assert composed(arguments)["data"]["tar"] == expected, literal_arguments(arguments)
