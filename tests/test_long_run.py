"""A run over many images: memory and open files stay as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import open_run

from .killed_runs import partial_files
from .processes import command, environment

IMAGES = 20_000
DIFFERENT = 300
ROWS_PER_SHARD = 250


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory and open files of a process are read from Linux' /proc")
def test_memory_and_open_files_do_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    folder, draw = tmp_path / "imgs", np.random.default_rng(0)
    folder.mkdir()
    for number in range(IMAGES):
        path = folder / f"{number:05d}.{'png' if number % 2 else 'jpg'}"
        if number < DIFFERENT:
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        else:
            os.link(folder / f"{number % DIFFERENT:05d}{path.suffix}", path)
    for number in range(0, IMAGES, 1000):
        (folder / f"{number:05d}.jpg").unlink()
        (folder / f"{number:05d}.jpg").write_bytes(b"")
    options = ["data.dir=imgs", "network.weights=random", "data.size=32", "layers=[pool1]", "output.dtype=float16", "name=run"]
    arguments = command(*options, f"output.images_per_shard={ROWS_PER_SHARD}", "batch_size=32")
    samples: list[tuple[int, int, int]] = []  # finished shards, resident bytes, open files
    with (
        (tmp_path / "said.txt").open("w") as said,
        subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stderr=said) as process,
    ):
        while process.poll() is None:
            done = len(list((tmp_path / "outputs/run/shards").glob("*.h5")))
            if 0 < done < IMAGES // ROWS_PER_SHARD:
                # Where there is no line the process has just ended.
                with suppress(OSError, IndexError):
                    opened = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
                    resident = Path(f"/proc/{process.pid}/status").read_text().split("VmRSS:")[1].split()[0]
                    samples.append((done, int(resident) * 1024, opened))
            time.sleep(0.1)
    assert process.returncode == 0, (tmp_path / "said.txt").read_text()
    shards = IMAGES // ROWS_PER_SHARD
    second = [sample for sample in samples if shards / 4 <= sample[0] < shards / 2]
    last = [sample for sample in samples if shards * 3 / 4 <= sample[0]]
    assert min(len(second), len(last)) >= 5
    before, after = (float(np.median([resident for _, resident, _ in part])) for part in (second, last))
    files = [sorted({opened for _, _, opened in part}) for part in (second, last)]
    print(f"resident: {before / 1e6:.1f} MB in the second quarter, {after / 1e6:.1f} MB in the last; open files: {files}")
    assert after < 1.05 * before
    # One shard is being written and one may be finishing.
    assert max(files[1]) <= max(files[0]) + 1
    with open_run(tmp_path / "outputs/run") as run:
        assert len(run) == IMAGES
        assert int((run.images["status"] == "failed").sum()) == IMAGES // 1000
        # Hard links of one image have the same features, wherever in the run they come.
        np.testing.assert_array_equal(run["pool1"][7], run["pool1"][IMAGES - DIFFERENT + 7 - IMAGES % DIFFERENT])
    assert partial_files(tmp_path / "outputs") == []
