"""``pipeline.extract_features``: the whole program from Python, as often as one likes in a process."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import extract_features, open_run
from pipeline.errors import DatasetError, OptionError, PipelineError, StoreError
from pipeline.progress import LOGGER

from .killed_runs import assert_same_file
from .processes import call, composed, run_python


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_gives_the_run_and_then_the_same_without_computing(photographs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level, propagates = LOGGER.level, LOGGER.propagate
    run = extract_features(photographs, ["relu2_1"], size=(48, np.int64(32)), weights="random", name="mine")
    assert run.path == Path("outputs/mine/features.h5").absolute()
    assert run.layers == ("relu2_1",)
    assert (run["relu2_1"][3].shape, run["relu2_1"].dtype) == ((24, 16, 128), np.float32)
    assert "these features are untrained" in capfd.readouterr().err
    stamps = {path: path.stat().st_mtime_ns for path in Path("outputs/mine/shards").iterdir()}
    again = extract_features(photographs, ["relu2_1"], size=(48, 32), weights="random", name="mine", quiet=True)
    assert capfd.readouterr() == ("", "")
    assert "7 finished by an earlier run" in Path("outputs/mine/run.log").read_text()
    assert stamps == {path: path.stat().st_mtime_ns for path in Path("outputs/mine/shards").iterdir()}
    np.testing.assert_array_equal(again["relu2_1"][:], run["relu2_1"][:])
    # As it was before: a program's own logging is its own.
    assert (LOGGER.level, LOGGER.propagate) == (level, propagates)


def test_the_stored_options_are_those_that_the_command_stores(photographs: Path) -> None:
    Path("${odd} 1e3").symlink_to(photographs)
    run = extract_features("${odd} 1e3", ["relu1_1"], size=(32, 32), weights="random", quiet=True, name="a")
    arguments = ["layers=[relu1_1]", "data.size=[32,32]", "network.weights=random", "name=a"]
    assert yaml.safe_load(run.attributes["config"]) == composed([f"data.dir={Path().absolute()}/${{odd}} 1e3", *arguments])


def test_errors_are_exceptions_of_one_line(photographs: Path) -> None:
    cases: list[tuple[dict[str, Any], type[PipelineError], str]] = [
        ({"sise": 3}, OptionError, r"^sise: there is no such option, got 'sise'. Expected one of: size"),
        ({"dry_run": True}, OptionError, r"^dry_run: there is no such option"),
        ({"part": "1/2"}, OptionError, r"^part: there is no such option"),
        ({"network": "vgg18"}, OptionError, r"^network.name: not a valid value, got 'vgg18'"),
        ({"dir": None, "data.dir": "nowhere", "weights": "random"}, DatasetError, r"^data.dir: no such folder, got '.*nowhere'"),
        ({"output_dir": "/dev/null", "weights": "random", "size": 32}, StoreError, r"cannot be written, got ENOTDIR"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            extract_features(**{"dir": photographs, "quiet": True, **options})
        assert "\n" not in str(caught.value)
    assert not list(Path().iterdir())


def test_a_wrong_option_loads_nothing_heavy() -> None:
    code = """
import sys
from pipeline import extract_features
try:
    extract_features("x", size="big")
except Exception as error:
    print(type(error).__name__, *(name in sys.modules for name in ("tensorflow", "h5py", "scipy", "hydra")))
"""
    assert run_python(code).stdout.split() == ["OptionError", "False", "False", "False", "False"]


INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
from pipeline import extract_features

def interrupt_when(happened):
    def wait():
        while not happened():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=wait, daemon=True).start()

def interrupted(name, happened, **options):
    handler = signal.getsignal(signal.SIGINT)
    interrupt_when(happened)
    try:
        extract_features(sys.argv[1], ["relu1_1", "relu3_1"], size=64, weights="random", name=name, quiet=True, batch_size=2,
                         images_per_shard=1, **options)
        print("not interrupted")
    except KeyboardInterrupt:
        pass
    assert signal.getsignal(signal.SIGINT) is handler
    return sorted(path.name for path in Path("outputs", name).rglob("*.partial"))

# In the middle of loading TensorFlow, which cannot be loaded twice.
print(interrupted("early", lambda: "tensorflow" in sys.modules))
print(interrupted("late", lambda: any(Path("outputs/late/shards").glob("*.h5"))))
finished = len(list(Path("outputs/late/shards").glob("*.h5")))
print(0 < finished < 40)
for name in ("early", "late"):
    run = extract_features(sys.argv[1], ["relu1_1", "relu3_1"], size=64, weights="random", name=name, quiet=True,
                           images_per_shard=1)
    print(len(run), run["relu3_1"][6].shape)
"""


@pytest.mark.slow
def test_after_ctrl_c_the_process_goes_on_and_the_run_too(photographs: Path) -> None:
    # Slow enough to be caught in the middle.
    Path("images").mkdir()
    for number in range(40):
        os.link(photographs / "sky/rocket.jpg", f"images/{number:02d}.jpg")
    done = run_python(INTERRUPTED, "images")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[]", "True", "40 (16, 16, 256)", "40 (16, 16, 256)"]
    assert "Traceback" not in done.stderr
    assert "estimate" not in done.stderr
    whole = ["data.dir=images", "layers=[relu1_1,relu3_1]", "data.size=64", "network.weights=random", "name=whole"]
    assert call(*whole, "output.images_per_shard=1", cwd=Path.cwd()).returncode == 0
    for name in ("early", "late"):
        assert_same_file(Path("outputs/whole/features.h5"), Path("outputs", name, "features.h5"), ["@config"])
    assert len(open_run("outputs/whole")) == 40


def test_a_run_frees_the_network_of_the_one_before(
    photographs: Path, thin_weights: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.network.vgg import Network

    networks, prepare = weakref.WeakSet[Network](), Network.__post_init__
    monkeypatch.setattr(Network, "__hash__", object.__hash__)
    monkeypatch.setattr(Network, "__post_init__", lambda network: (networks.add(network), prepare(network)))
    gc.disable()
    try:
        for name in "abc":
            extract_features(photographs, "relu1_1", size=32, weights="random", quiet=True, backend="tensorflow", name=name)
        assert len(networks) == 1
    finally:
        gc.enable()
