"""The networks of Keras: models of ``keras.applications`` by name and ``.keras`` files, their layers and weights.

TensorFlow and Keras are loaded when a graph is asked for. Every graph is built in a thread of its own: by thread Keras counts
the names that it makes up, so that ``conv2d_3`` of InceptionV3 is the same layer whatever was built before.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import math
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, PipelineError, WeightsError, nearest, printable
from ..records import FeatureSpec, LayerSpec
from . import load_tensorflow, load_undisturbed
from .architectures import MEAN_PIXEL_RGB
from .known_weights import Weights, digest_arrays
from .torch_weights import MEAN_PIXEL, SCALE_PIXEL

# What ``network`` is called.
KERAS = "keras"
SUFFIX = ".keras"
# What ``network.weights`` may say besides the path of a file.
SOURCES = ("imagenet", "random")
# Where a file does not tell.
DEFAULT_SIDE_PX = 224
COLOURS = 3
# Layers that a message names at most.
NAMED = 5
# Of Keras' words.
LONGEST_QUOTE = 300
# Published files for which Keras adds a layer. Source: ``keras/src/applications/efficientnet.py``.
_ADJUSTED = re.compile(r"efficientnetb\d(_notop)?\.h5")
REMEDY = "Save the model again, or choose another."

# Mode -> (mean, scale) in R, G, B of 0..255; ``caffe`` networks take B, G, R. ``none``: the network takes 0..255.
# Source: ``keras/src/applications/imagenet_utils.py``, preprocess_input.
MODES: dict[str, tuple[Sequence[float], Sequence[float] | None]] = {
    "caffe": (MEAN_PIXEL_RGB, None),
    "tf": ((127.5,) * COLOURS, (127.5,) * COLOURS),
    "torch": (MEAN_PIXEL, SCALE_PIXEL),
    "none": ((0.0,) * COLOURS, None),
}
# Name -> side of the images that it was trained on in px, and mode. Source: ``keras/src/applications/*.py``.
MODELS: dict[str, tuple[int, str]] = {
    **dict.fromkeys(("VGG16", "VGG19", "ResNet50", "ResNet101", "ResNet152"), (224, "caffe")),
    **dict.fromkeys(("ResNet50V2", "ResNet101V2", "ResNet152V2", "MobileNet", "MobileNetV2", "NASNetMobile"), (224, "tf")),
    **dict.fromkeys(("InceptionV3", "InceptionResNetV2", "Xception"), (299, "tf")),
    "NASNetLarge": (331, "tf"),
    **dict.fromkeys(("DenseNet121", "DenseNet169", "DenseNet201"), (224, "torch")),
    # Their first layers are the preprocessing.
    **dict.fromkeys(("MobileNetV3Small", "MobileNetV3Large"), (224, "none")),
    **{f"EfficientNetB{n}": (side, "none") for n, side in enumerate((224, 240, 260, 300, 380, 456, 528, 600))},
    **{f"EfficientNetV2B{n}": (side, "none") for n, side in enumerate((224, 240, 260, 300))},
    **{f"EfficientNetV2{letter}": (side, "none") for letter, side in (("S", 384), ("M", 480), ("L", 480))},
    **{f"ConvNeXt{word}": (224, "none") for word in ("Tiny", "Small", "Base", "Large", "XLarge")},
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KerasWeights:
    """A network of Keras with its weights, apart from any device; what :class:`.Weights` has too is the same here.

    Attributes:
        network: :data:`KERAS`.
        graph: As JSON, with the names of all layers.
        arrays: Names and values of all variables, in Keras' order.
        is_bgr: Whether the network takes B, G, R after mean and scale.
        identity: What else the numbers depend on, option -> value.
    """

    network: str
    graph: str
    arrays: Sequence[tuple[str, NDArray[Any]]]
    mean_pixel: NDArray[np.float64]
    scale_pixel: NDArray[np.float64] | None
    is_bgr: bool
    source: str
    sha256: str
    identity: Mapping[str, str]


AnyWeights: TypeAlias = Weights | KerasWeights


def is_file(model: str) -> bool:
    """Tell whether a model is a file, and not a name of :data:`MODELS`."""
    return model.endswith(SUFFIX)


def check_model(text: str) -> str:
    """Return a name of :data:`MODELS` or the absolute path of a ``.keras`` file; nothing is loaded.

    Raises:
        OptionError: It is neither.
    """
    if is_file(text) and Path(text).expanduser().is_file():
        return str(Path(text).expanduser().absolute())
    if text in MODELS:
        return text
    rule = f"a {SUFFIX} file that exists" if is_file(text) else f"a {SUFFIX} file or one of: {nearest(text, MODELS)}"
    raise OptionError(f"network.model: there is no such model, got {text!r}. Expected {rule}. Set e.g. network.model=ResNet50.")


def model_name(model: str) -> str:
    """Return what a run with a model is called."""
    return Path(model).stem if is_file(model) else model


def default_size(model: str) -> tuple[int, int]:
    """Return (height, width) in px of what a model was trained on; of a file, of the images that it takes."""
    if not is_file(model):
        return (MODELS[model][0],) * 2
    height, width = _input_shape(json.loads(_stored_graph(model)))
    return height or DEFAULT_SIDE_PX, width or DEFAULT_SIDE_PX


# -- Layers --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KerasTable:
    """The layers of a model, as :class:`~pipeline.network.architectures.VggTable`. The first answer takes seconds."""

    model: str
    size_px: tuple[int, int]

    def layers(self) -> dict[str, FeatureSpec]:
        """Return name -> layer and shape, in the order of the graph, of maps and of vectors alone; ``kind`` names its class."""
        found = Path(self.model).stat() if is_file(self.model) else None
        return _tapped(self.model, self.size_px, found and (found.st_mtime_ns, found.st_size))

    def resolve(self, words: Sequence[str]) -> tuple[LayerSpec, ...]:
        """Return the layers that a user's words mean, in the order of the graph, each once.

        Raises:
            OptionError: A word means no layer of a map or a vector; the model cannot be built.
        """
        layers = self.layers()
        chosen: set[str] = set()
        for word in (word.strip() for word in words):
            matched = list(layers) if word == "all" else fnmatch.filter(layers, word)
            if not matched:
                near = ", ".join(nearest(word, layers).split(", ")[:NAMED])
                raise OptionError(
                    f"layers: no map or vector of {model_name(self.model)} matches, got {word!r}. Expected e.g. {near}. "
                    f"See `python -m pipeline.layers network=keras network.model={self.model}`."
                )
            chosen.update(matched)
        return tuple(feature.layer for name, feature in layers.items() if name in chosen)

    def plan(self, layers: Sequence[LayerSpec], size_px: tuple[int, int] | None) -> tuple[FeatureSpec, ...]:
        """Return the layers with the shape of a row of each, for the size of this table."""
        table = self.layers()
        return tuple(table[layer.name] for layer in layers)


@functools.lru_cache(8)
def _tapped(model: str, size_px: tuple[int, int], file_state: object) -> dict[str, FeatureSpec]:
    height, width = size_px

    def build() -> dict[str, FeatureSpec]:
        import keras

        # Without values of the variables, which would be gigabytes of some.
        with keras.StatelessScope(initialize_variables=False):
            graph = graph_of(_stored_graph(model), size_px) if is_file(model) else _application(model, size_px)
        found = {}
        for index, layer in enumerate(graph.layers):
            try:
                shape = tuple(layer.output.shape)[1:]
            except (AttributeError, ValueError):  # of several outputs, or used twice
                continue
            if isinstance(layer, keras.layers.InputLayer) or len(shape) not in (1, 3):
                continue
            kernel = getattr(layer, "kernel", None)
            kernel_shape = tuple(kernel.shape) if kernel is not None and len(kernel.shape) == 4 else None
            # Sides of convolutions without padding are a little shorter than those of the input over the stride.
            stride = 2 ** round(math.log2(height / shape[0])) if len(shape) == 3 and shape[0] else height
            spec = LayerSpec(layer.name, type(layer).__name__, index, 0, kernel_shape, shape[-1], stride)
            found[layer.name] = FeatureSpec(spec, shape)
        return found

    what = f"network.model: {model} cannot be built for images of {height} x {width} px"
    remedy = f"Expected a graph of Keras' layers. {REMEDY}" if is_file(model) else "Expected a size that it takes. Set data.size."
    return in_fresh_thread(build, lambda words: OptionError(f"{what}, got: {words}. {remedy}"))


# -- Graphs --------------------------------------------------------------------------------------------------------------------


def in_fresh_thread(build: Callable[[], T], refusal: Callable[[str], PipelineError]) -> T:
    """Return what a function returns in a thread of its own, with Keras loaded.

    Raises:
        PipelineError: What the refusal makes of Keras' words.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    load_tensorflow()
    keras = load_undisturbed("keras")
    keras.config.set_image_data_format("channels_last")

    def call() -> T:
        # Of downloads and of graphs it would tell on the terminal.
        keras.config.disable_interactive_logging()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build()

    try:
        return ThreadPoolExecutor(1, "keras").submit(call).result()
    except PipelineError:
        raise
    except Exception as error:  # of any type, as Keras raises what the model leads to
        raise refusal(_line(error)) from error


def graph_of(text: str, size_px: tuple[int, int]) -> Any:
    """Return the graph of a JSON text, a ``keras.Model``, for images of (height, width) px.

    Raises:
        Exception: Of any type, as Keras raises what the text leads to.
    """
    import keras

    config = json.loads(text)
    stored = _input_shape(config)
    if any(own not in (None, given) for own, given in zip(stored, size_px, strict=True)):
        raise ValueError(f"it takes images of {stored[0]} x {stored[1]} px")
    layer = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "InputLayer")
    layer["config"]["batch_shape"][1:3] = size_px
    return keras.saving.deserialize_keras_object(config, safe_mode=True)


def _input_shape(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the (height, width) that a graph takes, as Keras' configuration has it; None: any."""
    shapes = [layer["config"]["batch_shape"] for layer in config["config"]["layers"] if layer["class_name"] == "InputLayer"]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][3] != COLOURS:
        raise ValueError(f"its inputs are {shapes}, and not one of RGB images")
    return shapes[0][1], shapes[0][2]


def _stored_graph(model: str) -> str:
    """Return the graph of a ``.keras`` file as JSON. Nothing in it is run.

    Raises:
        WeightsError: The file is damaged, or no functional graph for images.
    """
    try:
        with zipfile.ZipFile(model) as archive:
            config = json.loads(archive.read("config.json"))
        if config["class_name"] not in ("Functional", "Sequential"):
            raise ValueError(f"its class is {config['class_name']}, and not a functional graph")
        _input_shape(config)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, NotImplementedError) as error:
        raise WeightsError(
            f"network.model: {model} cannot be used, got: {_line(error)}. Expected what model.save('x{SUFFIX}') of Keras 3 "
            f"writes for a functional model of RGB images. {REMEDY}"
        ) from error
    # Of training.
    config.pop("compile_config", None)
    return json.dumps(config, sort_keys=True)


def _application(model: str, size_px: tuple[int, int], classifier: bool = True, weights: str | None = None) -> Any:
    import keras

    return getattr(keras.applications, model)(weights=weights, include_top=classifier, input_shape=(*size_px, COLOURS))


def _line(error: BaseException) -> str:
    # Of a layer with code in it Keras goes on to say how to run that.
    words = " ".join(str(error).split()).partition(" If you trust")[0]
    return printable(words, LONGEST_QUOTE).rstrip(".") or type(error).__name__


# -- Weights -------------------------------------------------------------------------------------------------------------------


def load_keras(
    model: str,
    source: str,
    preprocess: str,
    *,
    size_px: tuple[int, int],
    layers: Sequence[LayerSpec],
    seed: int,
    log: Callable[[str], None],
) -> KerasWeights:
    """Return a model with its weights, for images of (height, width) px.

    Args:
        model: As :func:`check_model` returns it.
        source: ``imagenet``: those that Keras has published, from its cache or downloaded, and of a file its own; ``random``: He
            normal by the seed; else the path of a file that Keras has saved for this model.
        preprocess: One of :data:`MODES`, or ``auto``: the model's own; of a file, ``none``.
        size_px: Of the images.
        layers: That are wanted.
        seed: Of the random weights.
        log: Takes lines for the user.

    Raises:
        WeightsError: There is no such file, it cannot be downloaded, or it is of another model.
    """
    if preprocess == "auto":
        preprocess = "none" if is_file(model) else MODELS[model][1]
    # Keras takes the published weights of a classifier for one size of images alone.
    has_classifier = not is_file(model) and layers[-1].network_index >= _classifier_index(KerasTable(model, size_px).layers())
    if not is_file(model) and _ADJUSTED.fullmatch(Path(source).name):
        raise _refusal(model, source, "Keras adds a layer for its own files, which network.weights=imagenet takes from its cache")

    def build(classifier: bool) -> tuple[str, list[tuple[str, NDArray[Any]]]]:
        import keras
        import tensorflow as tf

        with tf.device("/CPU:0"):
            if is_file(model):
                network, text = keras.saving.load_model(model, compile=False, safe_mode=True), _stored_graph(model)
            else:
                published = source if source == "imagenet" else None
                network = _application(model, size_px, classifier, published)
                text = network.to_json()
            if source not in SOURCES:
                try:
                    network.load_weights(source)
                except ValueError:
                    if is_file(model) or classifier:
                        raise
                    # It may be a file with the classifier.
                    return build(True)
            return text, [(variable.path, np.asarray(variable)) for variable in network.weights]

    own = f"the weights in {model_name(model)}{SUFFIX}" if is_file(model) else f"Keras' weights of {model} (ImageNet)"
    words = {"imagenet": own, "random": f"random (He normal, seed {seed})"}.get(
        source, f"{Path(source).name} for {model_name(model)}"
    )
    log(f"weights: {words}")
    text, arrays = in_fresh_thread(lambda: build(has_classifier), functools.partial(_refusal, model, source))
    if source == "random":
        arrays = _random(arrays, seed)
    mean, scale = MODES[preprocess]
    return KerasWeights(
        network=KERAS,
        graph=text,
        arrays=arrays,
        mean_pixel=np.array(mean, np.float64),
        scale_pixel=None if scale is None else np.array(scale, np.float64),
        is_bgr=preprocess == "caffe",
        source=words,
        sha256=digest_arrays(arrays),
        identity={"network.model": _graph_digest(text) if is_file(model) else model, "network.preprocess": preprocess},
    )


def _classifier_index(table: Mapping[str, FeatureSpec]) -> int:
    """Return where the classifier of a model of ``keras.applications`` begins: the last global mean, or flattening."""
    for kind in ("GlobalAveragePooling2D", "Flatten"):
        if found := [feature.layer.network_index for feature in table.values() if feature.layer.kind == kind]:
            return max(found)
    return sys.maxsize


def _refusal(model: str, source: str, words: str) -> WeightsError:
    # Source of where Keras keeps published weights: ``keras/src/backend/config.py``.
    cache = Path(os.environ.get("KERAS_HOME") or "~/.keras", "models")
    return WeightsError(
        f"network.weights: {source} cannot be used for {model_name(model)}, got: {words}. Expected what Keras has saved or "
        f"published for it. Put what cannot be downloaded into {cache}, or use network.weights=random, which are untrained."
    )


def _random(arrays: Sequence[tuple[str, NDArray[Any]]], seed: int) -> list[tuple[str, NDArray[Any]]]:
    """Return He normal values for all that has axes of inputs and outputs; the rest as Keras begins with it, ones and zeros.

    Source: as of :func:`.weights.random_weights`. Of a depthwise kernel, (height, width, channels, 1), an input is one channel.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = []
    for name, values in arrays:
        if values.ndim > 1:
            inputs = values.shape[:2] if values.ndim == 4 and values.shape[3] == 1 else values.shape[:-1]
            deviation = np.float32(math.sqrt(2 / math.prod(inputs)))
            values = (generator.standard_normal(values.shape, dtype=np.float32) * deviation).astype(values.dtype)
        drawn.append((name, values))
    return drawn


def _graph_digest(text: str) -> str:
    """Return what a graph is known by; Keras numbers objects that are shared anew each time that it saves one."""
    return "graph " + hashlib.sha256(re.sub(r', "shared_object_id": \d+', "", text).encode()).hexdigest()
