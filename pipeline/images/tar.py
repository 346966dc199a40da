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
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..records import ImageRecord, Manifest
from .manifest import (
    cell_text,
    first_folders,
    make_manifest,
    no_images,
    quoted_names,
    reason_to_skip,
    refuse_repeated,
    valid_text,
)
from .reading import FileSlices, open_regular

# A class is a number or a word, a .json file what a crawler knows of an image. What is larger is not read.
_LABEL_ENDINGS, _LARGEST_LABEL_BYTES = (".cls", ".json"), 65536
# The column that says in which tar file an image is.
COLUMN = "tar"
# Read at once: a header, a label of a few bytes, and the next header.
_WINDOW_BYTES = 4096
# Where the bytes of a member begin, and how many there are.
_Member = tuple[int, int]


def list_tars(names: Sequence[str], root: str, log: Callable[[str], None]) -> Manifest:
    """List the images in tar files, by extension, by reading headers alone.

    Rows come in the order of the tar files' names and, of one file, in the order of its members. A key is the name in the tar
    file; where a tar file has a name that an earlier one has too, all of its keys begin with its own path below ``root``. So keys
    stay what they are when tar files are added whose names come last. Of two members of one name the later counts, as when the
    file is unpacked. Hidden names, system folders, other extensions, links and what cannot be used are passed over and counted.

    The label is what ``.cls`` holds, else the ``label`` of ``.json``, else the first folder. Other numbers and texts of ``.json``
    become columns; what is nested is left out. The column ``tar`` says which file.

    Args:
        names: Of tar files: paths, patterns, folders.
        root: Absolute folder that all of them are below.
        log: Takes a line about a tar file that may not be whole.

    Raises:
        DatasetError: There is no such file, it cannot be read, is damaged or no tar file; none of them holds an image.
    """
    paths = find_tars(names)
    keys, columns = list[str](), dict[str, list[str]]()
    slices, files = list[NDArray[np.int64]](), list[tuple[int, int]]()
    taken, skipped = set[str](), Counter[str]()
    for number, path in enumerate(paths):
        tar = valid_text(os.path.relpath(path, root).replace(os.sep, "/"))
        try:
            with open_regular(path, _WINDOW_BYTES) as file:
                images, cells = _read_tar(file, tar, skipped, log)
                info = os.fstat(file.fileno())
        except (ValueError, OSError) as error:
            reason = f"cannot be read ({str(error.strerror).lower()})" if isinstance(error, OSError) else str(error)
            raise DatasetError(
                f"data.tar: {reason}, got {path!r}. Expected a tar file of images. Check it, make it again, or leave it out."
            ) from error
        said = [{**cells.get(_stem(name), {}), COLUMN: tar} for name in images]
        for one, folder in zip(said, first_folders([*images]), strict=True):
            one["label"] = one.get("label") or folder
        for column in {*columns}.union(*said):
            columns.setdefault(column, [""] * len(keys)).extend(one.get(column, "") for one in said)
        keys += images if taken.isdisjoint(images) else [f"{tar}/{name}" for name in images]
        taken.update(images)
        slices.append(np.array([(number, *member) for member in images.values()], np.int64).reshape(-1, 3))
        files.append((info.st_size, info.st_mtime_ns))
    if not keys:
        raise no_images("data.tar", quoted_names(paths), skipped)
    # A member may have the path of another tar file as its folder.
    refuse_repeated("data.tar", keys)
    source = FileSlices("tar", tuple(paths), np.array(files, np.int64), np.concatenate(slices))
    columns = dict(sorted(columns.items()))
    return make_manifest(root, keys, source.slices[:, 2], columns=columns, skipped=skipped, source=source)


def find_in_tar(path: str, key: str, tar: str) -> ImageRecord:
    """Find the image of a key of a run again, in the tar file at a path; ``tar``: what the key may begin with.

    Raises:
        FileNotFoundError, DatasetError: It is not there; the tar file cannot be read.
    """
    if os.path.lexists(path):
        manifest = list_tars([path], os.path.dirname(path), lambda line: None)
        for name in (key, key.removeprefix(f"{tar}/")):
            if name in manifest.keys:
                return replace(manifest[manifest.keys.index(name)], key=key)
    raise FileNotFoundError(key)


def _read_tar(
    file: BinaryIO, tar: str, skipped: Counter[str], log: Callable[[str], None]
) -> tuple[dict[str, _Member], dict[str, dict[str, str]]]:
    """Return the images of a tar file by their names, and what is said of them, column -> text, by the stems of their names."""
    images, cells = dict[str, _Member](), dict[str, dict[str, str]]()
    for name, member in _members(file, tar, skipped, log):
        ending, stem = posixpath.splitext(name)[1].lower(), _stem(name)
        if ending in _LABEL_ENDINGS:
            try:
                found = _read_cells(file, member, ending)
            except (ValueError, AttributeError, RecursionError):
                skipped[f"{ending} that holds no label or is too large"] += 1
            else:
                # What .cls says counts, and comes first or last.
                before = cells.get(stem, {})
                cells[stem] = before | found if ending == ".cls" else found | before
        elif reason := reason_to_skip(name):
            skipped[reason] += 1
        else:
            # Of one name the last counts, where it stands.
            if images.pop(name, None):
                skipped["replaced by a later one of its name"] += 1
            images[name] = member
    return images, cells


def _read_cells(file: BinaryIO, member: _Member, ending: str) -> dict[str, str]:
    """Return an image's cells from what lies beside it, a class as its label; raise ValueError and others where it is neither."""
    if member[1] > _LARGEST_LABEL_BYTES:
        raise ValueError
    text = _read(file, *member).decode("utf-8-sig")
    said = {"label": text.strip() or None} if ending == ".cls" else json.loads(text)
    return {cell_text(name): cell_text(value) for name, value in said.items() if not isinstance(value, (dict, list))}


def _members(file: BinaryIO, tar_name: str, skipped: Counter[str], log: Callable[[str], None]) -> Iterator[tuple[str, _Member]]:
    """Yield the files of a tar file, in order, by their headers; raise ValueError where it is compressed, damaged or none."""
    end, offset = os.fstat(file.fileno()).st_size, -1
    try:
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
        while (info := tar.next()) is not None:
            # It would keep all of them: gigabytes for some millions.
            tar.members.clear()  # type: ignore[attr-defined]  # missing in typeshed
            # Programs that are given a folder write ./ before each name.
            offset, stop, name = info.offset, info.offset_data + info.size, valid_text(posixpath.normpath(info.name))
            if info.islnk() or info.issym() or info.sparse is not None:
                skipped["link or sparse member"] += 1
            elif info.isreg():
                if not info.offset_data <= stop <= end:
                    raise ValueError(f"it ends at byte {end}, its member {name[:300]!r} at {stop}")
                yield name, (info.offset_data, info.size)
        offset = tar.offset
    except (tarfile.TarError, OverflowError) as error:
        what = "it is no tar file, or compressed" if offset < 0 else f"it is damaged or cut off after byte {offset}"
        raise ValueError(f"{what} ({error})") from error
    # tarfile takes whatever is no header for the end, and the end of the file as well.
    rest = _read(file, offset, tarfile.RECORDSIZE + tarfile.BLOCKSIZE)
    if rest and (len(rest) < tarfile.BLOCKSIZE or any(rest[: tarfile.BLOCKSIZE])):
        raise ValueError(f"it is damaged or cut off: there is no whole header where one should be, at byte {offset}")
    if not rest or any(rest):
        what = "goes on behind its end, as if it was joined by cat" if rest else "lacks the mark of its end, and may be cut off"
        log(f"{tar_name!r} {what}: nothing behind byte {offset} is read")


def _read(file: BinaryIO, offset: int, size_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(size_bytes)


def _stem(name: str) -> str:
    """Return what the names of all that belongs to an image begin with. Source: WebDataset, tariterators.base_plus_ext."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.split(".", 1)[0]


def find_tars(names: Sequence[str]) -> list[str]:
    """Return the absolute paths of all tar files that are meant, each once, in the order of their names.

    Raises:
        DatasetError: There is none.
    """
    paths, missing = set[str](), list[str]()
    for name in (os.path.abspath(os.path.expanduser(name)) for name in names):
        if os.path.isdir(name):
            matches = glob.glob(os.path.join(glob.escape(name), "*.tar"))
        elif os.path.lexists(name):
            # What has no .tar in its name is a folder, also where it is not there: the folder of the keys depends on it.
            matches = [name] if ".tar" in os.path.basename(name).lower() else []
        else:
            matches = [match for match in glob.glob(name, recursive=True) if not os.path.isdir(match)]
        paths.update(matches)
        missing += [] if matches else [name]
    if missing:
        raise DatasetError(
            f"data.tar: {len(missing)} names without a tar file, got {quoted_names(missing)}. Expected files, folders that hold "
            "*.tar, or patterns that match some. Check the path."
        )
    return sorted(paths)
