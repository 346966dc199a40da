"""``python -m pipeline.index``: what a run has besides its shards, made by hand, from nothing but these."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import DatasetError, LockedError, StoreError
from pipeline.index import index_run
from pipeline.job import finish_share
from pipeline.progress import Made, Stopwatch
from pipeline.records import RunSpec
from pipeline.sharding import Share
from pipeline.store.run_folder import open_folder
from pipeline.store.verification import verify_folder

from .killed_runs import contents
from .processes import call_here
from .stored_runs import make_missing, make_spec, write_run

pytestmark = pytest.mark.usefixtures("here")

CONFIG = "data:\n  dir: imgs\n  max_failed_fraction: 0.25\n"


def spec_of(rows: int = 30, **how: object) -> RunSpec:
    spec = make_spec(rows=rows, identity={"network": "vgg19", "data.size": "224"}, **how)  # type: ignore[arg-type]
    spec.attributes.update(config=CONFIG, weights="random", weights_sha256="0" * 64, data_root="/data", preprocess="none")  # type: ignore[attr-defined]
    spec.attributes.update(compression=spec.compression)  # type: ignore[attr-defined]
    return spec


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    write_run(folder, spec_of(), failed=[3, 8])
    return folder


@pytest.fixture
def shards_only(whole: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(whole / "shards", copy / "shards")
    shutil.copy(whole / "manifest.jsonl.gz", copy)
    return copy


def test_the_index_from_shards_alone_is_the_one_that_the_run_writes(shards_only: Path, whole: Path) -> None:
    report = index_run(shards_only)
    assert contents(shards_only / "features.h5") == contents(whole / "features.h5")
    assert (report.rows, report.failed, report.rows_now, report.options["data.max_failed_fraction"]) == (30, 2, 0, 0.25)
    assert (shards_only / "report.json").read_text() == report.json()
    assert (shards_only / "config.yaml").read_text() == CONFIG
    assert (shards_only / "report.html").stat().st_size > 1000
    verdict = verify_folder(shards_only, 1)
    assert verdict.count == 0, verdict.findings
    stamps = {path: path.stat().st_mtime_ns for path in shards_only.iterdir() if path.suffix != ".log" and path.name != ".lock"}
    index_run(shards_only)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_missing_shards_and_manifests_are_named(shards_only: Path) -> None:
    for number in (1, 2, 5, 6):
        (shards_only / f"shards/shard-0000{number}-of-00008.h5").unlink()
    with pytest.raises(StoreError, match=r"shard-00001-of-00008\.h5: the file is missing, got 4 of 8 shards\. Expected all"):
        index_run(shards_only)
    (shards_only / "manifest.jsonl.gz").unlink()
    with pytest.raises(StoreError, match=r"manifest\.jsonl\.gz: the file is missing"):
        index_run(shards_only)
    assert not (shards_only / "features.h5").exists()


def test_a_live_run_or_part_is_left_alone(whole: Path) -> None:
    for share, said in ((None, "another run writes this folder"), (Share(1, 2), "a part of the run is being made")):
        with open_folder(whole, spec_of(), "resume", share), pytest.raises(LockedError, match=said):
            index_run(whole)


def test_the_command_ends_with_its_exit_codes(shards_only: Path) -> None:
    cwd = shards_only.parent
    good = call_here("run=run", cwd=cwd, module="pipeline.index")
    assert (good.returncode, good.stdout) == (0, "")
    assert good.stderr.splitlines()[0] == "shards: all 8 are there, 30 rows"
    assert call_here("run=run", cwd=cwd, module="pipeline.verify").returncode == 0
    nothing = call_here("run=nope", cwd=cwd, module="pipeline.index")
    assert (nothing.returncode, nothing.stderr.count("\n")) == (1, 1)
    assert nothing.stderr.startswith("error: nope: there is no such run")
    wrong = call_here("rum=run", cwd=cwd, module="pipeline.index")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_each_part_reports_its_own_and_the_last_one_the_run(tmp_path: Path) -> None:
    spec, folder = spec_of(), tmp_path / "run"
    for share, failed in ((Share(1, 2), 3), (Share(2, 2), 0)):
        with open_folder(folder, spec, "resume", share) as run_folder:
            make_missing(run_folder, [3, 8, 9])
            rows_now = sum(shard.rows for shard in run_folder.missing)
            report = finish_share(run_folder, Made("cpu", rows_now=rows_now, images_per_second=2.5), Stopwatch())
        own = json.loads((folder / f"report-{share.mark}.json").read_text())
        found = tuple(own[name] for name in ("rows", "rows_now", "part", "index", "failed"))
        assert found == (rows_now, rows_now, str(share), "", failed)
        assert (folder / "report.json").exists() == (share.number == 2)
    assert (folder / "report.json").read_text() == report.json()
    assert (report.rows, report.failed, report.rows_now, report.part) == (30, 3, 14, "2/2")
    assert "2/2" in (folder / "report.html").read_text()
    # Too many failures are told of all rows.
    spec = replace(spec, attributes={**spec.attributes, "config": CONFIG.replace("0.25", "0.05")})
    with (
        open_folder(folder, spec, "resume", Share(1, 2)) as run_folder,
        pytest.raises(DatasetError, match="too many images fail, got 3 of 30"),
    ):
        finish_share(run_folder, Made(), Stopwatch())


def test_an_extended_run_is_indexed_with_all_its_parts(tmp_path: Path) -> None:
    keys = [f"a/{number:02d}.jpg" for number in range(25)]
    for count in (10, 25):
        write_run(tmp_path, spec_of(rows=count, keys=keys[:count]), existing="extend")
    before = contents(tmp_path / "features.h5")
    (tmp_path / "features.h5").unlink()
    index_run(tmp_path)
    assert contents(tmp_path / "features.h5") == before
