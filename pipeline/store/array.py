"""An array of activations in a shard, read chunk by chunk as it is stored, and decoded here."""

from __future__ import annotations

import h5py
import numpy as np

# Taken here, since h5py up to 2025 forgets it for direct chunks; see shard.py.
from h5py._objects import phil
from numpy.typing import NDArray

from . import codec


class StoredArray:
    """A dataset, and what of it need not be asked again for each row.

    Args:
        dataset: (n, h, w, c), or (h, w, c) at native size.

    Attributes:
        dataset: As above.
        shape: Of it.
        dtype: Of its values.
        deflated: Whether its chunks are zlib streams.
        chunk: Shape of its chunks; None where they are not such as this program writes, and HDF5 must read them.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype = dataset.dtype
        self.deflated = dataset.compression == "gzip"
        self._empty = dataset.id.get_storage_size() == 0
        chunk = dataset.chunks
        ours = (
            chunk is not None
            and chunk[-2:] == self.shape[-2:]
            and (len(chunk) == 3 or chunk[0] == 1 or chunk[1] == self.shape[1])
            and dataset.id.get_create_plist().get_nfilters() == self.deflated
            and dataset.dtype.newbyteorder("<") == dataset.dtype
        )
        self.chunk: tuple[int, ...] | None = chunk if ours else None

    def read_chunk(self, offset: tuple[int, ...]) -> NDArray[np.floating]:
        """Gives a chunk, decoded."""
        assert self.chunk is not None
        if self._empty:
            # HDF5 leaves the size of a chunk unset where there is none at all, and h5py takes it for one.
            raise ValueError("no chunk")
        with phil:
            mask, data = self.dataset.id.read_direct_chunk(offset)
        if mask:
            raise ValueError(f"filter mask {mask:#x}")
        return codec.decode(data, self.chunk, self.dtype, self.deflated)

    def chunk_places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Gives each chunk's first byte in the file, and its bytes, along the first axis; -1 and 0 where it cannot be taken."""
        assert self.chunk is not None
        offsets = [(first, 0, 0, 0) for first in range(0, self.shape[0], self.chunk[0])]
        # As in read_chunk: not to be asked where there is no chunk at all.
        found = [] if self._empty else [self.dataset.id.get_chunk_info_by_coord(offset) for offset in offsets]
        places = [(-1, 0) if info.byte_offset is None or info.filter_mask else (info.byte_offset, info.size) for info in found]
        both = np.array(places or [(-1, 0)] * len(offsets), np.int64).reshape(-1, 2)
        return both[:, 0].copy(), both[:, 1].copy()

    def read_image(self, lead: tuple[int, ...]) -> NDArray[np.floating]:
        """Gives one image's values, (h, w, c), from its chunk or its bands.

        Args:
            lead: (row,), or nothing at native size.
        """
        if self.chunk is None:
            if self._empty:
                raise ValueError("no values")
            values: NDArray[np.floating] = self.dataset[lead]
            return values
        height, band_height = self.shape[-3], self.chunk[-3]
        bands = []
        for start in range(0, height, band_height):
            band = self.read_chunk((*lead, start, 0, 0)).reshape(self.chunk[-3:])
            bands.append(band[: height - start])
        return bands[0] if len(bands) == 1 else np.concatenate(bands)
