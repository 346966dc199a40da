"""``python -m pipeline.reduce``: a finished run made smaller has the values that an extraction would have made."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import extract_features, open_run
from pipeline.errors import StoreError
from pipeline.store.verification import verify_folder

from .bad_images import picture
from .killed_runs import assert_same_file
from .processes import call_here

SETTINGS: dict[str, Any] = {"weights": "random", "quiet": True, "size": [36, 52], "units_n_components": 50, "pca_n_components": 2}
WORDS = ["relu2_1:gram", "relu3_1:avg", "relu3_1:gem:l2", "relu3_1:avg:pca:l2", "relu3_1:units"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images, one of them broken."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(4):
        picture(number).resize((80 - 9 * number, 60)).save(folder / f"{number}.jpg")
    (folder / "2b.jpg").write_bytes(b"no image")
    return folder


def extract(folder: Path, words: Any, where: Path, name: str, **options: Any) -> Path:
    return extract_features(folder, words, **SETTINGS | options, output_dir=where / "outputs", name=name).path.parent


def reduce(*arguments: str, cwd: Path) -> Any:
    ended = call_here(*arguments, cwd=cwd, module="pipeline.reduce")
    assert "Traceback" not in ended.stderr
    return ended


@pytest.mark.parametrize("size", [[36, 52], pytest.param(None, marks=pytest.mark.slow)])
def test_a_reduced_run_has_the_values_that_an_extraction_makes(
    size: Any, folder: Path, thin_weights: Callable[..., Any], tmp_path: Path
) -> None:
    words = WORDS[:4] if size is None else [*WORDS, "relu3_1:srp", "relu3_1:pca"]
    options = {"size": size, "images_per_shard": 2}
    extract(folder, ["relu2_1", "relu3_1"], tmp_path, "maps", **options)
    direct = extract(folder, words, tmp_path, "direct", **options)
    arguments = [f"layers=[{','.join(words)}]", "reduction.units.n_components=50", "reduction.pca.n_components=2"]
    ended = reduce("run=outputs/maps", *arguments, "output.images_per_shard=2", "name=small", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    small = tmp_path / "outputs/small"
    of_the_run = ["@config", "@identity", "@run_digest", "@transforms_sha256"]
    assert_same_file(direct / "features.h5", small / "features.h5", of_the_run)
    assert verify_folder(small, 2).count == 0
    # An extraction is another run.
    with pytest.raises(StoreError, match="reduced from none"):
        extract(folder, words, tmp_path, "small", **options)


def test_a_killed_reduction_goes_on_and_a_grown_run_is_added_to(
    folder: Path, thin_weights: Callable[..., Any], tmp_path: Path
) -> None:
    images, small = tmp_path / "images", tmp_path / "outputs/maps-reduced"
    images.mkdir()
    options = {"images_per_shard": 2, "existing": "extend"}
    for names in (("1.jpg", "2b.jpg", "3.jpg"), ("0.jpg", "2.jpg")):
        for name in names:
            shutil.copy(folder / name, images)
        run = extract_features(
            images, ["relu2_1", "relu3_1"], **SETTINGS, **options, output_dir=tmp_path / "outputs", name="maps"
        )
        again = ["run=outputs/maps", "reduce=[avg]", "output.images_per_shard=2", "output.existing=extend"]
        assert reduce(*again, cwd=tmp_path).returncode == 0
    # As after a kill: an unfinished shard, no index, no reports.
    whole = open_run(small)["relu3_1.avg"][:]
    shard = small / "shards/shard-00000-of-00002.h5"
    kept = (small / "shards/shard-part001-00000-of-00001.h5").stat().st_mtime_ns
    shard.rename(f"{shard}.partial")
    (small / "features.h5").unlink()
    ended = reduce(*again[:-1], cwd=tmp_path)
    assert "resume: 2 of 3 shards are finished, 2 images are left" in ended.stderr
    assert (small / "shards/shard-part001-00000-of-00001.h5").stat().st_mtime_ns == kept
    found = open_run(small)
    assert found.layers == ("relu2_1.avg", "relu3_1.avg")
    assert np.array_equal(found["relu3_1.avg"][:], whole, equal_nan=True)
    assert np.allclose(found["relu3_1.avg"][:], run["relu3_1"][:].mean((1, 2)), rtol=1e-5, equal_nan=True)
    for column in run.images:
        assert found.images[column].tolist() == run.images[column].tolist()
    assert verify_folder(small, 2).count == 0
    # An image that has changed since the maps were made is not taken for what they were made of.
    assert min(shard_times(small)) == min(shard_times(run.path.parent))


def shard_times(folder: Path) -> list[str]:
    return [str(open_run(path).attributes["created"]) for path in sorted(folder.glob("shards/*.h5"))]


def test_a_chain_goes_on_from_what_is_stored(folder: Path, thin_weights: Callable[..., Any], tmp_path: Path) -> None:
    extract(folder, ["relu3_1:avg", "relu3_1:gem", "relu2_1"], tmp_path, "maps", dtype="float16")
    ended = reduce("run=outputs/maps", "layers=[relu3_1.avg:l2,relu2_1:max,relu3_1.gem:l2]", "name=small", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    maps, small = open_run(tmp_path / "outputs/maps"), open_run(tmp_path / "outputs/small")
    assert small.layers == ("relu2_1.max", "relu3_1.avg.l2", "relu3_1.gem.l2")
    expected = maps["relu3_1.avg"][0].astype(np.float32)
    expected /= np.float32(np.linalg.norm(expected.astype(np.float64)))
    assert np.array_equal(small["relu3_1.avg.l2"][0], expected.astype(np.float16))
    assert np.array_equal(small["relu2_1.max"][0], maps["relu2_1"][0].max((0, 1)))
    digest = maps.attributes["run_digest"]
    assert json.loads(small.attributes["identity"])["reduced from"] == digest
    shown = call_here("run=outputs/small", cwd=tmp_path, module="pipeline.show").stdout
    assert f"reduced    from the stored features of run {digest[:16]}" in shown
    assert "max_failed_fraction" not in shown
    # The command that is shown makes it again, or goes on with it.
    module, *arguments = shlex.split(shown.splitlines()[-1].partition("-m ")[2])
    assert module == "pipeline.reduce"
    assert "rows       5 (4 ok, 1 failed)" in reduce(*arguments, cwd=tmp_path).stderr
    for wrong, message in (
        (["layers=relu3_2:avg"], "layers: not stored in this run, got 'relu3_2'. Expected one of: relu2_1"),
        (["layers=[relu2_1:average]"], "there is no such reduction, got 'average' of relu2_1. Expected one of: avg"),
        (
            ["layers=relu3_1.gem:l2", "reduction.gem.p=2"],
            "reduction.gem.p: not that of the stored relu3_1.gem, got 2.0. Expected 3.0",
        ),
        ([], "layers: no reduction is named, got null"),
        (["reduce=[avg]", "name=maps"], "name: that of the run itself, got 'maps'"),
        (["reduce=[avg]", "reduction.gem.p=0"], "reduction.gem.p: not a valid value"),
    ):
        ended = reduce("run=outputs/maps", *wrong, cwd=tmp_path)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
        assert message in ended.stderr
