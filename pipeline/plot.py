"""``python -m pipeline.plot``: feature maps of a stored run as pictures; computes nothing again, loads no TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import cli, signals

if TYPE_CHECKING:
    from .config import PlotOptions

WHEN_STOPPED = "pictures that are written stay, none is half written. Run the command again."


def _plot(options: PlotOptions) -> None:
    from .plotting import draw_plots

    signals.raise_in_main_thread()
    draw_plots(options)


def main() -> None:
    """Run the command; leave with exit code 2 for a wrong option, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM."""
    cli.start("pipeline.plot", _plot, when_stopped=WHEN_STOPPED)


if __name__ == "__main__":
    main()
