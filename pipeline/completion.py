"""Completion of options in bash and zsh, for ``python -m pipeline.run`` as for ``deep-features``, and for the other commands.

Hydra's own serves installed programs and ``python file.py``, not ``python -m``, knows no choices and starts Python at every press
of the key. Here everything is written into the script: nothing is started.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import schema
from .config import WEIGHTS
from .network.layers import NETWORKS, SYNONYMS, layer_table

# Command -> name in pipeline/schema.py of what holds its options.
COMMANDS = {
    "run": "Schema",
    "layers": "Schema",
    "verify": "VerifySchema",
    "index": "IndexSchema",
    "show": "ShowSchema",
    "plot": "PlotSchema",
}
FOLDERS = ("data.dir", "output.dir", "run")
FILES = ("data.list", "data.tar", "network.weights", "file")
FLAGS = ("-sc", "--shell-completion")

_SCRIPT = r"""
_deep_features_values() {
    case "$1" in
@VALUES@
    esac
}
_deep_features() {
    local line=${COMP_LINE:0:$COMP_POINT} door options current key value word before last
    case "$line" in
        *' -m pipeline.'*) door=${line#* -m pipeline.} ;;
        *deep-features-*) door=${line#*deep-features-} ;;
        *deep-features*) door="run ${line#*deep-features}" ;;
        *) [ -n "$_deep_features_before" ] && "$_deep_features_before" "$@"; return ;;
    esac
    case "$door" in *' '*) ;; *) return ;; esac
    case "${door%% *}" in
@OPTIONS@
        *) return ;;
    esac
    current=${line##* }
    COMPREPLY=()
    case "$current" in
        *=*) ;;
        *) COMPREPLY=($(compgen -W "$options" -- "$current")); compopt -o nospace 2>/dev/null; return ;;
    esac
    key=${current%%=*} value=${current#*=}
    # To bash what comes after = is a word of its own; to zsh it is not.
    word=${ZSH_VERSION:+$key=}
    # Of a list, what stands before its last word stays.
    last=${value##*[\[,]} before=$word${value%"$last"}
    COMPREPLY=($(compgen -P "$before" -W "$(_deep_features_values "$key")" -- "$last"))
    case " @PATHS@ " in
        *" $key "*) compopt -o filenames 2>/dev/null; while IFS= read -r last; do COMPREPLY+=("$word$last"); done ;;
    esac < <(case " @FOLDERS@ " in *" $key "*) compgen -d -- "$value" ;; *) compgen -f -- "$value" ;; esac)
}
_deep_features_before=$(complete -p python 2>/dev/null | sed -n 's/.* -F \([^ ]*\) .*/\1/p')
[ "$_deep_features_before" = _deep_features ] && _deep_features_before=
complete -o default -o bashdefault -F _deep_features python python3 @PROGRAMS@
# zsh decides here, and not at each press, whether a space follows.
[ -z "$ZSH_VERSION" ] || complete -o nospace -F _deep_features python python3 @PROGRAMS@
"""


@dataclass(frozen=True, slots=True)
class _Option:
    """An option, and the words that its value may be."""

    name: str
    words: Sequence[str]


def programs() -> list[str]:
    """Gives the names of the console scripts."""
    return ["deep-features", *(f"deep-features-{name}" for name in COMMANDS if name != "run")]


def script() -> str:
    """Gives the script that makes bash, or zsh after its ``bashcompinit``, complete options."""
    options = {command: _options(name) for command, name in COMMANDS.items()}
    values = {option.name: option.words for of in options.values() for option in of if option.words}
    text = _SCRIPT.replace("@VALUES@", "\n".join(f"        {name}) echo {_words(words)} ;;" for name, words in values.items()))
    names = {command: [*(f"{option.name}=" for option in of), "--help"] for command, of in options.items()}
    text = text.replace("@OPTIONS@", "\n".join(f"        {command}) options={_words(of)} ;;" for command, of in names.items()))
    text = text.replace("@PATHS@", " ".join((*FOLDERS, *FILES))).replace("@FOLDERS@", " ".join(FOLDERS))
    return text.replace("@PROGRAMS@", " ".join(programs())).lstrip()


def removal() -> str:
    """Gives the script that takes it away again."""
    return f"complete -r python python3 {' '.join(programs())}; unset -f _deep_features _deep_features_values\n"


def answer(arguments: Sequence[str]) -> str | None:
    """Gives what a command line asks for that asks for completion; None where it is no such one, or Hydra's to answer.

    Args:
        arguments: Of the command.
    """
    if not {*FLAGS} & {*arguments}:
        return None
    if "install=bash" in arguments or "install=zsh" in arguments:
        return script()
    return removal() if "uninstall=bash" in arguments or "uninstall=zsh" in arguments else None


def _options(name: str) -> list[_Option]:
    options = schema.defaults(getattr(schema, name)())
    return [_Option("network" if key == "network.name" else key, _choices(key, value)) for key, value in options.items()]


def _choices(key: str, default: Any) -> Sequence[str]:
    if key in schema.CHOICES:
        return schema.CHOICES[key]
    if key == "layers":
        names = dict.fromkeys(layer.name for network in sorted(NETWORKS, reverse=True) for layer in layer_table(network))
        return [*names, *SYNONYMS, *(f"block{number}" for number in range(1, 6)), "all"]
    if key == "network.weights":
        return WEIGHTS
    if isinstance(default, bool):
        return "true", "false"
    return (str(default),) if isinstance(default, (int, float, str)) and key not in FOLDERS else ()


def _words(words: Sequence[str]) -> str:
    return shlex.quote(" ".join(words))
