"""``dry_run=true``: a sample of the images through all stages and into no file, and what the whole run will take."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from . import estimate
from .errors import DatasetError
from .extract import close_unless_running, extract
from .journal import LOGGER as _log
from .machine import usable_cores
from .progress import clock, refuse_failures
from .records import ImageStatus, RunSpec
from .report import Stopwatch, count_causes
from .stages import Stages
from .store import disk
from .store.run_folder import RunFolder
from .store.writer import DryWriter

# Batches of the sample. The first finds its memory and makes its code, so the time is taken of the others.
SAMPLE_BATCHES = 4


def rehearse(spec: RunSpec, run_folder: RunFolder, stages: Stages, workers: int | None, max_failed_fraction: float) -> None:
    """Runs a sample, and says what came of it.

    Args:
        spec: The run.
        run_folder: As :func:`~pipeline.store.run_folder.preview_folder` gives it, with something to make.
        stages: Of the run.
        workers: Threads; None: all cores.
        max_failed_fraction: More may not fail, where the sample is all there is.

    Raises:
        DatasetError: The sample is all there is, and too much of it fails.
        NetworkError: A value cannot be stored.
    """
    rows = np.concatenate([np.arange(shard.first, shard.stop) for shard in run_folder.missing])
    count = min(len(rows), SAMPLE_BATCHES * stages.device.batch_size)
    sample = rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
    workers = workers or usable_cores()
    # A second time where there is but one batch, for the time that it takes then.
    turns = 2 if count <= stages.device.batch_size else 1
    trial, ends = DryWriter(spec, workers), [0.0]

    def done(statuses: Sequence[ImageStatus]) -> None:
        ends.append(time.monotonic())

    with ExitStack() as stack:
        stack.callback(trial.abort)
        loads = [iter(stages.load(spec.manifest, sample, workers)) for _ in range(turns)]
        for load in loads:
            stack.callback(close_unless_running, load)
        extract(itertools.chain.from_iterable(loads), stages.compute, trial, Stopwatch(), done, in_flight=stages.in_flight)
        trial.close()
    seconds = time.monotonic() - ends[1]
    first = min(count, stages.device.batch_size)
    if _say(spec, run_folder, trial, count, len(rows)):
        rate = (count * turns - first) / seconds
        _log.info(
            "estimate: about %s for %d images, at %.2f images/s on the %s; the disk's own time is not in it",
            *(clock(math.ceil(len(rows) / rate)), len(rows), rate, stages.device.kind),
        )
    errors = [status.error for status in trial.statuses[:count] if status.error]
    if count == len(rows) == len(spec.manifest):
        if len(errors) == count:
            raise DatasetError(
                f"{spec.manifest.root}: all {count} images failed, got e.g. {errors[0]!r}. Expected at least one that can be "
                f"read. Check the images."
            )
        refuse_failures(len(errors), count, max_failed_fraction, next(iter(errors), ""))


def _say(spec: RunSpec, run_folder: RunFolder, trial: DryWriter, count: int, rows: int) -> bool:
    """Says what the sample tells of the size; whether it tells anything."""
    errors = [status.error for status in trial.statuses[:count] if status.error]
    causes = ", ".join(f"{number} {cause}" for cause, number in sorted(count_causes(errors).items()))
    which = f"all {rows} images" if count == rows else f"{count} of {rows} images, spread evenly"
    _log.info("sample: %s; %d failed%s", which, len(errors), f": {causes}" if causes else "")
    raw, stored = sum(trial.raw_bytes.values()), sum(trial.stored_bytes.values())
    if not raw:
        _log.warning("sample: no image of it can be used, so nothing can be said of the rest")
        return False
    if spec.compression != "none":
        for layer, layer_bytes in trial.raw_bytes.items():
            _log.info("sample: %s is stored in %.0f%% of its bytes", layer, 100 * trial.stored_bytes[layer] / layer_bytes)
    per_row = stored / len(trial.statuses)
    estimate.say_size(run_folder.path, spec, rows, raw / len(trial.statuses), per_row)
    free = disk.free_bytes(run_folder.path) + sum(path.stat().st_size for path in run_folder.replaced)
    if per_row * rows > free:
        _log.warning(estimate.too_little(run_folder.path, free, per_row * rows))
    return True
