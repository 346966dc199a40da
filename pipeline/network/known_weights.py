"""What is known of weights beforehand: the published files, the shapes of each network, the first values of each training.

Source: sizes and checksums of the Keras files: ``keras/src/applications/vgg19.py`` and ``vgg16.py``, and download logs; of the
MatConvNet files: history of ``doc/site/docs/pretrained.md`` in vlfeat/matconvnet, and the readers that assert a size; of the
PyTorch files: ``torchvision/models/vgg.py``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WeightsError, printable
from .architectures import CLASSIFIER_BLOCK, NETWORKS, layer_table

# What ``network.weights`` may say besides the path of a file.
WEIGHTS = ("imagenet", "matconvnet", "torchvision", "random")
# Where each family of files is served from.
BASE_URLS = {
    "keras": "https://storage.googleapis.com/tensorflow/keras-applications",
    "matconvnet": "https://www.vlfeat.org/matconvnet/models",
    "torchvision": "https://download.pytorch.org/models",
}
# Of what a message quotes: a damaged file may have a name of megabytes.
_LONGEST_QUOTE = 500


@dataclass(frozen=True, slots=True)
class KnownFile:
    """One published file; ``size_bytes`` and ``digest`` are of the file that is served now."""

    network: str  # name in :data:`pipeline.network.architectures.NETWORKS`
    family: str  # a key of :data:`BASE_URLS`
    classifier: bool  # whether fc6, fc7 and fc8 are in it
    path: str  # below the family's base address; ends in the file's name
    size_bytes: int | None  # None where no source gives it
    digest: str  # hex: MD5; of torchvision's the first digits of SHA-256, which names end in

    @property
    def name(self) -> str:
        """The file's name, as it is looked for in ``weights/``."""
        return self.path.rpartition("/")[2]

    @property
    def words(self) -> str:
        """``"vgg19.mat (534,904,783 bytes, MD5 1061...)"``, for messages."""
        size = "" if self.size_bytes is None else f"{self.size_bytes:,} bytes, "
        digest = f"SHA-256 {self.digest}..." if self.family == "torchvision" else f"MD5 {self.digest}"
        return f"{self.name} ({size}{digest})"

    @property
    def address(self) -> str:
        """Where to download it from."""
        return f"{BASE_URLS[self.family]}/{self.path}"

    def has_checksum_of(self, path: Path) -> bool:
        """Tell whether a file is the published one."""
        found = hashlib.sha256() if self.family == "torchvision" else hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                found.update(piece)
        return found.hexdigest().startswith(self.digest)


_VGG19, _VGG16 = (f"{name}/{name}_weights_tf_dim_ordering_tf_kernels" for name in ("vgg19", "vgg16"))
_MAT = "imagenet-vgg-verydeep-"

# For each network in the order in which copies are looked for.
KNOWN_FILES: tuple[KnownFile, ...] = (
    KnownFile("vgg19", "matconvnet", True, f"{_MAT}19.mat", 534_904_783, "106118b7cf60435e6d8e04f6a6dc3657"),
    KnownFile("vgg19", "keras", False, f"{_VGG19}_notop.h5", 80_134_624, "253f8cb515780f3b799900260a226db6"),
    KnownFile("vgg19", "keras", True, f"{_VGG19}.h5", 574_710_816, "cbe5617147190e668d6c5d5026f83318"),
    KnownFile("vgg16", "matconvnet", True, f"{_MAT}16.mat", None, "f72d927587ca4c97fbd165ec9cb9997f"),
    KnownFile("vgg16", "keras", False, f"{_VGG16}_notop.h5", 58_889_256, "6d6bbae143d832006294945121d1f1fc"),
    KnownFile("vgg16", "keras", True, f"{_VGG16}.h5", 553_467_096, "64373286793e3c8b2b4e3219cbf3544b"),
    KnownFile("vgg19", "torchvision", True, "vgg19-dcbb9e9d.pth", 574_673_361, "dcbb9e9d"),
    KnownFile("vgg11", "torchvision", True, "vgg11-8a719046.pth", None, "8a719046"),
    KnownFile("vgg13", "torchvision", True, "vgg13-19584684.pth", None, "19584684"),
    KnownFile("vgg16", "torchvision", True, "vgg16-397923af.pth", None, "397923af"),
)


def files_for(network: str, classifier: bool, source: str = "") -> list[KnownFile]:
    """Return the published files that hold all that is wanted, in the order in which copies are looked for.

    ``source``: ``matconvnet`` or ``torchvision``, those alone; ``imagenet``, those of the original training, where there are any;
    else all.
    """
    found = [known for known in KNOWN_FILES if known.network == network and (known.classifier or not classifier)]
    if source in BASE_URLS:
        return [known for known in found if known.family == source]
    return [known for known in found if source != "imagenet" or known.family != "torchvision"] or found


def expected_padding(network: str, source: str) -> str:
    """Return what ``network.pool_padding=auto`` will mean, ``same`` or ``valid``, as far as can be told without the weights."""
    files = files_for(network, False, source)
    return "valid" if source in ("imagenet", "torchvision") and files[0].family == "torchvision" else "same"


class WrongFileError(Exception):
    """A weights file cannot be used. Arguments: what is wrong with it, what was found, and what to do if that is known."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a network, as it uses them: HWIO kernels for RGB in 0..255 minus the mean, over the scale if there is one.

    Attributes:
        network: Name in :data:`pipeline.network.architectures.NETWORKS`.
        kernels: Layer -> (height, width, channels in, channels out) float32, C order; conv1_1 to conv5_x, and fc6, fc7, fc8 where
            the classifier was asked for. In network order.
        biases: Layer -> (channels out,) float32.
        mean_pixel: (3,) float64, R, G, B in 0..255.
        pool_padding: ``same``: pooling of an odd side rounds up; ``valid``: down. What the file's ``pad`` says; ``same``, as the
            original does, where a file says nothing.
        source: Words for where they come from; of a reader the file's format.
        recognised: Words for the training that conv1_1 is known from; ``not known``.
        sha256: Digest, hex, of all arrays and their names; the same for the same numbers from another file or format.
        scale_pixel: (3,) float64: what is divided by after the mean is subtracted; None: nothing is.
    """

    network: str
    kernels: Mapping[str, NDArray[np.float32]]
    biases: Mapping[str, NDArray[np.float32]]
    mean_pixel: NDArray[np.float64]
    pool_padding: str
    source: str
    recognised: str = ""
    sha256: str = ""
    scale_pixel: NDArray[np.float64] | None = None


class Wanted:
    """Which layers a reader shall look for: those of a network, with or without fc6, fc7 and fc8. Others are left alone.

    Attributes:
        network: Name in :data:`pipeline.network.architectures.NETWORKS`.
        classifier: Whether fc6, fc7 and fc8 are wanted.
        shapes: Layer -> (height, width, channels in, channels out) of its kernel, in network order.
    """

    def __init__(self, network: str, classifier: bool) -> None:
        self.network, self.classifier = network, classifier
        self.shapes = {
            layer.name: layer.kernel_shape
            for layer in layer_table(network)
            if layer.kernel_shape is not None and (classifier or layer.block < CLASSIFIER_BLOCK)
        }

    def refusal(self, path: Path, what: str, got: str, remedy: str = "") -> WeightsError:
        """Return the error for a file that cannot be used: what it is, and which file is meant."""
        meant = " or ".join(known.words for known in files_for(self.network, self.classifier))
        remedy = remedy or "Give one of these, or set network.weights=imagenet to have one downloaded."
        where, what, got = (printable(text, _LONGEST_QUOTE) for text in (str(path), what, got))
        return WeightsError(f"network.weights: {where} {what}, got {got}. Expected weights of {self.network}: {meant}. {remedy}")

    def take(
        self, found: Collection[str], parameters: Callable[[str], tuple[Any, Any]]
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
        """Return the kernels and biases of the layers wanted, contiguous float32. Shapes are checked before any data are read.

        Args:
            found: Names of the layers with kernels in the file.
            parameters: Layer -> kernel and bias, arrays or HDF5 datasets: (height, width, channels in, channels out), of a fully
                connected layer also (height * width * channels in, channels out); and (channels out) numbers.

        Raises:
            WrongFileError: The file is of another network or lacks a layer; a layer has another shape, or NaN or infinite values,
                also by conversion to float32.
        """
        convolutions = {name for name in found if name.startswith("conv")}
        for other in NETWORKS:
            if other != self.network and convolutions == set(Wanted(other, False).shapes):
                remedy = f"Give one of these, or set network={other}."
                raise WrongFileError(f"is a {other} file", f"its {len(convolutions)} convolutions", remedy)
        if missing := [name for name in self.shapes if name not in found]:
            what = "has no classifier (a 'notop' file)" if missing[0].startswith("fc") else f"lacks layer {', '.join(missing)}"
            raise WrongFileError(what, f"layers {', '.join(sorted(found)) or '(none)'}")
        if extra := sorted(convolutions - set(self.shapes)):
            raise WrongFileError(f"is not a {self.network} file", f"also layer {', '.join(extra)}")
        kernels, biases = {}, {}
        for name, sides in self.shapes.items():
            kernel, bias = parameters(name)
            is_matrix = name.startswith("fc") and kernel.shape == (math.prod(sides[:3]), sides[3])
            if not is_matrix and kernel.shape != sides:
                raise WrongFileError(f"has a kernel of another shape in {name} (expected {sides})", str(kernel.shape))
            if bias.size != sides[3]:
                raise WrongFileError(f"has another number of biases in {name} (expected {sides[3]})", str(bias.size))
            kernels[name], biases[name] = _float32(name, kernel, sides), _float32(name, bias, sides[3:])
        return kernels, biases


def _float32(layer: str, stored: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(np.asarray(stored).reshape(shape), dtype=np.float32)
    if wrong := int(values.size - np.count_nonzero(np.isfinite(values))):
        raise WrongFileError(f"is damaged: NaN or infinite values in {layer}", f"{wrong} of {values.size} values")
    return values


def digest_arrays(arrays: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """Return SHA-256, hex, of arrays, their names and types, whichever file they came from."""
    digest = hashlib.sha256()
    for name, values in arrays:
        digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


# Words -> which of R, G, B it is of, if the network takes RGB, and the kernel of conv1_1 from it to output channel 0, row by row.
# Sources: print of the old imagenet-vgg-verydeep-19.mat, equal to Keras' VGG19 file to 2.8e-7; print of Keras' VGG16 file,
# devincody/CS179final_project, src/h5_utils.cpp; prints of torchvision's vgg19-dcbb9e9d.pth and, by notebooks that load it, of
# its vgg16, first filter.
_FINGERPRINTS = {
    "VGG-19 of Simonyan & Zisserman (Caffe)": (2, (0.3412, 0.34, -0.0448, 0.2322, 0.0898, -0.3033, -0.0726, -0.2467, -0.3368)),
    "VGG-16 of Simonyan & Zisserman (Caffe)": (2, (0.4295, 0.3735, -0.0614, 0.2748, 0.0387, -0.3672, -0.0575, -0.2622, -0.3501)),
    "torchvision's VGG-19": (0, (-0.0535, -0.0493, -0.0679, 0.0153, 0.0451, 0.0021, 0.0362, 0.02, 0.0199)),
    "torchvision's VGG-16": (0, (-0.5537, 0.1427, 0.5290, -0.5831, 0.3566, 0.7657, -0.6902, -0.0480, 0.4841)),
}
# Copies in half precision still agree; other trainings differ by 0.1 and more, swapped axes by 0.1 (VGG) or 0.05 (torchvision).
_TOLERANCE = 1e-3


def recognise_training(kernel: NDArray[Any]) -> str:
    """Return which training conv1_1 comes from, and in which order its axes and colours are.

    Args:
        kernel: (3, 3, 3, channels) as it would be used: [row, column, R G B, channel].

    Returns:
        ``"VGG-19 of Simonyan & Zisserman (Caffe), RGB, HWIO"``; ``BGR`` or ``WHIO`` where it is not in that order; ``not known``.
    """
    for words, (position, plane) in _FINGERPRINTS.items():
        for colours, index in (("RGB", position), ("BGR", 2 - position)):
            for order, found in (("HWIO", kernel[:, :, index, 0]), ("WHIO", kernel[:, :, index, 0].T)):
                if np.allclose(found.reshape(-1), plane, rtol=0, atol=_TOLERANCE):
                    return f"{words}, {colours}, {order}"
    return "not known"
