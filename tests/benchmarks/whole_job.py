"""The whole job: a folder of JPEGs into HDF5, ours against the scripts that users write; and reductions against whole layers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from .photographs import make_photographs
from .rivals import relative_difference, write_ncnn_model
from .scripts import keras_script
from .sides import Finished, in_process, interleave, missing, run_ours, run_program, side
from .table import Bench, Line

LAYER = "relu4_1"

# What the script is overtaken by: in the steady state Keras' one; start to exit ncnn's, of few images and of many.
KERAS_GOAL, FEW_GOAL, MANY_GOAL, MANY = 2.5, 1.0, 1.15, 1000

# Images whose features are compared.
COMPARED = 4
# Where the image is resized as ours is, but rounded to whole grey levels before the network.
ROUNDED_DIFFERENCE = 1e-2


def measure(bench: Bench) -> Iterator[Line]:
    """500 x 375 px JPEGs to relu4_1 in HDF5: images a second in the steady state, seconds from start to exit.

    Ours, gzip, against a script with Keras, gzip, and one with ncnn, uncompressed.
    """
    photographs, model = make_photographs(bench.folder / "photographs", bench.images), bench.folder / "ncnn"
    output, keras, ncnn = bench.folder / "ours", bench.folder / "keras.h5", bench.folder / "ncnn.h5"
    finished: list[Finished] = []

    def ours() -> float:
        shutil.rmtree(output, ignore_errors=True)
        finished.append(run_ours(output, f"data.dir={photographs}", f"layers=[{LAYER}]"))
        return finished[-1].seconds

    def script() -> float:
        return run_program("tests.benchmarks.scripts.ncnn_script", model, photographs, ncnn, LAYER).seconds

    absent = missing(("ncnn",))
    with side(partial(keras_script.prepare, photographs, keras, LAYER)) as (facts, keras_seconds):
        sides = {"ours": ours, "Keras": lambda: bench.images / float(keras_seconds())}
        if not absent:
            in_process(write_ncnn_model, [LAYER], model)
            sides["ncnn"] = script
        figures = interleave(sides, bench.turns)
    # That is its own report's figure: from the first batch asked for to the last shard finished, synced to the disk.
    rates = [float(run.report["images_per_second"]) for run in finished]
    notes = (
        f"Keras: batch {facts['batch']}, start-up and a first pass not counted; {_compare(keras, output, (0, 1, 2, 3), False)}"
    )
    yield Line("whole job: Keras script, gzip", "images/s", rates, figures["Keras"], goal=KERAS_GOAL, notes=notes)
    notes = absent or f"ours: gzip, hashes, statistics; ncnn: {_compare(ncnn, output, (0, 2, 3, 1), True)}"
    what, goal = f"{bench.images} JPEGs start to exit: ncnn script, uncompressed", MANY_GOAL if bench.images >= MANY else FEW_GOAL
    yield Line(what, "s", figures["ours"], figures.get("ncnn", ()), False, goal, notes)


def measure_reductions(bench: Bench) -> Iterator[Line]:
    """What is kept of a layer against the layer itself: images a second in the steady state, bytes an image.

    The mean of relu4_1 against its maps; the means of all 36 layers against relu5_4 alone.
    """
    photographs = make_photographs(bench.folder / "photographs", bench.images)
    output, stored_bytes = bench.folder / "reduced", {}

    def turn(words: str) -> float:
        shutil.rmtree(output, ignore_errors=True)
        report = run_ours(output, f"data.dir={photographs}", f"layers=[{words}]").report
        stored_bytes[words] = report["bytes_stored"] / report["rows"]
        return float(report["images_per_second"])

    pairs = {"relu4_1:avg": ("relu4_1", 1.0), "all:avg": ("relu5_4", 1 / 1.1)}
    words = dict.fromkeys(word for reduced, (whole, _) in pairs.items() for word in (reduced, whole))
    figures = interleave({word: partial(turn, word) for word in words}, bench.turns)
    for reduced, (whole, goal) in pairs.items():
        notes = f"stored: {stored_bytes[reduced]:,.0f} against {stored_bytes[whole]:,.0f} bytes an image"
        yield Line(f"{reduced}: {whole}", "images/s", figures[reduced], figures[whole], goal=goal, notes=notes)


def _compare(file: Path, output: Path, axes: tuple[int, ...], resizes_alike: bool) -> str:
    """Gives words for how far a rival's features are from ours, its axes transposed to (n, h, w, c).

    Raises:
        RuntimeError: They are another network's.
    """
    with h5py.File(file) as theirs, h5py.File(output / "features.h5") as ours:
        found, expected = theirs["features"][:COMPARED], ours[f"features/{LAYER}"][:COMPARED]
    difference = relative_difference(np.ascontiguousarray(found.transpose(axes)), expected)
    if not resizes_alike:
        return f"resizes without antialiasing, so its features differ by {difference:.1e}"
    if not difference <= ROUNDED_DIFFERENCE:
        raise RuntimeError(f"{file.name}: another network, got features that differ by {difference:.1e}")
    return f"rounds pixels to whole grey levels, so its features differ by {difference:.1e}"
