"""How the rows of a run are cut into shards, and shards shared among processes: a function of numbers, the same everywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

SHARD_BYTES = 256 << 20
# A shard is what a killed run loses. Small rows would make it an hour's work, so rows are limited too.
SHARD_ROWS = 4096
LARGEST_SHARD_COUNT = 2000


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """Which rows of the run one shard file holds. Shards tile the manifest in order, without gap or overlap."""

    number: int  # from 0, in its part
    count: int  # of the shards of the part
    first: int  # index of its first row
    stop: int  # index after its last row
    part: int = 0  # 0 for the images that the run began with, then one for each extension

    @property
    def file_name(self) -> str:
        """``shard-00000-of-00012.h5``; of an added part ``shard-part001-00000-of-00003.h5``, which sorts after all before."""
        part = f"part{self.part:03d}-" if self.part else ""
        return f"shard-{part}{self.number:05d}-of-{self.count:05d}.h5"

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return self.stop - self.first


def plan_images_per_shard(row_bytes: int, rows: int, chunk_rows: int = 1) -> int:
    """Return the rows of a shard: about 256 MiB, at most 4096 rows; more of both where there would be over 2000 shards.

    ``row_bytes``: of all layers of an image, uncompressed. Few ``rows`` make no smaller shard: the run may be extended. Shards
    end where chunks do, of which the largest holds ``chunk_rows``.
    """
    step = min(max(1, SHARD_BYTES // max(1, row_bytes)), SHARD_ROWS)
    step = max(step, -(-rows // LARGEST_SHARD_COUNT))
    if step > chunk_rows:
        step = -(-step // chunk_rows) * chunk_rows
    return step


# Asked for again and again; a million shards take seconds and some hundred MB.
@lru_cache(maxsize=2)
def plan_shards(stops: tuple[int, ...], step: int) -> tuple[ShardSpec, ...]:
    """Return the shards of parts that end before these rows, ``step`` rows a shard; each part begins a shard of its own."""
    shards: list[ShardSpec] = []
    for part, (start, stop) in enumerate(zip((0, *stops), stops, strict=False)):
        count = -(-(stop - start) // step)
        shards += [ShardSpec(n, count, start + n * step, min(stop, start + (n + 1) * step), part) for n in range(count)]
    return tuple(shards)


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several processes makes of a run: every ``count``-th shard, finished or not. Written ``3/8``."""

    number: int  # from 1
    count: int  # of the processes that the run is divided among

    @classmethod
    def of_text(cls, text: str) -> Share | None:
        """Return the share that is written so, ``3/8`` or ``3-of-8``; None where it is none."""
        # No more digits than any number of processes has.
        found = re.fullmatch(r"([0-9]{1,7})(?:/|-of-)([0-9]{1,7})", text)
        return cls(int(found[1]), int(found[2])) if found and 1 <= int(found[1]) <= int(found[2]) else None

    def has(self, number: int) -> bool:
        """Return whether this process makes the shards of this number, in every part of an extended run."""
        return number % self.count == self.number - 1

    @property
    def mark(self) -> str:
        """``3-of-8``: what files of this process alone have in their names."""
        return f"{self.number}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class Part(NamedTuple):
    """Rows that were planned together."""

    digest: str  # of the run that ends with it
    stop: int  # index after its last row

    def __str__(self) -> str:
        return f"{self.stop} rows, digest {self.digest}"
