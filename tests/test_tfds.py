"""Sets of TensorFlow Datasets: which rows they become, from where they are read, and what is said of wrong ones."""

from __future__ import annotations

import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import plan
from pipeline.config import DataOptions
from pipeline.images.reading import read_image
from pipeline.images.tfds import find_set, list_set, sets_folder
from pipeline.records import Manifest, digest_images

from .test_folder import refusal
from .test_loader import errors_of
from .tiny_sets import IMAGES, tiny_png

pytestmark = pytest.mark.usefixtures("tiny_set")


def listed(name: str, folder: Path, split: str | None = None) -> Manifest:
    return list_set(find_set(name, folder), split, folder)


def refused(name: str, folder: Path, split: str | None = None) -> str:
    return refusal(lambda: listed(name, folder, split))


def test_rows_are_the_examples_in_the_order_of_the_files(tiny_set: Path) -> None:
    manifest = listed("tiny", tiny_set)
    assert len(manifest) == IMAGES
    assert manifest.keys[6:8] == ("tiny-train.tfrecord-00000-of-00003__6", "tiny-train.tfrecord-00001-of-00003__0")
    assert manifest.labels[:4] == ("", "dog", "cat", "dog")
    assert {name: values[1] for name, values in manifest.metadata.items()} == {
        "caption": "né 1\\x00",
        "is_odd": "true",
        "number": "1",
        "share": repr(float(np.float32(0.1))),
    }
    assert manifest.file_bytes.tolist() == [len(tiny_png(number)) for number in range(IMAGES)]
    assert manifest.root == str(tiny_set)
    assert manifest.digest == digest_images(manifest.keys, manifest.labels, manifest.file_bytes, manifest.metadata)
    assert listed("tiny:1.0.0", tiny_set, "test").metadata["number"] == ("50", "51", "52")


def test_images_are_the_encoded_bytes_whatever_the_order_they_are_asked_in(tiny_set: Path) -> None:
    sent = pickle.loads(pickle.dumps(listed("tiny", tiny_set)))
    for place in (*range(IMAGES), 9, 8, 1):
        assert read_image(sent[place]) == tiny_png(place)


def test_what_a_set_no_longer_holds_is_a_failed_row(tiny_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny/1.0.0"
    shutil.copytree(tiny_set / "tiny/1.0.0", folder)
    manifest = listed("tiny", tmp_path)
    assert manifest.source is not None
    (file,) = folder.glob("*train*-00001-*")
    assert manifest.source.modified_seconds(manifest[7]) == file.stat().st_mtime
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    changed = "unreadable: the tfds file changed since it was listed"
    assert errors_of(manifest, np.array([0, 7, 8, 19])) == ["", changed, changed, ""]
    gone = replace(manifest, places=np.full(IMAGES, -1))
    with pytest.raises(FileNotFoundError):
        read_image(gone[0])


def test_sets_are_found_by_name_configuration_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("a/1.0.0", "a/1.10.0", "a/1.9.0", "b/only/2.0.0", "c/x/1.0.0", "c/y/1.0.0", "a/other"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "dataset_info.json").touch()
    assert find_set("a", tmp_path) == tmp_path / "a/1.10.0"
    assert find_set("a:1.9.0", tmp_path) == tmp_path / "a/1.9.0"
    assert find_set("b", tmp_path) == find_set("b/only:2.0.0", tmp_path) == tmp_path / "b/only/2.0.0"
    assert find_set("c/y", tmp_path) == tmp_path / "c/y/1.0.0"
    for name, words in (("c", "c/x:1.0.0, c/y:1.0.0"), ("a:3.0.0", "a:1.0.0"), ("d", "a:1.0.0"), ("c/z", "c/x:1.0.0, c/y:1.0.0")):
        message = refused(name, tmp_path)
        assert message.startswith(f"data.tfds: no such set is prepared in '{tmp_path}', got '{name}'. Expected one of: ")
        assert words in message
    # TensorFlow takes seconds to load, and is not needed for the answer.
    monkeypatch.setattr(plan, "load_tensorflow", None)
    assert refusal(lambda: plan.list_images(DataOptions(tmp_path, tfds="d"))) == refused("d", tmp_path)
    assert refused("a", tmp_path / "none").startswith(f"data.tfds: no such set is prepared in '{tmp_path}/none', got 'a'.")


def test_the_folder_of_sets_is_the_one_of_tensorflow_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "x"))
    assert sets_folder(None) == tmp_path / "x"
    assert sets_folder(tmp_path) == tmp_path
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert sets_folder(None) == Path("~/tensorflow_datasets").expanduser()


def test_what_is_wrong_with_a_set_is_one_line(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("tiny", tiny_set, "val").startswith(
        "data.split: no such split, or an empty one, got 'val'. Expected one of: train, test."
    )
    folder = tmp_path / "tiny/1.0.0"
    shutil.copytree(tiny_set / "tiny/1.0.0", folder)
    data = (folder / "features.json").read_text()
    (folder / "features.json").write_text(data.replace("image_feature.Image", "text_feature.Text"))
    assert refused("tiny", tmp_path).startswith("data.tfds: no one feature is the image, got ")
    (folder / "features.json").write_text(data[:100])
    assert refused("tiny", tmp_path).startswith(f"data.tfds: the set in '{folder}' cannot be read, got ")
    (folder / "features.json").write_text(data)
    next(folder.glob("*train*-00002-*")).write_bytes(b"x" * 100)
    assert refused("tiny", tmp_path).startswith(f"data.tfds: the set in '{folder}' cannot be read, got DataLossError: ")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert refused("tiny", tiny_set).startswith("data.tfds: TensorFlow Datasets cannot be loaded, got ")
    assert refused("tiny", tiny_set).endswith("Run `pip install 'deep-feature-pipeline[tfds]'`.")
