"""Lists that somebody made to fill the memory, to name other files or to break the table."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DatasetError
from pipeline.images import lists
from pipeline.images.loader import ImageLoader
from pipeline.images.manifest import list_folder, read_list
from pipeline.records import Manifest

from .bad_images import picture


def listed(tmp_path: Path, content: str | bytes, name: str = "list.csv") -> Manifest:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_list(tmp_path / name)


def refused(tmp_path: Path, content: str | bytes, name: str = "list.csv") -> str:
    with pytest.raises(DatasetError) as caught:
        listed(tmp_path, content, name)
    message = str(caught.value)
    assert message.startswith("data.list: ")
    assert message.isprintable()
    assert len(message) < 1500
    return message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"path,x\na.jpg,1\x00\n", "not text (character '\\x00')"),
        (b"path,x\na.jpg,\x1b[2J\n", "not text (character '\\x1b')"),
        ("path,x\na.jpg," + "1" * 200_000 + "\n", "field larger than field limit (131072)"),
        ('path,x\na.jpg,"' + "1\n" * 100_000 + "\n", "field larger than field limit (131072)"),
        ("path" + ",a" * 1_000_000 + "\na.jpg" + ",1" * 1_000_000 + "\n", "line 1: 1,000,001 columns, more than 1,000"),
        ("a" * 100_000 + "\nb.jpg\n", "no column 'path', got ["),
        ("path,x,x\na.jpg,1,2\n".replace("x", "x" * 100_000), "columns of the same name, got "),
        ("path,x\na.jpg,1\na.jpg,1\n".replace("a.jpg", "a" * 100_000), "1 images are named more than once, got "),
        ("path,x\n" + "\n".join(f"{number}.jpg,{'1,' * number}1" for number in range(5)), "fields where the header has 2"),
        ("\ufeffpath\na.jpg\n".encode("utf-16-be")[:-1], "not utf-16-be text"),
        ("path\na.jpg\n".encode("utf-16-le"), "not text (character '\\x00')"),
        ("path\na.jpg\n".encode("utf-32"), "not text (character '\\x00')"),
    ],
    ids=[
        "NUL", "terminal", "long field", "open quote", "columns", "header", "same columns", "same names", "ragged", "half",
        "utf-16 unmarked", "utf-32",
    ],
)  # fmt: skip
def test_lists_that_are_no_lists_are_refused_with_one_short_line(tmp_path: Path, content: str | bytes, words: str) -> None:
    assert words in refused(tmp_path, content)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_list_that_is_a_pipe_or_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(DatasetError, match=r"^data\.list: not a regular file, got '.*list\.txt'\. Expected a text or CSV file"):
        read_list(tmp_path / "list.txt")
    with pytest.raises(DatasetError, match=r"^data\.list: not a regular file, got '/dev/zero'\. Expected a text or CSV file"):
        read_list(Path("/dev/zero"))


def test_a_list_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_LIST_BYTES", 10)
    assert listed(tmp_path, "path\na.jpg").keys == ("a.jpg",)
    message = refused(tmp_path, "path\na.jpg\n")
    assert "too large (11 bytes, limit 10 bytes), got " in message


def test_paths_may_lead_out_of_the_lists_folder_and_show_it_in_their_keys(tmp_path: Path) -> None:
    # Whoever runs the program may read these files anyway; a list from a stranger should be looked at, so keys hide nothing.
    (tmp_path / "lists").mkdir()
    picture(0).save(tmp_path / "outside.png")
    manifest = listed(tmp_path / "lists", f"../outside.png\n{tmp_path}/lists/../absolute.png\n/etc/passwd\n", "list.txt")
    assert manifest.keys == (f"{tmp_path}/outside.png", f"{tmp_path}/absolute.png", "/etc/passwd")
    (batch,) = ImageLoader(manifest, np.arange(3), batch_size=3, workers=1)
    assert [status.error.partition(":")[0] for status in batch.statuses] == ["", "missing", "not an image"]


def test_names_that_no_system_has_are_failed_rows(tmp_path: Path) -> None:
    manifest = listed(tmp_path, "\n".join(["a" * 5000 + ".jpg", "d/" * 3000 + "x.jpg", "~/x.jpg", "http://a/b.jpg"]), "list.txt")
    (batch,) = ImageLoader(manifest, np.arange(4), batch_size=4, workers=1)
    assert [status.error for status in batch.statuses] == [
        "unreadable: file name too long",
        "unreadable: file name too long",
        "missing: file not found",
        "missing: file not found",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="names and special files as on Unix")
def test_a_folder_too_deep_to_be_named_is_said_to_be_so(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(60):
            Path("d" * 100).mkdir()
            os.chdir("d" * 100)
    finally:
        os.chdir(here)
    with pytest.raises(DatasetError, match=r"1 folder\(s\) cannot be read, got '.*' \(file name too long\)") as caught:
        list_folder(tmp_path)
    assert len(str(caught.value)) < 1000
