"""Where the images are: the options of ``data`` that say it, held to one another. Loads nothing."""

# Paths are texts in this room, and stay as they are written.
# ruff: noqa: PTH100, PTH111, PTH119, PTH120

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import OptionError
from .storage.address import Address, is_address

# Files that name images; with these endings, or whatever else is a file, they are no folders.
LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".parquet", ".pq"})
TAR_SUFFIX = ".tar"
# Source: tensorflow_datasets.core.naming, names of sets, configurations and versions.
_TFDS_NAME = re.compile(r"[A-Za-z_]\w*(/[\w.+-]+)?(:\d+\.\d+\.\d+)?")
# Of a split: what lies in a slice of one, train[:10%], would be other images in other versions of a set.
_SPLIT = re.compile(r"[\w.-]+")
# What makes a path a pattern or a range.
_PATTERN = re.compile(r"[*?\[{]")


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where the images are; of the folder, the list, the tar files and the set one is given.

    Attributes:
        dir: Folder of images; beside a list what its paths are relative to, beside a set where sets are kept.
        list: Text, CSV or Parquet file of paths.
        tar: Tar files: paths, patterns, ranges, folders.
        tfds: Set of TensorFlow Datasets: ``name``, ``name/config``, ``name:1.0.0``.
        split: Of the set.
    """

    dir: Path | Address | None
    list: Path | Address | None
    tar: tuple[str, ...] | None
    tfds: str | None
    split: str | None

    @property
    def name(self) -> str:
        """What a run of these images is called; "" for a folder without a name."""
        if self.tfds is not None:
            return "-".join([re.split("[/:]", self.tfds)[0], *([self.split] if self.split else [])])
        if self.tar is not None:
            return _name_of_tars(self.tar)
        if self.list is not None:
            return self.list.stem
        if isinstance(self.dir, Address):
            return self.dir.name
        # Also of "." and "imgs/..".
        return self.dir.resolve().name if self.dir is not None else ""


def check_source(data: Mapping[str, Any], directory: Path | Address | None, listing: Path | Address | None) -> DataSource:
    """Gives where the images are.

    Args:
        data: Of the options.
        directory: ``data.dir``, checked.
        listing: ``data.list``, checked.

    Raises:
        OptionError: Nothing says it, or two options do, or one is of no use beside another.
    """
    tar, tfds, split = _tars(data["tar"]), _set_name(data["tfds"]), _split(data["split"])
    given = [name for name, value in (("data.list", listing), ("data.tar", tar), ("data.tfds", tfds)) if value is not None]
    if directory is None and not given:
        raise OptionError(
            "data.dir: no images were named, got null. Expected a folder of images, or data.list=FILE, data.tar=FILES or "
            "data.tfds=NAME. Run e.g. `python -m pipeline.run data.dir=imgs layers=[relu4_1]`."
        )
    if len(given) > 1:
        raise OptionError(
            f"{given[1]}: the images are named twice, got {given[0]} too. Expected one of data.dir, data.list, data.tar and "
            f"data.tfds. Leave one of them out."
        )
    if tar is not None and directory is not None:
        raise OptionError(
            f"data.dir: of no use beside data.tar, got {str(directory)!r}. Expected tar files alone: their names are relative to "
            f"the present folder. Leave it out."
        )
    if split is not None and tfds is None:
        raise OptionError(
            f"data.split: only a set has splits, got {split!r} without data.tfds. Expected data.tfds=NAME too. Leave it out."
        )
    for name, place in (("data.tar", next(filter(is_address, tar or ()), None)), ("data.dir", tfds and directory)):
        if place is not None and is_address(str(place)):
            raise OptionError(
                f"{name}: read from this machine only, got {str(place)!r}. Expected a path; single images and data.list may be "
                "at an address. Download it first."
            )
    return DataSource(directory, listing, tar, tfds, split)


def guess_option(value: Any) -> str:
    """Gives the option that a value is for, where only the value was given: the folder, the list or the tar files."""
    if not isinstance(value, str):
        return "data.tar" if isinstance(value, Sequence) else "data.dir"
    path = Path(value)
    if path.suffix.lower() == TAR_SUFFIX and not path.is_dir():
        return "data.tar"
    return "data.list" if path.suffix.lower() in LIST_SUFFIXES and not path.is_dir() else "data.dir"


def _tars(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    if (
        not isinstance(names, Sequence)
        or not names
        or not all(isinstance(name, str) and name and "\0" not in name for name in names)
    ):
        raise OptionError(
            f"data.tar: not a valid value, got {value!r}. Expected a tar file, a folder of them, a pattern, or a list of these. "
            "Write e.g. 'data.tar=shards/*.tar' or 'data.tar=train-{000..012}.tar'."
        )
    return tuple(names)


def _set_name(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _TFDS_NAME.fullmatch(value):
        raise OptionError(
            f"data.tfds: not the name of a set, got {value!r}. Expected name, name/config or name:1.0.0. "
            "See https://www.tensorflow.org/datasets/catalog/overview for names."
        )
    return value


def _split(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _SPLIT.fullmatch(value):
        raise OptionError(
            f"data.split: not the name of a split, got {value!r}. Expected e.g. train, test or validation; a whole one. "
            "Leave it out for train."
        )
    return value


def tar_folder(tars: Sequence[str]) -> str:
    """Gives the absolute folder that all these tar files are below, whichever files there are: what no pattern is part of.

    Args:
        tars: As of :attr:`DataSource.tar`.
    """
    return os.path.commonpath([_folder_of(os.path.abspath(os.path.expanduser(name))) for name in tars])


def names_a_folder(name: str) -> bool:
    """Tells whether one of :attr:`DataSource.tar` is a folder; by its name alone, so that it is the same from everywhere."""
    return not _PATTERN.search(name) and TAR_SUFFIX not in os.path.basename(os.path.normpath(name)).lower()


def _folder_of(name: str) -> str:
    match = _PATTERN.search(name)
    return name if names_a_folder(name) else os.path.dirname(name[: match.start()] + "x" if match else name)


def _name_of_tars(tars: Sequence[str]) -> str:
    """Gives the name of the only tar file, else of the folder that they are in."""
    if len(tars) == 1 and not names_a_folder(tars[0]) and not _PATTERN.search(tars[0]):
        return Path(tars[0]).stem
    return os.path.basename(tar_folder(tars))
