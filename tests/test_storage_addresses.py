"""Addresses on the command line: told from paths, refused where nothing reaches them."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from pipeline import storage
from pipeline.config import check_options
from pipeline.errors import OptionError
from pipeline.storage import BLOCK_BYTES, RemotePath, is_address, path_of
from pipeline.store.reader import open_run

from .object_store import put_files
from .stored_runs import make_spec, write_run
from .test_config import values


def given(**changes: Any) -> dict[str, Any]:
    return values(**{name.replace(".", "__"): value for name, value in changes.items()})


def test_an_address_is_told_from_a_path_and_has_the_parts_of_one() -> None:
    texts = {"s3://b/k": True, "C:\\imgs": False, "c://imgs": False, "imgs/a:b": False, "/s3://x": False}
    assert {text: is_address(text) for text in texts} == texts
    path = path_of("run", "MEMORY://bucket/a/b.csv//")
    assert isinstance(path, RemotePath)
    assert (str(path), path.protocol, path.name, path.stem) == ("memory://bucket/a/b.csv", "memory", "b.csv", "b")
    assert [str(other) for other in (path.parent.parent.parent, path.parent / "c")] == ["memory://bucket", "memory://bucket/a/c"]
    assert [path_of("run", text) for text in ("file:///tmp/x", "~/x")] == [Path("/tmp/x"), Path.home() / "x"]


def test_options_take_addresses_and_name_the_run_after_them(tmp_path: Path) -> None:
    places = {"data.dir": "memory://bucket/flowers/", "output.dir": "memory://bucket/outputs"}
    folder = check_options(given(**places, **{"output.scratch": str(tmp_path)})).folder
    assert isinstance(folder, RemotePath)
    assert str(folder) == "memory://bucket/outputs/flowers-vgg19"
    assert folder.scratch.parent == tmp_path
    assert (folder / "shards/x.h5").scratch == folder.scratch / "shards/x.h5"
    parts = [check_options(given(**places, part=f"{k}/2")).folder for k in (1, 2)]
    assert len({part.scratch for part in parts if isinstance(part, RemotePath)}) == 2
    assert check_options(given(**{"data.dir": None, "data.list": "memory://bucket/lists/birds.csv"})).name == "birds-vgg19"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("data.dir", "s4://b/imgs", r"^data\.dir: nothing reads such an address here \(Protocol not known: s4\), got 's4://b/im"),
        ("output.dir", "gs://b/o", r"^output\.dir: nothing reads .*gcsfs.* Run `pip install 'deep-feature-pipeline\[gcs\]'`"),
        ("data.tar", "s3://b/x.tar", r"^data\.tar: not a valid value, got 's3://b/x\.tar'\. Expected .* on this machine\."),
        ("data.tfds", "coco", r"^data\.dir: read from this machine only, got 'memory://sets'\. Expected a path"),
        ("output.scratch", "s3://b/x", r"^output\.scratch: not a valid value, got 's3://b/x'\. Expected a folder of this mach"),
        ("output.scratch", "", r"^output\.scratch: not a valid value, got ''\. Expected a folder"),
    ],
)
def test_an_address_that_nothing_reaches_is_refused_at_once(
    option: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(OptionError, match=words):
        check_options(given(**{"data.dir": {"data.tar": None, "data.tfds": "memory://sets"}.get(option, "imgs"), option: value}))


def test_without_fsspec_the_extra_is_named_and_a_run_on_this_machine_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(OptionError, match=r"^run: nothing reads such an address here .*`pip install '.*\[s3\]'"):
        open_run("s3://b/x")
    write_run(tmp_path, make_spec())
    with open_run(tmp_path) as run:
        assert run["conv1_1"][:].shape == (10, 5, 4, 3)


def test_an_upload_whose_end_was_answered_too_late_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_SECONDS", (0, 0))
    late = type("NoSuchUpload", (FileNotFoundError,), {})
    assert RemotePath("memory://bucket/key")._ask(Mock(side_effect=[late(), late(), "done"])) == "done"


def test_a_file_at_an_address_reads_as_the_file_would(monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = RemotePath("memory://bucket/file"), bytes(range(256)) * 8192
    put_files("memory://bucket", {"file": data})
    asked, pread = [], RemotePath.pread

    def noting(self: RemotePath, size: int, position: int) -> bytes:
        asked.append((size, position))
        return pread(self, size, position)

    monkeypatch.setattr(RemotePath, "pread", noting)
    assert list(storage.read_ahead([path])) == [path]
    assert asked == [(BLOCK_BYTES, 0), (BLOCK_BYTES, len(data) - BLOCK_BYTES)]
    file = path.ranges()
    for start, count in ((0, 10), (BLOCK_BYTES - 3, 6), (5, 9), (len(data) - 4, 99), (len(data) + 5, 1)):
        file.seek(start)
        assert file.read(count) == data[start : start + count]
    # Only what goes into the second block.
    assert len(asked) == 3
    assert file.seek(-5, io.SEEK_END) == len(data) - 5
    with path.open("rb") as whole:
        assert whole.read() == data
