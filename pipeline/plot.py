"""``python -m pipeline.plot``: feature maps of a stored run as pictures; computes nothing again, loads no TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import signals
from .run import Door, answered, compose, configuration_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

PLOT = Door(
    "pipeline.plot",
    "PlotSchema",
    ("run", "image", "file"),
    "pictures that are written stay, none is half written. Run the command again.",
)


def _plot(config: DictConfig) -> None:
    with answered(PLOT):
        from omegaconf import OmegaConf

        from .plot_config import check_plot

        values: Any = OmegaConf.to_container(config, resolve=True)
        choice = check_plot(values, PLOT.module)
        with signals.leaving_at_once():
            from .views import draw_views
        signals.heed_in_order()
        draw_views(choice)


def main() -> None:
    """Runs the command; leaves with exit code 2 for a wrong option, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM."""
    signals.heed(PLOT.when_stopped)
    import hydra

    compose(hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="plot")(_plot), PLOT)
    signals.ignore()


if __name__ == "__main__":
    main()
