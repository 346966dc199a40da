"""What every source of images has in common: names that can be stored, which files are images, and the manifest itself."""

from __future__ import annotations

import posixpath
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DatasetError
from ..records import ImageSource, Manifest, digest_images
from .decode import image_extensions

# Folders that file systems keep for themselves; some can be read by nobody else, which is no reason to stop.
SYSTEM_FOLDERS = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN", "__MACOSX"})
# Characters that are in no text; NUL would end it where it is stored.
CONTROL_CHARACTERS = r"[^\t\n\r -\U0010ffff]"
# Of one name in a message.
_LONGEST_QUOTE = 300


def make_manifest(
    root: str,
    keys: Sequence[str],
    file_bytes: ArrayLike,
    *,
    columns: Mapping[str, Sequence[str]],
    paths: Mapping[int, str] | None = None,
    skipped: Mapping[str, int] | None = None,
    source: ImageSource | None = None,
) -> Manifest:
    """Return the manifest of images that have been listed; of the columns, ``label``, or else the first folder, is the label."""
    metadata = {name: tuple(map(valid_text, values)) for name, values in columns.items()}
    labels = metadata.pop("label", None) or tuple(first_folders(keys))
    sizes = np.asarray(file_bytes, np.int64)
    digest = digest_images(keys, labels, sizes, metadata)
    places = None if source is None else np.arange(len(keys), dtype=np.int64)
    skipped = dict(sorted((skipped or {}).items()))
    return Manifest(root, tuple(keys), labels, sizes, paths or {}, metadata, skipped, digest, source, places)


def no_images(option: str, got: str, skipped: Mapping[str, int]) -> DatasetError:
    """Return the error of a source that holds no image, with what it holds instead; ``option`` names the source."""
    often = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{count} {reason}" for reason, count in often[:5]) or "nothing"
    extensions = " ".join(sorted(image_extensions()))
    return DatasetError(f"{option}: no images, got {got}. Expected files of {extensions}. Skipped: {reasons}. Check the path.")


def refuse_repeated(option: str, names: Sequence[str]) -> None:
    """Refuse, by a ``DatasetError``, a source that names an image twice."""
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        got = quoted_names(twice[:3])
        raise DatasetError(f"{option}: {len(twice)} images are named more than once, got {got}. Expected each once. Mend it.")


def reason_to_skip_folder(name: str) -> str:
    """Return why a folder of this name holds no images; "" where it may."""
    if name in SYSTEM_FOLDERS:
        return "system folder"
    return "hidden folder" if name.startswith(".") and name not in (".", "..") else ""


def reason_to_skip(name: str) -> str:
    """Return why a file, by its path below the source, is no image; "" where it is one."""
    *folders, last = name.split("/")
    if reason := next(filter(None, map(reason_to_skip_folder, folders)), ""):
        return reason
    if last.startswith("."):
        return "hidden file"
    extension = posixpath.splitext(last)[1].lower()
    if extension in image_extensions():
        return ""
    return f"extension {extension}" if extension.isascii() and extension[1:].isalnum() else "other extension"


def first_folders(keys: Sequence[str]) -> list[str]:
    """Return the first folder of each key, "" where it has none: the label of an image of which nothing else says one."""
    # A label repeats: it is kept once. Absolute keys and addresses have none.
    parts = (key.partition("/") for key in keys)
    return [sys.intern(head) if slash and not rest.startswith("/") else "" for head, slash, rest in parts]


def valid_text(text: str) -> str:
    r"""Return text that can be encoded: bytes that are not UTF-8, which Python keeps as half a surrogate pair, as ``\xff``."""
    # Labels repeat, and share their text.
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def cell_text(value: str | float | None) -> str:
    r"""Return a value as a cell of a column: what is missing as "", truth as true or false, NUL and the like as ``\x00``."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    # The halves of surrogate pairs that JSON may hold are no text either.
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return re.sub(CONTROL_CHARACTERS, lambda match: f"\\x{ord(match[0]):02x}", text)


def quoted_names(names: Sequence[str]) -> str:
    """Return the first names, or their beginnings, for a message."""
    shown = ", ".join(repr(name[:_LONGEST_QUOTE]) for name in names[:3])
    return f"{shown} and {len(names) - 3} others" if len(names) > 3 else shown
