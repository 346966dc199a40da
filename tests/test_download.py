"""Downloads, from a server of our own that misbehaves in the ways servers do."""

import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import WeightsError
from pipeline.network import known_weights, weights
from pipeline.network.known_weights import KnownFile
from pipeline.network.weights import download_file

CONTENT = bytes(range(256)) * 4000
KNOWN = KnownFile("vgg19", "keras", False, "vgg19/some.h5", len(CONTENT), hashlib.md5(CONTENT).hexdigest())
# When the test of a server that does not answer is over.
RELEASED = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "missing":
            self.send_error(404)
            return
        if kind == "silent":
            RELEASED.wait(10)
            return
        self.send_response(200)
        if kind != "unsized":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write({"cut": CONTENT[:5000], "wrong": CONTENT[::-1]}.get(kind, CONTENT))

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    RELEASED.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    RELEASED.set()
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(address: str, target: Path, *, progress: bool = False) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(known_weights.BASE_URLS, "keras", address)
        patch.setattr(weights, "TIMEOUT_SECONDS", 0.3)
        download_file(KNOWN, target, progress=progress)


def refusal(address: str, target: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        fetch(address, target)
    message = str(caught.value)
    assert "\n" not in message
    assert KNOWN.words in message
    assert address in message
    # Neither the file nor a part of it is left.
    assert not target.parent.is_dir() or list(target.parent.iterdir()) == []
    return message


@pytest.mark.parametrize(("kind", "progress"), [("whole", True), ("unsized", False)])
def test_a_whole_file_appears_under_its_name(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, progress: bool
) -> None:
    target = tmp_path / "new" / "folder" / "some.h5"
    fetch(f"{address}/{kind}", target, progress=progress)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    (tmp_path / "plain").touch()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert ("some.h5: 100%" in capsys.readouterr().err) == progress


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "got HTTP Error 404: Not Found"),
        ("cut", "got another file, or a part of it: 5,000 bytes"),
        ("wrong", "got another file, or a part of it: 1,024,000 bytes"),
        ("silent", "timed out. Expected"),
    ],
)
def test_a_download_that_goes_wrong_says_how_and_leaves_nothing(address: str, tmp_path: Path, kind: str, words: str) -> None:
    message = refusal(f"{address}/{kind}", tmp_path / "weights" / "some.h5")
    assert words in message
    assert f"to {tmp_path / 'weights' / 'some.h5'}, got" in message
    assert "Put that file there by hand, or run again with network.weights=random" in message


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_named(
    monkeypatch: pytest.MonkeyPatch, address: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match=r"cannot download .* to .*some\.h5, got \[Errno .*Put that file there by hand"):
        fetch(f"{address}/whole", tmp_path / "file" / "some.h5")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert "No space left on device" in refusal(f"{address}/whole", tmp_path / "weights" / "some.h5")
