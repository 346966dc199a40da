"""Files and folders at addresses, ``s3://bucket/folder``, by fsspec: :class:`RemotePath` stands where a ``pathlib.Path`` does.

An HDF5 file is made in a scratch folder on this machine and uploaded once it is whole; all else is written by one request. Files
are read where they are, in blocks. fsspec is loaded with the first address that is used.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import json
import os
import random
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from .errors import OptionError, StoreError, nearest

# Of two letters or more before the colon: C:// is a drive of Windows.
_FORM = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
# Protocol -> the extra of this program that installs its package, and a command that removes an object.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_REMOVING = {"s3": "aws s3 rm", "gs": "gcloud storage rm"}

# Between attempts, each shortened or lengthened by chance. Those of botocore, s3fs and gcsfs come before.
PAUSES_SECONDS = (0.5, 2.0, 8.0)
# Requests to S3 that a process has under way at a time.
CONNECTIONS = 64
# Of an upload to S3: memory is the product of the two for each file under way.
PART_BYTES, PARTS_AT_ONCE = 16 << 20, 4
# Source: Amazon S3 user guide, "Multipart upload limits".
_MOST_PARTS = 10_000
# Where an object appears under its name only once all of it has come. Elsewhere it is written under another name first.
# Source: Amazon S3 user guide, "Amazon S3 data consistency model"; Google Cloud Storage, "Consistency"; Azure, Put Block List.
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")

# What HDF5 reads of a shard before its chunks lies at its beginning and at its end.
BLOCK_BYTES, BLOCKS_KEPT = 1 << 18, 32
FILES_AHEAD = 16
COPY_BYTES = 32 << 20

# Errors of the storage as a whole, by which no single file is meant: codes of S3, and names of exceptions.
_OF_ALL_FILES = frozenset(
    (
        *("NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed"),
        *("AccountProblem", "AllAccessDisabled", "NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"),
        *("RefreshError", "DefaultCredentialsError", "ProfileNotFound", "InvalidBucketName", "UnauthorizedSSOTokenError"),
    )
)
_LASTING = {
    FileNotFoundError: (errno.ENOENT, "no such object"),
    PermissionError: (errno.EACCES, "permission denied"),
    FileExistsError: (errno.EEXIST, "it exists"),
}
_WRONG_USE = (IsADirectoryError, NotADirectoryError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError)
# EINVAL is what s3fs makes of a bad request.
_LASTING_NUMBERS = frozenset((errno.EINVAL, errno.ENOSYS, errno.ENOSPC, errno.EROFS, errno.EFBIG))

Result = TypeVar("Result")


class StorageError(StoreError, OSError):
    """The storage at an address does not do what it should, after all attempts: not one file's fault.

    Args:
        number: As of an ``OSError``.
        words: What has happened.
        where: The address.
    """

    def __str__(self) -> str:
        return (
            f"{self.filename}: the storage refuses, got {self.strerror}. Expected an address that can be read and, by a run, "
            "written. Check the address, the credentials and the network, then run again: finished shards are kept."
        )


def is_address(text: str) -> bool:
    """Tell an address from a path."""
    return _FORM.fullmatch(text) is not None


def expanded(text: str) -> Path:
    """Return a path with its ``~`` replaced by the folder that it stands for."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ and the name of nobody
        return Path(text)


def path_of(key: str, text: str) -> Path:
    """Return the path that an option names: on this machine, also of ``file://``, or at an address.

    Args:
        key: The option, for messages.
        text: As typed.

    Raises:
        OptionError: Nothing installed reads such an address; no connection is opened to find out.
    """
    path = to_address(text) if is_address(text) else expanded(text)
    if isinstance(path, RemotePath):
        require_reachable(key, path)
    return path


def to_address(text: str) -> Path:
    """Return the path at an address; of ``file://`` that on this machine."""
    protocol, _, rest = text.partition("://")
    protocol = protocol.lower()
    return Path(rest or "/") if protocol in ("file", "local") else RemotePath(f"{protocol}://{rest.rstrip('/')}")


def require_reachable(key: str, path: RemotePath) -> None:
    """Make sure that something installed reads an address of this kind.

    Raises:
        OptionError: It is of an unknown kind, its package is not installed, or it names no place.
    """
    protocol, got = path.protocol, f"got {str(path)!r}"
    extra = _EXTRAS.get(protocol)
    install = f"pip install 'deep-feature-pipeline[{extra}]'"
    if importlib.util.find_spec("fsspec") is None:
        remedy = install if extra else "pip install fsspec"
        raise OptionError(f"{key}: nothing here reads addresses, {got}. Expected the package fsspec. {remedy}.")
    from fsspec.registry import known_implementations, registry

    if protocol not in registry and protocol not in known_implementations:
        near = nearest(protocol, [*dict.fromkeys(["s3", "gs", *known_implementations, *registry])])
        raise OptionError(
            f"{key}: an address of an unknown kind, {got}. Expected e.g. {near if len(near) < 40 else 's3, gs'} before ://. "
            "Correct it, or install the package that adds it to fsspec."
        )
    if protocol not in registry:
        package = known_implementations[protocol]["class"].partition(".")[0]
        if importlib.util.find_spec(package) is None:
            remedy = install if extra else f"pip install {package}"
            raise OptionError(f"{key}: the package for {protocol}:// is not installed, {got}. Expected {package}. {remedy}.")
    if not str(path).partition("://")[2]:
        raise OptionError(f"{key}: names no place, {got}. Expected e.g. {protocol}://bucket/folder. Complete it.")


# -- Requests

# Servers and buckets that did not answer after all attempts: asked once a request until they do.
_silent: set[str] = set()


def attempt(work: Callable[[], Result], where: str) -> Result:
    """Do what may fail for a while, again after growing pauses.

    Args:
        work: What to do; may be done more than once.
        where: Address of the file.

    Raises:
        FileNotFoundError: There is no such file.
        PermissionError: This user may not.
        FileExistsError: It was to be made, and is there.
        StorageError: The storage as a whole is gone, refuses all, or does not answer after the last attempt.
        OSError: It refuses this file.
    """
    server = "/".join(where.split("/", 3)[:3])
    for pause in (*(() if server in _silent else PAUSES_SECONDS), None):
        try:
            result = work()
        except Exception as error:
            causes = _causes(error)
            found, may_pass = _explained(causes, where)
            if may_pass and pause is not None:
                time.sleep(pause * random.uniform(0.75, 1.25))
                continue
            if may_pass and not any(getattr(cause, "status", 0) or getattr(cause, "response", 0) for cause in causes):
                _silent.add(server)
            raise found from error
        _silent.discard(server)
        return result
    raise AssertionError("the last attempt returns or raises")


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error, what it was raised from, and so on."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and len(causes) < 20:
        causes.append(cause)
    return causes


def _explained(causes: list[BaseException], where: str) -> tuple[OSError, bool]:
    """Return the error that a failed request means, and whether another attempt may help."""
    error = causes[0]
    if where.startswith(("http://", "https://")):
        # fsspec calls missing whatever it is told no size of, also by a server that does not answer.
        error = causes[-1]
        status = getattr(error, "status", 0)
        if status in (404, 410):
            error = FileNotFoundError()
        elif status in (401, 403):
            error = PermissionError()
        elif 400 <= status < 500 and status not in (408, 429):
            return OSError(errno.EINVAL, f"the server answers {status}", where), False
    names = {type(cause).__name__ for cause in causes}
    answers = [getattr(cause, "response", None) for cause in causes]
    names |= {str(answer.get("Error", {}).get("Code")) for answer in answers if isinstance(answer, dict)}
    words = " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
    if names & _OF_ALL_FILES:
        if "NoSuchBucket" in names:
            words = "there is no such bucket"
        elif "NoCredentialsError" in names:
            words = "no credentials were found"
        elif "InvalidBucketName" not in names:
            words = f"it refuses the credentials ({words})"
        return StorageError(errno.EACCES, words, where), False
    for kind, (number, text) in _LASTING.items():
        if isinstance(error, kind):
            return kind(number, text, where), False
    if isinstance(error, OSError) and error.errno in _LASTING_NUMBERS:
        return OSError(error.errno, words, where), False
    if isinstance(error, ImportError):
        return StorageError(errno.ENOSYS, f"a package is missing ({words})", where), False
    if isinstance(error, _WRONG_USE):
        return OSError(errno.EINVAL, f"{type(error).__name__}: {words}", where), False
    kind_words = "" if type(error) in (OSError, StorageError) else f"{type(error).__name__}: "
    return StorageError(errno.EIO, f"it does not answer as it should ({kind_words}{words})", where), True


def _system(where: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it. fsspec keeps one a process."""
    import fsspec

    protocol = where.partition("://")[0]
    kind = fsspec.get_filesystem_class(protocol)
    options = kind._get_kwargs_from_urls(where)
    if protocol in ("s3", "s3a") and "config_kwargs" not in fsspec.config.conf.get(protocol, {}):
        options["config_kwargs"] = {"max_pool_connections": CONNECTIONS, "retries": {"max_attempts": 2}}
    system = kind(**options)
    if not system.async_impl:
        # One a thread, each with listings of its own, which others do not know to have changed.
        system.invalidate_cache()
    return system, kind._strip_protocol(where)


def _make_parent(system: Any, path: str) -> None:
    # Object stores have no folders.
    if not system.async_impl:
        system.makedirs(path.rpartition("/")[0], exist_ok=True)


def _modified_seconds(info: dict[str, Any]) -> float:
    """Return when a file was written last; 0 where nobody says."""
    for key in ("LastModified", "mtime", "updated", "last_modified", "created"):
        value = info.get(key)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
            except ValueError:
                continue
        if value is not None:
            return value.timestamp() if isinstance(value, datetime) else float(value)
    return 0.0


if TYPE_CHECKING:
    # For the type checker it is a path, so that no signature need name both.
    _Base = Path
else:
    _Base = object


class RemotePath(_Base):
    """A file or folder at an address.

    Args:
        text: The address, without a slash at its end.
        scratch: Folder of this machine where files of ``root`` are made; None: one of this user's in the system's folder for
            temporary files, always the same.
        root: The run folder that ``text`` lies in; None: ``text``.
    """

    def __init__(self, text: str, scratch: Path | None = None, root: str | None = None) -> None:
        self._text = text
        self._scratch = scratch
        self._root = text if root is None else root
        self._ahead: RemoteFile | None = None

    # -- Its name

    @property
    def protocol(self) -> str:
        return self._text.partition("://")[0]

    @property
    def name(self) -> str:
        return self._text.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> RemotePath:
        before, _, rest = self._text.partition("://")
        if "/" not in rest:
            return self
        text = f"{before}://{rest.rpartition('/')[0]}"
        return RemotePath(text) if self._text == self._root else RemotePath(text, self._scratch, self._root)

    def __truediv__(self, name: Any) -> RemotePath:
        return RemotePath(f"{self._text}/{name}", self._scratch, self._root)

    def joinpath(self, *names: Any) -> RemotePath:
        return self / "/".join(map(str, names))

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def absolute(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def relative_to(self, *others: Any, **how: Any) -> Any:
        return PurePosixPath(self._text).relative_to(str(others[0]))

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"RemotePath({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._text == str(other)

    def __hash__(self) -> int:
        return hash(self._text)

    def __lt__(self, other: Any) -> bool:
        return self._text < str(other)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, (self._text, self._scratch, self._root)

    # -- What is there

    def _ask(self, work: Callable[[Any, str], Result]) -> Result:
        """Do what is done with fsspec's file system and the path in it; see :func:`attempt`."""
        return attempt(lambda: work(*_system(self._text)), self._text)

    def _info(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._ask(lambda system, path: system.info(path))
        except FileNotFoundError:
            return None
        return found

    def exists(self, **how: Any) -> bool:
        return self._info() is not None

    def is_file(self, **how: Any) -> bool:
        info = self._info()
        return info is not None and info["type"] == "file"

    def is_dir(self, **how: Any) -> bool:
        info = self._info()
        return info is not None and info["type"] == "directory"

    def is_symlink(self) -> bool:
        return False

    def stat(self, **how: Any) -> os.stat_result:
        info = self._info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._text)
        mode = stat.S_IFREG | 0o644 if info["type"] == "file" else stat.S_IFDIR | 0o755
        # Source: Python's documentation of os.stat_result: mode, inode, device, links, user, group, size, three times.
        return os.stat_result((mode, 0, 0, 1, 0, 0, info.get("size") or 0, 0, int(_modified_seconds(info)), 0))

    def lstat(self) -> os.stat_result:
        return self.stat()

    def iterdir(self) -> Iterator[RemotePath]:  # type: ignore[override]
        def listed(system: Any, path: str) -> set[str]:
            names = [name.rstrip("/") for name in system.ls(path, detail=False)]
            return {name.rpartition("/")[2] for name in names if name.strip("/") != path.strip("/")}

        try:
            names = self._ask(listed)
        except FileNotFoundError:
            names = set()
        return (self / name for name in sorted(names))

    def find_files(self) -> Iterator[tuple[str, int, float]]:
        """Yield all files below, in no particular order: name from here, bytes, seconds when written.

        Raises:
            FileNotFoundError: There is no such folder, as far as the storage has folders.
            OSError: As :func:`attempt`.
        """

        def find(system: Any, path: str) -> tuple[dict[str, Any], str]:
            system.invalidate_cache()
            # fsspec finds nothing below a web server that does not answer; a listing says why.
            return system.find(path, detail=True) or {name: {} for name in system.ls(path, detail=False)}, path

        found, path = self._ask(find)
        start = len(path.rstrip("/")) + 1
        for name, info in found.items():
            # A key that ends with a slash stands for a folder.
            if info.get("type") == "file" and not name[start:].endswith("/"):
                yield name[start:], int(info.get("size") or 0), _modified_seconds(info)

    def refresh(self) -> None:
        """Forget the listings that fsspec keeps: other processes may have changed what is there."""
        self._ask(lambda system, path: system.invalidate_cache())

    # -- Reading

    def read_range(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` to before ``stop``, fewer where the file ends before, by one request.

        Raises:
            OSError: As :func:`attempt`.
        """

        def read(system: Any, path: str) -> bytes:
            data: bytes = system.cat_file(path, start=start, end=stop)
            if len(data) > stop - start:
                raise StorageError(errno.EIO, f"{len(data)} bytes in place of {stop - start}", self._text)
            return data

        return self._ask(read)

    def pread(self, size: int, position: int) -> bytes:
        """Return so many bytes from a position, as ``os.pread`` does, by one request."""
        return self.read_range(position, position + size)

    def read_bytes(self) -> bytes:
        data: bytes = self._ask(lambda system, path: system.cat_file(path))
        return data

    def open(self, mode: str = "r", buffering: int = -1, encoding: str | None = None, *how: Any, **named: Any) -> IO[Any]:  # type: ignore[override]
        if mode == "rb":
            file = RemoteFile(self)
            return file if buffering == 0 else io.BufferedReader(file, 1 << 20)  # type: ignore[return-value]
        assert mode == "r", f"{self}: opened by {mode!r}; files are written by write_bytes and upload"
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding or "utf-8", *how, **named)

    def ranges(self) -> RemoteFile:
        """Open the file for HDF5; what :meth:`fetch_ends` has fetched is used once."""
        file, self._ahead = self._ahead, None
        return file or RemoteFile(self).fetch_ends()

    def fetch_ends(self) -> None:
        """Fetch what HDF5 asks for first; where that fails, whoever opens the file tries again and says what is wrong."""
        with suppress(OSError):
            self._ahead = RemoteFile(self).fetch_ends()

    def download(self, local: Path) -> None:
        """Copy the file to this machine.

        Raises:
            OSError: The disk refuses; and as :func:`attempt`.
        """
        size = self.stat().st_size
        with local.open("wb") as file:
            for start in range(0, size, COPY_BYTES):
                file.write(self.read_range(start, min(size, start + COPY_BYTES)))

    # -- Writing

    def write_bytes(self, data: Any) -> int:
        self._put(lambda system, path: system.pipe_file(path, bytes(data)))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def upload(self, local: Path) -> None:
        """Write a file of this machine here, whole or not at all.

        Raises:
            OSError: As :func:`attempt`.
        """
        how: dict[str, Any] = {}
        if self.protocol in ("s3", "s3a"):
            how = {"chunksize": max(PART_BYTES, -(-local.stat().st_size // _MOST_PARTS)), "max_concurrency": PARTS_AT_ONCE}
        self._put(lambda system, path: system.put_file(str(local), path, **how))

    def _put(self, send: Callable[[Any, str], Any]) -> None:
        def work(system: Any, path: str) -> None:
            if self.protocol in _OBJECT_STORES:
                send(system, path)
                return
            _make_parent(system, path)
            partial = f"{path}.partial"
            send(system, partial)
            system.mv(partial, path)

        self._ask(work)

    def create(self, data: bytes) -> bool:
        """Write a small file unless it is there, and tell whether it was not. Of two who try at once one succeeds.

        S3 (since 2024) and Google Cloud Storage promise that; of others fsspec's implementation decides.

        Raises:
            OSError: As :func:`attempt`.
        """

        def work(system: Any, path: str) -> None:
            _make_parent(system, path)
            system.pipe_file(path, data, mode="create")

        try:
            self._ask(work)
        except FileExistsError:
            return False
        return True

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask(lambda system, path: system.rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: folders at an address are made by what lies in them."""

    # -- The scratch folder

    @property
    def scratch(self) -> Path:
        """Where this file is made before it is uploaded."""
        within = self._text[len(self._root) + 1 :]
        home = scratch_for(self._root) if self._scratch is None else self._scratch
        return home / within if within else home

    def __fspath__(self) -> str:
        """Return the file in scratch, for a log, which is added to there; what is at the address is its beginning."""
        local = self.scratch
        make_private(local.parent)
        if not local.exists() and self.is_file():
            self.download(local)
        return str(local)


def scratch_for(address: str, above: Path | None = None, mark: str = "") -> Path:
    """Return the scratch folder of an address, always the same, so that what a killed run has left there is removed.

    Args:
        address: Of the run folder.
        above: Folder that it lies in; None: one of this user's in the system's folder for temporary files.
        mark: Of one of several processes that write the run folder.
    """
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return (above or _own_folder()) / "-".join(filter(None, (address.rpartition("/")[2][:80], digest, mark)))


def _own_folder() -> Path:
    return Path(tempfile.gettempdir(), f"deep-feature-pipeline-{getattr(os, 'getuid', lambda: 'user')()}")


def make_private(folder: Path) -> None:
    """Make a scratch folder; the one for temporary files that it may lie in is everybody's.

    Raises:
        OSError: The disk refuses, or somebody else has made the folder of this user's, or may write it.
    """
    own = _own_folder()
    if own in folder.parents:
        own.mkdir(parents=True, exist_ok=True, mode=0o700)
        info = own.lstat()
        is_ours = stat.S_ISDIR(info.st_mode) and info.st_uid == getattr(os, "getuid", lambda: info.st_uid)()
        if not is_ours or (os.name == "posix" and info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            raise PermissionError(errno.EPERM, "a folder that others have made or may write", str(own))
    folder.mkdir(parents=True, exist_ok=True)


def refresh(folder: Path) -> None:
    """Forget what was at an address when this process looked last."""
    if isinstance(folder, RemotePath):
        folder.refresh()


# Scratch folders that hold what this process makes.
_prepared: set[Path] = set()


def leave(folder: Path) -> None:
    """Upload the log and remove the scratch folder, if this process has held the lock of the run folder; never raises."""
    if not isinstance(folder, RemotePath) or folder.scratch not in _prepared:
        return
    _prepared.discard(folder.scratch)
    for log in folder.scratch.glob("*.log"):
        with suppress(OSError, StoreError):
            (folder / log.name).upload(log)
    _remove_from(folder.scratch)


def _remove_from(scratch: Path) -> None:
    """Remove all but the locks of a scratch folder."""
    for path in scratch.iterdir() if scratch.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith(".lock"):
            with suppress(OSError):
                path.unlink()


class RemoteFile(io.RawIOBase):
    """A file at an address, open for reading; for one thread at a time.

    Args:
        path: Of the file.

    Raises:
        FileNotFoundError: There is none.
        OSError: As :func:`attempt`.
    """

    def __init__(self, path: RemotePath) -> None:
        from fsspec.caching import BlockCache

        super().__init__()
        info = path._info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._path = path
        self._position = 0
        self._size = int(info.get("size") or 0)
        self._cache = BlockCache(BLOCK_BYTES, self._read, self._size, BLOCKS_KEPT)

    def _read(self, start: int, stop: int) -> bytes:
        stop = min(stop, self._size)
        data = self._path.read_range(start, stop)
        if len(data) < stop - start:
            raise StorageError(errno.EIO, f"{len(data)} bytes in place of {stop - start}", str(self._path))
        return data

    def fetch_ends(self) -> RemoteFile:
        """Fetch beginning and end, which HDF5 asks for first."""
        self._cache._fetch(0, 1)
        self._cache._fetch(max(0, self._size - BLOCK_BYTES), self._size)
        return self

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start, stop = self._position, min(self._position + len(view), self._size)
        if start >= stop:
            return 0
        is_large = stop - start >= 4 * BLOCK_BYTES
        view[: stop - start] = self._read(start, stop) if is_large else self._cache._fetch(start, stop)
        self._position = stop
        return stop - start


def read_ahead(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the paths of HDF5 files in their order; what HDF5 reads first of those at an address is fetched, some at a time."""
    left = iter(paths)
    with ThreadPoolExecutor(FILES_AHEAD, "ahead") as pool:
        while some := list(islice(left, FILES_AHEAD)):
            list(pool.map(RemotePath.fetch_ends, (path for path in some if isinstance(path, RemotePath))))
            yield from some


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Give a file of this machine: of one at an address a copy, which is removed after the block.

    Raises:
        OSError: The disk refuses; and as :func:`attempt`.
    """
    if not isinstance(path, RemotePath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="deep-feature-pipeline-") as folder:
        copy = Path(folder, path.name)
        path.download(copy)
        yield copy


# -- The lock


class HeldError(Timeout):
    """Another process has the lock.

    Attributes:
        holder: Which, and how to remove the lock if it is there no more.
    """

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(path)
        self.holder = holder


class RemoteLock:
    """A lock at an address: an object that one process alone can make.

    It has no end by itself: that of a process that was killed elsewhere is named with how to remove it. That of one that was
    killed here is taken: a lock in the scratch folder ends with its process, and the token beside it is in the object.

    Args:
        path: Of the object.
    """

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self._local = FileLock(path.scratch, timeout=0)
        self._token_file = path.scratch.with_name(f"{path.name}.token")
        self._token = ""
        self.is_locked = False

    @property
    def lock_file(self) -> str:
        """The lock of this machine's."""
        return str(self._path.scratch)

    def acquire(self) -> None:
        """Take it.

        Raises:
            HeldError: Another process has it, or had it and was killed on another machine.
            OSError: The storage or the disk refuses.
        """
        scratch = self._path.scratch.parent
        make_private(scratch)
        self._local.acquire()
        try:
            if not self._token_file.exists():
                self._token_file.write_text(secrets.token_hex(16))
            self._token = self._token_file.read_text()
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            content = json.dumps({"token": self._token, "host": socket.gethostname(), "pid": os.getpid(), "since": now})
            if not self._path.create(content.encode()):
                found = self._found()
                if found.get("token") != self._token:
                    self._token_file.unlink()
                    raise HeldError(str(self._path), self._holder(found))
                self._path.write_text(content)
            self.is_locked = True
            self._path.refresh()
            if self._path.name == ".lock" and scratch not in _prepared:
                _remove_from(scratch)
                (scratch / "shards").mkdir(exist_ok=True)
                _prepared.add(scratch)
        except BaseException:
            self._let_go()
            raise

    def release(self) -> None:
        """Let go of it, if this process has it; never raises for what the storage does."""
        if self.is_locked:
            self.is_locked = False
            with suppress(OSError, StoreError):
                # Somebody may have removed it for a dead one's, and another have it.
                if self._found().get("token") == self._token:
                    self._path.unlink(missing_ok=True)
                # Not before: what could not be removed is taken by the next run here.
                self._token_file.unlink()
        self._let_go()

    def _let_go(self) -> None:
        with suppress(OSError):
            if self._local.is_locked:
                Path(self._local.lock_file).unlink(missing_ok=True)
        self._local.release()
        with suppress(OSError):
            # Unless something is in it: the lock of another part, what is being made.
            self._path.scratch.parent.rmdir()

    def _found(self) -> dict[str, Any]:
        """Return what the object says; nothing where there is none, or what is there is no lock."""
        try:
            found = json.loads(self._path.read_range(0, 1 << 12))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _holder(self, found: dict[str, Any]) -> str:
        pid, host, since = (str(found.get(name, "unknown"))[:100] for name in ("pid", "host", "since"))
        remove = f"`{_REMOVING.get(self._path.protocol, 'removing the object')} {self._path}`"
        return f"process {pid} on {host} since {since} (if that process is there no more, remove its lock: {remove})"
