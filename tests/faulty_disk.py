"""A disk that loses its power and a disk that refuses, for whatever Python does below a folder.

:func:`watching` puts a function of the test around the operations of ``os``; files are opened by Python's own ``_pyio``, whose
every write is one of these. :class:`Recorder` follows what is on the disk and what in the system's cache alone: from each
:class:`Moment` come the trees of files that a power cut may leave. :class:`Refusal` makes operations fail.

The model is POSIX': the bytes of a file are safe once it has been synced, names once their folder has been. What is not safe may
be there or not, folder by folder and page by page.
"""

from __future__ import annotations

import _pyio
import builtins
import errno
import fcntl
import hashlib
import io
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

CHANGING = ("open", "write", "pwrite", "ftruncate", "fsync", "mkdir", "replace", "rename", "unlink", "remove", "rmdir")
OTHERS = ("flock", "close", "read", "scandir", "listdir", "stat", "lstat", "utime")
PAGE_BYTES = 4096

# Path from the folder that is watched -> bytes of a file, None for a folder.
Tree = dict[str, "bytes | None"]
# Gets the operation, the path from the folder, all arguments, and what does it.
Watch = Callable[[str, str, Sequence[Any], Callable[..., Any]], Any]

_open = io.open


@contextmanager
def watching(root: Path, watch: Watch, names: Sequence[str] = CHANGING) -> Iterator[None]:
    """Call ``watch`` in place of each of these operations on what lies in a folder."""

    def below(where: Any) -> str | None:
        try:
            path = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else os.fsdecode(where)  # noqa: PTH115
        except (OSError, TypeError):
            return None
        return path[len(str(root)) + 1 :] if f"{path}/".startswith(f"{root}/") else None

    def watched(name: str, function: Any) -> Any:
        def operation(*arguments: Any, **named: Any) -> Any:
            path = below(arguments[0]) if arguments else None
            if path is None:
                return function(*arguments, **named)
            return watch(name, path, arguments, partial(function, **named))

        return operation

    def open_file(file: Any, *how: Any, **named: Any) -> Any:
        return (_open if below(file) is None else _pyio.open)(file, *how, **named)

    with ExitStack() as stack:
        for module in (os, fcntl):
            for name in {*names} & {*vars(module)}:
                stack.enter_context(mock.patch.object(module, name, watched(name, getattr(module, name))))
        stack.enter_context(mock.patch.object(io, "open", open_file))
        stack.enter_context(mock.patch.object(builtins, "open", open_file))
        yield


def read_tree(root: Path) -> Tree:
    """Gives all that lies in a folder."""
    tree: Tree = {}
    for folder, folders, files in os.walk(root):
        prefix = f"{folder[len(str(root)) + 1 :]}/".lstrip("/")
        tree |= {prefix + name: None for name in folders}
        for name in files:
            with _open(f"{folder}/{name}", "rb") as file:
                tree[prefix + name] = file.read()
    return tree


def write_tree(root: Path, tree: Tree) -> None:
    """Makes a folder hold this and nothing else."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, content in sorted(tree.items()):
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)


def digest_of(tree: Tree, but: str | tuple[str, ...] = ".log") -> str:
    """Tells trees apart, whatever is in the files with these endings."""
    digest = hashlib.sha256()
    for name, content in sorted(tree.items()):
        digest.update(
            f"{name}\0{content is None}\0".encode() + hashlib.sha256(content or b"").digest() * (not name.endswith(but))
        )
    return digest.hexdigest()


@dataclass(frozen=True)
class Moment:
    """What is in the system's cache and what on the disk after an operation."""

    operation: str  # such as `fsync run/SHA256SUMS`
    names: Mapping[str, int]  # path -> number of a file or folder
    safe_names: Mapping[str, int]  # those that are on the disk
    data: Mapping[int, bytes | None]  # number -> bytes of a file, None for a folder
    safe_data: Mapping[int, bytes | None]  # those that are on the disk

    def trees(self, draw: random.Random) -> Iterator[tuple[str, Tree]]:
        """Yield what a power cut may leave, with words for it."""
        safe = {number: self.safe_data.get(number, None if content is None else b"") for number, content in self.data.items()}
        yield "all", self._tree(self.names, self.data)
        yield "what is safe", self._tree(self.safe_names, safe)
        yield "names without bytes", self._tree(self.names, safe)
        yield "bytes without names", self._tree(self.safe_names, self.data)
        places = {_folder(name) for name in self.names.keys() | self.safe_names.keys()}
        pending = [place for place in sorted(places) if _inside(self.names, place) != _inside(self.safe_names, place)]
        for place in pending if len(pending) > 1 else ():
            others = {name: number for name, number in self.safe_names.items() if _folder(name) != place}
            yield f"names in {place or '.'}", self._tree(others | _inside(self.names, place), self.data)
        if any(content != safe[number] for number, content in self.data.items()):
            torn = {number: _torn(safe[number] or b"", content or b"", draw) for number, content in self.data.items()}
            for words in torn[0]:
                found = {number: content and torn[number][words] for number, content in self.data.items()}
                yield words, self._tree(self.names, found)

    def _tree(self, names: Mapping[str, int], data: Mapping[int, bytes | None]) -> Tree:
        tree: Tree = {"": None}
        for name, number in sorted(names.items()):
            # What lies in a folder is lost with the folder's name.
            if _folder(name) in tree:
                tree[name] = data[number]
        del tree[""]
        return tree


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _inside(names: Mapping[str, int], place: str) -> dict[str, int]:
    return {name: number for name, number in names.items() if _folder(name) == place}


def _torn(before: bytes, after: bytes, draw: random.Random) -> dict[str, bytes]:
    """Gives what the disk may have of a file that was written, with words for it."""
    stop = draw.randrange(len(after) // PAGE_BYTES + 1) * PAGE_BYTES
    added = draw.randrange(len(before), len(after)) if after.startswith(before) and before != after else len(after)
    return {
        "the first pages": after[:stop] + before[stop:],
        "the last pages": before[:stop].ljust(stop, b"\0") + after[stop:],
        "the size without the bytes": before[: len(after)].ljust(len(after), b"\0"),
        "a part of what was added": after[:added],
    }


class Recorder:
    """Records what is done below a folder; all that is there at first is safe. Syncing costs no time: the disk is this object.

    Attributes:
        moments: One after each operation that has changed anything.
        renamed: Path -> all contents that a file had when it got this name, or had at first.
    """

    def __init__(self, root: Path, pause: Callable[[], object] = lambda: None) -> None:
        self._root, self._pause = root, pause
        self._lock = threading.RLock()
        self._names: dict[str, int] = {}
        self._data: dict[int, bytes | None] = {}
        self._follow("")
        self._safe_names, self._safe_data = dict(self._names), dict(self._data)
        self.moments = [self._moment("nothing")]
        self.renamed = {name: {self._data[number]} for name, number in self._names.items()}

    def __call__(self, name: str, path: str, arguments: Sequence[Any], function: Callable[..., Any]) -> Any:
        if name == "open" and not arguments[1] & (os.O_CREAT | os.O_TRUNC):
            return function(*arguments)
        self._pause()
        with self._lock:
            # What was written without being seen comes before this.
            self._follow(path)
            if name == "fsync":
                self._sync(path)
                result = None
            else:
                result = function(*arguments)
            if name in ("replace", "rename"):
                target = os.fspath(arguments[1])[len(str(self._root)) + 1 :]
                self._names[target] = self._names.pop(path)
                self.renamed.setdefault(target, set()).add(self._data[self._names[target]])
            elif name in ("unlink", "remove", "rmdir"):
                del self._names[path]
            self._follow(path)
            self.moments.append(self._moment(f"{name} {path}"))
        return result

    def _sync(self, path: str) -> None:
        if path and self._data.get(self._names.get(path, -1)) is not None:
            self._safe_data[self._names[path]] = self._data[self._names[path]]
        elif not path or path in self._names:
            kept = {name: number for name, number in self._safe_names.items() if _folder(name) != path}
            self._safe_names = kept | _inside(self._names, path)

    def _follow(self, path: str) -> None:
        """Take notice of what has been made or written."""
        found = read_tree(self._root)
        for name, content in found.items():
            if name not in self._names:
                self._names[name] = len(self._data)
            self._data[self._names[name]] = content
        lost = self._names.keys() - found.keys()
        assert not lost, f"gone without being seen before an operation on {path}: {lost}"

    def _moment(self, words: str) -> Moment:
        return Moment(words, dict(self._names), dict(self._safe_names), dict(self._data), dict(self._safe_data))


class Refusal:
    """Makes an operation fail; after it all that need room, where that is what there is none of.

    Args:
        number: Which operation fails, from 0; -1: none, they are counted only.
        error: Number of the error.
    """

    def __init__(self, number: int = -1, error: int = 0) -> None:
        self._number, self._error = number, error
        self._lock = threading.Lock()
        self.operations: list[str] = []  # what has been done, in order

    @property
    def operation(self) -> str:
        """The one that has failed."""
        return self.operations[self._number]

    def __call__(self, name: str, path: str, arguments: Sequence[Any], function: Callable[..., Any]) -> Any:
        with self._lock:
            number = len(self.operations)
            self.operations.append(f"{name} {path}")
        is_full = (
            self._error in (errno.ENOSPC, errno.EDQUOT) and name in ("write", "pwrite", "mkdir") and number > self._number >= 0
        )
        if number != self._number and not is_full:
            return function(*arguments)
        if name == "write":
            # As full disks do: a part has been written.
            function(arguments[0], arguments[1][: len(arguments[1]) // 2])
        elif name == "close":
            function(*arguments)
        raise OSError(self._error, os.strerror(self._error), path if isinstance(arguments[0], int) else os.fspath(arguments[0]))
