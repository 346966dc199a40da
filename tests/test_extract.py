"""The loop that makes shards: their images are read as one sequence, and they are finished in the background."""

from __future__ import annotations

import errno
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DeviceMemoryError, NetworkError, StoreError
from pipeline.extract import Stages, make_shards
from pipeline.progress import Stopwatch
from pipeline.records import Batch, Device, FeatureBatch, ImageStatus, RunSpec
from pipeline.sharding import ShardSpec
from pipeline.store import disk
from pipeline.store.digests import Digests
from pipeline.store.reader import open_run

from .killed_runs import contents
from .stored_runs import make_spec, make_statuses

SPEC = make_spec(rows=22, shapes={"conv1_1": (5, 4, 3)}, images_per_shard=4)


def fake_stages(fails_at: int | None = None) -> Stages:
    """Stages whose features of row i are all i, three rows a batch."""
    statuses = make_statuses(SPEC)

    def load(manifest: Any, indices: Any) -> Generator[Batch, None, None]:
        for first in range(0, len(indices), 3):
            some = indices[first : first + 3].tolist()
            if fails_at in some:
                raise StoreError("the disk is gone")
            yield Batch(tuple(statuses[i] for i in some), np.empty((len(some), 0, 0, 3)), np.zeros((len(some), 2), np.int32))

    def compute(batch: Batch) -> Iterator[FeatureBatch]:
        rows = batch.indices
        values = np.broadcast_to(rows[:, None, None, None], (len(rows), 5, 4, 3)).astype(np.float32)
        yield FeatureBatch("conv1_1", rows, values)

    return Stages(Device("/CPU:0", "cpu", 3), load, compute, 2, {})


def make(folder: Path, shards: Sequence[ShardSpec], stages: Stages, spec: RunSpec = SPEC) -> list[int]:
    """Makes shards, and gives the rows that were told when they were done."""
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    told: list[int] = []

    def done(statuses: Sequence[ImageStatus]) -> None:
        told.extend(status.index for status in statuses)

    make_shards(folder, spec, shards, stages, Digests(folder), Stopwatch(), done)
    assert all((folder / "shards" / shard.file_name).exists() for shard in shards)
    return told


def test_shards_one_by_one_are_those_of_all_at_once(tmp_path: Path) -> None:
    shards = SPEC.shards()
    assert make(tmp_path / "all", shards, fake_stages()) == list(range(22))
    for shard in shards:
        assert make(tmp_path / "each", [shard], fake_stages()) == list(range(shard.first, shard.stop))
        one, other = (contents(tmp_path / name / "shards" / shard.file_name) for name in ("all", "each"))
        assert one == other, shard


def test_shards_that_do_not_follow_one_another_are_one_sequence(tmp_path: Path) -> None:
    assert make(tmp_path, [SPEC.shards()[0], SPEC.shards()[3]], fake_stages()) == [0, 1, 2, 3, 12, 13, 14, 15]


@pytest.mark.parametrize("fails_at", [0, 9])
def test_what_fails_leaves_whole_shards_alone(tmp_path: Path, fails_at: int) -> None:
    with pytest.raises(StoreError, match=r"^the disk is gone$"):
        make(tmp_path, SPEC.shards(), fake_stages(fails_at))
    # Batches of three rows: those before the one that fails.
    names = [shard.file_name for shard in SPEC.shards()[: fails_at // 3 * 3 // 4]]
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == names


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("value", NetworkError, "float32 cannot hold, got nan"),
        ("disk", StoreError, "cannot be written, got ENOSPC"),
        ("network", NetworkError, "the GPU is gone"),
        ("told", KeyboardInterrupt, "^told$"),
    ],
)
def test_what_fails_anywhere_is_raised_and_leaves_nothing(
    what: str, kind: type[BaseException], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = fake_stages()

    def refuse(path: Path, partial: Path | None = None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def failing_compute(batch: Batch) -> Iterator[FeatureBatch]:
        if what == "network":
            raise NetworkError("the GPU is gone")
        return (replace(found, values=found.values * (np.nan if what == "value" else 1)) for found in stages.compute(batch))

    def done(statuses: Any) -> None:
        if what == "told":
            raise KeyboardInterrupt("told")

    if what == "disk":
        monkeypatch.setattr(disk, "publish", refuse)
    (tmp_path / "shards").mkdir()
    failing = replace(stages, compute=failing_compute)
    with pytest.raises(kind, match=message):
        make_shards(tmp_path, SPEC, SPEC.shards()[:1], failing, Digests(tmp_path), Stopwatch(), done)
    assert not list((tmp_path / "shards").iterdir())


def test_an_image_whose_values_float16_cannot_hold_fails_in_every_layer(tmp_path: Path) -> None:
    spec = make_spec(6, {"conv1_1": (5, 4, 3), "relu4_1": (5, 4, 3)}, dtype="float16", images_per_shard=6)
    stages, shard = fake_stages(), spec.shards()[0]

    def both(batch: Batch) -> Iterator[FeatureBatch]:
        for found in stages.compute(batch):
            yield found
            scaled = found.values * 1.0
            scaled[found.indices == 4, 2, 1, 0] = -70_000
            yield FeatureBatch("relu4_1", found.indices, scaled)

    with pytest.raises(
        NetworkError, match=r"layer relu4_1 has a value that float16 cannot hold, got -70000\..*output\.overflow=row"
    ):
        make(tmp_path, [shard], replace(stages, compute=both), spec)
    make(tmp_path, [shard], replace(stages, compute=both, overflow_fails_row=True), spec)
    run = open_run(tmp_path / "shards" / shard.file_name)
    assert run.images["error"].tolist() == [""] * 4 + ["overflow: relu4_1 has a value of -70000, float16 holds up to 65504", ""]
    for layer in run.layers:
        assert [float(run[layer][row].max()) for row in (0, 1, 2, 3, 5)] == [0, 1, 2, 3, 5]
        assert np.isnan(run[layer][:][4]).all()


def test_a_device_has_as_many_batches_at_a_time_as_fit_and_gives_them_in_order(tmp_path: Path) -> None:
    stages, lock, all_at_once = fake_stages(), threading.Lock(), threading.Barrier(3, timeout=60)
    running = most = 0

    def slow(batch: Batch) -> Iterator[FeatureBatch]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        # The last batches have no others beside them.
        if batch.indices[0] < 18:
            all_at_once.wait()
        with lock:
            running -= 1
        return stages.compute(batch)

    at_once = replace(stages, compute=slow, device=replace(stages.device, in_flight=3))
    assert make(tmp_path, SPEC.shards(), at_once) == list(range(22))
    assert most == 3


def test_images_that_the_device_cannot_hold_fail_in_every_layer(tmp_path: Path) -> None:
    stages, shard = fake_stages(), SPEC.shards()[0]

    def refuse(batch: Batch) -> Iterator[FeatureBatch]:
        yield from stages.compute(batch)
        if 1 in batch.indices:
            raise DeviceMemoryError("relu1_2: the device is out of memory, got an input of 1 x 9 x 9 x 3. Expected memory.")

    with pytest.raises(NetworkError, match="out of memory"):
        make(tmp_path, [shard], replace(stages, compute=refuse))
    make(tmp_path, [shard], replace(stages, compute=refuse, memory_fails_row=True))
    run = open_run(tmp_path / "shards" / shard.file_name)
    # Those of a step, which have one size, and no others.
    for error in run.images["error"][:3]:
        assert error.startswith("too large for the memory of the GPU: relu1_2: the device is out of memory")
    assert np.isnan(run["conv1_1"][:3]).all()
    assert (run.images["error"][3], float(run["conv1_1"][3].max())) == ("", 3)
