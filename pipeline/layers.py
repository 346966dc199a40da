"""Door: ``python -m pipeline.layers``. Prints the table of a network for an input size; loads neither weights nor TensorFlow."""

from __future__ import annotations

import math
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from .config import check_choice, check_layers, check_size
from .errors import OptionError
from .network.layers import layer_table, multiply_adds, output_shapes, resolve_layers
from .report import words_for_bytes
from .run import answered, compose, configuration_folder
from .schema import AUTO

FLOAT_BYTES = {"float32": 4, "float16": 2}
HEADINGS = ("", "layer", "kernel", "output", "stride", "an image", "GFLOP")


def table(network: str, size_px: tuple[int, int], pool_padding: str, dtype: str, words: tuple[str, ...]) -> str:
    """Gives the table of a network: each layer's kernel shape, output shape, stride, bytes an image, GFLOP up to here.

    Args:
        network: ``vgg19`` or ``vgg16``.
        size_px: (height, width) of the input.
        pool_padding: ``same`` or ``valid``.
        dtype: ``float32`` or ``float16``: of the stored values.
        words: Layers that are marked, as in ``layers=``.
    """
    shapes = output_shapes(network, size_px, pool_padding)
    marked = {layer.name for layer in resolve_layers(network, words)}
    rows: list[tuple[str, ...]] = [HEADINGS]
    multiplications = 0
    for layer in layer_table(network):
        kernel = " x ".join(map(str, layer.kernel_shape)) if layer.kernel_shape else "-"
        mark = "*" if layer.name in marked else ""
        shape = shapes.get(layer.name)
        if shape is None:
            rows.append((mark, layer.name, kernel, "input too small", f"{layer.stride_px} px", "-", "-"))
            continue
        multiplications += multiply_adds(layer, shape)
        size = words_for_bytes(math.prod(shape) * FLOAT_BYTES[dtype])
        # Two operations a multiply-add, as the literature counts them.
        cost = f"{2e-9 * multiplications:.2f}"
        rows.append((mark, layer.name, kernel, " x ".join(map(str, shape)), f"{layer.stride_px} px", size, cost))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


@hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="config")
def _print(config: DictConfig) -> None:
    with answered():
        values: Any = OmegaConf.to_container(config, resolve=True)
        size_px = check_size(values["data"]["size"])
        if size_px is None:
            raise OptionError(
                "data.size: shapes depend on the image at native size, got null. Expected the size of an image. "
                "Set e.g. data.size=[1440,2560]."
            )
        network = check_choice("network.name", values["network"]["name"])
        padding = check_choice("network.pool_padding", values["network"]["pool_padding"])
        dtype = check_choice("output.dtype", values["output"]["dtype"])
        # What auto means for every file but an old .mat.
        chosen = "same" if padding == AUTO else padding
        print(
            f"{network}, input {size_px[0]} x {size_px[1]} px, {dtype}, pool_padding {chosen}; * = layers of this configuration"
        )
        print(table(network, size_px, chosen, dtype, check_layers(values["layers"])), flush=True)


def main() -> None:
    """Prints the table; leaves with exit code 2 for a wrong option."""
    compose(_print)


if __name__ == "__main__":
    main()
