"""``python -m pipeline.run``: extracts features. TensorFlow is loaded after the options have been found right."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from . import cli, signals

if TYPE_CHECKING:
    from .config import Options

WHEN_STOPPED = "finished shards are kept. Run the command again, with output.existing=resume, to go on."


def _run(options: Options) -> None:
    with signals.leaving_at_once():
        from .job import run

    if options.dry_run:
        signals.install("nothing was written.")
    run(options)


main = partial(cli.start, "pipeline.run", _run, when_stopped=WHEN_STOPPED)

if __name__ == "__main__":
    main()
