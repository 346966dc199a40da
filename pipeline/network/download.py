"""Fetches one file over HTTP: whole and with the right checksum, or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import os
import secrets
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from ..errors import WeightsError
from .known_files import KnownFile

TIMEOUT_SECONDS = 30.0
ABANDONED_SECONDS = 24 * 3600
_BLOCK_BYTES = 1 << 18
# For files of unknown size; the largest published one has 575 MB.
_LARGEST_BYTES = 1_500_000_000


class _TransferError(Exception):
    """Words for what went wrong on the way."""


def download_file(
    known: KnownFile, address: str, target: Path, *, progress: bool, timeout_seconds: float = TIMEOUT_SECONDS
) -> None:
    """Downloads a published file. The final name appears only when the content is whole, checked and on the disk.

    Several processes may download the same file at a time: each writes a file of its own, and the last to finish wins.

    Args:
        known: Which file; its size and MD5 are checked.
        address: Where it is.
        target: Where to put it; the folder is made. An existing file is replaced.
        progress: Whether to show a bar on stderr.
        timeout_seconds: How long to wait for the server to answer, and for each further piece.

    Raises:
        WeightsError: No network, no such file, a cut connection, a wrong checksum, or a folder that cannot be written.
    """
    remedy = f"Put that file into {target.parent} by hand, or run again with network.weights=random for seeded untrained weights."
    partial = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent, f"{glob.escape(target.name)}.*.partial")
        # Not mkstemp: its files are readable by their owner alone.
        file = partial.open("xb")
    except OSError as error:
        raise WeightsError(
            f"network.weights: cannot write {target}, got {error}. Expected a folder that can be written. "
            f"Free space or change its rights; the file is {known.words} at {address}."
        ) from error
    try:
        with file:
            _transfer(known, address, file, progress, timeout_seconds)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except _TransferError as error:
        raise WeightsError(
            f"network.weights: cannot download {address}, got {error}. Expected {known.words}. {remedy}"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"network.weights: cannot write {target}, got {error}. Expected room for {known.words}. "
            f"Free space or change the folder's rights; the file is at {address}."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Removes what processes that were killed have left unfinished: files to which nothing was written for a day.

    Not sooner, and not by asking whether the process lives: the folder may be shared with other machines.

    Args:
        folder: Where they are.
        pattern: Of their names.
    """
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def _transfer(known: KnownFile, address: str, file: BinaryIO, progress: bool, timeout_seconds: float) -> None:
    # Late, as everything here: most runs find their weights on the disk.
    from tqdm import tqdm

    request = urllib.request.Request(address, headers={"User-Agent": "deep-feature-pipeline"})
    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    limit = known.size_bytes or _LARGEST_BYTES
    try:
        response = urllib.request.urlopen(request, timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        raise _TransferError(f"HTTP status {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _TransferError(_reason(error, timeout_seconds)) from error
    with response, tqdm(total=known.size_bytes, desc=known.name, unit="B", unit_scale=True, disable=not progress) as bar:
        announced = response.headers.get("Content-Length") or ""
        while True:
            try:
                block = response.read1(_BLOCK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _TransferError(f"{_reason(error, timeout_seconds)} after {received:,} bytes") from error
            if not block:
                break
            received += len(block)
            # A server that sends without end must not fill the disk.
            if received > limit:
                raise _TransferError(f"more than {limit:,} bytes")
            digest.update(block)
            file.write(block)
            bar.update(len(block))
    # The standard library does not treat a connection that ends early as an error when read in blocks.
    if announced.isdecimal() and received < int(announced):
        raise _TransferError(f"a connection cut after {received:,} of {int(announced):,} bytes")
    if digest.hexdigest() != known.md5:
        raise _TransferError(f"another file: {received:,} bytes, MD5 {digest.hexdigest()}")


def _reason(error: Exception, timeout_seconds: float) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer for {timeout_seconds:g} seconds"
    return " ".join(str(cause).split()) or type(cause).__name__
