"""Today's program against the rows and statuses that an earlier version gave; see :mod:`tests.golden`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .golden import CHANGED, FILE, SETS, extract, make_images, vector_instructions

GOLDEN: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
# Relative, of a row's norm. The second where the picture that the network sees has changed by rounding, and by more where
# JPEGs are reduced while they are decoded, since that is libjpeg's matter.
SAME, ROUNDED, REDUCED = 1e-6, 2e-4, 0.1


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    make_images(folder)
    return folder


@pytest.mark.parametrize("name", SETS)
def test_rows_and_statuses_are_those_of_before(name: str, images: Path, tmp_path: Path) -> None:
    expected, found = GOLDEN["sets"][name], extract(name, images, tmp_path)
    assert found["statuses"] == expected["statuses"]
    tolerance = SAME if name not in CHANGED else REDUCED if "decode" in SETS[name] else ROUNDED
    same_bits = name not in CHANGED and GOLDEN["vector instructions"] == vector_instructions()
    for layer, rows in expected["rows"].items():
        assert list(rows) == list(found["rows"][layer])
        for key, (shape, crc, total, norm, probes) in rows.items():
            now = found["rows"][layer][key]
            assert now[0] == shape
            if same_bits:
                assert now[1] == crc, (layer, key)
            assert abs(now[3] - norm) <= tolerance * norm
            assert abs(now[2] - total) <= tolerance * norm * np.sqrt(np.prod(shape))
            np.testing.assert_allclose(now[4], probes, rtol=0, atol=10 * tolerance * norm / np.sqrt(np.prod(shape)) + 1e-12)
