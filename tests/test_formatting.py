"""How runs, layers and tables look in a notebook."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path

import pytest

from pipeline import layer_table, open_run
from pipeline.errors import OptionError
from pipeline.formatting import words_for_bytes, words_for_number, words_for_seconds, words_for_share

from .damage import flip
from .stored_runs import make_spec, write_run

HOSTILE = ["<script>alert(1)</script>.jpg", "a&b\x1b[31m.jpg", "line\nbreak.jpg", "x" * 500 + ".jpg"]


def cells(table: str) -> list[str]:
    """Gives the text of each cell of an HTML table."""
    return [html.unescape(text) for text in re.findall(r"<t[dh]>(.*?)</t[dh]>", table)]


def test_the_table_of_images_shows_the_first_and_why_images_failed(tmp_path: Path) -> None:
    write_run(tmp_path, make_spec(30), failed=[2])
    images = open_run(tmp_path).images
    lines = repr(images).splitlines()
    assert lines[0] == "<table of 30 images: key, label, status, error, height, width, bytes, sha256>"
    assert lines[1].split() == ["row", "key", "label", "status", "error", "height", "width", "bytes"]
    assert [line.split()[0] for line in lines[2:]] == [str(row) for row in range(10)]
    assert "failed  truncated after 17 bytes" in lines[4]
    assert cells(images._repr_html_()).count("truncated after 17 bytes") == 1


def test_no_name_means_anything_to_a_browser_or_a_terminal(tmp_path: Path) -> None:
    write_run(tmp_path, make_spec(4, keys=HOSTILE))
    images = open_run(tmp_path).images
    table = images._repr_html_()
    assert {*re.findall(r"<(\w+)", table)} == {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert HOSTILE[0] in cells(table)
    assert "a&b\\x1b[31m.jpg" in cells(table)
    assert len(repr(images).splitlines()) == 2 + 4
    assert "\x1b" not in repr(images)
    assert max(map(len, repr(images).splitlines())) < 200


def test_a_long_table_is_not_read_to_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, make_spec(10))
    monkeypatch.setattr("pipeline.store.tables.LARGEST_READ", 9)
    images = open_run(tmp_path).images
    assert repr(images) == "<table of 10 images: key, label, status, error, height, width, bytes, sha256>"
    assert cells(images._repr_html_()) == []
    assert not images._columns  # type: ignore[attr-defined]


def test_a_damaged_table_can_be_looked_at_too(tmp_path: Path) -> None:
    write_run(tmp_path, make_spec(10))
    run = open_run(tmp_path)
    flip(tmp_path / "features.h5", (tmp_path / "features.h5").read_bytes().index(b"folder0/image") + 2)
    first, second = repr(run.images).splitlines()
    assert first.startswith("<table of 10 images")
    assert "is damaged" in second


def test_runs_have_a_form_for_notebooks(tmp_path: Path) -> None:
    write_run(tmp_path / "a<b", make_spec(10))
    html = open_run(tmp_path / "a<b")._repr_html_()
    assert cells(html)[:10] == [
        *("layer", "shape", "dtype", "channels", "stride"),
        *("conv1_1", "10 x 5 x 4 x 3", "float32", "3", "8 px"),
    ]
    assert "a&lt;b" in html


def test_the_table_of_a_network_is_had_from_python() -> None:
    table = layer_table("vgg19", (1440, 2560), ["relu4_1", "pool?"], dtype="float16")
    assert len(table) == 43
    assert table["relu5_4"].shape == (90, 160, 512)
    assert table["relu4_1"].row_bytes == 180 * 320 * 512 * 2
    assert [row.name for row in table if row.is_chosen] == ["pool1", "pool2", "pool3", "relu4_1", "pool4", "pool5"]
    lines = repr(table).splitlines()
    assert lines[0] == "vgg19, input 1440 x 2560 px, float16, pool_padding same; * = layers of this configuration"
    assert len(lines) == 2 + 43
    assert cells(table._repr_html_())[7:11] == ["", "conv1_1", "3 x 3 x 3 x 64", "1440 x 2560 x 64"]
    small = layer_table(size=32)
    assert small["fc6"].shape is None
    assert "input too small" in repr(small)
    assert [row.name for row in small[:2]] == ["conv1_1", "relu1_1"]
    with pytest.raises(OptionError, match=r"data.size: shapes depend on the image at native size"):
        layer_table(size=None)


def test_numbers_are_short_and_shares_are_no_rounder_than_true() -> None:
    assert [words_for_number(value) for value in (0.0, -3.25, 12.3456, 65504.4, 6.5e7, 1e-7, math.inf)] == [
        *("0", "−3.25", "12.35", "65504", "6.5e+07", "1e−07", "–")
    ]
    assert [words_for_share(value) for value in (0.0, 1e-9, 0.012, 0.5, 0.99999, 1.0, math.nan)] == [
        *("0 %", "<0.1 %", "1.2 %", "50.0 %", ">99.9 %", "100 %", "–")
    ]
    assert [words_for_bytes(count) for count in (999, 1234, 22.5e12)] == ["999 B", "1.2 kB", "22.5 TB"]
    assert [words_for_seconds(seconds) for seconds in (4.9, 200, 26400)] == ["0:00:04", "0:03:20", "7:20:00"]
