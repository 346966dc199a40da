"""Images at an address: listed as a folder is, read by many threads, each with one status."""

from __future__ import annotations

import pickle
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DatasetError, ImageError
from pipeline.images.addressed_list import read_addressed_list
from pipeline.images.folder import list_folder
from pipeline.images.lists import read_list
from pipeline.images.reading import read_again, read_image
from pipeline.images.remote import RemoteImages, list_address
from pipeline.storage.address import Address
from pipeline.storage.connection import StorageError

from .conftest import PHOTOGRAPHS
from .object_store import clean_memory, put_files

ROOT = "memory://bucket/imgs"


memory = pytest.fixture(autouse=True)(clean_memory)


def put_folder(folder: Path, address: str = ROOT) -> None:
    put_files(address, {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()})


def test_an_address_is_listed_as_the_folder_that_it_is_a_copy_of(tmp_path: Path) -> None:
    names = ["b/2.jpg", "b/10.JPG", "a/é.png", "Z.jpeg", "b/.c.jpg", ".h/x.jpg", ".h/y.jpg", "b/__MACOSX/m.jpg", "b/t.txt", "b/n"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    put_folder(tmp_path)
    here, there = list_folder(tmp_path), list_address(Address(ROOT))
    assert there.keys == here.keys == ("Z.jpeg", "a/é.png", "b/10.JPG", "b/2.jpg")
    assert there.labels == here.labels
    assert there.file_bytes.tolist() == here.file_bytes.tolist()
    assert there.skipped == here.skipped
    # The same images are the same run, wherever they are.
    assert there.digest == here.digest
    assert there.root == ROOT
    assert [there[row].path for row in range(4)] == [f"{ROOT}/{key}" for key in there.keys]
    assert read_image(there[1]) == "a/é.png".encode()


def test_where_there_is_no_image_it_is_said_what_there_is() -> None:
    put_files(ROOT, {"a.txt": b"", "b.txt": b""})
    with pytest.raises(DatasetError, match=r"^data\.dir: no images among 2 objects, got 'memory://bucket/imgs'\. .*2 extension"):
        list_address(Address(ROOT))
    with pytest.raises(DatasetError, match=r"no images among 0 objects, got 'memory://bucket/none'.*Skipped: nothing"):
        list_address(Address("memory://bucket/none"))


def test_an_image_that_has_gone_grown_or_is_too_large_fails_alone(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(ROOT, dict.fromkeys(("empty.jpg", "fits.jpg", "gone.jpg", "grown.jpg"), b"some bytes"))
    put_files(ROOT, {"empty.jpg": b""})
    manifest = list_address(Address(ROOT))
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
    asked: list[str] = []
    monkeypatch.setattr("pipeline.images.reading.MAX_FILE_BYTES", 5)
    monkeypatch.setattr("pipeline.images.remote.read", lambda address, *rest, **how: asked.append(str(address)))
    with pytest.raises(ImageError, match=r"^too large: 10 bytes, limit 5 bytes$"):
        read_image(manifest[1])
    assert not asked


def test_every_row_gets_its_status_and_the_pixels_of_the_local_file(memory: Any, photographs: Path) -> None:
    from pipeline.images.loader import ImageLoader

    put_folder(photographs)
    put_files(ROOT, {"broken/gone.jpg": b"x", "broken/text.jpg": b"no image"})
    manifest = list_address(Address(ROOT))
    memory.rm_file("/bucket/imgs/broken/gone.jpg")
    local = list_folder(photographs)
    batches = list(ImageLoader(manifest, np.arange(len(manifest)), batch_size=4, workers=2))
    statuses = [status for batch in batches for status in batch.statuses]
    images = [batch.image(row) for batch in batches for row in range(len(batch))]
    errors = {manifest.keys[status.index]: status.error for status in statuses if status.error}
    assert errors == {"broken/gone.jpg": "missing: file not found", "broken/text.jpg": "not an image: begins with b'no image'"}
    for batch in ImageLoader(local, np.arange(len(local)), batch_size=4, workers=2):
        for row, status in enumerate(batch.statuses):
            place = manifest.keys.index(local.keys[status.index])
            assert statuses[place].sha256 == status.sha256
            np.testing.assert_array_equal(images[place], batch.image(row))


@pytest.mark.slow
def test_a_storage_that_does_not_answer_stops_the_run_and_fails_no_image(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.images.loader import ImageLoader

    put_folder(photographs)
    manifest = list_address(Address(ROOT))

    def refusing(address: Address, *rest: Any, **how: Any) -> bytes:
        raise StorageError(5, "there is no such bucket", str(address))

    monkeypatch.setattr("pipeline.images.remote.read", refusing)
    with pytest.raises(DatasetError, match=r"the storage refuses, got there is no such bucket\. Expected images that can be"):
        list(ImageLoader(manifest, np.arange(len(manifest)), batch_size=2, workers=2))
    with pytest.raises(ImageError, match=r"^unreadable: memory://bucket/imgs/.*: the storage refuses"):
        read_again(manifest[0])


def test_permission_that_is_denied_fails_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.images.loader import ImageLoader

    put_files(ROOT, {"a.jpg": b"x"})
    manifest = list_address(Address(ROOT))

    def refusing(address: Address, *rest: Any, **how: Any) -> bytes:
        raise PermissionError(13, "permission denied", str(address))

    monkeypatch.setattr("pipeline.images.remote.read", refusing)
    (batch,) = ImageLoader(manifest, np.arange(1), batch_size=2, workers=2)
    assert batch.statuses[0].error == "unreadable: permission denied"


def test_more_images_are_on_their_way_than_are_decoded_and_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.images.loader import ImageLoader

    put_files(ROOT, {f"{number:03d}.jpg": bytes(1000) for number in range(200)})
    manifest = list_address(Address(ROOT))
    lock, now, most = threading.Lock(), [0], [0]

    def slow(address: Address, *rest: Any, **how: Any) -> bytes:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.005)
        with lock:
            now[0] -= 1
        return bytes(1000)

    monkeypatch.setattr("pipeline.images.remote.read", slow)
    statuses = [status for batch in ImageLoader(manifest, np.arange(200), batch_size=8, workers=2) for status in batch.statuses]
    assert [status.index for status in statuses] == list(range(200))
    assert {status.file_bytes for status in statuses} == {1000}
    assert 8 < most[0] <= RemoteImages.reads_at_once


def test_when_an_image_was_written_is_known_from_the_listing() -> None:
    put_files(ROOT, {"a.jpg": b"x"})
    manifest = list_address(Address(ROOT))
    assert manifest.source is not None
    assert abs(manifest.source.modified_seconds(manifest[0]) - time.time()) < 60
    copy = pickle.loads(pickle.dumps(manifest))
    assert read_image(copy[0]) == b"x"
    unknown = RemoteImages(np.zeros(1))
    assert unknown.modified_seconds(manifest[0]) == float("inf")


def test_a_list_at_an_address_names_images_beside_it_and_elsewhere() -> None:
    put_files(
        ROOT, {"a/1.jpg": b"one", "a/2.jpg": b"twoo", "list.csv": b"path,label,kind\na/2.jpg,x,k1\nmemory://else/3.jpg,y,k2\n"}
    )
    put_files("memory://else", {"3.jpg": b"three"})
    manifest = read_addressed_list(Address(f"{ROOT}/list.csv"), None)
    assert manifest.root == ROOT
    assert manifest.keys == ("a/2.jpg", "memory://else/3.jpg")
    assert manifest.labels == ("x", "y")
    assert manifest.metadata == {"kind": ("k1", "k2")}
    assert manifest.file_bytes.tolist() == [4, 5]
    assert [read_image(record) for record in manifest] == [b"twoo", b"three"]


def test_a_list_here_may_name_addresses_files_and_what_is_not_there(tmp_path: Path) -> None:
    put_files(ROOT, {"a/1.jpg": b"one"})
    (tmp_path / "here").mkdir()
    (tmp_path / "here/2.jpg").write_bytes(b"zwei")
    (tmp_path / "list.txt").write_text(f"{ROOT}/a/1.jpg\nhere/2.jpg\n{ROOT}/gone.jpg\n")
    manifest = read_addressed_list(tmp_path / "list.txt", None)
    assert manifest.keys == (f"{ROOT}/a/1.jpg", "here/2.jpg", f"{ROOT}/gone.jpg")
    assert manifest.labels == ("", "here", "")
    assert manifest.file_bytes.tolist() == [3, 4, 0]
    assert [read_image(manifest[row]) for row in (0, 1)] == [b"one", b"zwei"]
    with pytest.raises(FileNotFoundError):
        read_image(manifest[2])


def test_a_long_list_is_sized_by_listing_the_folder_that_its_images_share(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"deep/{number % 7}/{number:04d}.jpg" for number in range(300)]
    put_files(ROOT, {name: bytes(1 + place % 5) for place, name in enumerate(names)})
    put_files(ROOT, {"list.txt": "\n".join(names).encode()})
    asked: list[Address] = []
    monkeypatch.setattr("pipeline.images.remote.look_at", lambda address, pauses: asked.append(address))
    manifest = read_addressed_list(Address(f"{ROOT}/list.txt"), None)
    assert manifest.file_bytes.tolist() == [1 + place % 5 for place in range(300)]
    assert not asked


def test_a_list_of_local_paths_is_read_as_ever(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("a.jpg\n../b.jpg\n")
    here, there = read_list(tmp_path / "list.txt"), read_addressed_list(tmp_path / "list.txt", None)
    assert (there.keys, there.digest, there.source) == (here.keys, here.digest, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"^data\.list: no paths in the list, got 'memory://bucket/imgs/list\.txt'"),
        (b"a.jpg\n./a.jpg\n", r"^data\.list: 1 images are named more than once, got 'a\.jpg'"),
        (b"/home/me/a.jpg\n", r"^data\.list: a path of this machine in a list of addresses, got '/home/me/a\.jpg'"),
        (b"\xff\xfe\x00", r"got 'memory://bucket/imgs/list\.txt'"),
    ],
)
def test_a_list_at_an_address_that_is_none_is_refused_by_its_address(content: bytes, words: str) -> None:
    put_files(ROOT, {"list.txt": content})
    with pytest.raises(DatasetError, match=words):
        read_addressed_list(Address(f"{ROOT}/list.txt"), None)


def test_a_list_that_is_not_there_is_said_so() -> None:
    with pytest.raises(DatasetError, match=r"^data\.list: cannot be read \(no such object\), got 'memory://bucket/imgs/no\.csv'"):
        read_addressed_list(Address(f"{ROOT}/no.csv"), None)


def test_a_stored_row_finds_its_image_at_the_address_again(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from pipeline.plotting import find_image, image_place

    put_folder(PHOTOGRAPHS)
    key = "animals/chelsea.jpg"
    data = (PHOTOGRAPHS / key).read_bytes()
    run: Any = SimpleNamespace(
        attributes={"data_root": ROOT, "data_source": "address"},
        images={"key": np.array([key, f"{ROOT}/sky/rocket.jpg"], object), "bytes": np.array([len(data), 1])},
    )
    assert image_place(run, 0) == f"{ROOT}/{key}"
    assert image_place(run, 1) == f"{ROOT}/sky/rocket.jpg"
    assert read_again(find_image(run, 0)) == data
