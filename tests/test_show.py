"""``python -m pipeline.show``: what a run holds, whatever has become of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StoreError
from pipeline.formatting import words_for_bytes
from pipeline.records import RunSpec
from pipeline.show import as_text, overview
from pipeline.store.reader import open_run

from .damage import chunk_place, flip
from .processes import call_here, run_python
from .stored_runs import make_spec, make_values, write_run

IDENTITY = {"network": "vgg19", "output.images_per_shard": "4", "data.size": "80x80"}
CONFIG = """
data: {dir: imgs é, size: 80}
layers: [conv1_1, relu4_1]
network: {name: vgg19, weights: random}
output: {existing: replace}
"""
SHARD = "shards/shard-00001-of-00003.h5"


def spec_with_options(rows: int = 10, **changes: Any) -> RunSpec:
    spec = make_spec(rows, identity=IDENTITY, **changes)
    attributes: Mapping[str, Any] = {
        **spec.attributes,
        "config": CONFIG,
        "weights": "random (He normal, seed 0)",
        "weights_sha256": "ab" * 32,
        "preprocess": "RGB 0..255, minus mean_pixel",
        "data_root": "/data/imgs é",
        "version_numpy": "2.0",
        **{"device": "gpu", "gpu": "NVIDIA H200", "precision": "tf32"},
    }
    return replace(spec, attributes=attributes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("show") / "outputs" / "ünï's 2024_01"
    write_run(path, spec_with_options(), failed=[3, 8])
    report = {"rows_now": 10, "seconds": 2.0, "images_per_second": 12.345, "device": "cpu"}
    (path / "report.json").write_text(json.dumps(report))
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def show(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return call_here(*arguments, cwd=cwd, module="pipeline.show")


def text_of(path: Path) -> str:
    return as_text(overview(path))


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "shards").iterdir())


def test_a_run_is_a_screenful(folder: Path) -> None:
    result = show(f"run=outputs/{folder.name}", cwd=folder.parent.parent)
    assert (result.returncode, result.stderr) == (0, "")
    raw, stored = 8 * (5 * 4 + 80 * 80) * 3 * 4, stored_bytes(folder)
    created = str(open_run(next((folder / "shards").iterdir())).attributes["created"])[:10]
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"run        outputs/{folder.name}: finished, made {created}")
    assert lines[1:] == [
        "rows       10 (8 ok, 2 failed)",
        "                2 truncated after 17 bytes",
        "shards     3 of 3, 4 rows each",
        "layers              output       dtype         raw",
        "           conv1_1  5 x 4 x 3    float32    1.9 kB",
        "           relu4_1  80 x 80 x 3  float32  614.4 kB",
        f"stored     {words_for_bytes(stored)}, {stored / raw:.0%} of raw",
        "network    vgg19",
        "weights    random (He normal, seed 0)",
        f"           SHA-256 {'ab' * 32}",
        "images     /data/imgs é",
        "input      RGB 0..255, minus mean_pixel (123.68, 116.779, 103.939)",
        "versions   numpy 2.0",
        "device     gpu, NVIDIA H200, tf32",
        "rate       10 rows in 2.0 s, 12.35 images/s on the cpu",
        "command    python -m pipeline.run 'data.dir=imgs é' data.size=80 'layers=[conv1_1,relu4_1]' "
        "network.weights=random 'name=ünï'\"'\"'s 2024_01'",
    ]


def test_all_of_it_is_had_as_json_and_a_shard_stands_for_its_run(folder: Path) -> None:
    result = show(f"run={folder}/{SHARD}", "json=true", cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert (found["state"], found["rows"], found["causes"]) == ("finished", 10, {"truncated after 17 bytes": 2})
    assert found["layers"][1]["shape"] == [80, 80, 3]
    assert found["layers"][1]["bytes_raw"] == 8 * 80 * 80 * 3 * 4
    assert found["bytes_stored"] == stored_bytes(folder)
    assert found["differing_options"]["data.size"] == 80
    assert found["attributes"]["mean_pixel"] == [123.68, 116.779, 103.939]
    assert (found["attributes"]["gpu"], found["attributes"]["precision"]) == ("NVIDIA H200", "tf32")
    assert found["report"]["images_per_second"] == 12.345


def test_it_loads_no_tensorflow_and_serves_any_terminal(folder: Path) -> None:
    code = "import runpy, sys; runpy.run_module('pipeline.show', run_name='__main__'); print('tensorflow' in sys.modules)"
    done = run_python(code, f"run={folder}", PYTHONIOENCODING="ascii")
    assert done.stdout.endswith("False\n")
    assert "images     /data/imgs \\xe9\n" in done.stdout


def test_a_run_that_is_not_finished_says_how_far_it_is(copy: Path) -> None:
    (copy / SHARD).unlink()
    assert f"{copy}: shards are missing, made " in text_of(copy)
    (copy / "features.h5").unlink()
    (copy / "report.json").unlink()
    text = text_of(copy)
    assert f"{copy}: not finished, made " in text
    assert "rows       10 (4 ok, 2 failed, 4 not finished)" in text
    assert "shards     2 of 3, 4 rows each" in text
    assert "rate " not in text
    # Before the first shard is finished.
    shutil.rmtree(copy / "shards")
    (copy / "config.yaml").write_text(CONFIG)
    text = text_of(copy)
    assert f"{copy}: not finished\nrows       10 (0 ok, 0 failed, 10 not finished)\nshards     0 of 3, 4 rows each" in text
    assert "relu4_1  -" in text
    assert "command    python -m pipeline.run 'data.dir=imgs é'" in text


def test_an_extended_run_has_parts_and_a_stopped_extension_says_so(tmp_path: Path) -> None:
    for name, is_stopped in (("whole", False), ("stopped", True)):
        write_run(tmp_path / name, spec_with_options(6))
        write_run(tmp_path / name, spec_with_options(11), failed=[7], existing="extend", index=not is_stopped)
    held = overview(tmp_path / "whole")
    assert (held["state"], held["rows"], held["parts"], held["shards"]) == ("finished", 11, [6, 5], 4)
    assert held["causes"] == {"truncated after 17 bytes": 1}
    assert "shards     4 of 4, 4 rows each, 2 parts: 6 + 5 rows" in text_of(tmp_path / "whole")
    (tmp_path / "stopped/shards/shard-part001-00001-of-00002.h5").unlink()
    held = overview(tmp_path / "stopped")
    assert (held["state"], held["rows"], held["rows_finished"], held["parts"]) == ("an extension is not finished", 11, 10, [6, 5])
    assert held["causes"] == {"truncated after 17 bytes": 1}
    # The list of another run's extension does not belong to this one.
    write_run(tmp_path / "other", spec_with_options(7))
    shutil.copy(tmp_path / "whole/manifest-part001.jsonl.gz", tmp_path / "other")
    assert overview(tmp_path / "other")["parts"] == [7]


def test_native_size_has_no_shape_and_all_its_bytes(tmp_path: Path) -> None:
    sizes = {0: (3, 4), 1: (5, 6), 2: (2, 2)}
    shapes = {"relu4_1": None, "relu4_1.avg": (5,)}
    spec = make_spec(3, shapes, images_per_shard=2, identity={"network": "vgg19", "data.size": "native"})
    write_run(tmp_path, spec, failed=[2], values=make_values(spec, sizes))
    layer, vector = overview(tmp_path)["layers"]
    assert (layer["shape"], layer["bytes_raw"]) == (None, None)
    assert (vector["shape"], vector["bytes_raw"]) == ([5], 2 * 5 * 4)
    assert "relu4_1      native, 3 channels  float32     -" in text_of(tmp_path)
    assert "relu4_1.avg  5                   float32  40 B" in text_of(tmp_path)


def test_damaged_files_are_named_and_the_rest_is_shown(copy: Path) -> None:
    shard = copy / SHARD
    shard.write_bytes(shard.read_bytes()[:3000])
    (copy / "features.h5").write_bytes(b"")
    assert f"damaged    features.h5, {SHARD}; say python -m pipeline.verify" in text_of(copy)
    held = overview(copy)
    assert (held["rows"], held["state"]) == (10, "not finished")
    # No feature is read, so one that is damaged is none of its business.
    whole = copy / "shards/shard-00000-of-00003.h5"
    flip(whole, chunk_place(whole, "relu4_1", 0))
    assert overview(copy)["rows"] == 10


def test_a_torn_manifest_is_one_line_and_a_torn_report_is_as_if_it_were_not_there(copy: Path) -> None:
    (copy / "report.json").write_text('{"rows_now": ')
    assert overview(copy)["report"] is None
    path = copy / "manifest.jsonl.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StoreError, match=r"manifest\.jsonl\.gz: the manifest is damaged, got .*\. Expected "):
        overview(copy)


def test_a_name_cannot_command_the_terminal_and_a_folder_that_was_moved_is_shown_where_it_is(copy: Path) -> None:
    path = copy.rename(copy.parent / "a\x1b[2Jb")
    text = text_of(path)
    assert "\x1b" not in text
    assert "a\\x1b[2Jb: finished" in text
    assert "name=a\\x1b[2Jb'" in text


def test_what_is_no_run_is_one_line(folder: Path, tmp_path: Path) -> None:
    result = show("run=outputs/ünï's 2024_02", cwd=folder.parent.parent)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "error: outputs/ünï's 2024_02: there is no such run, got a path that does not exist. Expected one of: ünï's 2024_01. "
        "Check the path.\n"
    )
    with pytest.raises(StoreError, match=r"not a run, got no features\.h5"):
        overview(tmp_path)
