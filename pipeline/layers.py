"""``python -m pipeline.layers``, and ``layer_table`` for Python: the table of a network for an input size.

Loads no weights, and TensorFlow only for Keras' networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import cli
from .config import AUTO, DEFAULT_SIZE_PX, NO_MODEL, check_value, defaults
from .errors import OptionError, nearest
from .formatting import Shown, text_table, words_for_bytes
from .network.architectures import layer_table as network_layers
from .network.architectures import multiply_adds, output_shapes, resolve_layers
from .network.keras_models import KERAS, KerasTable, default_size, model_name
from .network.known_weights import expected_padding
from .network.reductions import split_word
from .records import LayerSpec

HEADINGS = ("", "layer", "kernel", "output", "stride", "an image", "GFLOP")


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of a network, for an input size.

    Attributes:
        name: Of the layer.
        layer: As the network's table gives it.
        shape: (h, w, c) or (d,) of the output; None where the input is too small.
        row_bytes: Of one image's activations as stored, before compression; 0 without a shape.
        gflop: Floating-point operations of one image up to and with this layer, in 1e9; NaN where unknown.
        is_chosen: Whether it is among the layers that were asked for.
    """

    name: str
    layer: LayerSpec
    shape: tuple[int, ...] | None
    row_bytes: int
    gflop: float
    is_chosen: bool

    def cells(self) -> tuple[str, ...]:
        """Return what stands under :data:`HEADINGS`."""
        kernel, output = (" x ".join(map(str, sides or ())) for sides in (self.layer.kernel_shape, self.shape))
        numbers = words_for_bytes(self.row_bytes) if self.shape else "-", "-" if math.isnan(self.gflop) else f"{self.gflop:.2f}"
        return "*" * self.is_chosen, self.name, kernel or "-", output or "input too small", f"{self.layer.stride_px} px", *numbers


class LayerTable(Shown, Sequence[LayerRow]):
    """All layers of a network in order; printed, a table. A layer is had by its place or by its name.

    Attributes:
        caption: What the table is of.
    """

    def __init__(self, caption: str, rows: Sequence[LayerRow]) -> None:
        self.caption, self._rows = f"{caption}; * = layers of this configuration", rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, wanted: Any) -> Any:
        if not isinstance(wanted, str):
            return self._rows[wanted]
        by_name = {row.name: row for row in self._rows}
        if wanted not in by_name:
            near = nearest(wanted, by_name)
            raise OptionError(f"layers: no such layer, got {wanted!r}. Expected one of: {near}. Print the table to see them all.")
        return by_name[wanted]

    def _table(self) -> tuple[str, Sequence[str], Iterable[Sequence[str]]]:
        return self.caption, HEADINGS, [row.cells() for row in self._rows]

    def __repr__(self) -> str:
        caption, headings, rows = self._table()
        return f"{caption}\n{text_table(headings, rows, 3)}"


def _vgg_rows(network: str, size_px: tuple[int, int], pool_padding: str, dtype: str, words: Sequence[str]) -> list[LayerRow]:
    shapes = output_shapes(network, size_px, pool_padding)
    chosen = resolve_layers(network, words)
    rows: list[LayerRow] = []
    multiplications = 0
    for layer in network_layers(network):
        shape = shapes.get(layer.name)
        multiplications += multiply_adds(layer, shape) if shape else 0
        # Two operations a multiply-add, as the literature counts them.
        size, gflop = (math.prod(shape) * np.dtype(dtype).itemsize, 2e-9 * multiplications) if shape else (0, math.nan)
        rows.append(LayerRow(layer.name, layer, shape, size, gflop, layer in chosen))
    return rows


def _keras_rows(model: str, size_px: tuple[int, int], dtype: str, words: Sequence[str]) -> list[LayerRow]:
    table = KerasTable(model, size_px)
    chosen, itemsize = table.resolve(words), np.dtype(dtype).itemsize
    tapped = [each for each in table.layers().values() if each.is_storable]
    return [
        LayerRow(layer.name, layer, shape, math.prod(shape or ()) * itemsize, math.nan, layer in chosen)
        for layer, shape in ((each.layer, each.shape) for each in tapped)
    ]


def layer_table(
    network: str = "vgg19",
    size: int | str | Sequence[int] = AUTO,
    layers: str | Sequence[str] = "relu4_1",
    *,
    dtype: str = "float32",
    pool_padding: str = AUTO,
    weights: str = "imagenet",
    model: str | None = None,
) -> LayerTable:
    """Return the table of a network: kernels, output shapes, strides, bytes an image, cost; loads no weights, nor TensorFlow.

    Args:
        network: ``vgg19``, ``vgg16_bn`` ...; ``keras``, which loads TensorFlow.
        size: Of the input in px: a side, or (height, width); ``auto``: 224, or what the model is made for.
        layers: Those that are marked, in the words of the option ``layers``; of ``keras`` none by default.
        dtype: Of the stored values, ``float32`` or ``float16``.
        pool_padding: ``same``, ``valid``, or ``auto``: what the weights say; of a file, ``same`` as nearly all.
        weights: As of the option ``network.weights``; they are not loaded.
        model: As of the option ``network.model``, of ``keras``.

    Raises:
        OptionError: One of them is wrong.
    """
    size_px = check_value("data.size", list(size) if isinstance(size, tuple) else size)
    if size_px is None:
        raise OptionError(
            "data.size: shapes depend on the image at native size, got null. Expected the size of an image. "
            "Set e.g. data.size=[1440,2560]."
        )
    network, dtype = check_value("network.name", network), check_value("output.dtype", dtype)
    words = [split_word(word) for word in check_value("layers", layers)]
    if network == KERAS:
        model = check_value("network.model", model)
        if model is None:
            raise OptionError(NO_MODEL)
        size_px = default_size(model) if size_px == AUTO else size_px
        # What the option is by default is a layer of VGG's.
        words = [] if words == defaults()["layers"] else words
        return LayerTable(
            f"{model_name(model)}, input {size_px[0]} x {size_px[1]} px, {dtype}", _keras_rows(model, size_px, dtype, words)
        )
    size_px = DEFAULT_SIZE_PX if size_px == AUTO else size_px
    padding = check_value("network.pool_padding", pool_padding)
    padding = expected_padding(network, weights) if padding == AUTO else padding
    return LayerTable(
        f"{network}, input {size_px[0]} x {size_px[1]} px, {dtype}, pool_padding {padding}",
        _vgg_rows(network, size_px, padding, dtype, words),
    )


def _print(values: Mapping[str, Any]) -> None:
    network = values["network"]
    table = layer_table(
        *(network["name"], values["data"]["size"], values["layers"]),
        dtype=values["output"]["dtype"],
        pool_padding=network["pool_padding"],
        weights=str(network["weights"]),
        model=network["model"],
    )
    print(table, flush=True)


def main() -> None:
    """Print the table; leave with exit code 2 for a wrong option."""
    cli.start("pipeline.layers", _print, options="", when_stopped="nothing was changed.", config_name="config")


if __name__ == "__main__":
    main()
