"""What has come of a run's images since it was planned: added, removed, changed, in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..records import Manifest

# Images that a message names of each kind.
NAMED = 3
# Characters of a key, label or column in a message.
LONGEST_QUOTE = 300


@dataclass(frozen=True, slots=True)
class Changes:
    """How the images that are there now differ from those of a run.

    Attributes:
        run: The images of the run.
        now: Those that are there now.
        rows: (N,) int64, for each image now its row in the run; -1 if it has none.
        removed: (r,) int64, rows of the run whose images are not there.
        changed: (c,) int64, rows of the run whose size, label or column of the list is another now.
        reordered: Whether images of one part come in another order now.
    """

    run: Manifest
    now: Manifest
    rows: NDArray[np.int64]
    removed: NDArray[np.int64]
    changed: NDArray[np.int64]
    reordered: bool

    @property
    def added(self) -> NDArray[np.int64]:
        """(a,) int64, rows of ``now`` that the run does not have, in their order."""
        return np.flatnonzero(self.rows < 0).astype(np.int64)

    def words_of_added(self) -> list[str]:
        """Gives ``3 added ('a.jpg', 'b.jpg', 'c.jpg')``, or nothing."""
        return _named("added", len(self.added), [_quoted(self.now.keys[row]) for row in self.added[:NAMED].tolist()])

    def words_of_removed(self, removed: NDArray[np.int64]) -> list[str]:
        """Gives the same of these rows of the run."""
        return _named("removed", len(removed), [_quoted(self.run.keys[row]) for row in removed[:NAMED].tolist()])

    def words_of_changed(self) -> list[str]:
        """Gives the same of what has changed, and of the order."""
        places = {row: place for place, row in enumerate(self.rows.tolist())} if len(self.changed) else {}
        named = [self._difference(row, places[row]) for row in self.changed[:NAMED].tolist()]
        return _named("changed", len(self.changed), named) + ["the same ones in another order"] * self.reordered

    def _difference(self, row: int, place: int) -> str:
        then, now = int(self.run.file_bytes[row]), int(self.now.file_bytes[place])
        if then != now:
            return f"{_quoted(self.run.keys[row])}: {now} bytes, before {then}"
        columns = {"label": (self.run.labels, self.now.labels)}
        columns |= {name: (self.run.metadata[name], self.now.metadata[name]) for name in _shared_columns(self.run, self.now)}
        name = next(name for name, (before, after) in columns.items() if before[row] != after[place])
        return (
            f"{_quoted(self.run.keys[row])}: {name} {_quoted(columns[name][1][place])}, before {_quoted(columns[name][0][row])}"
        )


def compare_images(run: Manifest, stops: Sequence[int], now: Manifest) -> Changes:
    """Compares the images that are there now with those of a run, by key.

    Columns that only one of them has are not compared.

    Args:
        run: Those of the run.
        stops: Index after the last row of each of its parts.
        now: Those that are there.
    """
    row_of = {key: row for row, key in enumerate(run.keys)}
    rows = np.array([row_of.get(key, -1) for key in now.keys], np.int64)
    known = np.flatnonzero(rows >= 0)
    there = rows[known]
    differs = run.file_bytes[there] != now.file_bytes[known]
    pairs = [(run.labels, now.labels), *((run.metadata[name], now.metadata[name]) for name in _shared_columns(run, now))]
    for before, after in pairs:
        differs |= np.fromiter(
            (before[row] != after[place] for row, place in zip(there.tolist(), known.tolist(), strict=True)), bool, len(known)
        )
    present = np.zeros(len(run), bool)
    present[there] = True
    # Each part has the order in which its images were listed; a later list may have new ones between them.
    parts = np.searchsorted(np.array(stops), there, side="right")
    reordered = any(bool((np.diff(there[parts == part]) < 0).any()) for part in np.unique(parts).tolist())
    return Changes(run, now, rows, np.flatnonzero(~present).astype(np.int64), np.sort(there[differs]), reordered)


def _shared_columns(run: Manifest, now: Manifest) -> list[str]:
    return [name for name in run.metadata if name in now.metadata]


def _quoted(text: str) -> str:
    return repr(text[:LONGEST_QUOTE])


def _named(word: str, count: int, names: Sequence[str]) -> list[str]:
    more = ", ..." if count > len(names) else ""
    return [f"{count} {word} ({', '.join(names)}{more})"] if count else []
