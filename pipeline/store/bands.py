"""One image of one layer, piece after piece: for those who look at an activation of a gigabyte and keep a thousandth of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from . import codec
from .damage import HDF5_READ_ERRORS
from .rows import ShardRows

_CHUNK_ERRORS = (codec.DecodeError, MemoryError, *HDF5_READ_ERRORS)


def image_shape(rows: ShardRows, layer: str, row: int) -> tuple[int, int, int]:
    """Gives (h, w, c) of an image that is ok.

    Args:
        rows: An open shard.
        layer: Name of a layer of the run.
        row: Row in the shard.

    Raises:
        StoreError: The row is damaged.
    """
    try:
        height, width, channels = rows.image(layer, row)[0].shape[-3:]
    except _CHUNK_ERRORS as error:
        raise _accused(rows, layer, row, error) from error
    return height, width, channels


def read_bands(rows: ShardRows, layer: str, row: int, every: int = 1) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """Gives an image's activations as they are stored, from top to bottom.

    Args:
        rows: An open shard.
        layer: Name of a layer of the run.
        row: Row in the shard, of an image that is ok.
        every: Pieces that begin fewer map rows than this after the one before are left out, but for the last; 1: none.

    Yields:
        Its first map row, and (h', w, c) in the stored dtype, possibly read-only.

    Raises:
        StoreError: The row is damaged; it may be the last piece only that tells. Where pieces are left out, the row's checksum
            cannot be compared, and only those of the compression tell.
    """
    try:
        stored, lead, expected = rows.image(layer, row)
        height, *sides = stored.shape[-3:]
        if stored.chunk is None or (lead and stored.chunk[0] > 1):
            # Small rows that share a chunk, and chunks of another program's making: one piece, as for all readers.
            if not lead:
                yield 0, rows.read_native(layer, row)
                return
            whole = np.empty((1, height, *sides), stored.dataset.dtype)
            rows.read(layer, np.array([row]), np.array([0]), whole)
            yield 0, whole[0]
            return
        sums = []
        band_height, wanted = stored.chunk[-3], 0
        for start in range(0, height, band_height):
            if start < wanted and start + band_height < height:
                continue
            wanted = start + every
            band = stored.read_chunk((*lead, start, 0, 0)).reshape(stored.chunk[-3:])[: height - start]
            if every == 1:
                sums.append((codec.checksum(band), band.nbytes))
            yield start, band
    except _CHUNK_ERRORS as error:
        raise _accused(rows, layer, row, error) from error
    if every == 1 and codec.join_checksums(sums) != expected:
        raise _accused(rows, layer, row, ValueError("another checksum"))


def _accused(rows: ShardRows, layer: str, row: int, error: Exception) -> StoreError:
    """Gives what the examination of a shard says of a row, so that all readers say the same of it."""
    group = next(group for group in rows.groups(layer) if row in group)
    findings, _ = rows.examine(layer, group)
    # Without a finding it was the machine: too little memory, or a disk that has answered in the meantime.
    words = f"got {error}. Expected a file and memory that do not change while they are read. Run the command again."
    return findings[0] if findings else StoreError(f"layer {layer}, row {row} of its shard: cannot be read, {words}")
