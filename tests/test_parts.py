"""Several processes that make one run, each its share of the shards: ``part=k/n``."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from pipeline.errors import LockedError, StoreError
from pipeline.sharding import Share, plan_shards
from pipeline.store import lock, tables
from pipeline.store.digests import Digests
from pipeline.store.run_folder import open_folder
from pipeline.store.verification import verify_folder

from .killed_runs import ROOT, Moment, assert_same_run, call_python
from .processes import start
from .stored_runs import make_spec, write_run, write_share
from .test_store_folder import files_in

SHARE = (
    "import sys; from tests.stored_runs import *\n"
    "print(write_share(Path(sys.argv[1]), make_spec(rows=30), Share.of_text(sys.argv[2]), failed=[3, 8]))\n"
)


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undivided") / "run"
    write_run(folder, make_spec(rows=30), failed=[3, 8])
    return folder


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_shares_tile_the_shards_of_every_part_of_a_run(count: int) -> None:
    shards = plan_shards((30, 45, 46), 4)
    shares = [[shard for shard in shards if Share(number, count).has(shard.number)] for number in range(1, count + 1)]
    assert sorted((shard for share in shares for shard in share), key=lambda shard: (shard.part, shard.number)) == list(shards)
    assert {shard.part for shard in shares[0]} == {0, 1, 2}


def test_processes_that_start_together_make_the_run_that_one_makes(tmp_path: Path, undivided: Path) -> None:
    folder = tmp_path / "run"
    started = [start([sys.executable, "-c", SHARE, str(folder), f"{number}/2"], ROOT) for number in (1, 2)]
    said = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    # Those that found the index written ended the run as well.
    assert "True" in {words.strip() for words, _ in said}
    assert_same_run(folder, undivided)
    assert verify_folder(folder, 1).count == 0


def test_two_that_finish_together_write_one_index(tmp_path: Path, undivided: Path) -> None:
    spec = make_spec(rows=30)
    for number in (1, 2):
        write_share(tmp_path, spec, Share(number, 3), failed=[3, 8])
    with open_folder(tmp_path, spec, "resume", Share(1, 3)) as waiting:
        assert write_share(tmp_path, spec, Share(3, 3), failed=[3, 8])
        written = (tmp_path / "features.h5").stat().st_ino
        with waiting.alone():
            assert waiting.lacking() == []
    assert write_share(tmp_path, spec, Share(1, 3), failed=[3, 8])
    assert (tmp_path / "features.h5").stat().st_ino == written
    assert_same_run(tmp_path, undivided)


def test_a_part_that_died_is_made_by_starting_it_again(tmp_path: Path, undivided: Path) -> None:
    folder = tmp_path / "run"
    killed = call_python(tmp_path, ["-c", SHARE, str(folder), "2/2"], ROOT, Moment("os.rename", "*00007-of*"))
    assert killed.returncode == -signal.SIGKILL
    left = files_in(folder)
    # Two are finished at a time.
    assert left >= {".lock-2-of-2", "SHA256SUMS-2-of-2", "shards/shard-00001-of-00008.h5", "shards/shard-00003-of-00008.h5"}
    (partial,) = (name for name in left if name.endswith(".partial") and "00007" in name)
    assert re.fullmatch(r"shards/shard-00007-of-00008\.h5\.2-of-2-[0-9a-f]{8}\.partial", partial)
    kept = (folder / "shards/shard-00001-of-00008.h5").stat().st_ino
    spec = make_spec(rows=30)
    # What is not of its share is nothing to a part, dead or alive.
    assert not write_share(folder, spec, Share(1, 2), failed=[3, 8])
    assert partial in files_in(folder)
    assert write_share(folder, spec, Share(2, 2), failed=[3, 8])
    assert (folder / "shards/shard-00001-of-00008.h5").stat().st_ino == kept
    assert_same_run(folder, undivided)


def test_a_whole_run_goes_on_where_parts_have_stopped(tmp_path: Path, undivided: Path) -> None:
    spec = make_spec(rows=30)
    write_share(tmp_path, spec, Share(2, 3), failed=[3, 8])
    (tmp_path / "shards/shard-00002-of-00008.h5.3-of-3-00112233.partial").write_text("of a kill")
    (tmp_path / "report-3-of-3.json.partial").write_text("{")
    write_run(tmp_path, spec, failed=[3, 8])
    assert_same_run(tmp_path, undivided)


@pytest.mark.usefixtures("here")
def test_a_shard_that_another_part_left_without_a_digest_is_checked_by_the_last(tmp_path: Path, undivided: Path) -> None:
    spec = make_spec(rows=30)
    write_share(tmp_path, spec, Share(2, 2), failed=[3, 8])
    (tmp_path / "SHA256SUMS").write_text("")
    (tmp_path / "SHA256SUMS-2-of-2").write_text("torn")
    assert write_share(tmp_path, spec, Share(1, 2), failed=[3, 8])
    assert all(Digests(tmp_path).agrees(path.relative_to(tmp_path).as_posix()) for path in (tmp_path / "shards").iterdir())
    damaged = tmp_path / "shards/shard-00001-of-00008.h5"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    damaged.write_bytes(content)
    Digests(tmp_path).drop(["shards/shard-00001-of-00008.h5"])
    (tmp_path / "features.h5").unlink()
    with pytest.raises(StoreError, match=r"shard-00001-of-00008\.h5: .* is damaged"):
        write_share(tmp_path, spec, Share(1, 2), failed=[3, 8])
    assert write_share(tmp_path, spec, Share(2, 2), failed=[3, 8])
    assert_same_run(tmp_path, undivided)


PART = "a part of the run is being made, got part 3/8 held by a live process"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (Share(3, 8), None, f"{PART}. Expected no other process."),
        (Share(3, 8), Share(3, 9), f"{PART}. Expected another part of 8."),
        (None, Share(3, 8), "another run writes this folder, got a lock held by a live process. Expected one run at a time."),
    ],
)
def test_who_may_not_be_beside_whom_is_refused_in_one_line(
    tmp_path: Path, first: Share | None, second: Share | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "NOBODY_SECONDS", 0.2)
    # As of another process: locks are told apart by who opened their file.
    with open_folder(tmp_path, make_spec(rows=30), "resume", first):
        before = files_in(tmp_path)
        for preview in (False, True):
            with pytest.raises(LockedError) as raised:
                open_folder(tmp_path, make_spec(rows=30), "resume", second, preview=preview)
            assert str(raised.value).startswith(f"{tmp_path}: {said} ")
            assert "\n" not in str(raised.value)
        assert files_in(tmp_path) == before
    open_folder(tmp_path, make_spec(rows=30), "resume", second).close()
    assert [name for name in files_in(tmp_path) if ".lock" in name] == [".lock"]


def test_a_part_that_would_make_another_run_is_refused_while_others_live(tmp_path: Path) -> None:
    said = "other parts make a run of other images or options, got part 1/2 of it. Expected the same of all parts"
    with open_folder(tmp_path, make_spec(rows=30), "resume", Share(1, 2)), pytest.raises(LockedError, match=said):
        open_folder(tmp_path, make_spec(rows=31), "resume", Share(2, 2))


def test_parts_extend_a_run_together(tmp_path: Path) -> None:
    keys = [f"a/{number:02d}.jpg" for number in range(25)]
    write_run(tmp_path / "one", make_spec(keys=keys[:10], rows=10))
    write_run(tmp_path / "one", make_spec(keys=keys, rows=25), existing="extend")
    parts = tmp_path / "parts"
    write_run(parts, make_spec(keys=keys[:10], rows=10))
    spec = make_spec(keys=keys, rows=25)
    with open_folder(parts, make_spec(keys=keys[:10], rows=10), "resume", Share(3, 3)) as behind:
        behind.prepare()
        assert not write_share(parts, spec, Share(1, 3), existing="extend")
        # One that knows nothing of the extension must not end the run as it was.
        assert behind.lacking() == []
        assert behind.is_extended()
    assert not write_share(parts, spec, Share(2, 3), existing="extend")
    assert write_share(parts, spec, Share(3, 3), existing="extend")
    assert_same_run(parts, tmp_path / "one")


def test_a_signal_drops_what_a_whole_run_is_at_and_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, make_spec(rows=30))
    kept = files_in(tmp_path)

    def opened_file(*arguments: object, **named: object) -> None:
        raise AssertionError("a file is opened")

    with open_folder(tmp_path, make_spec(rows=30), "resume") as opened:
        for name in (
            *("shards/shard-00002-of-00008.h5.partial", "shards/shard-00003-of-00008.h5.1-of-2-00112233.partial"),
            *("features.h5.partial", "report.json.partial", "manifest-part001.jsonl.gz.partial", "report-2-of-3.json.partial"),
        ):
            (tmp_path / name).write_text("x")
        (tmp_path / "precious").write_text("x")
        (tmp_path / "config.yaml.partial").symlink_to(tmp_path / "precious")
        monkeypatch.setattr(tables, "open_file", opened_file)
        monkeypatch.setattr(tables, "is_foreign", opened_file)
        opened.drop_partial_files()
    assert files_in(tmp_path) == {*kept, ".lock", "precious", "config.yaml.partial"}


def test_a_signal_drops_what_this_part_is_at_and_nothing_else(tmp_path: Path) -> None:
    with open_folder(tmp_path, make_spec(rows=30), "resume", Share(2, 3)) as opened:
        for number in range(3):
            (tmp_path / f"shards/shard-0000{number}-of-00008.h5.{number + 1}-of-3-00112233.partial").write_text("x")
        opened.drop_partial_files()
    assert sorted(path.name[:11] for path in (tmp_path / "shards").iterdir()) == ["shard-00000", "shard-00002"]


def test_locks_of_killed_processes_hold_nobody_up(tmp_path: Path) -> None:
    for share in (Share(2, 2), Share(1, 3)):
        for name in (".lock", ".lock-2-of-2", ".lock-5-of-9"):
            (tmp_path / name).write_text("")
        open_folder(tmp_path, make_spec(rows=30), "resume", share).close()
    assert [name for name in files_in(tmp_path) if ".lock" in name] == [".lock"]
