"""How well upload, network and download of different batches overlap: a whole job whose device takes a fixed time for each."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .photographs import make_photographs
from .sides import measure_sides
from .table import Bench, Line

BATCH = 2
# The slowest stage, and the others. Long beside what reading and storing a batch take, which have the machine for themselves.
SLOWEST_SECONDS, OTHER_SECONDS = 0.2, 0.1
# Share of the job's time that the slowest stage must fill.
GOAL = 0.9
# Of relu4_1 at 224 px.
SHAPE = (28, 28, 512)
STAGES = ("upload", "network", "download")


class FixedTimes:
    """Stands in for the device functions: three queues, as TensorFlow's of a GPU, whose jobs take so many seconds each."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds, self._ends, self._lock = seconds, [0.0] * len(STAGES), threading.Lock()
        self._values = np.random.default_rng(0).random((BATCH, *SHAPE), np.float32)

    def _queue(self, stage: int, after: float = 0.0) -> float:
        """Gives when what is queued now will be done: after the one before it, and after a time."""
        with self._lock:
            # Source: TensorFlow 2.21, GPUUtil::CopyCPUTensorToGPU: an upload waits for all steps that are queued by then.
            after = self._ends[1] if stage == 0 else after
            self._ends[stage] = max(time.monotonic(), self._ends[stage], after) + self._seconds[stage]
            return self._ends[stage]

    def __call__(self, batch: Any) -> Iterator[Any]:
        """Yields features of the good rows."""
        from pipeline.records import FeatureBatch

        time.sleep(self._queue(0) - time.monotonic())
        time.sleep(self._queue(2, after=self._queue(1)) - time.monotonic())
        yield FeatureBatch("relu4_1", batch.indices[batch.good], self._values[: len(batch.good)])


def job(photographs: Path, output: Path, seconds: Sequence[float]) -> tuple[dict[str, Any], Callable[[], float]]:
    """The whole job in this process; a turn gives the seconds from the first batch asked for to the last shard finished."""
    import pipeline.extract
    from pipeline import extract_features
    from pipeline.network.device import MOST_IN_FLIGHT
    from pipeline.records import Gpu

    make_stages = pipeline.extract.make_stages

    def on_a_fake_gpu(*arguments: Any) -> Any:
        stages = make_stages(*arguments)
        gpu = Gpu("none", 0, 1, 0, 0, "", "")
        device = replace(stages.device, kind="gpu", gpu=gpu, in_flight=MOST_IN_FLIGHT)
        return replace(stages, device=device, compute=FixedTimes(seconds))

    pipeline.extract.make_stages = on_a_fake_gpu

    def turn() -> float:
        shutil.rmtree(output, ignore_errors=True)
        settings = {"output_dir": output.parent, "name": output.name, "quiet": True, "images_per_shard": 16}
        run = extract_features(photographs, weights="random", backend="tensorflow", batch_size=BATCH, **settings)
        return len(run) / float(json.loads((output / "report.json").read_text(encoding="utf-8"))["images_per_second"])

    turn()
    return {}, turn


def measure(bench: Bench) -> Iterator[Line]:
    """The whole job against its slowest stage, where the device takes a fixed time: each stage in its turn the slowest."""
    photographs = make_photographs(bench.folder / "photographs", bench.images)
    batches = -(-bench.images // BATCH)
    for slowest in STAGES:
        seconds = [SLOWEST_SECONDS if stage == slowest else OTHER_SECONDS for stage in STAGES]
        figures, _ = measure_sides({"job": partial(job, photographs, bench.folder / "fixed", seconds)}, bench.turns)
        taken = figures["job"]
        notes = (
            f"no device: {SLOWEST_SECONDS} s for the slowest stage of {batches} batches each, {OTHER_SECONDS} s for the others; "
            "real reading and storing; the rival is the slowest stage's sum"
        )
        yield Line(f"overlap: {slowest} is slowest", "s", taken, [batches * SLOWEST_SECONDS] * len(taken), False, GOAL, notes)
