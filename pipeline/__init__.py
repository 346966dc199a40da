"""Batch extraction of VGG activations from folders of images into chunked HDF5.

``open_run`` reads what a run has written; ``python -m pipeline.run`` writes it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store.reader import Run, open_run

__all__ = ["Run", "open_run"]


def __getattr__(name: str) -> Any:
    # Late, so that the doors can refuse a wrong option without loading h5py.
    if name in __all__:
        from .store import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
