"""Addresses on the command line: told from paths, refused where nothing reaches them; attempts and their errors."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.config import check_options
from pipeline.errors import ImageError, OptionError
from pipeline.images.seen import seen_picture
from pipeline.plotting import find_image
from pipeline.records import ImageStatus
from pipeline.storage import connection, objects
from pipeline.storage.address import Address, is_address, to_address
from pipeline.storage.connection import StorageError, attempt
from pipeline.storage.range_file import BLOCK_BYTES, RangeFile
from pipeline.storage.remote_path import RemotePath
from pipeline.store.reader import open_run

from .test_config import values
from .test_layout import PACKAGE

S3 = Address("s3://bucket/key")


def given(**changes: Any) -> dict[str, Any]:
    return values(**{name.replace(".", "__"): value for name, value in changes.items()})


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("s3://b/k", True), ("memory://b", True), ("C:\\imgs", False), ("c://imgs", False), ("imgs/a:b", False), ("/s3://x", False)],
)
def test_an_address_is_told_from_a_path(text: str, is_one: bool) -> None:
    assert is_address(text) is is_one


def test_an_address_has_the_parts_of_a_path() -> None:
    address = to_address("S3://bucket/a/b.csv//")
    assert isinstance(address, Address)
    assert (str(address), address.protocol, address.name, address.stem) == ("S3://bucket/a/b.csv", "s3", "b.csv", "b")
    assert (str(address.parent), str(address.parent.parent.parent)) == ("S3://bucket/a", "S3://bucket")
    assert str(address.parent / "c") == "S3://bucket/a/c"
    assert to_address("file:///tmp/x") == Path("/tmp/x")


def test_options_take_addresses_and_name_the_run_after_them(tmp_path: Path) -> None:
    values_given = given(**{"data.dir": "memory://bucket/flowers/", "output.dir": "memory://bucket/outputs"})
    options = check_options(values_given)
    assert isinstance(options.folder, RemotePath)
    assert str(options.folder) == "memory://bucket/outputs/flowers-vgg19"
    # The same object, since it knows what is at the address.
    assert options.folder.mirror is check_options(values_given).folder.mirror
    scratch = check_options(given(**{**dict_of(values_given), "output.scratch": str(tmp_path)})).folder
    assert isinstance(scratch, RemotePath)
    assert scratch.mirror.home is not None
    assert scratch.mirror.home.parent == tmp_path
    parts = [check_options(given(**{**dict_of(values_given), "part": f"{k}/2"})).folder for k in (1, 2)]
    assert len({part.mirror.home for part in parts if isinstance(part, RemotePath)}) == 2
    listed = check_options(given(**{"data.dir": None, "data.list": "memory://bucket/lists/birds.csv"}))
    assert listed.name == "birds-vgg19"
    assert check_options(given(**{"data.dir": "x", "output.dir": f"file://{tmp_path}"})).folder == tmp_path / "x-vgg19"


def dict_of(plain: dict[str, Any]) -> dict[str, Any]:
    return {"data.dir": plain["data"]["dir"], "output.dir": plain["output"]["dir"]}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        (
            "data.dir",
            "s4://b/imgs",
            r"^data\.dir: an address of an unknown kind, got 's4://b/imgs'\. Expected e\.g\. .*s3",
        ),
        ("output.dir", "nonsense://x", r"^output\.dir: an address of an unknown kind, got 'nonsense://x'"),
        (
            "output.dir",
            "gs://b/outputs",
            r"^output\.dir: the package for gs:// is not installed, .* Expected gcsfs\. pip ",
        ),
        ("data.list", "s3://", r"^data\.list: names no place, got 's3://'\. Expected e\.g\. s3://bucket/folder"),
        ("data.tar", "s3://b/x.tar", r"^data\.tar: read from this machine only, got 's3://b/x\.tar'\. Expected a path"),
        ("data.tfds", "coco", r"^data\.dir: read from this machine only, got 'memory://sets'\. Expected a path"),
        ("output.scratch", "/fast", r"^output\.scratch: nothing is made there, got '/fast'\. Expected it with an address"),
        ("output.scratch", "s3://b/x", r"^output\.scratch: not a folder of this machine, got 's3://b/x'"),
        ("output.scratch", "", r"^output\.scratch: not a valid value, got ''\. Expected a path"),
    ],
)
def test_an_address_that_nothing_reaches_is_refused_at_once(
    option: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "gcsfs" else found(name, *rest))
    with pytest.raises(OptionError, match=words):
        check_options(given(**{"data.dir": {"data.tar": None, "data.tfds": "memory://sets"}.get(option, "imgs"), option: value}))


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(
        OptionError, match=r"^run: nothing here reads addresses, got 's3://b/x'.*pip install 'deep-feature-pipeline\[s3\]'"
    ):
        open_run("s3://b/x")
    with pytest.raises(OptionError, match=r"pip install fsspec\.$"):
        open_run("memory://b/x")


def test_a_wrong_kind_of_address_is_answered_in_a_second_without_tensorflow(tmp_path: Path) -> None:
    began = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline.run", "data.dir=s4://b/imgs"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("error: data.dir: an address of an unknown kind")
    assert " tensorflow" not in found.stderr
    assert time.monotonic() - began < 10


def test_a_run_on_this_machine_loads_no_fsspec(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.stored_runs import make_spec, write_run; from pathlib import Path\n"
        "from pipeline.store.reader import open_run; import pipeline.images.loader, pipeline.image_list, pipeline.job\n"
        f"write_run(Path({str(tmp_path / 'run')!r}), make_spec()); open_run({str(tmp_path / 'run')!r})['conv1_1'][:]\n"
        "sys.exit('fsspec' in sys.modules or 's3fs' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


class Refusing:
    """Fails some times, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def _coded(kind: type[Exception], code: str, *arguments: Any) -> Exception:
    error, cause = kind(*arguments), Exception(code)
    cause.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
    error.__cause__ = cause
    return error


def test_what_fails_for_a_while_is_tried_again_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(connection.time, "sleep", slept.append)
    busy = OSError(errno.EBUSY, "Please reduce your request rate.")
    assert attempt(Refusing(busy, TimeoutError(), ConnectionResetError()), S3) == "done"
    assert len(slept) == 3
    assert slept[0] < slept[1] < slept[2]


def test_what_keeps_failing_is_the_storage_s_fault_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.time, "sleep", lambda seconds: None)
    work = Refusing(*[OSError(errno.EBUSY, "Please reduce\nyour request rate.")] * 99)
    with pytest.raises(StorageError) as caught:
        attempt(work, S3)
    assert 99 - len(work.errors) == len(connection.PAUSES_SECONDS) + 1
    assert caught.value.strerror == "it does not answer as it should ([Errno 16] Please reduce your request rate.)"
    assert caught.value.filename == "s3://bucket/key"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (FileNotFoundError("x"), FileNotFoundError, "no such object"),
        (PermissionError("Access Denied"), PermissionError, "permission denied"),
        (_coded(FileNotFoundError, "NoSuchBucket", "x"), StorageError, "there is no such bucket"),
        (_coded(PermissionError, "ExpiredToken", "it expired"), StorageError, "it refuses the credentials (it expired)"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate"), StorageError, "no credentials were found"),
        (OSError(errno.EINVAL, "bad request"), OSError, "[Errno 22] bad request"),
        (ImportError("Install gcsfs to access GCS"), StorageError, "a package is missing (Install gcsfs to access GCS)"),
        (NotImplementedError("read only"), OSError, "NotImplementedError: read only"),
    ],
)
def test_what_will_not_mend_is_not_tried_again(
    error: Exception, kind: type[OSError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(kind) as caught:
        attempt(Refusing(error), S3)
    assert type(caught.value) is kind
    assert caught.value.strerror == words


@pytest.mark.parametrize("error", [ImportError("Install gcsfs"), type("DefaultCredentialsError", (Exception,), {})("log in")])
def test_a_storage_that_cannot_even_be_begun_with_is_an_error_of_the_storage(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refusing(address: Address) -> Any:
        raise error

    monkeypatch.setattr(connection, "_make", refusing)
    (tmp_path / "x").write_bytes(b"x")
    address = Address("gs://nowhere/x")
    for work in (
        lambda: list(objects.list_objects(address)),
        lambda: objects.look_at(address),
        lambda: objects.read(address),
        lambda: objects.write(b"x", address),
        lambda: objects.create(b"x", address),
        lambda: objects.upload(tmp_path / "x", address),
        lambda: objects.download(address, tmp_path / "y", 1),
        lambda: objects.remove([address]),
        lambda: objects.remove([address] * 2),
        lambda: objects.unfinished_uploads(Address("s3://nowhere/x")),
        lambda: objects.abandon(Address("s3://nowhere/x"), ["1"]),
    ):
        with pytest.raises(StorageError):
            work()


class Remembering(MemoryFileSystem):
    """As many implementations do: it lists a folder once, in the cache that fsspec gives it or in one of its own."""

    protocol = "remembering"
    store: ClassVar[dict[str, Any]] = {}

    def __init__(self, **options: Any) -> None:
        assert not options
        super().__init__()
        self.own: dict[str, Any] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("remembering://").strip("/")

    def find(self, path: str, *rest: Any, **how: Any) -> Any:
        found = self.dircache.get(path) or self.own.get(path) or super().find(path, *rest, **how)
        self.dircache[path] = self.own[path] = found
        return found

    def info(self, path: str, **how: Any) -> Any:
        self.own[path] = self.own.get(path) or super().info(path, **how)
        return self.own[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.own.clear()


def test_what_others_have_changed_is_seen_in_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_open", connection._Open())
    fsspec.register_implementation("remembering", Remembering, clobber=True)
    folder = Address("remembering://bucket/x")
    for number in range(1, 4):
        Remembering().pipe_file(f"/bucket/x/{number}", bytes(number))
        Remembering().pipe_file("/bucket/x/1", bytes(number))
        (page,) = objects.list_objects(folder)
        assert len(page) == number
        assert objects.look_at(folder / "1").size == number
    assert connection.file_system(folder)[0] is not fsspec.filesystem("remembering")


def test_an_image_at_an_address_that_nothing_reaches_any_more_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(address: Address) -> Any:
        raise ImportError("Install gcsfs to access GCS")

    monkeypatch.setattr(connection, "_make", refusing)
    run: Any = SimpleNamespace(
        attributes={"data_root": "gs://nowhere/imgs", "data_source": "address"},
        images={"key": np.array(["a.jpg"], object), "bytes": np.array([1])},
    )
    with pytest.raises(ImageError, match=r"^unreadable: gs://nowhere/imgs/a\.jpg: the storage refuses, got a package is missing"):
        seen_picture(find_image(run, 0), ImageStatus(0, "", 1, 1, 1, ""), None, np.zeros(3), False)


def test_a_file_of_ranges_reads_as_the_file_would(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.storage.objects import look_at, write

    address, data = Address("memory://bucket/file"), bytes(range(256)) * 8192
    write(data, address)
    system, asked = fsspec.filesystem("memory"), []
    cat_file = type(system).cat_file

    def noting(self: Any, path: str, start: int | None = None, end: int | None = None, **how: Any) -> bytes:
        asked.append((start, end))
        return bytes(cat_file(self, path, start=start, end=end, **how))

    monkeypatch.setattr(type(system), "cat_file", noting)
    file = RangeFile(address, look_at(address), lambda error: None).fetch_ends()
    assert asked == [(0, BLOCK_BYTES), (len(data) - 2 * BLOCK_BYTES, len(data))]
    for start, count in ((0, 10), (BLOCK_BYTES - 3, 6), (5, 3 * BLOCK_BYTES), (len(data) - 4, 99), (len(data) + 5, 1)):
        file.seek(start)
        assert file.read(count) == data[start : start + count]
    known = len(asked)
    other = file.again()
    assert other.read(BLOCK_BYTES) == data[:BLOCK_BYTES]
    assert len(asked) == known
    assert file.seek(-5, io.SEEK_END) == len(data) - 5
