"""thingsvision: ``get_extractor``, ``extract_features``, ``save_features`` into HDF5."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from thingsvision import get_extractor
from thingsvision.utils.data import DataLoader, ImageDataset
from thingsvision.utils.storing import save_features

from pipeline.network.layers import layer_table

from ..rivals import SIDE_PX
from ..sides import usable_cores

BATCH = 16


def prepare(photographs: str, output: str, layer: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """Gives what is timed. Its weights are torchvision's untrained ones and its pixels are scaled its own way.

    Args:
        photographs: Folder of JPEGs.
        output: HDF5 file; the folder beside it with the same stem is written.
        layer: ``reluN_M``.
    """
    torch.set_num_threads(usable_cores())
    extractor = get_extractor(model_name="vgg19", source="torchvision", device="cpu", pretrained=False)
    indices = {spec.name: spec.network_index for spec in layer_table("vgg19")}
    folder = Path(output).with_suffix("")

    def extract() -> float:
        began = time.perf_counter()
        dataset = ImageDataset(
            root=photographs,
            out_path=str(folder),
            backend=extractor.get_backend(),
            transforms=extractor.get_transformations(resize_dim=SIDE_PX, crop_dim=SIDE_PX),
        )
        batches = DataLoader(dataset=dataset, batch_size=BATCH, backend=extractor.get_backend())
        features = extractor.extract_features(batches=batches, module_name=f"features.{indices[layer]}", flatten_acts=False)
        save_features(features, out_path=str(folder), file_format="hdf5")
        return time.perf_counter() - began

    extract()
    return {"batch": BATCH}, extract
