"""Cost against size: whether ten times the images cost ten times the time, and what memory they take."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .rows import Bench, Line, interleave, row
from .sides import Finished, Side, run_ours

SIZES = (200, 2_000)
SIZES_SLOW = (200, 2_000, 20_000)
LISTED, LISTED_SLOW = 100_000, 1_000_000

# What an image may cost more where there are ten times as many.
LINEAR = 0.9
FILES_A_FOLDER = 1000


@row("scale", "seconds an image and peak memory at 200 and at 2,000 tiny images (20,000 with --slow)")
def measure(bench: Bench) -> Iterator[Line]:
    """Each size against the one before."""
    sizes = SIZES_SLOW if bench.slow else SIZES
    runs: dict[int, list[Finished]] = {size: [] for size in sizes}

    def turn(size: int) -> float:
        output = bench.folder / "scale"
        folder = _tiny_images(bench.folder / f"tiny {size}", size)
        runs[size].append(run_ours(output, f"data.dir={folder}", "layers=[relu1_1]", "data.size=32"))
        shutil.rmtree(output)
        return 1e3 / float(runs[size][-1].report["images_per_second"])

    figures = interleave({str(size): lambda size=size: turn(size) for size in sizes}, bench.turns)
    for smaller, larger in itertools.pairwise(sizes):
        words = f"{larger:,} tiny images: {smaller:,}"
        costs = figures[str(larger)], figures[str(smaller)]
        memory = [[run.peak_bytes / 1e6 for run in runs[size]] for size in (larger, smaller)]
        notes = "32 px, relu1_1; start-up not counted in the time"
        yield Line(f"milliseconds an image, {words}", "ms", *costs, more_is_better=False, goal=LINEAR, notes=notes)
        yield Line(f"peak memory, {words}", "MB", *memory, more_is_better=False, notes=notes)


@row("listing", "a folder of 100,000 files (1,000,000 with --slow) listed and planned: seconds and memory")
def measure_listing(bench: Bench) -> Iterator[Line]:
    """Against what a script does to know the same: all paths sorted, and the size of each."""
    count = LISTED_SLOW if bench.slow else LISTED
    folder = _empty_images(bench.folder / "many", count)
    listed = bench.folder / "many.txt"
    listed.write_text("".join(f"many/{number // FILES_A_FOLDER:04d}/{number:07d}.jpg\n" for number in range(count)))
    memory: dict[str, list[float]] = {}

    def side(function: str, **arguments: str) -> Callable[[], float]:
        def turn() -> float:
            # A fresh process each time: memory is its growth.
            with Side(f"scale:{function}", **arguments) as process:
                seconds, grown_bytes = process.turn()
            memory.setdefault(f"{function} {sorted(arguments)}", []).append(grown_bytes / 1e6)
            return float(seconds)

        return turn

    sides = {
        "folder": side("listing", folder=str(folder)),
        "script": side("script", folder=str(folder)),
        "list": side("listing", listed=str(listed)),
    }
    figures = interleave(sides, bench.turns)
    of_folder, of_script, of_list = memory.values()
    notes = "the script: sorted(Path.rglob), the size of each; ours knows labels, keys, a digest and the shards besides"
    what = f"{count:,} files listed and planned"
    yield Line(f"{what}, data.dir: script", "s", figures["folder"], figures["script"], False, goal=1.0, notes=notes)
    yield Line(f"{what}, data.dir, memory: script", "MB", of_folder, of_script, False, goal=1.0, notes=notes)
    yield Line(f"{what}, data.list", "s", figures["list"], more_is_better=False)
    yield Line(f"{what}, data.list, memory", "MB", of_list, more_is_better=False)


def listing(folder: str | None = None, listed: str | None = None) -> tuple[dict[str, Any], Callable[[], list[float]]]:
    """Lists a folder or a list and plans the run."""
    from pipeline.config import check_options
    from pipeline.images.folder import list_folder
    from pipeline.images.lists import read_list
    from pipeline.network.layers import resolve_layers
    from pipeline.plan import plan_run

    from .rivals import seeded_weights

    weights, layers = seeded_weights(), resolve_layers("vgg19", ["relu4_1"])
    options = check_options(_values(folder, listed))

    def turn() -> list[float]:
        before, began = _resident_bytes(), time.perf_counter()
        manifest = list_folder(Path(folder)) if folder else read_list(Path(str(listed)), None)
        spec = plan_run(options, manifest, weights, layers, "")
        shards = spec.shards()
        seconds = time.perf_counter() - began
        assert sum(shard.rows for shard in shards) == len(manifest)
        return [seconds, _resident_bytes() - before]

    return {}, turn


def script(folder: str) -> tuple[dict[str, Any], Callable[[], list[float]]]:
    """What scripts do."""

    def turn() -> list[float]:
        before, began = _resident_bytes(), time.perf_counter()
        paths = sorted(Path(folder).rglob("*.jpg"))
        sizes = [path.stat().st_size for path in paths]
        seconds = time.perf_counter() - began
        assert len(sizes) == len(paths)
        return [seconds, _resident_bytes() - before]

    return {}, turn


def _values(folder: str | None, listed: str | None) -> Any:
    """Gives the options as the command composes them."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from pipeline.run import configuration_folder
    from pipeline.schema import Schema

    ConfigStore.instance().store(name="schema", node=Schema)
    with initialize_config_dir(str(Path(configuration_folder()).resolve()), version_base="1.3"):
        given = f'data.dir="{folder}"' if folder else f'data.list="{listed}"'
        return OmegaConf.to_container(compose("config", [given, "network.weights=random"]), resolve=True)


def _resident_bytes() -> int:
    # Source: proc(5): the second number is the resident pages.
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _tiny_images(folder: Path, count: int) -> Path:
    """Makes JPEGs of 32 x 32 px: a hundred, and links to them."""
    if folder.is_dir():
        return folder
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if number < 100:
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
        else:
            os.link(folder / f"{number % 100:06d}.jpg", path)
    return folder


def _empty_images(folder: Path, count: int) -> Path:
    for number in range(count):
        if number % FILES_A_FOLDER == 0:
            part = folder / f"{number // FILES_A_FOLDER:04d}"
            part.mkdir(parents=True)
        (part / f"{number:07d}.jpg").touch()
    return folder
