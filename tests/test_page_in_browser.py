"""The page in a real browser: at the width of a phone and of a desk, light and dark, on paper. Debian's chromium, where it is."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report import render

from .test_pages import EVIL, make_contents

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Without these it asks its maker's servers for updates. Root needs --no-sandbox; the page is our own.
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="NO BROWSER here, so nobody has SEEN the page: apt install chromium"),
]


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine that hears what the page asks for."""
    heard: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", heard
    server.shutdown()
    server.server_close()


def browse(page: Path, folder: Path, *arguments: str) -> str:
    """Opens the page and gives what the browser says."""
    assert BROWSER
    ended = subprocess.run(
        [BROWSER, *QUIET, f"--user-data-dir={folder / 'browser'}", *arguments, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HOME": str(folder)},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + "\n".join(line for line in ended.stderr.splitlines() if "CONSOLE" in line)


def seen(page: Path, folder: Path, width: int, *arguments: str) -> np.ndarray:
    picture = folder / f"{width}.png"
    said = browse(page, folder, f"--window-size={width},1600", f"--screenshot={picture}", *arguments)
    assert "CONSOLE" not in said, said
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def page(tmp_path: Path, asked: tuple[str, list[str]]) -> Path:
    """All that a hostile folder can bring, and a name that asks for a picture from the server."""
    contents = make_contents(36, text="&".join(EVIL).replace("http://evil.example", asked[0]))
    path = tmp_path / "report.html"
    path.write_text(render({**contents, "name": "it's a <run>"}), encoding="utf-8")
    return path


def test_it_opens_without_a_word_and_asks_for_nothing(page: Path, tmp_path: Path, asked: tuple[str, list[str]]) -> None:
    # With the policy taken away, so that the escapes alone must hold.
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"<meta http-equiv.*?>", "", page.read_text(encoding="utf-8")), encoding="utf-8")
    for path in (page, bare):
        said = browse(path, tmp_path, "--dump-dom")
        assert "CONSOLE" not in said, said
        assert "<title>it's a &lt;run&gt; – features</title>" in said
        assert "<script" not in said
    assert asked[1] == []
    # The server does hear what a page asks for.
    (tmp_path / "asking.html").write_text(f'<img src="{asked[0]}/heard">')
    browse(tmp_path / "asking.html", tmp_path, "--dump-dom")
    assert asked[1] == ["/heard"]


def test_nothing_is_wider_than_a_phone(page: Path, tmp_path: Path) -> None:
    # No script in the page itself: one is added that says how wide it is.
    measure = tmp_path / "measured.html"
    text = re.sub(r"<meta http-equiv.*?>", "", page.read_text(encoding="utf-8"))
    frame = '<iframe id="f" width="390" height="800" src="page.html"></iframe><script>f.onload = () => { const d = '
    frame += "f.contentDocument.documentElement; document.title = d.scrollWidth + ' of ' + d.clientWidth; }</script>"
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    measure.write_text(f"<title>?</title>{frame}", encoding="utf-8")
    said = browse(measure, tmp_path, "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom")
    wide = re.search(r"<title>(\d+) of (\d+)</title>", said)
    assert wide, said[:500]
    assert int(wide[1]) <= int(wide[2]) <= 390


def test_it_is_light_or_dark_as_the_reader_likes_and_never_empty(page: Path, tmp_path: Path) -> None:
    light = seen(page, tmp_path, 1200)
    dark = seen(page, tmp_path, 1200, "--blink-settings=preferredColorScheme=0")
    assert light[2, 2].min() > 240
    assert dark[2, 2].max() < 40
    for shown in (light, dark, seen(page, tmp_path, 500)):
        # Text and pictures all the way down.
        for part in np.array_split(shown, 4):
            assert part.reshape(-1, 3).std(0).max() > 8


def test_it_prints(page: Path, tmp_path: Path) -> None:
    paper = tmp_path / "page.pdf"
    assert "CONSOLE" not in browse(page, tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    content = paper.read_bytes()
    assert content.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20
