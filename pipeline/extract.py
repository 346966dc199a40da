"""The loop: batches in, features out, each stage handed in. Knows no file, no network and no option."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .records import Batch, FeatureBatch, ImageStatus, Sink
from .report import Stopwatch

# Layer, rows of the run, activations on the device.
Activations = tuple[str, NDArray[np.int64], Any]


class Step(Protocol):
    """Some images of one batch, ready for the network."""

    @property
    def indices(self) -> NDArray[np.int64]:
        """(n,) rows of the run."""

    @property
    def images(self) -> Any:
        """(m, H, W, 3) float32 on the device, m >= n."""


def extract(
    batches: Iterable[Batch],
    preprocess: Callable[[Batch], Iterable[Step]],
    network: Callable[[Any], Iterable[tuple[str, Any]]],
    sink: Sink,
    watch: Stopwatch,
    done: Callable[[Sequence[ImageStatus]], None],
    *,
    asynchronous: bool,
) -> None:
    """Runs every batch through the stages. Every image gets one status; one that did not fail gets features of each layer.

    Args:
        batches: From the loader, in the order of the manifest.
        preprocess: Gives the good images of a batch, some at a time.
        network: Gives (layer, activations on the device), one layer after the other, computed when asked for.
        sink: Takes statuses and features.
        watch: Gets the seconds of each stage.
        done: Told of every batch when its features have been handed over; may raise to stop the run.
        asynchronous: Whether the device computes while the host goes on, as a GPU does: then activations are fetched after the
            next ones have been asked for. On a CPU that would only keep one layer more in memory.
    """
    for batch in watch.over(batches, "read"):
        with watch.stage("store"):
            sink.put_statuses(batch.statuses)
        activations = _activations(batch, preprocess, network, watch)
        for layer, indices, values in _one_behind(activations) if asynchronous else activations:
            with watch.stage("network"):
                # No copy where the device is the CPU. Rows past the last index only filled up the step.
                fetched = np.asarray(values)[: len(indices)]
            with watch.stage("store"):
                sink.put_features(FeatureBatch(layer, indices, fetched))
            # A large layer must not wait in memory for the next one to be computed.
            del values, fetched
        done(batch.statuses)


def _activations(
    batch: Batch,
    preprocess: Callable[[Batch], Iterable[Step]],
    network: Callable[[Any], Iterable[tuple[str, Any]]],
    watch: Stopwatch,
) -> Iterator[Activations]:
    for step in watch.over(preprocess(batch), "preprocess"):
        for layer, values in watch.over(network(step.images), "network"):
            yield layer, step.indices, values


def _one_behind(activations: Iterable[Activations]) -> Iterator[Activations]:
    waiting: Activations | None = None
    for following in activations:
        if waiting is not None:
            yield waiting
        waiting = following
    if waiting is not None:
        yield waiting
