"""The programs in tests/examples do what they say."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .benchmarks.sides import REPOSITORY, environment


@pytest.mark.slow  # loads TensorFlow twice, Keras, and PyTorch where it is installed
def test_a_linear_probe_on_features_tells_stripes_from_dots(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.examples.linear_probe", str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    accuracy = dict(re.findall(r"^(tf\.data|PyTorch): accuracy (\d\.\d\d) on 40 pictures", result.stdout, flags=re.MULTILINE))
    # Half is chance; 0.8 of 40 would be that by chance once in ten thousand times.
    assert float(accuracy["tf.data"]) >= 0.8, result.stdout
    if importlib.util.find_spec("torch"):
        assert float(accuracy["PyTorch"]) >= 0.8, result.stdout
    else:
        assert "PyTorch: not installed (pip install torch)" in result.stdout
