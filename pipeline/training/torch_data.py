"""A run as PyTorch datasets. The one room that loads PyTorch, which is optional."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..errors import OptionError
from ..store.layer import select_rows
from .batches import Batches
from .examples import Examples, Features

# No epoch has been set.
UNSET = -1


class RowDataset(Dataset):
    """Rows by number. Worker processes, forked or spawned, persistent or not, open the run for themselves.

    ``dataset[7]`` is ``features``, or ``(features, label)``; features are a tensor (h, w, c), or layer -> tensor.
    ``dataset[[3, 1, 4]]``, a slice or a mask is a batch, decoded by all cores: tensors (n, h, w, c); at native size lists.
    In a worker process one thread decodes: its siblings are the others.

    Attributes:
        classes: The texts that labels are numbers of; None where they are other numbers or there are none. See
            :class:`.examples.Examples`.
        rows: (n,) row of the run of each item.
    """

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self.classes = examples.classes
        self.rows = examples.rows

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        places = select_rows(index, len(self), "dataset")
        if isinstance(places, int):
            return self.__getitems__([places])[0]
        features, labels = _tensors(*self._examples.read(places, _threads()))
        return features if labels is None else (features, labels)

    def __getitems__(self, places: list[int]) -> list[Any]:
        """Gives several items, each chunk decoded once; a DataLoader calls it."""
        rows = select_rows(places, len(self), "dataset")
        assert not isinstance(rows, int)
        return list(_items(*_tensors(*self._examples.read(rows, _threads()))))

    def __repr__(self) -> str:
        return f"<dataset: {self._examples!r}>"


class StreamDataset(IterableDataset):
    """Rows or batches in the order of an epoch, decoded by all cores while the last batch is being used.

    No worker processes are needed: ``DataLoader(dataset, batch_size=None)``. With some, each reads a part of the epoch in one
    thread. Each ``iter`` is the next epoch. In worker processes the order comes from ``seed`` and the number given to
    :meth:`set_epoch`; before that was called, from ``seed`` and from what the DataLoader draws for the epoch, so that
    ``torch.manual_seed`` repeats it, as for any DataLoader that shuffles.

    Attributes:
        classes: As of :class:`RowDataset`.
        rows: (n,) rows of the run that are read, in no order.
    """

    def __init__(self, batches: Batches, is_batched: bool) -> None:
        self._batches = batches
        self._is_batched = is_batched
        # In memory that workers share: persistent ones would never learn of another epoch.
        self._set = torch.full((1,), UNSET, dtype=torch.int64).share_memory_()
        self._begun = 0
        self.classes = batches.examples.classes
        self.rows = batches.examples.rows

    def set_epoch(self, epoch: int) -> None:
        """Makes this the epoch that begins next, in this process and in its workers."""
        self._set[0] = epoch
        self._batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._batches) if self._is_batched else self._batches.rows

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is None:
            return self._tensors(iter(self._batches))
        epoch: tuple[int, ...] = (int(self._set[0]),)
        if epoch == (UNSET,):
            if self._batches.shuffle and self._batches.share[1] > 1:
                raise OptionError(
                    "set_epoch: was not called, got worker processes of several ranks. Expected the same epoch on all ranks. "
                    "Call dataset.set_epoch(epoch) before each epoch."
                )
            # The same number in all workers of an epoch; another one in each epoch, but for workers that persist.
            epoch = (worker.seed - worker.id, self._begun)
            self._begun += 1
        return self._tensors(self._batches.read(epoch, (worker.id, worker.num_workers), threads=1))

    def _tensors(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            features, labels = _tensors(*batch)
            if not self._is_batched:
                yield from _items(features, labels)
            else:
                yield features if labels is None else (features, labels)

    def __repr__(self) -> str:
        return f"<dataset: {self._batches!r}>"


def rank_and_ranks() -> tuple[int, int]:
    """Gives those of ``torch.distributed`` where it has been started, else (0, 1)."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank()), int(distributed.get_world_size())
    return 0, 1


def _threads() -> int | None:
    return None if get_worker_info() is None else 1


def _tensor(values: Any) -> Any:
    return [torch.from_numpy(image) for image in values] if isinstance(values, list) else torch.from_numpy(values)


def _tensors(features: Features, labels: Any) -> tuple[Any, Any]:
    """Gives features and labels, both of numpy, as tensors that share their memory."""
    if isinstance(features, dict):
        converted: Any = {name: _tensor(values) for name, values in features.items()}
    else:
        converted = _tensor(features)
    return converted, None if labels is None else torch.from_numpy(np.ascontiguousarray(labels))


def _items(features: Any, labels: Any) -> Iterator[Any]:
    """Gives the items of a batch of tensors, one by one, not copied."""
    by_layer = features if isinstance(features, dict) else {"": features}
    for place in range(len(next(iter(by_layer.values())))):
        item = {name: values[place] for name, values in by_layer.items()} if isinstance(features, dict) else features[place]
        yield item if labels is None else (item, labels[place])
