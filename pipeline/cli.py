"""The entry of every command: Hydra's command line taken as typed, errors in one line, exit codes, signals, several jobs.

Exit codes: 2 for a wrong option, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM. Loads Hydra, and the options, once it
listens to signals: in an import Ctrl-C is a traceback otherwise. The way back too: the command that makes a stored run again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from . import signals
from .errors import OptionError, PipelineError, printable, system_errors_in_one_line

# Options that are lists: commas make one, with brackets or without.
_LISTS = ("layers", "channels", "images")
_MULTIRUN = frozenset({"-m", "--multirun"})
# Of what is swept: what the name of a run tells anyway, and what is one run.
_NOT_IN_NAMES = frozenset({"data.split", "network.name", "name", "output.dir", "part"})
# What Hydra takes for a word between brackets and commas, without quotes.
_WORD = re.compile(r"[A-Za-z_*?][A-Za-z0-9_*?.-]*")


def start(module: str, work: Callable[[Any], object], *, when_stopped: str) -> None:
    """Run a command on the process's command line; leave with an exit code where it fails.

    ``work`` is called with the checked options, in each job; ``when_stopped`` says what Ctrl-C and SIGTERM leave, and what to do.
    """
    signals.install(when_stopped)
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from . import config

    # Hydra would print its errors itself, over several lines and with its own exit code.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does by itself: a name need not be such as this terminal's encoding has.
        sys.stdout.reconfigure(errors="backslashreplace")
    kind = declare_options(module)
    sys.argv[1:] = arguments = literal_arguments(sys.argv[1:])
    is_several = "--multirun" in arguments
    alone: list[Any] = []

    def do(composed: Any) -> None:
        """Do the work of one job; of several, each may be in another process."""
        values: Any = OmegaConf.to_container(composed, resolve=True)
        checked = config.check_options(values, kind)
        if is_several and values.get("name", "") is None:
            checked = replace(checked, name=checked.name + sweep_suffix(arguments, HydraConfig.get().overrides.task))
        signals.raise_in_main_thread()
        with system_errors_in_one_line():
            work(checked)

    name = "config" if kind is config.Options else "options"
    compose = hydra.main(version_base="1.3", config_path=configuration_folder(), config_name=name)
    try:
        # Hydra would print lines of its own about what is raised in a job: one that is alone is done after it.
        with signals.clearing(_end_joblib):
            compose(do if is_several else alone.append)()
        for composed in alone:
            do(composed)
        sys.stdout.flush()
    except PipelineError as error:
        fail(error)
    except (HydraException, OmegaConfBaseException) as error:
        fail(wrong_override(str(error), kind))
    except KeyboardInterrupt:
        signals.stop()
    except BrokenPipeError:
        # The reader of the pipe, `head` for instance, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        # Before a job it is a setting of Hydra's own that is wrong; in one it is the program, or what launched it.
        if alone or is_several:
            raise
        fail(wrong_override(str(error) or type(error).__name__, kind))
    signals.ignore()


def _end_joblib() -> None:
    """End joblib's workers, which would go on without whoever started them. What they are at is made by whoever goes on."""
    executor = getattr(sys.modules.get("joblib.externals.loky.reusable_executor"), "_executor", None)
    for worker in [*getattr(executor, "_processes", ())]:
        with suppress(OSError):
            os.kill(worker, signal.SIGTERM)


def fail(error: PipelineError) -> NoReturn:
    """Print an error as one line and leave."""
    print(f"error: {printable(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)


def configuration_folder() -> str:
    """Return the folder of ``config.yaml``: inside an installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return str(inside if inside.is_dir() else Path(__file__).parent.parent / "conf")


def declare_options(module: str) -> type:
    """Tell Hydra names and defaults of a command's options, as its configuration ``options``; return their class."""
    from hydra.core.config_store import ConfigStore

    from . import config

    kind = config.COMMANDS[module.rpartition(".")[2]]
    # The program makes no folder and no log by Hydra, but for a folder for what Hydra notes of several jobs.
    of_hydra = {
        "output_subdir": None,
        "run": {"dir": "."},
        "sweep": {"dir": ".multirun", "subdir": "."},
        "hydra_logging": {"root": None},
        "job_logging": {"root": None},
        "help": {"template": f"Options of python -m {module}, set as key=value, and their defaults:\n\n$CONFIG"},
    }
    ConfigStore.instance().store("options", {**config.nested(config.defaults(kind)), "hydra": of_hydra})
    return kind


def wrong_override(said: str, kind: type) -> OptionError:
    """Return what Hydra or OmegaConf says of a command line as an error of the usual form."""
    from . import config

    if found := re.match(r"Could not override '(.+?)'", said):
        return config.unknown_key(found[1], config.defaults(kind))
    if found := re.search(r"Could not find '(hydra/\w+)/(.+)'", said):
        known = ", ".join(re.findall(r"^\s+(\w+)$", said, re.MULTILINE))
        install = "Launchers come with `pip install 'deep-feature-pipeline[launchers]'`."
        return OptionError(f"{found[1]}: there is none of this name, got {found[2]!r}. Expected one of: {known}. {install}")
    first_line = " ".join(said.split("\n")[0].split()).rstrip(".")
    return OptionError(
        f"command line: {first_line}. Expected key=value, values with commas, equals signs or brackets in quotes inside quotes, "
        "e.g. 'name=\"a,b\"'. Run the command with --help."
    )


def literal_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the command line with paths and names quoted, so that Hydra takes them as typed and not as its own grammar.

    Unquoted, ``2024_01`` would be the number 202401, and ``~/imgs`` or ``a,b`` an error. What is quoted already stays as it is,
    and so do commas and parentheses of a sweep, whose ``-m`` may stand anywhere. Lists with commas get their brackets.
    """
    others = [re.sub("^(network|engine)=", r"\1.name=", argument) for argument in arguments if argument not in _MULTIRUN]
    if len(others) < len(arguments):
        return ["--multirun", *(argument if {*",("} & {*argument} else _literal(argument) for argument in others)]
    tars = [argument.partition("=")[2] for argument in others if argument.startswith("data.tar=")]
    if len(tars) > 1:
        # The shell makes many arguments of data.tar=train-{000..012}.tar.
        others = [argument for argument in others if not argument.startswith("data.tar=")]
        others.append(f"data.tar=[{','.join(map(quoted, tars))}]")
    return [_literal(argument) for argument in others]


def _literal(argument: str) -> str:
    from .config import TEXT_OPTIONS

    key, equals, value = argument.partition("=")
    if key in _LISTS and "," in value and not value.startswith(("[", "'", '"')):
        return f"{key}=[{value}]"
    is_list = key == "data.tar" and value[:1] + value[-1:] == "[]"
    return f"{key}={quoted(value)}" if equals and key in TEXT_OPTIONS and _is_typed(value) and not is_list else argument


def _is_typed(value: str) -> bool:
    """Tell whether the value of a literal option is meant as it stands: neither quoted already, nor null."""
    return value != "null" and not (len(value) > 1 and value[0] == value[-1] and value[0] in "\"'")


def quoted(text: str) -> str:
    """Return a text in double quotes, which Hydra reads as exactly this text."""
    # Source: OmegaConf, "Escaping in interpolation strings": a backslash before ${ keeps it from being looked up.
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    # Source: Hydra, "The extended override grammar", quoted values: backslashes count only before a quote.
    text = re.sub(r'(\\*)("|\Z)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), text)
    return f'"{text}"'


def sweep_suffix(arguments: Sequence[str], overrides: Sequence[str]) -> str:
    """Return what tells the run of one job, of these overrides, from those of the others: ``-layers=relu4_1-size=64``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    typed = OverridesParser.create().parse_overrides([argument for argument in arguments if not argument.startswith("-")])
    swept = {override.key_or_group for override in typed if override.is_sweep_override()} - _NOT_IN_NAMES
    suffix = ""
    for key, _, value in (override.partition("=") for override in overrides):
        if key in swept:
            text = re.sub("[,/]", "+", value.strip("[]\"'"))
            plain = re.sub(r"[^\w.+-]", "-", text)[:80]
            # Other characters, or more of them, would make one name of two.
            plain += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}" * (plain != text)
            suffix += f"-{key.rsplit('.', 1)[-1]}={plain}"
    return suffix


def differing_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored options of a run, by their full names, that are not as they are by default."""
    from .config import Options, ReduceOptions, defaults, flat

    usual = defaults(ReduceOptions if "run" in stored else Options)
    return {name: value for name, value in flat(stored).items() if name not in usual or value != usual[name]}


def command_again(stored: Mapping[str, Any], folder: Path) -> str:
    """Return the command for a shell that makes the run with these stored options, or goes on with it, where it is now."""
    # "." has no name of its own.
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    options = differing_options({**stored, "output.dir": str(folder.parent), "name": folder.name})
    if options.get("output.existing") in ("replace", "fail"):
        # To make a run again is to go on with it: these would remove what is there, or refuse it.
        del options["output.existing"]
    module = "pipeline.reduce" if "run" in stored else "pipeline.run"
    return " ".join([f"python -m {module}", *(shlex.quote(_argument(name, value)) for name, value in options.items())])


def _argument(name: str, value: Any) -> str:
    from .config import TEXT_OPTIONS

    is_typed = name in TEXT_OPTIONS and isinstance(value, (str, int, float)) and _is_typed(str(value))
    return f"{name.removesuffix('.name')}={value if is_typed else _grammar(value)}"


def _grammar(value: Any) -> str:
    """Return a value as Hydra reads it."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_grammar, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    return value if _WORD.fullmatch(value) and value not in ("null", "true", "false") else quoted(value)
