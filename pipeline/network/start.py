"""Loads TensorFlow, which takes seconds and talks; everything before this runs without it."""

from __future__ import annotations

import os
import sys


def load_tensorflow() -> None:
    """Loads TensorFlow and keeps from the terminal what its C++ part writes meanwhile; lowers its voice after.

    It tells of CPU instructions and missing GPU drivers on file descriptor 2, where no setting of its own reaches it.
    What is wrong with an installation comes as an exception all the same.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow as tf

        # Its warnings are for those who write graphs, not for those who run them.
        tf.get_logger().setLevel("ERROR")
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
