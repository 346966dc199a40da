"""The lock of a run folder at an address: of its scratch folder for this machine, of the address for all of them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from ..storage.hold import Hold
from ..storage.remote_path import RemotePath
from . import disk, format, remote


class Lock(Protocol):
    """What :mod:`pipeline.store.lock` asks of a lock; filelock's are such."""

    @property
    def is_locked(self) -> bool:
        """Whether this process has it."""

    @property
    def lock_file(self) -> str:
        """A file of this machine that stands for it."""

    def acquire(self) -> Any:
        """Takes it, or raises filelock's ``Timeout``."""

    def release(self) -> None:
        """Lets go of it, if this process has it."""


class HeldError(Timeout):
    """A live process has the lock.

    Attributes:
        holder: Which.
    """

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(path)
        self.holder = holder


class RemoteLock:
    """A lock at an address.

    Whoever takes ``.lock`` sees what others have changed since, and has sent what it has changed before it lets go.

    Args:
        path: Of the object.
    """

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self._local = FileLock(disk.scratch_of(path.parent) / path.name, timeout=0)
        self._hold: Hold | None = None

    @property
    def is_locked(self) -> bool:
        """Whether this process has it."""
        return self._hold is not None

    @property
    def lock_file(self) -> str:
        """The lock of the scratch folder, or of what the process makes there."""
        return str(self._local.lock_file)

    def acquire(self) -> None:
        """Takes it.

        Raises:
            HeldError: A live process has it.
            OSError: The storage or the disk refuses.
        """
        self._local.acquire()
        try:
            mirror = self._path.mirror
            hold = Hold(self._path.address, self._fail)
            if not hold.is_taken:
                raise HeldError(str(self._path), hold.holder)
            self._hold = hold
            if self._path.name != format.LOCK_NAME:
                return
            if mirror.scratch is None:
                mirror.prepare(kept=[path.name for path in Path(self.lock_file).parent.glob(f"{format.LOCK_NAME}*")])
                (self._path.parent / format.SHARD_FOLDER).mkdir(exist_ok=True)
            else:
                mirror.look_again(remote.is_shared)
        except BaseException:
            self._let_go()
            raise

    def release(self) -> None:
        """Lets go of it, if this process has it.

        Raises:
            StoreError: What was changed cannot be sent.
        """
        try:
            if self._hold is not None and self._path.name == format.LOCK_NAME:
                remote.send_changed(self._path.parent)
        finally:
            self._let_go()

    def _fail(self, error: BaseException) -> None:
        self._path.mirror.sending.fail(error)

    def _let_go(self) -> None:
        if self._hold is not None:
            self._hold.release()
            self._hold = None
        with suppress(OSError):
            if self._local.is_locked:
                # Should another process wait for what is gone now, the lock at the address is there to tell them apart.
                Path(self.lock_file).unlink(missing_ok=True)
        self._local.release()
        with suppress(OSError):
            # Unless something is in it: the lock of another part, what is being made.
            Path(self.lock_file).parent.rmdir()
