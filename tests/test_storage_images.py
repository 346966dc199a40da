"""Images at an address: listed as a folder is, read by many threads, each with one status."""

from __future__ import annotations

import http.server
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import storage
from pipeline.errors import DatasetError, ImageError
from pipeline.images.folder import list_address, list_folder
from pipeline.images.lists import read_list
from pipeline.images.loader import ImageLoader
from pipeline.images.reading import READS_AT_ONCE, RemoteImages, read_again, read_image
from pipeline.storage import RemotePath, StorageError

from .conftest import PHOTOGRAPHS
from .object_store import clean_memory, put_files
from .test_loader import errors_of

ROOT = "memory://bucket/imgs"
FOLDER = RemotePath(ROOT)


memory = pytest.fixture(autouse=True)(clean_memory)


def put_folder(folder: Path, address: str = ROOT) -> None:
    put_files(address, {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()})


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refusing(self: RemotePath, size: int, position: int) -> bytes:
        raise error

    monkeypatch.setattr(RemotePath, "pread", refusing)


def test_an_address_is_listed_as_the_folder_that_it_is_a_copy_of(tmp_path: Path) -> None:
    names = ["b/2.jpg", "b/10.JPG", "a/é.png", "Z.jpeg", "b/.c.jpg", ".h/x.jpg", ".h/y.jpg", "b/__MACOSX/m.jpg", "b/t.txt", "b/n"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    put_folder(tmp_path)
    here, there = list_folder(tmp_path), list_address(FOLDER)
    assert there.keys == here.keys == ("Z.jpeg", "a/é.png", "b/10.JPG", "b/2.jpg")
    assert there.labels == here.labels
    assert there.file_bytes.tolist() == here.file_bytes.tolist()
    # A walk does not go into a hidden folder, so that it counts the folder.
    assert there.skipped == here.skipped | {"hidden folder": 2}
    # The same images are the same run, wherever they are.
    assert there.digest == here.digest
    assert there.root == ROOT
    assert [there[row].path for row in range(4)] == [f"{ROOT}/{key}" for key in there.keys]
    assert read_image(pickle.loads(pickle.dumps(there))[1]) == "a/é.png".encode()
    assert there.source is not None
    assert abs(there.source.modified_seconds(there[0]) - time.time()) < 60
    assert RemoteImages(np.zeros(1)).modified_seconds(there[0]) == float("inf")


def test_a_long_list_is_sized_by_listing_the_folder_that_its_images_share(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"deep/{number % 7}/{number:04d}.jpg" for number in range(300)]
    put_files(ROOT, {name: bytes(1 + place % 5) for place, name in enumerate(names)})
    put_files(ROOT, {"list.txt": "\n".join(names).encode()})
    asked: list[str] = []
    info = RemotePath._info
    monkeypatch.setattr(RemotePath, "_info", lambda self: asked.append(str(self)) or info(self))
    manifest = read_list(FOLDER / "list.txt", None)
    assert manifest.file_bytes.tolist() == [1 + place % 5 for place in range(300)]
    assert asked == [f"{ROOT}/list.txt"]


def test_an_image_that_has_gone_grown_or_is_too_large_fails_alone(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(ROOT, dict.fromkeys(("empty.jpg", "fits.jpg", "gone.jpg", "grown.jpg"), b"some bytes"))
    put_files(ROOT, {"empty.jpg": b""})
    manifest = list_address(FOLDER)
    memory.rm_file("/bucket/imgs/gone.jpg")
    put_files(ROOT, {"grown.jpg": b"some more bytes"})
    assert [read_image(manifest[row]) for row in (0, 1)] == [b"", b"some bytes"]
    with pytest.raises(FileNotFoundError):
        read_image(manifest[2])
    with pytest.raises(ImageError, match=r"^unreadable: the file changed since it was listed$"):
        read_image(manifest[3])
    put_files(ROOT, {"empty.jpg": b"no longer"})
    with pytest.raises(ImageError, match=r"^unreadable: the file changed since it was listed$"):
        read_image(manifest[0])
    monkeypatch.setattr("pipeline.images.reading.MAX_FILE_BYTES", 5)
    refuse(monkeypatch, AssertionError("asked"))
    with pytest.raises(ImageError, match=r"^too large: 10 bytes, limit 5 bytes$"):
        read_image(manifest[1])


def test_a_bucket_that_does_not_answer_stops_the_run_and_denied_permission_fails_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(ROOT, {"a.jpg": b"x", "b.jpg": b"y"})
    manifest = list_address(FOLDER)
    refuse(monkeypatch, PermissionError(13, "permission denied", ROOT))
    assert errors_of(manifest) == ["unreadable: permission denied"] * 2
    refuse(monkeypatch, StorageError(5, "there is no such bucket", ROOT))
    with pytest.raises(DatasetError, match=r"the storage refuses, got there is no such bucket\. Expected an address that can be"):
        errors_of(manifest)
    with pytest.raises(ImageError, match=r"^unreadable: memory://bucket/imgs.*: the storage refuses"):
        read_again(manifest[0])


def test_more_images_are_on_their_way_than_are_decoded_and_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 6 * READS_AT_ONCE
    put_files(ROOT, {f"{number:03d}.jpg": bytes(1000) for number in range(count)})
    manifest = list_address(FOLDER)
    all_read, free = threading.Barrier(READS_AT_ONCE), threading.Semaphore(READS_AT_ONCE)

    def read(self: RemotePath, size: int, position: int) -> bytes:
        assert free.acquire(blocking=False)
        all_read.wait(60)
        free.release()
        return bytes(1000)

    monkeypatch.setattr(RemotePath, "pread", read)
    batches = ImageLoader(manifest, np.arange(count), batch_size=8, workers=2)
    assert [(status.index, status.file_bytes) for batch in batches for status in batch.statuses] == [
        (row, 1000) for row in range(count)
    ]


# -- Lists


def test_a_list_at_an_address_names_images_beside_it_and_elsewhere() -> None:
    with pytest.raises(DatasetError, match=r"^data\.list: cannot be read .* got 'memory://bucket/imgs/list\.csv'"):
        read_list(FOLDER / "list.csv", None)
    put_files(
        ROOT, {"a/1.jpg": b"one", "a/2.jpg": b"twoo", "list.csv": b"path,label,kind\na/2.jpg,x,k1\nmemory://else/3.jpg,y,k2\n"}
    )
    put_files("memory://else", {"3.jpg": b"three"})
    manifest = read_list(FOLDER / "list.csv", None)
    assert manifest.root == ROOT
    assert manifest.keys == ("a/2.jpg", "memory://else/3.jpg")
    assert manifest.labels == ("x", "y")
    assert manifest.metadata == {"kind": ("k1", "k2")}
    assert manifest.file_bytes.tolist() == [4, 5]
    assert [read_image(record) for record in manifest] == [b"twoo", b"three"]


def test_a_list_here_may_name_addresses_files_and_what_is_not_there(tmp_path: Path) -> None:
    put_files(ROOT, {"a/1.jpg": b"one"})
    (tmp_path / "lists/here").mkdir(parents=True)
    (tmp_path / "lists/here/2.jpg").write_bytes(b"zwei")
    (tmp_path / "4.jpg").write_bytes(b"vier")
    listing = tmp_path / "lists/list.txt"
    listing.write_text(f"{ROOT}/a/1.jpg\nhere/2.jpg\n{tmp_path}/4.jpg\n{ROOT}/gone.jpg\n")
    manifest = read_list(listing)
    assert manifest.keys == (f"{ROOT}/a/1.jpg", "here/2.jpg", f"{tmp_path}/4.jpg", f"{ROOT}/gone.jpg")
    assert manifest.labels == ("", "here", "", "")
    assert manifest.file_bytes.tolist() == [3, 4, 4, 0]
    assert [read_image(manifest[row]) for row in range(3)] == [b"one", b"zwei", b"vier"]
    with pytest.raises(FileNotFoundError):
        read_image(manifest[3])


def test_a_stored_row_finds_its_image_at_the_address_again() -> None:
    from pipeline.plot import find_image

    put_folder(PHOTOGRAPHS)
    key = "animals/chelsea.jpg"
    data = (PHOTOGRAPHS / key).read_bytes()
    run: Any = SimpleNamespace(
        attributes={"data_root": ROOT, "data_source": "address"},
        images={"key": np.array([key, f"{ROOT}/sky/rocket.jpg"], object), "bytes": np.array([len(data), 1])},
    )
    assert find_image(run, 1).path == f"{ROOT}/sky/rocket.jpg"
    assert read_again(find_image(run, 0)) == data


# -- Web servers


class Answers(http.server.BaseHTTPRequestHandler):
    """Images by name: one that the server has, one of a size it does not say, and those that it refuses by a number."""

    image = (PHOTOGRAPHS / "animals/chelsea.jpg").read_bytes()
    busy: int = 0

    def do_HEAD(self) -> None:
        self.do_GET(has_body=False)

    def do_GET(self, has_body: bool = True) -> None:
        name = self.path.removeprefix("/").partition(".")[0]
        status = int(name) if name.isdigit() else 200
        if name == "busy" and Answers.busy:
            Answers.busy -= 1
            status = 503
        body = self.image if status == 200 else b""
        self.send_response(status)
        if name != "unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(storage, "PAUSES_SECONDS", (0.01, 0.01))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_only_an_image_that_a_web_server_does_not_have_is_missing(web: str, tmp_path: Path) -> None:
    names = [f"{web}/{name}.jpg" for name in ("there", "unsized", "busy", "404", "403", "500")]
    names.append("http://127.0.0.1:9/a.jpg")
    (tmp_path / "list.txt").write_text("\n".join(names))
    manifest = read_list(tmp_path / "list.txt", None)
    # Of no server more is asked, and the same list is the same run whatever they answer.
    assert not manifest.file_bytes.any()
    Answers.busy = 2
    errors = errors_of(manifest)
    assert [error.partition(" (")[0] for error in errors] == [
        *("", "", "", "missing: file not found", "unreadable: permission denied"),
        *["unreadable: it does not answer as it should"] * 2,
    ]
    # Said as it is, and asked again by the same command.
    assert "500" in errors[5]
    assert "Connect call failed" in errors[6]
