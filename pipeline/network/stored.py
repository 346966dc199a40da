"""What is wanted of a weights file, and what a reader found in it. Shared by the readers, the cache and the door."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WeightsError
from . import known_files
from .layers import CLASSIFIER_BLOCK, NETWORKS, layer_table

KernelShape = tuple[int, int, int, int]

# Of what a message quotes. Names in a stranger's file may have megabytes, line breaks and codes for the terminal.
_LONGEST_QUOTE = 500


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which layers a reader shall look for. Whatever else is in the file is left alone.

    Attributes:
        network: Name in :data:`pipeline.network.layers.NETWORKS`; for messages, and to tell a file of another network.
        shapes: Layer -> (height, width, channels in, channels out) of its kernel, in network order.
        classifier: Whether fc6, fc7 and fc8 are among them.
    """

    network: str
    shapes: Mapping[str, KernelShape]
    classifier: bool

    def refusal(self, path: Path, happened: str, got: str, remedy: str = "") -> WeightsError:
        """Gives the error for a file that cannot be used: what it is, and which file is meant."""
        meant = " or ".join(known.words for known in known_files.files_for(self.network, self.classifier))
        remedy = remedy or "Give one of these, or set network.weights=imagenet to have one downloaded."
        where, what, value = _quoted(str(path)), _quoted(happened), _quoted(got)
        return WeightsError(
            f"network.weights: {where} {what}, got {value}. Expected weights of {self.network}: {meant}. {remedy}"
        )

    def check_names(self, path: Path, found: Collection[str]) -> None:
        """Makes sure that the file is of this network and lacks no layer.

        Args:
            path: For the message.
            found: MatConvNet names of the layers with kernels in the file.

        Raises:
            WeightsError: The file is of another network, lacks the classifier or another layer.
        """
        layers = [name for name in found if name.startswith("conv")]
        for other in NETWORKS:
            if other != self.network and set(layers) == _convolutions(other):
                raise self.refusal(
                    path, f"is a {other} file", f"its {len(layers)} convolutions", f"Give one of these, or set network={other}."
                )
        missing = [name for name in self.shapes if name not in found]
        if missing and all(name.startswith("fc") for name in missing):
            raise self.refusal(path, "has no classifier (a 'notop' file)", f"no layer {', '.join(missing)}")
        if missing:
            raise self.refusal(path, f"lacks layer {', '.join(missing)}", f"layers {', '.join(sorted(found)) or '(none)'}")
        extra = sorted(set(layers) - _convolutions(self.network))
        if extra:
            raise self.refusal(path, f"is not a {self.network} file", f"also layer {', '.join(extra)}")

    def check_shape(self, path: Path, layer: str, kernel: tuple[int, ...], bias: int) -> None:
        """Makes sure that declared shapes are those of the network; to be called before data of that size are read.

        Args:
            path: For the message.
            layer: MatConvNet name.
            kernel: Shape of the kernel, (height, width, channels in, channels out).
            bias: Number of biases.

        Raises:
            WeightsError: A shape differs.
        """
        expected = self.shapes[layer]
        if kernel != expected:
            raise self.refusal(path, f"has a kernel of another shape in {layer} (expected {expected})", str(kernel))
        if bias != expected[3]:
            raise self.refusal(path, f"has another number of biases in {layer} (expected {expected[3]})", str(bias))

    def accept(self, path: Path, layer: str, values: NDArray[Any]) -> NDArray[np.float32]:
        """Gives an array as contiguous float32 in C order.

        Raises:
            WeightsError: Some values are NaN or infinite, or do not fit float32.
        """
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(values, dtype=np.float32)
        wrong = int(array.size - np.count_nonzero(np.isfinite(array)))
        if wrong:
            raise self.refusal(path, f"is damaged: NaN or infinite values in {layer}", f"{wrong} of {array.size} values")
        return array


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What a reader found: the wanted layers, as RGB and HWIO, whatever the file's own conventions.

    Attributes:
        kernels: Layer -> (height, width, channels in, channels out) float32, C order.
        biases: Layer -> (channels out,) float32.
        mean_pixel: (3,) float64, R, G, B in 0..255.
        pool_padding: ``same`` or ``valid``.
        layout: Words for the file's format.
    """

    kernels: Mapping[str, NDArray[np.float32]]
    biases: Mapping[str, NDArray[np.float32]]
    mean_pixel: NDArray[np.float64]
    pool_padding: str
    layout: str


def _quoted(text: str) -> str:
    """Gives the beginning of a text on one line, with all that cannot be printed as escapes."""
    begin = text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in begin)


def wanted_layers(network: str, classifier: bool) -> Wanted:
    """Gives what to look for: the convolutions of a network, and fc6, fc7, fc8 where the classifier is asked for."""
    shapes = {
        layer.name: layer.kernel_shape
        for layer in layer_table(network)
        if layer.kernel_shape is not None and (classifier or layer.block < CLASSIFIER_BLOCK)
    }
    return Wanted(network, shapes, classifier)


def _convolutions(network: str) -> set[str]:
    return {layer.name for layer in layer_table(network) if layer.kind == "conv"}
