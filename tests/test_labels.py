"""Numbers as labels: from lists and folders, through the table of images and every kind of training set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pipeline import Run, open_run
from pipeline.store.tables import as_numbers

from .stored_runs import make_spec, write_run

ROWS = 24


def run_of(folder: Path, labels: list[str], keys: list[str] | None = None, **metadata: list[str]) -> Run:
    """Writes a run of a list that has these labels and columns."""
    columns = {name: tuple(values) for name, values in metadata.items()}
    spec = make_spec(
        len(labels), {"relu4_1": (4, 4, 3)}, metadata=columns, keys=keys or [f"{row}.jpg" for row in range(len(labels))]
    )
    write_run(folder, replace(spec, manifest=replace(spec.manifest, labels=tuple(labels))))
    return open_run(folder)


def labels_of(run: Run, label: Any, **options: Any) -> Any:
    return np.concatenate([labels for _, labels in run.batches("relu4_1", 5, label=label, **options)])


def test_numbers_of_a_list_stay_numbers(tmp_path: Path) -> None:
    numbers = np.arange(ROWS) % 12
    run = run_of(tmp_path, [*map(str, numbers)])
    assert run.images["label"].dtype == np.int64
    found = labels_of(run, "label")
    assert found.dtype == np.int64
    assert_array_equal(found, numbers)
    assert_array_equal(run.to_numpy("relu4_1", label="label")[1], numbers)
    assert run.batches("relu4_1", 5, label="label").examples.classes is None
    assert run.tf_dataset("relu4_1", label="label").class_names is None


def test_floats_stay_floats(tmp_path: Path) -> None:
    scores = [f"{row / 8}" for row in range(ROWS)]
    run = run_of(tmp_path, scores, score=[*scores[:-1], ""], year=[str(1990 + row) for row in range(ROWS)])
    expected = np.arange(ROWS) / 8
    for name in ("label", "score"):
        assert run.images[name].dtype == np.float64
        assert_array_equal(labels_of(run, name)[:-1], expected[:-1])
        assert run.batches("relu4_1", 5, label=name).examples.classes is None
    assert np.isnan(run.images["score"][-1])
    assert_array_equal(labels_of(run, "year", where=run.images["score"] >= 2), np.arange(16, ROWS - 1) + 1990)
    assert_array_equal(run.to_numpy("relu4_1", label="year")[1], np.arange(ROWS) + 1990)
    (_, found), *_ = run.tf_dataset("relu4_1", label="label", batch_size=ROWS)
    assert found.dtype.name == "float64"
    assert_array_equal(found.numpy(), expected)


def test_classes_of_digits_come_first_as_numbers_and_others_as_texts(tmp_path: Path) -> None:
    folders = [str(1 + row % 12) for row in range(ROWS)]
    run = run_of(tmp_path / "folders", folders, [f"{folder}/{row}.jpg" for row, folder in enumerate(folders)])
    assert run.images["label"].tolist() == folders
    examples = run.batches("relu4_1", 5, label="label").examples
    assert examples.classes == tuple(map(str, range(1, 13)))
    assert_array_equal(examples.labels, np.arange(ROWS) % 12)
    names = ["10", "cat", "9", "", "Ant", "010", "n02"] * 3
    examples = run_of(tmp_path / "names", names).batches("relu4_1", 5, label="label").examples
    assert examples.classes == ("9", "010", "10", "", "Ant", "cat", "n02")
    assert examples.labels is not None
    assert [examples.classes[number] for number in examples.labels.tolist()] == names


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["0", "11", "-3"], [0, 11, -3]),
        (["", ".5", "1e-3", "nan", "-inf"], [np.nan, 0.5, 1e-3, np.nan, -np.inf]),
        (["", "3"], [np.nan, 3.0]),
        (["007", "1"], None),
        (["+4930", "1"], None),
        (["1", "9" * 30], None),
        (["nan", "inf"], None),
        (["1", "cat"], None),
        ([], None),
    ],
)
def test_a_column_is_numbers_where_every_text_is_written_as_one(texts: list[str], numbers: list[float] | None) -> None:
    found = as_numbers(texts)
    if found is None or numbers is None:
        assert found is numbers
    else:
        assert_array_equal(found, np.array(numbers))
        assert found.dtype == np.array(numbers).dtype
