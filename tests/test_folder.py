"""Folders of images: which files become rows, in which order and under which names."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DatasetError, OptionError
from pipeline.images.folder import list_folder
from pipeline.images.lists import read_list
from pipeline.plan import with_labels


def touch(root: Path, *names: str) -> None:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * len(name))


def refusal(read: Callable[[], object]) -> str:
    """Gives the line by which a source of images is refused: option, what is wrong, what was found, what was expected."""
    with pytest.raises((DatasetError, OptionError)) as error:
        read()
    message = str(error.value)
    assert message.isprintable()
    assert re.match(r"data\.\w+: .+, got .+\. Expected .+\. \w", message), message
    return message


def test_a_folder_is_listed_by_key_with_sizes_and_first_folders_as_labels(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "cats/tom.jpg", "cats/old/b.JPEG", "Z.TIFF", "a/x.webp", "a-b.png")
    manifest = list_folder(tmp_path)
    # In the order of their bytes.
    assert manifest.keys == ("Z.TIFF", "a-b.png", "a/x.webp", "b.png", "cats/old/b.JPEG", "cats/tom.jpg")
    assert manifest.labels == ("", "", "a", "", "cats", "cats")
    assert manifest.file_bytes.dtype == np.int64
    assert manifest.file_bytes.tolist() == [6, 7, 8, 5, 15, 12]
    assert manifest.root == str(tmp_path)
    assert (manifest.paths, manifest.metadata, manifest.skipped) == ({}, {}, {})
    assert manifest[5].path == str(tmp_path / "cats" / "tom.jpg")


def test_names_that_are_not_unicode_have_valid_keys_and_their_real_path(tmp_path: Path) -> None:
    for name in (b"\xff.jpg", b"caf\xe9/\xfe.jpg", b"ok.jpg"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name)
    manifest = list_folder(tmp_path)
    assert manifest.keys == (r"\xff.jpg", r"caf\xe9/\xfe.jpg", "ok.jpg")
    assert manifest.labels == ("", r"caf\xe9", "")
    assert [Path(record.path).read_bytes() for record in manifest] == [b"\xff.jpg", b"caf\xe9/\xfe.jpg", b"ok.jpg"]
    assert sorted(manifest.paths) == [0, 1]
    (tmp_path / r"\xff.jpg").touch()
    with pytest.raises(DatasetError, match=r"^data\.dir: 1 images are named more than once"):
        list_folder(tmp_path)


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".hidden.jpg", "._a.jpg", ".git/b.jpg", "x/c.txt", "d.txt", "Thumbs.db", "README", "e.w#t")
    touch(tmp_path, "lost+found/f.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
        manifest = list_folder(tmp_path)
    assert manifest.keys == ("a.jpg",)
    assert manifest.skipped == {
        "extension .db": 1,
        "extension .txt": 2,
        "hidden file": 2,
        "hidden folder": 1,
        "other extension": 2,
        "special file": 3,
        "system folder": 1,
    }


def test_links_are_followed_and_never_lead_round_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path, "outside/o.jpg", "data/real/a.jpg")
    data = tmp_path / "data"
    (data / "again").symlink_to(data / "real")
    (data / "real" / "up").symlink_to(data)
    (data / "z").symlink_to(tmp_path / "outside")
    (data / "y").symlink_to(tmp_path / "outside")
    (data / "file.jpg").symlink_to(tmp_path / "outside" / "o.jpg")
    manifest = list_folder(data)
    assert manifest.keys == ("file.jpg", "real/a.jpg", "y/o.jpg")
    assert manifest.skipped == {"folder reached twice": 3}
    assert manifest.file_bytes.tolist() == [13, 15, 13]


def test_the_order_does_not_depend_on_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "out/o.jpg", *(f"data/{folder}/{name}.jpg" for folder in "abc" for name in "xyz"))
    for name in "pqr":
        (tmp_path / "data" / name).symlink_to(tmp_path / "out")
    forwards = list_folder(tmp_path / "data")
    walk = os.walk

    def walk_backwards(*given: Any, **how: Any) -> Iterator[Any]:
        for path, folders, files in walk(*given, **how):
            folders.sort(reverse=True)
            yield path, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", walk_backwards)
    backwards = list_folder(tmp_path / "data")
    assert backwards.keys == forwards.keys
    assert backwards.digest == forwards.digest
    assert "p/o.jpg" in forwards.keys


def test_a_folder_without_images_says_what_was_seen(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b/c.txt", ".d.jpg", "e.pdf")
    with pytest.raises(DatasetError, match=r"^data\.dir: no images, got '.*'\. Expected files of .*\.jpg") as error:
        list_folder(tmp_path)
    assert str(error.value).endswith("Skipped: 2 extension .txt, 1 extension .pdf, 1 hidden file. Check the path.")
    for name in ("none", "a.txt"):
        with pytest.raises(DatasetError, match=rf"^data\.dir: no such folder, got '.*{name}'\."):
            list_folder(tmp_path / name)


def test_folders_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "shut/b.jpg", "open/c.jpg")
    scandir = os.scandir

    # Refused by hand: permissions do not bind the super-user, whom containers often run tests as.
    def guarded(path: str) -> Any:
        if path == str(tmp_path / "shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DatasetError, match=r"^data\.dir: 1 folder\(s\) cannot be read, got '.*shut' \(permission denied\)\."):
        list_folder(tmp_path)


def test_run_folders_and_the_pictures_of_runs_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "imgs/a.jpg", "outputs/r-vgg19/manifest.jsonl.gz", "outputs/r-vgg19/shards/s.h5", "outputs/r-vgg19/x.png")
    touch(tmp_path, "outputs/r-vgg19-a.jpg-relu4_1.png", "outputs/r-other.png", "features.h5", "manifest.jsonl.gz")
    touch(tmp_path, "mine/features.h5", "mine/b.jpg", "mine-b.png")
    manifest = list_folder(tmp_path)
    assert manifest.keys == ("imgs/a.jpg", "mine-b.png", "mine/b.jpg", "outputs/r-other.png")
    assert manifest.skipped == {"extension .gz": 1, "extension .h5": 2, "picture of a run": 1, "run folder": 1}


def test_labels_are_the_first_folder_the_last_or_a_column(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/a.jpg", "b.jpg", "val/dog/c.jpg")
    manifest = list_folder(tmp_path)
    assert with_labels(manifest, "folder") is manifest
    by_parent = with_labels(manifest, "parent")
    assert by_parent.labels == ("", "cat", "dog")
    assert by_parent.digest != manifest.digest
    (tmp_path / "l.csv").write_text("path,label,kind\nb.jpg,1,x\nval/dog/c.jpg,2,y\n")
    table = read_list(tmp_path / "l.csv")
    assert table.labels == ("1", "2")
    assert with_labels(table, "kind").labels == ("x", "y")
    assert with_labels(table, "parent").labels == ("", "dog")
    with pytest.raises(OptionError, match=r"^data\.label: .* got 'sort'\. Expected one of: folder, parent, kind\."):
        with_labels(table, "sort")
