"""The same network with the same weights in other programs: Keras, PyTorch, ONNX; and what all sides share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.network.architectures import CLASSIFIER_BLOCK, VggTable, layer_table
from pipeline.network.known_weights import Weights
from pipeline.network.weights import load_weights

SIDE_PX = 224
# Numbers of images a call to choose from: one, some, many.
BATCHES = (1, 4, 16)


def seeded_weights() -> Weights:
    """Gives the weights of every side: VGG-19, He normal, seed 0."""
    return load_weights("vgg19", "random", seed=0, classifier=False, progress=False, log=lambda line: None)


def best_batch(
    call: Callable[[NDArray[np.float32]], object], images: NDArray[np.float32], batches: Sequence[int] = BATCHES
) -> int:
    """Gives the number of images a call at which most images a second are done.

    Args:
        call: Computes a batch.
        images: (n, ...) float32, n at least the largest batch.
        batches: Those to try.
    """
    rates: dict[int, float] = {}
    for batch in batches:
        call(images[:batch])
        calls = max(1, 4 // batch)
        began = time.perf_counter()
        for _ in range(calls):
            call(images[:batch])
        rates[batch] = calls * batch / (time.perf_counter() - began)
    return max(rates, key=lambda batch: rates[batch])


def relative_difference(values: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Gives the norm of the difference over the norm of the reference."""
    assert values.shape == reference.shape, (values.shape, reference.shape)
    return float(np.linalg.norm((values - reference).ravel()) / np.linalg.norm(reference.ravel()))


def keras_model(weights: Weights, layer: str) -> Any:
    """Gives ``keras.applications.VGG19`` cut at ``reluN_M``, which Keras calls ``blockN_convM``.

    It takes what its own ``preprocess_input`` gives: B, G, R minus the mean.
    """
    import keras

    whole = keras.applications.VGG19(weights=None, include_top=False, input_shape=(SIDE_PX, SIDE_PX, 3))
    arrays: list[NDArray[np.float32]] = []
    for name, kernel in weights.kernels.items():
        arrays += [kernel[:, :, ::-1] if name == "conv1_1" else kernel, weights.biases[name]]
    whole.set_weights(arrays)
    block, position = layer.removeprefix("relu").split("_")
    return keras.Model(whole.input, whole.get_layer(f"block{block}_conv{position}").output)


def torch_model(weights: Weights, layers: Sequence[str]) -> Any:
    """Gives torchvision's ``vgg19`` with ``create_feature_extractor``: R, G, B minus the mean, NCHW -> {layer: NCHW}."""
    import torch
    import torchvision
    from torchvision.models.feature_extraction import create_feature_extractor

    whole = torchvision.models.vgg19(weights=None)
    # torchvision counts convolutions, ReLUs and poolings as the MatConvNet file does.
    table = {layer.name: layer.network_index for layer in layer_table("vgg19")}
    state = {}
    for name, kernel in weights.kernels.items():
        state[f"{table[name]}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        state[f"{table[name]}.bias"] = torch.from_numpy(weights.biases[name].copy())
    whole.features.load_state_dict(state)
    return create_feature_extractor(whole.eval(), {f"features.{table[name]}": name for name in layers})


def write_onnx_model(weights: Weights, layers: Sequence[str], path: Path) -> Path:
    """Writes the network as an ONNX file: input ``images`` (n, 3, 224, 224), one output a layer, cut at the deepest."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    wanted = VggTable("vgg19").resolve(layers)
    nodes, constants, source = [], [], "images"
    for layer in layer_table("vgg19")[: wanted[-1].network_index + 1]:
        assert layer.block < CLASSIFIER_BLOCK
        if layer.kind == "conv":
            kernel = np.ascontiguousarray(weights.kernels[layer.name].transpose(3, 2, 0, 1))
            constants.append(numpy_helper.from_array(kernel, f"{layer.name}.kernel"))
            constants.append(numpy_helper.from_array(weights.biases[layer.name], f"{layer.name}.bias"))
            inputs = [source, f"{layer.name}.kernel", f"{layer.name}.bias"]
            nodes.append(helper.make_node("Conv", inputs, [layer.name], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        elif layer.kind == "relu":
            nodes.append(helper.make_node("Relu", [source], [layer.name]))
        else:
            nodes.append(helper.make_node("MaxPool", [source], [layer.name], kernel_shape=[2, 2], strides=[2, 2]))
        source = layer.name
    graph = helper.make_graph(
        nodes,
        "vgg19",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE_PX, SIDE_PX])],
        [helper.make_tensor_value_info(layer.name, TensorProto.FLOAT, ["n", layer.channels, None, None]) for layer in wanted],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def onnx_session(path: Path, cores: int) -> Any:
    """Gives a session on the CPU with so many threads within an operation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
