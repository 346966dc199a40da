"""Where workers of a cluster go: arithmetic on what its nodes offer."""

from __future__ import annotations

import pytest

from pipeline.engine_config import EngineOptions
from pipeline.engines.places import Node, Place, gpus_per_worker, plan_places
from pipeline.errors import OptionError

SMALL, LARGE = Node("a", "small", 2, 0), Node("b", "large", 16, 0)
GPUS = Node("c", "gpus", 16, 4)


def options(workers: int | None = None, gpus: float | None = None, cpus: int | None = None) -> EngineOptions:
    return EngineOptions("ray", "auto", workers, gpus, cpus)


def test_without_a_word_each_node_has_one_worker_with_all_its_cores() -> None:
    assert plan_places([SMALL, LARGE], options(), 0, {}) == [Place(SMALL, 2, 0), Place(LARGE, 16, 0)]
    assert [place.threads for place in plan_places([SMALL, LARGE], options(), 0, {})] == [2, 16]
    # A node that was added.
    assert plan_places([SMALL, LARGE], options(), 0, {"a": 1}) == [Place(LARGE, 16, 0)]


def test_cores_for_each_worker_fill_the_nodes() -> None:
    assert plan_places([SMALL, LARGE], options(cpus=4), 0, {}) == [Place(LARGE, 4, 0)] * 4
    assert plan_places([LARGE], options(cpus=4), 0, {"b": 3}) == [Place(LARGE, 4, 0)]


def test_each_gpu_has_a_worker_and_its_share_of_the_cores() -> None:
    assert gpus_per_worker([LARGE, GPUS], options(), "auto") == 1
    assert plan_places([LARGE, GPUS], options(), 1, {}) == [Place(GPUS, 4, 1)] * 4
    assert plan_places([GPUS], options(gpus=0.5), 0.5, {}) == [Place(GPUS, 2, 0.5)] * 8
    assert {place.device for place in plan_places([GPUS], options(), 1, {})} == {"gpu"}
    assert plan_places([GPUS], options(cpus=8), 1, {}) == [Place(GPUS, 8, 1)] * 2
    # More of them than cores.
    (place, *_) = plan_places([Node("d", "thin", 2, 4)], options(), 1, {})
    assert (place.cpus, place.threads) == (0.5, 1)


@pytest.mark.parametrize(
    ("nodes", "given", "device", "expected"),
    [
        ([LARGE], None, "auto", 0),
        ([LARGE, GPUS], None, "cpu", 0),
        ([LARGE], None, "gpu", 1),
        ([GPUS], 0.0, "auto", 0),
        ([GPUS], 0.25, "auto", 0.25),
    ],
)
def test_a_worker_takes_a_gpu_where_there_are_any(nodes: list[Node], given: float | None, device: str, expected: float) -> None:
    assert gpus_per_worker(nodes, options(gpus=given), device) == expected


def test_so_many_workers_are_spread_by_what_nodes_offer() -> None:
    places = plan_places([SMALL, LARGE], options(workers=4), 0, {})
    assert places == [Place(LARGE, 4, 0)] * 4
    assert plan_places([SMALL, Node("e", "small too", 2, 0)], options(workers=2), 0, {})[1].node == Node("e", "small too", 2, 0)
    # More than cores: they share.
    assert plan_places([SMALL], options(workers=3), 0, {}) == [Place(SMALL, 0.6666, 0)] * 3
    assert plan_places([SMALL], options(workers=3), 0, {"a": 3}) == []


def test_what_has_no_room_waits_for_a_node_to_come() -> None:
    assert plan_places([SMALL], options(workers=3, cpus=2), 0, {}) == [Place(SMALL, 2, 0), Place(None, 2, 0), Place(None, 2, 0)]
    assert plan_places([GPUS], options(workers=5), 1, {})[-1] == Place(None, 1, 1)
    assert plan_places([], options(), 0, {}) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (options(cpus=32), r"engine.cpus_per_worker: no node has room for a worker, got 32. Expected at most 16, the cores of"),
        (options(gpus=1), r"engine.gpus_per_worker: no node has room for a worker, got 1. Expected at most 0, the GPUs of the"),
    ],
)
def test_no_room_anywhere_is_said(given: EngineOptions, message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}"):
        plan_places([SMALL, LARGE], given, given.gpus_per_worker or 0, {})
    # Where nodes may be added, so many workers may be waited for.
    waiting = EngineOptions("ray", "auto", 2, given.gpus_per_worker, given.cpus_per_worker)
    assert [place.node for place in plan_places([SMALL], waiting, given.gpus_per_worker or 0, {})] == [None, None]
    with pytest.raises(OptionError, match=r"no node has room"):
        plan_places([SMALL], waiting, given.gpus_per_worker or 0, {}, is_local=True)
