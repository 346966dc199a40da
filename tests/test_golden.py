"""Today's program against the rows and statuses that an earlier version gave; see :mod:`tests.golden`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .golden import CHANGED, FILE, SETS, SLOW, UNCHANGED, extract, make_images, vector_instructions

GOLDEN: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
# Of a row's norm.
ROUNDED = 2e-5


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    make_images(folder)
    return folder


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SETS])
def test_rows_and_statuses_are_those_of_before(name: str, images: Path, tmp_path: Path) -> None:
    expected, found = GOLDEN["sets"][name], extract(name, images, tmp_path)
    assert found["statuses"] == expected["statuses"]
    same_processor = GOLDEN["vector instructions"] == vector_instructions()
    for layer, rows in expected["rows"].items():
        assert list(rows) == list(found["rows"][layer])
        for key, (shape, crc, total, norm, probes) in rows.items():
            now = found["rows"][layer][key]
            assert now[0] == shape
            if name in UNCHANGED and same_processor:
                assert now[1] == crc, (layer, key)
            tolerance = CHANGED.get(key, (ROUNDED, ""))[0]
            assert abs(now[3] - norm) <= tolerance * norm, key
            assert abs(now[2] - total) <= tolerance * norm * np.sqrt(np.prod(shape)), key
            np.testing.assert_allclose(now[4], probes, rtol=0, atol=tolerance * norm / np.sqrt(np.prod(shape)), err_msg=key)
