"""A Ray cluster: one that is there, or one of this machine for one run. What Ray says is turned into the house's words here."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedTooLong
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from ..engine_config import EngineOptions
from ..errors import EngineError, OptionError, printable
from ..machine import usable_cores
from ..schema import AUTO
from ..signals import reclaim
from .places import Node, gpus_per_worker, plan_places

# For a machine to answer at a port at all, and for what answers to prove to be a cluster.
PORT_SECONDS, CLUSTER_SECONDS = 5.0, 60.0
# Of what a cluster of this run alone shares among processes, besides what the run itself puts there. Source: Ray refuses less
# than 75 MiB.
SHARED_BYTES = 128 << 20
# Set before Ray is loaded; what the user has set is left.
_SETTINGS = {
    # It would tell its makers of each cluster.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers without a GPU are told so by us; Ray would announce at length that it will change what it does about that.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_LONGEST_CAUSE = 240


def require_ray(engine: EngineOptions, device: str) -> None:
    """Finds out, without loading anything, whether Ray is installed, and whether a worker fits on this machine, if it must.

    Args:
        engine: The options.
        device: ``runtime.device``.

    Raises:
        OptionError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise OptionError(
            "engine: Ray is not installed here, got ray. Expected the `ray` extra, or engine=local. Install it with "
            "`pip install 'deep-feature-pipeline[ray]'`."
        )
    if engine.address is None:
        # Of GPUs only Ray will know.
        machine = [Node("", "this machine", float(usable_cores()), math.inf)]
        plan_places(machine, engine, gpus_per_worker([], engine, device), {}, is_local=True)


def load_ray() -> Any:
    """Loads Ray, quietly."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

    return ray


@contextmanager
def connected(address: str | None, shared_bytes: int) -> Iterator[Any]:
    """Gives Ray, connected to a cluster; afterwards it is not any more, and a cluster of this run alone is gone.

    Args:
        address: ``auto``, ``host:port`` or ``ray://host:port``; None: a cluster is started on this machine.
        shared_bytes: That the run will share among processes.

    Raises:
        EngineError: No cluster answers there, or none can be started.
    """
    ray = load_ray()
    if ray.is_initialized():
        raise EngineError(
            "engine: this process is connected to a Ray cluster already, got a connection that is not the run's. Expected none, "
            "or the run in a process of its own. Call ray.shutdown() first."
        )
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        settings |= {
            "address": "local",
            "num_cpus": usable_cores(),
            "include_dashboard": False,
            "object_store_memory": SHARED_BYTES + shared_bytes,
        }
    else:
        settings["address"] = address
        _require_port(address)
    over = Event()
    try:
        try:
            _within(CLUSTER_SECONDS, lambda: _start(ray, settings), over)
        except WaitedTooLong as error:
            raise _no_cluster(address, f"no answer in {CLUSTER_SECONDS:.0f} s") from error
        # Its C++ part prints a stack at SIGTERM before it lets Python know.
        reclaim()
        yield ray
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()
        over.set()


def _start(ray: Any, settings: dict[str, Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**settings)
    except Exception as error:
        address = settings["address"]
        raise _no_cluster(None if address == "local" else address, one_line(str(error)).split(". ")[0]) from error


def _require_port(address: str) -> None:
    if address == AUTO:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PORT_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, (error.strerror or str(error) or type(error).__name__).lower()) from error


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


def _within(seconds: float, work: Callable[[], None], over: Event) -> None:
    """Does something in a thread of its own, in which Ray leaves the process's signals alone.

    Args:
        seconds: How long to wait.
        work: Starts processes, maybe.
        over: Set when they are not needed any more. Until then the thread stays: the system ends them with it (prctl(2),
            PR_SET_PDEATHSIG), as it shall when this process is killed.

    Raises:
        WaitedTooLong: It takes longer; it goes on all the same.
    """
    done: Future[None] = Future()

    def do() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)
        over.wait()

    Thread(target=do, name="ray", daemon=True).start()
    done.result(seconds)


@contextmanager
def asking(but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Gives one line for what Ray raises when the cluster itself is gone; within it, nothing but Ray is called.

    Args:
        but: What is raised as it is.

    Raises:
        EngineError: Whatever Ray raises, which differs by version and by the way to the cluster.
    """
    try:
        yield
    except but:
        raise
    except Exception as error:
        raise EngineError(
            f"engine: the Ray cluster does not answer any more, got {type(error).__name__}: {one_line(str(error))}. Expected its "
            "head to live as long as the run. Look at the head, then run the command again: finished shards are kept."
        ) from error


def living_nodes(ray: Any) -> list[Node]:
    """Gives the nodes that live and have cores, in a fixed order.

    Raises:
        EngineError: The cluster is gone.
    """
    with asking():
        nodes = ray.nodes()
    return sorted(
        (
            Node(str(node["NodeID"]), str(node["NodeManagerHostname"]), found.get("CPU", 0.0), found.get("GPU", 0.0))
            for node in nodes
            if node["Alive"] and (found := node["Resources"]).get("CPU")
        ),
        key=lambda node: node.id,
    )


def one_line(text: str) -> str:
    """Gives what matters of what Ray says."""
    detail = re.search(r"(?:Worker exit detail: |error_message': |The actor is dead because )(.+?)(?:\.\s|\n|$)", text)
    exit_type = re.search(r"Worker exit detail: (.+?)(?:\.\s|\n|$)", text)
    found = exit_type or detail
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = found[1] if found else lines[-1] if "Traceback" in text and lines else " ".join(lines)
    return printable(" ".join(words.split()), _LONGEST_CAUSE).rstrip(".")
