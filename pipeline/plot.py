"""``python -m pipeline.plot``: feature maps of a stored run as pictures; computes nothing again, loads no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import cli, signals

WHEN_STOPPED = "pictures that are written stay, none is half written. Run the command again."


def _plot(values: Mapping[str, Any]) -> None:
    from .config import PlotOptions, check

    options = check(PlotOptions, values, "pipeline.plot")
    from .plotting import draw_plots

    signals.raise_in_main_thread()
    draw_plots(options)


def main() -> None:
    """Run the command; leave with exit code 2 for a wrong option, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM."""
    cli.start("pipeline.plot", "PlotOptions", _plot, when_stopped=WHEN_STOPPED)


if __name__ == "__main__":
    main()
