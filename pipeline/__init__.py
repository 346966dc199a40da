"""Batch extraction of VGG activations from folders of images into chunked HDF5.

``extract_features`` does what ``python -m pipeline.run`` does; ``open_run`` reads what a run has written; ``layer_table`` gives
the layers of a network with their shapes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .from_python import extract_features
    from .layer_rows import layer_table
    from .store.reader import Run, open_run

__all__ = ["Run", "extract_features", "layer_table", "open_run"]

_ROOMS = {"Run": "store.reader", "open_run": "store.reader", "extract_features": "from_python", "layer_table": "layer_rows"}


def __getattr__(name: str) -> Any:
    # Late, so that the doors can refuse a wrong option without loading h5py.
    if name in _ROOMS:
        return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
