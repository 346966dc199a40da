"""torchvision: ``create_feature_extractor``, a ``DataLoader`` with as many workers as cores, h5py without compression."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ..rivals import SIDE_PX, best_batch, seeded_weights, torch_model
from ..sides import usable_cores


class Photographs(Dataset):  # type: ignore[type-arg]
    """The JPEGs of a folder in the order of their names, as uint8 (3, 224, 224)."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).glob("*.jpg"))
        # On the PIL image: Pillow's antialiased filter.
        self.transform = v2.Compose([v2.Resize((SIDE_PX, SIDE_PX)), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def prepare(photographs: str, output: str, layer: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """Gives what is timed, and the batch size.

    Args:
        photographs: Folder of JPEGs.
        output: HDF5 file to write; its dataset ``features`` (n, c, h, w) has the files in the order of their names.
        layer: ``reluN_M``.
    """
    torch.set_num_threads(usable_cores())
    weights = seeded_weights()
    model = torch_model(weights, [layer]).to(memory_format=torch.channels_last)
    mean = torch.tensor(weights.mean_pixel, dtype=torch.float32).view(1, 3, 1, 1)

    def call(images: Any) -> Any:
        with torch.inference_mode():
            return model((images - mean).contiguous(memory_format=torch.channels_last))[layer]

    batch = best_batch(call, torch.rand(16, 3, SIDE_PX, SIDE_PX) * 255)
    dataset = Photographs(photographs)
    loader = DataLoader(dataset, batch_size=batch, num_workers=usable_cores(), persistent_workers=True)
    # Its workers are started before the clock, and before there is a file whose lock they would inherit; they stay.
    for _ in loader:
        pass

    def extract() -> float:
        began = time.perf_counter()
        with h5py.File(Path(output), "w") as file:
            written = 0
            for images in loader:
                features = call(images.float()).contiguous().numpy()
                if not written:
                    shape = (len(dataset), *features.shape[1:])
                    file.create_dataset("features", shape, "float32", chunks=(1, *shape[1:]))
                file["features"][written : written + len(features)] = features
                written += len(features)
        return time.perf_counter() - began

    extract()
    return {"batch": batch}, extract
