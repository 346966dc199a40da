"""A Parquet file of paths, read into columns of text; the way to a manifest that begins with such a list."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, OptionError
from .lists import MAX_LIST_BYTES, MOST_COLUMNS, require_columns, require_paths
from .names import cell_text, quoted_names

# With these endings.
PARQUET_SUFFIXES = (".parquet", ".pq")
# Read at a time: enough to be quick, little beside what is kept of them.
_ROWS_AT_ONCE = 65536
# As RUBBISH of pipeline.images.names, in the words of the library.
_RUBBISH = r"[\x00-\x08\x0b\x0c\x0e-\x1f]"


def read_parquet_list(path: Path, log: Callable[[str], None]) -> dict[str, list[str]]:
    """Gives the columns of a list, ``path`` among them, as text.

    Texts are taken as they stand; numbers, dates and times as Arrow writes them (3, 0.1, 2024-01-02 03:04:05.000000; a whole
    number that is stored as a float without its point), truth as true and false, what is missing as "". Columns of lists,
    records and bytes have no one text, and are left out.

    Args:
        path: Of the file.
        log: Takes a line about columns that are left out.

    Raises:
        OptionError: Arrow is not installed.
        DatasetError: The file cannot be read, is no Parquet file, or holds more than a list may; see
            :func:`~pipeline.images.manifest.read_list` for what else is wrong with lists.
    """
    what = f"got {str(path)!r}. Expected a Parquet file of image paths."
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise OptionError(
            f"data.list: Parquet needs the package pyarrow, {what} Run `pip install 'deep-feature-pipeline[parquet]'`."
        ) from error
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise DatasetError(f"data.list: not a regular file, {what} Check the path; data.dir takes a folder.")
        if info.st_size > MAX_LIST_BYTES:
            raise DatasetError(f"data.list: too large ({info.st_size} bytes, limit {MAX_LIST_BYTES} bytes), {what} Divide it.")
        # Repeated texts stay one in memory, however often a small file repeats a long one.
        with pq.ParquetFile(path) as file:
            texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            return _read_columns(path, file, log)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DatasetError(f"data.list: no Parquet file, or damaged ({reason}), {what} Write it again.") from error
    except OSError as error:
        reason = (error.strerror or " ".join(str(error).split())[:200]).lower()
        raise DatasetError(f"data.list: cannot be read ({reason}), {what} Check the path; data.dir takes a folder.") from error


def _read_columns(path: Path, file: Any, log: Callable[[str], None]) -> dict[str, list[str]]:
    schema, metadata = file.schema_arrow, file.metadata
    if len(schema) > MOST_COLUMNS:
        raise DatasetError(
            f"data.list: {str(path)!r}: too many columns, got {len(schema):,}. Expected at most {MOST_COLUMNS:,}. Leave some out."
        )
    require_columns(path, [cell_text(name) for name in schema.names])
    left_out = [field.name for field in schema if not _has_text(field.type)]
    if "path" in left_out or not _is_text(schema.field("path").type):
        raise DatasetError(
            f"data.list: {str(path)!r}: the column 'path' holds no texts, got {schema.field('path').type}. Expected strings. "
            "Convert it, or rename the column that holds the paths."
        )
    if left_out:
        log(f"{len(left_out)} columns of the list have no text and are left out: {quoted_names(left_out)}")
    kept = [name for name in schema.names if name not in left_out]
    # Of whole groups of rows: asked for single columns of a damaged file, the library ends the process.
    bytes_inside = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    _refuse_too_much(path, max(bytes_inside, metadata.num_rows * len(kept)))
    columns: dict[str, list[str]] = {cell_text(name): [] for name in kept}
    written_bytes = 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=kept):
        # A comma or a line's end for each, as in CSV.
        written_bytes += batch.num_rows * len(kept)
        for name, kept_name in zip(columns, kept, strict=True):
            # By name: asked for m.a, the library gives a field a of a column m too.
            written_bytes += _add(path, name, columns, batch.column(kept_name), MAX_LIST_BYTES - written_bytes)
            _refuse_too_much(path, written_bytes)
    require_paths(path, columns)
    return columns


def _add(path: Path, name: str, columns: Mapping[str, list[str]], values: Any, most_bytes: int) -> int:
    """Adds some rows to a column, if they take no more than so many bytes; gives how many they take."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(values.type):
        values = pc.cast(values, pa.string()).dictionary_encode()
    texts = pc.cast(values.dictionary, pa.large_string())
    texts.validate(full=True)
    lengths = pc.binary_length(texts)
    size_bytes = pc.sum(pc.take(lengths, values.indices)).as_py() or 0
    if size_bytes > most_bytes:
        return int(size_bytes)
    odd = pc.filter(texts, pc.match_substring_regex(texts, _RUBBISH))
    if len(odd):
        raise DatasetError(
            f"data.list: {str(path)!r}: not text in column {name!r}, got {odd[0].as_py()[:100]!r}. Expected letters, no signs "
            "that control a machine. Clean it."
        )
    # By NumPy, which makes the texts at once and each but once.
    known = np.append(pc.fill_null(texts, "").to_numpy(zero_copy_only=False), "")
    places = pc.fill_null(values.indices.cast(pa.int64()), len(texts)).to_numpy(zero_copy_only=False)
    columns[name].extend(known[places].tolist())
    return int(size_bytes)


def _refuse_too_much(path: Path, size_bytes: int) -> None:
    if size_bytes > MAX_LIST_BYTES:
        raise DatasetError(
            f"data.list: {str(path)!r}: too much in the columns, got {size_bytes:,} bytes. Expected at most {MAX_LIST_BYTES:,}. "
            "Divide it, or leave columns out."
        )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _has_text(kind: Any) -> bool:
    """Tells whether values of a type can be written as text; bytes are none, whatever they could be taken for."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if _is_text(kind):
        return True
    if pa.types.is_dictionary(kind):
        return _has_text(kind.value_type)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return False
    try:
        pc.cast(pa.array([], kind), pa.string())
    except pa.ArrowException:
        return False
    return not (pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind))
