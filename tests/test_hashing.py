"""The SHA-256 of files, held against Python's own of all their bytes."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.store.hashing import BUFFER_BYTES, file_digest


@pytest.mark.parametrize("size_bytes", [0, 1, 64, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 3 * BUFFER_BYTES + 17])
def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path, size_bytes: int) -> None:
    data = np.random.default_rng(size_bytes).bytes(size_bytes)
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_threads_that_hash_at_the_same_time_get_each_their_own(tmp_path: Path) -> None:
    contents = [np.random.default_rng(number).bytes(BUFFER_BYTES + number) for number in range(6)]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(file_digest, paths)) == [hashlib.sha256(content).hexdigest() for content in contents]


def test_a_digest_that_is_stopped_reads_no_further(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10)
    stop = threading.Event()
    stop.set()
    assert file_digest(tmp_path / "file", stop) != hashlib.sha256(b"x" * 10).hexdigest()


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "none")
