"""Images in tar files: which rows they become, hostile files, and that each is read where it lies."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import tar_folder
from pipeline.images import tar as tars
from pipeline.images.reading import read_image
from pipeline.images.tar import list_tars
from pipeline.job import changed_rows
from pipeline.records import Manifest, digest_images
from pipeline.sharding import ShardSpec

from .bad_images import encode
from .test_folder import refusal
from .test_loader import errors_of


def png(number: int) -> bytes:
    return encode(Image.new("RGB", (4, 3 + number), (number, 0, 255)), "PNG")


def write_tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            add(tar, name, data)


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, target
    tar.addfile(info, io.BytesIO(data))


def listed(*names: str | Path) -> Manifest:
    texts = [str(name) for name in names]
    notes: list[str] = []
    manifest = list_tars(texts, tar_folder(texts), notes.append)
    assert notes == []
    return manifest


def refused(*names: str | Path) -> str:
    texts = [str(name) for name in names]
    return refusal(lambda: list_tars(texts, tar_folder(texts), lambda line: None))


def contents(manifest: Manifest) -> list[bytes]:
    return [read_image(record) for record in manifest]


def test_rows_come_in_the_order_of_the_files_and_of_their_members(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-1.tar", {"z/1.png": png(1), "a/2.jpg": b"2" * 5000, "notes": b"", "b.txt": b""})
    write_tar(tmp_path / "s-0.tar", {"./k/3.PNG": png(3), "4.png": png(4)})
    manifest = listed(tmp_path / "s-*.tar")
    assert manifest.keys == ("k/3.PNG", "4.png", "z/1.png", "a/2.jpg")
    assert manifest.labels == ("k", "", "z", "a")
    assert manifest.metadata == {"tar": ("s-0.tar", "s-0.tar", "s-1.tar", "s-1.tar")}
    assert manifest.file_bytes.tolist() == [len(png(3)), len(png(4)), len(png(1)), 5000]
    assert manifest.skipped == {"extension .txt": 1, "other extension": 1}
    assert manifest.root == str(tmp_path)
    assert manifest.digest == digest_images(manifest.keys, manifest.labels, manifest.file_bytes, manifest.metadata)
    sent = pickle.loads(pickle.dumps(manifest))
    assert contents(manifest) == contents(sent) == [png(3), png(4), png(1), b"2" * 5000]


def test_a_name_may_be_anything(tmp_path: Path) -> None:
    names = [f"{'d' * 60}/{'e' * 80}/a.png", "é/ü.png", "/etc/x.png", "../../up.png", "a b\nc.png", "very/" * 60 + "long.png"]
    write_tar(tmp_path / "a.tar", {name: name.encode() for name in names})
    manifest = listed(tmp_path / "a.tar")
    assert list(manifest.keys) == names
    assert contents(manifest) == [name.encode() for name in names]


def test_keys_stay_when_tar_files_are_added_at_the_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": b"a", "1.png": b"aa"})
    write_tar(tmp_path / "sub/b.tar", {"1.png": b"b", "2.png": b"bb"})
    before = listed(tmp_path / "a.tar", tmp_path / "sub/*.tar")
    assert before.keys == ("0.png", "1.png", "sub/b.tar/1.png", "sub/b.tar/2.png")
    write_tar(tmp_path / "sub/c.tar", {"3.png": b"c", "4.png": b"cc"})
    write_tar(tmp_path / "sub/d.tar", {"2.png": b"d"})
    after = listed(tmp_path / "sub/*.tar", tmp_path / "a.tar", tmp_path / "sub/c.tar")
    assert after.keys == (*before.keys, "3.png", "4.png", "sub/d.tar/2.png")
    assert after.labels == ("",) * 7
    assert contents(after) == [b"a", b"aa", b"b", b"bb", b"c", b"cc", b"d"]


def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.png", b"old"), ("y.png", b"y"), ("./x.png", b"newer")])
    manifest = listed(tmp_path / "a.tar")
    assert manifest.keys == ("y.png", "x.png")
    assert contents(manifest) == [b"y", b"newer"]
    assert manifest.skipped == {"replaced by a later one of its name": 1}


def test_the_class_and_what_is_said_of_an_image_lie_beside_it(tmp_path: Path) -> None:
    said = {"caption": "a\x00b", "n": 3, "x": 0.5, "is": True, "none": None, "in": {"a": 1}, "l": [1], "label": "no", "tar": "t"}
    samples = {
        "d/0.png": png(0),
        "d/0.seg.png": png(0),
        "d/0.json": json.dumps(said).encode(),
        "d/0.cls": b" 7\n",
        "d/1.json": b'{"label": "cat", "more": "\\ud800"}',
        "d/1.png": png(1),
        "d/2.png": png(2),
    }
    write_tar(tmp_path / "a.tar", samples)
    manifest = listed(tmp_path / "a.tar")
    assert manifest.keys == ("d/0.png", "d/0.seg.png", "d/1.png", "d/2.png")
    assert manifest.labels == ("7", "7", "cat", "d")
    assert manifest.metadata == {
        "caption": ("a\\x00b", "a\\x00b", "", ""),
        "is": ("true", "true", "", ""),
        "more": ("", "", "\\ud800", ""),
        "n": ("3", "3", "", ""),
        "none": ("", "", "", ""),
        "tar": ("a.tar",) * 4,
        "x": ("0.5", "0.5", "", ""),
    }


def test_what_cannot_be_used_beside_an_image_is_said(tmp_path: Path) -> None:
    members = {
        "0.png": b"x",
        "0.cls": b"\xff",
        "1.cls": b"9" * 70000,
        "1.json": b"[" * 60000,
        "2.json": b"3",
        "3.json": b" " * 70000,
    }
    write_tar(tmp_path / "a.tar", members)
    manifest = listed(tmp_path / "a.tar")
    assert manifest.skipped == {".cls that holds no label or is too large": 2, ".json that holds no label or is too large": 3}


def test_a_tar_file_without_an_end_or_with_more_behind_it_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    write_tar(tmp_path / "a.tar", {"a.png": b"x"})
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(data[:1024])
    (tmp_path / "c.tar").write_bytes(data + data)
    for name in "abc":
        assert list_tars([str(tmp_path / f"{name}.tar")], str(tmp_path), notes.append).keys == ("a.png",)
    assert notes == [
        "'b.tar' lacks the mark of its end, and may be cut off: nothing behind byte 1024 is read",
        "'c.tar' goes on behind its end, as if it was joined by cat: nothing behind byte 1024 is read",
    ]


def test_links_and_what_is_no_file_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.png", b"zero")
        add(tar, "hard.png", kind=tarfile.LNKTYPE, target="0.png")
        add(tar, "out.png", kind=tarfile.SYMTYPE, target="../../../etc/passwd")
        add(tar, "pipe.png", kind=tarfile.FIFOTYPE)
        add(tar, "folder.png", kind=tarfile.DIRTYPE)
        add(tar, "sparse.png", kind=tarfile.GNUTYPE_SPARSE)
    manifest = listed(tmp_path / "a.tar")
    assert (manifest.keys, manifest.skipped) == (("0.png",), {"link or sparse member": 3})
    assert contents(manifest) == [b"zero"]


def header(name: str = "x.png", **fields: bytes) -> bytes:
    """Gives a header with some fields as they are given and the right checksum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    for field, (first, stop) in {"size": (124, 136), "type": (156, 157)}.items():
        if field in fields:
            block[first:stop] = fields[field]
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    return bytes(block)


END = bytes(1024)
BAD_TARS = {
    "gzip": (b"\x1f\x8b\x08" + bytes(600), "it is no tar file, or compressed"),
    "negative size": (header(size=b"\xff" * 12) + END, "it ends at byte 1536, its member 'x.png' at 511"),
    "cut off in an image": (header(size=b"00000001000\0") + b"x" * 100, "it ends at byte 612, its member 'x.png' at 1024"),
    "cut off in a header": (header() + header()[:200], "it is damaged or cut off: there is no whole header"),
    "rubbish after an image": (header() + b"\1" * 512 + END, "it is damaged or cut off: there is no whole header"),
    "long name cut off": (header(type=b"L", size=b"00000010000\0") + b"a" * 9, "it is "),
}


@pytest.mark.parametrize("case", BAD_TARS)
def test_a_file_that_is_no_whole_tar_file_is_one_line(case: str, tmp_path: Path) -> None:
    data, words = BAD_TARS[case]
    (tmp_path / "bad.tar").write_bytes(data)
    write_tar(tmp_path / "good.tar", {"x.png": b"x"})
    message = refused(tmp_path / "good.tar", tmp_path / "bad.tar")
    assert message.startswith(f"data.tar: {words}"), message
    assert f"got '{tmp_path}/bad.tar'" in message


def test_wrong_names_of_tar_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", {"x.txt": b"x"})
    (tmp_path / "none").mkdir()
    (tmp_path / "shard").write_bytes(b"x")
    names = [tmp_path / name for name in ("b.tar", "c*.tar", "a.tar", "none", "shard")]
    words = f"data.tar: 4 names without a tar file, got '{tmp_path}/b.tar', '{tmp_path}/c*.tar', '{tmp_path}/none' and 1 others."
    assert refused(*names).startswith(words)
    assert refused(tmp_path / "a.tar").startswith("data.tar: no images, got ")
    os.mkfifo(tmp_path / "p.tar")
    assert refused(tmp_path / "p.tar").startswith("data.tar: not a regular file: a pipe, got ")
    write_tar(tmp_path / "u.tar", {"x.png": b"x"})
    monkeypatch.setattr("os.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert refused(tmp_path / "u.tar").startswith("data.tar: cannot be read (permission denied), got ")


def test_folders_mean_the_tar_files_in_them_and_patterns_what_matches(tmp_path: Path) -> None:
    for name in ("s-008", "s-009", "v-a", "odd[1]"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.png": name.encode()})
    assert listed(tmp_path / "s-*.tar", tmp_path / "v-?.tar").keys == ("s-008.png", "s-009.png", "v-a.png")
    assert listed(tmp_path / "odd[1].tar").keys == ("odd[1].png",)
    assert len(listed(tmp_path)) == 4


def test_a_tar_file_that_changes_after_it_was_listed_gives_failed_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"0.png": png(0), "1.png": png(1)})
    manifest = listed(path)
    assert errors_of(manifest) == ["", ""]
    with path.open("r+b") as file:
        file.seek(600)
        file.write(b"x")
    os.utime(path, ns=(5, 5))
    changed = "unreadable: the tar file changed since it was listed"
    assert errors_of(manifest) == [changed, changed]
    path.unlink()
    assert errors_of(manifest) == ["missing: file not found"] * 2


def test_an_image_of_a_tar_file_that_was_written_since_is_read_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": png(0)})
    shard, created = ShardSpec(0, 1, 0, 1), "2020-01-01T00:00:00+00:00"

    def changed(digest: str, root: Path) -> list[int]:
        images = {"error": np.array([""]), "bytes": np.array([9]), "sha256": np.array([digest])}
        return changed_rows(listed(tmp_path / "a.tar"), shard, images, created, str(root))

    assert changed(hashlib.sha256(png(0)).hexdigest(), tmp_path) == []
    assert changed("0" * 64, tmp_path) == [0]
    os.utime(tmp_path / "a.tar", (5, 5))
    assert changed("0" * 64, tmp_path) == []
    assert changed("0" * 64, tmp_path / "elsewhere") == [0]


def test_headers_are_found_without_reading_what_lies_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", {f"{number}.png": bytes(100_000) for number in range(20)})
    read: list[int] = []

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            read.append(super().readinto(buffer) or 0)
            return read[-1]

    monkeypatch.setattr(tars, "open_regular", lambda path, buffer_bytes: io.BufferedReader(Counting(path), buffer_bytes))
    assert len(listed(tmp_path / "a.tar")) == 20
    assert 0 < sum(read) <= 25 * 4096
