"""Tar files, in; a :class:`~pipeline.records.Manifest`, out: their images in the order of the files and of what is in them.

As WebDataset writes them: what belongs to one image has its name up to the first dot, and an ending that says what it is;
``.cls`` is the class, ``.json`` says more.
"""

# Paths are texts in this room, and stay as they are written.

from __future__ import annotations

import json
import os
import posixpath
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np

from ..errors import DatasetError
from ..records import ImageRecord, Manifest, digest_images
from .decode import ImageDecodeError, image_extensions
from .lists import MAX_LIST_BYTES, MOST_COLUMNS
from .manifest import SYSTEM_FOLDERS
from .names import cell_text, first_folders, quoted_names, readable_keys, valid_text, words_for_extension
from .reading import open_regular
from .tar_headers import FILE, LINK, OTHER, SPARSE, SYMBOLIC_LINK, Compressed, Member, TarError, TarFile, target_of
from .tar_names import find_tars
from .tar_source import NOWHERE, TarSource
from .tar_source import SPARSE as IN_PIECES

# A class is a number or a word, a .json file what a crawler knows of an image.
MOST_CLASS_BYTES, MOST_JSON_BYTES = 1024, 65536
# The column that says in which tar file an image is.
COLUMN = "tar"
# Among what lies beside an image; no name of .json, in which no NUL is left.
_CLASS = "\0cls"
# Links to links; more lead round in a circle.
_MOST_HOPS = 40


def list_tars(names: Sequence[str], root: str, log: Callable[[str], None]) -> Manifest:
    """Lists the images in tar files, by extension, by reading headers alone.

    Rows come in the order of the tar files' names and, of one file, in the order of its members. A key is the name in the tar
    file; where a tar file has a name that an earlier one has too, all of its keys begin with its own path below ``root``. So keys
    stay what they are when tar files are added whose names come last. Of two members of one name the later counts, as when the
    file is unpacked. Hidden names, system folders and other extensions are passed over and counted. Links stand for the member
    that they lead to. Names are never used as paths.

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
    found = _Found()
    for path in paths:
        found.take(path, os.path.relpath(path, root).replace(os.sep, "/"))
    for line in found.notes():
        log(line)
    if not found.names:
        often = ", ".join(f"{count} {reason}" for reason, count in found.skipped.most_common(5)) or "nothing"
        raise DatasetError(
            f"data.tar: no images among {found.members} members of {len(paths)} tar files, got {quoted_names(paths)}. Expected "
            f"files with one of the extensions {' '.join(sorted(image_extensions()))}. Skipped: {often}. Check the path."
        )
    return found.manifest(root, paths)


def find_in_tar(path: str, key: str, prefix: str) -> ImageRecord:
    """Finds one image of a run again.

    Args:
        path: Of its tar file.
        key: Its key.
        prefix: The path of the tar file below the run's folder, which the key may begin with.

    Raises:
        OSError: It is not there, or the tar file cannot be read.
        ImageDecodeError: It is not a regular file.
        TarError: It is none, or damaged.
    """
    found = _Found(with_columns=False)
    with open_regular(path) as file:
        found.scan(file, prefix)
    keys, _ = readable_keys(found.names)
    name = next((name for name in (key, key.removeprefix(f"{prefix}/")) if name in keys), None)
    if name is None:
        raise FileNotFoundError(key)
    return replace(found.manifest("", [path])[keys.index(name)], key=key)


@dataclass(slots=True)
class _Found:
    """What has been found so far, in columns.

    Attributes:
        with_columns: Whether what lies beside the images is read.
        labels: "" where nothing beside an image says one.
        files: (size, when written, in ns) of each tar file.
        numbers: Of the tar file of each image.
        seen: Names of all images.
        stored: Names of ``.json`` -> their columns.
        left_out: Why something beside an image is not used -> how often, and where first.
    """

    with_columns: bool = True
    keys: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    prefixes: list[str] = field(default_factory=list)
    files: list[tuple[int, int]] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    seen: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    members: int = 0
    text_bytes: int = 0

    def take(self, path: str, prefix: str) -> None:
        """Takes the images of one tar file.

        Raises:
            DatasetError: It cannot be read.
        """
        what = f"got {path!r}. Expected a tar file of images."
        try:
            with open_regular(path) as file:
                self.scan(file, prefix)
        except ImageDecodeError as error:
            raise DatasetError(f"data.tar: {error}, {what} Check the path.") from error
        except Compressed as error:
            raise DatasetError(
                f"data.tar: compressed by {error}, {what} No image in it can be read alone: decompress it with {error.remedy}."
            ) from error
        except TarError as error:
            raise DatasetError(f"data.tar: {valid_text(str(error))}, {what} Make it again, or leave it out.") from error
        except OSError as error:
            raise DatasetError(f"data.tar: cannot be read ({(error.strerror or '').lower()}), {what} Check the path.") from error

    def scan(self, file: BinaryIO, prefix: str) -> None:
        """Takes the images of an open tar file; ``prefix``: its path below the run's folder."""
        info = os.fstat(file.fileno())
        tar = TarFile(file)
        images: dict[str, Member] = {}
        beside: dict[str, dict[str, str]] = {}
        size_bytes = self.text_bytes
        for member in tar.members():
            if member.kind == OTHER:
                continue
            self.members += 1
            ending = posixpath.splitext(member.name)[1].lower()
            if self.with_columns and member.kind == FILE and ending in (".cls", ".json"):
                # By column: a name that a million of them have is in memory once.
                cells = {self._column(name): cell for name, cell in self._beside(tar, member, ending).items()}
                size_bytes += sum(len(cell) + 1 for cell in cells.values())
                _refuse_too_much(len(self.stored), size_bytes)
                beside.setdefault(_stem(member.name), {}).update(cells)
            elif reason := _reason(member.name, ending):
                self.skipped[reason] += 1
            else:
                # It comes where the later one is.
                if images.pop(member.name, None):
                    self.skipped["replaced by a later one of its name"] += 1
                images[member.name] = member
        if not tar.has_end:
            self._leave_out("a tar file without the mark that ends it, perhaps not whole", prefix)
        if any(member.kind in (LINK, SYMBOLIC_LINK) for member in images.values()):
            everything = {member.name: member for member in tar.members() if member.kind != OTHER}
            images = {name: _resolved(member, everything) for name, member in images.items()}
        self._add(images, beside, prefix)
        self.files.append((info.st_size, info.st_mtime_ns))

    def _add(self, images: Mapping[str, Member], beside: Mapping[str, Mapping[str, str]], prefix: str) -> None:
        repeats = any(name in self.seen for name in images)
        self.seen.update(images)
        for name, member in images.items():
            row, cells = len(self.names), beside.get(_stem(name), {})
            self.names.append(name)
            self.keys.append(f"{prefix}/{name}" if repeats else name)
            self.prefixes.append(prefix)
            self.labels.append(cells.get(_CLASS) or cells.get("label", ""))
            for column, cell in cells.items():
                self.text_bytes += len(cell) + 1
                if column not in (_CLASS, "label"):
                    values = self.columns.setdefault(column, [])
                    if not values:
                        _refuse_too_much(len(self.columns), len(self.columns) * (row + 1))
                    assert len(values) <= row, column
                    values += [""] * (row - len(values)) + [cell]
            # A comma or a line's end for each, as in a list.
            _refuse_too_much(len(self.columns), max(self.text_bytes, len(self.columns) * (row + 1)))
            self.numbers.append(len(self.files))
            self.offsets.append({SPARSE: IN_PIECES, FILE: member.offset}.get(member.kind, NOWHERE))
            self.lengths.append(member.size_bytes)

    def _column(self, name: str) -> str:
        """Gives the column of a name of ``.json``: no other name has the same, whichever comes first."""
        if name in (_CLASS, "label"):
            return name
        column = self.stored.get(name)
        if column is None:
            column, taken = name, {COLUMN, *self.stored.values()}
            while column in taken:
                column = f"json_{column}"
            self.stored[name] = column
        return column

    def _beside(self, tar: TarFile, member: Member, ending: str) -> dict[str, str]:
        """Gives the class, or what is said of an image."""
        most = MOST_CLASS_BYTES if ending == ".cls" else MOST_JSON_BYTES
        if member.size_bytes > most:
            self._leave_out(f"{ending} larger than {most} bytes", member.name)
            return {}
        try:
            text = tar.read(member.offset, member.size_bytes).decode("utf-8-sig")
            if ending == ".cls":
                return {_CLASS: cell_text(text.strip())}
            content = json.loads(text)
            if not isinstance(content, dict):
                raise ValueError
            return {cell_text(name): cell_text(value) for name, value in content.items() if not isinstance(value, (dict, list))}
        except (ValueError, RecursionError):
            self._leave_out(f"{ending} without {'text' if ending == '.cls' else 'names and values'}", member.name)
            return {}

    def _leave_out(self, reason: str, name: str) -> None:
        count, first = self.left_out.get(reason, (0, name))
        self.left_out[reason] = count + 1, first

    def notes(self) -> list[str]:
        """Gives a line for each reason why something was not used."""
        return [f"{reason}: {count}, e.g. {quoted_names([name])}" for reason, (count, name) in self.left_out.items()]

    def manifest(self, root: str, paths: Sequence[str]) -> Manifest:
        """Gives the rows.

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
        folders = first_folders([valid_text(name) for name in self.names])
        labels = tuple(label or folder for label, folder in zip(self.labels, folders, strict=True))
        columns = {name: tuple(values + [""] * (len(keys) - len(values))) for name, values in sorted(self.columns.items())}
        columns[COLUMN] = tuple(map(valid_text, self.prefixes))
        lengths = np.array(self.lengths, np.int64)
        sizes, times = (np.array(values, np.int64) for values in zip(*self.files, strict=True))
        numbers, offsets = np.array(self.numbers, np.int32), np.array(self.offsets, np.int64)
        return Manifest(
            root=root,
            keys=tuple(keys),
            labels=labels,
            file_bytes=lengths,
            paths={},
            metadata=columns,
            skipped=dict(sorted(self.skipped.items())),
            digest=digest_images(keys, labels, lengths, columns),
            source=TarSource(tuple(paths), sizes, times, numbers, offsets, lengths),
            places=np.arange(len(keys), dtype=np.int64),
        )


def _refuse_too_much(names: int, size_bytes: int) -> None:
    if names > MOST_COLUMNS or size_bytes > MAX_LIST_BYTES:
        raise DatasetError(
            f"data.tar: too much in .cls and .json files, got {names:,} names, {size_bytes:,} bytes. Expected "
            f"at most {MOST_COLUMNS:,} and {MAX_LIST_BYTES:,}. Leave them out, or divide them among several runs."
        )


def _reason(name: str, ending: str) -> str:
    """Gives why a member is no image of a run; "" where it is one."""
    folders = name.split("/")
    if any(part.startswith(".") and part not in (".", "..") for part in folders):
        return "hidden file"
    if not SYSTEM_FOLDERS.isdisjoint(folders[:-1]):
        return "system folder"
    return "" if ending in image_extensions() else words_for_extension(ending)


def _stem(name: str) -> str:
    """Gives what the names of all that belongs to an image begin with.

    Source: WebDataset, webdataset.tariterators.base_plus_ext.
    """
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.split(".", 1)[0]


def _resolved(member: Member, everything: Mapping[str, Member]) -> Member:
    """Gives an image with the bytes of the member that it stands for; a link to nothing as it is, without any."""
    found: Member | None = member
    for _ in range(_MOST_HOPS):
        if found is None or found.kind not in (LINK, SYMBOLIC_LINK):
            break
        found = everything.get(target_of(found))
    return member if found is None else found
