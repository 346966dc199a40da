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
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import AUTO, EngineOptions, Options
from ..errors import EngineError, OptionError, PipelineError, StoreError, printable
from ..estimate import raw_bytes
from ..images.tar import TarSource
from ..images.tfds import TfdsSource
from ..journal import LOGGER as _log
from ..machine import peak_memory_bytes, usable_cores
from ..making import make_shards
from ..network.weights import Weights
from ..plan import versions
from ..records import ImageStatus, RunSpec, ShardSpec
from ..report import Stopwatch
from ..signals import kept_handlers, leaving_at_once
from ..stages import Stages, make_stages
from ..store import disk, format
from ..store.digests import Digests, RemoteDigests
from ..store.run_folder import RunFolder
from ..store.writer import Writer
from .engine import Made, News

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
# For a file that the driver has just written to be seen from another machine.
SEEN_SECONDS = 5.0
# Is in the run folder as long as the run goes on: tasks give no shard its name without it.
MARK_PREFIX = ".engine-"
# Of a cluster of this run alone, besides what the run puts there. Source: Ray refuses less than 75 MiB.
OBJECT_STORE_BYTES = 128 << 20
# Source: Ray, "Fractional Resource Requirements": to 0.0001.
SHARES_A_CORE = 10_000
LONGEST_KEY, LONGEST_CAUSE = 200, 240
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
        token: Of this run and no other.
        options: Of the run, with the device and the threads of a task.
        parts: Number -> the run up to that part.
        weights: Of the network.
        folder: The run folder, absolute.
        image: A file that must be there too; "" if there is none.
    """

    token: str
    options: Options
    parts: Mapping[int, RunSpec]
    weights: Weights
    folder: str
    image: str

    @property
    def mark(self) -> Path:
        """File that is in the run folder as long as the run goes on."""
        return Path(self.folder, f"{MARK_PREFIX}{self.token}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task has made.

    Attributes:
        worker: (host, process).
        batch_size: Of its device.
        made: Bytes, seconds of threads, memory; its device.
        rows: That it has done.
        failed: Those that failed.
        raw_seen: Bytes of all their activations.
        digests: Path from the run folder -> SHA-256, hex, of its shards.
        seconds: By stage.
        is_repeated: Whether an attempt before it died.
    """

    worker: tuple[str, int]
    batch_size: int
    made: Made
    rows: int = 0
    failed: tuple[ImageStatus, ...] = ()
    raw_seen: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)
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
    """Give the cores and the share of a GPU that each task takes.

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
        gpus = 1.0 if device == "gpu" or (device != "cpu" and any(node[1] >= 1 for node in nodes)) else 0.0
    usable = [node for node in nodes if node[1] >= gpus]
    if engine.cpus_per_worker or not usable:
        cpus = float(engine.cpus_per_worker or 1)
    elif gpus:
        cpus = min(cores / int(has / gpus + 1e-9) for cores, has in usable)
    elif engine.workers is None:
        cpus = min(cores for cores, _ in usable)
    else:
        # The most of which so many workers can each have their own: whole cores, or a half, a third of one.
        shares = itertools.chain(range(int(max(usable)[0]), 0, -1), (1 / parts for parts in itertools.count(2)))
        cpus = next(share for share in shares if count_slots(usable, share, 0.0) >= engine.workers)
    cpus = float(int(cpus)) if cpus >= 1 else max(1, int(cpus * SHARES_A_CORE)) / SHARES_A_CORE
    if not count_slots(nodes, cpus, gpus) and (is_local or (nodes and engine.workers is None)):
        most_cpus, most_gpus = (max((node[kind] for node in nodes), default=0) for kind in (0, 1))
        key, got, most, what = ("gpus", gpus, most_gpus, "GPUs") if gpus > most_gpus else ("cpus", cpus, most_cpus, "cores")
        raise OptionError(
            f"engine.{key}_per_worker: no node has room for a worker, got {got:g}. Expected at most {most:g}, the {what} of the "
            "largest node. Ask for less."
        )
    return cpus, gpus


def count_slots(nodes: Sequence[tuple[float, float]], cpus: float, gpus: float) -> int:
    """Give how many tasks the nodes can run at a time."""
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


# In a worker process: the run it works for, the GPU that it has, its network. Kept from one task to the next.
_prepared: tuple[str, str | None, Job, Stages] | None = None


def make_task(token: str, job: Sequence[Any], name: str, shards: Sequence[ShardSpec]) -> Outcome | PipelineError:
    """Make shards; runs in a worker process.

    Args:
        token: Of the job.
        job: One reference to it, in a list so that Ray does not fetch it for each task.
        name: Of the task; its unfinished files have it.
        shards: Of one part; none: only the network is made.
    """
    global _prepared
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        if _prepared is not None and _prepared[:2] != (token, gpu):
            # TensorFlow keeps its GPU as long as the process lives. Ray runs the task again, in another one.
            os._exit(0)
        if _prepared is None:
            import ray

            given = ray.get(job[0])
            _prepared = token, gpu, given, _prepare(given)
        return _make(_prepared[2], _prepared[3], name, shards)
    except PipelineError as error:
        return type(error)(str(error))
    except Exception as error:
        # As text, since not every exception can be sent.
        raise RuntimeError("".join(traceback.format_exception(error)).rstrip()) from None


def _prepare(job: Job) -> Stages:
    """Look for what the driver sees, and make the network.

    Raises:
        PipelineError: This node cannot be used.
    """
    host, end = socket.gethostname(), time.monotonic() + SEEN_SECONDS
    while not job.mark.exists():
        if time.monotonic() > end:
            raise _not_shared(host, job.folder, "the run folder", "output.dir")
        time.sleep(0.2)
    if job.image and not Path(job.image).exists():
        raise _not_shared(host, job.image, "the images", "data.dir, data.list or data.tar")
    part, found = next(iter(job.parts.values())), versions()
    wanted = {name: part.attributes.get(f"version_{name}") for name in found}
    other = [name for name, text in wanted.items() if text not in (None, found[name])]
    if other:
        got, expected = (", ".join(f"{name} {of[name]}" for name in other) for of in (found, wanted))
        raise EngineError(
            f"engine: node {host} has other libraries, got {got}. Expected {expected}, as on the driver's machine. Install the "
            "same there."
        )
    # On a CPU TensorFlow's own convolutions would take all cores from the workers beside this one.
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = str(job.options.runtime.workers)
    return make_stages(job.options, part, job.weights)


def _not_shared(host: str, path: str, what: str, option: str) -> EngineError:
    return EngineError(
        f"engine: node {host} does not see {what}, got nothing of this run at {path!r}. Expected storage that all nodes share, "
        f"under the same path. Choose another place with {option}, or nodes that have it."
    )


def _make(job: Job, stages: Stages, name: str, shards: Sequence[ShardSpec]) -> Outcome:
    """Make shards.

    Raises:
        PipelineError: What stopped it. No partial file is left behind.
    """
    worker, batch_size = (socket.gethostname(), os.getpid()), stages.device.batch_size
    if not shards:
        return Outcome(worker, batch_size, Made(stages.device.kind))
    left = list(Path(job.folder, format.SHARD_FOLDER).glob(f"*.{name}-*{format.PARTIAL_SUFFIX}"))
    for path in left:
        path.unlink(missing_ok=True)
    part, threads, watch = job.parts[shards[0].part], job.options.runtime.workers or 1, Stopwatch()
    digests: dict[str, str] = {}
    failed: list[ImageStatus] = []
    raw_seen: list[int] = []

    def permit() -> None:
        if not job.mark.exists():
            raise StoreError(f"{job.folder}: this worker's run has ended. Expected it to go on. Run the command again.")

    def tell(path: Path, digest: str) -> None:
        digests[format.shard_path(path.name)] = digest

    def done(statuses: Sequence[ImageStatus]) -> None:
        failed.extend(status for status in statuses if status.error)
        raw_seen.append(raw_bytes(part, statuses))

    writer = Writer(Path(job.folder), part, shards, threads, digests=RemoteDigests(name, permit, tell))
    make_shards(writer, part, shards, stages, threads, watch, done)
    made = Made(stages.device.kind, peak_memory_bytes=peak_memory_bytes())
    made.add(writer)
    rows = sum(shard.rows for shard in shards)
    return Outcome(worker, batch_size, made, rows, tuple(failed), sum(raw_seen), digests, watch.seconds(), bool(left))


@contextmanager
def ray_engine(options: Options, spec: RunSpec, weights: Weights, run_folder: RunFolder) -> Iterator[RayEngine]:
    """Connect to a cluster, and have a first worker ready.

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
    job = Job(secrets.token_hex(4), options, parts, weights, str(run_folder.path.absolute()), _visible_image(spec))
    with leaving_at_once():
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
    with _connected(ray, options.engine.address, job), _marked(job.mark):
        engine = RayEngine(ray, job)
        try:
            engine.start()
            yield engine
        except BaseException as error:
            engine.cancel()
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
        buffers: list[pickle.PickleBuffer] = []
        size = len(pickle.dumps(job, 5, buffer_callback=buffers.append)) + sum(buffer.raw().nbytes for buffer in buffers)
        # Twice: there is a moment in which it is put together.
        shared = OBJECT_STORE_BYTES + 2 * size
        settings |= {"address": "local", "num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": shared}
    elif address != AUTO:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), PORT_SECONDS).close()
        except OSError as error:
            raise _no_cluster(address, (error.strerror or str(error) or type(error).__name__).lower()) from error
    try:
        try:
            with kept_handlers(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(**settings)
        except Exception as error:
            raise _no_cluster(address, _one_line(error).split(". ")[0]) from error
        yield
    finally:
        with suppress(Exception):
            ray.shutdown()


def _no_cluster(address: str | None, what: str) -> EngineError:
    if address is None:
        return EngineError(
            f"engine: a Ray cluster cannot be started on this machine, got: {what}. Expected one for this run. Try `ray start "
            "--head`, which says more, or engine=local."
        )
    return EngineError(
        f"engine.address: no Ray cluster is there, got {address!r}: {what}. Expected one that runs, of the same version of "
        "Ray and Python. Start it with `ray start --head`, or leave engine.address out for a cluster of this run alone."
    )


@contextmanager
def _marked(mark: Path) -> Iterator[None]:
    """Have a file as long as the run goes on."""
    with suppress(OSError):
        # Of a run that was killed. The lock is held, so of no other.
        for path in mark.parent.glob(f"{MARK_PREFIX}*"):
            path.unlink()
    try:
        mark.touch()
    except OSError as error:
        raise disk.write_error(mark, error) from error
    try:
        yield
    finally:
        # Where the disk refuses, the next run removes it.
        with suppress(OSError):
            mark.unlink()


class RayEngine:
    """Has shards made by tasks.

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
        self._reference = [ray.put(self._job)]
        # With a GPU Ray's default is a new process a task.
        settings = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": RETRIES, "max_calls": 0}
        self._task = ray.remote(**settings)(make_task)
        self._running: dict[Any, tuple[ShardSpec, ...]] = {}
        self._had_node = time.monotonic()
        self._first: Outcome | None = None

    def start(self) -> None:
        """Have networks made; return when the first one is ready.

        Raises:
            PipelineError: A node cannot be used, or there is none.
        """
        self._slots = max(1, int(min(self._most, count_slots(self._nodes(), self._cpus, self._gpus))))
        for _ in range(self._slots):
            self._submit(())
        while self._first is None:
            self._first = next(iter(self._finished()), None)
        runtime = self._job.options.runtime
        _log.info("engine: workers: %d, on the %s, threads each: %d", self._slots, runtime.device, runtime.workers)

    def make(self, run_folder: RunFolder, news: News) -> None:
        """Have made what is missing.

        Raises:
            PipelineError: What stopped it, here or in a task.
        """
        assert self._first is not None, "not started"
        digests, seconds, workers = Digests(run_folder.path), Counter(dict.fromkeys(_STAGES, 0.0)), {self._first.worker}
        waiting = deque(plan_tasks(run_folder.missing, self._slots, self._first.batch_size))
        tasks = len(waiting)
        news.made.device = self._first.made.device
        try:
            with news.watch.stage("network"):
                while waiting or any(self._running.values()):
                    while waiting and len(self._running) < self._most:
                        self._submit(waiting.popleft())
                    for outcome in self._finished():
                        seconds.update({name: outcome.seconds.get(name, 0.0) for name in _STAGES})
                        workers.add(outcome.worker)
                        self._take(outcome, digests, news)
        finally:
            news.watch.divide("network", seconds)
        hosts = {host for host, _ in workers}
        _log.info("engine: %d tasks, by processes: %d, on nodes: %d", tasks, len(workers), len(hosts))

    def cancel(self) -> None:
        """End what is running."""
        # Of any kind: there is another error to be told, and nothing else to be done about this one.
        with suppress(Exception):
            for future in self._running:
                self._ray.cancel(future, force=True)
            if self._running:
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=CANCEL_SECONDS)

    def _submit(self, shards: tuple[ShardSpec, ...]) -> None:
        name = f"{self._job.token}-{shards[0].number if shards else 'start'}"
        self._running[self._task.remote(self._job.token, self._reference, name, shards)] = shards

    def _finished(self) -> list[Outcome]:
        """Give what tasks have made that are finished; waits a second for one.

        Raises:
            PipelineError: A task has raised, or died too often; there are no nodes.
        """
        done, _ = self._ray.wait(list(self._running), timeout=1.0)
        if not done:
            self._require_nodes()
            return []
        done, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._outcome(future, self._running.pop(future)) for future in done]

    def _outcome(self, future: Any, shards: tuple[ShardSpec, ...]) -> Outcome:
        errors = self._ray.exceptions
        try:
            found: Outcome | PipelineError = self._ray.get(future)
        except errors.RayTaskError as error:
            if "failed to import on the worker" in str(error):
                raise EngineError(
                    f"engine: a node cannot load this program, got {str(error).splitlines()[-1]}. Expected the same "
                    "installation on all nodes. Install it there."
                ) from None
            raise RuntimeError(str(error)) from None
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            raise self._died(shards, _one_line(error)) from error
        if isinstance(found, PipelineError):
            raise found
        if found.is_repeated:
            _log.warning("engine: a worker died over %s; another has made it", ", ".join(found.digests))
        return found

    def _died(self, shards: tuple[ShardSpec, ...], cause: str) -> EngineError:
        """Give the error of a task that died too often: it names what of it is not finished."""
        if not shards:
            return EngineError(
                f"engine: no worker can be started, got {RETRIES + 1} that died, the last since {cause}. Expected one that "
                "lives. Look at the nodes and their memory."
            )
        keys = self._job.parts[shards[0].part].manifest.keys
        # Those of its shards that an attempt has finished are not to blame.
        left = [shard for shard in shards if not Path(self._job.folder, format.shard_path(shard.file_name)).exists()] or shards
        names = [
            f"{format.shard_path(shard.file_name)} (images {printable(keys[shard.first], LONGEST_KEY)!r} to "
            f"{printable(keys[shard.stop - 1], LONGEST_KEY)!r})"
            for shard in left
        ]
        return EngineError(
            f"engine: {', '.join(names)} could not be made, got {RETRIES + 1} workers that died over it, the last since {cause}. "
            "Expected one that lives. Look at these images and at the memory of the nodes; finished shards are kept."
        )

    def _take(self, outcome: Outcome, digests: Digests, news: News) -> None:
        """Count what a task has made."""
        for name, digest in outcome.digests.items():
            try:
                digests.add(name, digest)
            except OSError as error:
                raise disk.write_error(digests.path, error) from error
        news.made.add(outcome.made)
        news.made.peak_memory_bytes = max(news.made.peak_memory_bytes, outcome.made.peak_memory_bytes)
        if outcome.rows:
            news.progress.count(outcome.rows, outcome.failed)
            news.forecast.look(outcome.rows, outcome.raw_seen, news.made.bytes_raw, news.made.bytes_stored)

    def _nodes(self) -> list[tuple[float, float]]:
        """Give (cores, GPUs) of the nodes that live and have cores."""
        found = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [(node["CPU"], node.get("GPU", 0.0)) for node in found if node.get("CPU")]

    def _require_nodes(self) -> None:
        if count_slots(self._nodes(), self._cpus, self._gpus):
            self._had_node = time.monotonic()
        elif time.monotonic() - self._had_node > NO_NODE_SECONDS:
            raise EngineError(
                f"engine: no node can run a task, got none with {self._cpus:g} cores and {self._gpus:g} GPUs for "
                f"{NO_NODE_SECONDS:.0f} s. Expected one. Look at the nodes, then run the command again: finished shards are kept."
            )


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()), LONGEST_CAUSE).rstrip(".")


def _visible_image(spec: RunSpec) -> str:
    """Give the first image that is there as a file on this machine, or what holds it; "" where all are at addresses."""
    manifest = spec.manifest
    if isinstance(manifest.source, TarSource):
        return manifest.source.paths[0]
    if isinstance(manifest.source, TfdsSource):
        return manifest.source.folder
    sized = (int(row) for row in manifest.file_bytes.nonzero()[0][:100])
    return next((path for row in sized if Path(path := manifest[row].path).is_file()), "")
