"""Who makes the shards of a run: this process, see :func:`open_local`, or tasks on many machines, see :mod:`.ray`.

An engine is a function that opens it for a run, a context manager; what it yields makes what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeAlias

from ..config import Options
from ..extract import make_shards, make_stages
from ..machine import usable_cores
from ..network.keras_models import KerasWeights
from ..network.known_weights import Weights
from ..progress import Made, Progress, Stopwatch
from ..records import RunSpec
from ..signals import leaving_at_once
from ..store.run_folder import RunFolder
from ..store.writer import Writer

# Makes what is missing in the run folder, tells the progress, and returns what was made.
Engine: TypeAlias = Callable[[Progress, Stopwatch], Made]


@contextmanager
def open_local(options: Options, spec: RunSpec, weights: Weights | KerasWeights, run_folder: RunFolder) -> Iterator[Engine]:
    """Make the stages, and yield what makes the missing shards, those of one part after the other.

    Raises:
        OptionError: The device asked for is not there.
    """
    threads = options.runtime.workers or usable_cores()
    with leaving_at_once():
        stages = make_stages(options, spec, weights)
    made_on = stages.device.attributes(options.runtime.precision)

    def make(progress: Progress, watch: Stopwatch) -> Made:
        made = Made(stages.device.kind)
        for part, missing in run_folder.parts():
            part = replace(part, attributes={**part.attributes, **made_on})
            writer = Writer(run_folder.path, part, missing, threads, digests=run_folder.digests())
            make_shards(writer, part, missing, stages, watch, progress.count)
            made.add(writer)
        return made

    yield make
