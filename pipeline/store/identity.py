"""What a file says of the run that it is of, held to what a run can be. No HDF5 here."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import format

_IMAGES = re.compile(r"(\d{1,10}) rows, digest [0-9a-f]{64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def read_identity(text: str) -> Mapping[str, str] | None:
    """Gives the identity of a run from its JSON; None where it is not one that this program writes.

    Raises:
        ValueError: The text is no JSON, or nested too deeply.
    """
    try:
        found: Any = json.loads(text)
    except RecursionError as error:
        raise ValueError("an identity nested too deeply") from error
    return checked_identity(found)


def checked_identity(found: Any) -> Mapping[str, str] | None:
    """Gives what has been read of an identity if it is one, else None."""
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return None
    if not _IMAGES.fullmatch(found.get("images", "")) or not rows_of(found) <= format.MOST_ROWS:
        return None
    step = found.get("output.images_per_shard", "1")
    is_whole = re.fullmatch(r"\d{1,10}", step) and 1 <= int(step) <= format.MOST_SHARD_ROWS
    return found if is_whole else None


def rows_of(identity: Mapping[str, str]) -> int:
    """Gives the rows of the part that an identity is of."""
    found = _IMAGES.fullmatch(identity["images"])
    assert found is not None
    return int(found[1])


def checked_parts(digests: Sequence[str], stops: Sequence[int], images_per_shard: int) -> Iterator[tuple[str, int]]:
    """Gives the parts that a file names, if a run can have such.

    Raises:
        ValueError: None can.
    """
    if len(stops) != len(digests):
        raise ValueError(f"{len(digests)} digests of {len(stops)} parts")
    check_plan(stops, images_per_shard)
    if not all(_DIGEST.fullmatch(digest) for digest in digests):
        raise ValueError("digests that are none")
    return zip(digests, stops, strict=True)


def check_plan(stops: Sequence[int], images_per_shard: int) -> None:
    """Makes sure that a run can have parts that end at these rows, before its shards are counted out.

    Raises:
        ValueError: None can.
    """
    if not 1 <= images_per_shard <= format.MOST_SHARD_ROWS:
        raise ValueError(f"{images_per_shard} images a shard")
    if not 1 <= len(stops) <= format.LARGEST_PART + 1:
        raise ValueError(f"{len(stops)} parts")
    if not all(first < stop <= format.MOST_ROWS for first, stop in itertools.pairwise([0, *stops])):
        raise ValueError(f"parts that end at rows {stops[:5]}")
    shards = sum(-(-(stop - first) // images_per_shard) for first, stop in itertools.pairwise([0, *stops]))
    if shards > format.MOST_SHARDS:
        raise ValueError(f"{stops[-1]} rows in {shards} shards")
