"""The command line of the extraction: how Hydra's grammar is kept from what a user types, and how options are written there.

Loads neither Hydra nor TensorFlow.
"""

# Paths are texts in this room, and stay as they are written.
# ruff: noqa: PTH100, PTH111, PTH118, PTH119, PTH120

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .data_source import DataSource, tar_folder
from .schema import Schema
from .storage.address import is_address

# Those whose value is a piece of text and nothing else.
LITERAL_OPTIONS = (
    *("data.dir", "data.list", "data.tar", "data.tfds", "name", "output.dir", "output.scratch", "network.weights"),
    "engine.address",
)

# Of these, the one that may be a list of such pieces.
_PATHS = "data.tar"

# Options that are lists: commas make one, with brackets or without.
LISTS = ("layers", "channels", "images")

# Options that are a choice of files: ``network=vgg16``, not ``network.name=vgg16``.
GROUP_NAMES = {"network.name": "network", "engine.name": "engine"}
# What makes several jobs of a command line, and what of an option says which.
MULTIRUN = frozenset({"-m", "--multirun"})
_SWEEPS = ",("
# What Hydra takes for a word between brackets and commas, without quotes.
_WORD = re.compile(r"[A-Za-z_*?][A-Za-z0-9_*?.-]*")
# To make a run again is to go on with it: these would remove what is there, or refuse it.
_NOT_AGAIN = ("replace", "fail")


def literal_arguments(arguments: Sequence[str], literal_options: Sequence[str] = LITERAL_OPTIONS) -> list[str]:
    """Gives the command line with paths and names quoted, so that Hydra takes them as typed and not as its own grammar.

    Unquoted, ``2024_01`` would be the number 202401, and ``~/imgs`` or ``a,b`` an error. What is quoted already stays as it is,
    and so do commas and parentheses of a sweep (``--multirun``). Lists with commas get their brackets.
    """
    if MULTIRUN & set(arguments):
        return [
            argument if set(_SWEEPS) & set(argument) else _literal_argument(argument, literal_options) for argument in arguments
        ]
    return [_literal_argument(argument, literal_options) for argument in _joined(arguments)]


def _joined(arguments: Sequence[str]) -> list[str]:
    """Gives the command line with the tar files in one list: the shell makes many arguments of train-{000..012}.tar."""
    values = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{_PATHS}=")]
    if len(values) < 2:
        return list(arguments)
    others = [argument for argument in arguments if not argument.startswith(f"{_PATHS}=")]
    return [*others, f"{_PATHS}=[{','.join(value if not _is_typed(value) else quoted(value) for value in values)}]"]


def _literal_argument(argument: str, literal_options: Sequence[str]) -> str:
    key, equals, value = argument.partition("=")
    if key in LISTS and "," in value and not value.startswith(("[", "'", '"')):
        return f"{key}=[{value}]"
    if not equals or key not in literal_options or not _is_typed(value):
        return argument
    if key == _PATHS and value[0:1] + value[-1:] == "[]":
        # Where there are quotes, someone knows Hydra's grammar.
        return argument if set(value) & {*"\"'"} else f"{key}=[{','.join(map(quoted, _split(value[1:-1])))}]"
    return f"{key}={quoted(value)}"


def _split(text: str) -> list[str]:
    """Gives what stands between commas, but for those within braces."""
    return [part.strip() for part in re.findall(r"(?:\{[^{}]*\}|[^,])+", text)]


def _is_typed(value: str) -> bool:
    """Tells whether the value of a literal option is meant as it stands: neither quoted already, nor null."""
    return value != "null" and not (len(value) > 1 and value[0] == value[-1] and value[0] in "\"'")


def quoted(text: str) -> str:
    """Gives a text in double quotes, which Hydra reads as exactly this text."""
    # Source: Hydra, "The extended override grammar", quoted values: backslashes count only before a quote.
    text = re.sub(r'(\\*)(")', lambda match: match[1] * 2 + r"\"", without_interpolation(text))
    text = re.sub(r"(\\+)$", lambda match: match[1] * 2, text)
    return f'"{text}"'


def without_interpolation(text: str) -> str:
    r"""Gives a text that OmegaConf resolves to exactly this text: a backslash before ``${`` keeps it from being looked up."""
    # Source: OmegaConf, "Escaping in interpolation strings".
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def differing_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the options that are not as they are by default, in the order of the schema; unknown ones of another version last.

    Args:
        config: Nested, as stored with a run.
    """
    defaults, given = dict(_flat(asdict(Schema()))), dict(_flat(config))
    names = [name for name in defaults if name in given] + [name for name in given if name not in defaults]
    # None is a value too.
    return {name: given[name] for name in names if name not in defaults or given[name] != defaults[name]}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def argument(name: str, value: Any) -> str:
    """Gives an option as Hydra reads it, and :func:`literal_arguments` before it; not yet quoted for a shell."""
    name = GROUP_NAMES.get(name, name)
    if name in LITERAL_OPTIONS and value is not None and not isinstance(value, (list, tuple)):
        return f"{name}={value}" if _is_typed(str(value)) else f"{name}={quoted(str(value))}"
    return f"{name}={_grammar(value)}"


def _grammar(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_grammar, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and not (_WORD.fullmatch(value) and value not in ("null", "true", "false")):
        return quoted(value)
    return str(value)


def shell_word(text: str) -> str:
    """Gives one word for a shell, in which a terminal finds nothing to obey: neither a line's end nor an escape."""
    if text.isprintable():
        return shlex.quote(text)
    # Source: POSIX.1-2024, Shell Command Language, 2.2.4 Dollar-Single-Quotes; bash and zsh have always had them.
    plain = (mark if mark.isprintable() else _escaped(mark) for mark in re.sub(r"([\\'])", r"\\\1", text))
    return f"$'{''.join(plain)}'"


def _escaped(mark: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in mark.encode("utf-8", "surrogateescape"))


def command_again(config: Mapping[str, Any], folder: Path, data_root: str) -> str:
    """Gives the command that makes a run again, or goes on with it where it lies; for a shell, from the present folder.

    Args:
        config: Nested, as stored with the run.
        folder: Where the run is now.
        data_root: Absolute folder that the keys of its images are relative to; "" if nothing tells.
    """
    data, options = config.get("data", {}), differing_options(config)
    directory, listing = _directory(data.get("dir"), data_root), _listing(data.get("list"), data, data_root)
    tars = _tars(data.get("tar"), data_root)
    # "." has no name of its own.
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    options |= {"data.dir": directory, "data.list": listing, "data.tar": tars}
    options |= {"name": folder.name, "output.dir": str(folder.parent)}
    if options.get("output.existing") in _NOT_AGAIN:
        del options["output.existing"]
    source = DataSource(_path(directory), _path(listing), _texts(tars), data.get("tfds"), data.get("split"))
    if config.get("name") is None and options["name"] == f"{source.name}-{config.get('network', {}).get('name')}":
        del options["name"]
    if folder.absolute().parent == Path("outputs").absolute():
        del options["output.dir"]
    first, last = ("data.dir", "data.list", "data.tar", "data.tfds", "data.split", "layers"), ("output.dir", "name")
    middle = [name for name in options if name not in (*first, *last)]
    given = [name for name in (*first, *middle, *last) if name in options]
    unset = [name for name in ("data.dir", "data.list", "data.tar") if options[name] is None]
    words = [shell_word(argument(name, options[name])) for name in given if name not in unset]
    return " ".join(["python -m pipeline.run", *words])


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


def _texts(value: Any) -> tuple[str, ...] | None:
    return None if value is None else tuple(map(str, value)) if isinstance(value, (list, tuple)) else (str(value),)


def _directory(given: Any, root: str) -> str | None:
    """Gives the data folder as it is found from here: it may have been typed in another folder."""
    if given is None or not root or is_address(str(given)) or _absolute(given) == root:
        return None if given is None else str(given)
    return root


def _listing(given: Any, data: Mapping[str, Any], root: str) -> str | None:
    """Gives the list as it is found from here. Without a data folder beside it, it lies in the folder of the keys."""
    if (
        given is None
        or not root
        or is_address(str(given))
        or data.get("dir") is not None
        or os.path.dirname(_absolute(given)) == root
    ):
        return None if given is None else str(given)
    return os.path.join(root, os.path.basename(str(given)))


def _tars(given: Any, root: str) -> Any:
    """Gives the tar files as they are found from here; they lie in the folder of the keys, or below it."""
    names = _texts(given)
    if names is None or not root or tar_folder(names) == root:
        return given
    # What of each path comes after the folder that they share.
    before = len(Path(tar_folder(names)).parts)
    found = [os.path.join(root, *Path(_absolute(name)).parts[before:]) for name in names]
    return found if isinstance(given, (list, tuple)) else found[0]


def _absolute(given: Any) -> str:
    return os.path.abspath(os.path.expanduser(str(given)))
