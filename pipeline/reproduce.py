"""The command that makes a run again, or goes on with it: from its stored options, for a shell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cli import GROUP_NAMES, LITERAL_OPTIONS, is_typed, quoted
from .config import Options, ReduceOptions, defaults, flat

# What Hydra takes for a word between brackets and commas, without quotes.
_WORD = re.compile(r"[A-Za-z_*?][A-Za-z0-9_*?.-]*")


def differing_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored options, by their full names, that are not as they are by default."""
    usual = defaults(ReduceOptions if "run" in config else Options)
    return {name: value for name, value in flat(config).items() if name not in usual or value != usual[name]}


def _argument(name: str, value: Any) -> str:
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


def command_again(config: Mapping[str, Any], folder: Path) -> str:
    """Return the command for a shell that makes the run with these stored options in the folder where it is now."""
    # "." has no name of its own.
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    options = differing_options({**flat(config), "output.dir": str(folder.parent), "name": folder.name})
    if options.get("output.existing") in ("replace", "fail"):
        # To make a run again is to go on with it: these would remove what is there, or refuse it.
        del options["output.existing"]
    module = "pipeline.reduce" if "run" in config else "pipeline.run"
    return " ".join([f"python -m {module}", *(shlex.quote(_argument(name, value)) for name, value in options.items())])
