"""What an engine is, and what it gives; which one a run uses."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from ..config import Options
from ..estimate import Forecast
from ..network.weights import Weights
from ..progress import Progress
from ..records import RunSpec
from ..report import Stopwatch
from ..store.run_folder import RunFolder
from ..store.writer import Writer


@dataclass(slots=True)
class Made:
    """What making shards came to.

    Attributes:
        device: ``cpu`` or ``gpu``.
        bytes_raw: Activations before compression.
        bytes_stored: The same, after.
        encode_seconds: Of threads, summed.
        write_seconds: Likewise.
        peak_memory_bytes: Of the process that took most.
    """

    device: str = "none"
    bytes_raw: int = 0
    bytes_stored: int = 0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    peak_memory_bytes: int = 0

    def add(self, other: Made | Writer) -> None:
        """Add bytes and seconds of what else was made."""
        self.bytes_raw += other.bytes_raw
        self.bytes_stored += other.bytes_stored
        self.encode_seconds += other.encode_seconds
        self.write_seconds += other.write_seconds


@dataclass(slots=True)
class News:
    """Where an engine says what is done.

    Attributes:
        progress: Counts rows.
        forecast: Foresees bytes.
        watch: Gets the seconds of each stage.
        made: What all shards so far came to.
    """

    progress: Progress
    forecast: Forecast
    watch: Stopwatch
    made: Made = field(default_factory=Made)


class Engine(Protocol):
    """Makes shards, ready to begin."""

    def make(self, run_folder: RunFolder, news: News) -> None:
        """Makes what is missing in the folder; all is there, with its digests, when this returns.

        Raises:
            PipelineError: What stopped it. No partial file is left behind.
        """


def open_engine(options: Options, spec: RunSpec, weights: Weights, run_folder: RunFolder) -> AbstractContextManager[Engine]:
    """Makes an engine ready for a run of which something is missing.

    Args:
        options: Of the run.
        spec: The run with all its parts.
        weights: Of the network.
        run_folder: Held by this process.

    Raises:
        OptionError: A device that is asked for is not there, or an address leads nowhere.
        EngineError: Workers cannot do it.
    """
    if options.engine.name == "ray":
        from .ray import ray_engine

        return ray_engine(options, spec, weights, run_folder)
    from .local import LocalEngine

    return nullcontext(LocalEngine(options, spec, weights))


def refuse_engine(options: Options) -> None:
    """Finds out, before anything else is done, whether the engine can be used here.

    Raises:
        OptionError: It cannot.
    """
    if options.engine.name == "ray":
        from .ray import require_ray

        require_ray(options.engine)
