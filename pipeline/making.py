"""Makes shards: stages joined to a writer, one loop over all that is asked for. Whoever makes shards makes them here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from .extract import close_unless_running, extract
from .records import ImageStatus, RunSpec, ShardSpec
from .report import Stopwatch
from .stages import Stages
from .store.writer import Writer


def make_shards(
    writer: Writer,
    part: RunSpec,
    shards: Sequence[ShardSpec],
    stages: Stages,
    threads: int,
    watch: Stopwatch,
    done: Callable[[Sequence[ImageStatus]], None],
) -> None:
    """Make shards of one part. All are finished when this returns; those of which all has come, when it raises.

    Args:
        writer: Of these shards. It is closed.
        part: The run up to the part.
        shards: In order; their images are read as one sequence.
        stages: Of the run.
        threads: That read and decode.
        watch: Gets the seconds of each stage.
        done: Told of every batch when its features have been handed over; may raise to stop.

    Raises:
        PipelineError: A value cannot be stored, the disk refuses. No partial file is left behind.
    """
    indices = np.concatenate([np.arange(shard.first, shard.stop) for shard in shards])
    with ExitStack() as stack:
        # Last in, first out: reading stops before what is unfinished is dropped.
        stack.push(lambda kind, error, trace: writer.abort() if kind else None)
        batches = iter(stages.load(part.manifest, indices, threads))
        stack.callback(close_unless_running, batches)
        extract(batches, stages.compute, writer, watch, done, in_flight=stages.in_flight)
        with watch.stage("finish"):
            writer.close()
