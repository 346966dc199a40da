"""Tar files: which are meant, and their images as a :class:`~pipeline.records.Manifest`, each read where it lies.

As WebDataset writes them: what belongs to one image has its name up to the first dot, and an ending that says what it is;
``.cls`` is the class, ``.json`` says more. Nothing is extracted, and names in a tar file are never used as paths.
"""

# Paths stay as they are written, so they are texts here.
# ruff: noqa: PTH100, PTH111, PTH112, PTH118, PTH119, PTH120, PTH207

from __future__ import annotations

import glob
import json
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, ImageError
from ..records import ImageRecord, Manifest
from .manifest import (
    cell_text,
    first_folders,
    make_manifest,
    no_images,
    quoted_names,
    readable_keys,
    reason_to_skip,
    refuse_repeated,
    valid_text,
)
from .reading import FileSlices, open_regular

# A class is a number or a word, a .json file what a crawler knows of an image. What is larger is not read.
MOST_BYTES = {".cls": 1024, ".json": 65536}
# Of all .json files; with a name of its own in each there would be as many columns as rows.
MOST_COLUMNS = 1000
# The column that says in which tar file an image is.
COLUMN = "tar"
# In the place of an offset.
_LINK = -1
# Links to links; more lead round in a circle.
_MOST_LINKS = 40
# Read at once: a header, a label of a few bytes, and the next header.
_WINDOW_BYTES = 4096
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class _TarError(ValueError):
    """A file is no tar file, a compressed or a damaged one. The text says what is wrong."""


class _Member(NamedTuple):
    """A file or link in a tar file.

    Attributes:
        name: As stored, without ``./`` before it; bytes that are not UTF-8 as surrogates.
        offset: Where its bytes begin; negative for a link.
        size_bytes: How many there are.
        target: Of a link, the name of the member that it stands for.
    """

    name: str
    offset: int
    size_bytes: int
    target: str = ""


def list_tars(names: Sequence[str], root: str, log: Callable[[str], None]) -> Manifest:
    """List the images in tar files, by extension, by reading headers alone.

    Rows come in the order of the tar files' names and, of one file, in the order of its members. A key is the name in the tar
    file; where a tar file has a name that an earlier one has too, all of its keys begin with its own path below ``root``. So keys
    stay what they are when tar files are added whose names come last. Of two members of one name the later counts, as when the
    file is unpacked. Hidden names, system folders and other extensions are passed over and counted. Links stand for the member
    that they lead to.

    The label is what ``.cls`` holds, else the ``label`` of ``.json``, else the first folder. Other numbers and texts of ``.json``
    become columns, as they stand there; what is nested is left out. The column ``tar`` says which file.

    Args:
        names: Of tar files: paths, patterns, ranges as ``{000..012}``, folders.
        root: Absolute folder that all of them are below.
        log: Takes a line about what was left out.

    Raises:
        DatasetError: There is no such file, it cannot be read, is damaged or no tar file; none of them holds an image.
    """
    paths = find_tars(names)
    listing = _Listing()
    for path in paths:
        try:
            listing.add(path, os.path.relpath(path, root).replace(os.sep, "/"))
        except (_TarError, ImageError, OSError) as error:
            reason = f"cannot be read ({str(error.strerror).lower()})" if isinstance(error, OSError) else valid_text(str(error))
            raise DatasetError(
                f"data.tar: {reason}, got {path!r}. Expected a tar file of images. Check it, make it again, or leave it out."
            ) from error
    for reason, left_out in listing.left_out.items():
        log(f"{reason}: {len(left_out)}, e.g. {quoted_names(left_out[:1])}")
    if not listing.names:
        raise no_images("data.tar", quoted_names(paths), listing.skipped)
    keys, _ = readable_keys(listing.keys)
    # A member may have the path of another tar file as its folder.
    refuse_repeated("data.tar", keys)
    labels = listing.columns.pop("label", [""] * len(keys))
    folders = first_folders([valid_text(name) for name in listing.names])
    columns = {"label": [label or folder for label, folder in zip(labels, folders, strict=True)]}
    columns |= dict(sorted(listing.columns.items())) | {COLUMN: listing.tars}
    source = FileSlices("tar", tuple(paths), np.array(listing.files, np.int64), np.concatenate(listing.slices))
    return make_manifest(root, keys, source.slices[:, 2], columns=columns, skipped=listing.skipped, source=source)


def find_in_tar(path: str, key: str, tar: str) -> ImageRecord:
    """Find one image of a run again.

    Args:
        path: Of its tar file.
        key: Its key.
        tar: The path of the tar file below the run's folder, which the key may begin with.

    Raises:
        FileNotFoundError: It is not there.
        DatasetError: The tar file cannot be read, or is none.
    """
    if os.path.lexists(path):
        manifest = list_tars([path], os.path.dirname(path), lambda line: None)
        for name in (key, key.removeprefix(f"{tar}/")):
            if name in manifest.keys:
                return replace(manifest[manifest.keys.index(name)], key=key)
    raise FileNotFoundError(key)


class _Listing:
    """The images of some tar files.

    Attributes:
        keys: (N).
        names: (N) in the tar file.
        tars: (N) path of the tar file below the run's folder.
        columns: Name -> (N) texts.
        slices: Of each tar file (n, 3) int64: number of the file, offset, length.
        files: (size, when written, in ns) of each tar file.
        skipped: Why members are no images -> how many.
        left_out: Why something is not used -> what.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.names: list[str] = []
        self.tars: list[str] = []
        self.columns: dict[str, list[str]] = {}
        self.slices: list[NDArray[np.int64]] = []
        self.files: list[tuple[int, int]] = []
        self.skipped: Counter[str] = Counter()
        self.left_out: dict[str, list[str]] = {}
        self._taken: set[str] = set()

    def add(self, path: str, tar: str) -> None:
        """Add the images of a tar file; ``tar``: its path below the run's folder."""
        images: dict[str, _Member] = {}
        beside: dict[str, dict[str, str]] = {}
        with open_regular(path, _WINDOW_BYTES) as file:
            info = os.fstat(file.fileno())
            for member in _read_members(file, tar, self._leave_out):
                ending = posixpath.splitext(member.name)[1].lower()
                if ending in MOST_BYTES and member.offset >= 0:
                    self._read_cells(file, member, ending, beside.setdefault(_stem(member.name), {}))
                elif reason := reason_to_skip(member.name):
                    self.skipped[reason] += 1
                else:
                    # It comes where the later one is.
                    if images.pop(member.name, None):
                        self.skipped["replaced by a later one of its name"] += 1
                    images[member.name] = member
            if any(member.offset == _LINK for member in images.values()):
                everything = {member.name: member for member in _read_members(file)}
                images = {name: _resolved(member, everything) for name, member in images.items()}
        cells = [beside.get(_stem(name), {}) for name in images]
        for column in {*self.columns}.union(*cells):
            values = self.columns.setdefault(column, [""] * len(self.names))
            values += [said.get(column, "") for said in cells]
        if len(self.columns) > MOST_COLUMNS:
            raise _TarError(f"its .json files have more than {MOST_COLUMNS:,} names")
        self.keys += images if self._taken.isdisjoint(images) else [f"{tar}/{name}" for name in images]
        self._taken.update(images)
        self.names += images
        self.tars += [valid_text(tar)] * len(images)
        slices = [(len(self.files), member.offset, member.size_bytes) for member in images.values()]
        self.slices.append(np.array(slices, np.int64).reshape(-1, 3))
        self.files.append((info.st_size, info.st_mtime_ns))

    def _read_cells(self, file: BinaryIO, member: _Member, ending: str, cells: dict[str, str]) -> None:
        """Add to an image's cells the class, or what else is said of it; a class is its label, whatever else is."""
        if member.size_bytes > MOST_BYTES[ending]:
            self._leave_out(f"{ending} larger than {MOST_BYTES[ending]} bytes", member.name)
            return
        try:
            text = _read(file, member.offset, member.size_bytes).decode("utf-8-sig")
            if ending == ".cls":
                cells.update({"label": cell_text(text.strip())} if text.strip() else {})
                return
            for name, value in json.loads(text).items():
                if not isinstance(value, (dict, list)):
                    cells.setdefault(f"json_{name}" if name == COLUMN else cell_text(name), cell_text(value))
        except (ValueError, AttributeError, RecursionError):
            self._leave_out(f"{ending} without {'text' if ending == '.cls' else 'names and values'}", member.name)

    def _leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)


def _read_members(
    file: BinaryIO, tar_name: str = "", note: Callable[[str, str], None] = lambda reason, name: None
) -> Iterator[_Member]:
    """Yield the files and links of a tar file, in order; what lies between their headers is not read.

    Args:
        file: The tar file.
        tar_name: Of the tar file, for notes.
        note: Takes why something is not used or not as it should be, and its name.

    Raises:
        _TarError: It is compressed, no tar file, damaged or cut off.
        OSError: It cannot be read.
    """
    start, end = _read(file, 0, 6), os.fstat(file.fileno()).st_size
    for mark, program in _COMPRESSED.items():
        if start.startswith(mark):
            raise _TarError(f"compressed by {program}, so that no image in it can be read alone; {program} -d makes a plain one")
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    offset = -1
    try:
        file.seek(0)
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
        while (info := tar.next()) is not None:
            # It would keep all of them: gigabytes for some millions.
            tar.members.clear()  # type: ignore[attr-defined]  # missing in typeshed
            offset, name = info.offset, _plain_name(info.name)
            if info.size < 0 or "\0" in name:
                raise _TarError(f"the header at byte {offset} has no valid {'size' if info.size < 0 else 'name'}")
            if info.islnk():
                yield _Member(name, _LINK, 0, _plain_name(info.linkname))
            elif info.issym():
                # From the folder that it is in.
                yield _Member(name, _LINK, 0, posixpath.normpath(posixpath.join(posixpath.dirname(name), info.linkname)))
            elif info.sparse is not None:
                note("sparse members, which are not stored in one piece", name)
            elif info.isreg():
                if info.offset_data + info.size > end:
                    raise _TarError(f"it ends at byte {end}, its member {name[:300]!r} at {info.offset_data + info.size}")
                yield _Member(name, info.offset_data, info.size)
        offset = tar.offset
    except (tarfile.TarError, OverflowError) as error:
        what = "it is no tar file" if offset < 0 else f"it is damaged or cut off after byte {offset}"
        raise _TarError(f"{what} ({valid_text(str(error))})" if end else "it is empty") from error
    # tarfile takes whatever is no header for the end, and the end of the file as well.
    rest = _read(file, offset, tarfile.BLOCKSIZE)
    if not rest:
        note("a tar file without the mark that ends it", tar_name)
    elif len(rest) < tarfile.BLOCKSIZE:
        raise _TarError(f"it ends at byte {end} in the middle of a header")
    elif any(rest):
        raise _TarError(f"there is no header where one should be, at byte {offset}")


def _read(file: BinaryIO, offset: int, size_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(size_bytes)


def _plain_name(name: str) -> str:
    """Return the name of a member without ``./`` before it, as programs write it that are given a folder."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _stem(name: str) -> str:
    """Return what the names of all that belongs to an image begin with.

    Source: WebDataset, webdataset.tariterators.base_plus_ext.
    """
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.split(".", 1)[0]


def _resolved(member: _Member, everything: Mapping[str, _Member]) -> _Member:
    """Return an image with the bytes of the member that it stands for; a link to nothing as it is, without any."""
    found: _Member | None = member
    for _ in range(_MOST_LINKS):
        if found is None or found.offset != _LINK:
            break
        found = everything.get(found.target)
    return found or member


def find_tars(names: Sequence[str]) -> list[str]:
    """Return the absolute paths of all tar files that are meant, each once, in the order of their names.

    Raises:
        DatasetError: There is none.
    """
    paths: set[str] = set()
    missing: list[str] = []
    for name in (name for written in names for name in _expanded(os.path.abspath(os.path.expanduser(written)))):
        if os.path.isdir(name):
            matches = glob.glob(os.path.join(glob.escape(name), "*.tar"))
        else:
            matches = [name] if os.path.lexists(name) else glob.glob(name, recursive=True)
        # What has no .tar in its name is a folder, also where it is not there: the folder of the keys depends on it.
        is_other = matches == [name] and ".tar" not in os.path.basename(name).lower()
        matches = [match for match in matches if not is_other and not os.path.isdir(match)]
        paths.update(matches)
        missing += [] if matches else [name]
    if missing:
        raise DatasetError(
            f"data.tar: {len(missing)} names without a tar file, got {quoted_names(missing)}. Expected files, folders that hold "
            f"*.tar, or patterns that match some. Check the path."
        )
    return sorted(paths)


def _expanded(name: str) -> Iterator[str]:
    """Yield the names that braces stand for, as the shell and WebDataset do: ``{000..012}``, ``{train,val}``."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", name)
    # What is there under this very name is meant.
    if match is None or os.path.lexists(name):
        yield name
        return
    first, last, words = match.groups()
    parts = words.split(",") if words else []
    if not words:
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        parts = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    for part in parts:
        yield from _expanded(name[: match.start()] + part + name[match.end() :])
