"""``python -m pipeline.export``: features and table of a run as NumPy, Parquet or Zarr files, exactly. Loads no TensorFlow."""

from __future__ import annotations

import csv
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import cli
from .errors import OptionError, StoreError
from .records import OK

if TYPE_CHECKING:
    from .config import ExportOptions
    from .store.reader import Layer, Run

# Of a block of rows: a chunk of Zarr, a row group of Parquet.
BLOCK_BYTES = 16 << 20
TABLE = "images.csv"

Table: TypeAlias = Mapping[str, NDArray[Any]]
Rows: TypeAlias = NDArray[np.int64]


def export(options: ExportOptions) -> None:
    """Write what was chosen, and say where.

    Raises:
        OptionError: A layer is not stored, or not such as the format holds; a package is missing.
        StoreError: The run cannot be read, or nothing is left of it; there is a file or folder of the target's name.
        OSError: The target cannot be written.
    """
    from .formatting import counted
    from .store.disk import replacing
    from .store.reader import beside, choose_layers, open_run

    write, end, package, least_version = FORMATS[options.format]
    _require(options.format, package, least_version)
    with open_run(options.run) as run:
        layers = [run[name] for name in choose_layers(run.layers, options.layers)]
        for layer in layers:
            _refuse(layer, options)
        rows = np.flatnonzero(run.images["status"] == OK) if options.failed == "drop" else np.arange(len(run))
        if not len(rows):
            raise StoreError(f"{run.path}: all {len(run)} images failed, got none to write. Expected one. Use failed=nan.")
        table = {name: column[rows] for name, column in run.images.items()}
        folder, name = beside(run.path)
        target = options.file or folder / f"{name}{end}"
        if target.exists():
            raise StoreError(
                f"{target}: it exists, got another file or folder. Expected none. Remove it, or name another file=..."
            )
        with replacing(target) as partial:
            write(partial, run, layers, rows, table)
    print(f"written: {target} ({counted(len(rows), 'row')} of {', '.join(layer.name for layer in layers)})", flush=True)


def _require(format: str, package: str, least: int) -> None:
    found = "none"
    with suppress(ImportError):
        found = importlib.import_module(package).__version__
    if found == "none" or int(found.split(".")[0]) < least:
        raise OptionError(
            f"format: {format} needs the package {package}, got {found}. Expected version {least} or newer. "
            f"Run `pip install 'deep-feature-pipeline[{format}]'`."
        )


def _refuse(layer: Layer, options: ExportOptions) -> None:
    """Refuse a layer that the format cannot hold."""
    shape, expected = layer.row_shape, "vectors" if options.format == "parquet" else "one size, or vectors"
    # The shape of fc6 is (1, 1, c).
    if shape is None or (options.format == "parquet" and math.prod(shape[:-1]) > 1):
        got = "maps of native size" if shape is None else f"maps of {' x '.join(map(str, shape))}"
        reduce = f"python -m pipeline.reduce run={options.run} layers=[{layer.name}:avg]"
        raise OptionError(f"layers: {options.format} cannot hold {layer.name}, got {got}. Expected {expected}. First {reduce}")


def _block_rows(layers: Sequence[Layer]) -> int:
    return max(1, BLOCK_BYTES // sum(math.prod(layer.row_shape or ()) * layer.dtype.itemsize for layer in layers))


def _blocks(run: Run, layers: Sequence[Layer], rows: Rows) -> Iterator[tuple[slice, dict[str, NDArray[Any]]]]:
    """Yield block after block: which of the rows, and layer -> values."""
    step = _block_rows(layers)
    batches = run.batches([layer.name for layer in layers], step, where=rows, failed=True)
    for first, (values, _) in zip(range(0, len(rows), step), batches, strict=True):
        yield slice(first, first + step), values


def _write_npy(path: Path, run: Run, layers: Sequence[Layer], rows: Rows, table: Table) -> None:
    """Write ``<layer>.npy`` of each layer, (n, h, w, c) or (n, d), and the table beside them."""
    path.mkdir()
    for layer in layers:
        shape = (len(rows), *(layer.row_shape or ()))
        with (path / f"{layer.name}.npy").open("wb") as array:
            descr = np.lib.format.dtype_to_descr(layer.dtype)
            np.lib.format.write_array_header_2_0(array, {"descr": descr, "fortran_order": False, "shape": shape})
            for _, values in _blocks(run, [layer], rows):
                array.write(values[layer.name].data)
    with (path / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))


def _write_parquet(path: Path, run: Run, layers: Sequence[Layer], rows: Rows, table: Table) -> None:
    """Write a column of vectors a layer, fixed-size lists, and all of the table; a block of rows is a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: pa.array(values, None if values.dtype != object else pa.string()) for name, values in table.items()}
    if taken := columns.keys() & {layer.name for layer in layers}:
        raise OptionError(f"layers: the table has a column of this name, got {taken.pop()}. Expected none. Use format=zarr.")
    types = {layer.name: pa.list_(pa.from_numpy_dtype(layer.dtype), layer.channels) for layer in layers}
    schema = pa.schema({**{name: column.type for name, column in columns.items()}, **types})
    with pq.ParquetWriter(path, schema, use_dictionary=[*columns]) as writer:
        for where, values in _blocks(run, layers, rows):
            parts = [column[where] for column in columns.values()]
            for name, kind in types.items():
                parts.append(pa.FixedSizeListArray.from_arrays(pa.array(values[name].reshape(-1)), type=kind))
            writer.write_table(pa.table(parts, schema=schema))


def _write_zarr(path: Path, run: Run, layers: Sequence[Layer], rows: Rows, table: Table) -> None:
    """Write the tree of the run: ``features/<layer>``, a chunk a block of rows, and ``images/<column>``."""
    import zarr

    from .store.format import AXES

    root = zarr.open_group(path, mode="w", zarr_format=3)
    with warnings.catch_warnings():
        # Of texts, whose type Zarr's specification has not yet.
        warnings.simplefilter("ignore")
        for name, values in table.items():
            kind = str if values.dtype == object else values.dtype
            column = root.create_array(f"images/{name}", shape=values.shape, dtype=kind, dimension_names=["image"])
            column[:] = values
    for layer in layers:
        shape = layer.row_shape or ()
        array = root.create_array(
            f"features/{layer.name}",
            shape=(len(rows), *shape),
            chunks=(min(len(rows), _block_rows([layer])), *shape),
            dtype=layer.dtype,
            fill_value=np.nan,
            dimension_names=["image", *(f"{axis}_{layer.name}" for axis in AXES[len(shape)][1:])],
        )
        for where, of_layers in _blocks(run, [layer], rows):
            array[where] = of_layers[layer.name]


# Format -> what writes it, the end of the usual name, the package that it needs, and from which version on.
FORMATS: dict[str, tuple[Callable[..., None], str, str, int]] = {
    "npy": (_write_npy, "-npy", "numpy", 2),
    "parquet": (_write_parquet, ".parquet", "pyarrow", 17),
    "zarr": (_write_zarr, ".zarr", "zarr", 3),
}


main = partial(cli.start, "pipeline.export", export, when_stopped="nothing was written. Run the command again.")

if __name__ == "__main__":
    main()
