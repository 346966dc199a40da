"""The one way of making shards: groups of them, read one after the other and finished in the background."""

from __future__ import annotations

import errno
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import NetworkError, StoreError
from pipeline.making import make_shards
from pipeline.records import Batch, FeatureBatch, ShardSpec
from pipeline.report import Stopwatch
from pipeline.store import disk
from pipeline.store.writer import Writer

from .killed_runs import contents
from .stored_runs import make_spec, make_statuses

SPEC = make_spec(rows=22, shapes={"conv1_1": (5, 4, 3)}, images_per_shard=4)


def fake_stages(asked: list[int] | None = None, fails_at: int | None = None) -> Any:
    """Stages whose features of row i are all i, three rows a batch."""
    statuses = make_statuses(SPEC)

    def load(manifest: Any, indices: Any, threads: int) -> Generator[Batch, None, None]:
        if asked is not None:
            asked.append(int(indices[0]))
        for first in range(0, len(indices), 3):
            some = indices[first : first + 3].tolist()
            if fails_at in some:
                raise StoreError("the disk is gone")
            yield Batch(tuple(statuses[i] for i in some), np.empty((len(some), 0, 0, 3)), np.zeros((len(some), 2), np.int32))

    def compute(batch: Batch) -> Iterator[FeatureBatch]:
        rows = batch.indices
        values = np.broadcast_to(rows[:, None, None, None], (len(rows), 5, 4, 3)).astype(np.float32)
        yield FeatureBatch("conv1_1", rows, values)

    return SimpleNamespace(device=SimpleNamespace(kind="cpu"), load=load, compute=compute, in_flight=1)


def make(folder: Path, groups: Any, stages: Any) -> list[int]:
    (folder / "shards").mkdir(parents=True)
    told: list[int] = []
    writer = Writer(folder, SPEC, (), 2)
    make_shards(writer, SPEC, groups, stages, 2, Stopwatch(), lambda batch: told.extend(status.index for status in batch))
    assert writer.shards_done == len(list((folder / "shards").iterdir()))
    return told


def test_shards_one_by_one_are_those_of_all_at_once(tmp_path: Path) -> None:
    shards = SPEC.shards()
    assert make(tmp_path / "all", [shards], fake_stages()) == list(range(22))
    assert make(tmp_path / "each", ([shard] for shard in shards), fake_stages()) == list(range(22))
    for shard in shards:
        one, other = (contents(tmp_path / name / "shards" / shard.file_name) for name in ("all", "each"))
        assert one == other, shard


def test_the_next_group_is_asked_for_before_the_last_batches_are_computed(tmp_path: Path) -> None:
    asked_for = threading.Event()
    stages, first, second = fake_stages(), SPEC.shards()[0], SPEC.shards()[3]
    compute = stages.compute

    def groups() -> Iterator[Sequence[ShardSpec]]:
        yield [first]
        asked_for.set()
        yield [second]

    def compute_that_waits(batch: Batch) -> Iterator[FeatureBatch]:
        assert asked_for.wait(10), "the next group was not asked for while this one is computed"
        return compute(batch)

    stages.compute = compute_that_waits
    assert make(tmp_path, groups(), stages) == [0, 1, 2, 3, 12, 13, 14, 15]


def test_nothing_asked_for_makes_nothing(tmp_path: Path) -> None:
    assert make(tmp_path, [], fake_stages()) == []


@pytest.mark.parametrize("fails_at", [0, 5, 9])
def test_what_fails_in_any_group_leaves_whole_shards_alone(tmp_path: Path, fails_at: int) -> None:
    asked: list[int] = []
    with pytest.raises(StoreError, match=r"^the disk is gone$"):
        make(tmp_path, ([shard] for shard in SPEC.shards()), fake_stages(asked, fails_at))
    assert asked == [0, 4, 8][: fails_at // 4 + 1]
    names = [shard.file_name for shard in SPEC.shards()[: fails_at // 4]]
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == names


class Given:
    """The first shard, and then none until there is an end."""

    def __init__(self) -> None:
        self.is_asked, self.is_over = threading.Event(), threading.Event()
        self.has_waited_in_vain = False

    def __iter__(self) -> Iterator[Sequence[ShardSpec]]:
        yield SPEC.shards()[:1]
        self.is_asked.set()
        self.has_waited_in_vain = not self.is_over.wait(5)


@pytest.mark.parametrize("what", ["value", "disk", "network", "told"])
def test_what_fails_while_the_next_group_is_waited_for_is_raised_at_once(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, stages = Given(), fake_stages()
    compute = stages.compute

    def refuse(path: Path, partial: Path | None = None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def failing_compute(batch: Batch) -> Iterator[FeatureBatch]:
        assert given.is_asked.wait(5)
        if what == "network":
            raise NetworkError("the GPU is gone")
        return (replace(found, values=found.values * (np.nan if what == "value" else 1)) for found in compute(batch))

    def done(statuses: Any) -> None:
        if what == "told":
            raise KeyboardInterrupt("told")

    if what == "disk":
        monkeypatch.setattr(disk, "publish", refuse)
    stages.compute = failing_compute
    (tmp_path / "shards").mkdir()
    writer = Writer(tmp_path, SPEC, (), 2)
    kind, message = {
        "value": (NetworkError, "not finite, got nan"),
        "disk": (StoreError, "the disk is full, got ENOSPC"),
        "network": (NetworkError, "the GPU is gone"),
        "told": (KeyboardInterrupt, "^told$"),
    }[what]
    with pytest.raises(kind, match=message):
        make_shards(writer, SPEC, given, stages, 2, Stopwatch(), done, given.is_over.set)
    assert given.is_over.is_set()
    assert not given.has_waited_in_vain
    assert not list((tmp_path / "shards").iterdir())


def test_groups_that_come_to_their_end_are_not_told_to_end(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    told: list[int] = []
    writer = Writer(tmp_path, SPEC, (), 2)
    groups = ([shard] for shard in SPEC.shards())
    make_shards(writer, SPEC, groups, fake_stages(), 2, Stopwatch(), lambda statuses: None, lambda: told.append(1))
    assert told == []
