"""The whole job: a folder of JPEGs into HDF5, ours against the scripts that users write; and reductions against whole layers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .bare_network import make_inputs
from .bare_network import ours as bare
from .photographs import LARGE_PX, make_differing, make_photographs
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


def measure_conditions(bench: Bench) -> Iterator[Line]:
    """The whole job, relu4_1, images a second: against the bare network; other photographs against 500 x 375 px; the start.

    The start is one image from the command to the exit, against the import of TensorFlow and a second.
    """
    whole = make_photographs(bench.folder / "photographs", bench.images)
    one, large = make_photographs(bench.folder / "one", 1), make_photographs(bench.folder / "large", bench.images // 2, LARGE_PX)
    output, inputs = bench.folder / "conditions", make_inputs(bench.folder)

    def job(photographs: Path, decode: str = "exact") -> Finished:
        shutil.rmtree(output, ignore_errors=True)
        return run_ours(output, f"data.dir={photographs}", f"data.decode={decode}", f"layers=[{LAYER}]")

    def rate(*settings: Any) -> float:
        return float(job(*settings).report["images_per_second"])

    differing = make_differing(bench.folder / "differing", bench.images)
    jobs = {"differing": (differing,), "large": (large,), "fast": (large, "fast"), "whole": (whole,)}
    with side(partial(bare, inputs, [LAYER], bench.folder / "bare.npz")) as (_, network):
        turns: dict[str, Callable[[], float]] = {name: partial(rate, *settings) for name, settings in jobs.items()}
        turns |= {"network": network, "start": lambda: job(one).seconds}
        # A module without a work of its own: the package is loaded before it.
        turns["import"] = lambda: run_program("tensorflow.python.platform.build_info").seconds + 1.0
        figures = interleave(turns, bench.turns)
    yield Line("whole job: network alone", "images/s", figures["whole"], figures["network"], goal=0.95)
    yield Line("whole job, no two sizes the same: 500 x 375 px", "images/s", figures["differing"], figures["whole"], goal=0.97)
    yield Line("whole job, 12 megapixels: 500 x 375 px", "images/s", figures["large"], figures["whole"])
    yield Line(
        "whole job, 12 megapixels, data.decode=fast: 500 x 375 px", "images/s", figures["fast"], figures["whole"], goal=0.85
    )
    yield Line("one image, start to exit: TensorFlow's import + 1 s", "s", figures["start"], figures["import"], False, 1.0)


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
