"""Loads TensorFlow, which takes seconds and talks; everything before this runs without it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def load_tensorflow() -> None:
    """Load TensorFlow and keep from the terminal what its C++ part writes meanwhile; let it log errors only after.

    It tells of CPU instructions and missing GPU drivers on file descriptor 2, where no setting of its own reaches it.
    What is wrong with an installation comes as an exception all the same.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        undisturbed(_import_tensorflow)
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def undisturbed(work: Callable[[], Result]) -> Result:
    """Do something in a thread of its own, and wait for it. Ctrl-C ends the waiting, and the work goes on.

    For imports: signals raise in the main thread, and a library of which half is loaded can be neither used nor loaded again.

    Raises:
        BaseException: What the work raised.
    """
    return ThreadPoolExecutor(1, "import").submit(work).result()


def _import_tensorflow() -> None:
    import tensorflow as tf

    # Its warnings are for those who write graphs, not for those who run them.
    tf.get_logger().setLevel("ERROR")
