"""The way to an address: fsspec's file system for it, tried again where it fails for a while, and one word for why it fails."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .address import Address

Result = TypeVar("Result")

# Between attempts; each is made shorter or longer by chance, so that many machines do not come back at the same moment. Before
# these come those of the libraries below: botocore's and s3fs'.
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# Of what is asked before anything has begun: a wrong endpoint should not be waited for.
FIRST_PAUSES_SECONDS = (0.5, 1.0, 2.0)

CONNECT_SECONDS, READ_SECONDS = 5, 60
# Requests that one process has under way at a time; those of the reading and the uploading threads together.
CONNECTIONS = 64

# Errors of the storage as a whole, by which no single image or shard is meant: S3's codes, and the names of exceptions.
_OF_ALL = frozenset(
    (
        *("NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed"),
        *("AccountProblem", "AllAccessDisabled", "NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"),
        *("RefreshError", "DefaultCredentialsError", "ProfileNotFound", "InvalidBucketName", "UnauthorizedSSOTokenError"),
    )
)
_PERMANENT = (
    *(FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError),
    *(ValueError, TypeError, KeyError, AttributeError, NotImplementedError, MemoryError),
)
# Of an OSError: EINVAL is what s3fs makes of "bad request".
_PERMANENT_NUMBERS = frozenset((errno.EINVAL, errno.ENOSYS, errno.ENOSPC, errno.EROFS, errno.EFBIG))


class StorageError(OSError):
    """The storage at an address does not do what it should, after all attempts: not one object's fault."""


class _Open:
    """What one process has open. A forked child begins anew: its parent's connections and event loop are not its own."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.systems: dict[str, Any] = {}


_open = _Open()


def file_system(address: Address) -> tuple[Any, str]:
    """Gives fsspec's file system for an address, one for all threads, and the path in it."""
    global _open
    if _open.process != os.getpid():
        _open = _Open()
    # What is a bucket in one protocol is a machine in another, with a connection of its own.
    key = "/".join(address.text.split("/", 3)[:3])
    with _open.lock:
        if key not in _open.systems:
            _open.systems[key] = _make(address)
        system = _open.systems[key]
    return system, system._strip_protocol(address.text)


def _make(address: Address) -> Any:
    import fsspec

    # One of its own, which no other library in this process has told to remember anything.
    options: dict[str, Any] = {"skip_instance_cache": True}
    if is_s3(address):
        options["use_listings_cache"] = False
        if "config_kwargs" not in fsspec.config.conf.get(address.protocol, {}):
            options["config_kwargs"] = {
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                "max_pool_connections": CONNECTIONS,
                "retries": {"max_attempts": 2},
            }
    system, _ = fsspec.core.url_to_fs(address.text, **options)
    # The listings' cache would show a run what another machine has since changed. Not by an option: SFTP, among others, hands
    # those that it does not know on to a library that refuses them.
    if hasattr(system, "dircache"):
        system.dircache.use_listings_cache = False
    return system


def is_s3(address: Address) -> bool:
    """Tells whether an address is one of S3, which has multipart uploads and pages of listings."""
    return address.protocol in ("s3", "s3a")


def attempt(work: Callable[[], Result], address: Address, pauses: Sequence[float] = PAUSES_SECONDS) -> Result:
    """Does what may fail for a while, again and again with growing pauses.

    Args:
        work: What to do; may be done more than once.
        address: Of what, for the message.
        pauses: Seconds between attempts.

    Raises:
        FileNotFoundError: There is no such object.
        PermissionError: This user may not.
        FileExistsError: It was to be made, and is there.
        StorageError: The storage as a whole is gone, refuses all, or does not answer after the last attempt.
        OSError: It refuses this object.
    """
    for pause in (*pauses, None):
        try:
            return work()
        except Exception as error:
            found, is_lasting = _judged(error, address)
            if is_lasting or pause is None:
                raise found from error
        time.sleep(pause * random.uniform(0.75, 1.25))
    raise AssertionError("the last attempt returns or raises")


def _judged(error: Exception, address: Address) -> tuple[Exception, bool]:
    """Gives the error by which the rest of the program knows it, and whether another attempt is useless."""
    names = set(_names(error))
    words = " ".join(str(error).split())[:200] or type(error).__name__
    if names & _OF_ALL:
        return StorageError(errno.EACCES, _words_of_all(names, words), str(address)), True
    if isinstance(error, OSError) and error.errno in _PERMANENT_NUMBERS:
        return OSError(error.errno, words, str(address)), True
    for kind in (FileNotFoundError, PermissionError, FileExistsError):
        if isinstance(error, kind):
            return kind(error.errno or _NUMBERS[kind], _TEXTS[kind], str(address)), True
    if isinstance(error, ImportError):
        return StorageError(errno.ENOSYS, f"a package is missing ({words})", str(address)), True
    if isinstance(error, _PERMANENT):
        return OSError(errno.EINVAL, f"{type(error).__name__}: {words}", str(address)), True
    kind_words = "" if type(error) is OSError else f"{type(error).__name__}: "
    return StorageError(errno.EIO, f"it does not answer as it should ({kind_words}{words})", str(address)), False


_NUMBERS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, FileExistsError: errno.EEXIST}
_TEXTS = {FileNotFoundError: "no such object", PermissionError: "permission denied", FileExistsError: "it exists"}


def _words_of_all(names: set[str], words: str) -> str:
    if "NoSuchBucket" in names:
        return "there is no such bucket"
    if "NoCredentialsError" in names:
        return "no credentials were found"
    return f"it refuses the credentials ({words})" if "InvalidBucketName" not in names else words


def _names(error: BaseException | None) -> list[str]:
    """Gives the names by which an error and what caused it are known: of their classes, and S3's codes."""
    found: list[str] = []
    while error is not None and len(found) < 20:
        found.append(type(error).__name__)
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            found.append(str(response.get("Error", {}).get("Code")))
        error = error.__cause__
    return found
