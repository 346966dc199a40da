"""Makes shards: stages joined to a writer, one loop over all that is asked for. Whoever makes shards makes them here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing

import numpy as np

from .extract import close_unless_running, extract
from .records import Batch, ImageStatus, RunSpec, ShardSpec
from .report import Stopwatch
from .stages import Stages
from .store.writer import Writer

# Batches of a group that are still to be computed when reading the next group begins: what its reading takes up to its first
# batch must not be waited for.
AHEAD_BATCHES = 2
# Between two looks at what became of earlier shards in the background, while there is nothing to compute.
LOOK_EVERY_SECONDS = 0.1


def make_shards(
    writer: Writer,
    part: RunSpec,
    groups: Iterable[Sequence[ShardSpec]],
    stages: Stages,
    threads: int,
    watch: Stopwatch,
    done: Callable[[Sequence[ImageStatus]], None],
    end_groups: Callable[[], None] = lambda: None,
) -> None:
    """Makes shards of one part. All are finished when this returns; those of which all has come, when it raises.

    Args:
        writer: Of the part, without shards yet. It is closed.
        part: The run up to the part.
        groups: Shards whose images are read as one sequence, in order. The next group is asked for in another thread, while the
            last batches of the one before are computed, so an iterator may wait until there is more to do.
        stages: Of the run.
        threads: That read and decode.
        watch: Gets the seconds of each stage.
        done: Told of every batch when its features have been handed over; may raise to stop.
        end_groups: Called when a group was asked for and is not wanted any more, since something has gone wrong: an iterator
            that waits must end then. From another thread than the one that waits.

    Raises:
        PipelineError: A value cannot be stored, the disk refuses. No partial file is left behind.
    """
    with ExitStack() as stack:
        # Last in, first out: reading stops before what is unfinished is dropped.
        stack.push(lambda kind, error, trace: writer.abort() if kind else None)
        batches = _read(writer, part, iter(groups), stages, threads, end_groups)
        stack.callback(close_unless_running, batches)
        extract(batches, stages.compute, writer, watch, done, in_flight=stages.in_flight)
        with watch.stage("finish"):
            writer.close()


class _Begun:
    """A group of which the first batch has been read.

    Args:
        group: Its shards.
        batches: From the loader.
    """

    def __init__(self, group: Sequence[ShardSpec], batches: Generator[Batch, None, None]) -> None:
        self.group = group
        self.batches = batches
        self.rows_left = sum(shard.rows for shard in group)
        self.first = next(batches, None)

    def __iter__(self) -> Iterator[Batch]:
        # Let go: a batch of a group would be in memory as long as the group.
        batch, self.first = self.first, None
        while batch is not None:
            self.rows_left -= len(batch)
            yield batch
            batch = next(self.batches, None)


def _read(
    writer: Writer,
    part: RunSpec,
    groups: Iterator[Sequence[ShardSpec]],
    stages: Stages,
    threads: int,
    end_groups: Callable[[], None],
) -> Generator[Batch, None, None]:
    """Gives the batches of one group after the other."""

    def begin() -> _Begun | None:
        group = next(groups, None)
        if group is None:
            return None
        indices = np.concatenate([np.arange(shard.first, shard.stop) for shard in group])
        return _Begun(group, iter(stages.load(part.manifest, indices, threads)))

    ahead = ThreadPoolExecutor(1, "ahead")
    following: Future[_Begun | None] | None = None
    begun = begin()
    try:
        while begun is not None:
            writer.expect(begun.group)
            with closing(begun.batches):
                for batch in begun:
                    if following is None and begun.rows_left <= AHEAD_BATCHES * len(batch):
                        following = ahead.submit(begin)
                    yield batch
            assert following is not None, f"no batch came of {begun.group}"
            while not wait([following], LOOK_EVERY_SECONDS).done:
                # Whoever gives the groups may give none until it hears what became of the last one.
                writer.check()
            begun, following = following.result(), None
    finally:
        if following is not None:
            # Else its thread would wait for a group as long as whoever gives them does for the error.
            end_groups()
        ahead.shutdown(wait=True)
        left = following.result() if following is not None and following.exception() is None else None
        if left is not None:
            left.batches.close()
