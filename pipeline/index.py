"""``python -m pipeline.index``. Index, reports and digests of a run whose shards are all there, made by hand.

What there is to know is in the shards: neither images, weights nor options are needed. Loads no TensorFlow.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from . import cli

if TYPE_CHECKING:
    from pathlib import Path

    from .report import Report


def index_run(folder: Path) -> Report:
    """Write what a run has besides its shards; where all of it is there and right, nothing.

    Raises:
        LockedError: A live process writes the folder.
        StoreError: There is no run, or shards are missing or damaged.
        DatasetError: All images have failed, or more than the run's options allow.
    """
    from .job import finish_run, write_text
    from .progress import LOGGER, Made, Stopwatch, log_to_file, log_to_terminal
    from .storage import refresh
    from .store import format
    from .store.digests import Digests
    from .store.index_file import read_run_spec
    from .store.lock import Hold
    from .store.run_folder import gather_digests
    from .store.verification import require_run

    refresh(folder)
    require_run(folder)
    watch = Stopwatch()
    with log_to_terminal() as kept_lines, ExitStack() as stack:
        stack.callback(Hold(folder).release)
        spec = read_run_spec(folder)
        LOGGER.info("shards: all %d are there, %d rows", len(spec.shards()), len(spec.manifest))
        stack.enter_context(log_to_file(folder / format.LOG_NAME, kept_lines))
        gather_digests(folder, spec)
        if not Digests(folder).agrees("config.yaml"):
            write_text(folder / "config.yaml", str(spec.attributes["config"]))
        return finish_run(folder, spec, Made(), watch)


main = partial(
    cli.start,
    "pipeline.index",
    lambda options: index_run(options.run),
    when_stopped="all shards are kept. Run the command again.",
)

if __name__ == "__main__":
    main()
