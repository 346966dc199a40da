"""``python -m pipeline.run``: extracts features. TensorFlow is loaded after the options have been found right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import cli, signals

WHEN_STOPPED = "finished shards are kept. Run the command again, with output.existing=resume, to go on."


def _run(values: Mapping[str, Any], suffix: str = "") -> None:
    from .config import check_options, to_yaml

    options = check_options(values)
    if values["name"] is None:
        options = replace(options, name=options.name + suffix)
    from .job import run

    if options.dry_run:
        signals.install("nothing was written.")
    signals.raise_in_main_thread()
    # The run is the same whoever makes which part of it.
    run(options, to_yaml({**values, "part": None}))


def main() -> None:
    """Run the command; leave with exit code 2 for a wrong option, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM."""
    cli.start("pipeline.run", "Options", _run, when_stopped=WHEN_STOPPED, config_name="config")


if __name__ == "__main__":
    main()
