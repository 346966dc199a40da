"""Door: ``python -m pipeline.index``. Index, reports and digests of a run whose shards are all there, made by hand.

What there is to know is in the shards: neither images, weights nor options are needed. Loads no TensorFlow.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

from . import signals
from .errors import OptionError
from .run import Door, answered, compose, configuration_folder

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from .report import Report

INDEX = Door("pipeline.index", "IndexSchema", ("run",), "all shards are kept. Run the command again.")


def check_options(values: dict[str, Any]) -> Path:
    """Gives the run folder.

    Raises:
        OptionError: It is missing, or an address that nothing here can reach; or there is an option that does not exist.
    """
    from .config import unknown_key
    from .schema import IndexSchema, known_keys
    from .storage.remote_path import place, writable

    for key in values:
        if key not in known_keys(IndexSchema()):
            raise unknown_key(key, IndexSchema(), INDEX.module)
    run = values.get("run")
    if run is None or not str(run) or "\0" in str(run):
        raise OptionError(
            f"run: no run was named, got {run!r}. Expected a run folder. "
            f"Run e.g. `python -m pipeline.index run=outputs/imgs-vgg19`."
        )
    return writable(place("run", str(run)))


def index_run(folder: Path) -> Report:
    """Writes what a run has besides its shards; where all of it is there and right, nothing.

    Raises:
        LockedError: A live process writes the folder.
        StoreError: There is no run, or shards are missing or damaged.
        DatasetError: All images have failed, or more than the run's options allow.
    """
    from .config import flat
    from .finishing import Ending, Made, finish_run, index_is_whole
    from .journal import LOGGER, to_file, to_terminal
    from .publishing import write_text
    from .report import Stopwatch
    from .show import parse_config
    from .store import format, remote
    from .store.digests import Digests
    from .store.lock import take_lock
    from .store.recall import recall_run
    from .store.settling import gather_digests
    from .store.verification import files_to_check

    remote.look_anew(folder)
    files_to_check(folder)  # for its refusals
    watch = Stopwatch()
    with to_terminal() as kept_lines:
        hold = take_lock(folder)
        try:
            spec = recall_run(folder)
            LOGGER.info("shards: all %d are there, %d rows", len(spec.shards()), len(spec.manifest))
            with to_file(folder / format.log_name(), kept_lines):
                text = str(spec.attributes["config"])
                gather_digests(folder, spec)
                if not Digests(folder).agrees("config.yaml"):
                    write_text(folder / "config.yaml", text)
                options = flat(parse_config(text))
                fraction = options.get("data.max_failed_fraction", 1.0)
                ending = Ending(Made(), watch, options, float(fraction) if isinstance(fraction, (int, float)) else 1.0)
                return finish_run(folder, spec, ending, index_is_whole(folder, spec))
        finally:
            hold.release()


def _index(config: DictConfig) -> None:
    with answered(INDEX):
        from omegaconf import OmegaConf

        values: Any = OmegaConf.to_container(config, resolve=True)
        folder = check_options(values)
        signals.heed_in_order()
        index_run(folder)


def main() -> None:
    """Runs the command; leaves with 0 for a whole run, 1 where it cannot be one yet, 2 for a wrong option, 130 for Ctrl-C."""
    signals.heed(INDEX.when_stopped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does by itself: a folder's name need not be such as this terminal's encoding has.
        sys.stdout.reconfigure(errors="backslashreplace")
    import hydra

    compose(hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="index")(_index), INDEX)
    signals.ignore()


if __name__ == "__main__":
    main()
