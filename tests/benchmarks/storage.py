"""Images and run folder at an address against folders of this machine: what the way there costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .photographs import make_photographs
from .rows import Bench, Line, interleave, row
from .sides import run_ours

ROOT = Path(__file__).parent.parent.parent
LAYER = "relu4_1"


@row("storage", "a job with images and run folder on an S3 server of this machine against folders, images a second and seconds")
def measure(bench: Bench) -> Iterator[Line]:
    """Both start to exit, and in the steady state; and reading rows. The server is Python's, and takes its share of the cores."""
    photographs = make_photographs(bench.folder / "photographs", bench.images)
    with _server(photographs) as variables:
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            rates: dict[str, list[float]] = {"s3": [], "local": []}
            sides = {
                "s3": lambda: _job("s3://bucket/imgs", "s3://bucket/outputs", bench, rates["s3"]),
                "local": lambda: _job(str(photographs), str(bench.folder / "outputs"), bench, rates["local"]),
                "s3 rows": lambda: _rows("s3://bucket/outputs/run"),
                "local rows": lambda: _rows(str(bench.folder / "outputs/run")),
            }
            figures = interleave(sides, bench.turns)
        finally:
            os.environ.clear()
            os.environ.update(before)
    notes = "moto's server, in another process of the same machine; its own work is in the figures"
    yield Line("images and run folder on S3: in folders", "images/s", rates["s3"], rates["local"], notes=notes)
    yield Line("the same, start to exit", "s", figures["s3"], figures["local"], more_is_better=False, notes=notes)
    what = f"reading {LAYER} shuffled from S3: from a folder"
    yield Line(what, "rows/s", figures["s3 rows"], figures["local rows"], notes=notes)


def _job(images: str, output: str, bench: Bench, rates: list[float]) -> float:
    """Gives seconds from start to exit, and adds the images a second that the run's own report says."""
    from pipeline.storage.address import Address, is_address
    from pipeline.storage.objects import read

    options = [f"data.dir={images}", f"layers=[{LAYER}]", f"output.dir={output}", "name=run", "output.existing=replace"]
    seconds = run_ours(bench.folder / "unused", *options).seconds
    report = read(Address(f"{output}/run/report.json")) if is_address(output) else Path(output, "run/report.json").read_bytes()
    rates.append(float(json.loads(report)["images_per_second"]))
    return seconds


def _rows(path: str) -> float:
    from pipeline import open_run

    with open_run(path) as run:
        began = time.perf_counter()
        rows = sum(len(features) for features, _ in run.batches(LAYER, 16, shuffle=True))
        return rows / (time.perf_counter() - began)


@contextmanager
def _server(photographs: Path) -> Iterator[dict[str, str]]:
    """Starts a server with the photographs in it, and gives the variables by which it is found."""
    code = (
        "import sys, pathlib, time\n"
        "from tests.object_store import object_store, put_files\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with object_store() as store:\n"
        "    put_files('s3://bucket/imgs', {path.name: path.read_bytes() for path in folder.iterdir()})\n"
        "    print(store.environment['AWS_ENDPOINT_URL'], flush=True)\n"
        "    sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(photographs)],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()
        try:
            yield {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            server.kill()
