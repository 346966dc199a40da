"""What stands where a path stands: a file or folder below an address, with as much of ``pathlib``'s words as a run folder needs.

A file that is being made, or has been fetched, is in scratch, and found there first. All others are read where they are.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from .address import Address, is_address, require_reachable, to_address
from .mirror import Mirror, mirror_of, scratch_for
from .objects import Entry, read
from .range_file import RangeFile, RemoteHandle

if TYPE_CHECKING:
    # For the checker of types it is a path, so that no signature of the store need name both.
    _Base = Path
else:
    _Base = object


class RemotePath(_Base):
    """A place below an address.

    Args:
        mirror: Of the folder that it lies in.
        parts: Names from that folder; none: the folder itself.
    """

    def __init__(self, mirror: Mirror, parts: tuple[str, ...] = ()) -> None:
        self.mirror = mirror
        self._parts = parts

    @property
    def within(self) -> str:
        """The path from the mirrored folder, ``shards/shard-00000-of-00002.h5``; ``""`` for the folder."""
        return "/".join(self._parts)

    @property
    def address(self) -> Address:
        """Where it is."""
        return self.mirror.address / self.within if self._parts else self.mirror.address

    @property
    def name(self) -> str:
        return self._parts[-1] if self._parts else self.mirror.address.name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> RemotePath:
        if self._parts:
            return RemotePath(self.mirror, self._parts[:-1])
        return RemotePath(Mirror(self.mirror.address.parent, None))

    def __truediv__(self, name: Any) -> RemotePath:
        return self.joinpath(name)

    def joinpath(self, *names: Any) -> RemotePath:
        return RemotePath(self.mirror, (*self._parts, *(part for name in names for part in str(name).split("/"))))

    def with_name(self, name: str) -> RemotePath:
        return RemotePath(self.mirror, (*self._parts[:-1], name))

    def absolute(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def relative_to(self, *others: Any, **how: Any) -> Any:
        (other,) = others
        return PurePosixPath(str(self)).relative_to(str(other))

    def as_posix(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return str(self.address)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: Any) -> bool:
        return str(self) < str(other)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, (self.mirror, self._parts)

    def __fspath__(self) -> str:
        """Gives the file in scratch, fetched for whoever needs one of this machine's."""
        if self.mirror.scratch is None:
            raise TypeError(f"{self}: no file of this machine's")
        return str(self.mirror.fetch(self.within))

    @property
    def local(self) -> Path | None:
        """Where it is in scratch; None if it is not there."""
        place = self.mirror.place(self.within)
        return place if place is not None and os.path.lexists(place) else None

    def exists(self, **how: Any) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self, **how: Any) -> bool:
        local = self.local
        return (local is not None and local.is_file()) or self.within in self.mirror.entries

    def is_dir(self, **how: Any) -> bool:
        local = self.local
        return (local is not None and local.is_dir()) or self.mirror.is_folder(self.within)

    def is_symlink(self) -> bool:
        return False

    def lstat(self) -> os.stat_result:
        local = self.local
        if local is not None and not local.is_dir():
            return local.lstat()
        entry = self.mirror.entries.get(self.within)
        if entry is not None:
            return _stat_of(stat.S_IFREG | 0o644, entry.size, entry.modified_seconds)
        if self.is_dir():
            return _stat_of(stat.S_IFDIR | 0o755, 0, 0)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    def stat(self, **how: Any) -> os.stat_result:
        return self.lstat()

    def iterdir(self) -> Iterator[RemotePath]:  # type: ignore[override]
        prefix = f"{self.within}/" if self._parts else ""
        names = {name[len(prefix) :].partition("/")[0] for name in self.mirror.entries if name.startswith(prefix)}
        local = self.local
        if local is not None and local.is_dir():
            names |= {path.name for path in local.iterdir()}
        return (self / name for name in sorted(names))

    def open(self, mode: str = "r", *how: Any, **named: Any) -> IO[Any]:  # type: ignore[override]
        if mode not in ("r", "rb"):
            place = self._writable()
            if "w" not in mode:
                place = self.mirror.fetch(self.within)
            self.mirror.written.add(self.within)
            return place.open(mode, *how, **named)
        if self.mirror.scratch is not None and not self.within.endswith(".h5"):
            self.mirror.fetch(self.within)
        local = self.local
        if local is not None:
            return local.open(mode, *how, **named)
        assert mode == "rb", f"text of {self} is not read where it is"
        return io.BufferedReader(self.ranges(), 1 << 20)

    def ranges(self) -> RangeFile:
        """Gives the object as a file of which only what is read is fetched.

        Raises:
            FileNotFoundError: There is none.
        """
        self.mirror.read_failure = None
        ahead = self.mirror.ahead.get(self.within)
        return ahead.again() if ahead is not None else RangeFile(self.address, self._entry(), self.mirror.note)

    def forget_ahead(self) -> None:
        """Forgets what :meth:`read_ahead` has fetched."""
        self.mirror.ahead.pop(self.within, None)

    def read_ahead(self) -> None:
        """Fetches what HDF5 will ask for first; whoever opens the object by :meth:`ranges` has it, until it is forgotten.

        Raises:
            OSError: The storage refuses.
        """
        self.mirror.ahead[self.within] = RangeFile(self.address, self._entry(), self.mirror.note).fetch_ends()

    def _entry(self) -> Entry:
        entry = self.mirror.entries.get(self.within)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return entry

    def handle(self) -> RemoteHandle:
        """Gives the object for reading by position.

        Raises:
            FileNotFoundError: There is none.
        """
        return RemoteHandle(self.address, self._entry())

    def read_bytes(self) -> bytes:
        local = self.local
        return local.read_bytes() if local is not None else read(self.address)

    def read_text(self, encoding: str | None = None, errors: str | None = None, **how: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        return self._writable().write_bytes(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> int:
        return self._writable().write_text(data, encoding, errors, newline)

    def _writable(self) -> Path:
        place = self.mirror.place(self.within)
        if place is None:
            raise OSError(errno.EROFS, "opened for reading", str(self))
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def replace(self, target: Any) -> RemotePath:
        assert isinstance(target, RemotePath)
        self._writable().replace(target._writable())
        return target

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        self.mirror.remove([self.within])

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        self._writable().mkdir(mode, parents=True, exist_ok=exist_ok)


def _stat_of(mode: int, size: int, modified_seconds: float) -> os.stat_result:
    # Source: Python's documentation of os.stat_result: mode, inode, device, links, user, group, size, three times.
    return os.stat_result((mode, 0, 0, 1, 0, 0, size, 0, int(modified_seconds), 0))


def place(key: str, text: str) -> Path:
    """Gives what a text of the command line names: a path, its ``~`` expanded, or what stands for an address.

    Args:
        key: The option, for messages.
        text: As typed.

    Raises:
        OptionError: Nothing installed reads such an address.
    """
    return to_path(key, text) if is_address(text) else expanded(text)


def expanded(text: str) -> Path:
    """Gives a path with its ``~`` replaced by the folder that it stands for."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ and the name of nobody
        return Path(text)


def writable(folder: Path) -> Path:
    """Gives a run folder as one that may be written: at an address, with the place of its scratch folder."""
    if not isinstance(folder, RemotePath) or folder.mirror.home is not None:
        return folder
    return RemotePath(mirror_of(folder.address, scratch_for(folder.address)))


def to_path(key: str, text: str) -> Path:
    """Gives what stands for an address, for reading: a run folder, its index or a shard.

    Args:
        key: The option, for messages.
        text: The address.

    Raises:
        OptionError: Nothing installed reads it.
    """
    address = to_address(text)
    if isinstance(address, Path):
        return address
    require_reachable(key, address)
    folder = address
    within: tuple[str, ...] = ()
    # A file is found through the listing of its run folder.
    if address.name.endswith(".h5"):
        parts = 2 if address.parent.name == "shards" else 1
        for _ in range(parts):
            folder, within = folder.parent, (folder.name, *within)
    return RemotePath(Mirror(folder, None), within)
