from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DatasetError, OptionError
from pipeline.image_list import with_labels
from pipeline.images.manifest import list_folder, read_list, refuse_all_missing
from pipeline.records import Manifest


def touch(root: Path, *names: str) -> None:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * len(name))


def listed(tmp_path: Path, text: str | bytes, name: str = "list.txt", base: Path | None = None) -> Manifest:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_list(path, base)


def refused(tmp_path: Path, text: str | bytes, name: str = "list.txt") -> str:
    with pytest.raises(DatasetError) as error:
        listed(tmp_path, text, name)
    assert "\n" not in str(error.value)
    assert re.search(r", got .+\. Expected .+\. \w", str(error.value))
    return str(error.value)


def test_a_folder_is_listed_by_key_with_sizes_and_first_folders_as_labels(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "cats/tom.jpg", "cats/old/b.JPEG", "Z.TIFF", "a/x.webp")
    manifest = list_folder(tmp_path)
    assert manifest.keys == ("Z.TIFF", "a/x.webp", "b.png", "cats/old/b.JPEG", "cats/tom.jpg")
    assert manifest.labels == ("", "a", "", "cats", "cats")
    assert manifest.file_bytes.dtype == np.int64
    assert manifest.file_bytes.tolist() == [6, 8, 5, 15, 12]
    assert manifest.root == str(tmp_path)
    assert (manifest.paths, manifest.metadata, manifest.skipped) == ({}, {}, {})
    assert manifest[4].path == str(tmp_path / "cats" / "tom.jpg")


def test_keys_are_in_the_order_of_their_utf_8_bytes(tmp_path: Path) -> None:
    names = ["a.jpg", "a b.jpg", "a/z.jpg", "a-b/z.jpg", "é.jpg", "\uffee.jpg", "😀.jpg", "Z.jpg"]
    touch(tmp_path, *names)
    assert list(list_folder(tmp_path).keys) == sorted(names, key=str.encode)


def test_strange_names_are_listed_and_can_be_opened(tmp_path: Path) -> None:
    names = [
        "with space.jpg",
        'quote".jpg',
        "quote'.jpg",
        "new\nline.jpg",
        "n" * 251 + ".jpg",
        "Case.jpg",
        "case.jpg",
        "back\\slash.jpg",
    ]
    names += ["\u00e9.jpg", "e\u0301.jpg", "~.jpg", "#x.jpg", " lead.jpg", "a..b.jpg"]
    touch(tmp_path, *names)
    manifest = list_folder(tmp_path)
    assert sorted(manifest.keys) == sorted(names)
    for record in manifest:
        assert Path(record.path).read_bytes() == b"x" * len(record.key)


def test_names_that_are_not_unicode_have_valid_unique_keys_and_their_real_path(tmp_path: Path) -> None:
    for name in (b"\xff.jpg", b"\\xff.jpg", b"caf\xe9/\xfe.jpg", b"ok.jpg"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name)
    manifest = list_folder(tmp_path)
    assert manifest.keys == (r"\xff.jpg", r"\xff.jpg~", r"caf\xe9/\xfe.jpg", "ok.jpg")
    assert manifest.labels == ("", "", r"caf\xe9", "")
    assert [Path(record.path).read_bytes() for record in manifest] == [b"\\xff.jpg", b"\xff.jpg", b"caf\xe9/\xfe.jpg", b"ok.jpg"]
    assert sorted(manifest.paths) == [1, 2]


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.jpg",
        ".hidden.jpg",
        "._a.jpg",
        ".git/b.jpg",
        "x/c.txt",
        "d.txt",
        "Thumbs.db",
        "README",
        "e.w#t",
        "lost+found/f.jpg",
    )
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
        "no extension": 1,
        "other extension": 1,
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


def test_links_to_nothing_are_rows_without_bytes(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    manifest = list_folder(tmp_path)
    assert manifest.keys == ("gone.jpg", "self.jpg")
    assert manifest.file_bytes.tolist() == [0, 0]


def test_the_order_does_not_depend_on_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "out/o.jpg", *(f"data/{folder}/{name}.jpg" for folder in "abc" for name in "xyz"))
    for name in "pqr":
        (tmp_path / "data" / name).symlink_to(tmp_path / "out")
    forwards = list_folder(tmp_path / "data")
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> Iterator[Any]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    backwards = list_folder(tmp_path / "data")
    assert backwards.keys == forwards.keys
    assert backwards.digest == forwards.digest
    assert "p/o.jpg" in forwards.keys


def test_a_relative_folder_is_found_again_after_the_working_folder_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "data/a.jpg")
    monkeypatch.chdir(tmp_path)
    manifest = list_folder(Path("data"))
    monkeypatch.chdir("/")
    assert Path(manifest[0].path).is_file()


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(
        DatasetError, match=r"^data\.dir: no such folder, got '.*none'\. Expected a folder of images\. Check the path\.$"
    ):
        list_folder(tmp_path / "none")
    with pytest.raises(
        DatasetError, match=r"^data\.dir: not a folder, got '.*a\.jpg'\. Expected a folder of images\. Check the path\.$"
    ):
        list_folder(tmp_path / "a.jpg")


def test_a_folder_without_images_says_what_was_seen(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b/c.txt", ".d.jpg", "e.pdf")
    with pytest.raises(DatasetError) as error:
        list_folder(tmp_path)
    assert str(error.value).startswith(
        f"data.dir: no images among 4 files, got '{tmp_path}'. Expected files with one of the extensions "
    )
    assert str(error.value).endswith("Skipped: 2 extension .txt, 1 extension .pdf, 1 hidden file. Check the path.")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no images among 0 files.* Skipped: nothing\. Check"):
        list_folder(tmp_path / "empty")


@pytest.mark.parametrize("closed", ["", "shut"])
def test_folders_that_cannot_be_read_are_named(tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "shut/b.jpg", "open/c.jpg")
    scandir = os.scandir

    # Refused by hand: permissions do not bind the super-user, whom containers often run tests as.
    def guarded(path: str) -> Any:
        if path == str(tmp_path / closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DatasetError) as error:
        list_folder(tmp_path)
    seen = 2 if closed else 0
    assert str(error.value) == (
        f"data.dir: 1 folder(s) cannot be read, got '{tmp_path / closed}' (permission denied). Expected folders that "
        f"this user may list; {seen} files were seen in others. Mend their permissions."
    )


def test_the_digest_covers_keys_sizes_labels_and_metadata(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    text = "path,label,note\na.jpg,x,1\nb.jpg,y,2\n"
    first = listed(tmp_path, text)
    assert re.fullmatch(r"[0-9a-f]{64}", first.digest)
    assert listed(tmp_path, text).digest == first.digest
    changed = [text.replace("b.jpg", "c.jpg"), text.replace("y", "z"), text.replace("2", "3"), text.replace("note", "n")]
    changed += [text.replace("x,1", "x1,"), "path,label,note\nb.jpg,y,2\na.jpg,x,1\n", "path,label\na.jpg,x\nb.jpg,y\n"]
    digests = {first.digest, *(listed(tmp_path, other).digest for other in changed)}
    (tmp_path / "b.jpg").write_bytes(b"longer than before")
    digests.add(listed(tmp_path, text).digest)
    assert len(digests) == len(changed) + 2


def test_a_text_list_keeps_its_order_and_passes_over_comments_and_empty_lines(tmp_path: Path) -> None:
    touch(tmp_path, "cats/tom.jpg", "b c.jpg", "é.png", "no-extension")
    manifest = listed(tmp_path, "# mine\ncats/tom.jpg\n\n  \nb c.jpg\r\né.png\n./no-extension\nmissing.jpg")
    assert manifest.keys == ("cats/tom.jpg", "b c.jpg", "é.png", "no-extension", "missing.jpg")
    assert manifest.labels == ("cats", "", "", "", "")
    assert manifest.file_bytes.tolist() == [12, 7, 5, 12, 0]
    assert manifest.root == str(tmp_path)
    assert manifest.paths == {}
    assert manifest[0].path == str(tmp_path / "cats" / "tom.jpg")


def test_paths_of_a_list_are_relative_to_the_base_and_absolute_outside_it(tmp_path: Path) -> None:
    touch(tmp_path, "lists/x.jpg", "data/in.jpg", "out/o.jpg")
    text = f"in.jpg\n{tmp_path}/data/in2.jpg\n../out/o.jpg\n{tmp_path}/out/p.jpg\n"
    (tmp_path / "lists" / "l.txt").write_text(text)
    manifest = read_list(tmp_path / "lists" / "l.txt", tmp_path / "data")
    assert manifest.keys == ("in.jpg", "in2.jpg", f"{tmp_path}/out/o.jpg", f"{tmp_path}/out/p.jpg")
    assert manifest.labels == ("", "", "", "")
    assert [Path(record.path).is_file() for record in manifest] == [True, False, True, False]
    assert manifest.file_bytes.tolist() == [11, 0, 9, 0]


def test_a_path_that_goes_back_through_a_link_means_the_file_that_the_system_finds(tmp_path: Path) -> None:
    touch(tmp_path, "far/deep/x.jpg", "far/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    manifest = listed(tmp_path, "link/../a.jpg\n")
    assert manifest.keys == ("a.jpg",)
    assert Path(manifest[0].path).read_bytes() == b"x" * 9


def test_list_lines_that_are_not_utf_8_name_the_file_with_those_bytes(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xe9.jpg")).write_bytes(b"latin")
    manifest = listed(tmp_path, b"\xe9.jpg\n")
    assert manifest.keys == (r"\xe9.jpg",)
    assert Path(manifest[0].path).read_bytes() == b"latin"
    assert manifest.file_bytes.tolist() == [5]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_csv_list_gives_labels_and_metadata(tmp_path: Path, mark: bytes, end: str) -> None:
    text = end.join(["id,path,label,note", '1,a.jpg,cat,"two', 'lines, ""quoted"""', "2,b/c.jpg,,é", "", ""])
    manifest = listed(tmp_path, mark + text.encode(), "l.csv")
    assert manifest.keys == ("a.jpg", "b/c.jpg")
    assert manifest.labels == ("cat", "")
    assert manifest.metadata == {"id": ("1", "2"), "note": (f'two{end}lines, "quoted"', "é")}


def test_without_a_label_column_the_first_folder_is_the_label(tmp_path: Path) -> None:
    assert listed(tmp_path, "path,note\na/b.jpg,1\nc.jpg,2\n", "l.csv").labels == ("a", "")


@pytest.mark.parametrize(
    ("name", "mark"), [("l.tsv", "\t"), ("l.csv", ";"), ("l.csv", "\t"), ("l.txt", ","), ("l", "\t"), ("l.txt", ";")]
)
def test_the_separator_is_found_in_the_header(tmp_path: Path, name: str, mark: str) -> None:
    manifest = listed(tmp_path, f'"label"{mark} path\nx{mark}"a.jpg"\n', name)
    assert (manifest.keys, manifest.labels) == (("a.jpg",), ("x",))


def test_lists_in_utf_16_are_read(tmp_path: Path) -> None:
    assert listed(tmp_path, "é.jpg\r\nb.jpg\r\n".encode("utf-16")).keys == ("é.jpg", "b.jpg")


def test_a_column_without_a_name_is_named_by_its_place(tmp_path: Path) -> None:
    assert listed(tmp_path, ",path\n0,a.jpg\n1,b.jpg\n", "l.csv").metadata == {"column1": ("0", "1")}


def test_an_image_named_twice_is_refused(tmp_path: Path) -> None:
    text = refused(tmp_path, "a.jpg\nb.jpg\n./a.jpg\nx/../b.jpg\nc.jpg\nc.jpg\nd.jpg\nd.jpg\n")
    assert text == (
        "data.list: 4 images are named more than once, got 'a.jpg', 'b.jpg', 'c.jpg'. Expected each image once. "
        "Remove the repeated lines."
    )


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "path,label\n"])
def test_a_list_without_paths_is_refused(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).startswith(
        f"data.list: no paths in the list, got '{tmp_path}/list.txt'. Expected one path a line."
    )


@pytest.mark.parametrize(
    "data", [b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\x89PNG\r\n\x1a\n", bytes(range(256)), b"a.jpg\x00b.jpg\x00"]
)
def test_rubbish_is_refused_as_a_list(tmp_path: Path, data: bytes) -> None:
    assert refused(tmp_path, data).startswith("data.list: not text (character '\\x")


def test_broken_utf_16_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, b"\xff\xfea\x00b").startswith("data.list: not utf-16-le text (byte 2), got ")


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"^data\.list: cannot be read \(no such file or directory\), got '.*none\.txt'\. Expected a "
    ):
        read_list(tmp_path / "none.txt")
    with pytest.raises(DatasetError, match=r"^data\.list: cannot be read \(is a directory\), got .* data\.dir takes a folder\.$"):
        read_list(tmp_path)


def test_a_table_without_a_path_column_is_refused(tmp_path: Path) -> None:
    text = refused(tmp_path, "file,label\na.jpg,x\n", "l.csv")
    assert text.startswith(
        f"data.list: '{tmp_path}/l.csv': no column 'path', got ['file', 'label']. Expected a first line that names"
    )
    assert "got an empty file" in refused(tmp_path, "", "l.csv")


def test_columns_that_the_store_uses_itself_are_kept_for_it_to_rename(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,width,height,a/b\na.jpg,640,480,x\n")
    manifest = read_list(tmp_path / "l.csv")
    assert dict(manifest.metadata) == {"width": ("640",), "height": ("480",), "a/b": ("x",)}


def test_columns_of_the_same_name_are_refused(tmp_path: Path) -> None:
    assert "columns of the same name, got ['x']." in refused(tmp_path, "path,x,x\na.jpg,1,2\n", "l.csv")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("path,x\na.jpg,1\nb.jpg\n", "line 3: 1 fields where the header has 2, got "),
        ("path,x\na,b.jpg,1\n", "line 2: 3 fields where the header has 2, got "),
        ('path,x\na.jpg,"open\nb.jpg,1\n', "line 3: unexpected end of data, got "),
    ],
)
def test_lines_of_the_wrong_length_are_refused(tmp_path: Path, text: str, part: str) -> None:
    assert refused(tmp_path, text, "l.csv").startswith(f"data.list: {part}")


def test_rows_without_a_path_are_refused(tmp_path: Path) -> None:
    text = refused(tmp_path, "path,x\na.jpg,1\n,2\n,3\n", "l.csv")
    assert "rows without a path, got '' in image 2 and 1 others. Expected a path in each row." in text


def noted(tmp_path: Path, text: str | bytes, name: str = "list.txt") -> tuple[Manifest, list[str]]:
    notes: list[str] = []
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_list(tmp_path / name, None, notes.append), notes


def test_lines_of_caffe_are_a_path_and_a_label_and_that_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg", "a/y z.jpg", "plain 3.png")
    manifest, notes = noted(tmp_path, "a/x.jpg 0\na/y z.jpg\t12\na/gone.jpg 1\nplain 3.png\n")
    assert manifest.keys == ("a/x.jpg", "a/y z.jpg", "a/gone.jpg", "plain 3.png")
    assert manifest.labels == ("0", "12", "1", "")
    assert manifest.file_bytes.tolist() == [7, 9, 0, 11]
    assert notes == ["data.list: the last word as the label in 3 lines, whose files are there then, e.g. 'a/x.jpg 0'"]


def test_lines_whose_files_are_there_are_taken_as_they_stand(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg 0", "b\\c.jpg", "b/c.jpg")
    manifest, notes = noted(tmp_path, "a.jpg 0\nb\\c.jpg\nnot there.jpg 5\n")
    assert manifest.keys == ("a.jpg 0", "b\\c.jpg", "not there.jpg 5")
    assert notes == []
    manifest, notes = noted(tmp_path, "path,label\na.jpg 0,x\n", "list.csv")
    assert (manifest.keys, manifest.labels, notes) == (("a.jpg 0",), ("x",), [])


def test_backslashes_are_understood_where_the_path_with_slashes_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg", "a/y.jpg")
    manifest, notes = noted(tmp_path, "path,label\na\\x.jpg,1\na\\gone.jpg,2\n", "list.csv")
    assert (manifest.keys, manifest.labels) == (("a/x.jpg", "a/gone.jpg"), ("1", "2"))
    assert notes == ["data.list: \\ as / in 2 lines, whose files are there then, e.g. 'a\\\\x.jpg'"]
    manifest, notes = noted(tmp_path, "a\\x.jpg 7\na\\y.jpg 8\n")
    assert (manifest.keys, manifest.labels) == (("a/x.jpg", "a/y.jpg"), ("7", "8"))
    assert len(notes) == 1


def test_a_list_in_cp1252_is_named_as_such(tmp_path: Path) -> None:
    touch(tmp_path, "café.jpg", "b.jpg")
    for name, text in (("list.txt", "café.jpg\n"), ("list.csv", "path,label\nb.jpg,Käse\n")):
        message = refused(tmp_path, text.encode("cp1252"), name)
        assert message.startswith("data.list: not UTF-8 text but perhaps cp1252, got '"), message
        assert "iconv -f cp1252 -t utf-8" in message


def test_a_list_of_which_no_file_is_there_says_where_it_looked(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.jpg")
    manifest = listed(tmp_path, "a.jpg\nb.jpg\n")
    with pytest.raises(
        DatasetError, match=r"data\.list: none of its 2 files was found, got '.*list\.txt' with paths such as"
    ) as error:
        refuse_all_missing(manifest, tmp_path / "list.txt")
    assert f"'{tmp_path / 'a.jpg'}'. Expected absolute paths, or paths relative to {str(tmp_path)!r}. Set data.dir" in str(
        error.value
    )
    # One that is there, even if it is empty, is enough.
    (tmp_path / "b.jpg").touch()
    refuse_all_missing(listed(tmp_path, "a.jpg\nb.jpg\n"), tmp_path / "list.txt")
    refuse_all_missing(listed(tmp_path, "a.jpg\nb.jpg\n", base=tmp_path / "data"), tmp_path / "list.txt")


def test_run_folders_and_the_pictures_of_runs_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "imgs/a.jpg", "outputs/r-vgg19/features.h5", "outputs/r-vgg19/shards/s.h5", "outputs/r-vgg19/x.png")
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
    table = listed(tmp_path, "path,label,kind\nb.jpg,1,x\nval/dog/c.jpg,2,y\n", "l.csv")
    assert table.labels == ("1", "2")
    assert with_labels(table, "kind").labels == ("x", "y")
    assert with_labels(table, "parent").labels == ("", "dog")
    with pytest.raises(
        OptionError, match=r"data\.label: there is no such column, got 'sort'\. Expected one of: folder, parent, kind\."
    ):
        with_labels(table, "sort")
