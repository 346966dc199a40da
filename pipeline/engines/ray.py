"""``engine=ray``: shards made by tasks on a Ray cluster. Ray places, retries and balances them; the driver counts what they made.

A task is some shards of one part, read as one sequence. A worker process keeps the network between tasks.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import os
import pickle
import secrets
import socket
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import AUTO, EngineOptions, Options
from ..errors import EngineError, OptionError, PipelineError, printable
from ..extract import Stages, make_shards, make_stages
from ..images.reading import FileSlices
from ..machine import peak_memory_bytes, usable_cores
from ..network.weights import Weights
from ..plan import versions
from ..progress import LOGGER as _log
from ..progress import Progress
from ..records import ImageStatus, RunSpec, ShardSpec
from ..report import Made, Stopwatch
from ..signals import kept_handlers, leaving_at_once
from ..store import disk, format
from ..store.digests import Digests, RemoteDigests
from ..store.run_folder import RunFolder
from ..store.writer import Writer
from . import Engine

# A task that dies is run again so often.
RETRIES = 2
# Device steps that a task should have, so that its first and its last, partly empty one are few among them; and tasks that every
# worker should get nevertheless, so that all end at about the same time.
TASK_STEPS, TASKS_A_WORKER = 20, 4
PORT_SECONDS = 5.0
# Without any node that could run a task.
NO_NODE_SECONDS = 60.0
# For cancelled tasks to end; less than signals.GRACE_SECONDS.
CANCEL_SECONDS = 2.0
# Of a cluster of this run alone, besides what the run puts there. Source: Ray refuses less than 75 MiB.
OBJECT_STORE_BYTES = 128 << 20
# Source: Ray, "Fractional Resource Requirements": to 0.0001.
SHARES_A_CORE = 10_000
LONGEST_TEXT = 240
_SETTINGS = {
    # It would tell its makers of each cluster.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Tasks without a GPU are told so by us; Ray would announce at length that it will change what it does about that.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # By default a task that is killed for its memory is run again without end.
    "RAY_task_oom_retries": str(RETRIES),
}
_STAGES = ("read", "network", "store", "finish")


@dataclass(frozen=True, slots=True)
class Job:
    """What every task needs; put into Ray's object store once.

    Attributes:
        options: Of the run, with the device and the threads of a task.
        parts: Number -> the run up to that part.
        weights: Of the network.
        folder: The run folder, absolute.
        image: A file that must be there too; "" if there is none.
    """

    options: Options
    parts: Mapping[int, RunSpec]
    weights: Weights
    folder: str
    image: str


@dataclass(slots=True)
class Outcome:
    """What a task has made.

    Attributes:
        worker: (host, process).
        batch_size: Of its device.
        made: Bytes, seconds of threads, memory; its device.
        statuses: Of its rows.
        values: Of their activations, how many numbers.
        digests: Path from the run folder -> SHA-256, hex, of its shards.
        seconds: By stage.
        is_repeated: Whether an attempt before it died.
    """

    worker: tuple[str, int]
    batch_size: int
    made: Made
    statuses: tuple[ImageStatus, ...] = ()
    values: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    is_repeated: bool = False


def require_ray(engine: EngineOptions) -> None:
    """Check, without loading anything, that Ray is installed, and that a task fits on this machine, if it must.

    Raises:
        OptionError: It is not, or does not.
    """
    if importlib.util.find_spec("ray") is None:
        raise OptionError(
            "engine: Ray is not installed here, got ray. Expected the `ray` extra, or engine=local. Install it with "
            "`pip install 'deep-feature-pipeline[ray]'`."
        )
    if engine.address is None:
        plan_resources([(usable_cores(), math.inf)], replace(engine, gpus_per_worker=0.0), "cpu", is_local=True)


def plan_resources(
    nodes: Sequence[tuple[float, float]], engine: EngineOptions, device: str, *, is_local: bool = False
) -> tuple[float, float]:
    """Return the cores and the share of a GPU that each task takes.

    Args:
        nodes: (cores, GPUs) of each node that has cores.
        engine: The options.
        device: ``runtime.device``.
        is_local: Whether no node will be added.

    Raises:
        OptionError: No node could ever run a task.
    """
    gpus = engine.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if device == "gpu" or (device != "cpu" and any(has >= 1 for _, has in nodes)) else 0.0
    usable = [node for node in nodes if node[1] >= gpus]
    cpus = float(engine.cpus_per_worker or 1)
    if usable and not engine.cpus_per_worker:
        if gpus:
            cpus = min(cores / int(has / gpus + 1e-9) for cores, has in usable)
        elif engine.workers is None:
            cpus = min(cores for cores, _ in usable)
        else:
            cpus = min(max(usable)[0], sum(cores for cores, _ in usable) / engine.workers)
        cpus = float(int(cpus)) if cpus >= 1 else max(1, int(cpus * SHARES_A_CORE)) / SHARES_A_CORE
        while not gpus and count_slots(usable, cpus, 0.0) < (engine.workers or 0):
            cpus = cpus - 1 if cpus > 1 else cpus / 2
    if not count_slots(nodes, cpus, gpus) and (is_local or (nodes and engine.workers is None)):
        most_cpus, most_gpus = (max((node[kind] for node in nodes), default=0) for kind in (0, 1))
        key, got, most, what = ("gpus", gpus, most_gpus, "GPUs") if gpus > most_gpus else ("cpus", cpus, most_cpus, "cores")
        raise OptionError(
            f"engine.{key}_per_worker: no node is large enough for a worker, got {got:g}. Expected at most {most:g}, the {what} "
            "of the largest node. Ask for less."
        )
    return cpus, gpus


def count_slots(nodes: Sequence[tuple[float, float]], cpus: float, gpus: float) -> int:
    """Return how many tasks the nodes can run at a time."""
    return sum(int(min(cores / cpus, has / gpus if gpus else math.inf) + 1e-9) for cores, has in nodes)


def plan_tasks(shards: Sequence[ShardSpec], slots: int, batch_size: int) -> list[tuple[ShardSpec, ...]]:
    """Divide shards into tasks, each of one part.

    Args:
        shards: To make, in order.
        slots: Tasks that run at a time.
        batch_size: Rows of a device step.
    """
    rows = max(shard.rows for shard in shards)
    size = max(1, min(-(-TASK_STEPS * batch_size // rows), len(shards) // (TASKS_A_WORKER * slots)))
    return [
        tuple(of_part[first : first + size])
        for _, group in itertools.groupby(shards, lambda shard: shard.part)
        for of_part in [list(group)]
        for first in range(0, len(of_part), size)
    ]


# In a worker process: the GPU that it has, the job and its network. Kept from one task to the next.
_prepared: tuple[str | None, Job, Stages] | None = None


def make_task(job: Sequence[Any], name: str, shards: Sequence[ShardSpec]) -> Outcome:
    """Make shards; runs in a worker process, which works for one job alone.

    Args:
        job: One reference to it, in a list so that Ray does not fetch it for each task.
        name: Of the task; its unfinished files have it.
        shards: Of one part; none: only the network is made.

    Raises:
        PipelineError: What stopped it. No partial file is left behind.
    """
    global _prepared
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    if _prepared is None:
        import ray

        given = ray.get(job[0])
        _prepared = gpu, given, _prepare(given)
    elif _prepared[0] != gpu:
        # TensorFlow keeps its GPU as long as the process lives. Ray runs the task again, in another one.
        os._exit(0)
    return _make(_prepared[1], _prepared[2], name, shards)


def _prepare(job: Job) -> Stages:
    """Look for what the driver sees, and make the network.

    Raises:
        PipelineError: This node cannot be used.
    """
    node = f"engine: node {socket.gethostname()}"
    for what, path in (("run folder", str(Path(job.folder, format.LOCK_NAME))), ("images", job.image)):
        if path and not Path(path).exists():
            raise EngineError(
                f"{node} does not see the {what}, got nothing at {path!r}. Expected storage that all nodes share, under the same "
                "path. Use another folder, or nodes that have it."
            )
    part, found = next(iter(job.parts.values())), versions()
    wanted = {name: part.attributes.get(f"version_{name}") for name in found}
    if other := [name for name, text in wanted.items() if text not in (None, found[name])]:
        got, expected = (", ".join(f"{name} {of[name]}" for name in other) for of in (found, wanted))
        raise EngineError(f"{node} has other libraries, got {got}. Expected {expected}, as on the driver's machine.")
    # On a CPU TensorFlow's own convolutions would take all cores from the workers beside this one.
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = str(job.options.runtime.workers)
    return make_stages(job.options, part, job.weights)


def _make(job: Job, stages: Stages, name: str, shards: Sequence[ShardSpec]) -> Outcome:
    """Make shards, having removed what an attempt that died has left."""
    outcome = Outcome((socket.gethostname(), os.getpid()), stages.device.batch_size, Made(stages.device.kind))
    if not shards:
        return outcome
    for path in Path(job.folder, format.SHARD_FOLDER).glob(f"*.{name}-*{format.PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)
        outcome.is_repeated = True
    part, threads, watch = job.parts[shards[0].part], job.options.runtime.workers or 1, Stopwatch()

    def tell(path: Path, digest: str) -> None:
        outcome.digests[format.shard_path(path.name)] = digest

    def done(statuses: Sequence[ImageStatus], values: int) -> None:
        outcome.statuses += tuple(statuses)
        outcome.values += values

    writer = Writer(Path(job.folder), part, shards, threads, digests=RemoteDigests(name, tell))
    make_shards(writer, part, shards, stages, threads, watch, done)
    outcome.made.add(writer)
    outcome.made.peak_memory_bytes = peak_memory_bytes()
    outcome.seconds = watch.seconds()
    return outcome


@contextmanager
def open_ray(options: Options, spec: RunSpec, weights: Weights, run_folder: RunFolder) -> Iterator[Engine]:
    """Connect to a cluster, have a first worker ready, and yield what makes the missing shards.

    Args:
        options: Of the run.
        spec: The run with all its parts.
        weights: Of the network.
        run_folder: Held by this process, on storage that all nodes share.

    Raises:
        OptionError: No node can run a task, or has the device.
        EngineError: No cluster answers, or a node does not see what this process sees.
    """
    parts = {missing[0].part: part for part, missing in run_folder.parts()}
    job = Job(options, parts, weights, str(run_folder.path.absolute()), _visible_image(spec))
    with leaving_at_once(), warnings.catch_warnings():
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        warnings.simplefilter("ignore")
        import ray
    with _connected(ray, options.engine.address, job):
        tasks = Tasks(ray, job)
        try:
            tasks.start()
            yield lambda progress, watch: tasks.make(run_folder.missing, run_folder.digests(), progress, watch)
        except BaseException as error:
            tasks.cancel()
            run_folder.drop_partial_files()
            if isinstance(error, (ray.exceptions.RayError, ConnectionError)):
                raise EngineError(
                    f"engine: the Ray cluster does not answer any more, got {type(error).__name__}: {_one_line(error)}. Expected "
                    "its head to live as long as the run. Look at the head, then run the command again: finished shards are kept."
                ) from error
            raise


@contextmanager
def _connected(ray: Any, address: str | None, job: Job) -> Iterator[None]:
    """Connect to a cluster; one of this machine for this run alone is started, and ended."""
    if ray.is_initialized():
        raise EngineError(
            "engine: this process is connected to a Ray cluster already, got a connection that is not the run's. Expected none, "
            "or the run in a process of its own. Call ray.shutdown() first."
        )
    settings: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Twice: there is a moment in which the job is put together.
        size = OBJECT_STORE_BYTES + 2 * len(pickle.dumps(job))
        settings |= {"address": "local", "num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": size}
    try:
        try:
            if address not in (None, AUTO):
                # Ray would try for minutes.
                host, _, port = str(address).removeprefix("ray://").rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), PORT_SECONDS).close()
            with kept_handlers(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(**settings)
        except Exception as error:
            what = (getattr(error, "strerror", None) or "").lower() or _one_line(error).split(". ")[0]
            raise EngineError(
                f"engine: a Ray cluster cannot be started on this machine, got: {what}. Expected one for this run. Try "
                "`ray start --head`, which says more, or engine=local."
                if address is None
                else f"engine.address: no Ray cluster is there, got {address!r}: {what}. Expected one that runs, of the same "
                "version of Ray and Python. Start it with `ray start --head`, or leave engine.address out."
            ) from error
        yield
    finally:
        with suppress(Exception):
            ray.shutdown()


class Tasks:
    """The tasks of a run, those that are running and what they have made.

    Args:
        ray: Connected.
        job: With the options as the user gave them.

    Raises:
        OptionError: No node could ever run a task.
    """

    def __init__(self, ray: Any, job: Job) -> None:
        self._ray = ray
        runtime, engine = job.options.runtime, job.options.engine
        self._cpus, self._gpus = plan_resources(self._nodes(), engine, runtime.device, is_local=engine.address is None)
        self._most = engine.workers or math.inf
        # Not the options' auto: a task that has no GPU must not take one, and one that has must not do without.
        device, threads = "gpu" if self._gpus else "cpu", runtime.workers or max(1, int(self._cpus))
        self._job = replace(job, options=replace(job.options, runtime=replace(runtime, device=device, workers=threads)))
        self._reference, self._token = [ray.put(self._job)], secrets.token_hex(4)
        # With a GPU Ray's default is a new process a task.
        settings = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": RETRIES, "max_calls": 0}
        self._task = ray.remote(**settings)(make_task)
        self._running: dict[Any, tuple[ShardSpec, ...]] = {}
        self._had_node = time.monotonic()

    def start(self) -> None:
        """Have networks made; return when the first one is ready.

        Raises:
            PipelineError: A node cannot be used, or there is none.
        """
        self._slots = max(1, int(min(self._most, count_slots(self._nodes(), self._cpus, self._gpus))))
        for _ in range(self._slots):
            self._submit(())
        while not (found := self._finished()):
            pass
        self._first = found[0]
        runtime = self._job.options.runtime
        _log.info("engine: workers: %d, on the %s, threads each: %d", self._slots, runtime.device, runtime.workers)

    def make(self, shards: Sequence[ShardSpec], digests: Digests, progress: Progress, watch: Stopwatch) -> Made:
        """Make shards.

        Raises:
            PipelineError: What stopped it, here or in a task.
        """
        made, seconds, workers = Made(self._first.made.device), Counter(dict.fromkeys(_STAGES, 0.0)), {self._first.worker}
        waiting = deque(plan_tasks(shards, self._slots, self._first.batch_size))
        tasks = len(waiting)
        try:
            with watch.stage("network"):
                while waiting or any(self._running.values()):
                    while waiting and len(self._running) < self._most:
                        self._submit(waiting.popleft())
                    for outcome in self._finished():
                        workers.add(outcome.worker)
                        seconds.update({name: outcome.seconds.get(name, 0.0) for name in _STAGES})
                        made.add(outcome.made)
                        made.peak_memory_bytes = max(made.peak_memory_bytes, outcome.made.peak_memory_bytes)
                        _add_digests(digests, outcome.digests)
                        if outcome.statuses:
                            progress.count(outcome.statuses, outcome.values, made.bytes_raw, made.bytes_stored)
        finally:
            watch.divide("network", seconds)
        hosts = {host for host, _ in workers}
        _log.info("engine: %d tasks, by processes: %d, on nodes: %d", tasks, len(workers), len(hosts))
        return made

    def cancel(self) -> None:
        """End what is running."""
        # Of any kind: there is another error to be told, and nothing else to be done about this one.
        with suppress(Exception):
            for future in self._running:
                self._ray.cancel(future, force=True)
            if self._running:
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=CANCEL_SECONDS)

    def _submit(self, shards: tuple[ShardSpec, ...]) -> None:
        name = f"{self._token}-{shards[0].number if shards else 'start'}"
        self._running[self._task.remote(self._reference, name, shards)] = shards

    def _finished(self) -> list[Outcome]:
        """Return what tasks have made that are finished; waits a second for one.

        Raises:
            PipelineError: A task has raised, or died too often; there are no nodes.
        """
        done, _ = self._ray.wait(list(self._running), timeout=1.0)
        if done:
            done, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        elif count_slots(self._nodes(), self._cpus, self._gpus):
            self._had_node = time.monotonic()
        elif time.monotonic() - self._had_node > NO_NODE_SECONDS:
            raise EngineError(
                f"engine: no node can run a task, got none with {self._cpus:g} cores and {self._gpus:g} GPUs for "
                f"{NO_NODE_SECONDS:.0f} s. Expected one. Look at the nodes, then run the command again: finished shards are kept."
            )
        return [self._outcome(future, self._running.pop(future)) for future in done]

    def _outcome(self, future: Any, shards: tuple[ShardSpec, ...]) -> Outcome:
        errors = self._ray.exceptions
        try:
            found: Outcome = self._ray.get(future)
        except errors.RayTaskError as error:
            if isinstance(error.cause, PipelineError):
                raise error.cause from None
            if "failed to import on the worker" in str(error):
                raise EngineError(
                    f"engine: a node cannot load this program, got {str(error).splitlines()[-1]}. Expected the same "
                    "installation on all nodes. Install it there."
                ) from None
            raise RuntimeError(str(error)) from None
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            raise self._died(shards, _one_line(error)) from error
        if found.is_repeated:
            _log.warning("engine: a worker died over %s; another has made it", ", ".join(found.digests))
        return found

    def _died(self, shards: tuple[ShardSpec, ...], cause: str) -> EngineError:
        """Return the error of a task that died too often: it names those of its shards that no attempt has finished."""
        if not shards:
            return EngineError(
                f"engine: no worker can be started, got {RETRIES + 1} that died, the last since {cause}. Expected one that "
                "lives. Look at the nodes and their memory."
            )
        paths = [format.shard_path(shard.file_name) for shard in shards]
        keys = self._job.parts[shards[0].part].manifest.keys
        names = [
            f"{path} (images {printable(keys[shard.first], LONGEST_TEXT)!r} to {printable(keys[shard.stop - 1], LONGEST_TEXT)!r})"
            for path, shard in zip(paths, shards, strict=True)
            if not Path(self._job.folder, path).exists()
        ]
        return EngineError(
            f"engine: {', '.join(names or paths)} could not be made, got {RETRIES + 1} workers that died over it, the last since "
            f"{cause}. Expected one that lives. Look at these images and at the memory of the nodes; finished shards are kept."
        )

    def _nodes(self) -> list[tuple[float, float]]:
        """Return (cores, GPUs) of the nodes that live and have cores."""
        found = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [(node["CPU"], node.get("GPU", 0.0)) for node in found if node.get("CPU")]


def _add_digests(digests: Digests, found: Mapping[str, str]) -> None:
    try:
        for name, digest in found.items():
            digests.add(name, digest)
    except OSError as error:
        raise disk.write_error(digests.path, error) from error


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()), LONGEST_TEXT).rstrip(".")


def _visible_image(spec: RunSpec) -> str:
    """Return the first image that is there as a file on this machine, or what holds it; "" where all are at addresses."""
    manifest = spec.manifest
    if isinstance(manifest.source, FileSlices):
        return manifest.source.paths[0]
    sized = (int(row) for row in manifest.file_bytes.nonzero()[0][:100])
    return next((path for row in sized if Path(path := manifest[row].path).is_file()), "")
