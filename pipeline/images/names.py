"""Names of images: keys that can be stored and are unique, labels from them, and how messages quote them."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What no text has that people or programs have written as one; NUL would end it where it is stored.
RUBBISH = r"[^\t\n\r -\U0010ffff]"
# Of a message: names in a stranger's list may have megabytes.
_LONGEST_QUOTE = 300


def first_folders(keys: Sequence[str]) -> list[str]:
    """Gives the first folder of each key, "" where it has none: the label of an image of which nothing else says one."""
    # A label repeats: kept once, however many rows have it. Absolute keys begin with the separator and have none.
    known: dict[str, str] = {"": ""}
    firsts = (key.split("/", 1)[0] if "/" in key else "" for key in keys)
    return [known.setdefault(first, first) for first in firsts]


def valid_text(text: str) -> str:
    r"""Gives text that can be encoded: bytes that are not UTF-8 as ``\xff``."""
    if text.isascii():
        return text
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # Half a surrogate pair, which only Windows has in names.
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def readable_keys(names: Sequence[str]) -> tuple[list[str], frozenset[int]]:
    """Gives valid, still unique keys; and the rows whose key is therefore not the name of the file."""
    keys = list(map(valid_text, names))
    odd = sorted((row for row, key in enumerate(keys) if key != names[row]), key=names.__getitem__)
    taken = set(names) if odd else set()
    for row in odd:
        while keys[row] in taken:
            keys[row] += "~"
        taken.add(keys[row])
    return keys, frozenset(odd)


def quoted_names(names: Sequence[str]) -> str:
    """Gives the first names, or their beginnings."""
    shown = ", ".join(repr(name[:_LONGEST_QUOTE]) for name in names[:3])
    return f"{shown} and {len(names) - 3} others" if len(names) > 3 else shown


def words_for_extension(extension: str) -> str:
    """Gives why a file with this extension, in lower case, is no image."""
    usual = extension.isascii() and extension[1:].isalnum() and len(extension) < 12
    return f"extension {extension}" if usual else "other extension" if extension else "no extension"


def cell_text(value: str | float | None) -> str:
    r"""Gives a value as a cell of a column: what is missing as "", truth as true or false, signs that no text has as ``\x00``."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    return re.sub(RUBBISH, lambda match: f"\\x{ord(match[0]):02x}", valid_text(value)) if isinstance(value, str) else str(value)
