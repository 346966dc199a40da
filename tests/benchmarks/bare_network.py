"""The network alone: images in memory, no decoding and no writing; every program's features compared with ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.machine import usable_cores

from . import rivals
from .photographs import make_photographs
from .rivals import BATCHES, MEAN_PIXEL, SIDE_PX, best_batch, relative_difference, seeded_weights
from .sides import in_process, measure_sides, missing
from .table import Bench, Line

LAYERS = (("relu4_1",), ("relu5_4",), ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"))

# A turn takes a second or more; a multiple of every batch size that is tried.
IMAGES = 32

# Images whose features are compared.
COMPARED = 2
LARGEST_DIFFERENCE = 1e-3

# Rival -> what makes it, the packages it needs, and how many times as fast ours must be; the first is made below.
RIVALS = {
    "TensorFlow, direct convolutions": (None, (), 1.7),
    "ONNX Runtime": (rivals.onnx_runtime, ("onnx", "onnxruntime"), 1.0),
    "ncnn": (rivals.ncnn, ("ncnn",), 1.3),
    "MNN": (rivals.mnn, ("MNN", "onnx"), 1.3),
}
SETTINGS = {"pooling": "max"}
# What the program chooses on two cores.
OWN_BATCH = 8
# Share of the rate of the program's own batches that others must reach, and of ncnn's with one image at a time.
OTHER_BATCHES, BATCH_GOAL, ALONE_GOAL = (1, 2, 32), 0.85, 0.9

Made = tuple[dict[str, Any], Callable[[], float]]


def make_inputs(folder: Path) -> Path:
    """Writes what the network gets for :data:`IMAGES` photographs, (n, 224, 224, 3) float32, mean removed; gives the file."""
    path = folder / "inputs.npy"
    if not path.is_file():
        in_process(_write_inputs, make_photographs(folder / "for the bare network", IMAGES), path)
    return path


def _write_inputs(photographs: Path, path: Path) -> None:
    from pipeline.images.folder import list_folder
    from pipeline.images.loader import ImageLoader
    from pipeline.images.resize import ResizeSpec, resize_on_host

    manifest, spec = list_folder(photographs), ResizeSpec((SIDE_PX, SIDE_PX), "squash", "bilinear")
    prepare = partial(resize_on_host, spec=spec, mean_pixel=np.array(MEAN_PIXEL, np.float32))
    settings: dict[str, Any] = {"batch_size": OWN_BATCH, "workers": usable_cores(), "size_px": spec.size_px}
    loader = ImageLoader(manifest, np.arange(len(manifest)), **settings, prepare=prepare)
    np.save(path, np.concatenate([batch.images for batch in loader]))


def ours(path: Path, layers: Sequence[str], features: Path, batch: int = OWN_BATCH) -> Made:
    """This program's network, the next batch asked for before the last is waited for, as its loop does.

    Args:
        path: The images, (n, 224, 224, 3) float32.
        layers: Wanted.
        features: File for those of the first images.
        batch: Images a call.
    """
    from pipeline.network.architectures import VggTable
    from pipeline.network.winograd import prepare_segments

    parts = prepare_segments(seeded_weights(), VggTable("vgg19").resolve(layers), threads=usable_cores(), **SETTINGS)
    network, images = _network(layers, parts), np.load(path)

    def in_turn() -> None:
        waiting: list[Any] = []
        for first in range(0, len(images), batch):
            following = [values for _, values in network(images[first : first + batch])]
            for values in waiting:
                np.asarray(values)
            waiting = following
        for values in waiting:
            np.asarray(values)

    np.savez(features, **{name: np.asarray(values) for name, values in network(images[:COMPARED])})
    # As many maps wait here as in a turn: the first time, the system must find the memory for them.
    in_turn()
    return {"batch": batch}, _timed(in_turn)


def direct(path: Path, layers: Sequence[str], features: Path) -> Made:
    """TensorFlow's own convolutions, as ``runtime.backend=tensorflow`` runs them, but at its best batch size."""
    network, images = _network(layers, None), np.load(path)

    def call(some: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return {name: np.asarray(values) for name, values in network(some)}

    np.savez(features, **call(images[:COMPARED]))
    return _at_its_best(call, images)


def other(path: Path, layers: Sequence[str], features: Path, make: Callable[[Sequence[str]], rivals.Call], batches: Any) -> Made:
    """Another program, at the best of these numbers of images a call; images and maps with the channels first."""
    call, images = make(layers), np.ascontiguousarray(np.load(path).transpose(0, 3, 1, 2))
    found = call(images[:COMPARED])
    np.savez(features, **{name: np.stack(maps).transpose(0, 2, 3, 1) for name, maps in zip(layers, found, strict=True)})
    return _at_its_best(call, images, batches)


def _network(layers: Sequence[str], parts: Any) -> Any:
    from pipeline.network.architectures import VggTable
    from pipeline.network.vgg import Network

    wanted = VggTable("vgg19", "same").plan(VggTable("vgg19").resolve(layers), (SIDE_PX, SIDE_PX))
    return Network(seeded_weights(), wanted, device="/CPU:0", size_px=(SIDE_PX, SIDE_PX), parts=parts, **SETTINGS)


def _at_its_best(call: Callable[[Any], object], images: Any, batches: Sequence[int] = BATCHES) -> Made:
    batch = best_batch(call, images, batches)

    def work() -> None:
        for first in range(0, len(images), batch):
            call(images[first : first + batch])

    return {"batch": batch}, _timed(work)


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    def turn() -> float:
        began = time.perf_counter()
        work()
        return IMAGES / (time.perf_counter() - began)

    return turn


def measure(bench: Bench) -> Iterator[Line]:
    """The network alone, 224 px, images a second: ours at its own batch size against every other at its best."""
    path = make_inputs(bench.folder)
    absent = {name: missing(packages) for name, (_, packages, _) in RIVALS.items()}
    for layers in LAYERS:
        files = {name: bench.folder / f"{name}.npz" for name in ("ours", *RIVALS)}
        sides = {"ours": partial(ours, path, layers, files["ours"])}
        for name, (make, _, _) in RIVALS.items():
            if make is None:
                sides[name] = partial(direct, path, layers, files[name])
            elif not absent[name]:
                sides[name] = partial(other, path, layers, files[name], make, BATCHES)
        figures, facts = measure_sides(sides, bench.turns)
        for name, (_, _, goal) in RIVALS.items():
            what, notes = f"network alone, {', '.join(layers)}: {name}", absent[name]
            if name in sides:
                difference = _largest_difference(files[name], files["ours"])
                if not difference <= LARGEST_DIFFERENCE:
                    raise RuntimeError(f"{what}: another network, got features that differ by {difference:.1e}")
                batches = f"ours: batch {facts['ours']['batch']}; {name}: batch {facts[name]['batch']}"
                notes = f"{batches}, features differ by {difference:.1e}"
            yield Line(what, "images/s", figures["ours"], figures.get(name, ()), goal=goal, notes=notes)


def measure_batches(bench: Bench) -> Iterator[Line]:
    """The network alone, relu4_1, other numbers of images a call against the program's own, images a second."""
    arguments = make_inputs(bench.folder), ["relu4_1"], bench.folder / "batches.npz"
    sides = {str(batch): partial(ours, *arguments, batch) for batch in (OWN_BATCH, *OTHER_BATCHES)}
    if not (absent := missing(("ncnn",))):
        sides["ncnn"] = partial(other, *arguments, rivals.ncnn, (1,))
    figures, _ = measure_sides(sides, bench.turns)
    for batch in OTHER_BATCHES:
        line = f"network alone, relu4_1, {batch} a call: ours, {OWN_BATCH} a call"
        yield Line(line, "images/s", figures[str(batch)], figures[str(OWN_BATCH)], goal=BATCH_GOAL)
    line = "network alone, relu4_1, one image at a time: ncnn"
    yield Line(line, "images/s", figures["1"], figures.get("ncnn", ()), goal=ALONE_GOAL, notes=absent)


def _largest_difference(path: Path, reference: Path) -> float:
    with np.load(path) as found, np.load(reference) as expected:
        return max(relative_difference(found[name], expected[name]) for name in expected)


assert all(IMAGES % batch == 0 for batch in BATCHES)
