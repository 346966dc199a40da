"""What is done with objects at an address: list, read, write whole or not at all, remove. Every call answers for its retries."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .address import Address
from .connection import FIRST_PAUSES_SECONDS, PAUSES_SECONDS, StorageError, attempt, file_system, is_s3

# Where an object appears under its name only once all of it has come. Elsewhere it is written under another name first.
# Source: Amazon S3 user guide, "Amazon S3 data consistency model"; Google Cloud Storage, "Consistency"; Azure, Put Block List.
_APPEARS_WHOLE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
UPLOADING_SUFFIX = ".uploading"

# Of an upload to S3: memory is the product of the two for each file under way.
PART_BYTES, PARTS_AT_ONCE = 16 << 20, 4
# Source: Amazon S3 user guide, "Multipart upload limits".
_MOST_PARTS = 10_000
_REMOVED_AT_ONCE = 16


class Entry(NamedTuple):
    """An object, as a listing shows it. ``name``: from the folder listed; ``tag``: another one for other bytes, or ""."""

    name: str
    size: int
    modified_seconds: float
    tag: str


def list_objects(folder: Address, pauses: Sequence[float] = FIRST_PAUSES_SECONDS) -> Iterator[list[Entry]]:
    """Gives all objects below a folder, some thousands at a time, in no particular order.

    On S3 no more than a page is in memory; elsewhere fsspec holds all of them.

    Raises:
        FileNotFoundError: There is no such folder, as far as the storage has folders.
        OSError: As :func:`~.connection.attempt`.
    """
    system, root = _reach(folder, pauses)
    if is_s3(folder):
        yield from _pages(system, folder, root, pauses)
        return

    def find() -> Any:
        # Some have caches of their own.
        system.invalidate_cache()
        return system.find(root, detail=True)

    found = attempt(find, folder, pauses)
    start = len(root.rstrip("/")) + 1
    yield [
        _entry(name[start:], info)
        for name, info in found.items()
        if info.get("type") == "file" and not name[start:].endswith("/")
    ]


def _reach(address: Address, pauses: Sequence[float] = PAUSES_SECONDS) -> tuple[Any, str]:
    # Making it may ask for credentials, or lack a package.
    return attempt(partial(file_system, address), address, pauses)


def _pages(system: Any, folder: Address, root: str, pauses: Sequence[float]) -> Iterator[list[Entry]]:
    bucket, _, key = root.partition("/")
    prefix = f"{key}/" if key else ""
    position: dict[str, str] = {}
    while True:
        page = attempt(partial(system.call_s3, "list_objects_v2", Bucket=bucket, Prefix=prefix, **position), folder, pauses)
        # A key that ends with a slash stands for a folder.
        yield [_entry(item["Key"][len(prefix) :], item) for item in page.get("Contents", ()) if not item["Key"].endswith("/")]
        if not page.get("IsTruncated"):
            return
        position = {"ContinuationToken": page["NextContinuationToken"]}


def _entry(name: str, info: Any) -> Entry:
    seconds = 0.0
    for key in ("LastModified", "mtime", "updated", "last_modified", "created"):
        value = info.get(key)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
            except ValueError:
                continue
        if value is not None:
            seconds = value.timestamp() if isinstance(value, datetime) else float(value)
            break
    tag = str(info.get("ETag") or info.get("etag") or info.get("md5Hash") or "")
    size = info.get("size", info.get("Size"))
    return Entry(name, int(size or 0), seconds, tag)


def look_at(address: Address, pauses: Sequence[float] = PAUSES_SECONDS) -> Entry:
    """Gives an object's entry, its name empty.

    Raises:
        OSError: It is not there, and as :func:`~.connection.attempt`.
    """
    system, path = _reach(address, pauses)
    return attempt(partial(_info, system, path), address, pauses)


def _info(system: Any, path: str) -> Entry:
    system.invalidate_cache()
    return _entry("", system.info(path))


def read(
    address: Address,
    start: int | None = None,
    stop: int | None = None,
    pauses: Sequence[float] = PAUSES_SECONDS,
    *,
    is_exact: bool = True,
) -> bytes:
    """Reads an object, or the bytes of it from ``start`` to before ``stop``, with one request.

    Args:
        address: Of the object.
        start: First byte; None: all of it.
        stop: After the last byte.
        pauses: As :func:`~.connection.attempt`.
        is_exact: Whether fewer bytes are an error, and not an object that ends before ``stop``.

    Raises:
        OSError: It is not there, and as :func:`~.connection.attempt`.
    """
    system, path = _reach(address, pauses)
    # One request: s3fs asks for the size first where it might divide the reading among several.
    more = {"max_concurrency": 1} if is_s3(address) else {}

    def work() -> bytes:
        data: bytes = system.cat_file(path, start=start, end=stop, **more)
        if is_exact and start is not None and stop is not None and len(data) != stop - start:
            raise StorageError(errno.EIO, f"{len(data)} bytes in place of {stop - start}")
        return data

    return attempt(work, address, pauses)


def write(data: bytes, address: Address, pauses: Sequence[float] = PAUSES_SECONDS) -> None:
    """Writes a small object, whole or not at all.

    Raises:
        OSError: As :func:`~.connection.attempt`.
    """
    system, path = _reach(address, pauses)
    if address.protocol in _APPEARS_WHOLE:
        attempt(lambda: system.pipe_file(path, data), address, pauses)
        return

    def work() -> None:
        other = f"{path}.{secrets.token_hex(4)}{UPLOADING_SUFFIX}"
        _make_parent(system, path)
        system.pipe_file(other, data)
        system.mv(other, path)

    attempt(work, address, pauses)


def create(data: bytes, address: Address) -> bool:
    """Makes a small object unless it is there; tells whether it has. Of two who try at once one succeeds, where the storage can.

    S3 (since 2024) and Google Cloud Storage can; of others fsspec's implementation decides, at worst by looking first.

    Raises:
        OSError: As :func:`~.connection.attempt`.
    """
    system, path = _reach(address, FIRST_PAUSES_SECONDS)

    def work() -> bool:
        try:
            _make_parent(system, path)
            system.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True

    return attempt(work, address, FIRST_PAUSES_SECONDS)


def upload(local: Path, address: Address) -> Entry:
    """Writes a file of this machine to an address, whole or not at all, and gives its entry.

    Raises:
        OSError: The file cannot be read; and as :func:`~.connection.attempt`.
    """
    system, path = _reach(address)
    size = local.stat().st_size

    def work() -> Entry:
        if address.protocol in _APPEARS_WHOLE:
            more: dict[str, Any] = {}
            if is_s3(address):
                part_bytes = max(PART_BYTES, -(-size // _MOST_PARTS))
                more = {"chunksize": part_bytes, "max_concurrency": PARTS_AT_ONCE}
            system.put_file(str(local), path, **more)
        else:
            other = f"{path}.{secrets.token_hex(4)}{UPLOADING_SUFFIX}"
            _make_parent(system, path)
            try:
                system.put_file(str(local), other)
                _require_size(system, other, size)
                system.mv(other, path)
            except BaseException:
                _remove_quietly(system, other)
                raise
        return _require_size(system, path, size)

    return attempt(work, address)


def _make_parent(system: Any, path: str) -> None:
    parent = path.rpartition("/")[0]
    if parent and not getattr(system, "async_impl", False):
        system.makedirs(parent, exist_ok=True)


def _require_size(system: Any, path: str, size: int) -> Entry:
    entry = _info(system, path)
    if entry.size != size:
        raise StorageError(errno.EIO, f"{entry.size} bytes arrived in place of {size}")
    return entry


def _remove_quietly(system: Any, path: str) -> None:
    try:
        system.rm_file(path)
    except Exception:
        # What is left has a name that nobody takes for a file of the run; the error that led here is the one to tell.
        return


def download(address: Address, local: Path, size: int, step_bytes: int = 32 << 20) -> None:
    """Writes an object of a known size into a file, some of it at a time.

    Raises:
        OSError: The disk refuses; and as :func:`~.connection.attempt`.
    """
    with local.open("wb") as file:
        for start in range(0, size, step_bytes):
            file.write(read(address, start, min(size, start + step_bytes)))


def remove(addresses: Sequence[Address]) -> None:
    """Removes objects, those that are not there too; several at a time, in no particular order.

    Raises:
        OSError: As :func:`~.connection.attempt`.
    """

    def one(address: Address) -> None:
        system, path = _reach(address)
        try:
            attempt(lambda: system.rm_file(path), address)
        except FileNotFoundError:
            return

    if len(addresses) == 1:
        one(addresses[0])
        return
    with ThreadPoolExecutor(_REMOVED_AT_ONCE, "remove") as pool:
        for _ in pool.map(one, addresses):
            pass


def unfinished_uploads(folder: Address) -> dict[str, list[str]]:
    """Gives the uploads to S3 below a folder that somebody has begun: name from the folder -> their numbers. They cost storage.

    Raises:
        OSError: As :func:`~.connection.attempt`.
    """
    if not is_s3(folder):
        return {}
    system, root = _reach(folder, FIRST_PAUSES_SECONDS)
    bucket, _, key = root.partition("/")
    prefix = f"{key}/" if key else ""
    found: dict[str, list[str]] = {}
    position: dict[str, str] = {}
    while True:
        page = attempt(
            partial(system.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **position),
            folder,
            FIRST_PAUSES_SECONDS,
        )
        for item in page.get("Uploads", ()):
            if item["Key"].startswith(prefix):
                found.setdefault(item["Key"][len(prefix) :], []).append(item["UploadId"])
        if not page.get("IsTruncated"):
            return found
        position = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def abandon(address: Address, uploads: Sequence[str]) -> None:
    """Ends uploads to S3 that nobody will finish, and frees what they hold.

    Raises:
        OSError: As :func:`~.connection.attempt`.
    """
    system, path = _reach(address)
    bucket, _, key = path.partition("/")
    for number in uploads:
        with suppress(FileNotFoundError):
            attempt(partial(system.call_s3, "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=number), address)
