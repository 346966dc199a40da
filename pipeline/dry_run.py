"""``dry_run=true``: a sample of the images through all stages and into no file, and what the whole run will take."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import numpy as np

from .config import Options
from .extract import Stages, extract, rows_of
from .formatting import count_causes, words_for_bytes, words_for_seconds
from .progress import LOGGER as _log
from .progress import Stopwatch, refuse_failures
from .records import ImageStatus
from .store import disk
from .store.run_folder import RunFolder
from .store.shard import encoded_bytes

# Batches of the sample. The first finds its memory and makes its code, so the time is taken of the others, if there are any.
SAMPLE_BATCHES = 4


def run_sample(options: Options, run_folder: RunFolder, stages: Stages) -> None:
    """Run a sample of what is missing, and say what came of it.

    Raises:
        DatasetError: The sample is all there is, and too much of it fails.
        NetworkError: A value cannot be stored.
    """
    spec, rows = run_folder.spec, rows_of(run_folder.missing)
    # At native size few images share a step.
    count = min(len(rows), SAMPLE_BATCHES * (stages.device.batch_size if options.data.size else 1))
    sample = rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
    statuses: list[ImageStatus] = []
    ends: list[tuple[int, float]] = []
    # Of each row of each layer, how many bytes it has before compression and after.
    encoded: list[Future[tuple[int, int]]] = []
    latest: list[Future[tuple[int, int]]] = []
    began = time.monotonic()
    with (
        ThreadPoolExecutor(stages.threads, "encode") as encoders,
        closing(extract(spec.manifest, sample, stages, Stopwatch())) as batches,
    ):
        for batch, layers in batches:
            statuses += batch.statuses
            for features in layers:
                # No more than one layer waits in memory.
                wait(latest)
                rows_of_layer = zip(features.indices.tolist(), features.values, strict=True)
                latest = [encoders.submit(encoded_bytes, spec, features.layer, *row) for row in rows_of_layer]
                encoded += latest
            ends.append((len(batch), time.monotonic()))
    before, began = ends[0] if len(ends) > 1 else (0, began)
    rate = (count - before) / (time.monotonic() - began)
    errors = [status.error for status in statuses if status.error]
    causes = ", ".join(f"{number} {cause}" for cause, number in sorted(count_causes(errors).items()))
    which = f"all {count} images" if count == len(rows) else f"{count} of {len(rows)} images, spread evenly"
    _log.info("sample: %s; %d failed%s", which, len(errors), f": {causes}" if causes else "")
    if encoded:
        sizes = np.array([task.result() for task in encoded]).sum(0) * (len(rows) / len(statuses))
        _say_size(run_folder.path, *sizes.tolist())
        _log.info(
            "estimate: about %s for %d images, at %.2f images/s on the %s; the disk's own time is not in it",
            *(words_for_seconds(math.ceil(len(rows) / rate)), len(rows), rate, stages.device.kind),
        )
    else:
        _log.warning("sample: no image of it can be used, so nothing can be said of the rest")
    if count == len(rows) == len(spec.manifest) and errors:
        refuse_failures(len(errors), count, options.data.max_failed_fraction, errors[0])


def _say_size(path: Path, raw_bytes: float, stored_bytes: float) -> None:
    """Say what a run will take on the disk, and warn if the disk has less."""
    has_bytes, stored = disk.free_bytes(path), words_for_bytes(stored_bytes)
    share = f" after compression, {stored_bytes / raw_bytes:.0%} of {words_for_bytes(raw_bytes)}"
    free = words_for_bytes(has_bytes)
    _log.info("estimate: about %s; %s free", stored + share * (stored_bytes < raw_bytes), free)
    if stored_bytes > has_bytes:
        _log.warning(
            "%s: the features will hardly fit, got %s free for about %s. Finished shards are kept if the disk fills up. "
            "Free some space, use output.dtype=float16, or another disk with output.dir=...",
            *(path, free, stored),
        )
