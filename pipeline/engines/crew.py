"""The workers of a run on a Ray cluster: started where there is room, asked, missed when they die, replaced, and dismissed."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..config import Options
from ..errors import EngineError, OptionError
from ..journal import LOGGER as _log
from ..store import disk, format
from .cluster import asking, living_nodes, one_line
from .hand import Hand
from .messages import Ready, Setup
from .places import Place, gpus_per_worker, plan_places
from .supply import TRIES
from .worker import Worker

# How often it is looked for nodes that were added.
NODES_EVERY_SECONDS = 2.0
# Once one worker can work, others are waited for so long: they will join.
OTHERS_SECONDS = 10.0
# Without any worker that could work, and without room for one.
NOBODY_SECONDS = 60.0
# What the workers' own tidying up may take, before they are killed; less than signals.GRACE_SECONDS.
STOP_SECONDS = 2.0
PROBE_PREFIX = ".engine-"


class Crew:
    """Workers.

    Args:
        ray: Connected.
        options: Of the run.
        setup: What every worker is told.
        lost: Told of a worker that has died, why, and whether its node lives.

    Attributes:
        hands: The workers that live, or are being started.
    """

    def __init__(self, ray: Any, options: Options, setup: Setup, lost: Callable[[Hand, str, bool], None]) -> None:
        self.hands: list[Hand] = []
        self._ray = ray
        self._engine = options.engine
        self._device = options.runtime.device
        self._folder = Path(setup.folder)
        self._setup = ray.put(setup)
        self._lost = lost
        self._token = secrets.token_hex(4)
        self._probe = self._folder / f"{PROBE_PREFIX}{self._token}"
        self._hired = 0
        self._failures: Counter[str] = Counter()
        self._last_failure = ""
        self._looked = self._had_somebody = time.monotonic()
        self._has_said_waiting = False

    def start(self) -> None:
        """Starts workers, and returns when those that have room are ready, or some are and the others take long.

        Raises:
            OptionError: There is no room for any, or no such device.
            EngineError: One does not see what this process sees.
            StoreError: The disk refuses.
        """
        with contextlib.suppress(OSError):
            # Of a run that was killed. The lock is held, so of no other.
            for path in self._folder.glob(f"{PROBE_PREFIX}*"):
                path.unlink()
        self.look_for_room(is_first=True)
        ready_since: float | None = None
        while any(not hand.device for hand in self.hands):
            if ready_since is None and any(hand.device for hand in self.hands):
                ready_since = time.monotonic()
            if ready_since is not None and time.monotonic() - ready_since > OTHERS_SECONDS:
                break
            for _ in self.answers(0.2):
                raise AssertionError("a worker that has no shard has made something")
            self.look_for_room()
        for hand in self.hands:
            hand.is_first = False
        named = Counter(f"{hand.where} ({hand.device})" for hand in self.hands if hand.device)
        nodes = ", ".join(f"{count} on {name}" for name, count in sorted(named.items())[:4])
        more = f" and {len(named) - 4} other nodes" if len(named) > 4 else ""
        threads = sorted({hand.place.threads for hand in self.hands})
        count = "1 worker" if len(self.hands) == 1 else f"{len(self.hands)} workers"
        _log.info("engine: %s: %s%s; threads each: %s", count, nodes, more, " or ".join(map(str, threads)))

    def look_for_room(self, is_first: bool = False) -> None:
        """Starts workers where there is room for some: at the beginning, in the place of a dead one, on nodes that were added.

        Raises:
            OptionError: At the beginning, there is room for none.
            EngineError: There has been no worker for long.
        """
        now = time.monotonic()
        if not is_first and self.hands and now - self._looked < NODES_EVERY_SECONDS:
            self._say_waiting(now)
            return
        self._looked = now
        nodes = [node for node in living_nodes(self._ray) if self._failures[node.id] < TRIES]
        taken = Counter(hand.place.node.id if hand.place.node else "" for hand in self.hands)
        places: list[Place] = []
        if nodes or is_first:
            try:
                gpus = gpus_per_worker(nodes, self._engine, self._device)
                places = plan_places(nodes, self._engine, gpus, taken, is_local=self._engine.address is None)
            except OptionError:
                if is_first:
                    raise
        for place in places:
            self._hire(place, is_first)
        if self.hands:
            self._had_somebody = now
        elif (self._failures and not nodes) or now - self._had_somebody > NOBODY_SECONDS:
            raise EngineError(
                f"engine: no worker is left, got {self._last_failure or 'no node with room for one'}. Expected one that lives. "
                "Look at the nodes and their memory, then run the command again: finished shards are kept."
            )
        else:
            time.sleep(0.2)

    def _say_waiting(self, now: float) -> None:
        waiting = [hand for hand in self.hands if hand.asked == "check" and now - hand.called > OTHERS_SECONDS]
        if waiting and not self._has_said_waiting:
            self._has_said_waiting = True
            _log.info("engine: %d of %d workers wait for room on the cluster", len(waiting), len(self.hands))

    def _hire(self, place: Place, is_first: bool) -> None:
        self._hired += 1
        name = f"{self._token}-{self._hired}"
        settings: dict[str, Any] = {"num_cpus": place.cpus, "num_gpus": place.gpus, "max_restarts": 0, "max_concurrency": 2}
        if place.node is not None:
            strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            settings["scheduling_strategy"] = strategy(place.node.id, soft=False)
        with asking():
            # Not the options' auto: a worker that has no GPU must not take one, and one that has must not do without.
            actor = self._ray.remote(Worker).options(**settings).remote(self._setup, name, place.threads, place.device)
        hand = Hand(name, place, actor, is_first=is_first)
        self.hands.append(hand)
        try:
            if not self._probe.exists():
                self._probe.write_text(self._token)
        except OSError as error:
            raise disk.write_error(self._probe, error) from error
        self.ask(hand, "check", str(self._probe), self._token)

    def ask(self, hand: Hand, what: str, *given: Any) -> None:
        """Asks a worker something; :meth:`answers` gives what it says."""
        hand.asked, hand.called = what, time.monotonic()
        with asking():
            hand.answer = getattr(hand.actor, what).remote(*given)

    def answers(self, wait_seconds: float) -> Iterator[tuple[Hand, Any]]:
        """Gives what workers say at their turns; answers to ``check`` and ``begin`` are dealt with here.

        Args:
            wait_seconds: How long to wait for the first.

        Raises:
            PipelineError: One of the first workers cannot begin; the cluster is gone.
        """
        by_answer = {hand.answer: hand for hand in self.hands if hand.answer is not None}
        if not by_answer:
            return
        with asking():
            found, _ = self._ray.wait(list(by_answer), num_returns=1, timeout=wait_seconds)
            if found and len(by_answer) > 1:
                found, _ = self._ray.wait(list(by_answer), num_returns=len(by_answer), timeout=0)
        for answer in found:
            hand = by_answer[answer]
            try:
                with asking(but=self._ray.exceptions.RayError):
                    said = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                self._miss(hand, one_line(str(error)))
                continue
            if isinstance(said, Ready):
                self._take_ready(hand, said)
            else:
                yield hand, said
        if not any(hand.asked == "check" for hand in self.hands):
            self._remove_probe()

    def _take_ready(self, hand: Hand, said: Ready) -> None:
        if said.error is not None:
            if hand.is_first:
                raise said.error
            _log.warning("%s The run goes on without this node.", said.error)
            self.hands.remove(hand)
            self._ray.kill(hand.actor)
            self._failures[hand.place.node.id if hand.place.node else ""] = TRIES
            self._last_failure = str(said.error)
        elif hand.asked == "check":
            hand.host = said.host
            self.ask(hand, "begin")
        else:
            hand.device = said.device
            hand.answer = None

    def praise(self, hand: Hand) -> None:
        """Takes note that a worker has finished a shard: where it is, workers live."""
        if hand.place.node:
            self._failures.pop(hand.place.node.id, None)

    def _miss(self, hand: Hand, cause: str) -> None:
        """Deals with the death of a worker."""
        node = hand.place.node
        lives = node is None or any(node.id == other.id for other in living_nodes(self._ray))
        self.hands.remove(hand)
        with contextlib.suppress(Exception):
            # It may only be out of reach.
            self._ray.kill(hand.actor)
        if lives:
            self._failures[node.id if node else ""] += 1
        self._last_failure = f"a worker on {hand.where} that died: {cause}"
        for path in (self._folder / format.SHARD_FOLDER).glob(f"*.{hand.name}-*{format.PARTIAL_SUFFIX}"):
            with contextlib.suppress(OSError):
                path.unlink()
        self._lost(hand, cause, lives)

    def dismiss(self, *, in_order: bool) -> None:
        """Ends all workers.

        Args:
            in_order: Whether they have something that they must drop before.
        """
        self._remove_probe()
        if in_order:
            # Of any kind: there is another error to be told, and nothing else to be done about this one.
            with contextlib.suppress(Exception):
                answers = [hand.actor.stop.remote(STOP_SECONDS) for hand in self.hands if hand.device]
                if answers:
                    self._ray.wait(answers, num_returns=len(answers), timeout=STOP_SECONDS + 0.5)
        for hand in self.hands:
            with contextlib.suppress(Exception):
                self._ray.kill(hand.actor)
        self.hands.clear()

    def _remove_probe(self) -> None:
        # Where the disk refuses, the next run removes it.
        with contextlib.suppress(OSError):
            self._probe.unlink(missing_ok=True)
