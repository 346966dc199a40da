"""Which shards are still to make, who has them, and how often those who had them died. No Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from ..errors import EngineError, printable
from ..records import RunSpec, ShardSpec
from ..store import format

# Shards in the hands of a worker at most: one whose file is being finished, one that is computed, one whose images are read.
DEPTH = 3
# Workers that may die over a shard.
TRIES = 3
# Characters of a key in a message.
LONGEST_KEY = 200


class Supply:
    """The shards of a run on their way to workers.

    Args:
        spec: The run.
        shards: To make, in order.

    Attributes:
        left: How many are not finished.
    """

    def __init__(self, spec: RunSpec, shards: Iterable[ShardSpec]) -> None:
        self._spec = spec
        self._waiting = deque(shards)
        self._tries: Counter[ShardSpec] = Counter()
        self.left = len(self._waiting)

    @property
    def waiting(self) -> int:
        """How many nobody has."""
        return len(self._waiting)

    def give(self, in_hand: int, workers: int) -> list[ShardSpec]:
        """Gives a worker what it may take.

        Args:
            in_hand: Shards that it has.
            workers: That share what is left: towards the end none shall sit on what another could do.
        """
        allowed = min(DEPTH, max(1, -(-self.left // max(1, workers))))
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), max(0, allowed - in_hand)))]

    def finish(self) -> None:
        """Takes note of a shard that is finished."""
        self.left -= 1

    def take_back(self, shards: Sequence[ShardSpec], cause: str, *, is_blamed: bool = True) -> None:
        """Takes what a worker had when it died; others get it next.

        Args:
            shards: In the order in which it had them.
            cause: Why it died, for people.
            is_blamed: Whether it may have died of one of them.

        Raises:
            EngineError: One of them has been the death of too many.
        """
        for shard in shards:
            self._tries[shard] += is_blamed
            if self._tries[shard] >= TRIES:
                first, last = (
                    repr(printable(self._spec.manifest.keys[row], LONGEST_KEY)) for row in (shard.first, shard.stop - 1)
                )
                raise EngineError(
                    f"engine: {format.shard_path(shard.file_name)} (images {first} to {last}) could not be made, got {TRIES} "
                    f"workers that died over it, the last since {cause}. Expected one that lives. Look at these images and at "
                    "the memory of the nodes; finished shards are kept."
                )
        self._waiting.extendleft(reversed(shards))
