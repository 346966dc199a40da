"""How a run is fed to a program that trains: the methods of :class:`~.reader.Run` that lead there.

Training stands after the store. This is the door to it from here, opened only when somebody goes through: NumPy needs no PyTorch,
and reading a row no TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from ..errors import OptionError

if TYPE_CHECKING:
    from ..training.batches import Batches
    from .reader import Run


class Feeding:
    """A run, seen by a program that trains."""

    def _run(self) -> Run:
        return cast("Run", self)

    def batches(
        self,
        layers: str | Sequence[str],
        batch_size: int,
        *,
        label: Any = None,
        where: Any = None,
        failed: bool = False,
        dtype: str | None = None,
        shuffle: bool = False,
        seed: int = 0,
        buffer_chunks: int = 512,
        drop_last: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Gives batches of NumPy arrays, (features, labels), decoded by all cores while the last one is in use.

        Iterate it once an epoch; each time is the next epoch, in another order if shuffled.

        Args:
            layers: A name: features are (n, h, w, c), at native size a list of (h, w, c); or names: layer -> such.
            batch_size: Rows a batch; the last may have fewer.
            label: Column of :attr:`images`, or one value a row of the run. Numbers stay as they are; texts become numbers of
                the sorted ``classes``, int64, those made of digits sorted as numbers. None: labels are None.
            where: Which rows: a mask over all rows of the run, rows, or a slice. None: all.
            failed: Whether to keep failed images, whose features are NaN.
            dtype: ``float32``, whatever is stored; None: as stored.
            shuffle: Whether rows come in a random order: a uniform permutation where a row is 64 KiB or more; else see
                ``pipeline/training/order.py``.
            seed: Of the order. The same seed gives the same epochs, on every machine.
            buffer_chunks: Chunks that are mixed where rows are smaller than 64 KiB, about 256 KiB each.
            drop_last: Leave out a last batch that is not full.
            share: (rank, ranks): the part of one of several processes.

        Raises:
            StoreError: There is no such layer, column or row, or no row is left.
            OptionError: An option is out of range.
        """
        from ..training.batches import Batches
        from ..training.examples import Examples

        examples = Examples(self._run(), layers, label=label, where=where, failed=failed, dtype=dtype)
        return Batches(
            examples, batch_size, shuffle=shuffle, seed=seed, buffer_chunks=buffer_chunks, drop_last=drop_last, share=share
        )

    def torch_dataset(
        self,
        layers: str | Sequence[str],
        *,
        label: Any = None,
        where: Any = None,
        failed: bool = False,
        dtype: str | None = None,
        shuffle: bool = False,
        batch_size: int | None = None,
        seed: int = 0,
        buffer_chunks: int = 512,
        drop_last: bool = False,
        share: tuple[int, int] | None = None,
    ) -> Any:
        """Gives a dataset for PyTorch; what is not said here is as in :meth:`batches`.

        Without ``shuffle`` and ``batch_size`` a map-style dataset, which leaves order and batches to a DataLoader. With either
        of them an iterable one, which reads ahead with all cores and needs no worker processes: for whole batches
        ``DataLoader(dataset, batch_size=None)``. Items are features, or (features, label) where ``label`` is given.

        ``batch_size`` is rows an item, None: items are single rows. ``share`` is (rank, ranks) of iterable ones, None: those of
        ``torch.distributed``, where it has been started.

        Raises:
            OptionError: PyTorch is not installed, and as in :meth:`batches`.
        """
        try:
            from ..training import torch_data
        except ImportError as error:
            raise OptionError(
                f"torch_dataset: PyTorch cannot be loaded, got {error}. Expected it in this environment. pip install torch"
            ) from error
        from ..training.batches import ROWS_AT_ONCE, Batches
        from ..training.examples import Examples

        examples = Examples(self._run(), layers, label=label, where=where, failed=failed, dtype=dtype)
        if batch_size is None and drop_last:
            raise OptionError("drop_last: there are no batches, got batch_size=None. Expected it with a batch_size. Give one.")
        if batch_size is None and not shuffle:
            return torch_data.RowDataset(examples)
        share = torch_data.rank_and_ranks() if share is None else share
        rows = ROWS_AT_ONCE if batch_size is None else batch_size
        batches = Batches(
            examples, rows, shuffle=shuffle, seed=seed, buffer_chunks=buffer_chunks, drop_last=drop_last, share=share
        )
        return torch_data.StreamDataset(batches, is_batched=batch_size is not None)

    def tf_dataset(
        self,
        layers: str | Sequence[str],
        *,
        label: Any = None,
        where: Any = None,
        failed: bool = False,
        dtype: str | None = None,
        shuffle: bool = False,
        batch_size: int | None = None,
        seed: int = 0,
        buffer_chunks: int = 512,
        drop_remainder: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> Any:
        """Gives a ``tf.data.Dataset``; what is not said here is as in :meth:`batches`.

        Elements are features, or (features, label) where ``label`` is given; each pass, ``repeat`` included, is the next epoch.
        Its ``class_names`` are the texts that labels are numbers of. At native size height and width of an element are
        unknown, and batches are ragged tensors.

        ``batch_size`` is rows an element, None: elements are single rows. ``drop_remainder`` leaves out a last batch that is not
        full, and makes ``batch_size`` a part of the shapes.

        Raises:
            OptionError: As in :meth:`batches`.
        """
        if batch_size is None and drop_remainder:
            raise OptionError(
                "drop_remainder: there are no batches, got batch_size=None. Expected it with a batch_size. Give one."
            )
        from ..training.batches import ROWS_AT_ONCE, Batches
        from ..training.examples import Examples
        from ..training.tf_data import as_dataset

        examples = Examples(self._run(), layers, label=label, where=where, failed=failed, dtype=dtype)
        rows = ROWS_AT_ONCE if batch_size is None or examples.is_native else batch_size
        drop_last = drop_remainder and rows == batch_size and not examples.is_native
        batches = Batches(
            examples, rows, shuffle=shuffle, seed=seed, buffer_chunks=buffer_chunks, drop_last=drop_last, share=share
        )
        return as_dataset(batches, batch_size, drop_remainder)

    def to_numpy(
        self,
        layers: str | Sequence[str],
        *,
        label: Any = None,
        where: Any = None,
        failed: bool = False,
        dtype: str | None = None,
        out: str | os.PathLike[str] | None = None,
    ) -> Any:
        """Gives rows as one array, (n, h, w, c), or layer -> such; with a ``label`` (features, labels).

        Options are those of :meth:`batches`. ``out`` is a ``.npy`` file of one layer to write to: what is given is mapped from
        it, and memory does not limit it.

        Raises:
            StoreError: It does not fit into memory, with the bytes that it takes; and as in :meth:`batches`.
        """
        from ..training.arrays import to_numpy
        from ..training.examples import Examples

        return to_numpy(Examples(self._run(), layers, label=label, where=where, failed=failed, dtype=dtype), out)
