"""The networks: tables of layers, weights, and what computes them. TensorFlow takes seconds to load, and so comes last."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def load_tensorflow() -> None:
    """Load TensorFlow and keep from the terminal what its C++ part writes meanwhile; let it log errors only after.

    It tells of CPU instructions and missing GPU drivers on file descriptor 2, where no setting of its own reaches it.
    What is wrong with an installation comes as an exception all the same.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    is_new, collects = "tensorflow" not in sys.modules, gc.isenabled()
    # It makes a million objects that stay: to look for garbage among them takes a seventh of the time now, and a second at the
    # end of the process.
    gc.disable()
    try:
        os.dup2(nowhere, 2)
        # Its warnings are for those who write graphs, not for those who run them.
        load_undisturbed("tensorflow").get_logger().setLevel("ERROR")
    finally:
        if is_new:
            gc.freeze()
        if collects:
            gc.enable()
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def load_undisturbed(name: str) -> Any:
    """Import a module in a thread of its own, and wait for it. Ctrl-C ends the waiting, and the import goes on.

    Signals raise in the main thread, and a library of which half is loaded can be neither used nor loaded again.
    """
    return ThreadPoolExecutor(1, "import").submit(importlib.import_module, name).result()
