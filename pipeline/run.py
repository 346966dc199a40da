"""Door: ``python -m pipeline.run``. From the command line to checked options, and from errors to one line and an exit code.

TensorFlow is loaded by the rooms behind :mod:`pipeline.assemble`, after the options have been found right.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .config import check_options, unknown_key
from .errors import OptionError, PipelineError, nearest
from .schema import Schema

# Source: POSIX shells report death by signal n as 128 + n.
INTERRUPTED_EXIT_CODE = 130
TERMINATED_EXIT_CODE = 143


class Terminated(BaseException):
    """SIGTERM: what is unfinished is dropped as for Ctrl-C, with an exit code of its own."""


def configuration_folder() -> str:
    """Gives the folder of YAML files: inside an installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return str(inside if inside.is_dir() else Path(__file__).parent.parent / "conf")


def wrong_override(error: Exception) -> OptionError:
    """Turns what Hydra or OmegaConf says of the command line into an error of the house's form."""
    text = str(error)
    chain: BaseException | None = error
    while chain is not None:
        missing = re.search(r"Key '([^']+)' (?:is )?not in|Could not override '([^']+)'", str(chain))
        if missing:
            key = (missing.group(2) or missing.group(1)).lstrip("+~")
            whole = re.search(r"full_key: (\S+)", str(chain))
            return unknown_key(whole.group(1) if whole and key in whole.group(1) else key)
        chain = chain.__cause__ or chain.__context__
    group = re.search(r"Could not find '(\w+)/([^']+)'", text)
    if group:
        options = [line.strip() for line in text.splitlines()[1:] if re.fullmatch(r"\s+\w+", line)]
        return OptionError(
            f"{group[1]}: there is none of this name, got {group[2]!r}. Expected one of: {nearest(group[2], options)}. "
            f"Further ones are files in conf/{group[1]}."
        )
    group = re.search(r"Could not override '?(\S+?)'?\.", text)
    if group:
        return unknown_key(group[1])
    first_line = " ".join(text.split("\n")[0].split()).rstrip(".")
    return OptionError(
        f"command line: {first_line}. Expected key=value, values with commas, equals signs or brackets in quotes "
        "inside quotes, e.g. 'data.dir=\"a,b\"'. Run `python -m pipeline.run --help` for all options."
    )


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


@hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="config")
def _run(config: DictConfig) -> None:
    # Left from here: on an exception that comes out of this function Hydra prints lines of its own.
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
        options = check_options(values)
        from .network.layers import resolve_layers

        resolve_layers(options.network.name, options.layers)
        from .assemble import run

        signal.signal(signal.SIGTERM, _terminate)
        run(options, OmegaConf.to_yaml(config, resolve=True))
    except PipelineError as error:
        fail(error)
    except OmegaConfBaseException as error:
        fail(wrong_override(error))
    except KeyboardInterrupt:
        stop("interrupted", INTERRUPTED_EXIT_CODE)
    except Terminated:
        stop("terminated", TERMINATED_EXIT_CODE)


def main() -> None:
    """Runs the command; leaves with exit code 2 for a wrong option, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM."""
    # Hydra would print its errors itself, over several lines and with its own exit code.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    ConfigStore.instance().store(name="schema", node=Schema)
    try:
        _run()
    except (HydraException, OmegaConfBaseException) as error:
        fail(wrong_override(error))
    except KeyboardInterrupt:
        stop("interrupted", INTERRUPTED_EXIT_CODE)


def fail(error: PipelineError) -> NoReturn:
    """Prints an error as one line and leaves."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def stop(word: str, exit_code: int) -> NoReturn:
    """Says that a signal stopped the run, and leaves."""
    print(f"{word}: finished shards are kept. Run the command again, with output.existing=resume, to go on.", file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
