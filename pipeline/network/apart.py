"""Reads a stranger's HDF5 file in a process of its own: what crashes, never ends or fills the memory does so there.

The HDF5 library writes over its own memory on some damaged files, and takes gigabytes or minutes on others. So this process
never opens them; it gets from a child, whose memory and time are limited, the arrays alone. It is no sandbox: the child may do
what its user may.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WeightsError
from .keras_h5 import read_keras
from .stored import StoredWeights, Wanted

# More than the child has before it reads. The largest published file has 575 MB, held twice while it is turned and checked;
# the rest is for files in double precision.
MEMORY_BYTES = 4 << 30
# And a second for each 5 MB, for slow disks.
SECONDS = 60.0
_BYTES_A_SECOND = 5_000_000

# The answer: JSON in this many bytes, then the arrays, float32, kernel and bias of each layer in the order of the question.
_HEAD_BYTES = 1 << 16
_FLOAT_BYTES = 4

# The search path is handed over, so that the child finds this package and the libraries where this process found them.
_CODE = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from pipeline.network.apart import main; main()"


def read_apart(path: Path, wanted: Wanted) -> StoredWeights:
    """Does what :func:`~pipeline.network.keras_h5.read_keras` does, in another process.

    Args:
        path: An HDF5 file.
        wanted: Which layers, of which shapes.

    Raises:
        WeightsError: It cannot be used, or reading it crashes, takes more than :data:`MEMORY_BYTES` or does not end.
    """
    if not sys.executable:  # Python inside another program.
        return read_keras(path, wanted)
    seconds = SECONDS + path.stat().st_size / _BYTES_A_SECOND
    command = [sys.executable, "-c", _CODE, json.dumps([str(place) for place in sys.path])]
    question = json.dumps({"path": os.fsencode(path.absolute()).hex(), "wanted": asdict(wanted), "memory_bytes": MEMORY_BYTES})
    # One thread: libraries for linear algebra reserve address space for each, which is what the limit counts.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, input=question.encode(), capture_output=True, timeout=seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise wanted.refusal(path, "is a damaged HDF5 file: reading it does not end", f"nothing in {seconds:.0f} s") from error
    try:
        head = json.loads(done.stdout[:_HEAD_BYTES])
    except ValueError as error:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise wanted.refusal(path, "is a damaged HDF5 file: reading it crashes the HDF5 library", ended) from error
    if "refusal" in head:
        raise WeightsError(head["refusal"])
    return _unpack(done.stdout, wanted, head)


def _unpack(answer: bytes, wanted: Wanted, head: dict[str, Any]) -> StoredWeights:
    kernels: dict[str, NDArray[np.float32]] = {}
    biases: dict[str, NDArray[np.float32]] = {}
    place = _HEAD_BYTES
    for name, shape in wanted.shapes.items():
        for arrays, sides in ((kernels, shape), (biases, shape[3:])):
            count = int(np.prod(sides))
            arrays[name] = np.frombuffer(answer, np.float32, count, place).reshape(sides)
            place += count * _FLOAT_BYTES
    assert place == len(answer), (place, len(answer))
    return StoredWeights(kernels, biases, np.array(head["mean_pixel"], np.float64), head["pool_padding"], head["layout"])


def main() -> None:
    """Reads the file that stdin asks for; gives its arrays, or the refusal, on stdout."""
    question = json.load(sys.stdin)
    _limit(question["memory_bytes"])
    path = Path(os.fsdecode(bytes.fromhex(question["path"])))
    shapes = {name: tuple(shape) for name, shape in question["wanted"].pop("shapes").items()}
    wanted = Wanted(shapes=shapes, **question["wanted"])
    out = sys.stdout.buffer
    try:
        stored = read_keras(path, wanted)
    except WeightsError as error:
        out.write(json.dumps({"refusal": str(error)}).encode().ljust(_HEAD_BYTES))
    else:
        head = {"mean_pixel": stored.mean_pixel.tolist(), "pool_padding": stored.pool_padding, "layout": stored.layout}
        out.write(json.dumps(head).encode().ljust(_HEAD_BYTES))
        for name in shapes:
            out.write(stored.kernels[name].data)
            out.write(stored.biases[name].data)
    out.flush()
    # At once: HDF5 may crash when it tidies up, which is no fault of what was read.
    os._exit(0)


def _limit(memory_bytes: int) -> None:
    """Limits the memory of this process, where the system can: Linux and most other Unix systems."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory_bytes,) * 2)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
