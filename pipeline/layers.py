"""Door: ``python -m pipeline.layers``. Prints the table of a network for an input size; loads neither weights nor TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .layer_rows import layer_table
from .run import answered, compose, configuration_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _print(config: DictConfig) -> None:
    with answered():
        from omegaconf import OmegaConf

        values: Any = OmegaConf.to_container(config, resolve=True)
        network, size = values["network"], values["data"]["size"]
        table = layer_table(
            network["name"], size, values["layers"], dtype=values["output"]["dtype"], pool_padding=network["pool_padding"]
        )
        print(table, flush=True)


def main() -> None:
    """Prints the table; leaves with exit code 2 for a wrong option."""
    import hydra

    compose(hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="config")(_print))


if __name__ == "__main__":
    main()
