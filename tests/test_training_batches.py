"""Rows, labels, orders and batches for training, as NumPy arrays: what both PyTorch and TensorFlow are fed from."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import open_run
from pipeline.errors import OptionError, StoreError
from pipeline.store.reader import Run
from pipeline.store.shard_reader import ShardLayer
from pipeline.training import batches
from pipeline.training.batches import Examples, shuffled

from .stored_runs import make_spec, write_native_run, write_run

# Rows of the first share chunks of 256; each of the second is a chunk.
SHAPES = {"small": (8, 8, 4), "large": (80, 80, 3)}
ROWS = 40
FAILED = [3, 17]
OK_ROWS = [row for row in range(ROWS) if row not in FAILED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "imgs-vgg19"
    metadata = {"score": tuple(f"{row / 7:.3f}" for row in range(ROWS))}
    write_run(path, make_spec(ROWS, SHAPES, dtype="float16", images_per_shard=16, metadata=metadata), failed=FAILED)
    return path


@pytest.fixture
def run(folder: Path) -> Run:
    return open_run(folder)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(write_native_run(tmp_path_factory.mktemp("native")))


def rows_of(batches: Any, run: Run) -> list[int]:
    """Return the rows of the run that batches or columns hold, told by their label: the width of the image is 400 + row."""
    labels = (batch[None] if isinstance(batch, dict) else batch[1] for batch in batches)
    return [int(width) - 400 for of_batch in labels for width in of_batch]


@pytest.mark.parametrize("layer", SHAPES)
def test_batches_have_all_good_rows_in_order(run: Run, layer: str) -> None:
    batches = run.batches(layer, 7, label="label")
    features, labels = zip(*batches, strict=True)
    assert [*map(len, features)] == [*map(len, labels)] == [7, 7, 7, 7, 7, 3]
    assert len(batches) == 6
    np.testing.assert_array_equal(np.concatenate(features), run[layer][OK_ROWS])
    assert (features[0].dtype, labels[0].dtype) == (np.float16, np.int64)
    assert batches.examples.classes == ("folder0", "folder1", "folder2")
    assert np.concatenate(labels).tolist() == [row % 3 for row in OK_ROWS]


@pytest.mark.parametrize("layer", SHAPES)
def test_shuffled_batches_have_all_rows_once_in_another_order_each_epoch(run: Run, layer: str) -> None:
    batches = run.batches(layer, 6, label="width", shuffle=True, seed=3)
    first, second = rows_of(batches, run), rows_of(batches, run)
    assert sorted(first) == sorted(second) == OK_ROWS
    assert first != second
    again = run.batches(layer, 6, label="width", shuffle=True, seed=3)
    assert [rows_of(again, run), rows_of(again, run)] == [first, second]
    again.epoch = 0
    assert rows_of(again, run) == first
    assert rows_of(run.batches(layer, 6, label="width", shuffle=True, seed=4), run) != first
    for features, widths in batches:
        np.testing.assert_array_equal(features, run[layer][widths - 400])


@pytest.mark.parametrize(
    ("where", "expected"),
    [([5, 3, -1, 5], [5, 39, 5]), (slice(2, 9, 2), [2, 4, 6, 8]), (np.arange(ROWS) % 10 == 7, [7, 27, 37]), (-2, [38])],
    ids=repr,
)
def test_rows_are_chosen_by_mask_rows_or_slice_and_failed_ones_left_out(run: Run, where: Any, expected: list[int]) -> None:
    assert rows_of(run.batches("large", 4, label="width", where=where), run) == expected
    assert Examples(run, "large", where=where).rows.tolist() == expected
    assert len(Examples(run, "large", where=where, failed=True).rows) >= len(expected)


def test_labels_may_be_given_values_and_a_subset_has_the_classes_of_all(run: Run) -> None:
    scores = run.images["score"].astype(np.float32)
    given = Examples(run, "large", label=np.stack([scores, -scores], axis=1), where=[9])
    np.testing.assert_array_equal(given.labels, [[scores[9], -scores[9]]])
    named = Examples(run, "large", label=["cat", "ant"] * 20)
    assert (named.classes, np.asarray(named.labels).tolist()) == (("ant", "cat"), [1 - row % 2 for row in OK_ROWS])
    some = Examples(run, "large", label="label", where=run.images["label"] == "folder2")
    assert (some.classes, {*np.asarray(some.labels).tolist()}) == (("folder0", "folder1", "folder2"), {2})


def test_images_of_native_size_come_as_lists(native: Run) -> None:
    batches = native.batches("relu4_1", 2, label="width", shuffle=True)
    seen = []
    for images, widths in batches:
        assert isinstance(images, list)
        for image, width in zip(images, widths, strict=True):
            np.testing.assert_array_equal(image, native["relu4_1"][int(width) - 400])
            seen.append(int(width) - 400)
    assert sorted(seen) == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("layer", SHAPES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_shares_tile_an_epoch(run: Run, layer: str, shuffle: bool) -> None:
    shares = [run.batches(layer, 5, label="width", shuffle=shuffle, seed=1, share=(rank, 3)) for rank in range(3)]
    rows = [rows_of(share, run) for share in shares]
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    if shuffle:
        assert [len(of_rank) for of_rank in rows] == [12, 12, 12]
        assert len({*chain(*rows)}) == 36
    else:
        assert [*chain(*rows)] == OK_ROWS


def test_rows_that_are_stored_together_are_decoded_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, make_spec(900, {"small": (8, 8, 4)}, images_per_shard=600))
    read_chunk, decoded = ShardLayer._chunk, []

    def noted(self: Any, row: int, position: int, *others: Any) -> Any:
        decoded.append((self._shard.number, position))
        return read_chunk(self, row, position, *others)

    monkeypatch.setattr(ShardLayer, "_chunk", noted)
    monkeypatch.setattr(batches, "WINDOW_CHUNKS", 2)
    for shuffle in (True, False):
        run = open_run(tmp_path)
        assert run["small"].chunk_rows == 256
        decoded.clear()
        rows = rows_of(run.batches("small", 32, label="width", shuffle=shuffle), run)
        assert sorted(rows) == list(range(900))
        assert set(Counter(decoded).values()) == {1}, decoded
        assert len(decoded) == 5


def test_an_epoch_that_is_left_leaves_no_thread(run: Run) -> None:
    batches = iter(run.batches("large", 3))
    next(batches)
    assert any(thread.name.startswith("batches") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"layers": "lerge"}, "no such layer, got 'lerge'. Expected one of: large."),
        ({"label": "lable"}, "no such column, got 'lable'. Expected one of: label."),
        ({"label": [1, 2]}, "label: values of another number, got shape (2,). Expected 40, one a row of the run, or a column: "),
        ({"where": FAILED}, "no rows are left, got 2 of 40 by where=, which all failed. Expected one."),
        ({"batch_size": 2.5}, "batches: out of range, got batch_size=2.5, seed=0, share=(0, 1). Expected whole numbers: "),
        ({"share": (2, 2)}, "batches: out of range, got batch_size=4, seed=0, share=(2, 2). Expected whole numbers: "),
        ({"batch_size": 39, "drop_last": True}, "batch_size: no batch is left, got 39 for 38 of 38 rows (share 0 of 1)."),
    ],
    ids=repr,
)
def test_a_wrong_option_is_one_line(run: Run, options: dict[str, Any], line: str) -> None:
    with pytest.raises((StoreError, OptionError)) as raised:
        run.batches(**{"layers": "large", "batch_size": 4, **options})
    assert line in str(raised.value)


def test_every_row_is_equally_likely_at_every_place() -> None:
    units = np.arange(64) // 8
    counts = np.zeros((64, 64))
    for epoch in range(2000):
        counts[shuffled(units, 2, (0, epoch))[0], np.arange(64)] += 1
    # 4096 counts of mean 31: five standard deviations.
    assert np.abs(counts - 2000 / 64).max() < 5.5 * np.sqrt(2000 / 64)


def test_a_whole_run_becomes_one_array(run: Run) -> None:
    features, labels = run.to_numpy("large", label="label")
    np.testing.assert_array_equal(features, run["large"][OK_ROWS])
    assert labels.tolist() == [row % 3 for row in OK_ROWS]
    both = run.to_numpy(["small", "large"], where=[4, 2])
    np.testing.assert_array_equal(both["small"], run["small"][[4, 2]])


def test_an_array_that_cannot_be_made_is_one_line(run: Run, native: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "available_bytes", lambda: 1_000_000)
    line = r"features\.h5: does not fit into memory, got 0\.00146 GB for 38 rows\. Expected at most the 0\.001 GB that are free\."
    with pytest.raises(StoreError, match=line):
        run.to_numpy("large")
    with pytest.raises(StoreError, match="no array, got images of native size"):
        native.to_numpy("relu4_1")
