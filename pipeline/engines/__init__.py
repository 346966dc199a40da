"""Who makes the shards of a run: this process, or tasks on many machines. Each makes them by :mod:`pipeline.extract`.

An engine is a function that opens it for a run, a context manager; what it yields makes what is missing in the run folder, tells
the progress, and returns what was made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ..progress import Progress
from ..report import Made, Stopwatch

Engine: TypeAlias = Callable[[Progress, Stopwatch], Made]
