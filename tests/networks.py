"""Networks on the CPU, made as the program makes them."""

from __future__ import annotations

from typing import Any

from pipeline.network.architectures import plan_features, resolve_layers
from pipeline.network.vgg import Network
from pipeline.network.winograd import prepare_segments


def build(
    weights: Any, words: list[str], size_px: Any, *, backend: str = "tensorflow", pooling: str = "max", kernel_order: str = "hwio"
) -> Network:
    wanted, settings = resolve_layers(weights.network, words), {"pooling": pooling, "kernel_order": kernel_order}
    parts = prepare_segments(weights, wanted, threads=2, **settings) if backend == "winograd" else None
    features = plan_features(weights.network, wanted, size_px, weights.pool_padding)
    return Network(weights, features, device="/CPU:0", size_px=size_px, parts=parts, **settings)
