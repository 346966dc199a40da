"""Batch extraction of VGG activations from folders of images into chunked HDF5.

``extract_features`` does what ``python -m pipeline.run`` does; ``open_run`` reads what a run has written; ``layer_table`` gives
the layers of a network with their shapes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from .layers import layer_table
    from .store.reader import Run, open_run

__all__ = ["Run", "extract_features", "layer_table", "open_run"]

_MODULES = {"Run": "store.reader", "open_run": "store.reader", "layer_table": "layers"}


def __getattr__(name: str) -> Any:
    # Late, so that the commands can refuse a wrong option without loading h5py.
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def extract_features(
    dir: str | os.PathLike[str] | None = None,
    layers: str | Sequence[str] = "relu4_1",
    *,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Extract features of a folder of images, or go on where an earlier call has stopped, and open the result.

    The same options, checks, files and bits as ``python -m pipeline.run``. An option is named by its last word (``size`` is
    ``data.size``), or in full: ``**{"data.size": 256}``; two words have ``output_dir``, ``engine_address``, ``engine_workers``
    and the reductions' (``gem_p``). Changes no handler of signals: after Ctrl-C finished shards are kept.

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
    from .config import Options, check_options, plain_options
    from .network import load_undisturbed

    checked: Options = check_options(plain_options({"data.dir": dir, "layers": layers, **options}))
    # Not in this thread: an import that Ctrl-C breaks off cannot be done again in the same process.
    load_undisturbed("pipeline.job").run(checked, quiet=quiet)
    from .store.reader import open_run

    return open_run(checked.folder)
