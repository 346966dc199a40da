"""Rows of a run as one array, in memory or in a file that is mapped."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OptionError, StoreError
from ..machine import available_bytes
from .batches import Batches
from .examples import Examples

# Of a batch on its way to a file.
STEP_BYTES = 32 << 20


def to_numpy(examples: Examples, out: str | os.PathLike[str] | None = None) -> Any:
    """Gives all rows as one array, and labels where there are some.

    Args:
        examples: Of one shape.
        out: A ``.npy`` file of one layer to write to; what is given is mapped from it, read-only, and memory does not limit it.
            A file of that name is replaced once all is written (beside it, as ``.partial``), and kept where that fails.

    Returns:
        (n, h, w, c), or layer -> such; with labels (features, labels).

    Raises:
        StoreError: It does not fit into memory; images have differing shapes; the file cannot be written.
    """
    if examples.is_native:
        raise StoreError(
            f"{examples.run.path}: images of differing shapes make no array, got native size. Expected one shape. "
            f"Read image by image, or extract with a fixed data.size."
        )
    needed, there = len(examples) * examples.row_bytes, available_bytes()
    if out is not None:
        return _to_file(examples, Path(out))
    if there is not None and needed > there:
        raise StoreError(
            f"{examples.run.path}: does not fit into memory, got {needed / 1e9:.3g} GB for {len(examples)} rows. "
            f"Expected at most the {there / 1e9:.3g} GB that are free. Read batches, choose rows, or give out='features.npy'."
        )
    features, labels = examples.read(np.arange(len(examples)))
    return features if labels is None else (features, labels)


def _to_file(examples: Examples, path: Path) -> Any:
    shapes = examples.shapes()
    if len(shapes) != 1:
        raise OptionError(
            f"out: a file holds one layer, got {len(shapes)}: {', '.join(shapes)}. Expected one. Call it once a layer."
        )
    ((name, shape),) = shapes.items()
    step = max(1, min(len(examples), STEP_BYTES // examples.row_bytes))
    try:
        _require_replaceable(path)
        # A link stays one, as if its file had been written over.
        target = path.resolve()
        partial = target.with_name(target.name + ".partial")
        file = partial.open("wb")
        try:
            # Written, not mapped: on a disk that is full, writing to a mapped file ends the process.
            with file:
                descr = np.lib.format.dtype_to_descr(examples.dtype(name))
                header = {"descr": descr, "fortran_order": False, "shape": (len(examples), *shape)}
                np.lib.format.write_array_header_2_0(file, header)
                for features, _ in Batches(examples, step):
                    file.write(examples.named(features)[name].data)
            # Only now: an earlier array may still be mapped from a file of this name, and what stands there is whole.
            partial.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written, got {error.strerror or error}. Expected room for "
            f"{len(examples) * examples.row_bytes / 1e9:.3g} GB and a folder that may be written to."
        ) from error
    mapped = examples.structure({name: np.load(path, mmap_mode="r", allow_pickle=False)})
    return mapped if examples.labels is None else (mapped, examples.labels)


def _require_replaceable(path: Path) -> None:
    """Refuses what a file must not take the place of: a folder, a device, a file that may not be written to."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "something that is no regular file")
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
