from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# A busy machine is no fault of the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

PHOTOGRAPHS = Path(__file__).parent / "photographs"
# Two widths, since there is code of its own for each.
THIN_CHANNELS = (64, 64, 128, 128, 128)
MEAN_PIXEL = np.array([123.68, 116.779, 103.939])


def pytest_collection_finish() -> None:
    """Leaves out of every later look for garbage what the modules of the tests have loaded: each run in this process has one."""
    gc.freeze()


@pytest.fixture(scope="session")
def photographs() -> Path:
    return PHOTOGRAPHS


@pytest.fixture(scope="session")
def random_weights() -> Callable[..., Any]:
    """Gives seeded weights; those of a network, of the widths that it has at the time, are drawn once."""
    from functools import cache

    from pipeline.network import architectures
    from pipeline.network.weights import load_weights

    @cache
    def draw(network: str, classifier: bool, channels: tuple[int, ...]) -> Any:
        return load_weights(network, "random", seed=0, classifier=classifier, progress=False, log=lambda line: None)

    return lambda network="vgg19", classifier=False: draw(network, classifier, architectures.BLOCK_CHANNELS)


@pytest.fixture(autouse=True)
def _weights_are_drawn_once(monkeypatch: pytest.MonkeyPatch, random_weights: Callable[..., Any]) -> None:
    """Has runs of this process take random weights that have been drawn for an earlier one."""
    job = sys.modules.get("pipeline.job")
    if job is None:
        return
    load_weights = job.load_weights

    def load_once(network: str, source: str, *, seed: int, classifier: bool, **rest: Any) -> Any:
        if (source, seed) == ("random", 0):
            return random_weights(network, classifier)
        return load_weights(network, source, seed=seed, classifier=classifier, **rest)

    monkeypatch.setattr(job, "load_weights", load_once)


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives a folder of TensorFlow Datasets sets that holds one, ``tiny``, made without a network."""
    if sys.version_info < (3, 11):
        pytest.skip("TensorFlow Datasets does not run on this Python")
    tfds = pytest.importorskip("tensorflow_datasets", exc_type=ImportError)
    from .tiny_sets import make_tiny_set

    return make_tiny_set(tfds, tmp_path_factory.mktemp("sets"))


@pytest.fixture
def thin_weights(monkeypatch: pytest.MonkeyPatch, random_weights: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the networks' blocks as thin as Winograd's code can be, and gives their seeded weights: all layers, little work."""
    from pipeline.network import architectures

    monkeypatch.setattr(architectures, "BLOCK_CHANNELS", THIN_CHANNELS)
    return random_weights


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has HDF5 files be checked in this process, which is quicker, and right where none makes HDF5 crash."""
    from pipeline.store import verification

    monkeypatch.setattr(verification, "check_in_child", verification.check_hdf5)
