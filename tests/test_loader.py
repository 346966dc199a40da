from __future__ import annotations

import gc
import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images import loader
from pipeline.images.folder import list_folder
from pipeline.images.lists import read_list
from pipeline.images.loader import LOCAL_READS, ImageLoader
from pipeline.images.reading import read_image
from pipeline.records import Batch, ImageRecord, Manifest


def photograph(number: int, height: int = 40, width: int = 50) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def folder_of(tmp_path: Path, count: int) -> Manifest:
    for number in range(count):
        Image.fromarray(photograph(number, 20 + number, 60 - number)).save(tmp_path / f"{number:03}.png")
    return list_folder(tmp_path)


def image_of(batch: Batch, row: int) -> NDArray[np.uint8]:
    """Gives the pixels of a row without what lies beside them in the canvas."""
    height, width = batch.sizes_px[row]
    return batch.images[row, :height, :width]


def rows(batches: list[Batch]) -> list[NDArray[np.uint8]]:
    """The images of all batches."""
    images = [image_of(batch, row) for batch in batches for row in range(len(batch))]
    assert all(image.dtype == np.uint8 and image.ndim == 3 for image in images)
    return images


def load(manifest: Manifest, **options: Any) -> list[Batch]:
    options = {"batch_size": 4, "workers": 2, **options}
    return list(ImageLoader(manifest, options.pop("indices", np.arange(len(manifest))), **options))


def errors_of(manifest: Manifest, indices: NDArray[np.int64] | None = None) -> list[str]:
    """Why the rows of a manifest failed, or some of them; "" of those that have not."""
    batches = load(manifest, indices=np.arange(len(manifest)) if indices is None else indices)
    return [status.error for batch in batches for status in batch.statuses]


def test_batches_hold_the_images_one_after_the_other_with_their_statuses(tmp_path: Path) -> None:
    manifest = folder_of(tmp_path, 10)
    batches = load(manifest)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    for number, image in enumerate(rows(batches)):
        np.testing.assert_array_equal(image, photograph(number, 20 + number, 60 - number))
    statuses = [status for batch in batches for status in batch.statuses]
    for number, status in enumerate(statuses):
        data = Path(manifest[number].path).read_bytes()
        assert (status.index, status.error, status.word) == (number, "", "ok")
        assert (status.height_px, status.width_px) == (20 + number, 60 - number)
        assert (status.file_bytes, status.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert type(status.height_px) is type(status.file_bytes) is int


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (7, 3), (64, 8)])
def test_batch_size_and_workers_change_no_row(tmp_path: Path, batch_size: int, workers: int) -> None:
    manifest, indices = folder_of(tmp_path, 20), np.array([*range(20), 5, 0, 3, 3])
    (tmp_path / "005.png").write_bytes(b"")
    reference, other = (load(manifest, indices=indices, **how) for how in ({}, {"batch_size": batch_size, "workers": workers}))
    assert [s.index for b in reference for s in b.statuses] == indices.tolist()
    assert [s for b in reference for s in b.statuses] == [s for b in other for s in b.statuses]
    for one, two in zip(rows(reference), rows(other), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_failed_row_has_its_reason_and_no_pixels(tmp_path: Path) -> None:
    Image.fromarray(photograph(1)).save(tmp_path / "good.png")
    (tmp_path / "page.jpg").write_bytes(b"<html>none</html>")
    (tmp_path / "folder.jpg").mkdir()
    expected = {
        "page.jpg": "not an image: begins with b'<html>no'",
        "good.png": "",
        "folder.jpg": "not a regular file: a folder",
        "/dev/null": "not a regular file: a device or socket",
        "good.png/x.jpg": "missing: file not found",
    }
    (tmp_path / "list.txt").write_text("\n".join(expected))
    (batch,) = load(read_list(tmp_path / "list.txt"), batch_size=16)
    assert {key: status.error for key, status in zip(expected, batch.statuses, strict=True)} == expected
    assert batch.good.tolist() == [1]
    for row in (0, 2, 3, 4):
        status = batch.statuses[row]
        assert (status.word, status.height_px, status.width_px, batch.sizes_px[row].tolist()) == ("failed", 0, 0, [0, 0])
        assert not batch.images[row].any()
    assert batch.statuses[0].sha256 == hashlib.sha256(b"<html>none</html>").hexdigest()
    assert (batch.statuses[2].file_bytes, batch.statuses[2].sha256) == (0, "")
    np.testing.assert_array_equal(image_of(batch, 1), photograph(1))


def test_a_canvas_is_zero_beside_its_images(tmp_path: Path) -> None:
    for name, size in (("a.png", (20, 70)), ("b.png", (64, 10)), ("c.png", (65, 64)), ("d.png", (1, 1))):
        Image.fromarray(photograph(1, *size)).save(tmp_path / name)
    first, second = load(list_folder(tmp_path), batch_size=2, prepare=lambda image: image[:64])
    assert (first.images.shape, second.images.shape) == ((2, 64, 70, 3), (2, 64, 64, 3))
    assert (second.sizes_px[0].tolist(), second.statuses[0].height_px) == ([64, 64], 65)
    for batch in (first, second):
        for row in range(2):
            canvas = np.array(batch.images[row])
            canvas[: batch.sizes_px[row, 0], : batch.sizes_px[row, 1]] = 0
            assert not canvas.any()
    (native,) = load(list_folder(tmp_path), indices=np.array([1]), batch_size=None)
    assert native.images.shape == (1, 64, 10, 3)


def test_what_an_image_is_refused_for_is_its_status_and_what_goes_wrong_otherwise_stops_the_run(tmp_path: Path) -> None:
    problems: dict[int, Exception] = {21: ImageError("too small: 21 px"), 22: MemoryError()}

    def refuse(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if image.shape[0] in problems:
            raise problems[image.shape[0]]
        return image

    manifest = folder_of(tmp_path, 4)
    (batch,) = load(manifest, prepare=refuse)
    assert [status.error for status in batch.statuses] == ["", "too small: 21 px", "out of memory: the image does not fit", ""]
    assert batch.sizes_px[:, 0].tolist() == [20, 0, 0, 23]
    problems[22] = ZeroDivisionError("by zero")
    with pytest.raises(ZeroDivisionError, match=r"^by zero$"):
        load(manifest, prepare=refuse, batch_size=1)


def test_images_of_one_size_lie_in_one_array_of_their_batch(tmp_path: Path) -> None:
    manifest = folder_of(tmp_path, 7)
    (tmp_path / "001.png").write_bytes(b"none")

    def corner(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return pixels[:5, :6].astype(np.float32)

    batches = load(manifest, prepare=corner, size_px=(5, 6))
    assert [batch.images.shape for batch in batches] == [(4, 5, 6, 3), (3, 5, 6, 3)]
    found = np.concatenate([batch.images for batch in batches])
    for number in range(7):
        expected = np.zeros((5, 6, 3)) if number == 1 else photograph(number, 20 + number, 60 - number)[:5, :6]
        np.testing.assert_array_equal(found[number], expected)
    failed = {status.index: status.error for batch in batches for status in batch.statuses if status.error}
    assert failed == {1: "not an image: begins with b'none'"}


def test_closing_early_stops_the_workers_and_frees_their_images(tmp_path: Path) -> None:
    manifest = folder_of(tmp_path, 30)
    decoded: list[int] = []

    def count(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        decoded.append(image.shape[0])
        return image

    def native_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    load(manifest)
    before = native_threads()
    batches = iter(ImageLoader(manifest, np.tile(np.arange(30), 40), batch_size=4, workers=3, prepare=count))
    next(batches)
    batches.close()
    del batches
    gc.collect()
    time.sleep(0.3)
    stopped_at = len(decoded)
    assert native_threads() <= before
    time.sleep(0.2)
    assert len(decoded) == stopped_at < 100


def test_more_local_files_are_read_at_once_than_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_read, cores = threading.Barrier(LOCAL_READS), threading.Semaphore(2)

    def read(record: ImageRecord) -> bytes:
        all_read.wait(60)
        return read_image(record)

    def prepare(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        assert cores.acquire(blocking=False)
        time.sleep(0.05)
        cores.release()
        return image

    monkeypatch.setattr(loader, "read_image", read)
    assert sum(map(len, load(folder_of(tmp_path, LOCAL_READS), workers=2, prepare=prepare))) == LOCAL_READS


def test_what_is_decoded_ahead_of_the_consumer_is_bounded(tmp_path: Path) -> None:
    manifest = folder_of(tmp_path, 30)
    lock, decoded = threading.Lock(), [0]

    def count(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with lock:
            decoded[0] += 1
        return image

    batch_size, workers, taken = 4, 3, 0
    for batch in ImageLoader(manifest, np.tile(np.arange(30), 4), batch_size=batch_size, workers=workers, prepare=count):
        taken += len(batch)
        time.sleep(0.01)
        assert decoded[0] - taken <= 2 * LOCAL_READS + 2 * batch_size
    assert taken == decoded[0] == 120
