"""Who makes the shards of a run: this process, see :func:`open_local`, or tasks on many machines, see :mod:`.ray`.

An engine is a function that opens it for a run, a context manager; what it yields makes what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from ..config import Options
from ..extract import make_shards, make_stages
from ..network.keras_models import KerasWeights
from ..network.known_weights import Weights
from ..progress import Made, Progress, Stopwatch
from ..signals import leaving_at_once
from ..store.run_folder import RunFolder

# Makes what is missing in the run folder, tells the progress, and returns what was made.
Engine: TypeAlias = Callable[[Progress, Stopwatch], Made]


@contextmanager
def open_local(options: Options, weights: Weights | KerasWeights, run_folder: RunFolder) -> Iterator[Engine]:
    """Make the stages, and yield what makes the missing shards, those of one part after the other.

    Raises:
        OptionError: The device asked for is not there.
    """
    with leaving_at_once():
        stages = make_stages(options, run_folder.spec, weights)

    def make(progress: Progress, watch: Stopwatch) -> Made:
        made = Made(stages.device.kind)
        for part, missing in run_folder.parts():
            made.add(make_shards(run_folder.path, part, missing, stages, run_folder.digests(), watch, progress.count))
        return made

    yield make
