"""The loop: batches in, features out, each stage handed in. Knows no file, no network and no option."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .records import Batch, FeatureBatch, ImageStatus, Sink
from .report import Stopwatch

Item = TypeVar("Item")


def extract(
    batches: Iterator[Batch],
    compute: Callable[[Batch], Iterable[FeatureBatch]],
    sink: Sink,
    watch: Stopwatch,
    done: Callable[[Sequence[ImageStatus]], None],
    *,
    in_flight: int,
) -> None:
    """Runs every batch through the stages. Every image gets one status; one that did not fail gets features of each layer.

    Args:
        batches: From the loader, in the order of the manifest.
        compute: Gives the features of a batch's good images, one layer after the other, computed when asked for.
        sink: Takes statuses and features.
        watch: Gets the seconds of each stage.
        done: Told of every batch when its features have been handed over; may raise to stop the run.
        in_flight: Batches on the device at a time: while one is uploaded, another is computed and a third is fetched. Each then
            holds the features of all its layers. With 1, a layer is handed over before the next one is computed.
    """
    for batch, layers in _computed(watch.over(in_thread(batches), "read"), compute, watch, in_flight):
        with watch.stage("store"):
            sink.put_statuses(batch.statuses)
        for features in watch.over(layers, "network"):
            with watch.stage("store"):
                sink.put_features(features)
            # A large layer must not wait in memory for the next one to be computed.
            del features
        done(batch.statuses)


def _computed(
    batches: Iterable[Batch], compute: Callable[[Batch], Iterable[FeatureBatch]], watch: Stopwatch, in_flight: int
) -> Iterator[tuple[Batch, Iterable[FeatureBatch]]]:
    """Gives each batch with its features, in order."""
    if in_flight == 1:
        for batch in batches:
            yield batch, compute(batch)
        return
    waiting: deque[tuple[Batch, Future[list[FeatureBatch]]]] = deque()

    def first() -> tuple[Batch, list[FeatureBatch]]:
        batch, future = waiting.popleft()
        with watch.stage("network"):
            return batch, future.result()

    with ThreadPoolExecutor(in_flight, "device") as pool:
        for batch in batches:
            waiting.append((batch, pool.submit(lambda batch: list(compute(batch)), batch)))
            if len(waiting) == in_flight:
                yield first()
        while waiting:
            yield first()


def in_thread(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Takes items in another thread: whoever waits for one in the main thread hears Ctrl-C at once, and not when it is there."""
    pool = ThreadPoolExecutor(1, "load")
    end = object()
    try:
        while (item := pool.submit(next, items, end).result()) is not end:
            yield item  # type: ignore[misc]  # mypy does not know that it is none of the items
            del item
    finally:
        # Without waiting: a disk that does not answer may have it.
        pool.shutdown(wait=False)


def close_unless_running(items: Generator[Item, None, None]) -> None:
    """Closes a generator, unless a thread that nobody waits for any more is still in it: after Ctrl-C."""
    if inspect.getgeneratorstate(items) != inspect.GEN_RUNNING:
        items.close()
