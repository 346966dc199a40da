"""Runs and images on an S3 server of this machine: what only real requests show."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.images.folder import list_address
from pipeline.storage import RemotePath
from pipeline.store.reader import open_run
from pipeline.store.verification import verify_folder

from .conftest import PHOTOGRAPHS
from .killed_runs import assert_same_run
from .object_store import ObjectStore, copy_here, names_at, object_store, put_files
from .processes import REPOSITORY, call, command, start
from .stored_runs import make_spec, write_run

pytestmark = [
    # The server alone takes seconds to load; test_storage_runs asks the same of another kind of address.
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(find_spec, ("s3fs", "moto"))), reason="s3fs or moto is not installed"),
]

ADDRESS, IMAGES = "s3://bucket/outputs/run", "s3://bucket/imgs"
SPEC = make_spec(rows=22)
OPTIONS = ["network.weights=random", "layers=[relu2_1]", "data.size=64", "output.images_per_shard=2", "runtime.workers=1"]


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def store(server: ObjectStore) -> Iterator[ObjectStore]:
    for name in names_at("s3://bucket"):
        RemotePath(f"s3://bucket/{name}").unlink()
    server.requests.clear()
    yield server
    server.fault = lambda method, path: None


def _read_row(address: str) -> float:
    return float(open_run(address)["relu4_1"][17].sum())


def test_a_run_on_s3_is_written_gone_on_with_and_read(store: ObjectStore, tmp_path: Path) -> None:
    folder = RemotePath(ADDRESS, tmp_path / "scratch")
    made = write_run(folder, SPEC, failed=[3])
    write_run(tmp_path / "local", SPEC, failed=[3])
    assert_same_run(copy_here(ADDRESS, tmp_path / "copy"), tmp_path / "local")
    (folder / "features.h5").unlink()
    store.requests.clear()
    write_run(folder, SPEC, failed=[3])
    shards = [(method, path) for method, path in store.requests if "/shards/" in path]
    # What is there is neither asked for one by one nor read whole, and nothing of it is written.
    assert {method for method, _ in shards} == {"GET"}
    assert sum("list-type=2" in path for _, path in store.requests) <= 8
    run = open_run(ADDRESS)
    store.requests.clear()
    np.testing.assert_array_equal(run["relu4_1"][5], made["relu4_1"][5])
    first = len(store.requests)
    np.testing.assert_array_equal(run["relu4_1"][6], made["relu4_1"][6])
    # A chunk is one request, once the shard is known.
    assert (first > 1, len(store.requests) - first) == (True, 1)


def test_other_processes_read_a_run_that_was_opened_here(store: ObjectStore, tmp_path: Path) -> None:
    made = write_run(RemotePath(ADDRESS, tmp_path / "scratch"), SPEC)
    run = open_run(ADDRESS)
    expected = float(made["relu4_1"][17].sum())
    assert float(run["relu4_1"][17].sum()) == expected
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with context.Pool(2) as pool:
            assert pool.map(_read_row, [ADDRESS] * 4) == [expected] * 4
    if sys.platform == "linux":
        torch = pytest.importorskip("torch")
        rows = run.torch_dataset("relu4_1")
        loader = torch.utils.data.DataLoader(rows, batch_size=4, num_workers=2)
        got = np.concatenate([batch.numpy() for batch in loader])
        np.testing.assert_array_equal(got, np.stack(made["relu4_1"]))


def test_requests_that_fail_now_and_then_change_nothing(store: ObjectStore, tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def fault(method: str, path: str) -> int | None:
        seen[f"{method} {path}"] = count = seen.get(f"{method} {path}", 0) + 1
        # botocore tries thrice; this outlasts it.
        return 503 if count <= 4 and hash((method, path)) % 3 == 0 else None

    put_files(IMAGES, {f"{number:02d}.jpg": b"x" * (number + 1) for number in range(20)})
    store.fault = fault
    assert list_address(RemotePath(IMAGES)).file_bytes.tolist() == list(range(1, 21))
    folder = RemotePath(ADDRESS, tmp_path / "scratch")
    write_run(folder, SPEC, failed=[3])
    store.fault = lambda method, path: None
    write_run(tmp_path / "local", SPEC, failed=[3])
    assert_same_run(copy_here(ADDRESS, tmp_path / "copy"), tmp_path / "local")


def test_what_is_wrong_with_the_address_is_said_in_one_line_in_bounded_time(store: ObjectStore, tmp_path: Path) -> None:
    def said(place: str, **variables: str) -> str:
        began = time.monotonic()
        found = call(f"data.dir={place}", *OPTIONS, cwd=tmp_path, **{**store.environment, **variables})
        assert (found.returncode, time.monotonic() - began < 60) == (1, True), found.stderr
        return found.stderr.splitlines()[-1].removeprefix("error: data.dir: cannot be listed, got ")

    assert said("s3://no-bucket/imgs").startswith("The specified bucket does not exist for 's3://no-bucket/imgs'")
    assert said(IMAGES, AWS_ENDPOINT_URL="http://127.0.0.1:9").startswith("it does not answer as it should")
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(tmp_path)}
    assert said(IMAGES, **nobody).startswith("NoCredentialsError: Unable to locate credentials")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that kills at once")
def test_a_run_killed_in_mid_upload_leaves_nothing_half_and_goes_on_to_the_same_bits(store: ObjectStore, tmp_path: Path) -> None:
    held: list[str] = []

    def fault(method: str, path: str) -> int | None:
        if method == "PUT" and "partNumber=2" in path and not held:
            held.append(path)
            time.sleep(8)
        return None

    # Parts of 5 MiB, the least that S3 takes, so that a shard is several: 96 MB of it before compression.
    (tmp_path / "sitecustomize.py").write_text(
        "import pipeline.storage as storage\nstorage.PART_BYTES, storage.PARTS_AT_ONCE = 5 << 20, 1\n"
    )
    options = [
        f"data.dir={PHOTOGRAPHS}",
        *OPTIONS,
        "layers=[relu1_1,relu1_2]",
        "data.size=224",
        "name=run",
        "output.compression=none",
    ]
    variables = {**store.environment, "TMPDIR": str(tmp_path), "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    store.fault = fault
    with start(command(*options, "output.dir=s3://bucket/outputs"), tmp_path, **variables) as process:
        deadline = time.monotonic() + 400
        while not held and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        assert held, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    half = held[0].partition("?")[0].removeprefix("/bucket/outputs/run/")
    there = names_at(ADDRESS)
    assert half not in there
    assert "features.h5" not in there
    with pytest.raises(StoreError, match=r"the run is not finished|not a run"):
        open_run(ADDRESS)
    store.fault = lambda method, path: None

    def run(output: str) -> str:
        found = call(*options, f"output.dir={output}", cwd=tmp_path, **variables)
        return found.stderr.splitlines()[-1] if found.returncode else ""

    assert f"`aws s3 rm {ADDRESS}/.lock`" in run("s3://bucket/outputs")
    (RemotePath(ADDRESS) / ".lock").unlink()
    assert run("s3://bucket/outputs") == run(str(tmp_path / "local")) == ""
    assert_same_run(copy_here(ADDRESS, tmp_path / "copy"), tmp_path / "local/run", but=["@config"])
    assert verify_folder(tmp_path / "copy", 2).count == 0
    assert not list(tmp_path.glob("deep-feature-pipeline-*"))


def test_two_runs_that_start_together_at_one_address_are_one(store: ObjectStore, tmp_path: Path) -> None:
    options = [f"data.dir={PHOTOGRAPHS}", *OPTIONS, "name=run", "output.dir=s3://bucket/outputs"]
    processes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        processes.append(start(command(*options), tmp_path, **store.environment, TMPDIR=str(tmp_path / name)))
    said = [process.communicate(timeout=240)[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes in ([0, 0], [0, 1]), said
    if codes == [0, 1]:
        assert any("another run writes this folder, got a lock held by process" in text for text in said), said
    assert verify_folder(open_run(ADDRESS).path.parent, 2).count == 0
    assert ".lock" not in names_at(ADDRESS)
