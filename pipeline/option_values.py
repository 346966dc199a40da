"""Checks of single values of options, for the rooms that check the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import OptionError, nearest
from .schema import AUTO


def wrong(key: str, value: Any, rule: str, allowed: Sequence[str] = ()) -> OptionError:
    """Gives the error for a value that is not a right one.

    Args:
        key: The option.
        value: As given.
        rule: What it must be.
        allowed: All right values, where they can be counted.
    """
    near = nearest(str(value), allowed) if allowed else ""
    is_near = near and near != ", ".join(allowed)
    hint = f"Did you mean {near}?" if is_near else "Run `python -m pipeline.run --help` for all options."
    return OptionError(f"{key}: not a valid value, got {value!r}. Expected {rule}. {hint}")


def count(key: str, value: Any, largest: int) -> int | None:
    """Gives a whole number from 1; None for ``auto``.

    Raises:
        OptionError: It is neither, or larger than the largest.
    """
    if value == AUTO:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise wrong(key, value, f"auto or a whole number from 1 to {largest}")
    return value
