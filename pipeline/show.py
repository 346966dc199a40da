"""Door: ``python -m pipeline.show``. What does a run hold? Reads no feature and loads no TensorFlow."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import signals
from .errors import OptionError, StoreError
from .report import MOST_REPORT_BYTES
from .run import Door, answered, compose, configuration_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from .overview import Overview
    from .store.holdings import Holdings

SHOW = Door("pipeline.show", "ShowSchema", ("run",), "nothing was changed.")
LONGEST_CONFIG = 1 << 18
MOST_BRACKETS = 200
# Of the stored options, what this program reads by name.
_GROUPS = ("data", "network", "output")


def check_options(values: dict[str, Any]) -> tuple[Path, bool]:
    """Gives what is to be shown, and whether as JSON.

    Raises:
        OptionError: One is missing, unknown or of another type.
    """
    from .config import unknown_key
    from .schema import ShowSchema, known_keys
    from .storage.remote_path import place

    for key in values:
        if key not in known_keys(ShowSchema()):
            raise unknown_key(key, ShowSchema(), SHOW.module)
    run, as_json = values.get("run"), values.get("json")
    if run is None or not str(run) or "\0" in str(run):
        raise OptionError(
            f"run: no run was named, got {run!r}. Expected a run folder. "
            f"Run e.g. `python -m pipeline.show run=outputs/imgs-vgg19`."
        )
    if not isinstance(as_json, bool):
        raise OptionError(
            f"json: not a valid value, got {as_json!r}. Expected true or false. "
            f"Run `python -m pipeline.show --help` for all options."
        )
    return place("run", str(run)), as_json


def overview(path: Path) -> Overview:
    """Looks into a run folder, or one shard.

    Raises:
        StoreError: There is no run.
    """
    from .overview import Overview
    from .store.holdings import look_into

    holdings = look_into(path)
    folder = holdings.path
    report = _read_report(folder / "report.json") if folder.is_dir() else {}
    return Overview(holdings, _read_config(holdings), report)


def _read_config(holdings: Holdings) -> Mapping[str, Any]:
    """Gives the options as stored in the files, or as the run without a finished shard keeps them; nothing if it is damaged."""
    from .store.regular import read_small

    try:
        return parse_config(
            str(holdings.attributes.get("config") or read_small(holdings.path / "config.yaml", LONGEST_CONFIG).decode())
        )
    except (StoreError, ValueError):
        return {}


def parse_config(text: str) -> Mapping[str, Any]:
    """Gives the options of a run from their YAML, which may be a stranger's; nothing if it is none that this program writes."""
    import yaml

    try:
        # This program writes few brackets and no aliases. Of a stranger's file the ones take hours to read, and the others can
        # stand for more than any memory holds.
        if len(text) > LONGEST_CONFIG or text.count("[") + text.count("{") > MOST_BRACKETS:
            return {}
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            return {}
        config = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) and all(isinstance(config.get(name, {}), dict) for name in _GROUPS) else {}


def _read_report(path: Path) -> Mapping[str, Any]:
    from .store.regular import read_small

    try:
        report = json.loads(read_small(path, MOST_REPORT_BYTES))
        # What is shown of it, so that a damaged one is none.
        numbers = [report[name] for name in ("rows_now", "images_per_second", "seconds")]
        is_one = all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers) and "device" in report
        return report if is_one else {}
    except (StoreError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return {}


def _show(config: DictConfig) -> None:
    with answered(SHOW):
        from omegaconf import OmegaConf

        values: Any = OmegaConf.to_container(config, resolve=True)
        path, as_json = check_options(values)
        found = overview(path)
        # A name that the terminal's encoding lacks is no reason to say nothing.
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(found.json() if as_json else found.text(width), flush=True)


def main() -> None:
    """Says what a run holds; leaves with exit code 1 where there is none, 2 for a wrong option."""
    signals.heed(SHOW.when_stopped)
    import hydra

    compose(hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="show")(_show), SHOW)
    signals.ignore()


if __name__ == "__main__":
    main()
