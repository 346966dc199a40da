"""Real photographs through the whole network at 224 px, against the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images.decode import decode_image
from pipeline.images.resize import ResizeSpec

from . import oracle
from .conftest import MEAN_PIXEL
from .test_network import build
from .test_resize import on_host

SPEC = ResizeSpec((224, 224), "squash", "bilinear")


def errors_of(path: Path, weights: Any, words: list[str], backend: str) -> dict[str, float]:
    pixels, _ = decode_image(path.read_bytes(), None)
    network = build(weights, words, (224, 224), backend=backend)
    found = {name: np.asarray(values)[0] for name, values in network(on_host([pixels], SPEC))}
    with Image.open(path) as picture:
        seen = oracle.resize(np.asarray(picture.convert("RGB")), 224, 224, "bilinear") - MEAN_PIXEL
    expected = oracle.forward(seen, weights.kernels, weights.biases, until=list(found)[-1])
    return {name: oracle.relative_error(values, expected[name]) for name, values in found.items()}


@pytest.mark.slow
def test_features_of_every_photograph_agree_with_the_oracle_up_to_the_classifier(photographs: Path, random_weights: Any) -> None:
    paths = sorted(path for path in photographs.glob("*/*") if path.suffix in (".jpg", ".png"))
    assert len(paths) >= 5
    for path in paths:
        for backend in ("tensorflow", "winograd"):
            layers = ["relu1_1", "pool3", "relu4_1", "relu5_4", "fc7"]
            errors = errors_of(path, random_weights("vgg19", classifier=True), layers, backend)
            assert max(errors.values()) < 1e-5, (path, backend, errors)
