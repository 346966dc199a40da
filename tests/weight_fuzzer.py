"""Spoils weight files and reads them, in a process that may crash: ``python -m tests.weight_fuzzer SEED FIRST STOP``.

Says on stdout, a line each: the number of the mutation, ``loaded`` or ``refused`` or ``wrong``, the message.
"""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py  # noqa: F401 (loaded before memory is limited)
import numpy as np
import pytest

from pipeline.errors import WeightsError
from pipeline.network.known_weights import Wanted
from pipeline.network.weights import read_file

from .weight_files import shrink_networks

# The seeds have some tens of kilobytes; a file that takes more than this does so for nothing.
MEMORY_BYTES = 1 << 30
SECONDS = 20.0
# What stands in the place of a length, a size, an offset or a type.
_ODD_NUMBERS = (0, 1, 2, 7, 8, 15, 16, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def main(seed: Path, first: int, stop: int) -> None:
    shrink_networks(pytest.MonkeyPatch())
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    content, wanted = seed.read_bytes(), Wanted("vgg19", False)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, stop):
            # A new name each time: HDF5 takes a name that it has open for the same file.
            path = Path(folder, str(number))
            path.write_bytes(spoil(content, number))
            print(number, end=" ", flush=True)
            # Kills the process: a signal's handler would wait for C code to return, which may never be.
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            words = _read(path, wanted)
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(words, flush=True)
            path.unlink()


def _read(path: Path, wanted: Wanted) -> str:
    try:
        stored = read_file(path, wanted)
    except WeightsError as error:
        message = str(error)
        right = message.startswith("network.weights: ") and message.isprintable() and len(message) < 3000
        return f"refused {message}" if right and "Expected weights of vgg19" in message else f"wrong line {message!r}"
    except BaseException as error:
        return f"wrong error {error!r}"
    shapes = {name: kernel.shape for name, kernel in stored.kernels.items()}
    biases = {name: bias.shape for name, bias in stored.biases.items()}
    right = shapes == dict(wanted.shapes) and biases == {name: shape[3:] for name, shape in wanted.shapes.items()}
    return "loaded" if right else f"wrong shapes {shapes} {biases}"


def spoil(content: bytes, number: int) -> bytes:
    """Gives a spoilt copy of a weights file; the same number gives the same bytes."""
    random = np.random.Generator(np.random.PCG64(number))
    for _ in range(int(random.choice([1, 1, 1, 2, 5]))):
        way = _WAYS[int(random.integers(len(_WAYS)))]
        if len(content) > 16:
            content = way(content, random)
    return content


def _place(content: bytes, random: np.random.Generator) -> int:
    # Half of the time near the beginning, where sizes, types and names are closer together than the numbers are.
    end = len(content) if random.random() < 0.5 else min(len(content), 4096)
    return int(random.integers(end))


def _flip(content: bytes, random: np.random.Generator) -> bytes:
    spoilt = bytearray(content)
    for _ in range(int(random.choice([1, 1, 4, 32]))):
        spoilt[_place(content, random)] ^= 1 << int(random.integers(8))
    return bytes(spoilt)


def _splice(content: bytes, random: np.random.Generator) -> bytes:
    """Puts some bytes, or none, in the place of some others, or none."""
    place, gone, new = _place(content, random), int(random.integers(64)), int(random.integers(64))
    return content[:place] + random.bytes(new) + content[place + gone :]


def _overwrite(content: bytes, random: np.random.Generator) -> bytes:
    place, count = _place(content, random), int(random.integers(1, 64))
    return content[:place] + random.bytes(len(content[place : place + count])) + content[place + count :]


def _cut(content: bytes, random: np.random.Generator) -> bytes:
    return content[: _place(content, random)]


def _repeat(content: bytes, random: np.random.Generator) -> bytes:
    place, count = _place(content, random), int(random.integers(8, 2048))
    return content[: place + count] + content[place:]


def _lie(content: bytes, random: np.random.Generator) -> bytes:
    """Puts an odd number of 1, 2, 4 or 8 bytes where a length or an address may stand, or adds a little to what is there."""
    size = int(random.choice([1, 2, 4, 4, 8]))
    place = _place(content, random) // size * size
    number = int(random.choice(np.array(_ODD_NUMBERS, dtype=np.uint64)))
    if random.random() < 0.4:
        number = int.from_bytes(content[place : place + size], "little") + int(random.integers(-9, 10))
    return content[:place] + (number % (1 << 8 * size)).to_bytes(size, "little") + content[place + size :]


_WAYS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    _flip, _flip, _splice, _splice, _overwrite, _cut, _repeat, _lie, _lie, _lie, _lie, _lie,
)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
