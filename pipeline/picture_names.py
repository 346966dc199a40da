"""The names of the pictures that are drawn of a run: beside it unless asked otherwise, never inside, one for each sheet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .config import PlotOptions
from .errors import OptionError
from .storage.remote_path import RemotePath
from .store import format
from .store.reader import Run

DEFAULT_NAME = "{run}-{image}-{layer}.png"
# Source: ext4, NTFS and APFS take names of 255 bytes; there are three such parts, and a suffix while one is being written.
LONGEST_PART_BYTES = 75


def _run_folder(run: Run) -> Path | None:
    """Gives the folder of the run that was opened; None for a shard that lies elsewhere."""
    path = run.path.resolve()
    if path.name == format.INDEX_NAME:
        return path.parent
    return path.parent.parent if path.parent.name == format.SHARD_FOLDER else None


def run_name(run: Run) -> str:
    """Gives what a person calls a run: its folder's name, and that of the shard where only one was opened."""
    folder, path = _run_folder(run), run.path
    return " ".join(([folder.name] if folder else []) + ([path.stem] if path.name != format.INDEX_NAME else []))


class PictureNames:
    """The names of what is written: never inside the run, whose files are checked.

    Args:
        run: The run.
        choice: May name the file.
        rows: All that are drawn.
        layers: Likewise.

    Raises:
        OptionError: Several sheets would have one name.
    """

    def __init__(self, run: Run, choice: PlotOptions, rows: Sequence[int], layers: Sequence[str]) -> None:
        beside, here = (_run_folder(run) or run.path).parent, Path.cwd()
        if isinstance(beside, RemotePath):
            beside = Path()
        elif beside.is_relative_to(here):
            # As a person would type it.
            beside = beside.relative_to(here)
        self._folder, self._pattern = (beside, DEFAULT_NAME) if choice.file is None else (Path(), choice.file)
        self._run = _file_name(run_name(run))
        names = {row: _file_name(str(run.images["key"][row])) for row in rows}
        twice = len(set(names.values())) < len(names)
        self._images = {row: f"{row}-{name}" if twice else name for row, name in names.items()}
        layers_differ = choice.channels is not None and choice.input != "only" and len(layers) > 1
        for needed, count, mark in ((len(rows) > 1, len(rows), "{image}"), (layers_differ, len(layers), "{layer}")):
            if needed and mark not in self._pattern:
                raise OptionError(
                    f"file: {count} pictures would have one name, got {self._pattern!r}. Expected {mark} in it. "
                    f"Write e.g. 'file={Path(self._pattern).stem}-{mark}{Path(self._pattern).suffix}'."
                )

    def path(self, row: int, word: str) -> Path:
        """Gives the file for a sheet of an image; ``word`` stands for its layers."""
        parts = {"{run}": self._run, "{image}": self._images[row], "{layer}": _file_name(word)}
        return self._folder / re.sub(r"\{(?:run|image|layer)\}", lambda mark: parts[mark[0]], self._pattern)


def _file_name(text: str) -> str:
    """Gives a text that every system takes as a part of a file's name."""
    name = re.sub(r"[^\w.+=@~-]+", "-", text).strip("-.") or "image"
    encoded = name.encode("utf-8", "replace")
    if len(encoded) <= LONGEST_PART_BYTES:
        return name
    # Both ends of a path tell something.
    ends = encoded[: LONGEST_PART_BYTES // 2], encoded[-LONGEST_PART_BYTES // 2 :]
    return "..".join(end.decode("utf-8", "ignore") for end in ends)
