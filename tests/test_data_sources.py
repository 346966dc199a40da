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
from pipeline.config import check_options, tar_folder
from pipeline.errors import ImageError, OptionError, StoreError
from pipeline.from_python import _option_of
from pipeline.images.reading import read_image
from pipeline.plotting import find_image, image_place, input_picture
from pipeline.store.reader import Run

from .test_config import values
from .test_reproduce import again, composed


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
    by_list = extract_features("list.parquet", **{"data.dir": photographs}, **options)
    assert by_list.path.parent.name == "list-vgg19"
    by_tar = extract_features("shards/*.tar", **options)
    assert len(by_tar) == 3
    pack(Path("shards/s-1.tar"), photographs, keys[3:])
    with pytest.raises(StoreError, match=r"4 added \('"):
        extract_features("shards/*.tar", **options)
    by_tar = extract_features("shards/s-{0..1}.tar", existing="extend", **options)
    assert by_tar.path.parent.name == "shards-vgg19"
    for run in (by_list, by_tar):
        for column in ("key", "label", "status", "sha256", "bytes", "height"):
            assert run.images[column].tolist() == by_folder.images[column].tolist()
        np.testing.assert_array_equal(run["relu2_1"][:], by_folder["relu2_1"][:])
    assert by_tar.images["tar"].tolist() == ["s-0.tar"] * 3 + ["s-1.tar"] * 4
    assert by_tar.attributes["data_source"] == "tar"
    assert "data_source" not in by_folder.attributes
    look_again(by_tar, photographs, keys)


def look_again(run: Run, photographs: Path, keys: list[str]) -> None:
    """What draws an input finds it in its tar file again, and says where it is not."""
    for row, key in enumerate(keys):
        assert read_image(find_image(run, row)) == (photographs / key).read_bytes()
    seen = input_picture(run, 5)
    assert seen.shape == (32, 32, 3)
    assert image_place(run, 5) == f"{Path('shards/s-1.tar').absolute()}/{keys[5]}"
    page = (run.path.parent / "report.html").read_text()
    assert "no picture" not in page
    assert page.count("data:image/png") > 6
    for spoil, said in (
        (Path.unlink, "missing: file not found"),
        (lambda path: path.write_bytes(b"x" * 999), "unreadable: .*it is no tar file"),
    ):
        spoil(Path("shards/s-1.tar"))
        with pytest.raises(ImageError, match=said):
            input_picture(run, 5)


def test_images_of_a_set_are_not_looked_for_and_that_is_said() -> None:
    stored: Any = SimpleNamespace(attributes={"data_source": "tfds", "data_root": "/sets"}, images={"key": ["tiny-train__0"]})
    with pytest.raises(ImageError, match=r"^not looked for: the images were in tfds$"):
        find_image(stored, 0)
    assert image_place(stored, 0) == "/sets/tiny-train__0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__list": "a", "data__tar": "b.tar"}, r"data.tar: the images are named twice, got data.list too. Expected one of"),
        (
            {"data__dir": None, "data__tar": "b.tar", "data__tfds": "c"},
            r"data.tfds: the images are named twice, got data.tar too",
        ),
        ({"data__tar": "b.tar"}, r"data.dir: of no use beside data.tar, got '.+'. Expected tar files alone"),
        (
            {"data__split": "test"},
            r"data.split: only a set has splits, got 'test'. Expected data.tfds=NAME too",
        ),
        ({"data__dir": None, "data__tar": []}, r"data.tar: not a valid value, got \[\]. Expected a tar file, a folder of them"),
        ({"data__dir": None, "data__tar": 3}, r"data.tar: not a valid value, got 3. Expected a tar file"),
        ({"data__dir": None, "data__tar": ["a.tar", ""]}, r"data.tar: not a valid value, got \['a.tar', ''\]. Expected"),
        (
            {"data__tfds": "../x"},
            r"data.tfds: not a valid value, got '../x'. Expected a set's name: name, name/config or name:1.0.0",
        ),
        ({"data__tfds": 3}, r"data.tfds: not a valid value, got 3"),
        ({"data__tfds": "x", "data__split": "train[:10%]"}, r"data.split: not a valid value, got 'train\[:10%\]'"),
    ],
)
def test_options_that_name_images_are_held_to_one_another(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        check_options(values(**changes))
    assert "\n" not in str(caught.value)


def test_the_name_of_a_run_comes_from_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for tar, name in (
        ("x/train.tar", "train"),
        ("x/train.v2.TAR", "train.v2"),
        ("shards/*.tar", "shards"),
        ("shards", "shards"),
        ("a/b/{train,val}-{000..012}.tar", "b"),
        (["a/b/x.tar", "a/c/y.tar"], "a"),
        ("*.tar", tmp_path.name),
    ):
        options = check_options(values(data__dir=None, data__tar=tar))
        assert options.name == f"{name}-vgg19", tar
    assert check_options(values(data__dir=None, data__tfds="mnist/x:1.0.0", data__split="test")).name == "mnist-test-vgg19"
    assert check_options(values(data__tfds="mnist")).name == "mnist-vgg19"


def test_what_is_given_alone_tells_the_option(tmp_path: Path) -> None:
    (tmp_path / "odd.tar").mkdir()
    for value, option in (
        ("imgs", "data.dir"),
        ("list.CSV", "data.list"),
        ("a.parquet", "data.list"),
        ("shards/{0..3}.tar", "data.tar"),
        (["a.tar", "b.tar"], "data.tar"),
        (str(tmp_path / "odd.tar"), "data.dir"),
    ):
        assert _option_of(value) == option, value


def test_tar_files_are_taken_as_typed_and_a_range_that_the_shell_has_spread_is_one_list() -> None:
    for arguments, expected in (
        (["data.tar=shards/*.tar"], "shards/*.tar"),
        (["data.tar=s-{000..012}.tar"], "s-{000..012}.tar"),
        (["data.tar=[a b.tar,{x,y}-{0..3}.tar]"], ["a b.tar", "{x,y}-{0..3}.tar"]),
        (["data.tar=['a,b.tar',c.tar]"], ["a,b.tar", "c.tar"]),
        (["data.tar=s-0.tar", "data.size=32", "data.tar=s,1.tar"], ["s-0.tar", "s,1.tar"]),
    ):
        assert composed(arguments)["data"]["tar"] == expected, literal_arguments(arguments)


def test_the_command_finds_tar_files_and_sets_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    for tar in ("s/*.tar", "s/a.tar", "s", ["s/x-{0..3}.tar", "s/t/y.tar"], "s/x/*/b.tar", str(tmp_path / "s/a.tar")):
        monkeypatch.chdir(tmp_path)
        texts = [tar] if isinstance(tar, str) else tar
        root = tar_folder(texts)
        config = composed([f"data.tar={tar}" if isinstance(tar, str) else f"data.tar=[{','.join(tar)}]"])
        assert again(config, tmp_path / "run", root)["data"]["tar"] == tar
        monkeypatch.chdir(tmp_path / "there")
        found = again(config, tmp_path / "run", root)["data"]["tar"]
        assert found == (str(tmp_path / tar) if isinstance(tar, str) else [str(tmp_path / name) for name in tar])
    config = composed(["data.tfds=mnist", "data.split=test", "data.dir=sets"])
    data = again(config, tmp_path / "run", str(tmp_path / "sets"))["data"]
    assert (data["tfds"], data["split"], data["dir"]) == ("mnist", "test", str(tmp_path / "sets"))
