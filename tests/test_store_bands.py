"""An image read piece after piece is the image, and damage is named as by all readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.store import format
from pipeline.store.reader import open_run

from .damage import chunk_place, flip
from .stored_runs import make_spec, make_values, write_run

SHARD = "shards/shard-00001-of-00003.h5"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_the_pieces_of_an_image_are_the_image(dtype: str, compression: str, tmp_path: Path) -> None:
    values = write_run(tmp_path, make_spec(dtype=dtype, compression=compression))
    with open_run(tmp_path) as run:
        for layer in run.layers:
            for row in (0, 5, 9):
                pieces = list(run[layer].bands(row))
                assert len(pieces) == 1
                assert pieces[0][0] == 0
                assert pieces[0][1].dtype == dtype
                np.testing.assert_array_equal(pieces[0][1], values[layer][row])
                assert run[layer].shape_of(row) == values[layer][row].shape


def test_an_image_of_native_size_comes_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "BAND_BYTES", 200)
    spec = make_spec(6, {"relu4_1": None}, images_per_shard=4)
    values = write_run(tmp_path, spec, failed=[1], values=make_values(spec, {i: (3 + i, 9 - i) for i in range(6)}))
    with open_run(tmp_path) as run:
        bands = list(run["relu4_1"].bands(5))
        assert [(first, band.shape) for first, band in bands] == [(0, (4, 4, 3)), (4, (4, 4, 3))]
        np.testing.assert_array_equal(np.concatenate([band for _, band in bands]), values["relu4_1"][5])
        assert run["relu4_1"].shape_of(5) == (8, 4, 3)


def test_pieces_are_left_out_but_never_the_first_and_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "BAND_BYTES", 1)
    spec = make_spec(1, {"relu4_1": None})
    values = write_run(tmp_path, spec, values=make_values(spec, {0: (12, 5)}))
    with open_run(tmp_path) as run:
        for every, expected in ((1, [*range(12)]), (3, [0, 3, 6, 9, 11]), (5, [0, 5, 10, 11]), (11, [0, 11]), (99, [0, 11])):
            bands = list(run["relu4_1"].bands(0, every))
            assert [first for first, _ in bands] == expected
            for first, band in bands:
                np.testing.assert_array_equal(band, values["relu4_1"][0][first : first + 1])


@pytest.mark.parametrize("layer", ["conv1_1", "relu4_1"])
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_damaged_piece_is_named_as_by_all_readers(layer: str, compression: str, tmp_path: Path) -> None:
    write_run(tmp_path, make_spec(compression=compression))
    flip(tmp_path / SHARD, chunk_place(tmp_path / SHARD, layer, 2))
    with open_run(tmp_path) as run:
        lines = set()
        for row in (4, 5, 6, 7):
            try:
                list(run[layer].bands(row))
            except StoreError as error:
                lines.add(str(error))
        assert len(lines) == 1 or layer == "conv1_1"
        assert all(line.startswith(f"{tmp_path / SHARD}: layer {layer}, row") and "is damaged, got " in line for line in lines)
        assert lines
