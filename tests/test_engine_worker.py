"""One worker, without a cluster around it."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engines import worker as room
from pipeline.engines.messages import Batched, Setup
from pipeline.engines.worker import Worker
from pipeline.errors import NetworkError, OptionError, StoreError
from pipeline.plan import versions
from pipeline.records import Part
from pipeline.store import disk
from pipeline.store.hashing import file_digest

from .test_command import environment
from .test_config import values
from .test_making import SPEC, fake_stages
from .test_tars import png, write_tar

WAIT = 5.0


def make_worker(folder: Path, **changes: Any) -> Worker:
    from pipeline.config import check_options

    (folder / "shards").mkdir(exist_ok=True)
    attributes = {"version_numpy": versions()["numpy"]}
    settings = {"options": check_options(values()), "parts": {0: replace(SPEC, attributes=attributes)}, "weights": None}
    # Here the process that a worker ends when it is forgotten is that of all tests.
    settings["lease_seconds"] = 3600.0
    return Worker(Setup(**{**settings, "folder": str(folder), "image": "", **changes}), "abc-1", 2, "cpu")  # type: ignore[arg-type]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = fake_stages()
    monkeypatch.setattr(room, "make_stages", lambda options, spec, weights: found)
    monkeypatch.setattr(room, "_end_with_parent", lambda: None)
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "1")
    return found


def work(worker: Worker, given: Any) -> tuple[list[Batched], dict[str, str], BaseException | None]:
    """Has shards made, and gives all that was said until they were, or until an error."""
    turn = worker.turn(given, 0.0)
    batches, finished = [*turn.batches], dict(turn.finished)
    end = time.monotonic() + WAIT
    while len(finished) < len(given) and turn.error is None and time.monotonic() < end:
        turn = worker.turn([], 0.05)
        batches += turn.batches
        finished |= turn.finished
    return batches, finished, turn.error


def test_a_worker_makes_what_it_is_given_and_says_what_came_of_it(tmp_path: Path, stages: Any) -> None:
    worker = make_worker(tmp_path)
    assert worker.begin().device == "cpu"
    shards = SPEC.shards()
    batches, finished, error = work(worker, [shards[4], shards[0]])
    assert error is None
    assert finished == {
        f"shards/{shard.file_name}": file_digest(tmp_path / "shards" / shard.file_name) for shard in (shards[4], shards[0])
    }
    batches += worker.turn([], 0.0).batches
    assert [(batch.shard.number, batch.rows, batch.raw_seen) for batch in batches] == [
        (4, 3, 720),
        (4, 1, 240),
        (0, 3, 720),
        (0, 1, 240),
    ]
    # Long-lived: it waits for more.
    assert len(work(worker, [shards[1]])[1]) == 1
    # Whoever holds the lock writes the digests.
    assert not list(tmp_path.glob("SHA256SUMS*"))
    worker.stop(WAIT)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_worker_goes_from_one_part_to_the_next(tmp_path: Path, stages: Any) -> None:
    last = replace(SPEC, before=(Part("0" * 64, 10),))
    first = replace(SPEC, manifest=replace(SPEC.manifest, keys=SPEC.manifest.keys[:10]))
    worker = make_worker(tmp_path, parts={0: first, 1: last})
    worker.begin()
    shards = [last.shards()[place] for place in (2, 3, 5)]
    assert [shard.part for shard in shards] == [0, 1, 1]
    batches, finished, error = work(worker, shards)
    assert error is None
    # Finished side by side, in any order.
    assert sorted(finished) == sorted(f"shards/{shard.file_name}" for shard in shards)
    batches += worker.turn([], 0.0).batches
    rows = {shard: sum(batch.rows for batch in batches if batch.shard == shard) for shard in shards}
    assert rows == {shard: shard.rows for shard in shards}
    worker.stop(WAIT)


def test_what_stops_a_worker_is_said_as_the_local_engine_says_it(tmp_path: Path, stages: Any) -> None:
    def failing(error: BaseException) -> Any:
        def load(*arguments: Any) -> Any:
            raise error
            yield

        return load

    for given, kind, message in (
        (StoreError("the disk is full"), StoreError, r"^the disk is full$"),
        (ZeroDivisionError("oh"), RuntimeError, r"(?s)^Traceback .*in load.*ZeroDivisionError: oh$"),
    ):
        stages.load = failing(given)
        worker = make_worker(tmp_path)
        worker.begin()
        error = work(worker, SPEC.shards()[:1])[2]
        with pytest.raises(kind, match=message):
            raise error or AssertionError("nothing was said")
        assert not list(tmp_path.rglob("*.h5*"))


def with_nan(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = stages.compute
    stages.compute = lambda batch: (replace(found, values=found.values * np.nan) for found in compute(batch))


def without_disk(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, partial: Path | None = None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "publish", refuse)


def without_network(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(batch: Any) -> Any:
        # When the next shard has been asked for and is waited for.
        time.sleep(0.3)
        raise NetworkError("the GPU is gone")

    stages.compute = fail


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (with_nan, NetworkError, r"image é\d\.jpg: layer conv1_1 has a value that is not finite, got nan\."),
        (without_disk, StoreError, r"the disk is full, got ENOSPC\."),
        (without_network, NetworkError, r"^the GPU is gone$"),
    ],
)
def test_what_stops_a_worker_in_its_last_shard_is_said_though_no_other_is_given(
    spoil: Any, kind: type[Exception], message: str, tmp_path: Path, stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(stages, monkeypatch)
    worker = make_worker(tmp_path)
    worker.begin()
    # Gives up after some seconds.
    error = work(worker, SPEC.shards()[:1])[2]
    with pytest.raises(kind, match=message):
        raise error or AssertionError("nothing was said")
    worker.stop(WAIT)
    assert worker._thread is not None
    assert not worker._thread.is_alive()
    assert not list(tmp_path.rglob("*.h5*"))


def test_a_worker_that_cannot_begin_says_why(tmp_path: Path, stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise OptionError("runtime.device: TensorFlow sees no GPU here")

    monkeypatch.setattr(room, "make_stages", refuse)
    error = make_worker(tmp_path).begin().error
    assert (type(error), str(error)) == (OptionError, "runtime.device: TensorFlow sees no GPU here")


def test_a_worker_that_is_stopped_drops_what_it_is_at(tmp_path: Path, stages: Any) -> None:
    begun = []
    compute = stages.compute

    def slow(batch: Any) -> Any:
        begun.append(1)
        time.sleep(0.05)
        return compute(batch)

    stages.compute = slow
    worker = make_worker(tmp_path)
    worker.begin()
    worker.turn(SPEC.shards(), 0.0)
    while not begun:
        time.sleep(0.01)
    worker.stop(WAIT)
    assert worker.turn([], 0.0).error is None
    assert not list(tmp_path.rglob("*.partial"))
    assert len(list(tmp_path.rglob("*.h5"))) < len(SPEC.shards())


def test_a_worker_looks_for_what_its_driver_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SEEN_SECONDS", 0.0)
    probe = tmp_path / ".engine-abc"
    probe.write_text("abc")
    assert make_worker(tmp_path).check(str(probe), "abc").error is None
    for token, name in (("xyz", ".engine-abc"), ("abc", ".engine-xyz")):
        found = str(make_worker(tmp_path).check(str(tmp_path / name), token).error)
        assert found.startswith("engine: node ")
        assert f"does not see the run folder, got nothing of this run at {str(tmp_path)!r}. Expected storage that all" in found
    found = str(make_worker(tmp_path, image="/nowhere/a.jpg").check(str(probe), "abc").error)
    assert "does not see the images, got nothing of this run at '/nowhere/a.jpg'. Expected" in found
    assert found.endswith("Choose another place with data.dir, data.list or data.tar, or nodes that have it.")


def seen_of(manifest: Any) -> str:
    from pipeline.engines.ray import _visible_image

    return _visible_image(replace(SPEC, manifest=manifest))


def test_workers_look_for_an_image_or_for_what_holds_it(tmp_path: Path) -> None:
    from pipeline.data_source import tar_folder
    from pipeline.images.manifest import list_folder
    from pipeline.images.remote import listed_images
    from pipeline.images.tar import list_tars

    (tmp_path / "b").mkdir()
    for name, data in (("a.png", b""), ("b/c.png", png(1)), ("b/d.png", png(2))):
        (tmp_path / name).write_bytes(data)
    assert seen_of(list_folder(tmp_path)) == str(tmp_path / "b/c.png")
    for name in ("y.tar", "x.tar"):
        write_tar(tmp_path / name, {f"{name}.png": png(1)})
    tars = [str(tmp_path / "*.tar")]
    assert seen_of(list_tars(tars, tar_folder(tars), lambda line: None)) == str(tmp_path / "x.tar")
    places = ["memory://nowhere/a.png", str(tmp_path / "b/d.png")]
    assert seen_of(listed_images("memory://nowhere", ["a.png", "d.png"], ["", ""], places, {})) == places[1]
    assert seen_of(listed_images("memory://nowhere", ["a.png"], [""], places[:1], {})) == ""


def test_workers_look_for_the_folder_of_a_set(tiny_set: Path) -> None:
    from pipeline.images.tfds_set import list_set

    assert seen_of(list_set("tiny", None, tiny_set)) == str(tiny_set / "tiny/1.0.0")


def test_a_worker_with_other_libraries_is_not_used(tmp_path: Path) -> None:
    probe = tmp_path / ".engine-abc"
    probe.write_text("abc")
    attributes: Any = {"version_numpy": "1.0", "version_pillow": versions()["pillow"]}
    worker = make_worker(tmp_path, parts={0: replace(SPEC, attributes=attributes)})
    found = str(worker.check(str(probe), "abc").error)
    assert found.endswith(
        f"has other libraries, got numpy {versions()['numpy']}. Expected numpy 1.0, as on this machine. Install the same there."
    )


ALONE = """
import sys, time
from pathlib import Path
from tests import test_engine_worker as tests
from tests.test_making import SPEC, fake_stages
stages = fake_stages()
compute = stages.compute
stages.compute = lambda batch: (time.sleep(0.1), compute(batch))[1]
tests.room.make_stages = lambda *arguments: stages
tests.room._end_with_parent = lambda: None
worker = tests.make_worker(Path(sys.argv[1]), lease_seconds=0.3)
worker.begin()
worker.turn(SPEC.shards(), 0.0)
time.sleep(10)
print("still here")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_a_worker_that_hears_nothing_ends_and_leaves_nothing_unfinished(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path)], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert not list(tmp_path.rglob("*.partial"))
    assert len(list(tmp_path.rglob("*.h5"))) < len(SPEC.shards())


def test_a_shard_gets_its_name_only_while_somebody_asks_for_it(tmp_path: Path, stages: Any) -> None:
    worker = make_worker(tmp_path, lease_seconds=0.0)
    with pytest.raises(StoreError, match=r"this worker's run has ended"):
        worker._require_driver()
