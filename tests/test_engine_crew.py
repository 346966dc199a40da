"""Workers hired, missed and dismissed, and what is said when that cannot be done; on a cluster that is none."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import check_options
from pipeline.engine_config import EngineOptions
from pipeline.engines import cluster, crew
from pipeline.engines.crew import Crew
from pipeline.engines.hand import Hand, words_for_rates
from pipeline.engines.messages import Ready, Setup, Turn
from pipeline.engines.places import Node, Place
from pipeline.errors import EngineError, OptionError, StoreError

from .test_config import values


class RayError(Exception):
    pass


@dataclass(eq=False)
class Promise:
    answer: Any


class FakeRay:
    """What the crew uses of Ray; workers answer as told, at once. ``script``: (question, node) -> answer or error."""

    def __init__(self, script: Callable[[str, str], Any]) -> None:
        self.exceptions = SimpleNamespace(RayError=RayError)
        strategy = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda id, soft: id)
        self.util = SimpleNamespace(scheduling_strategies=strategy)
        self.script = script
        self.alive = ["one"]
        self.killed: list[str] = []
        self.hired: list[str] = []
        self.cpus: list[float] = []

    def put(self, value: Any) -> Any:
        return value

    def nodes(self) -> list[dict[str, Any]]:
        resources = {"CPU": 4.0}
        return [{"NodeID": id, "NodeManagerHostname": f"host-{id}", "Alive": True, "Resources": resources} for id in self.alive]

    def remote(self, kind: type) -> Any:
        def hire(scheduling_strategy: str = "", num_cpus: float = 0, **settings: Any) -> Any:
            def start(*arguments: Any) -> Any:
                self.hired.append(scheduling_strategy)
                self.cpus.append(num_cpus)
                asked = {
                    what: SimpleNamespace(remote=lambda *given, what=what: Promise(self.script(what, scheduling_strategy)))
                    for what in ("check", "begin", "turn", "stop")
                }
                return SimpleNamespace(node=scheduling_strategy, **asked)

            return SimpleNamespace(remote=start)

        return SimpleNamespace(options=hire)

    def wait(self, promises: list[Promise], num_returns: int, timeout: float) -> tuple[list[Promise], list[Promise]]:
        return [promise for promise in promises if promise.answer != "never"][:num_returns], []

    def get(self, promise: Promise) -> Any:
        if isinstance(promise.answer, RayError):
            raise promise.answer
        return promise.answer

    def kill(self, actor: Any) -> None:
        self.killed.append(actor.node)


def well(what: str, node: str) -> Any:
    return {"check": Ready(host=f"host-{node}"), "begin": Ready("cpu"), "turn": Turn(), "stop": None}[what]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name, seconds in (("NODES_EVERY_SECONDS", 0.0), ("OTHERS_SECONDS", 0.02), ("NOBODY_SECONDS", 0.3)):
        monkeypatch.setattr(crew, name, seconds)
    caplog.set_level(logging.INFO, "pipeline")


def make_crew(ray: FakeRay, folder: Path, lost: list[str] | None = None, **engine: Any) -> Crew:
    (folder / "shards").mkdir(exist_ok=True)
    settings = {"engine__name": "ray", "engine__address": "auto", **{f"engine__{name}": value for name, value in engine.items()}}
    options = check_options(values(**settings))
    setup = Setup(options, {}, None, str(folder), "")  # type: ignore[arg-type]

    def tell(hand: Hand, cause: str, lives: bool) -> None:
        assert lost is not None
        lost.append(f"{cause} on {hand.where}, {'alive' if lives else 'gone'}")

    return Crew(ray, options, setup, tell)


def test_a_crew_looks_first_and_leaves_no_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    probes: list[list[str]] = []

    def script(what: str, node: str) -> Any:
        probes.append([path.name for path in tmp_path.glob(".engine-*")])
        return well(what, node)

    (tmp_path / ".engine-of-a-killed-run").touch()
    ray = FakeRay(script)
    hired = make_crew(ray, tmp_path)
    hired.start()
    assert ray.cpus == [4.0]
    assert len(probes[0]) == 1
    assert ".engine-of-a-killed-run" not in probes[0]
    assert not list(tmp_path.glob(".engine-*"))
    assert caplog.messages == ["engine: 1 worker: 1 on host-one (cpu); threads each: 4"]
    hired.dismiss(in_order=True)
    assert ray.killed == ["one"]


def test_one_of_the_first_that_sees_nothing_ends_the_run(tmp_path: Path) -> None:
    hired = make_crew(FakeRay(lambda what, node: Ready(error=EngineError("engine: node x does not see"))), tmp_path)
    with pytest.raises(EngineError, match=r"^engine: node x does not see$"):
        hired.start()


def test_a_node_that_is_added_and_sees_nothing_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def script(what: str, node: str) -> Any:
        return (
            Ready(error=EngineError("engine: node two does not see.")) if (what, node) == ("check", "two") else well(what, node)
        )

    ray = FakeRay(script)
    hired = make_crew(ray, tmp_path)
    hired.start()
    ray.alive.append("two")
    for _ in range(3):
        hired.look_for_room()
        assert list(hired.answers(0.0)) == []
    assert ray.hired == ["one", "two"]
    assert [hand.where for hand in hired.hands] == ["host-one"]
    assert caplog.messages[-1] == "engine: node two does not see. The run goes on without this node."


def test_a_worker_that_dies_is_replaced_until_no_node_is_left(tmp_path: Path) -> None:
    ray, lost = FakeRay(well), []
    hired = make_crew(ray, tmp_path, lost)
    hired.start()
    ray.script = lambda what, node: RayError("The actor is dead because its worker process has died.\n more")
    (tmp_path / f"shards/shard-00000-of-00001.h5.{hired.hands[0].name}-0123abcd.partial").touch()
    hired.ask(hired.hands[0], "turn", [], 0.0)

    def go_on() -> None:
        for _ in range(5):
            assert list(hired.answers(0.0)) == []
            hired.look_for_room()

    message = r"^engine: no worker is left, got a worker on host-one that died: its worker process has died\. Expected one that"
    with pytest.raises(EngineError, match=message):
        go_on()
    assert ray.hired == ["one"] * 3
    assert lost == ["its worker process has died on host-one, alive"] * 3
    assert not list(tmp_path.rglob("*.partial"))


def test_a_finished_shard_is_a_sign_that_workers_live_there(tmp_path: Path) -> None:
    ray, lost = FakeRay(well), []
    hired = make_crew(ray, tmp_path, lost)
    hired.start()
    for _ in range(6):
        (hand,) = hired.hands
        ray.script = lambda what, node: RayError("its worker process has died")
        hired.ask(hand, "turn", [], 0.0)
        ray.script = well
        assert list(hired.answers(0.0)) == []
        hired.look_for_room()
        hired.praise(hired.hands[0])
    assert len(lost) == 6


def test_without_any_node_a_run_waits_a_while(tmp_path: Path) -> None:
    ray, lost = FakeRay(well), []
    hired = make_crew(ray, tmp_path, lost)
    hired.start()
    ray.alive.clear()
    ray.script = lambda what, node: RayError("the node died")
    hired.ask(hired.hands[0], "turn", [], 0.0)
    assert list(hired.answers(0.0)) == []
    assert lost == ["the node died on host-one, gone"]
    hired.look_for_room()
    time.sleep(0.3)
    with pytest.raises(EngineError, match=r"^engine: no worker is left, got a worker on host-one that died: the node died\."):
        hired.look_for_room()


def test_workers_that_wait_for_room_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay(lambda what, node: well(what, node) if node else "never")
    hired = make_crew(ray, tmp_path, workers=2, cpus_per_worker=4)
    hired.start()
    monkeypatch.setattr(crew, "NODES_EVERY_SECONDS", 60.0)
    hired.look_for_room()
    assert caplog.messages[-1] == "engine: 1 of 2 workers wait for room on the cluster"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_refuses_what_workers_are_to_look_for_is_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> int:
        raise OSError(number, os.strerror(number))

    hired = make_crew(FakeRay(well), tmp_path)
    monkeypatch.setattr(Path, "write_text", refuse)
    message = (
        rf"^{re.escape(str(tmp_path))}/\.engine-\w+: .*, got {errno.errorcode[number]}\. Expected a folder that can be written\."
    )
    with pytest.raises(StoreError, match=message):
        hired.start()
    hired.dismiss(in_order=False)


@pytest.mark.parametrize("what", ["nodes", "wait", "get"])
def test_a_cluster_whose_head_is_gone_is_one_line(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: Any, **settings: Any) -> Any:
        raise ConnectionError("Failed to connect to GCS.\n more")

    ray = FakeRay(well)
    hired = make_crew(ray, tmp_path)
    hired.start()
    hired.ask(hired.hands[0], "turn", [], 0.0)
    monkeypatch.setattr(ray, what, gone)
    message = (
        r"^engine: the Ray cluster does not answer any more, got ConnectionError: Failed to connect to GCS\. more\. Expected its "
        r"head to live as long as the run\. Look at the head, then run the command again: finished shards are kept\.$"
    )
    with pytest.raises(EngineError, match=message):
        (hired.look_for_room() if what == "nodes" else list(hired.answers(0.0)))
    hired.dismiss(in_order=True)


def test_rates_are_told_in_a_few_words() -> None:
    hands = []
    for number in range(6):
        hand = Hand(f"w{number}", Place(Node("a", f"host{number}", 1, 0), 1, 0), None)
        hand._times.extend([(0.0, 0), (10.0, 10 * number + 5)])
        hands.append(hand)
    assert words_for_rates(hands[:2]) == "0.5 1.5"
    assert words_for_rates(hands) == "6, 0.5 (host0) to 5.5"


def test_what_ray_says_becomes_a_line() -> None:
    long = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\nThe actor is dead because its worker "
        "process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error "
        "code 2. End of file. There are some potential root causes."
    )
    assert cluster.one_line(long) == "Worker unexpectedly exits with a connection error code 2"
    assert cluster.one_line("Traceback (most recent call last):\n  x\nModuleNotFoundError: no pipeline\n") == (
        "ModuleNotFoundError: no pipeline"
    )
    assert cluster.one_line("a\n  b.") == "a b"


def test_a_missing_ray_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        OptionError, match=r"^engine: Ray is not installed here, .*`pip install 'deep-feature-pipeline\[ray\]'`\.$"
    ):
        cluster.require_ray(EngineOptions("ray"), "auto")


def test_a_worker_larger_than_this_machine_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(OptionError, match=r"^engine.cpus_per_worker: no node has room for a worker, got 1024\. Expected at most"):
        cluster.require_ray(EngineOptions("ray", cpus_per_worker=1024), "auto")
    # Another machine may have room.
    cluster.require_ray(EngineOptions("ray", "auto", cpus_per_worker=1024), "auto")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray itself, as far as connecting goes."""
    found = SimpleNamespace(is_initialized=lambda: False, init=lambda **settings: None, shutdown=lambda: None)
    monkeypatch.setattr(cluster, "load_ray", lambda: found)
    return found


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_cluster_that_does_not_answer_is_given_up(fake: Any, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CLUSTER_SECONDS", 0.05)
    fake.init = lambda **settings: time.sleep(0.5)
    address = f"127.0.0.1:{port}"
    message = rf"^engine.address: no Ray cluster is there, got '{address}': no answer in 0 s\. Expected one that runs"
    with pytest.raises(EngineError, match=message), cluster.connected(address, 0):
        pass


def test_a_cluster_that_cannot_be_started_says_why(fake: Any) -> None:
    def refuse(**settings: Any) -> None:
        assert (settings["address"], settings["log_to_driver"], settings["include_dashboard"]) == ("local", False, False)
        raise RuntimeError("No space left. And more")

    fake.init = refuse
    message = r"^engine: a Ray cluster cannot be started on this machine, got: No space left\."
    with pytest.raises(EngineError, match=message), cluster.connected(None, 0):
        pass


def test_a_process_that_has_a_cluster_already_is_told(fake: Any) -> None:
    fake.is_initialized = lambda: True
    message = r"^engine: this process is connected to a Ray cluster already.* Call ray.shutdown"
    with pytest.raises(EngineError, match=message), cluster.connected(None, 0):
        pass
