"""Images that are no files of their own: what the manifest carries of them, and who asks for their bytes."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError, StoreError
from pipeline.images.loader import ImageLoader
from pipeline.images.reading import read_again, thumbnail
from pipeline.job import refuse_changed_images
from pipeline.records import ImageRecord, Manifest, RunSpec
from pipeline.sharding import ShardSpec
from pipeline.store.run_folder import open_folder

from .stored_runs import make_spec, write_run


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 9 + number), (number, 2 * number, 3 * number)).save(file, "png")
    return file.getvalue()


@dataclass(frozen=True)
class Drawer:
    """A source that holds images in memory."""

    images: tuple[bytes, ...]
    written: float = 0.0
    kind: str = "drawer"

    def read(self, record: ImageRecord) -> bytes:
        if record.place < 0:
            raise FileNotFoundError(record.key)
        if record.key == "b":
            raise ImageError("unreadable: the drawer is stuck")
        if record.key == "c":
            raise TimeoutError("no\nanswer")
        return self.images[record.place]

    def modified_seconds(self, record: ImageRecord) -> float:
        return self.written


def drawer_of(keys: str, places: list[int], **options: float) -> Manifest:
    source = Drawer(tuple(map(encoded, range(10))), **options)
    manifest = make_spec(len(keys), keys=list(keys)).manifest
    return replace(manifest, root="drawer://x", labels=("",) * len(keys), source=source, places=np.array(places))


def test_the_loader_asks_the_source_and_says_of_each_row_what_went_wrong() -> None:
    manifest = pickle.loads(pickle.dumps(drawer_of("abcdef", [4, 0, 0, -1, 2, 9])))
    batches = list(ImageLoader(manifest, np.arange(6), batch_size=4, workers=2))
    statuses = [status for batch in batches for status in batch.statuses]
    assert [status.error for status in statuses] == [
        "",
        "unreadable: the drawer is stuck",
        "unreadable: no answer",
        "missing: file not found",
        "",
        "",
    ]
    assert [status.height_px for status in statuses] == [13, 0, 0, 0, 11, 18]
    assert statuses[5].sha256 == hashlib.sha256(encoded(9)).hexdigest()
    images = [batch.image(row) for batch in batches for row in range(len(batch))]
    np.testing.assert_array_equal(images[4], np.full((11, 8, 3), (2, 4, 6), np.uint8))


def test_what_somebody_looks_at_comes_from_the_source_too() -> None:
    record = drawer_of("abc", [5, 1, 2])[0]
    data = encoded(5)
    assert thumbnail(record, hashlib.sha256(data).hexdigest(), 7).shape == (7, 4, 3)
    assert read_again(record, hashlib.sha256(data).hexdigest()) == data
    for key, reason in (("b", "unreadable: the drawer is stuck"), ("c", "unreadable: no answer")):
        with pytest.raises(ImageError, match=f"^{reason}$"):
            read_again(replace(record, key=key))


def test_a_source_that_was_written_since_is_read_again(tmp_path: Path) -> None:
    digest = hashlib.sha256(encoded(1)).hexdigest()
    shard, created = ShardSpec(0, 1, 0, 1), "2020-01-01T00:00:00+00:00"
    old, new = drawer_of("a", [2]), drawer_of("a", [2], written=2e9)
    refuse_changed_images(tmp_path, old, shard, [digest], created, "drawer://x")
    refuse_changed_images(tmp_path, drawer_of("b", [2], written=2e9), shard, [digest], created, "drawer://x")
    refuse_changed_images(tmp_path, drawer_of("a", [1], written=2e9), shard, [digest], created, "drawer://x")
    for manifest, root in ((new, "drawer://x"), (old, "drawer://elsewhere")):
        with pytest.raises(StoreError, match="an image has changed since its features were made, got another content of 'a'"):
            refuse_changed_images(tmp_path, manifest, shard, [digest], created, root)


def test_rows_of_an_extended_run_keep_their_places_in_the_source(tmp_path: Path) -> None:
    def spec_of(manifest: Manifest) -> RunSpec:
        spec = make_spec(len(manifest), keys=manifest.keys)
        return replace(spec, manifest=replace(spec.manifest, root=manifest.root, source=manifest.source, places=manifest.places))

    write_run(tmp_path / "run", spec_of(drawer_of("bdf", [1, 3, 5])))
    with open_folder(tmp_path / "run", spec_of(drawer_of("abcd", [8, 6, 2, 7])), "extend") as folder:
        manifest = folder.spec.manifest
    assert manifest.keys == ("b", "d", "f", "a", "c")
    assert [record.place for record in manifest] == [6, 7, -1, 8, 2]
    assert {record.source for record in manifest} == {drawer_of("a", [0]).source}
