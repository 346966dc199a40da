"""The engine of many processes: what a second worker brings, and what the engine costs where there is only one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

from .photographs import make_photographs
from .rows import Bench, Line, interleave, missing, row
from .sides import run_ours, usable_cores

IMAGES = 128
# Small, so that two workers have some each; a run of millions has ten times as many in each, and fewer ends to wait for.
IMAGES_PER_SHARD = 16
# Of the local engine's rate, what one worker must reach; of twice one worker's, what two must.
OVERHEAD, SCALING = 0.95, 0.9


@row("engine", f"relu4_1 of {IMAGES} JPEGs by workers on a Ray cluster here: scaling and overhead", asked_for_only=True)
def measure(bench: Bench) -> Iterator[Line]:
    """One worker against two, of one thread each; one worker with all cores against the local engine; and what starting takes."""
    if absent := missing(["ray"]):
        yield Line("engine=ray", notes=absent)
        return
    photographs = make_photographs(bench.folder / "engine", IMAGES)
    output = bench.folder / "by engine"
    started: dict[str, list[float]] = {}

    def side(name: str, *options: str) -> Callable[[], float]:
        def turn() -> float:
            shutil.rmtree(output, ignore_errors=True)
            settings = (f"data.dir={photographs}", "layers=[relu4_1]", f"output.images_per_shard={IMAGES_PER_SHARD}")
            finished = run_ours(output, *settings, *options)
            started.setdefault(name, []).append(float(finished.report["seconds_by_stage"]["start"]))
            return float(finished.report["images_per_second"])

        return turn

    thin = ("engine=ray", "runtime.workers=1")
    sides = {
        "local": side("local"),
        "ray": side("ray", "engine=ray", "engine.workers=1"),
        "one": side("one", *thin, "engine.workers=1"),
        "two": side("two", *thin, "engine.workers=2"),
    }
    figures = interleave(sides, bench.turns)
    notes = "from the first batch asked for to the last shard finished"
    yield Line("2 workers of 1 thread: 1 of 1 thread", "images/s", figures["two"], figures["one"], goal=2 * SCALING, notes=notes)
    what = f"engine=ray, 1 worker of {usable_cores()} threads: engine=local"
    yield Line(what, "images/s", figures["ray"], figures["local"], goal=OVERHEAD, notes=notes)
    notes = "until the first image is asked for: the cluster, then TensorFlow and the network in its worker"
    yield Line("the same, starting", "s", started["ray"], started["local"], more_is_better=False, notes=notes)
