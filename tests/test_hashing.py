"""The SHA-256 of files, alone and two at a time, held against Python's own."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import hashing
from pipeline.store.hashing import file_digest, written_digest
from pipeline.store.sha256_code import ORDER, ROUNDS, START, has_instructions
from pipeline.vector_code import this_processor

PAIRS = hashing._pairs
needs_instructions = pytest.mark.skipif(not has_instructions(this_processor()), reason="this processor has none for SHA-256")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hashing, "SMALL_BYTES", 0)
    monkeypatch.setattr(hashing, "PIECE_BYTES", 1 << 12)
    yield
    assert not PAIRS._alone


def expected(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_constants_are_those_of_the_standard() -> None:
    """FIPS 180-4: the first 32 bits of the fractions of the square and cube roots of the first primes."""
    primes = [number for number in range(2, 312) if all(number % other for other in range(2, number))]

    def fraction(prime: int, root: int) -> int:
        # The root of prime * 2**(32 * root), in whole numbers.
        low, high = 0, 1 << 40
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**root <= prime << (32 * root) else (low, middle - 1)
        return low & 0xFFFFFFFF

    assert tuple(fraction(prime, 3) for prime in primes) == ROUNDS
    assert tuple(fraction(prime, 2) for prime in primes[:8]) == START
    assert sorted(ORDER) == list(range(8))


def in_a_thread(path: Path) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(written_digest, path).result()


@pytest.mark.parametrize("size_bytes", [0, 1, 54, 55, 56, 63, 64, 65, 119, 120, 4095, 4096, 4097, 4160, 8192, 20_000])
@pytest.mark.parametrize("is_fast", [True, False])
def test_a_file_has_the_digest_that_python_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int, is_fast: bool
) -> None:
    if not is_fast:
        monkeypatch.setattr(hashing, "pairs_pay", lambda: False)
    data = np.random.default_rng(size_bytes).bytes(size_bytes)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert in_a_thread(path) == written_digest(path) == file_digest(path) == expected(data)


def test_small_files_and_those_of_the_main_thread_are_hashed_by_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "SMALL_BYTES", 100)
    monkeypatch.setattr(hashing, "_Hashed", None)
    for size in (99, 101):
        (tmp_path / "file").write_bytes(b"x" * size)
        assert written_digest(tmp_path / "file") == expected(b"x" * size)
    (tmp_path / "file").write_bytes(b"x" * 99)
    assert in_a_thread(tmp_path / "file") == expected(b"x" * 99)


@given(sizes=st.lists(st.integers(0, 30_000), min_size=2, max_size=9), threads=st.integers(2, 6), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_threads_that_hash_at_the_same_time_get_each_their_own(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], threads: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(seed)
    contents = [random.bytes(size) for size in sizes]
    paths = [folder / str(number) for number in range(len(sizes))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(written_digest, paths)) == [expected(content) for content in contents]


class Slow:
    """A file that is read as the test says, a piece at a time."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0
        self.go_on = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)
        self.failing: BaseException | None = None

    def readinto(self, memory: memoryview) -> int:
        self.asked.release()
        self.go_on.acquire()
        if self.failing is not None:
            raise self.failing
        part = self.data[self.place : self.place + len(memory)]
        memory[: len(part)] = part
        self.place += len(part)
        return len(part)


class Work(threading.Thread):
    """A thread that hashes a file."""

    def __init__(self, file: Slow) -> None:
        super().__init__(daemon=True)
        self.file = file
        self.hashed = hashing._Hashed(file)  # type: ignore[arg-type]
        self.digest: Any = "none"
        self.start()

    def run(self) -> None:
        try:
            self.digest = hashing._pairs.digest(self.hashed)
        except BaseException as error:
            self.digest = error


def wait_for_guest() -> None:
    """Waits until the one file that was alone has a guest."""
    limit = time.monotonic() + 20
    while hashing._pairs._alone:
        assert time.monotonic() < limit
        time.sleep(0.001)


def pair(first: bytes, second: bytes) -> tuple[Work, Work]:
    """Gives a thread at its first read, and one that waits for it."""
    host = Work(Slow(first))
    assert host.file.asked.acquire(timeout=20)
    guest = Work(Slow(second))
    wait_for_guest()
    return host, guest


FIRST, SECOND = (np.random.default_rng(seed).bytes(3 * (1 << 12) + 100) for seed in (1, 2))


def let_go(*works: Work, times: int = 9) -> None:
    for work in works:
        work.file.go_on.release(times)
    for work in works:
        work.join(20)
        assert not work.is_alive()


@needs_instructions
def test_a_second_file_is_hashed_by_the_thread_of_the_first() -> None:
    host, guest = pair(FIRST, SECOND)
    host.file.go_on.release(2)
    assert guest.file.asked.acquire(timeout=20)  # Its own thread waits.
    let_go(host, guest)
    assert (host.digest, guest.digest) == (expected(FIRST), expected(SECOND))


@needs_instructions
@pytest.mark.parametrize("which", ["host", "guest"])
def test_one_that_cannot_be_read_does_not_disturb_the_other(which: str) -> None:
    host, guest = pair(FIRST, SECOND)
    host.file.go_on.release(2)
    assert guest.file.asked.acquire(timeout=20)
    broken, whole, data = (host, guest, SECOND) if which == "host" else (guest, host, FIRST)
    broken.file.failing = OSError("gone")
    let_go(host, guest)
    assert isinstance(broken.digest, OSError)
    assert whole.digest == expected(data)


@needs_instructions
def test_what_goes_wrong_while_two_are_hashed_is_told_to_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows then which blocks have been taken in."""
    code = dict(hashing.compiled_sha256()._functions)

    def fail(*arguments: int) -> None:
        raise MemoryError

    monkeypatch.setattr(hashing, "compiled_sha256", lambda: {**code, "sha256_two": fail})
    host, guest = pair(FIRST, SECOND)
    let_go(host, guest)
    assert isinstance(host.digest, MemoryError)
    assert isinstance(guest.digest, MemoryError)


@needs_instructions
def test_a_guest_that_comes_when_its_host_is_about_to_leave_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    leave, leaving, go_on = PAIRS._leave, threading.Event(), threading.Event()

    def wait_and_leave(own: hashing._Hashed) -> None:
        if own is host.hashed:
            leaving.set()
            assert go_on.wait(20)
        leave(own)

    host = Work(Slow(FIRST))
    monkeypatch.setattr(PAIRS, "_leave", wait_and_leave)
    host.file.go_on.release(9)
    assert leaving.wait(20)
    guest = Work(Slow(SECOND))
    wait_for_guest()
    go_on.set()
    let_go(host, guest)
    assert (host.digest, guest.digest) == (expected(FIRST), expected(SECOND))


@needs_instructions
def test_many_short_files_of_many_threads_come_to_an_end(tmp_path: Path) -> None:
    contents = [np.random.default_rng(number).bytes(4096 * number) for number in range(1, 4)]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    wanted = [expected(content) for content in contents]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            digests = list(pool.map(lambda number: written_digest(tmp_path / str(number % 3)), range(3000), timeout=60))
    finally:
        sys.setswitchinterval(before)
    assert digests == wanted * 1000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@needs_instructions
def test_a_child_that_is_forked_meanwhile_waits_for_nobody() -> None:
    host = Work(Slow(FIRST))
    assert host.file.asked.acquire(timeout=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os._exit(len(PAIRS._alone))
    _, status = os.waitpid(child, 0)
    assert status == 0
    let_go(host)
    assert host.digest == expected(FIRST)


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    for digest in (file_digest, written_digest, in_a_thread):
        with pytest.raises(FileNotFoundError):
            digest(tmp_path / "none")
