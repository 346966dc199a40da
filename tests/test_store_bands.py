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


@pytest.mark.parametrize(("dtype", "compression"), [("float32", "gzip"), ("float16", "none")])
def test_an_image_of_fixed_size_is_one_piece(dtype: str, compression: str, tmp_path: Path) -> None:
    values = write_run(tmp_path, make_spec(dtype=dtype, compression=compression))
    with open_run(tmp_path) as run:
        for layer in run.layers:
            for row in (0, 5, 9):
                ((first, piece),) = run[layer].bands(row)
                assert (first, piece.dtype, run[layer].shape_of(row)) == (0, dtype, values[layer][row].shape)
                np.testing.assert_array_equal(piece, values[layer][row])


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


@pytest.mark.parametrize(("layer", "compression"), [("conv1_1", "gzip"), ("relu4_1", "none")])
def test_a_damaged_piece_is_named_as_by_all_readers(layer: str, compression: str, tmp_path: Path) -> None:
    write_run(tmp_path, make_spec(compression=compression))
    flip(tmp_path / SHARD, chunk_place(tmp_path / SHARD, layer, 2))
    with (
        open_run(tmp_path) as run,
        pytest.raises(StoreError, match=rf"^{tmp_path / SHARD}: layer {layer}, rows? .* is damaged, got "),
    ):
        list(run[layer].bands(6))
