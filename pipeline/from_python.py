"""``extract_features(...)`` does what ``python -m pipeline.run`` does, from a script or a notebook.

Its errors are exceptions; it changes no handler of signals and never ends the process.
TensorFlow is loaded after the options have been found right.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .cli import GROUP_NAMES
from .config import check_options, defaults, nested
from .errors import OptionError, nearest
from .network import load_undisturbed

if TYPE_CHECKING:
    from .store.reader import Run

# Names in Python of those options whose last word alone would not say what they are.
_OWN_NAMES = {name: name.replace(".", "_") for name in ("output.dir", "engine.address", "engine.workers")} | GROUP_NAMES
# What makes no run to be returned.
_OF_THE_COMMAND = ("dry_run", "part")


def extract_features(
    dir: str | os.PathLike[str] | None = None,
    layers: str | Sequence[str] = "relu4_1",
    *,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Extract features of a folder of images, or go on where an earlier call has stopped, and open the result.

    ::

        run = extract_features("imgs", ["relu4_1"], size=256, weights="random")
        run["relu4_1"][17]

    The same options, checks, files and bits as ``python -m pipeline.run``. An option is named by its last word (``size`` is
    ``data.size``), or in full: ``**{"data.size": 256}``; ``output.dir`` is ``output_dir``, ``engine.address`` and
    ``engine.workers`` are ``engine_address`` and ``engine_workers``, ``reduction.gem.p`` is ``gem_p``.
    Where all is there already, nothing is computed. After Ctrl-C finished shards are kept, and the same call goes on.

    Args:
        dir: Folder of images, walked recursively; or else one of ``list``, ``tar`` and ``tfds``.
        layers: Names, patterns, blocks, or ``"all"``.
        quiet: Whether only warnings are printed; the whole of it is in ``run.log`` all the same.
        **options: Those of the README's table.

    Returns:
        The finished run, open.

    Raises:
        OptionError: An option is wrong; at once, before anything is loaded or written.
        PipelineError: What else stopped it, in one line; finished shards are kept.
    """
    checked = check_options(plain_options({"data.dir": dir, "layers": layers, **options}))
    # Not in this thread: an import that Ctrl-C breaks off cannot be done again in the same process.
    load_undisturbed("pipeline.job").run(checked, quiet=quiet)
    from .store.reader import open_run

    return open_run(checked.folder)


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options that are named by their last words, or in full, as nested ones with plain values.

    Raises:
        OptionError: There is no such option.
    """
    known = [name for name in defaults() if name not in _OF_THE_COMMAND]
    # Of options with the same last word the first has it alone; by its full name there is each.
    full_names = {_short_name(name): name for name in reversed(known)} | {name: name for name in known}
    for word in options:
        if word not in full_names:
            near = nearest(word.rpartition(".")[2], full_names)
            raise OptionError(f"{word}: there is no such option, got {word!r}. Expected one of: {near}. See the README's table.")
    return nested({full_names[word]: _plain(value) for word, value in options.items()})


def _short_name(name: str) -> str:
    if name.startswith("reduction."):
        return name.removeprefix("reduction.").replace(".", "_")
    return _OWN_NAMES.get(name, name.rsplit(".", 1)[-1])


def _plain(value: Any) -> Any:
    """Return a value as YAML would have it: paths as text, NumPy's numbers as Python's, sequences as lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    return list(map(_plain, value)) if isinstance(value, (tuple, list, np.ndarray)) else value
