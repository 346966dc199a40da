"""Where workers go: how many a node of a cluster has room for, and what each gets of it. No Ray, only arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..engine_config import EngineOptions
from ..errors import OptionError

# What Ray counts in. Source: Ray, "Fractional Resource Requirements": to 0.0001.
SHARES_A_CORE = 10_000


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a cluster.

    Attributes:
        id: Ray's.
        name: For people.
        cpus: That it offers.
        gpus: Likewise.
    """

    id: str
    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Place:
    """Room for one worker.

    Attributes:
        node: Where; None: wherever there will be room.
        cpus: That it takes.
        gpus: Likewise.
    """

    node: Node | None
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """How many threads of each kind the worker has."""
        return max(1, int(self.cpus))

    @property
    def device(self) -> str:
        """Where it computes."""
        return "gpu" if self.gpus else "cpu"


def gpus_per_worker(nodes: Sequence[Node], engine: EngineOptions, device: str) -> float:
    """Gives what each worker takes of a GPU.

    Args:
        nodes: Of the cluster.
        engine: The options.
        device: ``runtime.device``.
    """
    if engine.gpus_per_worker is not None:
        return engine.gpus_per_worker
    return 1.0 if device == "gpu" or (device != "cpu" and any(node.gpus >= 1 for node in nodes)) else 0.0


def plan_places(
    nodes: Sequence[Node], engine: EngineOptions, gpus: float, taken: Mapping[str, int], is_local: bool = False
) -> list[Place]:
    """Gives the places that are free.

    Args:
        nodes: Of the cluster, those that live.
        engine: The options.
        gpus: That each worker takes.
        taken: Id of a node, or "" for workers that wait for room -> workers that are there already.
        is_local: Whether the cluster is of this run alone, so that no node will be added.

    Raises:
        OptionError: No node could ever hold a worker, and none will be added.
    """
    room = {node.id: _room(node, engine, gpus) for node in nodes}
    if not any(room.values()) and (is_local or (engine.workers is None and nodes)):
        raise _no_room(nodes, engine, gpus)
    if engine.workers is None:
        return [
            Place(node, _cpus(node, engine, room[node.id]), gpus)
            for node in nodes
            for _ in range(room[node.id] - taken.get(node.id, 0))
        ]
    by_id = {node.id: node for node in nodes}
    counts = Counter({id: taken.get(id, 0) for id in by_id})
    new: list[str] = []
    for _ in range(engine.workers - sum(taken.values())):
        # Without a number of cores for each, a node is divided among as many as come.
        fitting = [id for id in by_id if room[id] and (counts[id] < room[id] or _is_divisible(engine, gpus))]
        best = max(fitting, key=lambda id: _worth(by_id[id], gpus) / (counts[id] + 1), default="")
        counts[best] += 1
        new.append(best)
    return [
        Place(by_id[id], _cpus(by_id[id], engine, counts[id]), gpus)
        if id
        else Place(None, float(engine.cpus_per_worker or 1), gpus)
        for id in new
    ]


def _is_divisible(engine: EngineOptions, gpus: float) -> bool:
    return engine.cpus_per_worker is None and not gpus


def _worth(node: Node, gpus: float) -> float:
    return node.gpus if gpus else node.cpus


def _room(node: Node, engine: EngineOptions, gpus: float) -> int:
    """Gives how many workers a node has room for."""
    if not node.cpus:
        return 0
    limits = [math.floor(node.gpus / gpus + 1e-9)] if gpus else []
    limits += [math.floor(node.cpus / engine.cpus_per_worker)] if engine.cpus_per_worker else []
    return min(limits, default=1)


def _cpus(node: Node, engine: EngineOptions, workers: int) -> float:
    """Gives the cores of each of so many workers on a node: whole ones, where there is one for each."""
    if engine.cpus_per_worker:
        return float(engine.cpus_per_worker)
    share = node.cpus / max(1, workers)
    return float(int(share)) if share >= 1 else max(1, math.floor(share * SHARES_A_CORE)) / SHARES_A_CORE


def _no_room(nodes: Sequence[Node], engine: EngineOptions, gpus: float) -> OptionError:
    most_cpus, most_gpus = (max((getattr(node, kind) for node in nodes), default=0) for kind in ("cpus", "gpus"))
    key = "gpus_per_worker" if gpus > most_gpus else "cpus_per_worker"
    if key == "cpus_per_worker":
        return OptionError(
            f"engine.{key}: no node has room for a worker, got {engine.cpus_per_worker}. Expected at most {most_cpus:g}, the "
            "cores of the largest node. Ask for less."
        )
    return OptionError(
        f"engine.{key}: no node has room for a worker, got {gpus:g}. Expected at most {most_gpus:g}, the GPUs of the largest "
        "node. Ask for less, or use runtime.device=cpu."
    )
