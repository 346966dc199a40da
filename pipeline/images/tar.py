"""Tar files: which are meant, their images as a :class:`~pipeline.records.Manifest`, and the bytes of each, read where they lie.

As WebDataset writes them: what belongs to one image has its name up to the first dot, and an ending that says what it is;
``.cls`` is the class, ``.json`` says more. Nothing is extracted, and names in a tar file are never used as paths.
"""

# Paths stay as they are written, so they are texts here.
# ruff: noqa: PTH100, PTH111, PTH112, PTH116, PTH118, PTH119, PTH207

from __future__ import annotations

import glob
import json
import os
import posixpath
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..records import ImageRecord, Manifest
from .decode import ImageDecodeError
from .manifest import (
    SYSTEM_FOLDERS,
    cell_text,
    first_folders,
    make_manifest,
    no_images,
    quoted_names,
    readable_keys,
    reason_to_skip,
    valid_text,
)
from .reading import open_regular, refuse_too_large

# A class is a number or a word, a .json file what a crawler knows of an image. What is larger is not read.
MOST_BYTES = {".cls": 1024, ".json": 65536}
# Of all .json files; with a name of its own in each there would be as many columns as rows.
MOST_COLUMNS = 1000
# The column that says in which tar file an image is.
COLUMN = "tar"
# In the place of an offset: a link (to nothing, in a source); a sparse member, not stored in one piece.
LINK, SPARSE = -1, -2
# Among what lies beside an image; no name of .json, in which no NUL is left.
_CLASS = "\0cls"
# Links to links; more lead round in a circle.
_MOST_LINKS = 40
# Read at once: a header, a label of a few bytes, and the next header.
_WINDOW_BYTES = 4096
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarError(ValueError):
    """A file is no tar file, a compressed or a damaged one. The text says what is wrong."""


class Member(NamedTuple):
    """A file or link in a tar file.

    Attributes:
        name: As stored, without ``./`` before it; bytes that are not UTF-8 as surrogates.
        offset: Where its bytes begin; ``LINK`` or ``SPARSE`` where it has none of its own, or not in one piece.
        size_bytes: How many there are.
        target: Of a link, the name of the member that it stands for.
    """

    name: str
    offset: int
    size_bytes: int
    target: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class TarSource:
    """Images in tar files.

    Attributes:
        paths: (T) of the tar files.
        sizes_bytes: (T) int64, of the tar files when they were listed.
        modified_ns: (T) int64, when they had been written last then, since 1970.
        numbers: (N) int32, in which tar file each image is.
        offsets: (N) int64, where its bytes begin; ``LINK``: a link to nothing; ``SPARSE``: not stored in one piece.
        lengths: (N) int64, how many bytes it has.
    """

    paths: tuple[str, ...]
    sizes_bytes: NDArray[np.int64]
    modified_ns: NDArray[np.int64]
    numbers: NDArray[np.int32]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    kind: str = "tar"

    def read(self, record: ImageRecord) -> bytes:
        """Read one image whole; see :class:`~pipeline.records.ImageSource`."""
        place = record.place
        offset, size_bytes = (int(self.offsets[place]), int(self.lengths[place])) if place >= 0 else (LINK, 0)
        if offset == LINK:
            raise FileNotFoundError(record.key)
        if offset == SPARSE:
            raise ImageDecodeError("unreadable: a sparse member of a tar file")
        refuse_too_large(size_bytes)
        number = int(self.numbers[place])
        # Opened for each image, as files of a folder are: nothing to share among threads and processes.
        with open_regular(self.paths[number]) as raw, BufferedReader(raw) as file:
            data = _read(file, offset, size_bytes)
            # After it was read: a file that is being written to may have had other bytes already.
            info = os.fstat(file.fileno())
        if (info.st_size, info.st_mtime_ns) != (self.sizes_bytes[number], self.modified_ns[number]) or len(data) != size_bytes:
            raise ImageDecodeError("unreadable: the tar file changed since it was listed")
        return data

    def modified_seconds(self, record: ImageRecord) -> float:
        """Return when the tar file of an image was written; see :class:`~pipeline.records.ImageSource`."""
        if record.place < 0 or self.offsets[record.place] == LINK:
            raise FileNotFoundError(record.key)
        return os.stat(self.paths[int(self.numbers[record.place])]).st_mtime


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
        what = f"got {path!r}. Expected a tar file of images."
        try:
            listing.add(path, os.path.relpath(path, root).replace(os.sep, "/"))
        except TarError as error:
            raise DatasetError(f"data.tar: {valid_text(str(error))}, {what} Make it again, or leave it out.") from error
        except ImageDecodeError as error:
            raise DatasetError(f"data.tar: {error}, {what} Check the path.") from error
        except OSError as error:
            raise DatasetError(f"data.tar: cannot be read ({(error.strerror or '').lower()}), {what} Check the path.") from error
    for reason, left_out in listing.left_out.items():
        log(f"{reason}: {len(left_out)}, e.g. {quoted_names(left_out[:1])}")
    if not listing.names:
        among = f"{listing.members} members of {len(paths)} tar files"
        raise no_images("data.tar", among, quoted_names(paths), listing.skipped)
    return listing.manifest(root, paths)


def find_in_tar(path: str, key: str, prefix: str) -> ImageRecord:
    """Find one image of a run again.

    Args:
        path: Of its tar file.
        key: Its key.
        prefix: The path of the tar file below the run's folder, which the key may begin with.

    Raises:
        OSError: It is not there, or the tar file cannot be read.
        ImageDecodeError: It is not a regular file.
        TarError: It is none, or damaged.
    """
    listing = _Listing()
    listing.add(path, prefix)
    keys, _ = readable_keys(listing.names)
    name = next((name for name in (key, key.removeprefix(f"{prefix}/")) if name in keys), None)
    if name is None:
        raise FileNotFoundError(key)
    found = listing.manifest("", [path])[keys.index(name)]
    return ImageRecord(found.index, key, found.path, found.label, found.file_bytes, found.source, found.place)


@dataclass(slots=True)
class _Listing:
    """The images of some tar files, in columns.

    Attributes:
        keys: (N).
        names: (N) in the tar file.
        labels: (N) "" where nothing beside an image says one.
        prefixes: (N) path of the tar file below the run's folder.
        columns: Name -> texts of the first rows, up to the last that has one.
        files: (size, when written, in ns) of each tar file.
        numbers: (N) of the tar file.
        offsets: (N) as in :class:`TarSource`.
        lengths: (N).
        taken: Names of all images.
        members: How many there are in all.
        skipped: Why members are no images -> how many.
        left_out: Why something is not used -> what.
    """

    keys: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)
    files: list[tuple[int, int]] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    taken: set[str] = field(default_factory=set)
    members: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def add(self, path: str, prefix: str) -> None:
        """Add the images of a tar file; ``prefix``: its path below the run's folder."""
        images: dict[str, Member] = {}
        beside: dict[str, dict[str, str]] = {}
        with open_regular(path) as raw, BufferedReader(raw, _WINDOW_BYTES) as file:
            info = os.fstat(file.fileno())
            for member in read_members(file, lambda: self._leave_out("a tar file without the mark that ends it", prefix)):
                self.members += 1
                ending = posixpath.splitext(member.name)[1].lower()
                if ending in MOST_BYTES and member.offset >= 0:
                    beside.setdefault(_stem(member.name), {}).update(self._cells(file, member, ending))
                elif reason := _reason(member.name):
                    self.skipped[reason] += 1
                else:
                    # It comes where the later one is.
                    if images.pop(member.name, None):
                        self.skipped["replaced by a later one of its name"] += 1
                    images[member.name] = member
            if any(member.offset == LINK for member in images.values()):
                everything = {member.name: member for member in read_members(file)}
                images = {name: _resolved(member, everything) for name, member in images.items()}
        repeats = not self.taken.isdisjoint(images)
        self.taken.update(images)
        for row, name in enumerate(images if beside else (), len(self.names)):
            cells = beside.get(_stem(name), {})
            self.labels += [""] * (row - len(self.labels)) + [cells.get(_CLASS) or cells.get("label", "")]
            for column in cells.keys() - {_CLASS, "label"}:
                values = self.columns.setdefault(column, [])
                values += [""] * (row - len(values)) + [cells[column]]
        if len(self.columns) > MOST_COLUMNS:
            raise TarError(f"its .json files have more than {MOST_COLUMNS:,} names")
        self.names += images
        self.keys += [f"{prefix}/{name}" for name in images] if repeats else images
        self.prefixes += [valid_text(prefix)] * len(images)
        self.numbers.extend([len(self.files)] * len(images))
        self.offsets.extend([member.offset for member in images.values()])
        self.lengths.extend([member.size_bytes for member in images.values()])
        self.files.append((info.st_size, info.st_mtime_ns))

    def _cells(self, file: BinaryIO, member: Member, ending: str) -> dict[str, str]:
        """Return the class, or what is said of an image: column -> cell."""
        if member.size_bytes > MOST_BYTES[ending]:
            self._leave_out(f"{ending} larger than {MOST_BYTES[ending]} bytes", member.name)
            return {}
        try:
            text = _read(file, member.offset, member.size_bytes).decode("utf-8-sig")
            if ending == ".cls":
                return {_CLASS: cell_text(text.strip())}
            said = {cell_text(name): value for name, value in json.loads(text).items() if not isinstance(value, (dict, list))}
            return {f"json_{name}" if name == COLUMN else name: cell_text(value) for name, value in said.items()}
        except (ValueError, AttributeError, RecursionError):
            self._leave_out(f"{ending} without {'text' if ending == '.cls' else 'names and values'}", member.name)
            return {}

    def _leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)

    def manifest(self, root: str, paths: Sequence[str]) -> Manifest:
        """Return the rows.

        Raises:
            DatasetError: Two would have the same key.
        """
        keys, _ = readable_keys(self.keys)
        if len(set(keys)) < len(keys):
            twice = [key for key, count in Counter(keys).items() if count > 1]
            raise DatasetError(
                f"data.tar: {len(twice)} images of several tar files have the same key, got {quoted_names(twice)}. Expected "
                "names that do not begin with the name of a tar file. Rename the tar file, or leave it out."
            )
        columns = {"label": self.labels, **dict(sorted(self.columns.items())), COLUMN: self.prefixes}
        columns = {name: values + [""] * (len(keys) - len(values)) for name, values in columns.items()}
        folders = first_folders([valid_text(name) for name in self.names])
        columns["label"] = [label or folder for label, folder in zip(columns["label"], folders, strict=True)]
        lengths, offsets = (np.array(values, np.int64) for values in (self.lengths, self.offsets))
        sizes, times = (np.array(values, np.int64) for values in zip(*self.files, strict=True))
        source = TarSource(tuple(paths), sizes, times, np.array(self.numbers, np.int32), offsets, lengths)
        return make_manifest(root, keys, lengths, columns=columns, skipped=self.skipped, source=source)


def read_members(file: BinaryIO, without_end: Callable[[], None] = lambda: None) -> Iterator[Member]:
    """Yield the files and links of a tar file, in order; what lies between their headers is not read.

    Args:
        file: The tar file.
        without_end: Called at last where the mark that ends a tar file is missing.

    Raises:
        TarError: It is compressed, no tar file, damaged or cut off.
        OSError: It cannot be read.
    """
    start, end = _read(file, 0, 6), os.fstat(file.fileno()).st_size
    for mark, program in _COMPRESSED.items():
        if start.startswith(mark):
            raise TarError(f"compressed by {program}, so that no image in it can be read alone; {program} -d makes a plain one")
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    offset = -1
    try:
        file.seek(0)
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
        while (info := tar.next()) is not None:
            # It would keep all of them: gigabytes for some millions.
            tar.members.clear()  # type: ignore[attr-defined]  # missing in typeshed
            offset, name, size = info.offset, _plain_name(info.name), info.size
            if size < 0 or "\0" in name:
                raise TarError(f"the header at byte {offset} has no valid {'size' if size < 0 else 'name'}")
            if info.sparse is not None:
                yield Member(name, SPARSE, size)
            elif info.islnk():
                yield Member(name, LINK, 0, _plain_name(info.linkname))
            elif info.issym():
                # From the folder that it is in.
                yield Member(name, LINK, 0, posixpath.normpath(posixpath.join(posixpath.dirname(name), info.linkname)))
            elif info.isreg():
                if info.offset_data + size > end:
                    raise TarError(f"it ends at byte {end}, its member {name[:300]!r} at {info.offset_data + size}")
                yield Member(name, info.offset_data, size)
        offset = tar.offset
    except (tarfile.TarError, OverflowError) as error:
        what = "it is no tar file" if offset < 0 else f"it is damaged or cut off after byte {offset}"
        raise TarError(f"{what} ({valid_text(str(error))})" if end else "it is empty") from error
    # tarfile takes whatever is no header for the end, and the end of the file as well.
    rest = _read(file, offset, tarfile.BLOCKSIZE)
    if not rest:
        without_end()
    elif len(rest) < tarfile.BLOCKSIZE:
        raise TarError(f"it ends at byte {end} in the middle of a header")
    elif any(rest):
        raise TarError(f"there is no header where one should be, at byte {offset}")


def _read(file: BinaryIO, offset: int, size_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(size_bytes)


def _plain_name(name: str) -> str:
    """Return the name of a member without ``./`` before it, as programs write it that are given a folder."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _reason(name: str) -> str:
    """Return why a member is no image of a run; "" where it is one."""
    *folders, last = name.split("/")
    if any(folder.startswith(".") and folder not in (".", "..") for folder in folders):
        return "hidden file"
    return "system folder" if not SYSTEM_FOLDERS.isdisjoint(folders) else reason_to_skip(last)


def _stem(name: str) -> str:
    """Return what the names of all that belongs to an image begin with.

    Source: WebDataset, webdataset.tariterators.base_plus_ext.
    """
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.split(".", 1)[0]


def _resolved(member: Member, everything: Mapping[str, Member]) -> Member:
    """Return an image with the bytes of the member that it stands for; a link to nothing as it is, without any."""
    found: Member | None = member
    for _ in range(_MOST_LINKS):
        if found is None or found.offset != LINK:
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
    if match[3] is not None:
        parts: Iterator[str] = iter(match[3].split(","))
    else:
        first, last = int(match[1]), int(match[2])
        width = max(len(match[1]), len(match[2])) if "0" in (match[1][0], match[2][0]) else 0
        parts = (f"{number:0{width}d}" for number in range(first, last + 1))
    for part in parts:
        yield from _expanded(name[: match.start()] + part + name[match.end() :])
