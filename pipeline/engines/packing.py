"""Manifests on their way to other processes: texts as one piece of memory, which the processes of a machine share uncopied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..records import Manifest


class PackedTexts(Sequence[str]):
    """Texts that are made when they are asked for. What is pickled of them is two arrays.

    Args:
        texts: Any, also names that are no valid Unicode.
    """

    __slots__ = ("_bytes", "_ends")

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def nbytes(self) -> int:
        """What they take."""
        return self._bytes.nbytes + self._ends.nbytes

    def _text(self, index: int) -> str:
        first = int(self._ends[index - 1]) if index else 0
        return self._bytes[first : int(self._ends[index])].tobytes().decode("utf-8", "surrogatepass")

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return tuple(map(self._text, range(*index.indices(len(self)))))
        return self._text(range(len(self))[index])

    def __iter__(self) -> Iterator[str]:
        return map(self._text, range(len(self)))


class PackedPaths(Mapping[int, str]):
    """Paths by row, likewise.

    Args:
        paths: Row -> path.
    """

    __slots__ = ("_paths", "_rows")

    def __init__(self, paths: Mapping[int, str]) -> None:
        ordered = sorted(paths)
        self._rows = np.array(ordered, np.int64)
        self._paths = PackedTexts([paths[row] for row in ordered])

    @property
    def nbytes(self) -> int:
        """What they take."""
        return self._rows.nbytes + self._paths.nbytes

    def __getitem__(self, row: int) -> str:
        place = int(np.searchsorted(self._rows, row))
        if place == len(self._rows) or self._rows[place] != row:
            raise KeyError(row)
        return self._paths[place]

    def __iter__(self) -> Iterator[int]:
        rows: NDArray[np.int64] = self._rows
        return iter(rows.tolist())

    def __len__(self) -> int:
        return len(self._rows)


def packed(manifest: Manifest) -> Manifest:
    """Gives a manifest that says the same, with its columns packed."""
    return replace(
        manifest,
        keys=PackedTexts(manifest.keys),
        labels=PackedTexts(manifest.labels),
        paths=PackedPaths(manifest.paths),
        metadata={name: PackedTexts(column) for name, column in manifest.metadata.items()},
    )
