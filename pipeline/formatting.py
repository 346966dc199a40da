"""Numbers, sizes and times as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta


def words_for_shape(shape: Sequence[int]) -> str:
    """Return the sides with signs of multiplication between them; of a vector ``512 components``."""
    return " × ".join(map(str, shape)) if len(shape) > 1 else counted(shape[0], "component")


def words_for_number(value: float, digits: int = 4) -> str:
    """Return a number with so many digits that count; whole below a million."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.0f}" if 10**digits <= abs(value) < 1e6 else f"{value:.{digits}g}"
    return text.replace("-", "\N{MINUS SIGN}")


def words_for_share(share: float) -> str:
    """Return a share of one in percent; 0 % and 100 % only where it is just that."""
    if not 0 < share < 1:
        return f"{100 * share:.0f} %" if math.isfinite(share) else "–"
    return "<0.1 %" if share < 0.001 else ">99.9 %" if share > 0.999 else f"{100 * share:.1f} %"


def words_for_bytes(count: float) -> str:
    """Return ``1.6 MB``, ``3.2 TB``: decimal units, as disks are sold."""
    if count < 1000:
        return f"{count:.0f} B"
    units = ("kB", "MB", "GB", "TB", "PB")
    power = min(len(units), int(math.log(count, 1000)))
    return f"{count / 1000**power:.1f} {units[power - 1]}"


def words_for_seconds(seconds: float) -> str:
    """Return ``0:03:20``."""
    return str(timedelta(seconds=int(seconds)))


def counted(count: int, noun: str) -> str:
    """Return ``1 image``, ``2 images``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
