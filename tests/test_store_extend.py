"""Extending a run: parts, the rows that stay, what is refused, and runs that were stopped on the way."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.records import RunSpec
from pipeline.store.index_file import build_index
from pipeline.store.reader import open_run
from pipeline.store.run_contents import read_manifest
from pipeline.store.run_folder import RunFolder, open_folder
from pipeline.store.verification import repair

from .damage import chunk_place, flip
from .killed_runs import contents
from .stored_runs import make_missing, make_spec, make_values
from .test_store_verification import lines, verify


def spec_of(keys: str | Sequence[str], shapes: Any = None, images_per_shard: int = 2, **how: Any) -> RunSpec:
    """Gives the run that an empty folder would get: an image a letter, in this order."""
    return make_spec(len(keys), shapes, keys=list(keys), images_per_shard=images_per_shard, **how)


def run(path: Path, spec: RunSpec, existing: str = "extend", failed: str = "", shards: int | None = None) -> RunFolder:
    """Makes what is missing, or so many shards of it and no index."""
    with open_folder(path, spec, existing) as folder:
        make_missing(folder, [row for row, key in enumerate(folder.spec.manifest.keys) if key in failed], shards=shards)
        if shards is None:
            build_index(path, folder.spec)
    return folder


def everything(folder: Path) -> dict[str, Any]:
    """Gives all that makes up a run, but for by which command it was made: two with the same are the same bit for bit."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.glob("manifest*")}
    for path in [folder / "features.h5", *sorted((folder / "shards").iterdir())]:
        kept = contents(path).items()
        found[path.name] = {name: value for name, value in kept if not name.endswith(("@config", "@data_root"))}
    return found


def stamps(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in (folder / "shards").glob("*.h5")
    }


def rows_are_those_of_their_keys(folder: Path, keys: str, failed: str = "") -> None:
    with open_run(folder) as opened:
        assert "".join(opened.images["key"]) == keys
        expected = make_values(spec_of(keys))
        for layer in opened.layers:
            for row, key in enumerate(keys):
                assert opened.row(key) == row
                if key in failed:
                    assert np.isnan(opened[layer][row]).all()
                else:
                    np.testing.assert_array_equal(opened[layer][row], expected[layer][row])


def test_new_images_become_rows_after_the_old_ones_whose_shards_stay_as_they_are(tmp_path: Path) -> None:
    run(tmp_path, spec_of("bdf"))
    before = stamps(tmp_path)
    folder = run(tmp_path, spec_of("abcdef"))
    assert [(shard.file_name, shard.first, shard.stop) for shard in folder.missing] == [
        ("shard-part001-00000-of-00002.h5", 3, 5),
        ("shard-part001-00001-of-00002.h5", 5, 6),
    ]
    assert stamps(tmp_path).items() >= before.items()
    rows_are_those_of_their_keys(tmp_path, "bdface")
    with h5py.File(tmp_path / "features.h5") as index:
        assert (index.attrs["rows"], index.attrs["first_row"]) == (6, 0)
        assert index.attrs["part_stops"].tolist() == [3, 6]
        assert list(index.attrs["part_digests"]) == [spec_of("bdf").digest, folder.spec.digest]
        assert json.loads(index.attrs["identity"])["extends"] == f"3 rows, digest {spec_of('bdf').digest}"
    with h5py.File(tmp_path / "shards/shard-part001-00000-of-00002.h5") as shard:
        assert shard.attrs["run_digest"] == folder.spec.digest
        assert (shard.attrs["first_row"], shard.attrs["rows"]) == (3, 6)


def test_a_run_is_extended_again_and_again(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    for keys in ("c", "bc", "abcde", "abcdefghijk"):
        run(tmp_path, spec_of(keys))
        now = stamps(tmp_path)
        assert now.items() >= seen.items()
        seen = now
    rows_are_those_of_their_keys(tmp_path, "cbadefghijk")
    # A folder's files sorted by name are in the order of the rows.
    with open_run(tmp_path) as opened:
        assert [shard.file_name for shard in opened.shards] == sorted(path.name for path in (tmp_path / "shards").iterdir())
        assert [shard.first for shard in opened.shards] == [0, 1, 2, 4, 5, 7, 9]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over some images, to be copied."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    run(folder, spec_of("bdf"))
    return folder


@pytest.fixture(scope="module")
def whole(begun: Path) -> Path:
    """Its extension, made at one go."""
    folder = Path(shutil.copytree(begun, begun.parent / "whole"))
    run(folder, spec_of("abcdefghi"))
    return folder


def test_an_extension_of_which_nothing_was_made_is_planned_anew(tmp_path: Path) -> None:
    run(tmp_path, spec_of("bd"))
    run(tmp_path, spec_of("abcd"), shards=0)
    # One of those to be added has gone, another has come.
    run(tmp_path, spec_of("bcde"))
    rows_are_those_of_their_keys(tmp_path, "bdce")
    with open_folder(tmp_path, spec_of("bcde"), "resume") as again:
        assert again.missing == ()


@pytest.mark.parametrize(
    ("now", "differences", "remedy"),
    [
        (spec_of("bcdefghi"), "5 added ('c', 'e', 'g', ...)", "Use output.existing=extend to append new images and keep"),
        (spec_of("cf"), "1 added ('c'), 2 removed ('b', 'd')", "Use output.existing=extend"),
        (spec_of("bd", labels=["", "x"]), "1 with another label or column ('d'), 1 removed ('f')", ""),
        (spec_of("fdb"), "another order of images", "Choose another folder with name=..., or use output.existing=replace"),
    ],
    ids=["added", "removed too", "other labels", "another order"],
)
def test_a_folder_of_other_images_says_how_many_and_which(begun: Path, now: RunSpec, differences: str, remedy: str) -> None:
    before = stamps(begun)
    with pytest.raises(StoreError) as raised:
        open_folder(begun, now, "resume")
    said = f"{begun}: the folder holds another run, got {differences}. Expected the same options and images, to go on with it. "
    assert str(raised.value).startswith(said + remedy)
    assert stamps(begun) == before


def test_images_with_other_labels_are_refused_even_where_new_ones_may_come(begun: Path) -> None:
    with pytest.raises(StoreError, match=r"got 1 with another label or column \('d'\)\. Expected"):
        open_folder(begun, spec_of("bd", labels=["", "x"]), "extend")


def test_what_the_program_chose_for_the_first_images_holds_for_all(tmp_path: Path) -> None:
    chosen = frozenset({"output.images_per_shard"})
    run(tmp_path, replace(spec_of("bdf"), chosen=chosen))
    folder = run(tmp_path, replace(spec_of("abcdef", images_per_shard=100), chosen=chosen))
    assert folder.spec.images_per_shard == 2
    assert [shard.rows for shard in folder.missing] == [2, 1]
    with pytest.raises(StoreError, match=r"got output\.images_per_shard 100 \(in the folder 2\)\. Expected the same options"):
        open_folder(tmp_path, spec_of("abcdef", images_per_shard=100), "extend")


def test_rows_of_images_that_have_gone_stay_and_later_runs_do_not_ask_for_them(tmp_path: Path) -> None:
    run(tmp_path, spec_of("bdf"))
    run(tmp_path, spec_of("abf"))
    rows_are_those_of_their_keys(tmp_path, "bdfa")
    for existing in ("resume", "extend"):
        with open_folder(tmp_path, spec_of("abf"), existing) as again:
            assert again.missing == ()
    # It may come back.
    with open_folder(tmp_path, spec_of("abdf"), "resume") as again:
        assert again.missing == ()
    with pytest.raises(StoreError, match=r"got 1 removed \('a'\)"):
        open_folder(tmp_path, spec_of("bf"), "resume")


def test_a_stopped_run_is_finished_from_its_own_list_and_extended_in_one_go(tmp_path: Path) -> None:
    run(tmp_path, spec_of("bdfhj"), shards=1)
    kept = stamps(tmp_path)
    # One has gone before its row was made, which becomes a failed one.
    folder = run(tmp_path, spec_of("abcdefgij"), failed="h")
    assert [shard.part for shard in folder.missing] == [0, 0, 1, 1, 1]
    assert stamps(tmp_path).items() >= kept.items()
    rows_are_those_of_their_keys(tmp_path, "bdfhjacegi", failed="h")


def test_images_of_native_size_are_appended_too(tmp_path: Path) -> None:
    shapes = {"relu4_1": None}
    run(tmp_path, spec_of("bdf", shapes=shapes), failed="d")
    run(tmp_path, spec_of("abcdef", shapes=shapes), failed="ce")
    expected = make_values(spec_of("bdface", shapes=shapes))["relu4_1"]
    with open_run(tmp_path) as opened, h5py.File(tmp_path / "features.h5") as index:
        assert list(index["features/relu4_1"]) == ["000000000", "000000002", "000000003"]
        for row in (0, 2, 3):
            np.testing.assert_array_equal(opened["relu4_1"][row], expected[row])
        assert opened.images["status"].tolist() == ["ok", "failed", "ok", "ok", "failed", "failed"]


def test_a_run_that_is_open_while_it_is_extended_stays_what_it_was(tmp_path: Path) -> None:
    run(tmp_path, spec_of("bd"))
    with open_run(tmp_path) as opened:
        first = opened["relu4_1"][0]
        run(tmp_path, spec_of("abcd"))
        assert len(opened) == 2
        assert opened.images["label"].size == opened.images["key"].size == 2
        np.testing.assert_array_equal(opened["relu4_1"][0], first)
        # A process that opens it now sees what is there now; rows have not moved.
        again = pickle.loads(pickle.dumps(opened))
        assert len(again) == 4
        assert again.row("d") == opened.row("d") == 1
        again.close()


@pytest.mark.parametrize("is_lost", [False, True], ids=["with the manifest", "without it"])
def test_a_shard_of_another_extension_is_refused_and_kept(tmp_path: Path, is_lost: bool) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, keys in ((one, "abcd"), (other, "bdxy")):
        run(folder, spec_of("bd"))
        run(folder, spec_of(keys))
    shutil.copy(other / "shards/shard-part001-00000-of-00001.h5", one / "shards")
    if is_lost:
        (one / "manifest-part001.jsonl.gz").unlink()
    before = stamps(one)
    for existing in ("resume", "extend"):
        with pytest.raises(StoreError, match="is missing, damaged or" if is_lost else "a file of another run, got run digest"):
            open_folder(one, spec_of("abcd"), existing)
    assert stamps(one) == before


@pytest.mark.parametrize("damage", [b"", b"\x1f\x8b rubbish", None])
def test_a_lost_manifest_is_written_again_for_the_same_images_and_else_refused(tmp_path: Path, damage: bytes | None) -> None:
    run(tmp_path, spec_of("bdfh"), shards=1)
    manifest = tmp_path / "manifest.jsonl.gz"
    before, kept = manifest.read_bytes(), stamps(tmp_path)
    manifest.unlink()
    if damage is not None:
        manifest.write_bytes(damage)
    for now in ("bdf", "bdfx", "abdfh"):
        for existing in ("resume", "extend"):
            with pytest.raises(StoreError, match=r"a file of another run, got run digest|not in this run's plan of 3 shards"):
                open_folder(tmp_path, spec_of(now), existing)
    run(tmp_path, spec_of("bdfh"), "resume")
    assert manifest.read_bytes() == before
    run(tmp_path, spec_of("abdfh"))
    manifest.unlink()
    with pytest.raises(StoreError, match=r"manifest\.jsonl\.gz is missing, damaged or of another run, got shards of 2 parts\."):
        open_folder(tmp_path, spec_of("abdfh"), "resume")
    assert stamps(tmp_path).items() >= kept.items()


def test_a_list_holds_what_the_manifest_held(tmp_path: Path) -> None:
    odd = ['line\nbreak"', "caf\udce9.jpg", "名前/\\x.png", "", "\U0001f600"]
    columns = {"a": ("1", "", "é", "\udcff", "5"), "ü": tuple("vwxyz")}
    spec = spec_of(odd, metadata=columns)
    run(tmp_path, spec, shards=0)
    found = read_manifest(tmp_path / "manifest.jsonl.gz")
    assert found is not None
    assert found.images is not None
    assert dict(found.identity) == spec.identity
    assert (found.images.keys, found.images.labels) == (spec.manifest.keys, spec.manifest.labels)
    assert found.images.metadata == columns
    assert found.images.file_bytes.dtype == np.int64
    assert found.images.file_bytes.tolist() == spec.manifest.file_bytes.tolist()
    assert found.images.digest == spec.manifest.digest
    assert found.gone.tolist() == []


# -- Digests, verify and repair


NEW = [f"shards/shard-part001-0000{n}-of-00003.h5" for n in range(3)]


@pytest.mark.usefixtures("here")
def test_of_a_stopped_extension_the_missing_shards_are_named_and_the_rows_before_it_are_whole(
    begun: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(begun, tmp_path / "copy"))
    run(copy, spec_of("abcdefghi"), shards=1)
    result = verify(copy)
    assert lines(result) == {
        "features.h5": [f"{copy}: the run is not finished, got 3 of 5 shards and features.h5 over 3 of 9 rows"],
        **{name: [f"{name}: the file is missing, got no such file"] for name in NEW[1:]},
    }
    # There is nothing to repair, and the index is good for the rows that it has.
    assert repair(result) == []
    assert (copy / "features.h5").exists()
    flip(copy / NEW[0], chunk_place(copy / NEW[0], "relu4_1", 0))
    result = verify(copy)
    assert repair(result) == [NEW[0], f"SHA256SUMS: {NEW[0]}"]
    run(copy, spec_of("abcdefghi"), "resume")
    assert lines(verify(copy)) == {}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("name", "existing"), [("shards/shard-00000-of-00002.h5", "resume"), (NEW[1], "extend")])
def test_repair_removes_the_damaged_shard_of_any_part_and_the_same_bits_are_made_again(
    whole: Path, tmp_path: Path, name: str, existing: str
) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    flip(copy / name, chunk_place(copy / name, "relu4_1", 0))
    result = verify(copy)
    assert set(lines(result)) == {name}
    assert set(repair(result)) == {name, "features.h5", f"SHA256SUMS: {name}", "SHA256SUMS: features.h5"}
    folder = run(copy, spec_of("abcdefghi"), existing)
    assert [f"shards/{shard.file_name}" for shard in folder.missing] == [name]
    assert lines(verify(copy)) == {}
    assert everything(copy) == everything(whole)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["manifest.jsonl.gz", "manifest-part001.jsonl.gz"])
def test_a_damaged_or_lost_list_is_named(whole: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    flip(copy / name, 40)
    result = verify(copy)
    assert lines(result) == {name: [f"{name}: the manifest is damaged, got none of this run that agrees with its own digest"]}
    assert repair(result) == [f"SHA256SUMS: {name}"]
    (copy / name).unlink()
    assert lines(verify(copy)) == {name: [f"{name}: the file is missing, got no such file"]}
