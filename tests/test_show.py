"""``python -m pipeline.show``: what a run holds, whatever has become of it."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.errors import OptionError, StoreError
from pipeline.overview import DEEPEST
from pipeline.records import RunSpec
from pipeline.report import MOST_REPORT_BYTES, words_for_bytes
from pipeline.show import LONGEST_CONFIG, check_options, overview
from pipeline.store import holdings
from pipeline.store.holdings import look_into
from pipeline.store.reader import open_run
from pipeline.store.regular import read_small
from pipeline.store.sizes import Sizes

from .damage import chunk_place, flip
from .hostile_runs import LISTINGS, layer, refill, root
from .stored_runs import make_spec, make_values, write_run
from .test_command import call, command, environment
from .test_store_damage import change

IDENTITY = {"network": "vgg19", "output.images_per_shard": "4", "data.size": "80x80"}
CONFIG = """
data: {dir: imgs é, size: 80}
layers: [conv1_1, relu4_1]
network: {name: vgg19, weights: random}
output: {existing: replace}
"""


def spec_with_options(rows: int = 10, **changes: Any) -> RunSpec:
    from dataclasses import replace

    spec = make_spec(rows, identity=IDENTITY, **changes)
    attributes: Mapping[str, Any] = {
        **spec.attributes,
        "config": CONFIG,
        "weights": "random (He normal, seed 0)",
        "weights_sha256": "ab" * 32,
        "preprocess": "RGB 0..255, minus mean_pixel",
        "data_root": "/data/imgs é",
        "version_numpy": "2.0",
    }
    return replace(spec, attributes=attributes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("show") / "outputs" / "ünï's 2024_01"
    write_run(path, spec_with_options(), failed=[3, 8])
    report = {"rows_now": 10, "images_per_second": 12.345, "seconds": 2.0, "device": "cpu"}
    (path / "report.json").write_text(json.dumps(report))
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def show(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return call(*arguments, cwd=cwd, module="pipeline.show")


def h5_bytes(path: Path, layer: str) -> int:
    with h5py.File(path) as file:
        return int(file["features"][layer].id.get_storage_size())


def stored_bytes(folder: Path, layer: str) -> int:
    return sum(h5_bytes(path, layer) for path in (folder / "shards").glob("*.h5"))


def test_a_run_is_a_screenful(folder: Path) -> None:
    result = show(f"run=outputs/{folder.name}", cwd=folder.parent.parent)
    assert (result.returncode, result.stderr) == (0, "")
    raw, stored = 8 * 5 * 4 * 3 * 4, stored_bytes(folder, "conv1_1")
    created = str(open_run(next((folder / "shards").iterdir())).attributes["created"])[:10]
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"run        outputs/{folder.name}: finished, made {created}")
    assert lines[1:6] == [
        "rows       10 (8 ok, 2 failed)",
        "                2 truncated after 17 bytes",
        "shards     3 of 3, 4 rows each",
        "layers              output       dtype         raw    stored  of raw",
        f"           conv1_1  5 x 4 x 3    float32    {raw / 1e3:.1f} kB  {words_for_bytes(stored):>8}     {stored / raw:.0%}",
    ]
    assert lines[6].startswith("           relu4_1  80 x 80 x 3  float32  614.4 kB  ")
    assert lines[7].startswith("           all                            616.3 kB  ")
    assert lines[8:] == [
        "network    vgg19",
        "weights    random (He normal, seed 0)",
        f"           SHA-256 {'ab' * 32}",
        "images     /data/imgs é",
        "input      RGB 0..255, minus mean_pixel (123.68, 116.779, 103.939)",
        "options    data.size=80 network.weights=random",
        "versions   numpy 2.0",
        "rate       10 rows in 2.0 s, 12.35 images/s on the cpu",
        "command    python -m pipeline.run 'data.dir=/data/imgs é' 'layers=[conv1_1,relu4_1]' data.size=80 "
        "network.weights=random 'name=ünï'\"'\"'s 2024_01'",
    ]


def test_all_of_it_is_had_as_json(folder: Path) -> None:
    result = show(f"run={folder}/features.h5", "json=true", cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert (found["state"], found["rows"], found["rows_failed"]) == ("finished", 10, 2)
    assert found["causes"] == {"truncated after 17 bytes": 2}
    assert [layer["name"] for layer in found["layers"]] == ["conv1_1", "relu4_1"]
    assert found["layers"][1]["shape"] == [80, 80, 3]
    assert found["layers"][1]["bytes_raw"] == 8 * 80 * 80 * 3 * 4
    assert found["layers"][1]["bytes_stored"] == stored_bytes(folder, "relu4_1")
    assert found["differing_options"]["data.size"] == 80
    assert found["command"].startswith("python -m pipeline.run ")
    assert found["attributes"]["mean_pixel"] == [123.68, 116.779, 103.939]
    assert found["report"]["images_per_second"] == 12.345


def test_it_loads_no_tensorflow(folder: Path) -> None:
    code = "import sys; from pipeline.show import overview; overview(sys.argv[1]); print('tensorflow' in sys.modules)"
    code = code.replace("overview(sys.argv[1])", "overview(__import__('pathlib').Path(sys.argv[1]))")
    python = command(cwd=folder)[0]
    done = subprocess.run([python, "-c", code, str(folder)], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_run_that_is_not_finished_says_how_far_it_is(copy: Path) -> None:
    (copy / "features.h5").unlink()
    (copy / "report.json").unlink()
    (copy / "shards/shard-00001-of-00003.h5").unlink()
    text = overview(copy).text(None)
    assert f"{copy}: not finished, made " in text
    assert "rows       10 (4 ok, 2 failed, 4 not finished)" in text
    assert "shards     2 of 3, 4 rows each" in text
    assert "rate " not in text


def test_a_run_without_a_finished_shard_says_what_it_will_be(copy: Path) -> None:
    shutil.rmtree(copy / "shards")
    (copy / "features.h5").unlink()
    (copy / "config.yaml").write_text(CONFIG)
    text = overview(copy).text(None)
    assert f"{copy}: not finished\n" in text
    assert "rows       10 (0 ok, 0 failed, 10 not finished)" in text
    assert "shards     0 of 3, 4 rows each" in text
    assert "relu4_1  -" in text
    assert "command    python -m pipeline.run 'data.dir=imgs é'" in text


def test_a_run_with_a_shard_missing_says_so(copy: Path) -> None:
    (copy / "shards/shard-00002-of-00003.h5").unlink()
    held = look_into(copy)
    assert (held.state, held.rows, held.rows_finished, len(held.errors)) == ("shards are missing", 10, 8, 1)


def test_an_extended_run_has_parts(tmp_path: Path) -> None:
    write_run(tmp_path, spec_with_options(6))
    write_run(tmp_path, spec_with_options(11), failed=[10], existing="extend")
    held = look_into(tmp_path)
    assert (held.state, held.rows, held.parts, held.shards_planned) == ("finished", 11, (6, 5), 4)
    assert "shards     4 of 4, 4 rows each, 2 parts: 6 + 5 rows" in overview(tmp_path).text(None)
    assert held.errors == ("truncated after 17 bytes",)


def test_an_extension_that_was_stopped_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, spec_with_options(6))
    write_run(tmp_path, spec_with_options(11), failed=[7], existing="extend", index=False)
    (tmp_path / "shards/shard-part001-00001-of-00002.h5").unlink()
    held = look_into(tmp_path)
    assert (held.state, held.rows, held.rows_finished, held.parts) == ("an extension is not finished", 11, 10, (6, 5))
    assert held.errors == ("truncated after 17 bytes",)


def test_one_shard_is_a_run_of_its_rows(folder: Path) -> None:
    path = folder / "shards/shard-00002-of-00003.h5"
    text = overview(path).text(None)
    assert f"{path}: one shard of a run, made " in text
    assert "rows       8 to 9, 2 (1 ok, 1 failed)" in text
    assert "shards     this one; of a run of 10 rows, 4 rows each" in text
    assert f"output.dir={folder.parent} 'name=ünï'" in text


def test_a_folder_that_was_moved_is_shown_where_it_is(copy: Path) -> None:
    moved = copy.rename(copy.parent / "elsewhere")
    text = overview(moved).text(None)
    assert f"run        {moved}: finished" in text
    assert text.endswith(f"output.dir={moved.parent} name=elsewhere")


def test_native_size_has_no_shape_and_all_its_bytes(tmp_path: Path) -> None:
    sizes = {0: (3, 4), 1: (5, 6), 2: (2, 2)}
    spec = make_spec(3, {"relu4_1": None}, images_per_shard=2, identity={**IDENTITY, "data.size": "native"})
    write_run(tmp_path, spec, failed=[2], values=make_values(spec, sizes))
    (layer,) = look_into(tmp_path).layers
    assert layer.shape is None
    assert layer.raw_bytes == (3 * 4 + 5 * 6) * 3 * 4
    assert 0 < layer.stored_bytes < layer.raw_bytes
    assert "relu4_1  native, 3 channels  float32  504 B" in overview(tmp_path).text(None)


def test_of_very_many_shards_a_sample_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = look_into(folder)
    monkeypatch.setattr(holdings, "DATASETS_ASKED", 4)
    sample = look_into(folder)
    assert sample.is_sampled
    assert not whole.is_sampled
    for all_of_it, part in zip(whole.layers, sample.layers, strict=True):
        assert part.raw_bytes == all_of_it.raw_bytes
        assert part.stored_bytes == pytest.approx(all_of_it.stored_bytes, rel=0.1)
    assert "about stored" in overview(folder).text(None)


def test_damaged_files_are_named_and_the_rest_is_shown(copy: Path) -> None:
    shard = copy / "shards/shard-00001-of-00003.h5"
    shard.write_bytes(shard.read_bytes()[:3000])
    text = overview(copy).text(None)
    assert "damaged    shards/shard-00001-of-00003.h5; say python -m pipeline.verify" in text
    (copy / "features.h5").write_bytes(b"")
    held = look_into(copy)
    assert held.unreadable == ("features.h5", "shards/shard-00001-of-00003.h5")
    assert (held.rows, held.state) == (10, "not finished")
    # No feature is read, so one that is damaged is none of its business.
    whole = copy / "shards/shard-00000-of-00003.h5"
    flip(whole, chunk_place(whole, "relu4_1", 0))
    assert look_into(copy).rows == 10


def test_broken_companions_are_as_if_they_were_not_there(copy: Path) -> None:
    (copy / "report.json").write_text('{"rows_now": ')
    assert "rate " not in overview(copy).text(None)
    report = '{{"rows_now": 3, "images_per_second": {}, "seconds": {}, "device": "cpu"}}'
    wrong = [report.format(*pair) for pair in (('"x"', 1), (1, "1" + "0" * 400), (1, "1e999"), ("NaN", 1))]
    for text in ("3", *wrong, "[" * 100_000):
        (copy / "report.json").write_text(text)
        assert "rate " not in overview(copy).text(None)


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)) + "layers: *a11"


@pytest.mark.parametrize("text", [LAUGHS, "data: 3", "- 1", "a: [", "[" * 5000], ids=["laughs", "group", "list", "torn", "deep"])
def test_options_of_a_stranger_are_as_if_they_were_not_there(text: str, copy: Path) -> None:
    shutil.rmtree(copy / "shards")
    (copy / "features.h5").unlink()
    (copy / "config.yaml").write_text(text)
    found = overview(copy)
    assert "command" not in found.text(None)
    assert json.loads(found.json())["options"] == {}


@pytest.fixture
def patience() -> Iterator[None]:
    """Ends what would wait for ever."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("kind", ["pipe", "link to a file", "link to a device"])
def test_companions_that_are_no_files_are_not_waited_for_nor_followed(kind: str, copy: Path) -> None:
    shutil.copy(copy / "report.json", copy.parent / "outside")
    refill(copy / "report.json", kind, copy.parent / "outside")
    assert "rate " not in overview(copy).text(None)
    shutil.rmtree(copy / "shards")
    (copy / "features.h5").unlink()
    (copy / "config.yaml").touch()
    (copy.parent / "outside").write_text(CONFIG)
    refill(copy / "config.yaml", kind, copy.parent / "outside")
    assert overview(copy).command == ""


@pytest.mark.usefixtures("patience")
def test_a_pipe_in_the_place_of_a_shard_is_named(copy: Path) -> None:
    refill(copy / "shards/shard-00001-of-00003.h5", "pipe", copy)
    held = look_into(copy)
    assert (held.rows, held.unreadable) == (10, ("shards/shard-00001-of-00003.h5",))


@pytest.mark.parametrize("kind", ["link to a file", "link to nothing"])
def test_a_link_in_the_place_of_a_shard_is_named_and_not_measured(kind: str, copy: Path) -> None:
    shard = copy / "shards/shard-00001-of-00003.h5"
    shutil.copy(shard, copy.parent / "outside")
    refill(shard, kind, copy.parent / "outside")
    held = look_into(copy)
    assert held.unreadable == ("shards/shard-00001-of-00003.h5",)
    others = [path for path in (copy / "shards").iterdir() if path != shard]
    # Worked out from the others, whose good images are 3 and 1 of 8.
    sizes = [h5_bytes(path, "relu4_1") for path in others]
    assert held.layers[1].stored_bytes == round(sum(sizes) * 8 / 4)


def test_a_folder_of_shards_behind_a_link_is_one_line(copy: Path) -> None:
    (copy / "shards").rename(copy.parent / "elsewhere")
    (copy / "shards").symlink_to(copy.parent / "elsewhere")
    for path in (copy, copy / "features.h5"):
        with pytest.raises(StoreError, match=r"/shards: not a file of the run, got a link\. Expected the file or folder"):
            look_into(path)


def test_what_the_caller_has_named_may_be_a_link(copy: Path) -> None:
    for number, target in enumerate((copy, copy / "features.h5", copy / "shards/shard-00001-of-00003.h5")):
        link = copy.parent / str(number)
        link.symlink_to(target)
        assert look_into(link).layers[0].stored_bytes > 0


@pytest.mark.parametrize("size", ["80x80", "native"])
@pytest.mark.parametrize("kind", ["external", "soft", "virtual"])
def test_values_that_lie_elsewhere_are_not_measured(kind: str, size: str, tmp_path: Path) -> None:
    spec = make_spec(4, {"relu4_1": None if size == "native" else (5, 6, 3)}, identity={**IDENTITY, "data.size": size})
    write_run(tmp_path / "run", spec, values=make_values(spec, dict.fromkeys(range(4), (5, 6))))
    shard = tmp_path / "run/shards/shard-00000-of-00001.h5"
    shutil.copy(shard, tmp_path / "outside.h5")
    whole = look_into(tmp_path / "run").layers[0]
    node = "features/relu4_1/000000002" if size == "native" else "features/relu4_1"
    with h5py.File(shard, "r+") as file:
        shape = file[node].shape
        del file[node]
        if kind == "virtual":
            layout = h5py.VirtualLayout(shape, "<f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "outside.h5"), node, shape, "<f4")
            file.create_virtual_dataset(node, layout)
        else:
            outside = h5py.ExternalLink(str(tmp_path / "outside.h5"), node)
            file[node] = outside if kind == "external" else h5py.SoftLink("/images/height")
    held = look_into(tmp_path / "run")
    if size == "native" and kind != "virtual":
        assert held.layers[0].raw_bytes == whole.raw_bytes * 3 // 4
    else:
        assert held.unreadable == ("shards/shard-00000-of-00001.h5",)
        assert held.layers[0].stored_bytes == 0


def test_a_layer_by_way_of_a_link_is_not_measured(tmp_path: Path) -> None:
    write_run(tmp_path / "run", make_spec(4, {"relu4_1": (5, 6, 3)}, identity=IDENTITY))
    shard = tmp_path / "run/shards/shard-00000-of-00001.h5"
    shutil.copy(shard, tmp_path / "outside.h5")
    change(shard, lambda file: file["features"].__setitem__("x", h5py.ExternalLink(str(tmp_path / "outside.h5"), "features")))
    with pytest.raises(ValueError, match="a link, which is not followed"):
        Sizes(["x/relu4_1"]).ask(shard, np.ones(4, bool))


def test_companions_of_gigabytes_are_not_read(copy: Path) -> None:
    shutil.rmtree(copy / "shards")
    (copy / "features.h5").unlink()
    (copy / "config.yaml").write_text(CONFIG)
    assert overview(copy).command
    for name, most_bytes in (("report.json", MOST_REPORT_BYTES), ("config.yaml", LONGEST_CONFIG)):
        with (copy / name).open("r+b") as file:
            file.truncate(1 << 40)
        with pytest.raises(StoreError, match=rf"{name}: too large for what it is, got more than {most_bytes} bytes\. Expected"):
            read_small(copy / name, most_bytes)
    found = overview(copy)
    assert (found.command, "rate " in found.text(None)) == ("", False)


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an identity that is a list": lambda header: header.update(identity=[]),
    "an identity without shards": lambda header: header["identity"].pop("output.images_per_shard"),
    "an identity without layers": lambda header: header["identity"].pop("layers"),
    "rows that its identity has not": lambda header: header.update(rows=11),
    "rows in words": lambda header: header.update(rows="x"),
    "a first row below nothing": lambda header: header.update(first_row=-1),
    "a first row in words": lambda header: header.update(first_row="0"),
    "no first row": lambda header: header.pop("first_row"),
    "another format": lambda header: header.update(format="x"),
    "layers and a dtype for a terminal": lambda header: header["identity"].update(
        {"layers": "X\x1b]0;y\x07", "output.dtype": "\x1b[2J"}
    ),
    "a shard a row for a thousand million": lambda header: (
        header.update(rows=10**9),
        header["identity"].update({"output.images_per_shard": "1", "images": f"{10**9} rows, digest {'0' * 64}"}),
    ),
}


def _of_header(name: str) -> Callable[[Path], bytes]:
    def edit(path: Path) -> bytes:
        first, *others = gzip.decompress(path.read_bytes()).splitlines()
        header = json.loads(first)
        HEADERS[name](header)
        return gzip.compress(b"\n".join([json.dumps(header).encode(), *others]))

    return edit


BROKEN_LISTS = {
    **{name: edit for name, edit in LISTINGS.items() if name in ("nothing", "no gzip", "a bomb of one line", "nested", "a list")},
    **{name: _of_header(name) for name in HEADERS if "terminal" not in name},
}


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("case", BROKEN_LISTS)
def test_a_list_of_images_gone_wild_is_one_line_or_named(case: str, copy: Path) -> None:
    path = copy / "manifest.jsonl.gz"
    path.write_bytes(BROKEN_LISTS[case](path))
    unseen = case in ("an identity without shards", "an identity without layers", "a shard a row for a thousand million")
    # Others say what the run is.
    assert look_into(copy).unreadable == (() if unseen else (path.name,))
    shutil.rmtree(copy / "shards")
    (copy / "features.h5").unlink()
    with pytest.raises(StoreError, match=r"manifest\.jsonl\.gz: the list of images is damaged, got .*\. Expected ") as raised:
        look_into(copy)
    assert "\n" not in str(raised.value)


def test_a_list_of_a_later_part_tells_of_no_run_without_the_first(tmp_path: Path) -> None:
    write_run(tmp_path, spec_with_options(6))
    write_run(tmp_path, spec_with_options(11), existing="extend")
    shutil.rmtree(tmp_path / "shards")
    (tmp_path / "features.h5").unlink()
    assert look_into(tmp_path).parts == (6, 5)
    (tmp_path / "manifest.jsonl.gz").unlink()
    with pytest.raises(StoreError, match=r"manifest\.jsonl\.gz: the list of images is missing, got no such file"):
        look_into(tmp_path)


def test_a_list_that_does_not_follow_is_of_an_earlier_run(tmp_path: Path) -> None:
    write_run(tmp_path / "one", spec_with_options(6))
    write_run(tmp_path / "one", spec_with_options(11), existing="extend")
    write_run(tmp_path / "two", spec_with_options(7))
    shutil.copy(tmp_path / "one/manifest-part001.jsonl.gz", tmp_path / "two")
    assert look_into(tmp_path / "two").parts == (7,)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", '{"images": 3}'], ids=["torn", "deep", "list", "numbers"])
def test_an_identity_gone_wild_is_one_line(text: str, copy: Path) -> None:
    shard = copy / "shards/shard-00001-of-00003.h5"
    for path in (shard, copy / "features.h5"):
        change(path, root(identity=text if len(text) < 60_000 else text[:60_000]))
        with pytest.raises(StoreError, match=rf"{path.name}: the tree is damaged, got .*\. Expected the bytes"):
            look_into(path)


@pytest.mark.parametrize("name", ["features.h5", "shards/shard-00001-of-00003.h5"])
def test_a_table_of_fewer_rows_is_named(name: str, copy: Path) -> None:
    def shorten(file: h5py.File) -> None:
        del file["images/error"]
        file.create_dataset("images/error", shape=(0,), dtype=h5py.string_dtype()).attrs["crc32"] = np.uint32(0)

    change(copy / name, shorten)
    (copy / "features.h5").unlink() if name != "features.h5" else None
    held = look_into(copy)
    assert (held.rows, held.unreadable) == (10, (name,))
    if name != "features.h5":
        with pytest.raises(StoreError, match="is damaged, got 0 rows"):
            look_into(copy / name)


def test_what_users_have_added_is_had_as_json(copy: Path) -> None:
    import yaml

    options = yaml.safe_load(CONFIG)
    made = {"day": "2024-02-03", "secret": "!!binary aGVsbG8=", "some": "!!set {x, y}"}
    text = CONFIG + "mine:\n" + "".join(f"  {name}: {value}\n" for name, value in made.items()) + "  2024-02-03: 1\n"
    change(copy / "features.h5", root(config=text, note=np.bytes_("hello"), checked=True, notes=np.array([b"a", b"\xff"])))
    found = json.loads(overview(copy).json())
    assert [found["attributes"][name] for name in ("note", "checked", "notes")] == ["hello", True, ["a", "\\xff"]]
    mine = found["options"].pop("mine")
    assert sorted(mine.pop("some")) == ["x", "y"]
    assert mine == {"day": "2024-02-03", "secret": "hello", "2024-02-03": 1}
    assert found["options"] == options
    assert "mine.day=" in overview(copy).text(None)


def test_what_is_nested_deeply_is_left_out_of_the_json(copy: Path) -> None:
    report = json.loads((copy / "report.json").read_text())
    for depth in (100, 900):
        (copy / "report.json").write_text(json.dumps(report)[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}")
        found = json.loads(overview(copy).json())["report"]
        # Where Python reads no such depth, the report is as if it were not there.
        if found or depth == 100:
            assert json.dumps(found.pop("x")) == "[" * DEEPEST + '"..."' + "]" * DEEPEST
            assert found == report


@pytest.mark.parametrize("mean", ["x", 3.5, np.array([b"a"])], ids=["text", "number", "bytes"])
def test_a_mean_that_is_none_is_shown_as_it_is(mean: Any, copy: Path) -> None:
    change(copy / "features.h5", root(mean_pixel=mean))
    assert "input      RGB 0..255, minus mean_pixel (" in overview(copy).text(None)


def test_what_the_system_does_not_let_us_read_is_one_line(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"a: cannot be read, got File name too long\. Expected a file of a finished run"):
        look_into(Path("a" * 5000))
    listed = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        # Whoever runs the tests may be let read everything.
        if path.name == "shards":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(StoreError, match=r"/shards: cannot be read, got Permission denied \(EACCES\)\. Expected"):
        look_into(copy)


def test_shards_of_another_program_are_named_unless_there_are_no_others(copy: Path) -> None:
    (copy / "features.h5").unlink()
    first, second, third = sorted((copy / "shards").iterdir())
    for path in (second, third):
        change(path, root(format="x"))
    held = look_into(copy)
    assert (held.state, held.unreadable) == ("not finished", (f"shards/{third.name}", f"shards/{second.name}"))
    first.unlink()
    (copy / "manifest.jsonl.gz").unlink()
    with pytest.raises(StoreError, match="not a file of this program, got format 'x'"):
        look_into(copy)


@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "link to a file"])
def test_an_index_that_is_no_file_of_its_own_is_one_line(kind: str, copy: Path) -> None:
    shutil.copy(copy / "features.h5", copy.parent / "outside")
    refill(copy / "features.h5", kind, copy.parent / "outside")
    with pytest.raises(StoreError, match=r"features\.h5: not a file of the run, got a (pipe|link)\."):
        look_into(copy)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_lines_fit_the_terminal_but_for_the_command(folder: Path, width: int) -> None:
    lines = overview(folder).text(width).splitlines()
    words = [line for line in lines if not line.startswith("command") and "abab" not in line and str(folder.parent) not in line]
    assert max(map(len, words)) <= width, words
    assert "conv1_1" in "\n".join(words)


def test_a_terminal_of_another_encoding_and_width_is_served(folder: Path) -> None:
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen(
        command(f"run={folder}", cwd=folder, module="pipeline.show"),
        stdout=other,
        stderr=other,
        # Whoever runs the tests may have said how wide his own terminal is.
        env={**{name: text for name, text in environment().items() if name != "COLUMNS"}, "PYTHONIOENCODING": "ascii"},
    )
    os.close(other)
    said = b""
    try:
        while block := os.read(main, 65536):
            said += block
    except OSError:  # Linux says so at the end
        pass
    assert process.wait() == 0
    lines = said.decode("ascii").splitlines()
    assert "images     /data/imgs \\xe9" in lines
    assert not any("float32" in line for line in lines if "conv1_1" in line and "layers=" not in line)


def test_a_name_cannot_command_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2Jb"
    write_run(path, spec_with_options(2))
    assert "\x1b" not in overview(path).text(80)
    text = overview(path).text(None)
    assert "a\\x1b[2Jb: finished" in text
    assert "name=a\\x1b[2Jb'" in text


def test_a_layer_cannot_command_the_terminal(copy: Path) -> None:
    for path in (copy / "features.h5", copy / "shards/shard-00001-of-00003.h5"):
        change(path, layer(dtype="\x1b[31mfloat32"))
        with pytest.raises(StoreError, match=rf"{path.name}: .* is damaged, got 3 channels, \\x1b\[31mfloat32\. ") as raised:
            look_into(path)
        assert str(raised.value).isprintable()
    shutil.rmtree(copy / "shards")
    (copy / "features.h5").unlink()
    listing = copy / "manifest.jsonl.gz"
    listing.write_bytes(_of_header("layers and a dtype for a terminal")(listing))
    text = overview(copy).text(None)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "           X\\x1b]0;y\\x07  -       \\x1b[2J" in text


def test_what_is_no_run_is_one_line(folder: Path, tmp_path: Path) -> None:
    result = show("run=outputs/ünï's 2024_02", cwd=folder.parent.parent)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "error: outputs/ünï's 2024_02: there is no such run, got a path that does not exist. Expected one of: ünï's 2024_01. "
        "Check the path.\n"
    )
    with pytest.raises(StoreError, match=r"not a run folder, got no features\.h5"):
        look_into(tmp_path)
    (tmp_path / "x.h5").write_text("no HDF5")
    with pytest.raises(StoreError, match="not a run, got a file that is no HDF5"):
        look_into(tmp_path / "x.h5")
    (tmp_path / "features.h5").write_text("no HDF5")
    with pytest.raises(StoreError, match=r"features\.h5: the HDF5 file is damaged, got no other to go by"):
        look_into(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run": None, "json": False}, "run: no run was named, got None. Expected a run folder"),
        ({"run": "x", "json": 3}, "json: not a valid value, got 3. Expected true or false"),
        ({"run": "x", "jsn": True}, "jsn: there is no such option, got 'jsn'. Expected one of: json"),
    ],
)
def test_wrong_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_options(values)


def test_a_wrong_option_of_the_command_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = show("rn=x", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: rn: there is no such option, got 'rn'. Expected one of: run.")
    assert result.stderr.count("\n") == 1
