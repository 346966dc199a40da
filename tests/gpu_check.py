"""``make gpu-check``: a GPU's numbers against the CPU's, and images a second of each stage. Small where there is none.

Every line is of runs of ``python -m pipeline.run`` in a process of their own, so that it is what users get. Without a GPU the
device functions run on the CPU, in float32, on few small images: that shows that the check works, and nothing of a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import open_run

from .benchmarks.machine import describe_machine
from .benchmarks.photographs import make_differing, make_photographs
from .benchmarks.sides import run_ours, run_program
from .benchmarks.table import Line, format_table
from .oracle import relative_error

FIVE = "relu1_1,relu2_1,relu3_1,relu4_1,relu5_1"
# Largest relative error (norm) of any layer that is allowed, against the CPU's float32.
TOLERANCES = {"float32": 1e-5, "tf32": 1e-2, "bfloat16": 5e-2}


class Check:
    """The runs of one check.

    Args:
        folder: Empty; all is written here.
        has_gpu: Whether TensorFlow sees one.
    """

    def __init__(self, folder: Path, has_gpu: bool) -> None:
        self.folder, self.has_gpu = folder, has_gpu
        self.precisions = [*TOLERANCES] if has_gpu else ["float32"]
        self.device = ["runtime.device=gpu"] if has_gpu else ["runtime.device=cpu", "runtime.backend=tensorflow"]
        self.side = 224 if has_gpu else 64

    # -- Numbers -----------------------------------------------------------------------------------------------------------

    def errors(self) -> Iterator[Line]:
        """Yields the worst layer of each size and precision."""
        images = make_differing(self.folder / "differing", 6 if self.has_gpu else 3)
        sizes = [
            (f"all layers, {self.side} px", "all", f"data.size={self.side}"),
            ("all layers, 65 x 33 px", "all", "data.size=[65,33]"),
            ("native size", "relu1_1,relu3_1,relu5_1", "data.size=null"),
        ]
        for what, layers, size in sizes:
            common = [f"data.dir={images}", f"layers=[{layers}]", size, "output.compression=none"]
            run_ours(self.folder / "expected", *common, "runtime.device=cpu", "output.existing=replace")
            for precision in self.precisions:
                found = self.folder / "found"
                run_ours(found, *common, *self.device, f"runtime.precision={precision}", "output.existing=replace")
                layer, error = worst_layer(found, self.folder / "expected")
                # Against what is allowed.
                error, allowed = max(error, sys.float_info.epsilon), TOLERANCES[precision]
                line = f"{what}, {precision}: allowed"
                yield Line(line, "relative error", [error], [allowed], False, goal=1.0, notes=f"worst at {layer}")

    # -- Rates -------------------------------------------------------------------------------------------------------------

    def rates(self) -> Iterator[Line]:
        """Yields images a second of whole jobs that differ in one stage."""
        originals = make_photographs(self.folder / "photographs", 256 if self.has_gpu else 4)
        few, many = self.folder / "few", self.folder / "many"
        for folder, copies in (few, 4 if self.has_gpu else 1), (many, 32 if self.has_gpu else 8):
            folder.mkdir()
            # The same bytes by other names: reading and decoding take as long, making them does not.
            for path in originals.iterdir():
                for number in range(copies):
                    os.link(path, folder / f"{path.stem}-{number:02d}.jpg")
        common = [f"data.size={self.side}", *self.device]
        fast = "tf32" if self.has_gpu else "float32"
        # Layers, precision, dtype, compression. What is reduced on the device leaves nothing to fetch, encode or write: reading,
        # resizing and the network.
        jobs = [(layers, precision, "float32", "gzip") for precision in self.precisions for layers in ("relu4_1:avg", "relu4_1")]
        jobs += [("relu4_1", fast, "float32", "none"), ("relu4_1", fast, "float16", "gzip"), (FIVE, fast, "float16", "none")]
        for layers, precision, dtype, compression in jobs:
            options = [f"layers=[{layers}]", f"runtime.precision={precision}", f"output.dtype={dtype}"]
            options += [f"output.compression={compression}", f"data.dir={few},{many}", *common]
            yield self.rate(f"{layers}, {precision}, {dtype}, {compression}", options)

    def rate(self, what: str, options: list[str]) -> Line:
        """Gives the rate without start and first step: more images in the time that they take more, in one process."""
        output = self.folder / "rate"
        run_program("pipeline.run", "-m", f"output.dir={output}", "network.weights=random", *options)
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in output.glob("*/report.json")]
        shutil.rmtree(output)
        few, many = sorted(reports, key=lambda report: report["rows"])
        seconds = [report["rows"] / report["images_per_second"] for report in (few, many)]
        rate = (many["rows"] - few["rows"]) / (seconds[1] - seconds[0])
        return Line(what, "images/s", [rate], notes=where_time_went(many))


def worst_layer(found: Path, expected: Path) -> tuple[str, float]:
    """Gives the layer that differs most from the expected one, and how much (relative norm of a row)."""
    ours, theirs = open_run(found), open_run(expected)
    assert ours.layers == theirs.layers
    assert all(status == "ok" for status in [*ours.images["status"], *theirs.images["status"]])
    errors = {
        layer: max(relative_error(ours[layer][row], theirs[layer][row]) for row in range(len(ours))) for layer in ours.layers
    }
    layer = max(errors, key=lambda name: errors[name])
    return layer, errors[layer]


def where_time_went(report: dict[str, Any]) -> str:
    """Gives the seconds that the main thread waited for each stage."""
    return ", ".join(
        f"{name} {report['seconds_by_stage'][name]:.1f} s" for name in ("start", "read", "network", "store", "finish")
    )


def describe_device() -> tuple[bool, str]:
    """Gives whether TensorFlow sees a GPU, and words for it."""
    from pipeline.network import load_tensorflow

    load_tensorflow()
    from pipeline.network.device import choose_device

    gpu = choose_device("auto", None, (224, 224), "tensorflow", 1).gpu
    if gpu is None:
        return False, "no GPU: the device functions on the CPU, few small images"
    return True, f"{gpu.model}, {gpu.count} here, {gpu.free_bytes / 1e9:.0f} GB free, CUDA {gpu.cuda}, cuDNN {gpu.cudnn}"


def main() -> int:
    """Runs the check, prints the table and writes it as JSON; gives 1 where a number is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description="Check a GPU's numbers and time its stages.")
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("gpu-check.json"), help="where the table goes as JSON")
    given = parser.parse_args()
    # In a process that ends: the runs are to find the GPU's memory free.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        has_gpu, device = pool.submit(describe_device).result()
    machine = {**describe_machine(), "device": device}
    print("\n".join(f"{name}: {text}" for name, text in machine.items()), flush=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        check = Check(Path(folder), has_gpu)
        for line in itertools.chain(check.errors(), check.rates()):
            lines.append(line)
            print(f"{line.what}: {line.ours[0]:.3g} {line.unit}", file=sys.stderr, flush=True)
            # After every line, so that a check that is stopped leaves what it has found.
            content = {"machine": machine, "lines": [asdict(line) for line in lines]}
            given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"\n{format_table(lines)}")
    return int(any(line.is_reached is False for line in lines))


if __name__ == "__main__":
    sys.exit(main())
