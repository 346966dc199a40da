"""Reads the VGGs of torchvision and timm, as safetensors or as a ``.pth`` file of tensors, of which nothing is run.

Kernels are [channel out, channel in, row, column] for RGB in 0..1 minus a mean, over a deviation. fc6 is a matrix over the map
flattened as channel, row, column (torchvision), or a convolution (timm). PyTorch rounds odd sides down when it pools.
Source: ``torchvision/models/vgg.py``; ``timm/models/vgg.py``; the format of safetensors: huggingface/safetensors, README.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .architectures import MEAN_PIXEL_RGB, NETWORKS, layer_table
from .known_weights import Wanted, Weights, WrongFileError, recognise_training

Tensors = Mapping[str, NDArray[Any]]

# 255 times the mean and the deviation of ImageNet, R, G, B. Source: torchvision, ``transforms._presets.ImageClassification``.
MEAN_PIXEL = (123.675, 116.28, 103.53)
SCALE_PIXEL = (58.395, 57.12, 57.375)

# The classifier's layers; 1 and 4 in jcjohnson/pytorch-vgg, the last three in timm.
_CLASSIFIER = {
    **{"classifier.0": "fc6", "classifier.1": "fc6", "classifier.3": "fc7", "classifier.4": "fc7", "classifier.6": "fc8"},
    **{"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": "fc8"},
}
# Kinds of numbers -> NumPy's; BF16 is the upper half of a float32. Others are in no weights that are read.
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def import_torch(network: str) -> Any:
    """Return PyTorch.

    Raises:
        WrongFileError: It is not installed.
    """
    try:
        import torch
    except ImportError as error:
        copy = f"https://huggingface.co/timm/{network}.tv_in1k/resolve/main/model.safetensors"
        remedy = f"Install it (`pip install torch`), or give the same weights as safetensors: {copy}."
        raise WrongFileError("is read with PyTorch", f"no PyTorch here ({error})", remedy) from error
    return torch


def read_torch(path: Path, wanted: Wanted) -> Weights:
    """Read the wanted layers of a ``.pth`` file: a dictionary of tensors (``state_dict``), or a checkpoint that has one.

    Raises:
        WrongFileError: PyTorch is not installed; the file holds more than tensors, is of another network, or lacks a layer.
        Exception: Of any type, as PyTorch raises what the damage leads to.
    """
    torch = import_torch(wanted.network)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Its advice goes before the cause, and what to do in a sentence after that.
        cause = re.split(r"\n|\. ", str(error).rpartition("WeightsUnpickler error: ")[2].strip())[0]
        remedy = "Save the tensors alone: torch.save(model.state_dict(), FILE)."
        raise WrongFileError("holds what is no tensor, or is damaged; nothing in it is run", cause, remedy) from error
    state = state.get("state_dict", state)
    tensors = {name: value.detach().float().numpy() for name, value in state.items() if isinstance(value, torch.Tensor)}
    return _weights(tensors, wanted)


def read_safetensors(path: Path, wanted: Wanted) -> Weights:
    """Read the wanted layers of a file of safetensors; others are not read.

    Raises:
        WrongFileError: The file is of another network or lacks a layer.
        Exception: Of any type, by what the damage leads to.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    content = np.memmap(path, np.uint8, "r")[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in _TYPES:
            continue
        first, stop = entry["data_offsets"]
        tensors[name] = content[first:stop].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return _weights(tensors, wanted)


def _weights(tensors: Tensors, wanted: Wanted) -> Weights:
    if any(name.endswith(".running_mean") for name in tensors):
        raise WrongFileError("is a VGG with batch normalisation, which is not read", f"{len(tensors)} tensors")
    kernels_in_file = [name for name, tensor in tensors.items() if tensor.ndim == 4 and name.startswith("features.")]
    convolutions = {name.removesuffix(".weight") for name in kernels_in_file}
    if not convolutions:
        got = ", ".join([*tensors][:6]) or "no tensors"
        raise WrongFileError("has no weights of a VGG as torchvision or timm name them", got)
    networks = (name for name in NETWORKS if convolutions == {*_names(name).values()})
    of_layer = _names(next(networks, wanted.network))
    of_layer |= {layer: name for name, layer in _CLASSIFIER.items() if f"{name}.weight" in tensors}

    def parameters(layer: str) -> tuple[NDArray[Any], NDArray[Any]]:
        kernel, bias = (_float(tensors[f"{of_layer[layer]}.{part}"]) for part in ("weight", "bias"))
        if kernel.ndim == 2:
            height, width, channels, _ = wanted.shapes[layer]
            kernel = kernel.reshape(len(kernel), channels, height, width)
        return kernel.transpose(2, 3, 1, 0), bias

    found = [layer for layer, name in of_layer.items() if tensors.keys() >= {f"{name}.weight", f"{name}.bias"}]
    kernels, biases = wanted.take(found, parameters)
    training, settings = recognise_training(kernels["conv1_1"]), (np.array(MEAN_PIXEL), "valid", "PyTorch")
    if "Caffe" not in training:
        return Weights(wanted.network, kernels, biases, *settings, scale_pixel=np.array(SCALE_PIXEL))
    # The original training, converted, which takes 0..255 and, in most conversions, B, G, R.
    if ", BGR" in training:
        kernels["conv1_1"] = np.ascontiguousarray(kernels["conv1_1"][:, :, ::-1])
    return Weights(wanted.network, kernels, biases, np.array(MEAN_PIXEL_RGB), "same", "PyTorch")


def _names(network: str) -> dict[str, str]:
    """Return the name of each convolution in PyTorch, which counts as the MatConvNet file."""
    return {layer.name: f"features.{layer.network_index}" for layer in layer_table(network) if layer.kind == "conv"}


def _float(tensor: NDArray[Any]) -> NDArray[Any]:
    return (tensor.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == _TYPES["BF16"] else tensor
