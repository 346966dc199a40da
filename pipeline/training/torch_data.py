"""A run as PyTorch datasets. The one module that loads PyTorch, which is optional."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..errors import OptionError
from .batches import Batches, Columns, Examples


class RowDataset(Dataset):
    """Rows by number. Worker processes, forked or spawned, persistent or not, open the run for themselves.

    ``dataset[7]`` is ``features``, or ``(features, label)``; features are a tensor (h, w, c), or layer -> tensor.
    In a worker process one thread decodes: its siblings are the others.

    Attributes:
        classes: The texts that labels are numbers of, as of :class:`.batches.Examples`.
        rows: (n,) row of the run of each item.
    """

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self.classes = examples.classes
        self.rows = examples.rows

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, places: list[int]) -> list[Any]:
        """Return several items, each chunk decoded once; a DataLoader calls it."""
        columns = self._examples.read(np.array(places, np.int64), alone=get_worker_info() is not None)
        return list(self._examples.items(_tensors(columns)))


class StreamDataset(IterableDataset):
    """Rows or batches in the order of an epoch, decoded by all cores while the last batch is being used.

    It needs no worker processes and refuses them: ``DataLoader(dataset, batch_size=None)``. Each ``iter`` is the next epoch.

    Attributes:
        classes: As of :class:`RowDataset`.
        rows: (n,) rows of the run that are read, in no order.
    """

    def __init__(self, batches: Batches, is_batched: bool) -> None:
        self._batches = batches
        self._is_batched = is_batched
        self.classes = batches.examples.classes
        self.rows = batches.examples.rows

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that begins next."""
        self._batches.epoch = epoch

    def __len__(self) -> int:
        return len(self._batches) if self._is_batched else self._batches.rows

    def __iter__(self) -> Iterator[Any]:
        if (worker := get_worker_info()) is not None:
            happened = (
                f"num_workers: a stream is read by one process, got {worker.num_workers}. Expected 0: all cores decode already"
            )
            raise OptionError(f"{happened}. Leave it out, or leave shuffle and batch_size to the DataLoader.")
        for columns in map(_tensors, self._batches.next_epoch()):
            if self._is_batched:
                yield self._batches.examples.item(columns)
            else:
                yield from self._batches.examples.items(columns)


def rank_and_ranks() -> tuple[int, int]:
    """Return those of ``torch.distributed`` where it has been started, else (0, 1)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_rank()), int(torch.distributed.get_world_size())
    return 0, 1


def _tensors(columns: Columns) -> Columns:
    """Return columns of NumPy arrays as tensors that share their memory."""
    return {name: [*map(_tensor, values)] if isinstance(values, list) else _tensor(values) for name, values in columns.items()}


def _tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
