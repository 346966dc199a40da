"""Reads spoilt weight files one after the other, in a process that may crash: ``python -m tests.weight_fuzzer SEED FIRST STOP``.

Says on stdout, a line each: the number of the mutation, ``loaded`` or ``refused`` or ``wrong``, seconds, the message.
"""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import h5py  # noqa: F401 (loaded before memory is limited)
import pytest

from pipeline.errors import WeightsError
from pipeline.network.known_weights import Wanted
from pipeline.network.weights import read_file

from .weight_files import shrink_networks
from .weight_mutations import mutate

# The seeds have some tens of kilobytes; a file that takes more than this does so for nothing.
MEMORY_BYTES = 1 << 30
SECONDS = 20.0


def main(seed: Path, first: int, stop: int) -> None:
    shrink_networks(pytest.MonkeyPatch())
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kind, content, wanted = seed.suffix[1:], seed.read_bytes(), Wanted("vgg19", False)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, stop):
            # A new name each time: HDF5 takes a name that it has open for the same file.
            path = Path(folder, f"{number}.{kind}")
            path.write_bytes(mutate(content, number, kind))
            print(number, end=" ", flush=True)
            # Kills the process: a signal's handler would wait for C code to return, which may never be.
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            began = time.monotonic()
            words = _read(path, wanted)
            seconds = time.monotonic() - began
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(words.split(" ", 1)[0], f"{seconds:.2f}", words.partition(" ")[2], flush=True)
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
