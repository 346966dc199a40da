"""Where images come from: the same JPEGs read from a folder, tar files and a set, and lists of a million rows; no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from .photographs import make_photographs
from .rows import Bench, Line, interleave, missing, row
from .sides import REPOSITORY, Side, environment, usable_cores

BATCH = 8
# Of each source; photographs are repeated.
IMAGES = 1024
MEMBERS = 100_000
LISTED = 1_000_000


def reading(kind: str, place: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """The program's loader, decoding alone; images a second."""
    from pipeline.images.loader import ImageLoader

    manifest = _manifest(kind, Path(place))
    rows = np.arange(len(manifest))

    def turn() -> float:
        began = time.perf_counter()
        for batch in ImageLoader(manifest, rows, batch_size=BATCH, workers=usable_cores()):
            assert not any(status.error for status in batch.statuses)
        return len(rows) / (time.perf_counter() - began)

    turn()
    return {}, turn


def listing(kind: str, place: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """The program's list of images; seconds."""

    def turn() -> float:
        began = time.perf_counter()
        if kind == "tarfile":
            with tarfile.open(place) as tar:
                assert sum(1 for _ in tar) == MEMBERS
        else:
            _manifest(kind, Path(place))
        return time.perf_counter() - began

    turn()
    return {}, turn


def memory(kind: str, place: str) -> tuple[float, float]:
    """Gives the seconds and the peak megabytes of a process that lists these images and does nothing else."""
    program = (
        "import resource, sys, time, json; from pathlib import Path; from tests.benchmarks.sources import _manifest\n"
        "began = time.perf_counter(); manifest = _manifest(sys.argv[1], Path(sys.argv[2]))\n"
        "print(json.dumps([time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, kind, place],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, megabytes = json.loads(ended.stdout)
    return seconds, megabytes


def _manifest(kind: str, place: Path) -> Any:
    if kind == "tar":
        from pipeline.data_source import tar_folder
        from pipeline.images.tar import list_tars

        return list_tars([str(place)], tar_folder([str(place)]), print)
    if kind == "tfds":
        from pipeline.images.tfds import list_set

        return list_set("photographs", None, place)
    from pipeline.images.folder import list_folder
    from pipeline.images.lists import read_list

    return list_folder(place) if kind == "folder" else read_list(place)


@row("sources", f"{IMAGES} JPEGs of 500 x 375 px decoded from tar files and a set, against a folder; long lists")
def measure(bench: Bench) -> Iterator[Line]:
    """Images a second, then seconds and memory of listing."""
    photographs = sorted(make_photographs(bench.folder / "photographs", bench.images).glob("*.jpg"))
    images = [(f"{number:06d}.jpg", photographs[number % len(photographs)].read_bytes()) for number in range(IMAGES)]
    folder, tar = bench.folder / "as-folder", bench.folder / "as.tar"
    folder.mkdir()
    for name, data in images:
        (folder / name).write_bytes(data)
    _write_tar(tar, images)
    places = {"folder": folder, "tar": tar}
    absent = missing(["tensorflow_datasets"])
    if not absent:
        places["tfds"] = _write_set(bench.folder / "sets", images)
    with ExitStack() as stack:
        sides = {kind: stack.enter_context(Side("sources:reading", kind=kind, place=str(path))) for kind, path in places.items()}
        figures = interleave({kind: side.turn for kind, side in sides.items()}, bench.turns)
    yield Line("decoding from tar files: from a folder", "images/s", figures["tar"], figures["folder"])
    if absent:
        yield Line("decoding from a set: from a folder", notes=absent)
    else:
        yield Line("decoding from a set (data.tfds): from a folder", "images/s", figures["tfds"], figures["folder"])
    many = bench.folder / "many.tar"
    _write_tar(many, ((f"{number:06d}.jpg", b"x" * 2000) for number in range(MEMBERS)))
    with ExitStack() as stack:
        kinds = ("tar", "tarfile")
        sides = {kind: stack.enter_context(Side("sources:listing", kind=kind, place=str(many))) for kind in kinds}
        figures = interleave({kind: side.turn for kind, side in sides.items()}, bench.turns)
    notes = "ours makes the whole list of images, tarfile reads the headers"
    yield Line(f"listing {MEMBERS:,} members: tarfile", "s", figures["tar"], figures["tarfile"], False, notes=notes)
    if absent := missing(["pyarrow"]):
        yield Line(f"a list of {LISTED:,} rows in Parquet: in CSV", notes=absent)
        return
    lists = _write_lists(bench.folder)
    turns = [{kind: memory(kind, str(path)) for kind, path in lists.items()} for _ in range(min(bench.turns, 3))]
    seconds, megabytes = ({kind: [turn[kind][which] for turn in turns] for kind in lists} for which in (0, 1))
    what = f"a list of {LISTED:,} rows and four columns in Parquet: in CSV"
    yield Line(what, "s", seconds["parquet"], seconds["csv"], False, notes="files are not there: each is asked for all the same")
    yield Line(f"{what}, memory", "MB", megabytes["parquet"], megabytes["csv"], False)


def _write_tar(path: Path, images: Any) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in images:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))


def _write_set(folder: Path, images: list[tuple[str, bytes]]) -> Path:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    tfds.dataset_builders.store_as_tfds_dataset(
        "photographs",
        "1.0.0",
        features=tfds.features.FeaturesDict({"image": tfds.features.Image(encoding_format="jpeg")}),
        split_datasets={"train": [(name, {"image": BytesIO(data)}) for name, data in images]},
        data_dir=folder,
        disable_shuffling=True,
    )
    return folder


def _write_lists(folder: Path) -> dict[str, Path]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    table = pa.table(
        {
            "path": [f"folder{number % 1000:03d}/image-{number:09d}.jpg" for number in range(LISTED)],
            "label": [f"class {number % 1000}" for number in range(LISTED)],
            "width": [number % 4000 for number in range(LISTED)],
            "taken": [str(1_600_000_000 + number) for number in range(LISTED)],
        }
    )
    pyarrow.parquet.write_table(table, folder / "list.parquet")
    pyarrow.csv.write_csv(table, folder / "list.csv")
    return {"parquet": folder / "list.parquet", "csv": folder / "list.csv"}
