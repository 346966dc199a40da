"""What the driver knows of one worker: what it has, what it has done of that, and how fast it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..records import ImageStatus, ShardSpec
from .messages import Turn
from .places import Place

# Over so long a worker's rate is taken.
RATE_SECONDS = 20.0


@dataclass(slots=True)
class Done:
    """Rows of a shard that are handed over and not yet in a finished file."""

    rows: int = 0
    failed: int = 0


@dataclass(slots=True, eq=False)
class Hand:
    """A worker.

    Attributes:
        name: Of the worker.
        place: Where it is.
        actor: Ray's handle.
        asked: ``check``, ``begin`` or ``turn``: what it has been asked last.
        answer: Ray's promise of an answer to that.
        is_first: Whether it is one of those that the run begins with.
        called: When it was asked, in monotonic seconds.
        device: As it has said.
        host: Likewise.
        shards: That it has, in order, and what is done of each.
        rows: That it has done, over all.
        finished: Shards, likewise.
        last: What it said last.
    """

    name: str
    place: Place
    actor: Any
    asked: str = ""
    answer: Any = None
    is_first: bool = False
    called: float = 0.0
    device: str = ""
    host: str = ""
    shards: dict[ShardSpec, Done] = field(default_factory=dict)
    rows: int = 0
    finished: int = 0
    last: Turn = field(default_factory=Turn)
    _began: float = 0.0
    _times: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def where(self) -> str:
        """Words for where it is."""
        return self.host or (self.place.node.name if self.place.node else "a node that is to come")

    def expect(self, shards: Sequence[ShardSpec]) -> None:
        """Takes note of shards that it is given."""
        self.shards |= {shard: Done() for shard in shards}

    def take(self, turn: Turn) -> None:
        """Takes note of what it has said."""
        now = time.monotonic()
        self._began = self._began or now
        self.last = turn
        for batch in turn.batches:
            self.rows += batch.rows
            # A shard may be finished in the background before its last batch is counted.
            if (done := self.shards.get(batch.shard)) is not None:
                done.rows += batch.rows
                done.failed += len(batch.failed)
        self._times.append((now, self.rows))
        while now - self._times[0][0] > RATE_SECONDS and len(self._times) > 2:
            self._times.popleft()

    @property
    def rate(self) -> float:
        """Images a second, of late."""
        (first, before), (last, rows) = (self._times[0], self._times[-1]) if self._times else ((0.0, 0), (0.0, 0))
        return (rows - before) / (last - first) if last > first else 0.0

    @property
    def rate_over_all(self) -> float:
        """Images a second, since it has begun."""
        seconds = self._times[-1][0] - self._began if self._times else 0.0
        return self.rows / seconds if seconds > 0 else 0.0


def failed_of(turn: Turn) -> list[ImageStatus]:
    """Gives the images that failed."""
    return [status for batch in turn.batches for status in batch.failed]


def words_for_rates(hands: list[Hand]) -> str:
    """Gives the rates of workers in a few words: of each where they are few, else of the slowest and the fastest."""
    if len(hands) <= 4:
        return " ".join(f"{hand.rate:.1f}" for hand in hands)
    slowest, fastest = min(hands, key=lambda hand: hand.rate), max(hands, key=lambda hand: hand.rate)
    return f"{len(hands)}, {slowest.rate:.1f} ({slowest.where}) to {fastest.rate:.1f}"
