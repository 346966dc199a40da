"""What driver and workers say to one another: the nouns, frozen, to be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..config import Options
from ..network.weights import Weights
from ..records import ImageStatus, RunSpec, ShardSpec

# After so long without a word from the driver a worker has none; a driver gives the shards of a worker whose machine is gone to
# others no sooner. Longer than a driver's disk keeps it from asking.
LEASE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What every worker is told once. Sent to each machine once, and shared by the workers there.

    Attributes:
        options: Of the run.
        parts: Number -> the run up to that part, with a packed manifest.
        weights: Of the network.
        folder: The run folder, absolute.
        image: An image that the driver can see, to be looked for; "" if there is none.
        lease_seconds: See :data:`LEASE_SECONDS`.
    """

    options: Options
    parts: Mapping[int, RunSpec]
    weights: Weights
    folder: str
    image: str
    lease_seconds: float = LEASE_SECONDS


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker says when it has begun.

    Attributes:
        device: ``cpu`` or ``gpu``.
        host: Name of its machine.
        error: Why it cannot.
    """

    device: str = ""
    host: str = ""
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Batched:
    """A batch whose features have been handed over.

    Attributes:
        shard: That it is of.
        rows: How many.
        failed: Those that failed.
        raw_seen: Bytes of its activations.
    """

    shard: ShardSpec
    rows: int
    failed: tuple[ImageStatus, ...]
    raw_seen: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What has come since the turn before; the figures are of all turns.

    Attributes:
        batches: Handed over.
        finished: Path from the run folder -> SHA-256 of shards that are in place.
        error: What stopped the worker.
        seconds: By stage, of its loop.
        bytes_raw: As :class:`~pipeline.engines.engine.Made` has them, and so the others.
        bytes_stored: Likewise.
        encode_seconds: Likewise.
        write_seconds: Likewise.
        peak_memory_bytes: Likewise.
    """

    batches: tuple[Batched, ...] = ()
    finished: Mapping[str, str] = field(default_factory=dict)
    error: BaseException | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_raw: int = 0
    bytes_stored: int = 0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    peak_memory_bytes: int = 0
