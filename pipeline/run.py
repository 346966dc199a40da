"""``python -m pipeline.run``: extracts features. TensorFlow is loaded after the options have been found right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import cli, signals

if TYPE_CHECKING:
    from .config import Options

WHEN_STOPPED = "finished shards are kept. Run the command again, with output.existing=resume, to go on."


def _run(options: Options) -> None:
    from .job import run

    if options.dry_run:
        signals.install("nothing was written.")
    signals.raise_in_main_thread()
    run(options)


def main() -> None:
    """Run the command; leave with exit code 2 for a wrong option, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM."""
    cli.start("pipeline.run", _run, when_stopped=WHEN_STOPPED)


if __name__ == "__main__":
    main()
