"""Keeps the layers of a large file that were asked for, so that the second start does not read half a gigabyte again.

One NumPy archive for the convolutions and one for the classifier, without pickle, under a name made of the file's path, size and
time of change. Content is checked by digest at each load; whatever is wrong with it, the file itself is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .download import remove_abandoned
from .stored import StoredWeights, Wanted

# To be raised when what is stored, or how a file is understood, changes.
_VERSION = 1


def default_cache_folder() -> Path | None:
    """Gives the system's folder for caches: ``$XDG_CACHE_HOME``, ``%LOCALAPPDATA%`` or ``~/.cache``; None without a home."""
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    # Source: XDG Base Directory Specification: relative paths are to be ignored.
    given = Path(os.environ.get(variable, ""))
    if not given.is_absolute():
        try:
            given = Path.home() / ".cache"
        except RuntimeError:
            return None
    return given / "deep-feature-pipeline"


def content_digest(
    kernels: Mapping[str, NDArray[np.float32]],
    biases: Mapping[str, NDArray[np.float32]],
    mean_pixel: NDArray[np.float64],
    names: Sequence[str],
) -> str:
    """Gives SHA-256, hex, of arrays, whichever file they came from.

    Args:
        kernels: Layer -> float32 kernel.
        biases: Layer -> float32 bias.
        mean_pixel: (3,) float64.
        names: The layers to take, in this order.
    """
    digest = hashlib.sha256()
    for name in names:
        for kind, values in (("kernel", kernels[name]), ("bias", biases[name])):
            digest.update(json.dumps([name, kind, list(values.shape)]).encode())
            digest.update(np.ascontiguousarray(values, dtype="<f4").data)
    digest.update(np.ascontiguousarray(mean_pixel, dtype="<f8").data)
    return digest.hexdigest()


def load_cached(folder: Path, source: Path, wanted: Wanted) -> StoredWeights | None:
    """Gives what was kept of a file, or None: nothing kept, the file has changed since, or what was kept is damaged."""
    kernels: dict[str, NDArray[np.float32]] = {}
    biases: dict[str, NDArray[np.float32]] = {}
    for part, names in _parts(wanted):
        try:
            mean_pixel, facts = _load_part(_place(folder, source, part), wanted, names, kernels, biases)
        # NumPy and zipfile raise many kinds on damaged archives; all mean the same here.
        except Exception:
            return None
    return StoredWeights(kernels, biases, mean_pixel, facts["pool_padding"], facts["layout"])


def save_cached(folder: Path, source: Path, wanted: Wanted, stored: StoredWeights, log: Callable[[str], None]) -> None:
    """Keeps what was read of a file, and drops what was kept of its former states. A failure is logged, no more."""
    for part, names in _parts(wanted):
        place = _place(folder, source, part)
        partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
        facts = {
            "pool_padding": stored.pool_padding,
            "layout": stored.layout,
        }
        facts["digest"] = _part_digest(facts, content_digest(stored.kernels, stored.biases, stored.mean_pixel, names))
        arrays: dict[str, NDArray[np.generic]] = {f"{name}.kernel": stored.kernels[name] for name in names}
        arrays |= {f"{name}.bias": stored.biases[name] for name in names}
        arrays["mean_pixel"] = stored.mean_pixel
        arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # the stubs take the names for other arguments
                file.flush()
                os.fsync(file.fileno())
            partial.replace(place)
            for former in folder.glob(f"{place.name.split('-')[0]}-*-{part}.npz"):
                if former != place:
                    former.unlink(missing_ok=True)
            remove_abandoned(folder, "*.npz.*.partial")
        except OSError as error:
            log(f"weights cache: {place} is not written: {error}; the next start reads {source} again")
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _parts(wanted: Wanted) -> list[tuple[str, list[str]]]:
    convolutions = [name for name in wanted.shapes if name.startswith("conv")]
    parts = [("convolutions", convolutions)]
    if wanted.classifier:
        parts.append(("classifier", [name for name in wanted.shapes if name not in convolutions]))
    return parts


def _place(folder: Path, source: Path, part: str) -> Path:
    state = source.stat()
    where = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:24]
    when = hashlib.sha256(f"{_VERSION} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    return folder / f"{where}-{when}-{part}.npz"


def _load_part(
    place: Path,
    wanted: Wanted,
    names: list[str],
    kernels: dict[str, NDArray[np.float32]],
    biases: dict[str, NDArray[np.float32]],
) -> tuple[NDArray[np.float64], dict[str, str]]:
    """Adds the arrays of one part; raises anything where it is not exactly what was kept."""
    needed = sum(4 * (int(np.prod(wanted.shapes[name])) + wanted.shapes[name][3]) for name in names)
    with zipfile.ZipFile(place) as archive:
        # Stored archives only, of about the size that these layers have: nothing can unpack to more than the file.
        if sum(member.file_size for member in archive.infolist()) > needed + 4096 * (2 * len(names) + 2):
            raise ValueError("too large")
    with np.load(place, allow_pickle=False) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        mean_pixel = arrays["mean_pixel"]
        for name in names:
            kernels[name], biases[name] = arrays[f"{name}.kernel"], arrays[f"{name}.bias"]
            if (
                kernels[name].shape != wanted.shapes[name]
                or kernels[name].dtype != np.float32
                or biases[name].dtype != np.float32
            ):
                raise ValueError("other arrays")
    if facts["digest"] != _part_digest(facts, content_digest(kernels, biases, mean_pixel, names)):
        raise ValueError("another digest")
    return mean_pixel, facts


def _part_digest(facts: Mapping[str, str], content: str) -> str:
    return hashlib.sha256("\n".join((facts["pool_padding"], facts["layout"], content)).encode()).hexdigest()
