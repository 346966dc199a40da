"""Files and folders at addresses, ``s3://bucket/folder``, by fsspec: :class:`RemotePath` stands where a ``pathlib.Path`` does.

An HDF5 file is made in a scratch folder on this machine and uploaded once it is whole; all else is written by one request. HDF5
reads files where they are, in blocks. fsspec is loaded with the first address that is used.
"""

from __future__ import annotations

import errno
import io
import os
import random
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypeVar

from .errors import OptionError, StoreError

# Of two letters or more before the colon: C:// is a drive of Windows.
_FORM = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_S3 = ("s3", "s3a")
# Protocol -> the extra of this program that installs its package.
_EXTRAS = {**dict.fromkeys(_S3, "s3"), "gs": "gcs", "gcs": "gcs"}

# Between attempts, each shortened or lengthened by chance. Those of botocore, s3fs and gcsfs come before.
PAUSES_SECONDS = (0.5, 2.0)
# Requests to S3 that a process has under way at a time.
CONNECTIONS = 64
# Of an upload to S3, which takes 10,000 parts at most: memory is the product of the two for each file under way.
PART_BYTES, PARTS_AT_ONCE = 16 << 20, 4
# Where an object appears under its name only once all of it has come. Elsewhere it is written under another name first.
# Source: Amazon S3 user guide, "Amazon S3 data consistency model"; Google Cloud Storage, "Consistency"; Azure, Put Block List.
_OBJECT_STORES = (*_EXTRAS, "az", "abfs", "abfss")

# What HDF5 reads of a shard before its chunks lies at its beginning and at its end.
BLOCK_BYTES, BLOCKS_KEPT = 1 << 18, 32
FILES_AHEAD = 16

# In names of exceptions and codes of S3: errors of the storage as a whole, by which no single file is meant.
_OF_ALL_FILES = re.compile(
    "Account|AccessKey|AllAccessDisabled|Credentials|ImportError|InvalidBucketName|ModuleNotFound|NoSuchBucket|Profile|Refresh"
    "|Signature|TimeTooSkewed|Token"
)
# Kinds of errors of one file, which will not pass.
_OF_ONE_FILE = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, FileExistsError: errno.EEXIST}
# What a web server answers that will not give a file later either; 404 is FileNotFoundError.
_WEB_REFUSED = (401, 403, 410)

Result = TypeVar("Result")


class StorageError(StoreError, OSError):
    """The storage at an address does not do what it should, after all attempts: not one file's fault. Made as an ``OSError``."""

    def __str__(self) -> str:
        return (
            f"{self.filename}: the storage refuses, got {self.strerror}. Expected an address that can be read and, by a run, "
            "written. Check the address, the credentials and the network, then run again: finished shards are kept."
        )


def is_address(text: str) -> bool:
    """Tell an address from a path."""
    return _FORM.fullmatch(text) is not None


def is_web(address: str) -> bool:
    """Tell whether an address is a web server's."""
    return address.startswith(("http://", "https://"))


def expanded(text: str) -> Path:
    """Return a path with its ``~`` replaced by the folder that it stands for, if it stands for one."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (that of a Path raises where it is the name of nobody)


def path_of(key: str, text: str) -> Path:
    """Return the path that an option, ``key``, names: on this machine, also of ``file://``, or at an address.

    Raises:
        OptionError: Nothing installed reads such an address; no connection is opened to find out.
    """
    path = to_address(text) if is_address(text) else expanded(text)
    if isinstance(path, RemotePath):
        try:
            from fsspec import get_filesystem_class

            get_filesystem_class(path.protocol)
        except (ImportError, ValueError) as error:
            extra = _EXTRAS.get(path.protocol)
            remedy = f" Run `pip install 'deep-feature-pipeline[{extra}]'`." if extra else ""
            raise OptionError(
                f"{key}: nothing reads such an address here ({error}), got {text!r}. Expected a path, or an address that an "
                f"installed package adds to fsspec.{remedy}"
            ) from None
    return path


def to_address(text: str) -> Path:
    """Return the path at an address; of ``file://`` that on this machine."""
    protocol, _, rest = text.partition("://")
    protocol = protocol.lower()
    return Path(rest or "/") if protocol in ("file", "local") else RemotePath(f"{protocol}://{rest.rstrip('/')}")


def _explained(error: Exception, where: str) -> OSError:
    """Return what a failed request means; EIO where another attempt may help."""
    names = ""
    cause: BaseException | None = error
    while cause:
        # Of botocore's errors, the code that S3 has answered.
        answer = getattr(cause, "response", None)
        names += f" {type(cause).__name__} {answer.get('Error', {}).get('Code') if isinstance(answer, dict) else ''}"
        cause = cause.__cause__
    words = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    if not words or not isinstance(error, OSError):
        words = f"{type(error).__name__}: {words}"
    if _OF_ALL_FILES.search(names):
        return StorageError(errno.EACCES, words, where)
    number = next((number for kind, number in _OF_ONE_FILE.items() if isinstance(error, kind)), 0)
    if getattr(error, "status", 0) in _WEB_REFUSED:
        number = errno.EACCES
    # The last request of an upload was answered too late and made again: the file may not be there.
    if not number or "NoSuchUpload" in names:
        return StorageError(errno.EIO, f"it does not answer as it should ({words})", where)
    return OSError(number, os.strerror(number).lower(), where)


def file_system(where: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it. fsspec keeps one a process."""
    import fsspec

    protocol = where.partition("://")[0]
    kind = fsspec.get_filesystem_class(protocol)
    options = kind._get_kwargs_from_urls(where)
    if protocol in _S3 and "config_kwargs" not in fsspec.config.conf.get(protocol, {}):
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
    value = next(filter(None, map(info.get, ("LastModified", "last_modified", "mtime", "created"))), 0.0)
    return value.timestamp() if isinstance(value, datetime) else float(value) if isinstance(value, (int, float)) else 0.0


if TYPE_CHECKING:
    # For the type checker it is a path, so that no signature need name both.
    _Base = Path
else:
    _Base = object


@dataclass(frozen=True)
class RemotePath(_Base):
    """A file or folder at an address, with what a run folder asks of a path.

    What is of one file alone raises FileNotFoundError, PermissionError or FileExistsError. Where the storage as a whole is gone,
    refuses all, or does not answer after the last attempt, all raise :class:`StorageError`.

    Attributes:
        text: The address, without a slash at its end.
        local: The file or folder on this machine where it is made before it is uploaded; None: as :func:`scratch_for` says.
    """

    text: str
    local: Path | None = field(default=None, compare=False)
    # Opened by read_ahead.
    _ahead: list[Any] = field(default_factory=list, init=False, compare=False, repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def protocol(self) -> str:
        return self.text.partition("://")[0]

    @property
    def name(self) -> str:
        return self.text.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        above = self.text.rpartition("/")[0]
        return self if above.endswith("/") else RemotePath(above, self.local and self.local.parent)

    def __truediv__(self, name: Any) -> RemotePath:
        return RemotePath(f"{self.text}/{name}", self.scratch / name)

    def absolute(self) -> RemotePath:
        return self

    def relative_to(self, *others: Any, **how: Any) -> Any:
        return PurePosixPath(self.text).relative_to(str(others[0]))

    @property
    def scratch(self) -> Path:
        """Where this file is made before it is uploaded."""
        return self.local or scratch_for(self.text)

    def __fspath__(self) -> str:
        """Return the file in scratch, for a log, which is added to there; what is at the address is its beginning."""
        if not self.scratch.exists() and self.is_file():
            self.download(self.scratch)
        return str(self.scratch)

    def _ask(self, work: Callable[[Any, str], Result]) -> Result:
        """Do what is done with fsspec's file system and the path in it, again after growing pauses where that may help."""
        pauses = iter(PAUSES_SECONDS)
        while True:
            try:
                return work(*file_system(self.text))
            except Exception as error:
                found = _explained(error, self.text)
                if found.errno != errno.EIO or (pause := next(pauses, None)) is None:
                    raise found from error
            time.sleep(pause * random.uniform(0.75, 1.25))

    def _info(self) -> dict[str, Any]:
        return self._ask(lambda system, path: dict(system.info(path)))

    def _type(self) -> str:
        try:
            return str(self._info()["type"])
        except FileNotFoundError:
            return ""

    def exists(self, **how: Any) -> bool:
        return self._type() != ""

    def is_file(self, **how: Any) -> bool:
        return self._type() == "file"

    def is_dir(self, **how: Any) -> bool:
        return self._type() == "directory"

    def is_symlink(self) -> bool:
        return False

    def stat(self, **how: Any) -> os.stat_result:
        info = self._info()
        mode = stat.S_IFREG if info["type"] == "file" else stat.S_IFDIR
        # Source: Python's documentation of os.stat_result: mode, inode, device, links, user, group, size, three times.
        return os.stat_result((mode, 0, 0, 1, 0, 0, info.get("size") or 0, 0, int(_modified_seconds(info)), 0))

    lstat = stat

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
        """Yield all files below, in no particular order: name from here, bytes, seconds when written."""

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

    def pread(self, size: int, position: int) -> bytes:
        """Return so many bytes from a position, fewer where the file ends before, by one request."""
        data = self._ask(lambda system, path: bytes(system.cat_file(path, start=position, end=position + size)))
        if len(data) > size:
            raise StorageError(errno.EIO, f"{len(data)} bytes in place of {size}", self.text)
        return data

    def read_bytes(self) -> bytes:
        return self._ask(lambda system, path: bytes(system.cat_file(path)))

    def open(self, mode: str = "rb", *how: Any, **named: Any) -> IO[Any]:  # type: ignore[override]
        assert mode == "rb", "files are written by upload"
        return io.BytesIO(self.read_bytes())

    def ranges(self) -> Any:
        """Open the file for HDF5, for one thread at a time; what :func:`read_ahead` has fetched is used once."""
        if self._ahead:
            return self._ahead.pop()
        from fsspec.spec import AbstractBufferedFile

        source = self

        class BlockFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
            def _fetch_range(self, start: int, end: int) -> bytes:
                size = min(end, self.size) - start
                data = source.pread(size, start)
                if len(data) < size:
                    raise StorageError(errno.EIO, f"{len(data)} bytes in place of {size}", source.text)
                return data

        caching = {"cache_type": "blockcache", "cache_options": {"maxblocks": BLOCKS_KEPT}}
        return BlockFile(None, self.text, "rb", BLOCK_BYTES, size=self.stat().st_size, **caching)

    def download(self, local: Path) -> None:
        """Copy the file to this machine."""
        self._ask(lambda system, path: system.get_file(path, str(local)))

    def upload(self, local: Path) -> None:
        """Write a file of this machine here, whole or not at all."""
        how = {"chunksize": PART_BYTES, "max_concurrency": PARTS_AT_ONCE} if self.protocol in _S3 else {}

        def work(system: Any, path: str) -> None:
            _make_parent(system, path)
            partial = path if self.protocol in _OBJECT_STORES else f"{path}.partial"
            system.put_file(str(local), partial, **how)
            if partial != path:
                system.mv(partial, path)

        self._ask(work)

    def create(self, data: bytes) -> bool:
        """Write a small file unless it is there, and tell whether it was not.

        Of two who try at once one succeeds: S3 and Google Cloud Storage promise it, of others fsspec's implementation decides.
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


def scratch_for(address: str, above: Path | None = None, mark: str = "") -> Path:
    """Return the scratch folder of an address, always the same, so that what a killed run has left there is removed.

    It lies in ``above``, or the system's folder for temporary files; ``mark``: of one of several processes that write a run.
    """
    user = getattr(os, "getuid", lambda: "user")()
    digest = sha256(f"{user} {address} {mark}".encode()).hexdigest()[:16]
    return (above or Path(tempfile.gettempdir())) / f"deep-feature-pipeline-{digest}"


def prepare_scratch(folder: Path) -> None:
    """Make the scratch folder of a run folder at an address, empty; called by whoever has its lock.

    Raises:
        OSError: The disk refuses, or there is one that this user may not remove.
    """
    if isinstance(folder, RemotePath):
        shutil.rmtree(folder.scratch, ignore_errors=True)
        folder.scratch.parent.mkdir(parents=True, exist_ok=True)
        folder.scratch.mkdir(mode=0o700)
        (folder.scratch / "shards").mkdir()


def remove_scratch(folder: Path) -> None:
    """Upload the log and remove the scratch folder of a run folder at an address; never raises."""
    if isinstance(folder, RemotePath):
        for log in folder.scratch.glob("*.log"):
            with suppress(OSError, StoreError):
                (folder / log.name).upload(log)
        shutil.rmtree(folder.scratch, ignore_errors=True)


def refresh(folder: Path) -> None:
    """Forget what was at an address when this process looked last: other processes may have changed it since."""
    if isinstance(folder, RemotePath):
        folder._ask(lambda system, path: system.invalidate_cache())


def read_ahead(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the paths of HDF5 files in order; what HDF5 reads first of those at an address is fetched, some at a time."""
    left = iter(paths)
    with ThreadPoolExecutor(FILES_AHEAD, "ahead") as pool:
        while some := list(islice(left, FILES_AHEAD)):
            list(pool.map(_fetch_ends, some))
            yield from some


def _fetch_ends(path: Path) -> None:
    # Where that fails, whoever opens the file tries again and says what is wrong.
    with suppress(OSError):
        if isinstance(path, RemotePath):
            file = path.ranges()
            for place in (0, max(0, file.size - BLOCK_BYTES)):
                file.seek(place)
                file.read(BLOCK_BYTES)
            path._ahead.append(file)


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Give a file of this machine: of one at an address a copy, which is removed after the block."""
    if not isinstance(path, RemotePath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="deep-feature-pipeline-") as folder:
        copy = Path(folder, path.name)
        path.download(copy)
        yield copy
