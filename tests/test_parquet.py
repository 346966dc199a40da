"""Lists of images in Parquet files: the same rows as from CSV, values as text, and files that are refused."""

from __future__ import annotations

import datetime
import decimal
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import OptionError
from pipeline.images.lists import read_list
from pipeline.records import Manifest

from .test_folder import refusal

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402


def listed(tmp_path: Path, columns: Any, **options: Any) -> tuple[Manifest, list[str]]:
    path, lines = tmp_path / "list.parquet", list[str]()
    pq.write_table(pa.table(columns), path, **options)
    return read_list(path, None, lines.append), lines


def test_a_list_gives_what_the_same_list_in_csv_gives(tmp_path: Path) -> None:
    rows = [
        ("b/1.jpg", "dog", "3", "x,y"),
        ("../up.jpg", "cat", "", "né"),
        ("/abs/2.jpg", "", "7", ""),
        ("b/0.jpg", "dog", "3", "z"),
    ]
    paths, labels, numbers, words = (list(column) for column in zip(*rows, strict=True))
    ours, lines = listed(
        tmp_path,
        {
            "label": pa.array([label or None for label in labels]).dictionary_encode(),
            "path": paths,
            "number": pa.array([int(number) if number else None for number in numbers], pa.int16()),
            "word": pa.array(words, pa.large_string()),
        },
        row_group_size=3,
    )
    (tmp_path / "list.csv").write_text(
        "label,path,number,word\n" + "".join(f'{label},{path},{number},"{word}"\n' for path, label, number, word in rows)
    )
    theirs = read_list(tmp_path / "list.csv")
    assert lines == []
    assert (ours.keys, ours.labels, dict(ours.metadata)) == (theirs.keys, theirs.labels, dict(theirs.metadata))
    assert (ours.digest, ours.root, dict(ours.paths)) == (theirs.digest, theirs.root, dict(theirs.paths))


def test_values_become_text_and_what_has_none_is_left_out_and_said(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 1, 2, 3, 4, 5)
    columns = {
        "whole": (pa.array([2**62, None]), (str(2**62), "")),
        "float": ([3.0, 0.1], ("3", "0.1")),
        "single": (pa.array([0.1, float("nan")], pa.float32()), ("0.1", "nan")),
        "truth": ([True, False], ("true", "false")),
        "date": ([moment.date(), None], ("2024-01-02", "")),
        "moment": ([moment, None], ("2024-01-02 03:04:05.000000", "")),
        "price": ([decimal.Decimal("1.50"), None], ("1.50", "")),
        "nothing": (pa.nulls(2), ("", "")),
        "class": (pa.array([7, 8]).dictionary_encode(), ("7", "8")),
        "view": (pa.array(["x", "y"], pa.string_view()), ("x", "y")),
        "bytes": ([b"x", b"y"], None),
        "list": ([[1], [2]], None),
        "uuid": (pa.array([bytes(16), None], pa.uuid()), None),
        "image.path": (["p", "q"], ("p", "q")),  # told from the field of the next
        "image": ([{"bytes": b"x", "path": "y"}] * 2, None),
        "odd\x01": (["q", ""], ("q", "")),
    }
    manifest, lines = listed(tmp_path, {"path": ["a.jpg", "b.jpg"]} | {name: column for name, (column, _) in columns.items()})
    texts = {name.replace("\x01", "\\x01"): texts for name, (_, texts) in columns.items() if texts}
    assert dict(manifest.metadata) == texts
    assert lines == ["4 columns of the list have no text and are left out: 'bytes', 'list', 'uuid' and 1 others"]


BAD_LISTS: dict[str, tuple[Any, str]] = {
    "path missing": ({"path": ["a", None, ""]}, "no path in image 2, got "),
    "not Unicode": (
        {"path": pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff.jpg"], pa.binary()).buffers())},
        "no Parquet file, or damaged ('utf-8' codec can't decode byte 0xff",
    ),
    "empty": (b"", "no Parquet file, or damaged (Parquet file size is 0 bytes"),
    "footer of gigabytes": (b"PAR1" + b"x" * 50 + b"\xff\xff\xff\x7fPAR1", "no Parquet file, or damaged ("),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_list_that_is_none_is_one_line(case: str, tmp_path: Path) -> None:
    content, words = BAD_LISTS[case]
    path = tmp_path / "list.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(pa.table(content), path)
    assert refusal(lambda: read_list(path)).startswith(f"data.list: {words}")


def test_without_arrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OptionError, match=r"^data.list: Parquet needs a further package, got .+ `pip install '.*\[parquet\]'`"):
        read_list(tmp_path / "list.parquet")
