"""Lists of images in Parquet files: the same rows as from CSV, values as text, and files that are refused."""

from __future__ import annotations

import datetime
import decimal
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DatasetError, OptionError
from pipeline.images.lists import read_list
from pipeline.records import Manifest

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
        "path": ["a.jpg", "b.jpg"],
        "whole": pa.array([2**62, None]),
        "float": [3.0, 0.1],
        "single": pa.array([0.1, float("nan")], pa.float32()),
        "truth": [True, False],
        "date": [moment.date(), None],
        "moment": [moment, None],
        "price": [decimal.Decimal("1.50"), None],
        "nothing": pa.nulls(2),
        "class": pa.array([7, 8]).dictionary_encode(),
        "view": pa.array(["x", "y"], pa.string_view()),
        "bytes": [b"x", b"y"],
        "list": [[1], [2]],
        "uuid": pa.array([bytes(16), None], pa.uuid()),
        "image.path": ["p", "q"],  # told from the field of the next
        "image": [{"bytes": b"x", "path": "y"}] * 2,
        "odd\x01": ["q", ""],
    }
    manifest, lines = listed(tmp_path, columns)
    assert dict(manifest.metadata) == {
        "whole": (str(2**62), ""),
        "float": ("3", "0.1"),
        "single": ("0.1", "nan"),
        "truth": ("true", "false"),
        "date": ("2024-01-02", ""),
        "moment": ("2024-01-02 03:04:05.000000", ""),
        "price": ("1.50", ""),
        "nothing": ("", ""),
        "class": ("7", "8"),
        "view": ("x", "y"),
        "image.path": ("p", "q"),
        "odd\\x01": ("q", ""),
    }
    assert lines == ["4 columns of the list have no text and are left out: 'bytes', 'list', 'uuid' and 1 others"]


BAD_LISTS: dict[str, tuple[Any, str]] = {
    "no path": ({"file": ["a"], "label": ["b"]}, "no column 'path' among ['file', 'label'], got "),
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
    with pytest.raises(DatasetError) as error:
        read_list(path)
    assert str(error.value).startswith(f"data.list: {words}")
    assert "\n" not in str(error.value)


def test_without_arrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OptionError, match=r"^data.list: Parquet needs a further package, got .+ `pip install '.*\[parquet\]'`"):
        read_list(tmp_path / "list.parquet")
