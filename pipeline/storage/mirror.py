"""A folder at an address and what this machine has of it: the listing, asked for once, and a scratch folder for what is made.

A file is made in scratch, and sent when it is whole. Those that are sent in the background leave scratch as soon as they have
arrived, so that no more than a few lie there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from ..errors import StoreError
from .address import Address
from .connection import StorageError
from .objects import UPLOADING_SUFFIX, Entry, abandon, download, list_objects, look_at, remove, unfinished_uploads, upload, write
from .range_file import RangeFile
from .sending import Sending


@cache
def mirror_of(address: Address, home: Path) -> Mirror:
    """Gives the one mirror that this process has of a folder that it writes."""
    return Mirror(address, home)


def scratch_for(address: Address, above: Path | None = None, mark: str = "") -> Path:
    """Gives a scratch folder for an address, always the same.

    Args:
        address: Of the run folder.
        above: Folder that it lies in; None: one of this user's in the system's folder for temporary files.
        mark: Of one of several processes that write the run folder.
    """
    digest = hashlib.sha256(str(address).encode()).hexdigest()[:16]
    return (above or _own_folder()) / "-".join(filter(None, (address.name[:80], digest, mark)))


def _own_folder() -> Path:
    return Path(tempfile.gettempdir(), f"deep-feature-pipeline-{getattr(os, 'getuid', lambda: 'user')()}")


class Mirror:
    """A folder at an address. Threads may share it; a copy by pickle lists anew, and shares the scratch folder's place alone.

    Args:
        address: Of the folder.
        home: Where its scratch folder is on this machine, once there is one; None: for reading only.

    Attributes:
        address: As given.
        home: As given.
        scratch: The scratch folder, while this process holds the address; None: what may lie there is not looked at.
    """

    def __init__(self, address: Address, home: Path | None) -> None:
        self.address = address
        self.home = home
        self.scratch: Path | None = None
        self._borrowed: Path | None = None
        self._entries: dict[str, Entry] | None = None
        self._folders: set[str] = set()
        self._leftovers: dict[str, list[str]] = {}
        # Files that have been opened for writing and not been sent since.
        self.written: set[str] = set()
        self.turn = threading.Lock()
        self.sent_seconds = 0.0
        # Files of which what is read first is there already.
        self.ahead: dict[str, RangeFile] = {}
        # Why what HDF5 was reading could not be read; it tells its callers less.
        self.read_failure: OSError | None = None
        self.sending = Sending()

    def __reduce__(self) -> tuple[Callable[..., Mirror], tuple[Address, Path | None]]:
        return (Mirror if self.home is None else mirror_of), (self.address, self.home)

    @property
    def entries(self) -> dict[str, Entry]:
        """What is at the address, by name from the folder; listed when first asked for, then kept up with what is done here.

        Raises:
            StoreError: The storage refuses.
        """
        if self._entries is None:
            found: dict[str, Entry] = {}
            try:
                for page in list_objects(self.address):
                    found |= {entry.name: entry for entry in page}
            except FileNotFoundError:  # no such folder, where the storage has folders
                found = {}
            except OSError as error:
                raise self.refused(error) from error
            # What an upload that was killed has left, where objects do not appear whole.
            self._leftovers = {name: [] for name in found if name.endswith(UPLOADING_SUFFIX)}
            self._entries = {name: entry for name, entry in found.items() if name not in self._leftovers}
            self._folders = {name.rpartition("/")[0] for name in found if "/" in name}
        return self._entries

    def refused(self, error: OSError, name: str = "") -> StoreError:
        """Gives the one line for what the storage refuses."""
        where = error.filename or (f"{self.address}/{name}" if name else self.address)
        why = {FileNotFoundError: "there is no such object", PermissionError: "permission is denied"}.get(
            type(error), "the storage refuses" if isinstance(error, StorageError) else "it cannot be reached"
        )
        return StoreError(
            f"{where}: {why}, got {error.strerror or error}. Expected an address that can be read and, by a run, written. Check "
            "the address, the credentials and the network, then run again: finished shards are kept."
        )

    def note(self, error: OSError) -> None:
        """Keeps why something could not be read."""
        self.read_failure = error

    def refresh(self) -> None:
        """Forgets the listing."""
        self.ahead.clear()
        self._entries = None

    def forget(self, name: str) -> None:
        """Looks again at one object; what was known of it is of no use any more."""
        if self._entries is not None and name in self._entries:
            try:
                self._entries[name] = look_at(self.address / name)._replace(name=name)
            except FileNotFoundError:
                del self._entries[name]
            except OSError as error:
                raise self.refused(error, name) from error

    def is_folder(self, name: str) -> bool:
        """Tells whether anything lies below a name; of ``""``, whether there is anything at all."""
        entries = self.entries
        return (
            bool(entries) if not name else name in self._folders or any(other.startswith(f"{name}/") for other in self._folders)
        )

    def place(self, name: str) -> Path | None:
        """Gives where a file is, or would be, in scratch."""
        return None if self.scratch is None else self.scratch / name if name else self.scratch

    def prepare(self, kept: Collection[str]) -> None:
        """Makes the scratch folder ready, empty but for these names, and lists the address anew. Nobody else uses it.

        What an earlier process has left there is of no use: what had not arrived is made again.

        Raises:
            OSError: The disk refuses, or the folder is another user's.
            StoreError: The storage refuses.
        """
        assert self.home is not None
        make_private(self.home)
        for path in self.home.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.scratch = self.home
        self.sending = Sending()
        self.written.clear()
        self.refresh()
        assert self.entries is not None
        try:
            self._leftovers |= unfinished_uploads(self.address)
        except OSError:
            # Not every storage that speaks S3 can tell, and not every user may ask. They cost storage and do no harm.
            return

    def borrow(self) -> None:
        """Takes a scratch folder of a name that nobody else has, for looking at the address; :meth:`clear` removes it."""
        self.scratch = self._borrowed = Path(tempfile.mkdtemp(prefix="deep-feature-pipeline-"))

    @property
    def is_borrowed(self) -> bool:
        """Whether the scratch folder is for looking only."""
        return self._borrowed is not None

    def look_again(self, is_shared: Callable[[str], bool]) -> None:
        """Forgets what others may have changed: the listing, and of the files in scratch those that are not to be sent.

        Args:
            is_shared: Tells whether others may write a file of this name too.
        """
        assert self.scratch is not None
        self.refresh()
        for path in self.scratch.iterdir():
            if is_shared(path.name) and path.name not in self.written:
                path.unlink()

    def fetch(self, name: str) -> Path:
        """Gives a file in scratch, downloaded unless it is there or nowhere.

        Raises:
            StoreError: The storage refuses.
            OSError: The disk refuses.
        """
        local = self.place(name)
        assert local is not None
        if not name or local.exists() or (entry := self.entries.get(name)) is None:
            return local
        local.parent.mkdir(parents=True, exist_ok=True)
        unfinished = local.with_name(f"{local.name}.download")
        try:
            download(self.address / name, unfinished, entry.size)
            unfinished.replace(local)
        except StorageError as error:
            raise self.refused(error, name) from error
        finally:
            unfinished.unlink(missing_ok=True)
        return local

    def send(self, name: str) -> None:
        """Sends a whole file; it stays in scratch too.

        Raises:
            OSError: The storage refuses.
        """
        local, address = self.place(name), self.address / name
        assert local is not None
        self._abandon(name)
        self.entries[name] = upload(local, address)._replace(name=name)
        self._folders.add(name.rpartition("/")[0])

    def send_bytes(self, name: str, data: bytes) -> None:
        """Sends a small file that is not as it lies in scratch.

        Raises:
            OSError: The storage refuses.
        """
        write(data, self.address / name)
        self.entries[name] = Entry(name, len(data), time.time(), "")

    def _abandon(self, name: str) -> None:
        """Ends what an earlier process has begun to send under this name, and no one will finish."""
        with suppress(OSError):
            abandon(self.address / name, self._leftovers.pop(name, ()))
        others = [other for other in self._leftovers if other.startswith(f"{name}.") and other.endswith(UPLOADING_SUFFIX)]
        for other in others:
            del self._leftovers[other]
            with suppress(OSError):
                remove([self.address / other])

    def send_later(self, name: str, arrived: Callable[[], None]) -> None:
        """Sends a whole file in the background and removes it from scratch; waits while too many are on their way.

        Args:
            name: Of the file.
            arrived: Called in the background once it is there.

        Raises:
            OSError: What has failed in the background.
        """

        def send() -> None:
            self.send(name)
            local = self.place(name)
            assert local is not None
            local.unlink(missing_ok=True)

        self.sending.begin(name, send, arrived)

    def is_there(self, name: str) -> bool:
        """Tells whether a file is whole at the address, and not only on its way."""
        return name in self.entries and name not in self.sending.names

    def remove(self, names: Iterable[str]) -> None:
        """Removes files, here and there.

        Raises:
            OSError: The disk or the storage refuses.
        """
        names = list(names)
        for name in names:
            local = self.place(name)
            if local is not None:
                local.unlink(missing_ok=True)
        there = [name for name in names if name in self.entries]
        remove([self.address / name for name in there])
        for name in there:
            del self.entries[name]

    def clear(self, kept: Collection[str]) -> None:
        """Empties the scratch folder, but for these names, and has it no more; whatever the disk says."""
        scratch, self.scratch = self.scratch, None
        if self._borrowed is not None:
            shutil.rmtree(self._borrowed, ignore_errors=True)
            self._borrowed = None
            return
        for path in scratch.iterdir() if scratch is not None and scratch.is_dir() else ():
            if path.name in kept:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


def make_private(folder: Path) -> None:
    """Makes a folder that is this user's own: the one for temporary files is everybody's.

    Raises:
        OSError: The disk refuses, or somebody else has made it or may write it; or so the user's own one that it lies in.
    """
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    # Of a folder that the user has named, the one above it may be anybody's.
    made = [path for path in (folder, *folder.parents) if _own_folder() in (path, *path.parents)]
    for path in dict.fromkeys((folder.parent, folder, *made)):
        info, is_ours = path.lstat(), path == folder or path in made
        if stat.S_ISLNK(info.st_mode) or (is_ours and hasattr(os, "getuid") and info.st_uid != os.getuid()):
            raise PermissionError(1, "somebody else's folder or a link", str(path))
        if path in made and hasattr(os, "getuid") and info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(1, "a folder that others may write", str(path))
