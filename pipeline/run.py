"""Door: ``python -m pipeline.run``. From the command line to checked options, and from errors to one line and an exit code.

TensorFlow is loaded by the rooms behind :mod:`pipeline.assemble`, after the options have been found right.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import jobs, signals
from .command_line import LITERAL_OPTIONS, MULTIRUN, literal_arguments
from .errors import OptionError, PipelineError, nearest, printable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from .config import Options


@dataclass(frozen=True, slots=True)
class Door:
    """What differs between the commands.

    Attributes:
        module: Name after ``python -m``.
        schema: Name in :mod:`pipeline.schema` of what holds the options that exist.
        literal_options: Those whose value is a piece of text and nothing else.
        when_stopped: What Ctrl-C and SIGTERM leave behind, and what to do.
    """

    module: str
    schema: str
    literal_options: tuple[str, ...]
    when_stopped: str


RUN = Door(
    "pipeline.run",
    "Schema",
    LITERAL_OPTIONS,
    "finished shards are kept. Run the command again, with output.existing=resume, to go on.",
)


def configuration_folder() -> str:
    """Gives the folder of YAML files: inside an installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return str(inside if inside.is_dir() else Path(__file__).parent.parent / "conf")


def wrong_override(error: Exception, door: Door = RUN) -> OptionError:
    """Turns what Hydra or OmegaConf says of the command line into an error of the house's form."""
    from . import schema
    from .config import unknown_key

    text = str(error)
    chain: BaseException | None = error
    while chain is not None:
        missing = re.search(r"Key '([^']+)' (?:is )?not in|Could not override '([^']+)'", str(chain))
        if missing:
            key = (missing.group(2) or missing.group(1)).lstrip("+~")
            whole = re.search(r"full_key: (\S+)", str(chain))
            return unknown_key(
                whole.group(1) if whole and key in whole.group(1) else key, getattr(schema, door.schema)(), door.module
            )
        chain = chain.__cause__ or chain.__context__
    group = re.search(r"Could not find '(\w+)/([^']+)'", text)
    if group:
        options = [line.strip() for line in text.splitlines()[1:] if re.fullmatch(r"\s+\w+", line)]
        if group[1] == "hydra":
            return OptionError(
                f"hydra/{group[2].replace('/', ': there is none of this name, got ', 1)}. Expected one of: {', '.join(options)}. "
                f"Others come with hydra-joblib-launcher and hydra-submitit-launcher."
            )
        return OptionError(
            f"{group[1]}: there is none of this name, got {group[2]!r}. Expected one of: {nearest(group[2], options)}. "
            f"Further ones are files in conf/{group[1]}."
        )
    group = re.search(r"Could not override '?(\S+?)'?\.", text)
    if group:
        return unknown_key(group[1], getattr(schema, door.schema)(), door.module)
    first_line = " ".join(text.split("\n")[0].split()).rstrip(".")
    return OptionError(
        f"command line: {first_line}. Expected key=value, values with commas, equals signs or brackets in quotes "
        f"inside quotes, e.g. '{door.literal_options[0]}=\"a,b\"'. Run `python -m {door.module} --help` for all options."
    )


def checked_options(values: Mapping[str, Any]) -> Options:
    """Turns plain values into options that can be right together; loads nothing for it.

    Args:
        values: Nested like :class:`pipeline.schema.Schema`.

    Raises:
        OptionError: A value is wrong, or no layer is meant, or the size is too small for one.
    """
    from .config import check_options
    from .network.layers import plan_features, resolve_layers
    from .schema import AUTO

    options = check_options(values)
    layers = resolve_layers(options.network.name, options.layers)
    padding = options.network.pool_padding
    plan_features(options.network.name, layers, options.data.size_px, "same" if padding == AUTO else padding)
    return options


def _run(config: DictConfig) -> None:
    with answered():
        from omegaconf import OmegaConf

        values: Any = OmegaConf.to_container(config, resolve=True)
        options = checked_options(values)
        from .assemble import run

        if options.dry_run:
            signals.advise("nothing was written.")
        signals.heed_in_order()
        # The run is the same whoever makes which part of it.
        run(options, OmegaConf.to_yaml(OmegaConf.merge(config, {"part": None}), resolve=True))


@contextmanager
def answered(door: Door = RUN) -> Iterator[None]:
    """Turns what ends a command into a line and an exit code, before Hydra sees it and prints lines of its own.

    Of several jobs each may be another process, and the others go on: what ends one of them goes back to the command.

    Raises:
        PipelineError: What has ended a job of several.
    """
    is_job = jobs.is_one_of_several()
    try:
        yield
    except PipelineError as error:
        if is_job:
            raise
        fail(error)
    except (KeyboardInterrupt, signals.Terminated) as error:
        signals.stop(error)
    except BrokenPipeError:
        _forget_stdout()
    except Exception as error:
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, OmegaConfBaseException):
            if is_job:
                raise wrong_override(error, door) from None
            fail(wrong_override(error, door))
        if is_job:
            raise jobs.own_mistake(error) from None
        # A mistake of the program's own. Said here, so that Hydra does not take it for one of the command line.
        traceback.print_exc()
        sys.exit(1)


def _forget_stdout() -> None:
    """Lets what is still to be printed go: the reader of the pipe, `head` for instance, has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def compose(command: Callable[[], None], door: Door = RUN) -> None:
    """Runs a command of Hydra's on the command line; what Hydra finds wrong before the command starts is a wrong option.

    Args:
        command: Decorated with ``hydra.main``; answers its own errors.
        door: Whose command line it is.
    """
    from hydra.core.config_store import ConfigStore

    from . import schema

    # Hydra would print its errors itself, over several lines and with its own exit code.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    ConfigStore.instance().store(name="schema", node=getattr(schema, door.schema))
    is_several = bool(MULTIRUN & {*sys.argv[1:]})
    try:
        with jobs.without_leftovers(literal_arguments(sys.argv[1:], door.literal_options)) as arguments:
            sys.argv[1:] = arguments
            command()
        sys.stdout.flush()
    except PipelineError as error:
        fail(error)
    except (KeyboardInterrupt, signals.Terminated) as error:
        signals.stop(error)
    except BrokenPipeError:
        _forget_stdout()
    except Exception as error:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if is_several and not isinstance(error, (HydraException, OmegaConfBaseException)):
            fail(jobs.lost_job(error))
        fail(wrong_override(error, door))


def main() -> None:
    """Runs the command; leaves with exit code 2 for a wrong option, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM."""
    # Before everything that takes time, Hydra included: in an import Ctrl-C is a traceback otherwise.
    signals.heed(RUN.when_stopped)
    import hydra

    compose(hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="config")(_run))
    signals.ignore()


def fail(error: PipelineError) -> NoReturn:
    """Prints an error as one line and leaves."""
    print(f"error: {printable(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
