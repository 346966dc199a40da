"""The network alone: images in memory, no decoding and no writing; every program's features compared with ours."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .photographs import make_photographs
from .rivals import (
    BATCHES,
    SIDE_PX,
    best_batch,
    mnn_call,
    ncnn_call,
    onnx_session,
    relative_difference,
    seeded_weights,
    write_ncnn_model,
    write_onnx_model,
)
from .rows import Bench, Line, interleave, missing, row
from .sides import Side, usable_cores

LAYERS = (("relu4_1",), ("relu5_4",), ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"))

# A turn takes a second or more; a multiple of every batch size that is tried.
IMAGES = 32

# Images whose features are compared.
COMPARED = 2
LARGEST_DIFFERENCE = 1e-3

# Rival -> function below and what it needs.
RIVALS = {
    "TensorFlow, direct convolutions": ("direct", ()),
    "ONNX Runtime": ("onnx", ("onnx", "onnxruntime")),
    "ncnn": ("ncnn", ("ncnn",)),
    "MNN": ("mnn", ("MNN", "onnx")),
}


SETTINGS = {"pooling": "max", "kernel_order": "hwio"}
# What the program chooses on two cores.
OWN_BATCH = 8
# What TensorFlow's own convolutions must be overtaken by; others by anything.
GOALS = {"direct": 1.7, "ncnn": 1.3, "mnn": 1.3}
# Share of the rate of the program's own batches that others must reach, and of ncnn's with one image at a time.
OTHER_BATCHES, BATCH_GOAL, ALONE_GOAL = (1, 2, 32), 0.85, 0.9


def make_inputs(folder: Path) -> Path:
    """Writes what the network gets for :data:`IMAGES` photographs, (n, 224, 224, 3) float32, mean removed; gives the file."""
    path = folder / "inputs.npy"
    if not path.is_file():
        photographs = make_photographs(folder / "for the bare network", IMAGES)
        with Side("bare_network:inputs", photographs=str(photographs), path=str(path)):
            pass
    return path


def inputs(photographs: str, path: str) -> tuple[dict[str, Any], Callable[[], None]]:
    """A side that measures nothing: reads and resizes photographs as the program does."""
    from pipeline.images.folder import list_folder
    from pipeline.images.loader import ImageLoader
    from pipeline.images.resize import ResizeSpec, resize_on_host

    manifest = list_folder(Path(photographs))
    spec = ResizeSpec((SIDE_PX, SIDE_PX), "squash", "bilinear")
    prepare = partial(resize_on_host, spec=spec, mean_pixel=seeded_weights().mean_pixel.astype(np.float32))
    loader = ImageLoader(
        manifest, np.arange(len(manifest)), batch_size=8, workers=usable_cores(), prepare=prepare, size_px=spec.size_px
    )
    np.save(path, np.concatenate([batch.images for batch in loader]))
    return {}, lambda: None


def ours(path: str, layers: Sequence[str], features: str, batch: int = OWN_BATCH) -> tuple[dict[str, Any], Callable[[], float]]:
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
    network = _network(layers, parts)
    images = np.load(path)

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
    return {"batch": batch}, _timed(in_turn, len(images))


def direct(path: str, layers: Sequence[str], features: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """TensorFlow's own convolutions, as ``runtime.backend=tensorflow`` runs them, but at its best batch size."""
    network = _network(layers, None)

    def call(some: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return {name: np.asarray(values) for name, values in network(some)}

    images = np.load(path)
    np.savez(features, **call(images[:COMPARED]))
    batch = best_batch(call, images)
    return {"batch": batch}, _timed(lambda: _all(call, images, batch), len(images))


def _network(layers: Sequence[str], parts: Any) -> Any:
    from pipeline.network.architectures import VggTable
    from pipeline.network.vgg import Network

    wanted = VggTable("vgg19", "same").plan(VggTable("vgg19").resolve(layers), (SIDE_PX, SIDE_PX))
    return Network(seeded_weights(), wanted, device="/CPU:0", size_px=(SIDE_PX, SIDE_PX), parts=parts, **SETTINGS)


def onnx(path: str, layers: Sequence[str], features: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """ONNX Runtime on its CPU provider, all cores within an operation; NCHW in and out."""
    with tempfile.TemporaryDirectory() as folder:
        session = onnx_session(write_onnx_model(seeded_weights(), layers, Path(folder, "vgg19.onnx")), usable_cores())
    images = _channels_first(path)

    def call(some: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = session.run(None, {"images": some})
        return found

    _save_channels_first(features, layers, call(images[:COMPARED]))
    batch = best_batch(call, images)
    return {"batch": batch}, _timed(lambda: _all(call, images, batch), len(images))


def ncnn(path: str, layers: Sequence[str], features: str, alone: bool = False) -> tuple[dict[str, Any], Callable[[], float]]:
    """ncnn, the better of one image at a time on all cores, and an image on each; ``alone``: one at a time."""
    images, cores = _channels_first(path), usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        write_ncnn_model(seeded_weights(), layers, Path(folder))
        calls = {at_once: ncnn_call(Path(folder), layers, cores // at_once) for at_once in ({1} if alone else {1, cores})}
    turns: dict[int, Callable[[], float]] = {}
    for at_once, call in calls.items():
        found = [call(image) for image in images[:COMPARED]]
        pool = ThreadPoolExecutor(at_once)
        turns[at_once] = _timed(lambda call=call, pool=pool: deque(pool.map(call, images), maxlen=0), len(images))
    _save_channels_first(features, layers, [np.stack(of_layer) for of_layer in zip(*found, strict=True)])
    at_once = max(turns, key=lambda at_once: turns[at_once]())
    return {"images at a time": at_once}, turns[at_once]


def mnn(path: str, layers: Sequence[str], features: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """MNN, all cores within an operation; less exact than any other."""
    images = _channels_first(path)
    with tempfile.TemporaryDirectory() as folder:
        call = mnn_call(seeded_weights(), layers, Path(folder), usable_cores())
    _save_channels_first(features, layers, call(images[:COMPARED]))
    batch = best_batch(call, images)
    return {"batch": batch}, _timed(lambda: _all(call, images, batch), len(images))


@row("network", "the network alone, 224 px, images a second")
def measure(bench: Bench) -> Iterator[Line]:
    """Ours at the program's own batch size against every other at its best."""
    path = make_inputs(bench.folder)
    for layers in LAYERS:
        words = ", ".join(layers)
        absent = {name: missing(modules) for name, (_, modules) in RIVALS.items()}
        with ExitStack() as stack:
            arguments = {"path": str(path), "layers": layers}
            sides = {"ours": stack.enter_context(Side("bare_network:ours", features=str(bench.folder / "ours.npz"), **arguments))}
            for name, (function, _) in RIVALS.items():
                if not absent[name]:
                    features = str(bench.folder / f"{function}.npz")
                    sides[name] = stack.enter_context(Side(f"bare_network:{function}", features=features, **arguments))
            figures = interleave({name: side.turn for name, side in sides.items()}, bench.turns)
        for name, (function, _) in RIVALS.items():
            what = f"network alone, {words}: {name}"
            if absent[name]:
                yield Line(what, notes=absent[name])
                continue
            difference = _largest_difference(bench.folder / f"{function}.npz", bench.folder / "ours.npz")
            if not difference <= LARGEST_DIFFERENCE:
                raise RuntimeError(f"{what}: another network, got features that differ by {difference:.1e}")
            facts = ", ".join(f"{key} {value}" for key, value in sides[name].facts.items())
            notes = f"ours: batch {sides['ours'].facts['batch']}; {name}: {facts}, features differ by {difference:.1e}"
            yield Line(what, "images/s", figures["ours"], figures[name], goal=GOALS.get(function, 1.0), notes=notes)


@row("batches", "the network alone, relu4_1, other numbers of images a call against the program's own, images a second")
def measure_batches(bench: Bench) -> Iterator[Line]:
    """Ours at each number of images; and one image at a time against ncnn."""
    arguments = {"path": str(make_inputs(bench.folder)), "layers": ["relu4_1"], "features": str(bench.folder / "batches.npz")}
    with ExitStack() as stack:
        sides = {
            batch: stack.enter_context(Side("bare_network:ours", batch=batch, **arguments))
            for batch in (OWN_BATCH, *OTHER_BATCHES)
        }
        turns = {str(batch): side.turn for batch, side in sides.items()}
        if not (absent := missing(("ncnn",))):
            turns["ncnn"] = stack.enter_context(Side("bare_network:ncnn", alone=True, **arguments)).turn
        figures = interleave(turns, bench.turns)
    for batch in OTHER_BATCHES:
        line = f"network alone, relu4_1, {batch} a call: ours, {OWN_BATCH} a call"
        yield Line(line, "images/s", figures[str(batch)], figures[str(OWN_BATCH)], goal=BATCH_GOAL)
    line = "network alone, relu4_1, one image at a time: ncnn"
    yield Line(line, "images/s", figures["1"], figures.get("ncnn", ()), goal=ALONE_GOAL, notes=absent)


def _timed(work: Callable[[], object], images: int) -> Callable[[], float]:
    def turn() -> float:
        began = time.perf_counter()
        work()
        return images / (time.perf_counter() - began)

    return turn


def _all(call: Callable[[Any], object], images: Any, batch: int) -> None:
    for first in range(0, len(images), batch):
        call(images[first : first + batch])


def _channels_first(path: str) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.load(path).transpose(0, 3, 1, 2))


def _save_channels_first(path: str, layers: Sequence[str], values: Sequence[NDArray[np.float32]]) -> None:
    np.savez(path, **{name: value.transpose(0, 2, 3, 1) for name, value in zip(layers, values, strict=True)})


def _largest_difference(path: Path, reference: Path) -> float:
    with np.load(path) as found, np.load(reference) as expected:
        return max(relative_difference(found[name], expected[name]) for name in expected)


assert all(IMAGES % batch == 0 for batch in BATCHES)
