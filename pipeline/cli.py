"""The entry of every command: Hydra's command line taken as typed, errors in one line, exit codes, signals, several jobs.

Exit codes: 2 for a wrong option, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM. Loads Hydra, and the options, once it
listens to signals: in an import Ctrl-C is a traceback otherwise.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from . import signals
from .errors import OptionError, PipelineError, nearest, printable, system_errors_in_one_line

# Options of the images: what a run is called by default.
SOURCES = ("data.dir", "data.list", "data.tar", "data.tfds")
# Options whose value is a piece of text and nothing else, of any command.
_TYPED = ("name", "output.dir", "output.scratch", "network.model", "network.weights", "engine.address", "run", "image", "file")
LITERAL_OPTIONS = frozenset((*SOURCES, *_TYPED))
# Options that are lists: commas make one, with brackets or without.
LISTS = ("layers", "channels", "images")
# Options that are a choice of files: ``network=vgg16``, not ``network.name=vgg16``.
GROUP_NAMES = {"network.name": "network", "engine.name": "engine"}
MULTIRUN = frozenset({"-m", "--multirun"})
# Of what is swept: what the name of a run tells anyway, and what is one run.
_NOT_IN_NAMES = frozenset({"data.split", "network", "name", "output.dir", "part"})


def start(module: str, work: Callable[[Any], None], *, options: str, when_stopped: str, config_name: str = "") -> None:
    """Run a command on the process's command line; leave with an exit code where it fails.

    Args:
        module: Name after ``python -m``.
        work: Is called with the checked options, in each job.
        options: Name of their class in :mod:`pipeline.config`; "": the work gets those of ``pipeline.run``, plain and unchecked.
        when_stopped: What Ctrl-C and SIGTERM leave behind, and what to do.
        config_name: Name of the file in ``conf`` with the defaults; "": as the module.
    """
    signals.install(when_stopped)
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from . import config

    # Hydra would print its errors itself, over several lines and with its own exit code.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # It was closed by what started this: a file would get its number, and what libraries print.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does by itself: a name need not be such as this terminal's encoding has.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = literal_arguments(sys.argv[1:])
    is_several = "--multirun" in arguments
    swept = _swept(arguments) if is_several else []
    kind = getattr(config, options or "Options")
    alone: list[Any] = []

    def do(composed: Any) -> None:
        """Do the work of one job; of several, each may be in another process."""
        try:
            values: Any = OmegaConf.to_container(composed, resolve=True)
        except OmegaConfBaseException as error:
            raise wrong_override(error, arguments, kind, module) from None
        checked = config.check(kind, values, module) if options else values
        if swept and values.get("name", "") is None:
            checked = replace(checked, name=checked.name + sweep_suffix(values, swept, checked.name))
        with system_errors_in_one_line():
            work(checked)

    def job(composed: Any) -> None:
        # Hydra would print lines of its own about what is raised here: a job that is alone is done after it.
        (do if is_several else alone.append)(composed)

    try:
        sys.argv[1:] = arguments
        with signals.clearing(_end_joblib):
            hydra.main(version_base="1.3", config_path=configuration_folder(), config_name=config_name or module[9:])(job)()
        for composed in alone:
            do(composed)
        sys.stdout.flush()
    except PipelineError as error:
        fail(error)
    except (KeyboardInterrupt, signals.Terminated) as error:
        signals.stop(error)
    except BrokenPipeError:
        # The reader of the pipe, `head` for instance, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        # Before a job has begun it is the command line that is wrong; in one it is the program, or what launched it.
        if alone or (is_several and not isinstance(error, (HydraException, OmegaConfBaseException))):
            raise
        fail(wrong_override(error, arguments, kind, module))
    signals.ignore()


def fail(error: PipelineError) -> NoReturn:
    """Print an error as one line and leave."""
    print(f"error: {printable(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)


def configuration_folder() -> str:
    """Return the folder of YAML files: inside an installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return str(inside if inside.is_dir() else Path(__file__).parent.parent / "conf")


def wrong_override(error: BaseException, arguments: Sequence[str], kind: type, module: str) -> OptionError:
    """Return what Hydra or OmegaConf says of a module's command line as an error of the usual form."""
    from . import config

    known = {name for key in config.defaults(kind) for name in (key, GROUP_NAMES.get(key))}
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+~")
        if "=" in argument and key not in known and not key.startswith(("-", "hydra")):
            return config.unknown_key(key, kind, module)
    said = str(error)
    if found := re.search(r"Could not find '(.+)/([^/']+)'", said):
        names = re.findall(r"^\s+(\w+)$", said, re.MULTILINE)
        install = " Launchers of jobs come with `pip install 'deep-feature-pipeline[launchers]'`." * ("/" in found[1])
        near = nearest(found[2], names)
        return OptionError(f"{found[1]}: there is none of this name, got {found[2]!r}. Expected one of: {near}.{install}")
    first_line = " ".join(said.split("\n")[0].split()).rstrip(".")
    return OptionError(
        f"command line: {first_line}. Expected key=value, values with commas, equals signs or brackets in quotes inside quotes, "
        f"e.g. 'name=\"a,b\"'. Run `python -m {module} --help` for all options."
    )


def literal_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the command line with paths and names quoted, so that Hydra takes them as typed and not as its own grammar.

    Unquoted, ``2024_01`` would be the number 202401, and ``~/imgs`` or ``a,b`` an error. What is quoted already stays as it is,
    and so do commas and parentheses of a sweep, whose ``-m`` may stand anywhere. Lists with commas get their brackets.
    """
    if MULTIRUN & {*arguments}:
        others = [argument for argument in arguments if argument not in MULTIRUN]
        return ["--multirun", *(argument if {*",("} & {*argument} else _literal(argument) for argument in others)]
    tars = [argument.partition("=")[2] for argument in arguments if argument.startswith("data.tar=")]
    if len(tars) > 1:
        # The shell makes many arguments of data.tar=train-{000..012}.tar.
        names = ",".join(quoted(name) if is_typed(name) else name for name in tars)
        arguments = [*(other for other in arguments if not other.startswith("data.tar=")), f"data.tar=[{names}]"]
    return [_literal(argument) for argument in arguments]


def _literal(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if key in LISTS and "," in value and not value.startswith(("[", "'", '"')):
        return f"{key}=[{value}]"
    if not equals or key not in LITERAL_OPTIONS or not is_typed(value):
        return argument
    if key == "data.tar" and value[:1] + value[-1:] == "[]":
        # Where there are quotes, someone knows Hydra's grammar. Commas in braces are no separators.
        parts = (quoted(part.strip()) for part in re.findall(r"(?:\{[^{}]*\}|[^,])+", value[1:-1]))
        return argument if {*value} & {*"\"'"} else f"{key}=[{','.join(parts)}]"
    return f"{key}={quoted(value)}"


def is_typed(value: str) -> bool:
    """Tell whether the value of a literal option is meant as it stands: neither quoted already, nor null."""
    return value != "null" and not (len(value) > 1 and value[0] == value[-1] and value[0] in "\"'")


def quoted(text: str) -> str:
    """Return a text in double quotes, which Hydra reads as exactly this text."""
    # Source: OmegaConf, "Escaping in interpolation strings": a backslash before ${ keeps it from being looked up.
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    # Source: Hydra, "The extended override grammar", quoted values: backslashes count only before a quote.
    text = re.sub(r'(\\*)(")', lambda match: match[1] * 2 + r"\"", text)
    text = re.sub(r"(\\+)$", lambda match: match[1] * 2, text)
    return f'"{text}"'


def _swept(arguments: Sequence[str]) -> list[str]:
    """Return the options of which jobs have different values, in the order of the command line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    with suppress(HydraException):  # which Hydra will say itself
        overrides = OverridesParser.create().parse_overrides([each for each in arguments if not each.startswith("-")])
        return [override.key_or_group for override in overrides if override.is_sweep_override()]
    return []


def sweep_suffix(values: Mapping[str, Any], swept: Sequence[str], name: str) -> str:
    """Return what tells the run of one job of a sweep from the others': ``-layers=relu4_1-size=64``.

    Each option that is swept, by its last word, and its value; but for the network and plain folders, with which the name of the
    run without this begins, and for parts, which make one run. ``values``: nested options of the job.
    """
    from .config import flat

    suffix, given = "", flat(values)
    for key in swept:
        value = given.get(f"{key}.name" if key in GROUP_NAMES.values() else key)
        text = "+".join(map(str, value)) if isinstance(value, list) else "null" if value is None else str(value)
        if key in SOURCES:
            text = "" if name.startswith(f"{text}-") else text.replace("/", "+")
        if key in _NOT_IN_NAMES or key.startswith("hydra") or not text:
            continue
        plain = re.sub(r"[^\w.+-]", "-", text)[:80]
        # Other characters, or more of them, would make one name of two.
        plain += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}" * (plain != text)
        suffix += f"-{key.rsplit('.', 1)[-1]}={plain}"
    return suffix


def _end_joblib() -> None:
    """End joblib's workers, which outlive whoever started them, for minutes. What they are at is made by whoever goes on."""
    executor = getattr(sys.modules.get("joblib.externals.loky.reusable_executor"), "_executor", None)
    for worker in [*getattr(executor, "_processes", ())]:
        with suppress(OSError):
            os.kill(worker, signal.SIGTERM)
