"""``python -m pipeline.layers``, and ``layer_table`` for Python: the table of a network for an input size.

Loads neither weights nor TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from . import cli
from .config import AUTO, check_value
from .errors import OptionError, nearest
from .formatting import words_for_bytes
from .network.architectures import layer_table as network_layers
from .network.architectures import multiply_adds, output_shapes, resolve_layers
from .records import LayerSpec

FLOAT_BYTES = {"float32": 4, "float16": 2}
HEADINGS = ("", "layer", "kernel", "output", "stride", "an image", "GFLOP")


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of a network, for an input size.

    Attributes:
        layer: As the network's table gives it.
        shape: (h, w, c) of the output; None where the input is too small.
        row_bytes: Of one image's activations as stored, before compression; 0 without a shape.
        gflop: Floating-point operations of one image up to and with this layer, in 1e9.
        is_chosen: Whether it is among the layers that were asked for.
    """

    layer: LayerSpec
    shape: tuple[int, int, int] | None
    row_bytes: int
    gflop: float
    is_chosen: bool

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.layer.name

    def cells(self) -> tuple[str, ...]:
        """Return what stands under :data:`HEADINGS`."""
        mark, kernel = "*" * self.is_chosen, self.layer.kernel_shape
        words = " x ".join(map(str, kernel)) if kernel else "-"
        start = (mark, self.name, words)
        if self.shape is None:
            return *start, "input too small", f"{self.layer.stride_px} px", "-", "-"
        size, output = words_for_bytes(self.row_bytes), " x ".join(map(str, self.shape))
        return *start, output, f"{self.layer.stride_px} px", size, f"{self.gflop:.2f}"


class LayerTable(Sequence[LayerRow]):
    """All layers of a network in order; printed, a table. A layer is had by its place or by its name.

    Attributes:
        network: Its name.
        size_px: (height, width) of the input.
        dtype: Of the stored values.
        pool_padding: ``same`` or ``valid``.
    """

    def __init__(self, network: str, size_px: tuple[int, int], pool_padding: str, dtype: str, words: Sequence[str]) -> None:
        self.network, self.size_px, self.pool_padding, self.dtype = network, size_px, pool_padding, dtype
        shapes = output_shapes(network, size_px, pool_padding)
        chosen = {layer.name for layer in resolve_layers(network, words)}
        rows, multiplications = [], 0
        for layer in network_layers(network):
            shape = shapes.get(layer.name)
            multiplications += multiply_adds(layer, shape) if shape else 0
            # Two operations a multiply-add, as the literature counts them.
            size, gflop = math.prod(shape) * FLOAT_BYTES[dtype] if shape else 0, 2e-9 * multiplications if shape else math.nan
            rows.append(LayerRow(layer, shape, size, gflop, layer.name in chosen))
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, wanted: Any) -> Any:
        if not isinstance(wanted, str):
            return self._rows[wanted]
        for row in self._rows:
            if row.name == wanted:
                return row
        raise OptionError(
            f"layers: no such layer of {self.network}, got {wanted!r}. Expected one of: "
            f"{nearest(wanted, [row.name for row in self._rows])}. Print the table to see them all."
        )

    def __iter__(self) -> Iterator[LayerRow]:
        return iter(self._rows)

    @property
    def caption(self) -> str:
        """What the table is of."""
        height, width = self.size_px
        return (
            f"{self.network}, input {height} x {width} px, {self.dtype}, pool_padding {self.pool_padding}; "
            f"* = layers of this configuration"
        )

    def __repr__(self) -> str:
        rows = [HEADINGS, *(row.cells() for row in self._rows)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        lines = (
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )
        return "\n".join([self.caption, *lines])

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(row.cells(), "td") for row in self._rows)
        return (
            f"<div><p>{escape(self.caption)}</p><table><thead>{line(HEADINGS, 'th')}</thead><tbody>{body}</tbody></table></div>"
        )


def layer_table(
    network: str = "vgg19",
    size: int | Sequence[int] = 224,
    layers: str | Sequence[str] = "relu4_1",
    *,
    dtype: str = "float32",
    pool_padding: str = AUTO,
) -> LayerTable:
    """Return the table of a network: kernels, output shapes, strides, bytes an image, cost; loads neither weights nor TensorFlow.

    Args:
        network: ``vgg19`` or ``vgg16``.
        size: Of the input in px: a side, or (height, width).
        layers: Those that are marked, in the words of the option ``layers``.
        dtype: Of the stored values, ``float32`` or ``float16``.
        pool_padding: ``same``, ``valid``, or ``auto``: same, as all weights files but old ``.mat`` ones say.

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
    padding = check_value("network.pool_padding", pool_padding)
    return LayerTable(network, size_px, "same" if padding == AUTO else padding, dtype, check_value("layers", layers))


def _print(values: Mapping[str, Any]) -> None:
    network = values["network"]
    table = layer_table(
        *(network["name"], values["data"]["size"], values["layers"]),
        dtype=values["output"]["dtype"],
        pool_padding=network["pool_padding"],
    )
    print(table, flush=True)


def main() -> None:
    """Print the table; leave with exit code 2 for a wrong option."""
    cli.start("pipeline.layers", _print, options="", when_stopped="nothing was changed.", config_name="config")


if __name__ == "__main__":
    main()
