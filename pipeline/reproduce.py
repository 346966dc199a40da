"""The command that makes a run again, or goes on with it: from its stored options, for a shell."""

# Paths are texts here, and stay as they are written.
# ruff: noqa: PTH100, PTH111, PTH118, PTH120

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .cli import GROUP_NAMES, LITERAL_OPTIONS, is_typed, quoted
from .config import ReduceOptions, check_options, defaults, flat, known_keys, nested, tar_folder
from .errors import OptionError
from .storage import is_address

# What Hydra takes for a word between brackets and commas, without quotes.
_WORD = re.compile(r"[A-Za-z_*?][A-Za-z0-9_*?.-]*")


def differing_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not as they are by default, in the order of the defaults; unknown ones of another version last.

    Args:
        config: Nested, as stored with a run.
    """
    usual, given = defaults() | (defaults(ReduceOptions) if "run" in config else {}), flat(config)
    names = [name for name in usual if name in given] + [name for name in given if name not in usual]
    return {name: given[name] for name in names if name not in usual or given[name] != usual[name]}


def argument(name: str, value: Any) -> str:
    """Return an option as :mod:`pipeline.cli` and Hydra read it; not yet quoted for a shell."""
    if name in LITERAL_OPTIONS and isinstance(value, (str, int, float)):
        return f"{name}={value}" if is_typed(str(value)) else f"{name}={quoted(str(value))}"
    return f"{GROUP_NAMES.get(name, name)}={_grammar(value)}"


def _grammar(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_grammar, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    return value if _WORD.fullmatch(value) and value not in ("null", "true", "false") else quoted(value)


def command_again(config: Mapping[str, Any], folder: Path, data_root: str) -> str:
    """Return the command for a shell in the present folder.

    Args:
        config: Nested, as stored with the run.
        folder: Where the run is now.
        data_root: Absolute folder that the keys of its images are relative to; "" if nothing tells.
    """
    options = {name: value for name, value in differing_options(config).items() if name not in ("output.dir", "name")}
    # "." has no name of its own.
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    if options.get("output.existing") in ("replace", "fail"):
        # To make a run again is to go on with it: these would remove what is there, or refuse it.
        del options["output.existing"]
    roots: dict[str, Callable[[list[str]], str]] = {"data.dir": lambda texts: texts[0], "data.tar": tar_folder}
    if options.get("data.dir") is None:
        # Beside a folder, that of the list is no root of the keys.
        roots["data.list"] = lambda texts: os.path.dirname(texts[0])
    for key, root_of in roots.items():
        if data_root and options.get(key) is not None:
            options[key] = _from_here(options[key], root_of, data_root)
    usual = ""
    with suppress(OptionError):
        usual = check_options(nested(options)).name
    if folder.absolute().parent != Path("outputs").absolute():
        options["output.dir"] = str(folder.parent)
    if config.get("name") is not None or folder.name != usual:
        options["name"] = folder.name
    module = "pipeline.run"
    if "run" in config:
        # It was reduced, and no extraction makes it.
        module = "pipeline.reduce"
        options = {name: value for name, value in options.items() if name in known_keys(ReduceOptions)} | {"name": folder.name}
    return " ".join([f"python -m {module}", *(shlex.quote(argument(name, value)) for name, value in options.items())])


def _from_here(given: Any, root_of: Callable[[list[str]], str], root: str) -> Any:
    """Return the path or paths of an option as they are found from here: they may have been typed in another folder.

    Args:
        given: As typed.
        root_of: Gives the folder that the keys are relative to, from absolute paths.
        root: The same, as it was.
    """
    texts = [os.path.abspath(os.path.expanduser(text)) for text in (given if isinstance(given, list) else [str(given)])]
    here = root_of(texts)
    if here == root or is_address(str(given)):
        return given
    found = [os.path.normpath(os.path.join(root, os.path.relpath(text, here))) for text in texts]
    return found if isinstance(given, list) else found[0]
