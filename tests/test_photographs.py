"""What a run stores against the oracle, option by option; real photographs through the whole network at 224 px."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import extract_features
from pipeline.images.decode import decode_image
from pipeline.images.resize import ResizeSpec

from . import oracle
from .conftest import MEAN_PIXEL
from .test_network import build
from .test_resize import expected, noise, on_host

SPEC = ResizeSpec((224, 224), "squash", "bilinear")


RUNS: dict[str, dict[str, Any]] = {
    "squash, bilinear": {"layers": "relu2_1", "size": 40, "batch_size": 2},
    "crop, nearest": {"layers": "pool3", "size": (24, 40), "resize": "crop", "interpolation": "nearest"},
    "pad, bicubic, vgg16": {"layers": "relu3_1", "size": 28, "resize": "pad", "interpolation": "bicubic", "network": "vgg16"},
    "lanczos, float16": {"layers": "conv2_1", "size": 36, "interpolation": "lanczos", "dtype": "float16"},
    "native size": {"layers": ["relu1_1", "pool4"], "size": None},
    "average, valid": {"layers": "pool4", "size": (33, 35), "pool_padding": "valid", "pooling": "avg", "compression": "none"},
    "swapped kernels": {"layers": "relu3_2", "size": 24, "kernel_order": "whio"},
    "TensorFlow": {"layers": "relu3_1", "size": 40, "backend": "tensorflow"},
}


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_stores_agrees_with_the_oracle(name: str, thin_weights: Any, tmp_path: Path) -> None:
    options = RUNS[name]
    images = {f"{number}.png": noise(*size, number) for number, size in enumerate([(37, 53), (64, 48), (30, 90)])}
    for key, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / key)
    run = extract_features(tmp_path, weights="random", output_dir=tmp_path / "outputs", quiet=True, **options)
    weights, size_px = thin_weights(options.get("network", "vgg19")), options["size"]
    kernels = weights.kernels
    if options.get("kernel_order") == "whio":
        kernels = {layer: kernel.transpose(1, 0, 2, 3) for layer, kernel in kernels.items()}
    for key, pixels in images.items():
        seen = pixels - MEAN_PIXEL
        if size_px is not None:
            sides = size_px if isinstance(size_px, tuple) else (size_px, size_px)
            seen = expected(pixels, ResizeSpec(sides, options.get("resize", "squash"), options.get("interpolation", "bilinear")))
        column = oracle.COLUMN_D if weights.network == "vgg16" else oracle.COLUMN_E
        pooling = {"round_up": options.get("pool_padding") != "valid", "mean": options.get("pooling") == "avg"}
        values = oracle.forward(seen, kernels, weights.biases, column, until=run.layers[-1], **pooling)
        for layer in run.layers:
            found = run[layer][run.row(key)]
            assert found.dtype == options.get("dtype", "float32")
            assert oracle.relative_error(found, values[layer]) < (1e-3 if found.dtype == np.float16 else 1e-5), (key, layer)


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
