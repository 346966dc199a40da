"""``dry_run=true``: what a run would make and take, and refuse, with nothing written; and how far a run says that it is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import pytest

from pipeline import extract_features
from pipeline.config import check_options
from pipeline.errors import DatasetError, OptionError, StoreError
from pipeline.job import run as run_all
from pipeline.progress import LOGGER, Progress, log_to_terminal
from pipeline.records import ImageStatus
from pipeline.store import disk
from pipeline.store.run_folder import open_folder

from .stored_runs import make_spec
from .test_config import values

QUICK: dict[str, Any] = {"network__weights": "random", "data__size": 32, "layers": ["relu1_1"], "name": "x"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def images(photographs: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "imgs"
    folder.mkdir()
    for number, path in enumerate(sorted(photographs.glob("*/*.jpg"))):
        shutil.copy(path, folder / f"{number}.jpg")
    return folder


def dry_run(folder: Path, **changes: Any) -> None:
    """Does what the command does with ``dry_run=true``; everything must be as it was after it."""
    before = snapshot()
    try:
        assert run_all(check_options(values(**{**QUICK, "data__dir": str(folder), "dry_run": True, **changes}))) is None
    finally:
        assert snapshot() == before


def snapshot() -> dict[Path, tuple[int, bytes]]:
    """Gives everything that lies here, and when it was written; a lock may be touched."""
    return {
        path: (path.name != ".lock" and path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in Path().rglob("*")
    }


def extract(folder: Path, **options: Any) -> Any:
    return extract_features(folder, "relu1_1", **{"weights": "random", "size": 32, "name": "x", "quiet": True, **options})


def test_the_plan_is_said_and_nothing_is_written(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "bad.jpg").write_text("no image")
    # A line that nobody asked for must not make the logger drop those of the run.
    LOGGER.info("nothing")
    dry_run(images)
    lines = capsys.readouterr().err.splitlines()
    assert lines[2:4] == ["layer: relu1_1, 32 x 32 x 64 float32, 262.1 kB an image", lines[3]]
    assert re.fullmatch(r"output: 7 images, 1.8 MB before compression, in 1 shard under outputs/x; .* free", lines[3])
    assert lines[4].startswith("device: cpu, float32")
    assert lines[5] == "sample: all 7 images; 1 failed: 1 not an image"
    # Of six images: a failed one takes nothing.
    assert re.fullmatch(r"estimate: about .* kB after compression, \d\d% of 1.6 MB; .* free", lines[6])
    assert re.fullmatch(
        r"estimate: about 0:00:\d\d for 7 images, at .* images/s on the cpu; the disk's own time is not in it", lines[7]
    )
    assert lines[8:] == ["dry run: nothing was written. Leave out dry_run=true to extract."]
    assert not list(Path().iterdir())


def test_the_estimate_is_what_the_run_takes_then(
    images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    dry_run(images)
    printed = capsys.readouterr().err
    (said,) = re.findall(r"estimate: about (.* kB) after compression", printed)
    assert f"outputs/x: the features will hardly fit, got 1.0 kB free for about {said}. Expected more." in printed
    extract(images)
    with h5py.File("outputs/x/shards/shard-00000-of-00001.h5") as shard:
        assert said == f"{shard['features/relu1_1'].id.get_storage_size() / 1000:.1f} kB"
    dry_run(images)
    assert "estimate: all rows are finished, nothing is left to make" in capsys.readouterr().err


def test_of_a_run_that_was_stopped_or_is_extended_only_what_is_left_counts(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(images, images_per_shard=2)
    Path("outputs/x/features.h5").unlink()
    Path("outputs/x/shards/shard-00001-of-00003.h5").rename("outputs/x/shards/shard-00001-of-00003.h5.partial")
    dry_run(images, output__images_per_shard=2)
    said = capsys.readouterr().err
    assert "shard-00001-of-00003.h5.partial: to be removed, since it is unfinished" in said
    assert "resume: 2 of 3 shards are finished, 2 images are left" in said
    assert "sample: all 2 images; 0 failed" in said
    shutil.copy(images / "0.jpg", images / "new.jpg")
    with pytest.raises(StoreError, match=r"the folder holds another run, got 1 added"):
        dry_run(images)
    dry_run(images, output__existing="extend")
    said = capsys.readouterr().err
    assert "extend: 1 new image after the 6 of the run" in said
    assert "sample: all 3 images; 0 failed" in said


def test_native_size_gets_its_size_from_the_sample(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(images, data__size=None)
    said = capsys.readouterr().err
    assert "output: 6 images, a size that depends on the images, in " in said
    assert re.search(r"estimate: about [\d.]+ MB after compression, \d\d% of [\d.]+ MB; ", said)


def test_what_the_run_would_refuse_is_refused(images: Path) -> None:
    refusals: list[tuple[dict[str, Any], Any, str]] = [
        ({"name": "y", "runtime__device": "gpu"}, OptionError, r"runtime.device: TensorFlow sees no GPU here"),
        ({"data__size": 48}, StoreError, r"the folder holds another run, got data.size 48x48 \(in the folder 32x32"),
        ({"output__existing": "fail"}, StoreError, r"the folder holds results, got 2 files"),
    ]
    extract(images)
    for changes, kind, message in refusals:
        with pytest.raises(kind, match=message):
            dry_run(images, **changes)
        with pytest.raises(kind, match=message):
            run_all(check_options(values(**{**QUICK, "data__dir": str(images), **changes})))
    data = bytearray((images / "0.jpg").read_bytes())
    data[-3] ^= 1
    (images / "0.jpg").write_bytes(data)
    with pytest.raises(StoreError, match=r"an image has changed since its features were made"):
        dry_run(images)


def test_a_run_in_which_too_many_or_all_fail_is_refused(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "0.jpg").write_text("no image")
    with pytest.raises(DatasetError, match=r"data.max_failed_fraction: too many images fail, got 1 of 6"):
        dry_run(images, data__max_failed_fraction=0.1)
    for path in images.iterdir():
        path.write_text("no image")
    with pytest.raises(DatasetError, match=r"too many images fail, got 6 of 6, e\.g\. .not an image"):
        dry_run(images)
    # Of a part of the images nobody can tell.
    capsys.readouterr()
    dry_run(images, batch_size=1)
    said = capsys.readouterr().err
    assert "sample: no image of it can be used, so nothing can be said of the rest" in said
    assert "estimate" not in said


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, spec = tmp_path / "run", make_spec()
    folder.mkdir()
    open_folder(folder, spec, "resume", preview=True).close()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written, got ENOTDIR"):
        open_folder(tmp_path / "file/run", spec, "resume", preview=True)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(StoreError, match="cannot be written, got EACCES"):
        open_folder(tmp_path / "new", spec, "resume", preview=True)
    assert not (tmp_path / "new").exists()


def test_without_a_terminal_a_line_says_from_time_to_time_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.LINE_EVERY_SECONDS", 0.0)
    with log_to_terminal(), Progress(make_spec(4), 4) as progress:
        progress.count([ImageStatus(row, "bad" * (row == 0), 32, 48, 9, "") for row in range(3)])
        progress.count([ImageStatus(3, "", 32, 48, 9, "")])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "failed: 'folder0/image é0.jpg': bad"
    assert re.fullmatch(r"3 of 4 images, 1 failed, [\d.]+ images/s, 0:00:00 left", lines[1])
    assert re.fullmatch(r"4 of 4 images, 1 failed, [\d.]+ images/s, 0:00:00 left", lines[2])
