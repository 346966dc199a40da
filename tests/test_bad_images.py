"""Bad images among good ones: every file gets one status with a reason, and no good one is touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import open_run
from pipeline.images import loader, reading
from pipeline.images.folder import list_folder
from pipeline.images.lists import read_list
from pipeline.images.loader import ImageLoader
from pipeline.images.resize import ResizeSpec, fit_canvas
from pipeline.records import ImageStatus

from .bad_images import EITHER, FAILED, NO_ROW, OK, Case, encode, make_corpus, picture, png, put
from .processes import environment

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="names and special files as on Unix")

REASON = re.compile(
    r"(empty|not an image|truncated|corrupt|too large|unsupported|out of memory|missing|unreadable|not a regular file): \S[^\n]*"
)


def load(path: Path) -> dict[str, ImageStatus]:
    manifest = list_folder(path) if path.is_dir() else read_list(path)
    prepare = partial(fit_canvas, spec=ResizeSpec((32, 32), "squash", "bilinear"))
    batches = ImageLoader(manifest, np.arange(len(manifest)), batch_size=8, workers=2, prepare=prepare)
    statuses = [status for batch in batches for status in batch.statuses]
    assert [status.index for status in statuses] == list(range(len(manifest)))
    return {manifest.keys[status.index]: status for status in statuses}


def check(cases: list[Case], errors: dict[str, str]) -> Counter[str]:
    """Holds the errors, key -> text, to what the corpus says; gives how many files became what."""
    assert set(errors) == {case.key for case in cases if case.outcome != NO_ROW}
    for case in cases:
        if case.outcome == NO_ROW:
            continue
        error = errors[case.key]
        assert case.outcome == EITHER or bool(error) == (case.outcome == FAILED), (case, error)
        assert error.startswith(case.reason), (case, error)
        assert not error or REASON.fullmatch(error), (case, error)
        assert error.isprintable(), (case, error)
        assert len(error) < 300, (case, error)
    return Counter(error.partition(":")[0] or OK for error in errors.values())


def test_one_bad_file_of_each_kind_has_its_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cases = make_corpus(tmp_path / "corpus", cuts=2, flips=2)
    found = check(cases, {key: status.error for key, status in load(tmp_path / "corpus").items()})
    assert {OK, "empty", "not an image", "truncated", "corrupt", "too large", "missing", "unreadable"} <= set(found)
    capfd.readouterr()


def run(folder: Path, name: str, cwd: Path) -> tuple[str, int]:
    """Runs the real command; gives what it said, and the most memory that it had, in bytes."""
    arguments = [f"data.dir={folder}", "network.weights=random", "data.size=32", "layers=[relu1_1]", "batch_size=auto"]
    command = [sys.executable, "-m", "pipeline.run", *arguments, f"name={name}", "runtime.workers=2"]
    with (cwd / f"{name}.txt").open("wb") as said:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment(PYTHONWARNINGS="error::ResourceWarning"), stdout=said, stderr=subprocess.STDOUT
        )
        watch = threading.Timer(900, process.kill)
        watch.start()
        _, code, usage = os.wait4(process.pid, 0)
        watch.cancel()
        process.returncode = os.waitstatus_to_exitcode(code)
    words = (cwd / f"{name}.txt").read_text(encoding="utf-8")
    assert process.returncode == 0, words
    return words, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
def test_hundreds_of_bad_files_leave_the_good_ones_of_a_run_untouched(tmp_path: Path) -> None:
    cases = make_corpus(tmp_path / "corpus", cuts=14, flips=10)
    # Bombs just below the limit are images: large ones, which share the room of one.
    for number in range(2):
        content = png(13_377, 13_377, 3, 13_377, (b"PLTE", b"\0\0\0\1\1\1"), (b"tRNS", bytes([number, 1])))
        cases.append(put(tmp_path / "corpus", f"bomb{number}.png", content))
    for case in cases:
        if case.key.startswith("good/"):
            (tmp_path / "alone" / "good").mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "corpus" / case.key, tmp_path / "alone" / case.key)
    rows = sum(case.outcome != NO_ROW for case in cases)
    assert rows >= 500
    _, alone_bytes = run(tmp_path / "alone", "alone", tmp_path)
    words, bytes_at_most = run(tmp_path / "corpus", "all", tmp_path)
    assert "Traceback" not in words
    assert not re.search(r"[^\n\r -\U0010ffff]", words.replace("\x1b[A", "")), "codes for the terminal"
    with open_run(tmp_path / "outputs" / "all") as everything, open_run(tmp_path / "outputs" / "alone") as alone:
        assert len(everything) == rows
        errors = dict(zip(everything.images["key"], everything.images["error"], strict=True))
        for status, error in zip(everything.images["status"], errors.values(), strict=True):
            assert status == (FAILED if error else OK)
        check(cases, errors)
        for key in alone.images["key"]:
            one, two = alone["relu1_1"][alone.row(key)], everything["relu1_1"][everything.row(key)]
            assert one.tobytes() == two.tobytes(), key
            assert np.isfinite(one).all()
        for row, error in enumerate(errors.values()):
            assert np.isnan(everything["relu1_1"][row]).all() == bool(error)
    # One bomb at full size is 0.5 GB of pixels and 0.7 GB in Pillow; the second waits for the first.
    assert bytes_at_most < alone_bytes + (2000 << 20)


def test_large_images_share_the_room_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LARGE_PIXELS", 100)
    monkeypatch.setattr(loader, "MAX_PIXELS", 2000)
    lock, inside, most = threading.Lock(), [0], [0]

    def prepare(pixels: Any) -> Any:
        with lock:
            inside[0] += pixels.shape[0] > 10
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        with lock:
            inside[0] -= pixels.shape[0] > 10
        return pixels

    for number in range(12):
        side = 30 if number % 3 else 8
        picture(number, side, side).save(tmp_path / f"{number}.png")
    manifest = list_folder(tmp_path)
    batches = list(ImageLoader(manifest, np.arange(12), batch_size=4, workers=6, prepare=prepare))
    assert [status.error for batch in batches for status in batch.statuses] == [""] * 12
    assert most[0] == 2


@pytest.mark.parametrize("change", ["cut", "grown", "overwritten", "replaced"])
def test_a_file_that_changes_while_it_is_read_fails_and_one_that_is_replaced_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = tmp_path / "a.png"
    content = encode(picture(0), "PNG")
    path.write_bytes(content)
    picture(1).save(tmp_path / "b.png")
    require, calls = reading.refuse_too_large, [0]

    def changing(size: int) -> None:
        require(size)
        calls[0] += size == len(content)
        # The file is open and about to be read.
        if size == len(content) and calls[0] == 1:
            if change == "replaced":
                path.with_suffix(".new").write_bytes(b"another file")
                path.with_suffix(".new").replace(path)
            else:
                with path.open("r+b") as file:
                    file.truncate(100) if change == "cut" else file.seek(0, os.SEEK_END if change == "grown" else os.SEEK_SET)
                    file.write(b"" if change == "cut" else content[:100])
                os.utime(path, ns=(0, 0))

    monkeypatch.setattr(reading, "refuse_too_large", changing)
    errors = {key: status.error for key, status in load(tmp_path).items()}
    # Who has it open keeps the old file.
    expected = "" if change == "replaced" else "unreadable: the file changed while it was read"
    assert errors == {"a.png": expected, "b.png": ""}
