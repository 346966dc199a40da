"""engine=ray on real clusters: of this machine, and of several nodes that are processes on it. Runs are held to local ones."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import extract_features

from .killed_runs import LISTENER, Moment, assert_same_run, partial_files
from .processes import REPOSITORY, call, command, start

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or find_spec("ray") is None, reason="clusters of Ray are for Linux and macOS; pip install ray"
)

OPTIONS = ["network.weights=random", "data.size=64", "layers=[relu3_1]", "output.images_per_shard=4", "name=run"]
RAY = ["engine=ray"]
SHARDS = 30
needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="workers are found by /proc")
# Attributes that tell which engine it was.
TELLING = ("@config",)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs of noise, some of them broken, in which a run of some seconds has work."""
    folder = tmp_path_factory.mktemp("data") / "imgs"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(4 * SHARDS - 2):
        picture = Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        picture.resize((700, 500)).save(folder / f"{number:03d}.jpg")
    (folder / "005.jpg").write_bytes(b"")
    (folder / "077.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The same run by the local engine."""
    folder = tmp_path_factory.mktemp("local")
    done = call(f"data.dir={images}", *OPTIONS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs/run"


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Ray's own cluster for tests, whose nodes are processes on this machine, each of one core."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    # The head has no cores: whatever happens to the others, it lives.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def wait_for(what: str, ready: Callable[[], object], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.02)


class Running:
    """The command, while it runs."""

    def __init__(self, images: Path, folder: Path, *options: str, **variables: str) -> None:
        self.run, self.said = folder / "outputs/run", ""
        self._process = start(command(f"data.dir={images}", *OPTIONS, *RAY, *options), folder, **variables)
        self.send = self._process.send_signal

    def wait_for_shards(self, count: int) -> None:
        def are_there() -> bool:
            assert self._process.poll() is None, self._process.communicate()
            return len(list(self.run.glob("shards/*.h5"))) >= count

        wait_for(f"{count} shards", are_there)

    def a_worker(self) -> int:
        """Gives one that is in the middle of a shard."""
        wait_for("a worker at a shard", lambda: workers() and list(self.run.glob("shards/*.partial")))
        return workers()[0]

    def end(self) -> int:
        try:
            self.said = self._process.communicate(timeout=600)[1]
        finally:
            self._process.kill()
        return self._process.returncode


def workers() -> list[int]:
    """Gives the processes that are at a task, whoever's they are; none that has ended and is not yet forgotten."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes()
            if line.startswith(b"ray::make_task") and "State:\tZ" not in (folder / "status").read_text():
                found.append(int(folder.name))
    return sorted(found)


def assert_whole(run: Path, undisturbed: Path) -> None:
    assert partial_files(run) == []
    assert_same_run(run, undisturbed, TELLING)
    checked = call(f"run={run}", cwd=run, module="pipeline.verify")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow  # a cluster takes longer to start than all other tests; tasks have tests of their own in test_engine_tasks
def test_a_cluster_of_its_own_makes_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = tmp_path / "imgs"
    some.mkdir()
    for number in range(2):
        Image.fromarray(np.full((20, 30, 3), 90 * number, np.uint8)).save(some / f"{number}.png")
    (some / "empty.jpg").write_bytes(b"")
    (some / "text.jpg").write_text("no image")
    quick = ["network.weights=random", "data.size=32", "output.images_per_shard=1", "name=run"]
    done = call(f"data.dir={some}", *quick, *RAY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert sum(line.startswith("engine: workers: 1, on the cpu, threads each: ") for line in lines) == 1
    assert sum(line.startswith("failed: ") for line in lines) == 2
    assert any(line.startswith("rows       4 (2 ok, 2 failed)") for line in lines)
    # Nothing of Ray's own.
    assert [line for line in lines if line.startswith(("[", "(", "*", "W", "E", "202"))] == []
    monkeypatch.chdir(tmp_path)
    extract_features(some, weights="random", size=32, images_per_shard=1, name="local", quiet=True)
    assert_same_run(tmp_path / "outputs/run", tmp_path / "outputs/local", TELLING)


@pytest.mark.slow
@needs_proc
def test_what_killed_workers_and_a_node_that_goes_were_at_is_made_again(
    tmp_path: Path, images: Path, undisturbed: Path, cluster: Any
) -> None:
    first, _ = (cluster.add_node() for _ in range(2))
    running = Running(images, tmp_path, f"engine.address={cluster.address}")
    for shards in (3, 10):
        running.wait_for_shards(shards)
        os.kill(running.a_worker(), signal.SIGKILL)
    running.wait_for_shards(14)
    cluster.remove_node(first, allow_graceful=False)
    assert running.end() == 0, running.said
    assert_whole(tmp_path / "outputs/run", undisturbed)


@pytest.mark.slow
@needs_proc
def test_without_a_node_a_run_says_so_and_nodes_that_come_get_tasks(
    tmp_path: Path, images: Path, undisturbed: Path, cluster: Any
) -> None:
    node = cluster.add_node()
    running = Running(images, tmp_path, f"engine.address={cluster.address}")
    running.wait_for_shards(2)
    cluster.remove_node(node, allow_graceful=False)
    wait_for("the line", lambda: "no node is left" in (running.run / "run.log").read_text(encoding="utf-8"))
    for _ in range(2):
        cluster.add_node()
    wait_for("a task on each node", lambda: len(workers()) == 2)
    assert running.end() == 0, running.said
    assert "engine: workers: 1, " in running.said
    assert_whole(tmp_path / "outputs/run", undisturbed)


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("own", [True, False])
def test_a_killed_driver_takes_its_workers_with_it(
    own: bool, tmp_path: Path, images: Path, undisturbed: Path, cluster: Any
) -> None:
    if not own:
        cluster.add_node()
    where = ["engine.workers=2"] if own else [f"engine.address={cluster.address}"]
    running = Running(images, tmp_path, *where)
    running.wait_for_shards(4)
    running.send(signal.SIGKILL)
    running.end()
    wait_for("the end of the driver's workers", lambda: not workers(), 20)
    running = Running(images, tmp_path, *where)
    assert running.end() == 0, running.said
    assert_whole(tmp_path / "outputs/run", undisturbed)


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_in_order(number: signal.Signals, exit_code: int, tmp_path: Path, images: Path) -> None:
    running = Running(images, tmp_path, "engine.workers=2")
    running.wait_for_shards(4)
    running.send(number)
    began = time.monotonic()
    assert running.end() == exit_code
    assert time.monotonic() - began < 8
    assert running.said.splitlines()[-1].endswith(
        "finished shards are kept. Run the command again, with output.existing=resume, to go on."
    )
    assert "Traceback" not in running.said
    assert "***" not in running.said
    assert partial_files(running.run) == []
    assert workers() == []


@pytest.mark.slow
def test_a_shard_that_kills_is_named_and_others_are_kept(tmp_path: Path, images: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LISTENER)
    variables = Moment("os.rename", "*/shard-00005-of-*.partial").environment()
    run = Running(images, tmp_path, "engine.workers=2", **variables, PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}")
    assert run.end() == 1
    (line,) = [line for line in run.said.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: engine: shards/shard-00005-of-00030.h5 (images '020.jpg' to '023.jpg')"), line
    assert "could not be made, got 3 workers that died over it, the last since The worker died" in line
    assert line.endswith("Look at the nodes' memory and such images; finished shards are kept.")
    assert partial_files(run.run) == []
    assert len(list(run.run.glob("shards/*.h5"))) > 5


@pytest.mark.slow
@needs_proc
def test_what_stops_one_worker_stops_the_run_with_its_line(tmp_path: Path, images: Path, random_weights: Any) -> None:
    from .matconvnet_writer import write_matconvnet

    weights = random_weights()
    kernels = {**weights.kernels, "conv3_1": weights.kernels["conv3_1"] * np.float32(1e6)}
    write_matconvnet(tmp_path / "large.mat", replace(weights, kernels=kernels), "old")
    some = tmp_path / "imgs"
    some.mkdir()
    for name in ("000.jpg", "001.jpg"):
        (some / name).write_bytes((images / name).read_bytes())
    changed = [f"network.weights={tmp_path / 'large.mat'}", "output.dtype=float16"]
    running = Running(some, tmp_path, *changed)
    assert running.end() == 1
    assert re.match(
        r"error: 00[01]\.jpg: layer relu3_1 has a value that float16 cannot hold, got .*e\+", running.said.splitlines()[-1]
    )
    assert "Traceback" not in running.said
    assert partial_files(tmp_path) == []
    assert workers() == []


@pytest.mark.slow
def test_a_task_takes_a_gpu_where_there_are_any(tmp_path: Path, images: Path, cluster: Any) -> None:
    # No real ones: TensorFlow finds none, and that is what is said. What it finds of several is Ray's own promise.
    cluster.add_node(num_cpus=2, num_gpus=2)
    running = Running(images, tmp_path, f"engine.address={cluster.address}")
    assert running.end() == 2
    assert running.said.splitlines()[-1].startswith("error: runtime.device: TensorFlow sees no GPU here, got gpu.")
    # A run that wants none of them.
    running = Running(images, tmp_path, f"engine.address={cluster.address}", "runtime.device=cpu")
    assert running.end() == 0, running.said
