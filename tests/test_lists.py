"""Lists of image paths: text and CSV, as people and other programs write them, and files that are no lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.errors import DatasetError
from pipeline.images.lists import read_list, refuse_all_missing
from pipeline.records import Manifest

from .test_folder import refusal, touch
from .test_loader import errors_of


def listed(tmp_path: Path, text: str | bytes, name: str = "list.txt", base: Path | None = None) -> Manifest:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_list(tmp_path / name, base)


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
    manifest = listed(tmp_path / "lists", text, base=tmp_path / "data")
    assert manifest.keys == ("in.jpg", "in2.jpg", f"{tmp_path}/out/o.jpg", f"{tmp_path}/out/p.jpg")
    assert manifest.labels == ("", "", "", "")
    assert [Path(record.path).is_file() for record in manifest] == [True, False, True, False]
    assert manifest.file_bytes.tolist() == [11, 0, 9, 0]


def test_paths_through_links_name_the_file_that_the_system_finds(tmp_path: Path) -> None:
    touch(tmp_path, "far/deep/x.jpg", "far/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    manifest = listed(tmp_path, "link/../a.jpg\n")
    assert manifest.keys == ("a.jpg",)
    assert Path(manifest[0].path).read_bytes() == b"x" * 9


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_csv_list_gives_labels_and_metadata(tmp_path: Path, encoding: str, end: str) -> None:
    text = end.join([",path,label,note", '1,a.jpg,cat,"two', 'lines, ""quoted"""', "2,b/c.jpg,,é", "", ""])
    manifest = listed(tmp_path, text.encode(encoding), "l.csv")
    assert manifest.keys == ("a.jpg", "b/c.jpg")
    assert manifest.labels == ("cat", "")
    assert manifest.metadata == {"column1": ("1", "2"), "note": (f'two{end}lines, "quoted"', "é")}


@pytest.mark.parametrize(("name", "mark"), [("l.tsv", "\t"), ("l.csv", ";"), ("l.txt", ","), ("l", "\t")])
def test_the_separator_is_found_in_the_header(tmp_path: Path, name: str, mark: str) -> None:
    manifest = listed(tmp_path, f'"label"{mark} path\nx{mark}"a.jpg"\n', name)
    assert (manifest.keys, manifest.labels) == (("a.jpg",), ("x",))


BAD_LISTS: dict[str, tuple[str | bytes, str]] = {
    "twice": (
        "path\na.jpg\nb.jpg\n./a.jpg\nx/../b.jpg\nc.jpg\nc.jpg\nd.jpg\nd.jpg\n",
        "4 images are named more than once, got 'a.jpg', 'b.jpg', 'c.jpg'. Expected each once.",
    ),
    "no rows": ("path,label\n", "no images, got "),
    "JPEG": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "not UTF-8 text (byte 0; from Windows? iconv "),
    "terminal": (b"path,x\na.jpg,\x1b[2J\n", "not text (character '\\x1b'), got "),
    "UTF-16": ("path\na.jpg\n".encode("utf-16-le"), "not text (character '\\x00'), got "),
    "no path": ("file,label\na.jpg,x\n", "no column 'path' among ['file', 'label'], got "),
    "same columns": ("path,x,x\na.jpg,1,2\n", "columns of the same name among ['path', 'x', 'x'], got "),
    "short line": ("path,x\na.jpg,1\nb.jpg\n", "line 3: 1 fields where the header has 2; "),
    "long field": ("path,x\na.jpg," + "1" * 200_000 + "\n", "line 2: field larger than field limit (131072); "),
    "empty path": ("path,x\na.jpg,1\n,2\n,3\n", "no path in image 2, got "),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_list_that_is_none_is_one_short_line(tmp_path: Path, case: str) -> None:
    content, words = BAD_LISTS[case]
    message = refusal(lambda: listed(tmp_path, content, "list.csv"))
    assert message.startswith(f"data.list: {words}"), message
    assert len(message) < 1500


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none.txt", r"cannot be read \(no such file or directory\)"),
        (tmp_path, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(DatasetError, match=rf"^data\.list: {words}, got '.*'\. Expected a file of image paths"):
            read_list(path)


def test_a_list_of_which_no_file_is_there_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg")
    with pytest.raises(DatasetError, match=r"^data\.list: none of its 2 files was found, got .*x\.jpg.*first line is path,label"):
        refuse_all_missing(listed(tmp_path, "a/x.jpg 0\na\\x.jpg"), tmp_path / "list.txt")
    refuse_all_missing(listed(tmp_path, "a/x.jpg 0\na/x.jpg"), tmp_path / "list.txt")


def test_names_that_no_system_has_and_files_that_are_no_images_are_failed_rows(tmp_path: Path) -> None:
    names = ["a" * 5000 + ".jpg", "d/" * 3000 + "x.jpg", "~/x.jpg", "/etc/passwd"]
    manifest = listed(tmp_path, "\n".join(names))
    errors, long = errors_of(manifest), "unreadable: file name too long"
    assert errors[:3] == [long, long, "missing: file not found"]
    assert errors[3].startswith("not an image: ")
