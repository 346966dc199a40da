"""Tables of the networks: names, kernels, channels, strides; which layers a user's words mean; shapes and costs. No TensorFlow.

A further network is an entry in :data:`NETWORKS`.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError, nearest
from ..records import FeatureSpec, LayerSpec

# Convolutions in each of the five blocks.
# Source: Simonyan & Zisserman, "Very Deep Convolutional Networks", arXiv 1409.1556, table 1, columns D, E, A and B.
NETWORKS: dict[str, tuple[int, ...]] = {
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
}
# Channels of each block, same source.
BLOCK_CHANNELS = (64, 128, 256, 512, 512)

# Mean colour of the training images, R, G, B in 0..255; stored in the weight files, used where a file has none.
# Source: ``normalization.averageImage`` of imagenet-vgg-verydeep-19.mat; keras ``imagenet_utils`` 'caffe' mode in B, G, R.
MEAN_PIXEL_RGB = (123.68, 116.779, 103.939)

# What computes the convolutions.
TENSORFLOW = "tensorflow"
WINOGRAD = "winograd"

CLASSES = 1000
CLASSIFIER_BLOCK = 6
# fc6 is a convolution as large as pool5 of a 224 px image. Source: the kernel stored in the file, (7, 7, 512, 4096).
FC6_SIDE = 7
FC_CHANNELS = 4096

# 2 x 2 pixels, which do not overlap. Source: Simonyan & Zisserman, section 2.1.
POOL_SIDE = 2
POOL_STRIDE = 2

# Users know the last layer by what it does; the file calls it "prob".
SYNONYMS = {"softmax": "prob"}
# Sets of layers that are known by a name. Sources: Zhang et al., "The Unreasonable Effectiveness of Deep Features", 2018, code
# lpips/pretrained_networks.py, of vgg16; Gatys et al., "A Neural Algorithm of Artistic Style", arXiv 1508.06576.
PRESETS = {
    "lpips": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
    "style": ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"),
}
# Keras' classifier; its layers give what comes after their activation. Source: ``keras/src/applications/vgg19.py``.
KERAS_CLASSIFIER = {"fc1": "relu6", "fc2": "relu7", "predictions": "prob"}
# torchvision's; 2 and 5 are dropout. Source: ``torchvision/models/vgg.py``.
TORCHVISION_CLASSIFIER = {0: "fc6", 1: "relu6", 3: "fc7", 4: "relu7", 6: "fc8"}


def layer_table(network: str) -> tuple[LayerSpec, ...]:
    """Return all layers of a network in order: 43 for vgg19, 37 for vgg16, as in the MatConvNet files."""
    rows: list[tuple[Any, ...]] = []
    channels = 3
    for block, (count, width) in enumerate(zip(NETWORKS[network], BLOCK_CHANNELS, strict=True), start=1):
        stride = 2 ** (block - 1)
        for position in range(1, count + 1):
            rows.append((f"conv{block}_{position}", "conv", block, (3, 3, channels, width), width, stride))
            rows.append((f"relu{block}_{position}", "relu", block, None, width, stride))
            channels = width
        rows.append((f"pool{block}", "pool", block, None, width, stride * 2))
    for number, side, width in ((6, FC6_SIDE, FC_CHANNELS), (7, 1, FC_CHANNELS), (8, 1, CLASSES)):
        rows.append((f"fc{number}", "fc", CLASSIFIER_BLOCK, (side, side, channels, width), width, 32))
        rows.append((f"relu{number}", "relu", CLASSIFIER_BLOCK, None, width, 32))
        channels = width
    rows[-1] = ("prob", "softmax", CLASSIFIER_BLOCK, None, CLASSES, 32)
    return tuple(LayerSpec(name, kind, index, *rest) for index, (name, kind, *rest) in enumerate(rows))


@dataclass(frozen=True, slots=True)
class VggTable:
    """The layers of a VGG network."""

    network: str  # name in NETWORKS
    pool_padding: str = "same"  # as of output_shapes

    def resolve(self, words: Sequence[str]) -> tuple[LayerSpec, ...]:
        """Return the layers that a user's words mean, in network order, each once.

        Args:
            words: Names (``relu4_1``), shell patterns (``relu?_1``), blocks (``block3``, its pooling included), :data:`PRESETS`
                or ``all``: every layer from conv1_1 to the last ReLU of the convolutional part (36 for vgg19). ``*`` takes the
                classifier too. Keras' and torchvision's names as in :func:`foreign_names`.

        Raises:
            OptionError: A word means no layer; the nearest names are given.
        """
        table = layer_table(self.network)
        names = [layer.name for layer in table]
        chosen: set[str] = set()
        for word in words:
            word = SYNONYMS.get(word.strip(), word.strip())
            if word == "all":
                matched = [layer.name for layer in table if layer.block < CLASSIFIER_BLOCK and layer.name != "pool5"]
            elif re.fullmatch(r"block\d+", word):
                matched = [layer.name for layer in table if layer.block == int(word[5:]) < CLASSIFIER_BLOCK]
            elif word in PRESETS:
                matched = list(PRESETS[word]) if {*PRESETS[word]} <= {*names} else []
            else:
                matched = fnmatch.filter(names, word) or list(foreign_names(self.network, [word]).values())
            if not matched:
                others = foreign_names(self.network, ["block*_*", "features.*", "classifier.*"])
                near = ", ".join(nearest(word, [*names, *others]).split(", ")[:3])
                raise OptionError(
                    f"layers: no layer of {self.network} matches, got {word!r}. Expected one of: {near}, a pattern, a block, "
                    f"all, or {', '.join(PRESETS)} of a network that has all of it. See "
                    f"`python -m pipeline.layers network={self.network}`."
                )
            chosen.update(matched)
        return tuple(layer for layer in table if layer.name in chosen)

    def plan(self, layers: Sequence[LayerSpec], size_px: tuple[int, int] | None) -> tuple[FeatureSpec, ...]:
        """Return the layers with the shape of a row of each; no shapes at native size.

        Raises:
            OptionError: The input is too small for a layer.
        """
        if size_px is None:
            return tuple(FeatureSpec(layer, None) for layer in layers)
        shapes = output_shapes(self.network, size_px, self.pool_padding)
        for layer in layers:
            if layer.name not in shapes:
                least = smallest_side_px(self.network, layer, self.pool_padding)
                got = f"{size_px[0]} x {size_px[1]} px"
                raise OptionError(
                    f"data.size: too small for layer {layer.name}, got {got}. Expected sides of at least {least} px."
                )
        return tuple(FeatureSpec(layer, shapes[layer.name]) for layer in layers)


def foreign_names(network: str, words: Sequence[str]) -> dict[str, str]:
    """Return the names of Keras' and torchvision's among a user's words, or matched by one -> this project's.

    ``block4_conv1`` is relu4_1, since Keras' layers rectify; ``block5_pool`` is pool5, ``fc1`` relu6. torchvision counts as the
    MatConvNet file: ``features.20``; and ``classifier.4`` is relu7.
    """
    table = layer_table(network)
    names = [layer.name for layer in table]
    foreign = KERAS_CLASSIFIER | {f"classifier.{place}": name for place, name in TORCHVISION_CLASSIFIER.items()}
    for layer in table[: names.index("fc6")]:
        foreign[f"features.{layer.network_index}"] = layer.name
        if layer.kind == "relu":
            foreign[layer.name.replace("relu", "block").replace("_", "_conv")] = layer.name
        elif layer.kind == "pool":
            foreign[f"block{layer.block}_pool"] = layer.name
    return {name: foreign[name] for word in words if not fnmatch.filter(names, word) for name in fnmatch.filter(foreign, word)}


def output_shapes(network: str, size_px: tuple[int, int], pool_padding: str) -> dict[str, tuple[int, int, int]]:
    """Return the (h, w, c) of each layer for an input of this size, up to the last layer that fits it.

    Args:
        network: Name in :data:`NETWORKS`.
        size_px: (height, width) of the input.
        pool_padding: ``same``: pooling of an odd side rounds up (Caffe, TensorFlow SAME); ``valid``: down (Keras, PyTorch).
    """
    height, width = size_px
    shapes: dict[str, tuple[int, int, int]] = {}
    for layer in layer_table(network):
        if layer.kind == "pool":
            height, width = pooled_side(height, pool_padding), pooled_side(width, pool_padding)
        elif layer.kind == "fc":
            assert layer.kernel_shape is not None
            height, width = height - layer.kernel_shape[0] + 1, width - layer.kernel_shape[1] + 1
        if height < 1 or width < 1:
            break
        shapes[layer.name] = (height, width, layer.channels)
    return shapes


def pooled_side(side: int, pool_padding: str) -> int:
    """Return the side of a map after pooling."""
    return -(-side // POOL_STRIDE) if pool_padding == "same" else side // POOL_STRIDE


def smallest_side_px(network: str, layer: LayerSpec, pool_padding: str) -> int:
    """Return the smallest input side for which this layer has an output."""
    side = 1
    while layer.name not in output_shapes(network, (side, side), pool_padding):
        side += 1
    return side


def multiply_adds(layer: LayerSpec, shape: tuple[int, ...]) -> int:
    """Return the multiply-adds of a direct evaluation of this layer for one image; 0 for layers without kernels."""
    if layer.kernel_shape is None:
        return 0
    return math.prod(layer.kernel_shape) * shape[0] * shape[1]
