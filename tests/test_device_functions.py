"""The functions of the device, as far as a CPU can prove what a GPU will do with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.device_properties_pb2 import DeviceProperties, NamedDevice
from tensorflow.python.framework import kernels, meta_graph
from tensorflow.python.grappler import cluster, tf_optimizer

from pipeline import extract_features, open_run
from pipeline.config import check_options
from pipeline.images.resize import NO_IMAGE, ResizeSpec
from pipeline.network.architectures import VggTable
from pipeline.network.device import HOST, set_precision
from pipeline.network.device_reductions import on_device
from pipeline.network.reductions import prepare
from pipeline.network.vgg import Network, first_step
from pipeline.records import FeatureSpec

from . import oracle
from .conftest import MEAN_PIXEL, THIN_CHANNELS
from .processes import run_python
from .test_config import values
from .test_reductions import CHAINS
from .test_resize import write_images

SETTINGS: dict[str, Any] = {"pooling": "max", "device": HOST}

# What Grappler and the runtime do themselves, on any device.
ON_HOST = {"While", "StatelessWhile", "If", "StatelessIf", "TensorListReserve", "GatherV2", "PyFunc", "EagerPyFunc"}
WITHOUT_KERNEL = {"Placeholder", "StatefulPartitionedCall", "PartitionedCall", "NoOp"}


def features_of(name: str, words: list[str], spec: ResizeSpec | None, padding: str = "same") -> tuple[FeatureSpec, ...]:
    return VggTable(name, padding).plan(VggTable(name).resolve(words), spec.size_px if spec else None)


def graphs_of(network: Network) -> list[tf.Graph]:
    """The traced functions, one a segment."""
    return [segment.function.get_concrete_function().graph for segment in network.segments]


def operations(graph: tf.Graph) -> list[tf.Operation]:
    """Those of a graph and of the functions that it calls."""
    found = list(graph.get_operations())
    for function in graph._functions.values():
        found += function.graph.get_operations()
    return found


def gpu_kernel(operation: tf.Operation) -> Any:
    """The kernel that a GPU has for an operation and its types; None if it has none."""
    node = operation.node_def
    for kernel in kernels.get_registered_kernels_for_op(operation.type).kernel:
        # DEFAULT: on every device, for sizes and shapes that stay on the host.
        if kernel.device_type not in ("GPU", "DEFAULT"):
            continue
        allowed = {constraint.name: set(constraint.allowed_values.list.type) for constraint in kernel.constraint}
        if all(name in node.attr and node.attr[name].type in types for name, types in allowed.items()):
            return kernel
    return None


@pytest.mark.parametrize(
    ("spec", "name", "pooling", "padding", "precision"),
    [
        (ResizeSpec((64, 64), "crop", "bicubic"), "vgg19", "max", "same", "float32"),
        (ResizeSpec((64, 64), "pad", "nearest"), "vgg19", "max", "same", "float32"),
        (ResizeSpec((65, 33), "squash", "bilinear"), "vgg19", "avg", "same", "bfloat16"),
        (None, "vgg16", "avg", "valid", "float32"),
        (None, "vgg16", "max", "same", "bfloat16"),
    ],
)
def test_every_operation_has_a_kernel_for_gpus_and_none_waits_for_the_host(
    spec: ResizeSpec | None, name: str, pooling: str, padding: str, precision: str, thin_weights: Any
) -> None:
    weights = replace(thin_weights(name), pool_padding=padding)
    settings: dict[str, Any] = {**SETTINGS, "pooling": pooling, "size_px": spec.size_px if spec else None, "precision": precision}
    settings |= {"dtype": "float16" if precision == "bfloat16" else "float32", "first": first_step(spec, MEAN_PIXEL)}
    network = Network(weights, features_of(name, ["relu1_1", "pool2", "relu3_1"], spec, padding), **settings)
    graphs = graphs_of(network)
    assert len(graphs) == 3
    inputs = [tensor.shape.as_list() for tensor in graphs[0].inputs[: len(first_step(spec, MEAN_PIXEL).input_signature)]]
    assert inputs == ([[None, None, None, 3], [None, len(NO_IMAGE)]] if spec else [[None, None, None, 3]])
    seen = set()
    for operation in (operation for graph in graphs for operation in operations(graph)):
        seen.add(operation.type)
        assert_a_gpu_runs(operation)
    assert {"DeepCopy", "Conv2D", "Relu"} <= seen
    assert not seen & ON_HOST
    if spec is not None:
        assert "BatchMatMulV2" in seen


@pytest.mark.parametrize("chain", CHAINS)
def test_every_reduction_has_kernels_for_gpus_and_none_waits_for_the_host(chain: str) -> None:
    counts = {f"reduction__{name}__n_components": 50 for name in ("units", "srp", "gaussian")}
    options = check_options(values(data__dir="x", layers=[f"relu4_1:{chain}"], **counts))
    (feature,) = options.features("same", 100)
    reduce = tf.function(prepare(feature, (28, 28, 512), on_device, {}), autograph=False)
    for operation in operations(reduce.get_concrete_function(tf.TensorSpec((None, 28, 28, 512), tf.float32)).graph):
        assert operation.type not in ON_HOST - {"GatherV2"}
        assert_a_gpu_runs(operation)


def assert_a_gpu_runs(operation: tf.Operation) -> None:
    """It has a kernel for its types, and that reads nothing on the host that the device computes."""
    if operation.type not in WITHOUT_KERNEL and operation.device != tf.DeviceSpec.from_string(HOST).to_string():
        kernel = gpu_kernel(operation)
        assert kernel is not None, f"{operation.type} of {[tensor.dtype for tensor in operation.inputs]} has no kernel for GPUs"
        on_host = set(kernel.host_memory_arg)
        # Some arguments are lists.
        counts = [(one.name, operation.get_attr(one.number_attr) if one.number_attr else 1) for one in operation.op_def.input_arg]
        names = [name for name, count in counts for _ in range(count)]
        read = [tensor for argument, tensor in zip(names, operation.inputs, strict=False) if argument in on_host]
        for tensor in read:
            # A constant or a shape is on the host; what the device has computed would have to be waited for.
            assert_known_on_host(tensor)


GPU = "/job:localhost/replica:0/task:0/device:GPU:0"


def optimised_for_a_gpu(graph: tf.Graph) -> list[Any]:
    """The nodes that Grappler makes of a graph where there is a GPU of compute capability 9.0."""
    definition = graph.as_graph_def()
    for node in definition.node:
        node.device = node.device or GPU
    placed = tf.Graph()
    with placed.as_default():
        tf.import_graph_def(definition, name="")
    whole = meta_graph.create_meta_graph_def(graph=placed)
    whole.collection_def["train_op"].node_list.value.extend(output.op.name for output in graph.outputs)
    environment = {"architecture": "9.0", "cudnn": "90300"}
    devices = [
        NamedDevice(name=GPU, properties=DeviceProperties(type="GPU", vendor="nvidia", num_cores=132, environment=environment)),
        NamedDevice(name=GPU.replace("GPU", "CPU"), properties=DeviceProperties(type="CPU", num_cores=2)),
    ]
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    return list(tf_optimizer.OptimizeGraph(config, whole, verbose=False, cluster=cluster.Cluster(devices=devices)).node)


@pytest.mark.parametrize(("precision", "order"), [("float32", b"NCHW"), ("tf32", b"NHWC"), ("bfloat16", b"NHWC")])
@pytest.mark.parametrize("spec", [ResizeSpec((64, 64), "squash", "bilinear"), None], ids=["fixed", "native"])
def test_convolution_bias_and_relu_are_one_kernel_on_a_gpu(
    spec: ResizeSpec | None, precision: str, order: bytes, thin_weights: Any
) -> None:
    # Biases of zero would be left out.
    weights = thin_weights()
    weights = replace(weights, biases={name: bias + 1 for name, bias in weights.biases.items()})
    settings: dict[str, Any] = {**SETTINGS, "size_px": spec.size_px if spec else None, "precision": precision}
    features = features_of("vgg19", ["relu1_2", "relu2_1"], spec)
    network = Network(weights, features, **settings, first=first_step(spec, MEAN_PIXEL))
    set_precision(precision, "gpu")
    try:
        found = [node for graph in graphs_of(network) for node in optimised_for_a_gpu(graph)]
    finally:
        set_precision("float32", "gpu")
    kinds = [node.op for node in found]
    fused = [(node.attr["data_format"].s, *node.attr["fused_ops"].list.s) for node in found if node.op == "_FusedConv2D"]
    if precision == "bfloat16":
        # TensorFlow 2.21 fuses none of these, but nothing between layers is cast.
        assert (kinds.count("Conv2D"), kinds.count("BiasAdd"), kinds.count("Relu")) == (3, 3, 3)
        types = {node.attr["T"].type for node in found if node.op in ("Conv2D", "BiasAdd", "Relu", "MaxPool")}
        assert types == {tf.bfloat16.as_datatype_enum}
    else:
        assert fused == [(order, b"BiasAdd", b"Relu")] * 3
        assert not {"Conv2D", "BiasAdd", "Relu"} & {*kinds}


def assert_known_on_host(tensor: tf.Tensor) -> None:
    """Follows a tensor back to constants and shapes."""
    operation = tensor.op
    if operation.type in ("Const", "Shape"):
        return
    assert operation.type in ("StridedSlice", "Pack", "Unpack", "Cast", "Mul", "AddV2", "Sub", "ConcatV2", "Prod", "Range"), (
        operation.type
    )
    for source in operation.inputs:
        assert_known_on_host(source)


# The whole job on two logical CPUs, the functions of the device on the second one, as on a GPU: batches of one shape, two in
# flight.
ON_TWO_DEVICES = """
import json, sys
from dataclasses import replace
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from pipeline import extract_features
from pipeline.network import architectures, device, vgg
images, channels, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
architectures.BLOCK_CHANNELS = tuple(channels)
chosen, ran, functions = device.choose_device, [], vgg.DeviceFunctions

def on_the_second(*arguments, **others):
    return replace(chosen(*arguments, **others), name="/CPU:1", in_flight=2 if options["size"] else 1)

def filled(network, resize, fills, warn):
    def on_first(*inputs):
        ran.append(len(inputs[0]))
        # Or Python would be locked while they are uploaded.
        assert all(one.backing_device.endswith("CPU:0") for one in inputs)
        for name, values in network(*inputs):
            assert isinstance(values, np.ndarray) or values.backing_device.endswith("CPU:0")
            yield name, values
    return functions(on_first, resize, fills=True, warn=warn)

device.choose_device, vgg.DeviceFunctions = on_the_second, filled
extract_features(images, name="other", backend="tensorflow", batch_size=5, **options)
assert {*ran} == {5 if options["size"] else 1}, ran
"""


@pytest.mark.parametrize(
    "options",
    [
        {"size": 48, "resize": "pad", "interpolation": "bicubic"},
        pytest.param({"size": None}, marks=pytest.mark.slow),
        pytest.param(
            {"size": [40, 56], "interpolation": "nearest", "network": "vgg16", "pooling": "avg"}, marks=pytest.mark.slow
        ),
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
@pytest.mark.usefixtures("thin_weights")
def test_the_whole_job_on_a_device_of_its_own_gives_what_the_default_way_gives(options: dict[str, Any], tmp_path: Path) -> None:
    # At native size failed rows have no features at all.
    write_images(tmp_path / "images", with_bad=options["size"] is not None)
    layers = ["relu1_2", "relu3_1", "relu3_1:gem:l2"]
    options |= {"layers": layers, "weights": "random", "output_dir": str(tmp_path / "out"), "quiet": True}
    done = run_python(ON_TWO_DEVICES, tmp_path / "images", json.dumps(THIN_CHANNELS), json.dumps(options))
    assert done.returncode == 0, done.stderr[-2000:]
    plain, other = extract_features(tmp_path / "images", name="plain", **options), open_run(tmp_path / "out/other")
    failed = plain.images["status"] == "failed"
    assert failed.sum() == (0 if options["size"] is None else 3)
    assert plain.images["error"].tolist() == other.images["error"].tolist()
    for layer in plain.layers:
        for row, is_failed in enumerate(failed):
            one, two = np.asarray(plain[layer][row]), np.asarray(other[layer][row])
            assert one.shape == two.shape
            assert (np.isnan(one).all() and np.isnan(two).all()) if is_failed else oracle.relative_error(two, one) <= 5e-6
