"""``engine=ray``: shards made by tasks on a Ray cluster. Ray places, retries and balances them; the driver counts what they made.

A task is some shards of one part, read as one sequence. A worker process keeps the network between tasks.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .config import AUTO, EngineOptions, Options
from .errors import EngineError, ImageError, OptionError, PipelineError, printable
from .extract import Engine, Stages, make_shards, make_stages, say_device
from .images.reading import read_again
from .machine import peak_memory_bytes, usable_cores
from .network.keras_models import AnyWeights
from .plan import versions
from .progress import LOGGER, Made, Progress, Stopwatch
from .records import Device, ImageRecord, ImageStatus, RunSpec
from .sharding import ShardSpec
from .signals import kept_handlers, leaving_at_once
from .store import format
from .store.digests import RemoteDigests
from .store.run_folder import RunFolder

# A task that dies is run again so often.
RETRIES = 2
# Device steps that a task should have, so that its first and its last, partly empty one are few among them; and tasks that every
# worker should get nevertheless, so that all end at about the same time.
TASK_STEPS, TASKS_A_WORKER = 20, 4
# To find out that nobody listens at an address: Ray would try for minutes.
PORT_SECONDS = 5.0
LONGEST_TEXT = 240
# Without a task's end; then it is looked whether there are nodes.
QUIET_SECONDS = 30.0
_SETTINGS = {
    # It would tell its makers of each cluster.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Tasks without a GPU are told so by us; Ray would announce at length that it will change what it does about that.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # By default a task that is killed for its memory is run again without end.
    "RAY_task_oom_retries": str(RETRIES),
}

Nodes = Sequence[tuple[float, float]]  # (cores, GPUs) of each that has cores
Shards = tuple[ShardSpec, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """What every task needs; put into Ray's object store once."""

    options: Options  # of the run, with the device and the threads of a task
    parts: Mapping[int, RunSpec]  # number -> the run up to that part
    weights: AnyWeights
    folder: Path  # the run's, absolute
    image: ImageRecord | None  # one that the driver can read, and so must every node; None if there is none
    versions: Mapping[str, str]  # of the driver's libraries, which every node must have


class Outcome(NamedTuple):
    """What a task has made."""

    device: Device
    made: Made
    statuses: list[ImageStatus]
    digests: Mapping[str, str]  # path from the run folder -> SHA-256, hex
    seconds: Mapping[str, float]  # by stage


def require_ray() -> None:
    """Raise ``OptionError`` where Ray is not installed; loads nothing."""
    if importlib.util.find_spec("ray") is None:
        raise OptionError(
            "engine: Ray is not installed, got ray. Expected it, or engine=local. Run `pip install 'deep-feature-pipeline[ray]'`."
        )


def plan_resources(nodes: Nodes, engine: EngineOptions, device: str) -> tuple[float, float]:
    """Return the cores and the share of a GPU that each task takes; ``device`` is ``runtime.device``."""
    gpus = engine.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if device == "gpu" or (device != "cpu" and any(has >= 1 for _, has in nodes)) else 0.0
    usable = [node for node in nodes if node[1] >= gpus]
    # Those of the smallest node over its workers: one a GPU, else its share of those that are asked for, else one.
    on_each = -(-(engine.workers or 1) // max(1, len(usable)))
    cpus = engine.cpus_per_worker or min((cores / (has // gpus if gpus else on_each) for cores, has in usable), default=1.0)
    # Source: Ray, "Fractional Resource Requirements": to 0.0001.
    return (float(int(cpus)) if cpus >= 1 else int(1e4 * cpus) / 1e4), gpus


def count_slots(nodes: Nodes, cpus: float, gpus: float) -> int:
    """Return how many tasks the nodes can run at a time."""
    return sum(int(min(cores / cpus, has / gpus if gpus else math.inf) + 1e-9) for cores, has in nodes)


def plan_tasks(shards: Sequence[ShardSpec], slots: int, batch_size: int) -> list[Shards]:
    """Divide shards, in order, into tasks of one part each, of which so many run at a time; ``batch_size``: of a device step."""
    rows = max(shard.rows for shard in shards)
    size = max(1, min(-(-TASK_STEPS * batch_size // rows), len(shards) // (TASKS_A_WORKER * slots)))
    parts = (list(group) for _, group in itertools.groupby(shards, lambda shard: shard.part))
    return [tuple(part[first : first + size]) for part in parts for first in range(0, len(part), size)]


# -- In a worker process -------------------------------------------------------------------------------------------------------

# The GPU that it has, the job and its network. Kept from one task to the next.
_prepared: tuple[str | None, Job, Stages] | None = None


def make_task(reference: Sequence[Any], shards: Shards) -> Outcome:
    """Make shards of one part, or none but the network; runs in a worker process, which works for one job alone.

    ``reference``: to the job, in a list so that Ray does not fetch it for each task.
    """
    global _prepared
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    if _prepared is None:
        import ray

        job = ray.get(reference[0])
        _prepared = gpu, job, _prepare(job)
    elif _prepared[0] != gpu:
        # TensorFlow keeps its GPU as long as the process lives. Ray runs the task again, in another one.
        os._exit(0)
    _, job, stages = _prepared
    made, statuses = Made(stages.device.kind), list[ImageStatus]()
    digests, watch = RemoteDigests(job.folder, "ray"), Stopwatch()
    if shards:
        made.add(make_shards(job.folder, job.parts[shards[0].part], shards, stages, digests, watch, statuses.extend))
        made.peak_memory_bytes = peak_memory_bytes()
    return Outcome(stages.device, made, statuses, digests.by_name, watch.seconds())


def _prepare(job: Job) -> Stages:
    """Look for what the driver sees, without which all images of this node would fail or differ; make the network."""
    node = f"engine: node {socket.gethostname()}"
    has_folder = (job.folder / format.LOCK_NAME).exists()
    if not has_folder or (job.image and not _can_read(job.image)):
        raise EngineError(
            f"{node} does not see the {'images' if has_folder else 'run folder'}, got nothing under the driver's path. Expected "
            "storage that all nodes share. Use another folder, or nodes that have it."
        )
    there = {**versions(), **job.versions}
    if other := [f"{name} {text} (there {there[name]})" for name, text in versions().items() if text != there[name]]:
        raise EngineError(f"{node} has other libraries than the driver's machine, got {', '.join(other)}. Expected the same.")
    # On a CPU TensorFlow's own convolutions would take all cores from the workers beside this one.
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = str(job.options.runtime.workers)
    return make_stages(job.options, next(iter(job.parts.values())), job.weights)


def _can_read(image: ImageRecord) -> bool:
    try:
        return bool(read_again(image))
    except ImageError:
        return False


# -- In the driver -------------------------------------------------------------------------------------------------------------


@contextmanager
def open_ray(options: Options, weights: AnyWeights, run_folder: RunFolder) -> Iterator[Engine]:
    """Connect to a cluster, have a first worker ready, and yield what makes the missing shards; all nodes share the folder.

    Raises:
        OptionError: A node does not have the device.
        EngineError: No cluster answers, no node can run a task, or one does not see what this process sees.
    """
    manifest = run_folder.spec.manifest
    some = (manifest[int(row)] for row in manifest.file_bytes.nonzero()[0][:100])
    parts = {missing[0].part: part for part, missing in run_folder.parts()}
    job = Job(options, parts, weights, run_folder.path.absolute(), next(filter(_can_read, some), None), versions())
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    with leaving_at_once():
        import ray
    connect(ray, options.engine.address)
    try:
        tasks = Tasks(ray, job)
        # Have networks made; go on when the first worker is ready.
        first = next(tasks.run([()] * tasks.slots))
        runtime = tasks.job.options.runtime
        say_device(first.device, options)
        LOGGER.info("engine: workers: %d, on the %s, threads each: %d", tasks.slots, runtime.device, runtime.workers)

        def make(progress: Progress, watch: Stopwatch) -> Made:
            made, seconds, digests = first.made, Counter[str](), run_folder.digests()
            with watch.stage("network"):
                for outcome in tasks.run(plan_tasks(run_folder.missing, tasks.slots, first.device.batch_size)):
                    seconds.update(outcome.seconds)
                    made.add(outcome.made)
                    made.peak_memory_bytes = max(made.peak_memory_bytes, outcome.made.peak_memory_bytes)
                    for name, digest in outcome.digests.items():
                        digests.add(name, digest)
                    progress.count(outcome.statuses)
            watch.divide("network", seconds)
            return made

        yield make
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise EngineError(
            f"engine: the Ray cluster does not answer any more, got {type(error).__name__}: {_one_line(error)}. Expected one to "
            "live as long as the run. Run the command again: finished shards are kept."
        ) from error
    finally:
        with suppress(Exception):
            ray.shutdown()
        # Of attempts that died, and of those that have ended with the connection.
        run_folder.drop_partial_files()


def connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster; without an address one of this machine is started, for as long as the connection."""
    settings: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        settings |= {"address": "local", "num_cpus": usable_cores(), "include_dashboard": False}
    try:
        if address not in (None, AUTO):
            host, _, port = str(address).removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), PORT_SECONDS).close()
        with kept_handlers():
            ray.init(**settings)
    except Exception as error:
        where, done = ("engine", "started") if address is None else (f"engine.address={address}", "reached")
        raise EngineError(
            f"{where}: no Ray cluster can be {done}, got: {_one_line(error)}. Expected one of the same version of Ray and "
            "Python. Start it with `ray start --head`, which says more, or use engine=local."
        ) from error


class Tasks:
    """Runs tasks of a job on a cluster: ``slots`` at a time, of a ``job`` that has the device and the threads of a task."""

    def __init__(self, ray: Any, job: Job) -> None:
        """Choose what a task takes, from the nodes and from the options as the user gave them."""
        runtime, engine = job.options.runtime, job.options.engine
        self._ray, self._most = ray, engine.workers or math.inf
        nodes = self._nodes()
        cpus, gpus = plan_resources(nodes, engine, runtime.device)
        self.slots = int(min(self._most, count_slots(nodes, cpus, gpus)))
        if not self.slots:
            raise EngineError(
                f"engine: no node can run a task, got none with {cpus:g} cores and {gpus:g} GPUs. Expected one. Add it, or lower "
                "engine.cpus_per_worker and engine.gpus_per_worker."
            )
        # Not the options' auto: a task that has no GPU must not take one, and one that has must not do without.
        device, threads = "gpu" if gpus else "cpu", runtime.workers or max(1, int(cpus))
        self.job = replace(job, options=replace(job.options, runtime=replace(runtime, device=device, workers=threads)))
        self._reference = [ray.put(self.job)]
        # With a GPU Ray's default is a new process a task.
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, max_calls=0)(make_task)
        self._running: dict[Any, Shards] = {}

    def _nodes(self) -> Nodes:
        resources = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [(has["CPU"], has.get("GPU", 0.0)) for has in resources if has.get("CPU")]

    def run(self, tasks: Iterable[Shards]) -> Iterator[Outcome]:
        """Run tasks, and yield what each has made when it is finished; where all nodes have gone, wait for new ones.

        Raises:
            PipelineError: A task has raised, or died too often.
        """
        waiting, heard = deque(tasks), time.monotonic()
        while waiting or self._running:
            while waiting and len(self._running) < self._most:
                shards = waiting.popleft()
                self._running[self._task.remote(self._reference, shards)] = shards
            try:
                done, _ = self._ray.wait(list(self._running), timeout=1.0)
            except SystemError as error:
                # Ray 2.60 returns a result although a signal's handler has raised, which Python takes for a fault.
                raise error.__cause__ or error from None
            if done:
                heard = time.monotonic()
            elif time.monotonic() - heard > QUIET_SECONDS:
                heard = time.monotonic()
                if not self._nodes():
                    LOGGER.warning("engine: no node is left that has cores; the run goes on when one is added")
            for future in done:
                yield self._outcome(future, self._running.pop(future))

    def _outcome(self, future: Any, shards: Shards) -> Outcome:
        errors = self._ray.exceptions
        try:
            return self._ray.get(future)  # type: ignore[no-any-return]  # Ray is not loaded
        except errors.RayTaskError as error:
            if isinstance(error.cause, PipelineError):
                raise error.cause from None
            if isinstance(error.cause, ImportError) or "failed to import on the worker" in str(error):
                raise EngineError(
                    f"engine: a node cannot load this program, got {str(error).splitlines()[-1]!r}. Expected it on every node, "
                    "with all that it needs. Install it there."
                ) from None
            # A fault of this program, and none of Ray.
            raise RuntimeError(str(error)) from None
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            # Of its shards those that no attempt has finished.
            names = []
            for shard in shards:
                name, keys = format.shard_path(shard.file_name), self.job.parts[shard.part].manifest.keys
                if not (self.job.folder / name).exists():
                    first, last = (printable(keys[row], LONGEST_TEXT) for row in (shard.first, shard.stop - 1))
                    names.append(f"{name} (images {first!r} to {last!r})")
            raise EngineError(
                f"engine: {', '.join(names) or 'a network'} could not be made, got {RETRIES + 1} workers that died over it, the "
                f"last since {_one_line(error)}. Expected one that lives. Look at the nodes' memory and such images; finished "
                "shards are kept."
            ) from error


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()), LONGEST_TEXT).rstrip(".")
