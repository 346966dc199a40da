"""The whole job: a folder of JPEGs into HDF5, ours against the scripts that users write; and reductions against whole layers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from .photographs import make_photographs
from .rivals import relative_difference
from .rows import Bench, Line, interleave, missing, row
from .sides import Side, run_ours

LAYER = "relu4_1"

# What a script must be overtaken by, by its module; others by anything.
GOALS = {"keras_script": 2.5, "onnx_script": 2.0}

# Images whose features are compared.
COMPARED = 4
# Where the image is resized as ours is, but rounded to whole grey levels before the network.
ROUNDED_DIFFERENCE = 1e-2


class Script(NamedTuple):
    """A rival.

    Attributes:
        module: Below ``scripts``.
        needs: Packages.
        axes: Of its features, as a transposition to (n, h, w, c).
        resizes_alike: Whether its resizing is antialiased as ours.
        arguments: Further ones.
    """

    module: str
    needs: tuple[str, ...]
    axes: tuple[int, ...]
    resizes_alike: bool
    arguments: dict[str, Any]


CHANNELS_FIRST = (0, 2, 3, 1)
SCRIPTS = {
    "Keras script, gzip": Script("keras_script", (), (0, 1, 2, 3), False, {}),
    "torchvision script, uncompressed": Script("torchvision_script", ("torch", "torchvision"), CHANNELS_FIRST, True, {}),
    "ONNX Runtime script, gzip": Script(
        "onnx_script", ("onnx", "onnxruntime"), CHANNELS_FIRST, True, {"compression": "gzip", "level": 4}
    ),
    "ONNX Runtime script, uncompressed": Script(
        "onnx_script", ("onnx", "onnxruntime"), CHANNELS_FIRST, True, {"compression": None}
    ),
}


def ours_a_second(bench: Bench, photographs: Path) -> Callable[[], float]:
    """Gives what runs the command into a new folder and tells its images a second.

    That is its own report's figure: from the first batch asked for to the last shard finished, synced to the disk, so what
    happens before the first image is read is not in it; the first calls of everything are.
    """
    output = bench.folder / "ours"

    def turn() -> float:
        shutil.rmtree(output, ignore_errors=True)
        return float(run_ours(output, f"data.dir={photographs}", f"layers=[{LAYER}]").report["images_per_second"])

    return turn


@row("whole-job", "relu4_1 of 500 x 375 px JPEGs at 224 px into HDF5, images a second in the steady state")
def measure(bench: Bench) -> Iterator[Line]:
    """Ours, gzip, against each script."""
    photographs = make_photographs(bench.folder / "photographs", bench.images)
    absent = {name: missing(script.needs) for name, script in SCRIPTS.items()}
    sides: dict[str, Callable[[], float]] = {"ours": ours_a_second(bench, photographs)}
    batches: dict[str, int] = {}
    files = {name: bench.folder / f"rival {number}.h5" for number, name in enumerate(SCRIPTS)}
    with ExitStack() as stack:
        for name, script in SCRIPTS.items():
            if not absent[name]:
                arguments = {"photographs": str(photographs), "output": str(files[name]), "layer": LAYER, **script.arguments}
                side = stack.enter_context(Side(f"scripts.{script.module}:prepare", **arguments))
                batches[name] = side.facts["batch"]
                sides[name] = lambda side=side: bench.images / side.turn()
        figures = interleave(sides, bench.turns)
    for name, script in SCRIPTS.items():
        what = f"whole job: {name}"
        if absent[name]:
            yield Line(what, notes=absent[name])
            continue
        notes = (
            f"{name}: batch {batches[name]}, start-up and a first pass not counted; {_compare(files[name], bench.folder, script)}"
        )
        yield Line(what, "images/s", figures["ours"], figures[name], goal=GOALS.get(script.module, 1.0), notes=notes)


@row("reductions", "what is kept of a layer against the layer itself: images a second in the steady state, bytes an image")
def measure_reductions(bench: Bench) -> Iterator[Line]:
    """The mean of relu4_1 against its maps; the means of all 36 layers against relu5_4 alone."""
    photographs = make_photographs(bench.folder / "photographs", bench.images)
    output, stored_bytes = bench.folder / "reduced", {}

    def turn(words: str) -> float:
        shutil.rmtree(output, ignore_errors=True)
        report = run_ours(output, f"data.dir={photographs}", f"layers=[{words}]").report
        stored_bytes[words] = report["bytes_stored"] / report["rows"]
        return float(report["images_per_second"])

    pairs = {"relu4_1:avg": ("relu4_1", 1.0), "all:avg": ("relu5_4", 1 / 1.1)}
    words = dict.fromkeys(word for reduced, (whole, _) in pairs.items() for word in (reduced, whole))
    figures = interleave({word: lambda word=word: turn(word) for word in words}, bench.turns)
    for reduced, (whole, goal) in pairs.items():
        notes = f"stored: {stored_bytes[reduced]:,.0f} against {stored_bytes[whole]:,.0f} bytes an image"
        yield Line(f"{reduced}: {whole}", "images/s", figures[reduced], figures[whole], goal=goal, notes=notes)


def _compare(file: Path, folder: Path, script: Script) -> str:
    """Gives words for how far a rival's features are from ours.

    Raises:
        RuntimeError: They are another network's.
    """
    with h5py.File(file) as theirs, h5py.File(folder / "ours" / "features.h5") as ours:
        found, expected = theirs["features"][:COMPARED], ours[f"features/{LAYER}"][:COMPARED]
    difference = relative_difference(np.ascontiguousarray(found.transpose(script.axes)), expected)
    if not script.resizes_alike:
        return f"resizes without antialiasing, so its features differ by {difference:.1e}"
    if not difference <= ROUNDED_DIFFERENCE:
        raise RuntimeError(f"{script.module}: another network, got features that differ by {difference:.1e}")
    return f"rounds pixels to whole grey levels, so its features differ by {difference:.1e}"
