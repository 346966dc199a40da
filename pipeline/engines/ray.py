"""The engine of many processes: workers on a Ray cluster, given one shard after the other by this process, which has the folder.

This process plans, gives, counts, adds each shard's digest and writes index and reports. The rooms beside this one:
:mod:`cluster` (Ray), :mod:`places` (where workers go), :mod:`crew` (workers), :mod:`supply` (shards), :mod:`worker` (the other
end), :mod:`messages` (between the two).
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ..config import Options
from ..images.tar import TarSource
from ..images.tfds_source import TfdsSource
from ..journal import LOGGER as _log
from ..network.weights import Weights
from ..records import RunSpec, ShardSpec
from ..signals import leaving_at_once
from ..store import disk, format
from ..store.digests import Digests
from ..store.folder import RunFolder
from .cluster import connected, load_ray
from .crew import Crew
from .engine import Made, News
from .hand import Hand, failed_of, words_for_rates
from .messages import Setup, Turn
from .packing import PackedPaths, PackedTexts, packed
from .supply import Supply

# Between two looks at the rates of all.
NOTE_SECONDS = 1.0
# What a worker spends its time on while the driver waits for it.
_STAGES = ("read", "network", "store", "finish")


class RayEngine:
    """Has shards made by workers.

    Args:
        options: Of the run.
        spec: The run with all its parts.
        weights: Of the network.
        run_folder: Held by this process, on storage that all nodes share.
    """

    def __init__(self, options: Options, spec: RunSpec, weights: Weights, run_folder: RunFolder) -> None:
        self._options = options
        self._spec = spec
        parts = {missing[0].part: _packed(part) for part, missing in run_folder.parts()}
        self._setup = Setup(options, parts, weights, str(run_folder.path.absolute()), _visible_image(spec))
        self._stack = ExitStack()
        self._supply = Supply(spec, run_folder.missing)
        self._by_path = {format.shard_path(shard.file_name): shard for shard in run_folder.missing}
        # (when another may have them, what a worker had whose node is gone, why).
        self._held: list[tuple[float, list[ShardSpec], str]] = []
        self._gone = Made()
        self._gone_seconds = dict.fromkeys(_STAGES, 0.0)
        self._news: News | None = None
        # Of all workers so far, kept as they are told: to sum them up at each turn would take a thousand workers' time squared.
        self._bytes_raw = self._bytes_stored = 0

    def __enter__(self) -> RayEngine:
        with ExitStack() as stack:
            with leaving_at_once():
                load_ray()
            ray = stack.enter_context(connected(self._options.engine.address, _shared_bytes(self._setup)))
            self._crew = Crew(ray, self._options, self._setup, self._take_back)
            stack.callback(lambda: self._crew.dismiss(in_order=False))
            self._crew.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def make(self, run_folder: RunFolder, news: News) -> None:
        """Has made what is missing.

        Raises:
            PipelineError: What stopped it, here or in a worker.
        """
        self._news = news
        self._digests = Digests(run_folder.path)
        everybody: dict[str, Hand] = {}
        noted = 0.0
        try:
            with news.watch.stage("network"):
                while self._supply.left:
                    self._release(time.monotonic())
                    self._crew.look_for_room()
                    for hand in self._crew.hands:
                        if hand.answer is None:
                            self._give(hand)
                    for hand, turn in self._crew.answers(1.0):
                        everybody[hand.name] = hand
                        self._take(hand, turn)
                        self._give(hand)
                    if time.monotonic() - noted > NOTE_SECONDS:
                        noted = time.monotonic()
                        news.progress.notes["img/s"] = words_for_rates([hand for hand in self._crew.hands if hand.device])
        except BaseException:
            self._crew.dismiss(in_order=True)
            run_folder.drop_partial_files()
            raise
        finally:
            news.watch.divide("network", self._seconds())
            self._sum_up(news.made)
        self._say_workers(list(everybody.values()))

    def _give(self, hand: Hand) -> None:
        given = self._supply.give(len(hand.shards), len(self._crew.hands))
        hand.expect(given)
        # Many workers are asked less often: each answer takes some of this process's time.
        self._crew.ask(hand, "turn", given, min(1.0, max(0.25, len(self._crew.hands) / 1000)))

    def _take(self, hand: Hand, turn: Turn) -> None:
        """Takes note of what a worker says."""
        news = self._news
        assert news is not None
        for name, digest in turn.finished.items():
            try:
                self._digests.add(name, digest)
            except OSError as error:
                raise disk.write_error(self._digests.path, error) from error
        self._bytes_raw += turn.bytes_raw - hand.last.bytes_raw
        self._bytes_stored += turn.bytes_stored - hand.last.bytes_stored
        hand.take(turn)
        for name in turn.finished:
            del hand.shards[self._by_path[name]]
            hand.finished += 1
            self._supply.finish()
            self._crew.praise(hand)
        if turn.error is not None:
            raise turn.error
        rows = sum(batch.rows for batch in turn.batches)
        news.progress.count(rows, failed_of(turn))
        if rows:
            raw_seen = sum(batch.raw_seen for batch in turn.batches)
            news.forecast.look(rows, raw_seen, self._bytes_raw, self._bytes_stored)

    def _take_back(self, hand: Hand, cause: str, node_lives: bool) -> None:
        """Takes back what a worker had that has died."""
        shards = list(hand.shards)
        _log.warning(
            "engine: a worker on %s died: %s. %s",
            *(hand.where, cause),
            f"{shards[0].file_name}{f' and {len(shards) - 1} others' * (len(shards) > 1)} will be made by another."
            if shards
            else "",
        )
        self._add(self._gone, hand)
        for name in _STAGES:
            self._gone_seconds[name] += hand.last.seconds.get(name, 0.0)
        if self._news is not None:
            lost = hand.shards.values()
            self._news.progress.take_back(sum(done.rows for done in lost), sum(done.failed for done in lost))
        # It ends by itself if it does not hear of this process, which may have been held up; nobody is to blame then.
        is_blamed = time.monotonic() - hand.called < self._setup.lease_seconds
        if not node_lives and shards:
            self._held.append((hand.called + self._setup.lease_seconds, shards, cause))
        elif shards:
            self._supply.take_back(shards, f"{cause} (on {hand.where})", is_blamed=is_blamed)

    def _release(self, now: float) -> None:
        """Lets others have what workers had whose nodes are gone: a node may only be out of reach, and its workers at work."""
        for held in [held for held in self._held if held[0] <= now]:
            self._held.remove(held)
            self._supply.take_back(held[1], held[2], is_blamed=False)

    def _seconds(self) -> dict[str, float]:
        return {
            name: self._gone_seconds[name] + sum(hand.last.seconds.get(name, 0.0) for hand in self._crew.hands)
            for name in _STAGES
        }

    def _sum_up(self, made: Made) -> None:
        devices = {hand.device for hand in self._crew.hands if hand.device}
        for hand in self._crew.hands:
            self._add(self._gone, hand)
        for name in Made.__slots__:
            setattr(made, name, getattr(self._gone, name))
        made.device = " and ".join(sorted(devices)) or "none"

    @staticmethod
    def _add(made: Made, hand: Hand) -> None:
        for name in ("bytes_raw", "bytes_stored", "encode_seconds", "write_seconds"):
            setattr(made, name, getattr(made, name) + getattr(hand.last, name))
        made.peak_memory_bytes = max(made.peak_memory_bytes, hand.last.peak_memory_bytes)

    def _say_workers(self, hands: list[Hand]) -> None:
        ordered = sorted((hand for hand in hands if hand.rows), key=lambda hand: hand.rate_over_all)
        shown = ordered if len(ordered) <= 4 else [ordered[0], ordered[-1]]
        for hand in shown:
            which = "" if len(ordered) <= 4 else "slowest, " if hand is ordered[0] else "fastest, "
            _log.info(
                "engine: %sworker on %s: %d images in %d shards, %.2f images/s",
                *(which, hand.where, hand.rows, hand.finished, hand.rate_over_all),
            )


def _packed(part: RunSpec) -> RunSpec:
    return replace(part, manifest=packed(part.manifest))


def _visible_image(spec: RunSpec) -> str:
    """Gives the first image that is there as a file on this machine, or what holds it; "" where all are at addresses."""
    manifest = spec.manifest
    if isinstance(manifest.source, TarSource):
        return manifest.source.paths[0]
    if isinstance(manifest.source, TfdsSource):
        return manifest.source.folder
    sized = (int(row) for row in manifest.file_bytes.nonzero()[0][:100])
    return next((path for row in sized if Path(path := manifest[row].path).is_file()), "")


def _shared_bytes(setup: Setup) -> int:
    """Gives what the setup takes as it is shared, and as much again for the moment in which it is put together."""
    weights = sum(array.nbytes for arrays in (setup.weights.kernels, setup.weights.biases) for array in arrays.values())
    manifests = [part.manifest for part in setup.parts.values()]
    columns = [column for found in manifests for column in (found.keys, found.labels, found.paths, *found.metadata.values())]
    texts = sum(column.nbytes for column in columns if isinstance(column, (PackedTexts, PackedPaths)))
    numbers = sum(found.file_bytes.nbytes + (0 if found.places is None else found.places.nbytes) for found in manifests)
    return 2 * (weights + texts + numbers)
