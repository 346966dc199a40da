"""Disks that refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.store.run_folder import open_folder
from pipeline.store.writer import Writer

from .processes import run_python
from .stored_runs import make_spec, make_statuses, make_values, put_rows, write_run


def test_a_folder_removed_under_the_run_is_one_line(tmp_path: Path) -> None:
    spec = make_spec()
    with open_folder(tmp_path / "run", spec, "resume") as opened:
        writer = Writer(tmp_path / "run", spec, opened.missing, 2, opened.digests())
        put_rows(writer, range(3), make_values(spec), make_statuses(spec))
        (tmp_path / "run").rename(tmp_path / "gone")
        with pytest.raises(StoreError, match=r"\.h5\.partial: it cannot be written, got ENOENT "):
            put_rows(writer, range(3, 10), make_values(spec), make_statuses(spec))
        writer.abort()


FULL = """
import resource, sys
from pathlib import Path
from tests.stored_runs import *
from pipeline.errors import StoreError
folder, spec = Path(sys.argv[1]), make_spec(300, {"a": (1, 1, 4), "b": (2, 2, 3)}, images_per_shard=100)
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_run(folder, spec)
    except StoreError as error:
        print(error, *folder.rglob("*.partial"))
"""


def test_a_full_disk_is_one_line_and_the_run_goes_on_where_there_is_room(tmp_path: Path) -> None:
    spec = make_spec(300, {"a": (1, 1, 4), "b": (2, 2, 3)}, images_per_shard=100)
    write_run(tmp_path / "whole", spec)
    index_bytes = (tmp_path / "whole/features.h5").stat().st_size
    ended = run_python(FULL, tmp_path / "run", 100, 15_000, 40_000, index_bytes - 1)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    for line, name in zip(lines, ("manifest.jsonl.gz", *2 * [".h5.partial"], "features.h5"), strict=True):
        assert f"{name}: it cannot be written, got EFBIG " in line
    write_run(tmp_path / "run", spec)
    assert (tmp_path / "run/features.h5").stat().st_size == index_bytes
