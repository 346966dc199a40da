"""Which device is taken, what is said of it, and what happens where its memory does not suffice."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import extract_features
from pipeline.config import check_options
from pipeline.errors import DeviceMemoryError, OptionError
from pipeline.extract import say_device
from pipeline.network import device
from pipeline.network.vgg import DeviceFunctions, Network, Segment
from pipeline.progress import log_to_terminal
from pipeline.records import Batch, Device, Gpu, ImageStatus
from pipeline.store.format import DEVICE_ATTRIBUTES

from .oracle import relative_error
from .processes import REPOSITORY, call
from .test_config import values
from .test_device_functions import SETTINGS, features_of
from .test_resize import noise, write_images

CPU = Device("/CPU:0", "cpu", 8)
GPU = Device("/GPU:0", "gpu", 128, gpu=Gpu("", 0, 1, 20 << 30, 80 << 30, "", ""))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """TensorFlow as it is with two GPUs of 80 GiB; gives those that it is told to show."""
    shown: list[Any] = []
    gpus = [SimpleNamespace(name=f"/physical_device:GPU:{number}") for number in range(2)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: shown.extend(devices))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, grows: None)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"device_name": "NVIDIA H100"})
    monkeypatch.setattr(device, "gpu_memory", lambda number: (70 << 30, 80 << 30))
    monkeypatch.setattr(device, "available_bytes", lambda: 64 << 30)
    return shown


@pytest.mark.parametrize(
    ("free", "batch_size", "expected"),
    [(1100, None, (128, 5)), (800, None, (128, 3)), (16, None, (3, 3)), (1, None, (1, 1)), (16, 6, (6, 1))],
)
def test_as_many_batches_are_in_flight_as_fit(free: int, batch_size: int | None, expected: tuple[int, int]) -> None:
    assert device.plan_batches((1, 1), (free, free + 9), batch_size) == expected
    assert device.plan_batches((1, 1), (free + 9, free), batch_size) == expected


@pytest.mark.parametrize(("number", "taken"), [(0, 0), (5, 1)])
def test_each_part_takes_a_gpu_of_its_own_and_says_which(
    number: int, taken: int, two_gpus: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = device.choose_device("auto", None, (224, 224), "winograd", 2, row_bytes=1_605_632, number=number)
    assert [gpu.name for gpu in two_gpus] == [f"/physical_device:GPU:{taken}"]
    assert (found.name, found.kind, found.batch_size, found.in_flight) == ("/GPU:0", "gpu", 128, 5)
    options = check_options(values(data__dir="x", part=None if number == 0 else f"{number + 1}/8", runtime__precision="tf32"))
    with log_to_terminal():
        say_device(found, options)
    said = capsys.readouterr().err.splitlines()
    expected = f"device: GPU {taken} of 2, NVIDIA H100, 75.2 GB free of 85.9 GB; tf32, batches of 128, 5 at a time; CUDA 12."
    assert said[0].startswith(expected)
    others = ["device: the others are not used. Use engine=ray, or a process each, part=1/2 and so on."]
    assert said[1:] == others * (number == 0)
    attributes = found.attributes("tf32")
    assert attributes.pop("cuda").startswith("12.")
    assert attributes.pop("cudnn").startswith("9")
    of_all = {"device": "gpu", "precision": "tf32", "gpu": "NVIDIA H100"}
    assert attributes == of_all | {"gpu_memory_bytes": str(80 << 30), "batch_size": "128"}
    assert {*found.attributes("tf32")} == {*DEVICE_ATTRIBUTES}


def test_a_gpu_that_the_process_uses_already_is_taken_as_it_is(two_gpus: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", refuse)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: two_gpus)
    assert device.claim_gpu("gpu", 1) == (two_gpus, 1, 2)
    # One that an earlier run on the CPU has hidden stays hidden.
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [])
    assert device.choose_device("auto", None, (32, 32), "winograd", 2).kind == "cpu"
    with pytest.raises(OptionError, match=r"runtime.device: TensorFlow sees no GPU here, got gpu\. .* not on the CPU"):
        device.choose_device("gpu", None, (32, 32), "winograd", 2)


def test_a_driver_without_a_gpu_that_tensorflow_sees_is_a_warning_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(device, "has_driver", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert device.choose_device("auto", None, (224, 224), "winograd", 2, warn=said.append).kind == "cpu"
    (line,) = said
    assert "pip install 'deep-feature-pipeline[gpu]'" in line
    # Nobody wants to be told who has asked for a CPU.
    device.choose_device("cpu", None, (224, 224), "winograd", 2, warn=said.append)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    device.choose_device("auto", None, (224, 224), "winograd", 2, warn=said.append)
    assert len(said) == 1


def test_the_steps_of_a_gpu_are_as_full_as_can_be() -> None:
    steps = [GPU.step_rows(rows) for rows in (0, 100, 128, 167, 1_000)]
    assert steps == [128, 100, 128, 84, 125]
    assert CPU.step_rows(9) == 8


@pytest.mark.skipif(device.DRIVER.exists() or shutil.which("nvidia-smi") is not None, reason="there is a driver here")
def test_make_installs_cuda_where_there_is_a_driver_and_every_version_of_it_is_pinned(tmp_path: Path) -> None:
    def commands(path: str) -> str:
        call = ["make", "--dry-run", "extract", f"VENV={tmp_path}/venv"]
        environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
        return subprocess.run(call, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout

    program = tmp_path / "nvidia-smi"
    assert "--editable '.[gpu]'" not in commands(str(tmp_path))
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert "--editable '.[gpu]'" in commands(str(tmp_path))
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    required = "\n".join(importlib.metadata.requires("tensorflow") or [])
    wanted = re.findall(r"^(nvidia-[\w-]+)\S*>=([\d.]+)", required, re.MULTILINE)
    assert len(wanted) >= 10
    for name, least in wanted:
        assert f"\n{name}=={least}\n" in pins


# -- Out of memory -------------------------------------------------------------------------------------------------------------


# As TensorFlow says it, as it says that cuDNN has no memory to try its algorithms, and that a copy has none for its result.
FULL: list[Any] = [tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")]
FULL.append(tf.errors.NotFoundError(None, None, "No algorithm worked!  Error messages:\n  CUDNN_STATUS_ALLOC_FAILED"))
FULL.append(tf.errors.InternalError(None, None, "Dst tensor is not initialized."))


@pytest.mark.parametrize("segment", [0, 1])
def test_a_step_that_does_not_fit_is_halved_and_changes_no_row(
    segment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as the upload and the resize in the first segment; as far as a layer that comes after one that has been given."""
    write_images(tmp_path / "images")
    options = {"layers": ["relu1_1", "pool1"], "weights": "random", "output_dir": tmp_path, "size": 32, "backend": "tensorflow"}
    whole = extract_features(tmp_path / "images", name="whole", batch_size=8, quiet=True, **options)
    make, steps = Network._graph, []

    def limited(network: Network, *arguments: Any, **others: Any) -> Any:
        graph, number = make(network, *arguments, **others), len(network.segments)

        def run(*inputs: Any) -> Any:
            rows = len(inputs[0])
            if number == segment:
                steps.append(rows)
                if rows > 3:
                    raise FULL[segment]
            return graph(*inputs)

        return run

    monkeypatch.setattr(Network, "_graph", limited)
    halved = extract_features(tmp_path / "images", name="halved", batch_size=8, **options)
    assert "device: out of memory with 8 images a step, 4 from now on" in capsys.readouterr().err
    # Once each, and never again.
    assert steps[:2] == [8, 4]
    assert max(steps[2:]) <= 3
    assert [*halved.images["error"]] == [*whole.images["error"]]
    assert [halved.attributes[name] for name in ("device", "precision")] == ["cpu", "float32"]
    for layer in whole.layers:
        np.testing.assert_allclose(halved[layer][:], whole[layer][:], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("most", [99, 2])
def test_at_native_size_images_of_one_size_that_follow_one_another_share_a_step(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    sizes = [(40, 48)] * 5 + [(48, 40)] * 2 + [None] + [(48, 40)] * 2 + [(40, 48)]
    for number, size in enumerate(sizes):
        path = tmp_path / f"images/{number:02d}.png"
        Image.fromarray(noise(*size, number)).save(path) if size else path.write_bytes(b"")
    options = {"layers": ["relu1_2", "relu2_1:avg:l2"], "weights": "random", "output_dir": tmp_path, "size": None, "quiet": True}
    options |= {"backend": "tensorflow", "images_per_shard": 4}
    alone = extract_features(tmp_path / "images", name="alone", batch_size=1, **options)
    compute, steps = Network.__call__, []

    def limited(network: Network, images: Any) -> Any:
        steps.append(len(images))
        for number, found in enumerate(compute(network, images)):
            if number and len(images) > most:
                raise DeviceMemoryError("relu2_1: the device is out of memory")
            yield found

    # As far as a layer that comes after one that has been given.
    monkeypatch.setattr(Network, "__call__", limited)
    joined = extract_features(tmp_path / "images", name="joined", batch_size=4, **options)
    assert steps == ([4, 1, 2, 2, 1] if most > 4 else [4, 2, 2, 1, 2, 2, 1])
    expected = ["" if size else "empty: the file has no bytes" for size in sizes]
    assert joined.images["error"].tolist() == alone.images["error"].tolist() == expected
    for layer in alone.layers:
        for row, size in enumerate(sizes):
            if size:
                assert relative_error(joined[layer][row], alone[layer][row]) <= 1e-6


def test_at_native_size_a_step_holds_what_fits_as_at_that_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_bytes", lambda: 64 << 30)
    sizes = (224, 224), (1000, 1000), (3000, 4000)
    assert [device.native_rows(GPU, 32.0, *size_px) for size_px in sizes] == [75, 3, 1]
    assert device.native_rows(replace(GPU, batch_size=16), 32.0, 64, 64) == 16
    assert [device.native_rows(CPU, 32.0, *size_px) for size_px in sizes] == [8, 3, 1]


def small_batch(rows: int) -> Batch:
    statuses = tuple(ImageStatus(row, "", 8, 8, 1, "") for row in range(rows))
    return Batch(statuses, np.zeros((rows, 8, 8, 3), np.uint8), np.full((rows, 2), 8))


@pytest.mark.parametrize("full", FULL)
def test_what_does_not_fit_image_by_image_is_said_in_a_line(
    full: Any, thin_weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*inputs: Any) -> Any:
        raise full

    features = features_of("vgg19", ["relu1_1"], None)
    network = Network(thin_weights(), features, **SETTINGS, size_px=None)
    network.segments = [Segment("relu1_1", refuse, features)]
    said: list[str] = []
    words = rf"the device is out of memory \({re.escape(full.message.splitlines()[0])}\), got"
    with pytest.raises(DeviceMemoryError, match=f"^relu1_1: {words} an input of 1 x 8"):
        list(DeviceFunctions(network, None, warn=said.append)(small_batch(4)))
    assert len(said) == 2
    monkeypatch.setattr(tf, "cast", refuse)
    with pytest.raises(DeviceMemoryError, match=f"^network: {words} the weights"):
        Network(thin_weights(), features, **SETTINGS, size_px=None)


def test_a_gpu_computes_the_first_step_of_a_size_alone() -> None:
    seen, running, all_at_once = set(), threading.Semaphore(1), threading.Barrier(3, timeout=60)

    def network(images: Any) -> Any:
        if len(images) in seen:
            all_at_once.wait()
        else:
            assert running.acquire(blocking=False)
            time.sleep(0.05)
            running.release()
        yield "relu1_1", np.zeros((len(images), 1))

    compute = DeviceFunctions(network, None, fills=True)
    for size in (4, 4, 2):
        with ThreadPoolExecutor(3) as pool:
            assert len(list(pool.map(lambda batch: list(compute(batch)), [small_batch(size)] * 3))) == 3
        seen.add(size)


@pytest.mark.slow
def test_the_check_of_a_gpu_runs_without_one(tmp_path: Path) -> None:
    done = call("--json", str(tmp_path / "found.json"), cwd=REPOSITORY, module="tests.gpu_check")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["lines"]
    assert [line["ours"][0] for line in lines if line["rival"]] == pytest.approx([3e-6] * 3, abs=5e-6)
    assert sum(line["unit"] == "images/s" for line in lines) == 5
    assert done.stdout.count("\n| ") == 9
