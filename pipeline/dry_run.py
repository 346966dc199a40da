"""``dry_run=true``: a sample of the images through all stages and into no file, and what the whole run will take."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from .config import Options
from .errors import DatasetError
from .extract import Stages, close_unless_running, extract, rows_of
from .formatting import count_causes, words_for_seconds
from .machine import usable_cores
from .progress import LOGGER as _log
from .progress import Stopwatch, refuse_failures, say_size
from .records import ImageStatus
from .store import disk
from .store.run_folder import RunFolder
from .store.writer import DryWriter

# Batches of the sample. The first finds its memory and makes its code, so the time is taken of the others, if there are any.
SAMPLE_BATCHES = 4


def run_sample(options: Options, run_folder: RunFolder, stages: Stages) -> None:
    """Run a sample, and say what came of it.

    Args:
        options: Of the run.
        run_folder: As :func:`~pipeline.store.run_folder.preview_folder` gives it, with something to make.
        stages: Of the run.

    Raises:
        DatasetError: The sample is all there is, and too much of it fails.
        NetworkError: A value cannot be stored.
    """
    spec, rows = run_folder.spec, rows_of(run_folder.missing)
    # At native size few images share a step.
    count = min(len(rows), SAMPLE_BATCHES * (stages.device.batch_size if options.data.size else 1))
    sample = rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
    trial, began = DryWriter(spec, options.runtime.workers or usable_cores()), time.monotonic()
    ends: list[tuple[int, float]] = []

    def done(statuses: Sequence[ImageStatus], values: int) -> None:
        ends.append((len(statuses), time.monotonic()))

    with ExitStack() as stack:
        stack.callback(trial.abort)
        batches = iter(stages.load(spec.manifest, sample))
        stack.callback(close_unless_running, batches)
        extract(batches, stages, trial, Stopwatch(), done)
        trial.close()
    before, began = ends[0] if len(ends) > 1 else (0, began)
    rate = (count - before) / (time.monotonic() - began)
    errors = [status.error for status in trial.statuses if status.error]
    causes = ", ".join(f"{number} {cause}" for cause, number in sorted(count_causes(errors).items()))
    which = f"all {count} images" if count == len(rows) else f"{count} of {len(rows)} images, spread evenly"
    _log.info("sample: %s; %d failed%s", which, len(errors), f": {causes}" if causes else "")
    raw, stored = sum(trial.raw_bytes.values()), sum(trial.stored_bytes.values())
    if raw:
        if spec.compression != "none":
            for layer, of_layer in trial.raw_bytes.items():
                _log.info("sample: %s is stored in %.0f%% of its bytes", layer, 100 * trial.stored_bytes[layer] / of_layer)
        share = len(rows) / len(trial.statuses)
        say_size(run_folder.path, raw * share, stored * share, free_bytes(run_folder))
        _log.info(
            "estimate: about %s for %d images, at %.2f images/s on the %s; the disk's own time is not in it",
            *(words_for_seconds(math.ceil(len(rows) / rate)), len(rows), rate, stages.device.kind),
        )
    else:
        _log.warning("sample: no image of it can be used, so nothing can be said of the rest")
    if count == len(rows) == len(spec.manifest):
        if len(errors) == count:
            raise DatasetError(
                f"{spec.manifest.root}: all {count} images failed, got e.g. {errors[0]!r}. Expected at least one that can be "
                f"read. Check the images."
            )
        refuse_failures(len(errors), count, options.data.max_failed_fraction, next(iter(errors), ""))


def free_bytes(run_folder: RunFolder) -> int:
    """Return what the disk has for a run: what is free, and what the run will replace."""
    replaced = sum(path.stat().st_size for path in run_folder.replaced) if disk.holds_all(run_folder.path) else 0
    return disk.free_bytes(run_folder.path) + replaced
