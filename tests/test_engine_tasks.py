"""Tasks for a Ray cluster: what they take, what they hold, what is said when they cannot be done. No cluster here."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import ray_engine as engine
from pipeline.config import EngineOptions, check_options
from pipeline.errors import EngineError, OptionError
from pipeline.plan import versions
from pipeline.records import ImageRecord
from pipeline.store.disk import file_digest

from .stored_runs import make_spec
from .test_config import values
from .test_extract import SPEC, fake_stages

SMALL, LARGE, GPUS = (2.0, 0.0), (16.0, 0.0), (16.0, 4.0)


def options(workers: int | None = None, gpus: float | None = None, cpus: int | None = None) -> EngineOptions:
    return EngineOptions("ray", "auto", workers, gpus, cpus)


@pytest.mark.parametrize(
    ("nodes", "given", "device", "expected", "slots"),
    [
        # A worker a node.
        ([LARGE, LARGE], options(), "auto", (16, 0), 2),
        # All cores of all nodes: several tasks on the larger one.
        ([SMALL, LARGE], options(), "auto", (2, 0), 9),
        ([SMALL, LARGE], options(cpus=4), "auto", (4, 0), 4),
        ([SMALL, LARGE], options(workers=4), "auto", (1, 0), 18),
        # More than cores: they share.
        ([SMALL], options(workers=4), "auto", (0.5, 0), 4),
        ([SMALL, SMALL], options(workers=7), "auto", (0.5, 0), 8),
        # A worker a GPU, and its share of the cores.
        ([LARGE, GPUS], options(), "auto", (4, 1), 4),
        ([GPUS], options(gpus=0.5), "auto", (2, 0.5), 8),
        ([(2.0, 4.0)], options(), "auto", (0.5, 1), 4),
        ([LARGE, GPUS], options(), "cpu", (16, 0), 2),
        ([GPUS], options(gpus=0.0), "auto", (16, 0), 1),
        # What has no room waits for a node to come.
        ([SMALL], options(workers=3, cpus=4), "auto", (4, 0), 0),
        ([], options(), "auto", (1, 0), 0),
        ([], options(), "gpu", (1, 1), 0),
    ],
)
def test_a_task_takes_what_the_options_and_the_nodes_say(
    nodes: Any, given: EngineOptions, device: str, expected: tuple[float, float], slots: int
) -> None:
    assert engine.plan_resources(nodes, given, device) == expected
    assert engine.count_slots(nodes, *expected) == slots


def test_a_task_has_full_device_steps_and_leaves_every_worker_some() -> None:
    spec = make_spec(rows=4000, images_per_shard=4)

    for slots, batch_size, sizes in (
        # 20 steps of 8 rows are 40 shards; one step of 21 may be partly empty.
        (2, 8, [40] * 25),
        # Four tasks a worker.
        (50, 8, [5] * 200),
        (1000, 8, [1] * 1000),
        # One image a step, as at native size.
        (2, 1, [5] * 200),
    ):
        tasks = engine.plan_tasks(spec.shards(), slots, batch_size)
        assert [shard for task in tasks for shard in task] == list(spec.shards())
        assert [len(task) for task in tasks] == sizes


def make_job(folder: Path, **changes: Any) -> engine.Job:
    (folder / "shards").mkdir(exist_ok=True)
    (folder / ".lock").touch()
    found: Any = check_options(values(runtime__workers=2))
    weights: Any = None
    return replace(engine.Job(found, {0: SPEC}, weights, folder, image=None, versions=versions()), **changes)


def test_a_task_makes_its_shards_and_says_what_came_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_prepared", (os.environ.get("CUDA_VISIBLE_DEVICES"), make_job(tmp_path), fake_stages()))
    shards = SPEC.shards()[2:5]
    found = engine.make_task((), shards)
    assert found.digests == {f"shards/{shard.file_name}": file_digest(tmp_path / "shards" / shard.file_name) for shard in shards}
    assert [status.index for status in found.statuses] == [*range(8, 20)]
    assert (found.made.device, found.made.bytes_raw) == ("cpu", 12 * 240)
    assert set(found.seconds) >= {"read", "network", "store", "finish"}
    # Whoever holds the lock writes the digests.
    assert not list(tmp_path.glob("SHA256SUMS*"))
    assert not list(tmp_path.rglob("*.partial"))
    # Again; ISA-L need not give the same number of bytes.
    assert engine.make_task((), shards).made.bytes_raw == found.made.bytes_raw


def test_a_process_whose_network_is_for_another_gpu_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    # Which ends the test's process only as an exception.
    monkeypatch.setattr(engine.os, "_exit", sys.exit)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(engine, "_prepared", ("0", None, None))
    with pytest.raises(SystemExit):
        engine.make_task((), ())


def test_a_node_that_does_not_see_what_the_driver_sees_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(engine, "make_stages", lambda *given: made.append(given))
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "1")
    engine._prepare(make_job(tmp_path))
    assert len(made) == 1
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "2"

    def said(job: engine.Job) -> str:
        with pytest.raises(EngineError) as caught:
            engine._prepare(job)
        return str(caught.value)

    node = f"engine: node {socket.gethostname()}"
    line = said(make_job(tmp_path, image=ImageRecord(0, "a.jpg", "/nowhere/a.jpg", "", 1)))
    assert line.startswith(f"{node} does not see the images, got nothing under the driver's path.")
    line = said(make_job(tmp_path, versions={**versions(), "numpy": "1.0"}))
    assert f"has other libraries than the driver's machine, got numpy {versions()['numpy']} (there 1.0)." in line
    job = make_job(tmp_path)
    (tmp_path / ".lock").unlink()
    assert said(job).startswith(f"{node} does not see the run folder, got nothing under the driver's path")
    assert len(made) == 1


def test_a_missing_ray_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"^engine: Ray is not installed, .*`pip install 'deep-feature-pipeline\[ray\]'`\.$"):
        engine.require_ray()


class RayTaskError(Exception):
    def __init__(self, text: str, cause: Exception | None = None) -> None:
        super().__init__(text)
        self.cause = cause


class FakeRay:
    """What the driver uses of Ray; every task is answered at once, by ``answer``."""

    def __init__(self, answer: Any, **resources: float) -> None:
        died = dict.fromkeys(("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError"), MemoryError)
        self.exceptions = SimpleNamespace(RayTaskError=RayTaskError, **died)
        self.answer, self.resources = answer, {"CPU": 4.0, **resources}
        self.settings: dict[str, Any] = {}

    def init(self, **settings: Any) -> None:
        raise RuntimeError(self.answer)

    def put(self, value: Any) -> Any:
        return value

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.resources}, {"Alive": False, "Resources": {"CPU": 100.0}}]

    def remote(self, **settings: Any) -> Any:
        self.settings = settings
        return lambda function: SimpleNamespace(remote=lambda *given: object())

    def wait(self, futures: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return futures[:1], []

    def get(self, future: Any) -> Any:
        raise self.answer


def make_engine(ray: FakeRay, folder: Path, **engine_options: Any) -> engine.Tasks:
    given = {"engine__name": "ray", "engine__address": "auto", **{f"engine__{k}": v for k, v in engine_options.items()}}
    return engine.Tasks(ray, make_job(folder, options=check_options(values(**given))))


def test_a_task_keeps_its_process_and_is_tried_three_times(tmp_path: Path) -> None:
    ray = FakeRay(None, CPU=8.0, GPU=2.0)
    started = make_engine(ray, tmp_path)
    assert ray.settings == {"num_cpus": 4.0, "num_gpus": 1.0, "max_retries": 2, "max_calls": 0}
    runtime = started.job.options.runtime
    assert (runtime.device, runtime.workers) == ("gpu", 4)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (RayTaskError("Traceback", OptionError("runtime.device: no GPU")), OptionError, r"^runtime.device: no GPU$"),
        (
            MemoryError("It\ndied."),
            EngineError,
            r"^engine: a network could not be made, got 3 workers that died over it, the last since It died\. Expected one that "
            r"lives\. Look at the nodes' memory",
        ),
        (RayTaskError("Traceback\nZeroDivisionError: oh"), RuntimeError, r"ZeroDivisionError: oh$"),
        (
            RayTaskError("Traceback\nNo module named 'h5py'", ModuleNotFoundError("No module named 'h5py'")),
            EngineError,
            r"^engine: a node cannot load this program, got \"No module named 'h5py'\"\. Expected it on every node",
        ),
    ],
)
def test_what_stops_the_first_task_stops_the_run(answer: Any, kind: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=message):
        next(make_engine(FakeRay(answer), tmp_path).run([()]))


def test_a_cluster_that_is_not_there_or_cannot_be_started_is_said_in_a_line() -> None:
    def said(address: str | None) -> str:
        with pytest.raises(EngineError) as caught:
            engine.connect(FakeRay("It is old"), address)
        return str(caught.value)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert said(address).startswith(f"engine.address={address}: no Ray cluster can be reached, got: It is old. Expected one")
    assert said(address).startswith(
        f"engine.address={address}: no Ray cluster can be reached, got: [Errno 111] Connection refused. Expected"
    )
    assert said(None).startswith("engine: no Ray cluster can be started, got: It is old. Expected one")
