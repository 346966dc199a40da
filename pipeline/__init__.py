"""Batch extraction of VGG activations from folders of images into chunked HDF5.

``extract_features`` does what ``python -m pipeline.run`` does; ``open_run`` reads what a run has written; ``layer_table`` gives
the layers of a network with their shapes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .from_python import extract_features
    from .layers import layer_table
    from .store.reader import Run, open_run

__all__ = ["Run", "extract_features", "layer_table", "open_run"]

_MODULES = {"Run": "store.reader", "open_run": "store.reader", "extract_features": "from_python", "layer_table": "layers"}


def __getattr__(name: str) -> Any:
    # Late, so that the commands can refuse a wrong option without loading h5py.
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
