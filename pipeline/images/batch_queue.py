"""Batches that several threads fill, row after row, ahead of the one that takes them. Knows nothing of images.

Stands within the loader: a task for each batch, or even for each image, would leave workers waiting for one another for a third
of their time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

# Batches that are being filled or wait, whole, for the consumer: with one alone, workers would wait for the slowest of them.
BATCHES_AHEAD = 2


class Filling(Protocol):
    """A batch whose rows can be loaded in any order, several at a time."""

    def load(self, place: int) -> None:
        """Loads the row at this place, once; raises what ends the run."""


F = TypeVar("F", bound=Filling)


class BatchQueue(Generic[F]):
    """Rows that workers load ahead of the consumer, each taking the next one when it has done with the last.

    A batch is given out as soon as all of it is there; that many rows more may be loaded then.

    Args:
        indices: (N,) int64, which rows.
        batch_size: Rows a batch; the last may have fewer.
        begin: (n,) int64 of them -> the batch to be filled; called when its rows may be loaded.
    """

    def __init__(self, indices: NDArray[np.int64], batch_size: int, begin: Callable[[NDArray[np.int64]], F]) -> None:
        self._indices = indices
        self._batch_size = batch_size
        self._begin = begin
        self._taken = self._allowed = 0
        self._batches: dict[int, F] = {}
        self._left: dict[int, int] = {}
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        for _ in range(BATCHES_AHEAD):
            self._allow_batch()

    def _allow_batch(self) -> None:
        wanted = self._indices[self._allowed : self._allowed + self._batch_size]
        if len(wanted):
            number = self._allowed // self._batch_size
            self._batches[number], self._left[number] = self._begin(wanted), len(wanted)
        self._allowed += len(wanted)

    def work(self) -> None:
        """Loads rows until there are none; what each worker does."""
        try:
            number = None
            while (found := self._next(number)) is not None:
                number, batch, place = found
                batch.load(place)
                # A batch that has been taken must not stay in memory for as long as this worker waits for another.
                del batch, found
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._stopped = True
                self._changed.notify_all()

    def _next(self, done: int | None) -> tuple[int, F, int] | None:
        """Takes it that a row of a batch has been loaded, and gives the place of one that may be; waits until there is one."""
        with self._changed:
            if done is not None and not self._stopped:
                self._left[done] -= 1
                if not self._left[done]:
                    self._changed.notify_all()
            while not (self._stopped or self._taken < self._allowed or self._taken == len(self._indices)):
                self._changed.wait()
            if self._stopped or self._taken == len(self._indices):
                return None
            number, place = divmod(self._taken, self._batch_size)
            self._taken += 1
            return number, self._batches[number], place

    def take(self, number: int) -> F:
        """Waits for a batch, and gives it, once; raises what a worker has raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._left.get(number) == 0)
            if self._error:
                raise self._error
            del self._left[number]
            batch = self._batches.pop(number)
            self._allow_batch()
            self._changed.notify_all()
            return batch

    def stop(self) -> None:
        """Has the workers stop after the rows at hand, and lets go of all that is there."""
        with self._changed:
            self._stopped = True
            self._batches.clear()
            self._changed.notify_all()
