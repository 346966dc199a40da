"""Extending a run with the whole program: what is stored, said and refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import open_run
from pipeline.config import check_options
from pipeline.errors import StoreError
from pipeline.report import Report
from pipeline.store.verification import verify_folder

from .test_config import values


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Callable[[Path, str], None]:
    """Puts small pictures into a folder, by their letters."""
    with Image.open(sorted(photographs.glob("*/*.jpg"))[0]) as whole:
        pixels = np.asarray(whole.convert("RGB"))

    def put(folder: Path, letters: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for letter in letters:
            place = ord(letter) - ord("a")
            Image.fromarray(pixels[3 * place : 3 * place + 40 + place, 5 * place : 5 * place + 50]).save(folder / f"{letter}.png")

    return put


@pytest.fixture
def extract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thin_weights: Callable[..., Any]) -> Callable[..., Report]:
    """Runs the program in this process, as the command does once its options are checked."""
    from pipeline import job

    def call(name: str = "run", existing: str = "resume", **changes: Any) -> Report:
        settings = {
            "data__dir": str(tmp_path / "imgs"),
            "data__size": 32,
            "layers": ["relu1_1", "pool2"],
            "network__weights": "random",
            "output__dir": str(tmp_path / "outputs"),
            "output__existing": existing,
            "output__images_per_shard": 2,
            "runtime__device": "cpu",
            "name": name,
            **changes,
        }
        return job.run(check_options(values(**settings)))

    return call


def assert_same_rows(run: Path, other: Path) -> None:
    """Holds features, bit for bit, and tables of a run to those of another, by their keys."""
    with open_run(run) as one, open_run(other) as fresh:
        rows = [fresh.row(key) for key in one.images["key"]]
        for layer in ("relu1_1", "pool2"):
            np.testing.assert_array_equal(one[layer][:].view(np.uint32), fresh[layer][rows].view(np.uint32))
        for column in one.images:
            assert one.images[column].tolist() == fresh.images[column][rows].tolist(), column


def test_added_rows_are_those_of_a_run_over_everything(
    tmp_path: Path, pictures: Callable[[Path, str], None], extract: Callable[..., Report]
) -> None:
    images = tmp_path / "imgs"
    pictures(images, "bdf")
    extract()
    first_report = (tmp_path / "outputs/run/report.json").read_bytes()
    shards = {path: (path.stat().st_ino, path.read_bytes()) for path in (tmp_path / "outputs/run/shards").iterdir()}
    pictures(images, "aceg")
    (images / "h.png").write_bytes(b"")
    with pytest.raises(StoreError, match=r"got 5 added \('a\.png', 'c\.png', .* Use output\.existing=extend"):
        extract()
    report = extract(existing="extend")
    assert (report.rows, report.rows_now, report.rows_added, report.failed) == (8, 5, 5, 1)
    log = (tmp_path / "outputs/run/run.log").read_text()
    for words in ("extend: 5 new images after the 3 of the run", "3 finished by an earlier run", "5 added to it"):
        assert words in log, words
    stored = json.loads((tmp_path / "outputs/run/report.json").read_text())
    assert (stored["rows"], stored["rows_added"]) == (8, 5)
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in shards} == shards
    extract("fresh")
    with open_run(tmp_path / "outputs/run") as extended:
        assert "".join(key[0] for key in extended.images["key"]) == "bdfacegh"
    assert_same_rows(tmp_path / "outputs/run", tmp_path / "outputs/fresh")
    # Nothing is left to do, by any name.
    before = (tmp_path / "outputs/run/report.json").read_bytes()
    report = extract(existing="extend")
    assert (report.rows, report.rows_now, report.rows_added, report.device) == (8, 0, 0, "none")
    assert (tmp_path / "outputs/run/report.json").read_bytes() == before
    # As a run leaves it that was killed just after the index was there.
    (tmp_path / "outputs/run/report.json").write_bytes(first_report)
    extract()
    assert json.loads((tmp_path / "outputs/run/report.json").read_text())["rows"] == 8


def test_an_image_changed_since_is_named_and_one_gone_is_counted(
    tmp_path: Path, pictures: Callable[[Path, str], None], extract: Callable[..., Report]
) -> None:
    images = tmp_path / "imgs"
    pictures(images, "bdf")
    extract()
    picture = (images / "b.png").read_bytes()
    pictures(images, "a")
    # Written later, of the same size; of another size, as if it had been written before.
    for content, seconds in ((picture[:-1] + b"x", 2**31), (picture + b"x", 5)):
        (images / "b.png").write_bytes(content)
        os.utime(images / "b.png", (seconds, seconds))
        with pytest.raises(StoreError, match="an image has changed since its features were made, got another content of 'b"):
            extract(existing="extend")
    (images / "b.png").write_bytes(picture)
    (images / "d.png").unlink()
    report = extract(existing="extend")
    assert (report.rows, report.rows_added, report.failed) == (4, 1, 0)
    log = (tmp_path / "outputs/run/run.log").read_text()
    assert "extend: 1 image of the run no longer there, e.g. 'd.png': finished rows are kept, others will fail\n" in log
    with pytest.raises(StoreError, match=r"the folder holds another run, got output\.dtype float16 \(in the folder floa"):
        extract(existing="extend", output__dtype="float16")


def test_a_list_of_images_is_extended_with_its_columns(
    tmp_path: Path, pictures: Callable[[Path, str], None], extract: Callable[..., Report]
) -> None:
    pictures(tmp_path / "imgs", "abcd")
    listing = tmp_path / "list.csv"
    listing.write_text("path,label,author\nimgs/c.png,one,x\nimgs/a.png,two,y\n")
    settings = {"data__dir": None, "data__list": str(listing)}
    extract(**settings)
    listing.write_text("path,label,author\nimgs/d.png,one,z\nimgs/c.png,one,x\nimgs/../imgs/b.png,,w\nimgs/a.png,two,y\n")
    extract(existing="extend", **settings)
    with open_run(tmp_path / "outputs/run") as opened:
        assert opened.images["key"].tolist() == ["imgs/c.png", "imgs/a.png", "imgs/d.png", "imgs/b.png"]
        assert opened.images["author"].tolist() == ["x", "y", "z", "w"]
        assert opened.images["label"].tolist() == ["one", "two", "one", ""]
        assert (opened.images["status"] == "ok").all()
    listing.write_text("path,label\nimgs/d.png,one\nimgs/c.png,one\nimgs/b.png,\nimgs/a.png,two\n")
    with pytest.raises(StoreError, match=r"got columns of data\.list none \(in the folder author\)"):
        extract(existing="extend", **settings)


@pytest.mark.parametrize(("kind", "existing"), [("unreadable", "extend"), ("truncated", "resume")])
def test_an_image_that_could_not_be_read_is_tried_again_by_the_same_command(
    kind: str, existing: str, tmp_path: Path, pictures: Callable[[Path, str], None], extract: Callable[..., Report]
) -> None:
    images, run = tmp_path / "imgs", tmp_path / "outputs/run"
    pictures(images, "abd")
    (images / "b.png").write_bytes(b"no picture")
    if kind == "unreadable":
        (images / "c.png").symlink_to("c.png")
    else:
        pictures(images, "c")
        (images / "c.png").write_bytes((images / "c.png").read_bytes()[:60])
    assert extract().failed == 2
    with open_run(run) as opened:
        assert opened.images["error"][2].startswith(f"{kind}: ")
    # Neither can be used yet.
    assert extract(existing=existing).rows_now == 0

    (images / "c.png").unlink()
    pictures(images, "c")
    first = min((run / "shards").iterdir())
    untouched = first.stat().st_ino, first.read_bytes()
    report = extract(existing=existing)
    assert (report.rows, report.rows_now, report.failed) == (4, 2, 1)
    assert "can be read now or changed, e.g. " in (run / "run.log").read_text()
    assert (first.stat().st_ino, first.read_bytes()) == untouched
    assert verify_folder(run, 1).count == 0
    assert extract(existing=existing).rows_now == 0
    extract("fresh")
    assert_same_rows(run, tmp_path / "outputs/fresh")
