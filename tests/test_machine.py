"""What the machine has: also where a container or a scheduler allows less of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import machine


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_group(folder: Path, most: str, taken: int, stat: str = "anon 1\n") -> None:
    write(folder / "memory.max", f"{most}\n")
    write(folder / "memory.current", f"{taken}\n")
    write(folder / "memory.stat", stat)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, place in (("_MEMORY", "meminfo"), ("_OWN_GROUPS", "own"), ("_GROUPS", "groups")):
        monkeypatch.setattr(machine, name, tmp_path / place)
    write(tmp_path / "meminfo", "MemTotal: 900 kB\nMemFree: 100 kB\nMemAvailable:  500 kB\n")
    return tmp_path


def test_what_is_free_is_what_the_system_says(system: Path) -> None:
    assert machine.available_bytes() == 500 * 1024
    assert machine.total_bytes() == 900 * 1024
    (system / "meminfo").unlink()
    assert machine.available_bytes() is machine.total_bytes() is None


def test_no_more_is_free_than_the_group_of_the_process_and_those_around_it_allow(system: Path) -> None:
    write(system / "own", "1:cpu:/elsewhere\n0::/jobs/7/step\n")
    step, job = system / "groups/jobs/7/step", system / "groups/jobs/7"
    write_group(step, "max", 300_000)
    assert machine.available_bytes() == 500 * 1024
    write_group(job, "400000", 310_000)
    assert machine.available_bytes() == 90_000
    assert machine.total_bytes() == 400_000
    write_group(job, "400000", 500_000)
    assert machine.available_bytes() == 0
    # Files that were read may be forgotten again.
    write_group(job, "400000", 399_000, "anon 1\ninactive_file 5000\nactive_file 2000\nshmem 9\n")
    assert machine.available_bytes() == 8000


def test_the_limit_of_a_container_that_sees_only_its_own_group_counts(system: Path) -> None:
    write(system / "own", "0::/somewhere/that/is/not/shown\n")
    write_group(system / "groups", "65536", 4096)
    assert machine.available_bytes() == 61_440
    write(system / "own", "4:memory:/of/the/first/version\n")
    assert machine.available_bytes() == 500 * 1024
