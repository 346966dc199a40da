"""``python -m pipeline.layers``, and ``layer_table`` for Python. Loads no weights, and TensorFlow only for Keras' networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import cli
from .config import AUTO, LayersOptions, Options, check_options, defaults, plain_options
from .errors import OptionError, nearest
from .formatting import Shown, text_table, words_for_bytes
from .network.architectures import VggTable, multiply_adds, output_shapes
from .network.architectures import layer_table as network_layers
from .network.keras_models import KerasTable, model_name
from .records import LayerSpec

HEADINGS = ("", "layer", "kernel", "output", "stride", "an image", "GFLOP")


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of a network, for an input size."""

    name: str
    layer: LayerSpec
    shape: tuple[int, ...] | None  # (h, w, c) or (d,) of the output; None where the input is too small
    row_bytes: int  # of one image's activations as stored, before compression; 0 without a shape
    gflop: float  # floating-point operations of one image up to and with this layer, in 1e9; NaN where unknown
    is_chosen: bool  # among the layers that were asked for

    def cells(self) -> tuple[str, ...]:
        """Return what stands under :data:`HEADINGS`."""
        kernel, output = (" x ".join(map(str, sides or ())) for sides in (self.layer.kernel_shape, self.shape))
        numbers = words_for_bytes(self.row_bytes) if self.shape else "-", "-" if math.isnan(self.gflop) else f"{self.gflop:.2f}"
        return "*" * self.is_chosen, self.name, kernel or "-", output or "input too small", f"{self.layer.stride_px} px", *numbers


class LayerTable(Shown, list[LayerRow]):
    """All layers of a network in order; printed, a table. A layer is had by its place or by its name.

    Attributes:
        caption: What the table is of.
    """

    def __init__(self, caption: str, rows: Sequence[LayerRow]) -> None:
        super().__init__(rows)
        self.caption = f"{caption}; * = layers of this configuration"

    def __getitem__(self, wanted: Any) -> Any:
        if not isinstance(wanted, str):
            return super().__getitem__(wanted)
        by_name = {row.name: row for row in self}
        if wanted not in by_name:
            near = nearest(wanted, by_name)
            raise OptionError(f"layers: no such layer, got {wanted!r}. Expected one of: {near}. Print the table to see them all.")
        return by_name[wanted]

    def _table(self) -> tuple[str, Sequence[str], Iterable[Sequence[str]]]:
        return self.caption, HEADINGS, [row.cells() for row in self]

    def __repr__(self) -> str:
        caption, headings, rows = self._table()
        return f"{caption}\n{text_table(headings, rows, 3)}"


def layer_table(
    network: str = "vgg19", size: int | str | Sequence[int] = AUTO, layers: str | Sequence[str] = "relu4_1", **options: Any
) -> LayerTable:
    """Return the table of a network: kernels, output shapes, strides, bytes an image, cost.

    Args:
        network: ``vgg19``, ``vgg16`` ..., ``keras``.
        size: Of the input in px: a side, or (height, width); ``auto``: 224, or what the model is made for.
        layers: Those that are marked, in the words of the option ``layers``; of ``keras`` none by default.
        **options: Others that count, named as in :func:`pipeline.extract_features`: ``dtype`` of the stored values,
            ``pool_padding``, ``weights`` (which may say it), ``model`` of ``keras``.

    Raises:
        OptionError: One of them is wrong.
    """
    return _table(check_options(plain_options({"network": network, "size": size, "layers": layers, **options}), LayersOptions))


def _table(options: Options) -> LayerTable:
    size_px, table, dtype, words = options.data.size, options.table(), options.output.dtype, options.layers
    if size_px is None:
        raise OptionError("data.size: shapes depend on the image at native size, got null. Expected e.g. data.size=[1440,2560].")
    shapes: list[tuple[LayerSpec, tuple[int, ...] | None]]
    caption = f"input {size_px[0]} x {size_px[1]} px, {dtype}"
    if isinstance(table, KerasTable):
        caption = f"{model_name(table.model)}, {caption}"
        shapes = [(each.layer, each.shape) for each in table.layers().values()]
        # What the option is by default is a layer of VGG's.
        words = () if list(words) == defaults()["layers"] else words
    else:
        caption = f"{table.network}, {caption}, pool_padding {table.pool_padding}"
        fitting = output_shapes(table.network, size_px, table.pool_padding)
        shapes = [(layer, fitting.get(layer.name)) for layer in network_layers(table.network)]
    chosen, itemsize = table.resolve([word.partition(":")[0] for word in words]) if words else (), np.dtype(dtype).itemsize
    rows, multiplications = list[LayerRow](), 0
    for layer, shape in shapes:
        multiplications += multiply_adds(layer, shape) if shape else 0
        # Two operations a multiply-add, as the literature counts them. Of other networks the kernels are not known.
        gflop = 2e-9 * multiplications if shape and isinstance(table, VggTable) else math.nan
        rows.append(LayerRow(layer.name, layer, shape, math.prod(shape) * itemsize if shape else 0, gflop, layer in chosen))
    return LayerTable(caption, rows)


def _print(options: Options) -> None:
    print(_table(options), flush=True)


main = partial(cli.start, "pipeline.layers", _print, when_stopped="nothing was changed.")

if __name__ == "__main__":
    main()
