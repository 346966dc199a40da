"""A Parquet file of image paths, read into columns of text. What is wrong with its columns is said by :mod:`.lists`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DatasetError, OptionError
from .manifest import cell_text, quoted_names

# With these endings.
PARQUET_SUFFIXES = (".parquet", ".pq")
# As CONTROL_CHARACTERS of pipeline.images.manifest, in the words of the library.
_CONTROL_CHARACTERS = r"[\x00-\x08\x0b\x0c\x0e-\x1f]"


def read_parquet(path: Path, what: str, log: Callable[[str], None]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of all columns, and the columns that have texts, in full.

    Texts are taken as they stand; numbers, dates and times as Arrow writes them (3, 0.1, 2024-01-02 03:04:05.000000; a whole
    number that is stored as a float without its point), truth as true and false, what is missing as "". Columns of lists,
    records and bytes have no one text, and are left out.

    Args:
        path: Of the file.
        what: Words for a message: the file, and what was expected.
        log: Takes a line about columns that are left out.

    Raises:
        OptionError: Arrow is not installed.
        DatasetError: The file is no Parquet file, is damaged, or holds what is no text.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise OptionError(
            f"data.list: Parquet needs the package pyarrow, {what} Run `pip install 'deep-feature-pipeline[parquet]'`."
        ) from error
    try:
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            header, kinds = file.schema_arrow.names, file.schema_arrow.types
            if len(set(header)) < len(header):
                return header, {}
            left_out = [name for name, kind in zip(header, kinds, strict=True) if not _has_text(kind)]
            if "path" in header and ("path" in left_out or not _is_text(kinds[header.index("path")])):
                raise DatasetError(
                    f"data.list: {str(path)!r}: the column 'path' holds no texts, got {kinds[header.index('path')]}. Expected "
                    "strings. Convert it, or rename the column that holds the paths."
                )
            if left_out:
                log(f"{len(left_out)} columns of the list have no text and are left out: {quoted_names(left_out)}")
            kept = [name for name in header if name not in left_out]
            table = file.read(kept)
            # By name: asked for m.a, the library gives a field a of a column m too.
            columns = {cell_text(name): _texts(path, name, table.column(name)) for name in kept}
        return [cell_text(name) for name in header], columns
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DatasetError(f"data.list: no Parquet file, or damaged ({reason}), {what} Write it again.") from error


def _texts(path: Path, name: str, values: Any) -> list[str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(values.type):
        values = pc.cast(values, values.type.value_type)
    texts = pc.fill_null(pc.cast(values, pa.large_string()), "")
    texts.validate(full=True)
    odd = pc.filter(texts, pc.match_substring_regex(texts, _CONTROL_CHARACTERS))
    if len(odd):
        raise DatasetError(
            f"data.list: {str(path)!r}: not text in column {name!r}, got {odd[0].as_py()[:100]!r}. Expected letters, no signs "
            "that control a machine. Clean it."
        )
    # Each text but once in memory: labels repeat.
    known: dict[str, str] = {}
    return [known.setdefault(text, text) for text in texts.to_pylist()]


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _has_text(kind: Any) -> bool:
    """Tell whether values of a type can be written as text; bytes are none, whatever they could be taken for."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(kind):
        return _has_text(kind.value_type)
    if pa.types.is_nested(kind) or "binary" in str(kind):
        return False
    try:
        pc.cast(pa.array([], kind), pa.string())
    except pa.ArrowException:
        return False
    return True
