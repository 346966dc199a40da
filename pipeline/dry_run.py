"""``dry_run=true``: a sample of the images through all stages and into no file, and what the whole run will take."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import numpy as np

from .config import Options
from .extract import extract, make_stages, rows_of
from .formatting import count_causes, words_for_bytes, words_for_seconds
from .network.keras_models import AnyWeights
from .progress import LOGGER, Stopwatch, refuse_failures
from .signals import leaving_at_once
from .store import disk
from .store.run_folder import RunFolder
from .store.shard import encoded_bytes

SAMPLE_BATCHES = 4


def dry_run(options: Options, run_folder: RunFolder, weights: AnyWeights) -> None:
    """Run a sample of what is missing, and say what came of it.

    Raises:
        DatasetError: The sample is all there is, and too much of it fails.
        PipelineError: What would stop the run: the device asked for is not there, a value cannot be stored.
    """
    if run_folder.missing:
        if options.engine.name != "local":
            LOGGER.info("dry run: the sample is made by this process alone, and so the estimate is for it")
        _run_sample(options, run_folder, weights)
    else:
        LOGGER.info("estimate: all rows are finished, nothing is left to make")
    LOGGER.info("dry run: nothing was written. Leave out dry_run=true to extract.")


def _run_sample(options: Options, run_folder: RunFolder, weights: AnyWeights) -> None:
    spec, rows = run_folder.spec, rows_of(run_folder.missing)
    with leaving_at_once():
        stages = make_stages(options, spec, weights)
    # At native size few images share a step.
    count = min(len(rows), SAMPLE_BATCHES * (stages.device.batch_size if options.data.size else 1))
    sample = rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
    errors: list[str] = []
    uncounted, began = 0, time.monotonic()
    encoding: Iterable[tuple[int, int]] = ()
    sizes = np.zeros(2)  # bytes before compression, and after
    with (
        ThreadPoolExecutor(stages.threads, "encode") as encoders,
        closing(extract(spec.manifest, sample, stages, Stopwatch())) as batches,
    ):
        for batch, layers in batches:
            errors += [status.error for status in batch.statuses if status.error]
            for features in layers:
                # No more than one layer waits in memory.
                sizes += np.sum([*encoding], 0)
                encode = partial(encoded_bytes, spec, features.layer)
                encoding = encoders.map(encode, features.indices.tolist(), features.values)
            if not uncounted and len(batch) < count:
                # The first batch finds its memory and makes its code: the time is taken of the others.
                uncounted, began = len(batch), time.monotonic()
        sizes += np.sum([*encoding], 0)
    rate = (count - uncounted) / (time.monotonic() - began)
    causes = ", ".join(f"{number} {cause}" for cause, number in sorted(count_causes(errors).items()))
    which = f"all {count} images" if count == len(rows) else f"{count} of {len(rows)} images, spread evenly"
    LOGGER.info("sample: %s; %d failed%s", which, len(errors), f": {causes}" if causes else "")
    if sizes.any():
        raw_bytes, stored_bytes = (sizes * (len(rows) / count)).tolist()
        free_bytes = disk.free_bytes(run_folder.path)
        raw, stored, free = map(words_for_bytes, (raw_bytes, stored_bytes, free_bytes))
        share = f" after compression, {stored_bytes / raw_bytes:.0%} of {raw}"
        LOGGER.info("estimate: about %s; %s free", stored + share * (stored_bytes < raw_bytes), free)
        if stored_bytes > free_bytes:
            LOGGER.warning(
                "%s: the features will hardly fit, got %s free for about %s. Expected more. Free some space, use "
                "output.dtype=float16, or another output.dir; finished shards are kept.",
                *(run_folder.path, free, stored),
            )
        LOGGER.info(
            "estimate: about %s for %d images, at %.2f images/s on the %s; the disk's own time is not in it",
            *(words_for_seconds(math.ceil(len(rows) / rate)), len(rows), rate, stages.device.kind),
        )
    else:
        LOGGER.warning("sample: no image of it can be used, so nothing can be said of the rest")
    if count == len(rows) == len(spec.manifest) and errors:
        refuse_failures(len(errors), count, options.data.max_failed_fraction, errors[0])
