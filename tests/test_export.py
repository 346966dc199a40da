"""``python -m pipeline.export``: what other libraries read is what is stored, to the bit."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import open_run
from pipeline.records import Reduction

from .processes import call_here
from .stored_runs import make_spec, write_native_run, write_run

ROWS, FAILED = 10, [3, 8]


def export(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    ended = call_here(*arguments, cwd=cwd, module="pipeline.export")
    assert "Traceback" not in ended.stderr
    return ended


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with maps, a classifier's layer and a vector."""
    path = tmp_path_factory.mktemp("export") / "run"
    shapes = {"conv1_1": (5, 4, 3), "fc7": (1, 1, 6)}
    spec = make_spec(
        ROWS, shapes, dtype=getattr(request, "param", "float32"), metadata={"weight é": tuple(f"{n}.5" for n in range(ROWS))}
    )
    vector = replace(spec.features[0], shape=(7,), reductions=(Reduction("avg"),))
    spec = replace(spec, features=(*spec.features, vector))
    random = np.random.default_rng(1)
    values = {f.name: [*random.normal(size=(ROWS, *f.shape)).astype(np.float32)] for f in spec.features}  # type: ignore[misc]
    write_run(path, spec, FAILED, values)
    return path


def same(found: Any, expected: np.ndarray) -> bool:
    found = np.asarray(found)
    is_same: bool = found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
    return is_same


@pytest.mark.parametrize(("folder", "failed"), [("float32", "drop"), ("float16", "nan")], indirect=["folder"])
def test_every_format_gives_back_rows_and_table(
    failed: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr, pq = pytest.importorskip("zarr"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("pipeline.export.BLOCK_BYTES", 150)  # a few rows
    for format, layers in (("npy", "all"), ("zarr", "all"), ("parquet", "[fc7,conv1_1.avg]")):
        ended = export(
            f"run={folder}", f"format={format}", f"layers={layers}", f"failed={failed}", f"file=x.{format}", cwd=tmp_path
        )
        assert ended.returncode == 0, ended.stderr
    run = open_run(folder)
    rows = [row for row in range(ROWS) if failed == "nan" or row not in FAILED]
    table = pq.read_table(tmp_path / "x.parquet")
    group = zarr.open_group(tmp_path / "x.zarr", mode="r")
    for name in run.layers:
        expected = run[name][rows]
        assert np.isnan(expected).any() == (failed == "nan")
        assert same(np.load(tmp_path / f"x.npy/{name}.npy", mmap_mode="r"), expected)
        assert same(group[f"features/{name}"][:], expected)
        if name != "conv1_1":
            vectors = table[name].combine_chunks()
            assert same(vectors.flatten().to_numpy().reshape(len(vectors), -1), expected.reshape(len(rows), -1))
    assert group["features/conv1_1"].chunks[0] < len(rows)
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups > 1
    with (tmp_path / "x.npy/images.csv").open(encoding="utf-8", newline="") as file:
        listed = [*csv.DictReader(file)]
    for name, column in run.images.items():
        expected = column[rows].tolist()
        assert table[name].to_pylist() == group[f"images/{name}"][:].tolist() == expected
        assert [line[name] for line in listed] == [*map(str, expected)]
    assert "weight é" in listed[0]
    assert not [*tmp_path.glob("*.partial")]


def test_what_is_there_stays_and_an_export_lies_beside_its_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("dear")
    said = export(f"run={folder}", "layers=fc7", "file=mine", cwd=tmp_path)
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    assert said.stderr.startswith("error: mine: it exists, got another file or folder. Expected none. Remove it, or name another")
    assert (tmp_path / "mine").read_text() == "dear"
    for run, written in (
        (folder, "run-npy (8 rows of fc7)"),
        (folder / "shards/shard-00001-of-00003.h5", "run-shard-00001-of-00003-npy (4 rows of fc7)"),
    ):
        assert export(f"run={run}", "layers=fc7", cwd=folder.parent).stdout == f"written: {written}\n"


def test_what_cannot_be_is_one_line(folder: Path, tmp_path: Path) -> None:
    for argument, said in (
        ("format=parquet", "layers: parquet cannot hold conv1_1, got maps of 5 x 4 x 3. Expected vectors."),
        ("layers=relu9_9", "layers: not stored in this run, got 'relu9_9'"),
    ):
        ended = export(f"run={folder}", argument, cwd=tmp_path)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
        assert said in ended.stderr
        assert not [*tmp_path.iterdir()]


def test_native_size_and_missing_packages_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = write_native_run(tmp_path / "native")
    for format in ("npy", "zarr", "parquet"):
        ended = export(f"run={native}", f"format={format}", cwd=tmp_path)
        assert ended.returncode == 2
        assert f"layers: {format} cannot hold relu4_1, got maps of native size" in ended.stderr
        assert f"python -m pipeline.reduce run={native} layers=[relu4_1:avg]" in ended.stderr
    monkeypatch.setitem(sys.modules, "zarr", None)
    ended = export(f"run={native}", "format=zarr", cwd=tmp_path)
    assert "zarr needs the package zarr, got none. Expected version 3 or newer. Run `pip install 'deep-feature-" in ended.stderr
