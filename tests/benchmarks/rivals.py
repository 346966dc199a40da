"""The same network with the same weights in other programs: Keras, ncnn, MNN, ONNX Runtime; and what all sides share."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.machine import usable_cores
from pipeline.network.architectures import VggTable, layer_table
from pipeline.network.known_weights import Weights

Array = NDArray[np.float32]
# (n, 3, 224, 224), standardised -> a layer each, (n, c, h, w) or n of (c, h, w).
Call = Callable[[Array], Sequence[Any]]

SIDE_PX = 224
# Of every side's weights, R, G, B.
MEAN_PIXEL = (123.68, 116.779, 103.939)
# Numbers of images a call to choose from: one, some, many.
BATCHES = (1, 4, 16)


def seeded_weights() -> Weights:
    """Gives the weights of every side: VGG-19, He normal, seed 0."""
    from pipeline.network.weights import load_weights

    return load_weights("vgg19", "random", seed=0, classifier=False, progress=False, log=lambda line: None)


def best_batch(call: Callable[[Array], object], images: Array, batches: Iterable[int] = BATCHES) -> int:
    """Gives the number of images a call at which most images a second are done; ``images``: at least the largest batch."""
    rates: dict[int, float] = {}
    for batch in batches:
        call(images[:batch])
        calls = max(1, 4 // batch)
        began = time.perf_counter()
        for _ in range(calls):
            call(images[:batch])
        rates[batch] = calls * batch / (time.perf_counter() - began)
    return max(rates, key=lambda batch: rates[batch])


def relative_difference(values: Array, reference: Array) -> float:
    """Gives the norm of the difference over the norm of the reference."""
    assert values.shape == reference.shape, (values.shape, reference.shape)
    return float(np.linalg.norm((values - reference).ravel()) / np.linalg.norm(reference.ravel()))


def keras_model(weights: Weights, layer: str) -> Any:
    """Gives ``keras.applications.VGG19`` cut at ``reluN_M``, which Keras calls ``blockN_convM``.

    It takes what its own ``preprocess_input`` gives: B, G, R minus the mean.
    """
    import keras

    whole = keras.applications.VGG19(weights=None, include_top=False, input_shape=(SIDE_PX, SIDE_PX, 3))
    arrays: list[Array] = []
    for name, kernel in weights.kernels.items():
        arrays += [kernel[:, :, ::-1] if name == "conv1_1" else kernel, weights.biases[name]]
    whole.set_weights(arrays)
    block, position = layer.removeprefix("relu").split("_")
    return keras.Model(whole.input, whole.get_layer(f"block{block}_conv{position}").output)


def ncnn(layers: Sequence[str]) -> Call:
    """One image at a time on all cores, or of several an image on each."""
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        write_ncnn_model(layers, Path(folder))
        alone, on_each = (ncnn_call(Path(folder), layers, threads) for threads in (cores, 1))
    pool = ThreadPoolExecutor(cores)

    def call(images: Array) -> list[Any]:
        found = [alone(images[0])] if len(images) == 1 else pool.map(on_each, images)
        return list(zip(*found, strict=True))

    return call


def write_ncnn_model(layers: Sequence[str], folder: Path) -> None:
    """Writes ``vgg19.param`` and ``vgg19.bin``: blob ``images`` (3, 224, 224), a blob a layer wanted, cut at the deepest.

    Source: ncnn's wiki, "param and model file structure" and "operators".
    """
    weights, wanted = seeded_weights(), VggTable("vgg19").resolve(layers)
    lines, arrays, source = ["Input images 0 1 images"], [], "images"
    rest = list(layer_table("vgg19")[: wanted[-1].network_index + 1])
    while rest:
        layer = rest.pop(0)
        if layer.kind == "conv":
            kernel = weights.kernels[layer.name].transpose(3, 2, 0, 1)
            # A tag of four zero bytes: float32 as it is.
            arrays += [np.zeros(1, np.float32), np.ascontiguousarray(kernel), weights.biases[layer.name]]
            words = f"0={len(kernel)} 1=3 4=1 5=1 6={kernel.size}"
            if layer not in wanted and rest and rest[0].kind == "relu":
                layer, words = rest.pop(0), f"{words} 9=1"
            lines.append(f"Convolution {layer.name} 1 1 {source} {layer.name} {words}")
        elif layer.kind == "relu":
            lines.append(f"ReLU {layer.name} 1 1 {source} {layer.name}")
        else:
            lines.append(f"Pooling {layer.name} 1 1 {source} {layer.name} 0=0 1=2 2=2")
        source = layer.name
    folder.mkdir(exist_ok=True)
    (folder / "vgg19.param").write_text("\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines, ""]))
    (folder / "vgg19.bin").write_bytes(b"".join(array.astype("<f4").tobytes() for array in arrays))


def ncnn_call(folder: Path, layers: Sequence[str], threads: int) -> Callable[[Array], list[Array]]:
    """Gives what computes (3, 224, 224) -> a layer (c, h, w) each, by Winograd F(4, 3) in float32 on so many threads."""
    import ncnn

    network = ncnn.Net()
    # F(6, 3) has a larger error and was no faster.
    network.opt.use_winograd63_convolution = False
    for kind in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(network.opt, f"use_{kind}", False)
    network.opt.num_threads = threads
    network.load_param(str(folder / "vgg19.param"))
    network.load_model(str(folder / "vgg19.bin"))

    def call(image: Array) -> list[Array]:
        extractor = network.create_extractor()
        # Neither copies: the image must live as long as the extractor, what it gives is copied.
        image = np.ascontiguousarray(image)
        extractor.input("images", ncnn.Mat(image))
        return [np.array(extractor.extract(layer)[1]) for layer in layers]

    return call


def mnn(layers: Sequence[str]) -> Call:
    """MNN's high precision, all cores within an operation; converted from ONNX. Less exact than any other."""
    import MNN

    with tempfile.TemporaryDirectory() as folder:
        model, converted = write_onnx_model(layers, Path(folder, "vgg19.onnx")), str(Path(folder, "vgg19.mnn"))
        command = [Path(sys.executable).with_name("mnnconvert"), "-f", "ONNX", "--modelFile", model, "--MNNModel", converted]
        subprocess.run([*command, "--bizCode", "none"], check=True, stdout=sys.stderr)
        settings = ({"backend": "CPU", "precision": "high", "numThread": usable_cores()},)
        runtime = MNN.nn.create_runtime_manager(settings)
        network = MNN.nn.load_module_from_file(converted, ["images"], list(layers), runtime_manager=runtime)

    def call(images: Array) -> list[Array]:
        found = network.forward([MNN.expr.const(images, list(images.shape), MNN.expr.NCHW)])
        return [MNN.expr.convert(values, MNN.expr.NCHW).read() for values in found]

    return call


def onnx_runtime(layers: Sequence[str]) -> Call:
    """ONNX Runtime on its CPU provider, all cores within an operation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        path = str(write_onnx_model(layers, Path(folder, "vgg19.onnx")))
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})  # type: ignore[no-any-return]


def write_onnx_model(layers: Sequence[str], path: Path) -> Path:
    """Writes the network as an ONNX file: input ``images`` (n, 3, 224, 224), one output a layer, cut at the deepest."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights, wanted = seeded_weights(), VggTable("vgg19").resolve(layers)
    nodes, constants, source = [], [], "images"
    for layer in layer_table("vgg19")[: wanted[-1].network_index + 1]:
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
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE_PX, SIDE_PX])]
    outputs = [
        helper.make_tensor_value_info(layer.name, TensorProto.FLOAT, ["n", layer.channels, None, None]) for layer in wanted
    ]
    graph = helper.make_graph(nodes, "vgg19", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
