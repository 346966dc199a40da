"""A run as PyTorch datasets. PyTorch is optional: without it these tests are skipped, and say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import open_run
from pipeline.errors import OptionError
from pipeline.store.reader import Run

from .stored_runs import NATIVE_SIZES, write_native_run
from .test_training_batches import OK_ROWS, SHAPES, folder, run

__all__ = ["folder", "run"]  # fixtures

NOT_THERE = "PyTorch is not installed (pip install torch): run.torch_dataset is NOT tested"
torch = pytest.importorskip("torch", reason=NOT_THERE, exc_type=ImportError)
DataLoader = pytest.importorskip("torch.utils.data", reason=NOT_THERE).DataLoader
# Python 3.12 and later warn of any fork in a process that has threads; the next lines are about just that.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def rows_of(widths: Any) -> list[int]:
    return [int(width) - 400 for batch in widths for width in batch]


def test_items_are_tensors_with_labels(run: Run) -> None:
    dataset = run.torch_dataset("large", label="label")
    assert (len(dataset), dataset.classes, dataset.rows.tolist()) == (38, ("folder0", "folder1", "folder2"), OK_ROWS)
    features, label = dataset[3]
    assert (features.dtype, tuple(features.shape)) == (torch.float16, (80, 80, 3))
    np.testing.assert_array_equal(features.numpy(), run["large"][4])
    assert (label.dtype, int(label)) == (torch.int64, 1)
    np.testing.assert_array_equal(dataset[-1][0].numpy(), run["large"][39])
    assert len(list(dataset)) == 38
    items = run.torch_dataset(["large", "small"], label="width").__getitems__([5, 5, 0])
    assert [int(width) - 400 for _, width in items] == [6, 6, 0]
    for layer in SHAPES:
        np.testing.assert_array_equal(items[1][0][layer].numpy(), run[layer][6])


@forks
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("layer", SHAPES)
def test_a_loader_shuffles_rows_with_and_without_workers(run: Run, workers: int, layer: str) -> None:
    dataset = run.torch_dataset(layer, label="width")
    assert dataset[0][0].numel()  # the shards are open when it forks
    loader = DataLoader(
        dataset,
        batch_size=8,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        persistent_workers=workers > 0,
    )
    epochs = []
    for _ in range(2):
        widths = []
        for features, of_batch in loader:
            np.testing.assert_array_equal(features.numpy(), run[layer][of_batch.numpy() - 400])
            widths.append(of_batch)
        epochs.append(rows_of(widths))
    assert sorted(epochs[0]) == sorted(epochs[1]) == OK_ROWS
    assert epochs[0] != epochs[1]


@pytest.mark.slow  # each worker loads PyTorch anew
def test_spawned_workers_open_the_run_for_themselves(run: Run) -> None:
    dataset = run.torch_dataset("large", label="width")
    loader = DataLoader(dataset, 8, num_workers=1, multiprocessing_context="spawn")
    assert rows_of(widths for _, widths in loader) == OK_ROWS


def test_a_stream_gives_whole_batches_in_another_order_each_epoch(run: Run) -> None:
    for layer in SHAPES:
        dataset = run.torch_dataset(layer, label="width", shuffle=True, batch_size=8, seed=1)
        assert len(dataset) == len(DataLoader(dataset, batch_size=None)) == 5
        first, second = (rows_of(widths for _, widths in DataLoader(dataset, batch_size=None)) for _ in range(2))
        assert sorted(first) == sorted(second) == OK_ROWS
        assert first != second
        again = run.torch_dataset(layer, label="width", shuffle=True, seed=1)
        again.set_epoch(1)
        assert len(again) == 38
        # The same order, whether rows come in batches or alone.
        assert rows_of(widths for _, widths in DataLoader(again, batch_size=5)) == second
        for features, widths in dataset:
            np.testing.assert_array_equal(features.numpy(), run[layer][widths.numpy() - 400])
    assert rows_of(widths for _, widths in run.torch_dataset("large", label="width", batch_size=8)) == OK_ROWS
    assert len(run.torch_dataset("large", batch_size=8, drop_last=True)) == 4


@forks
def test_a_stream_refuses_workers(run: Run) -> None:
    loader = DataLoader(
        run.torch_dataset("large", shuffle=True, batch_size=4), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    with pytest.raises(OptionError, match=r"num_workers: a stream is read by one process, got 2\. Expected 0"):
        list(loader)


def test_images_of_native_size_come_one_by_one(tmp_path: Path) -> None:
    run = open_run(write_native_run(tmp_path))
    for dataset in (run.torch_dataset("relu4_1", label="width"), run.torch_dataset("relu4_1", label="width", shuffle=True)):
        for features, width in DataLoader(dataset, batch_size=1):
            np.testing.assert_array_equal(features[0].numpy(), run["relu4_1"][int(width) - 400])
    images, widths = next(iter(run.torch_dataset("relu4_1", label="width", batch_size=3)))
    assert [tuple(image.shape[:2]) for image in images] == [NATIVE_SIZES[int(width) - 400] for width in widths]
