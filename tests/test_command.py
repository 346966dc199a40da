"""The real command, as a subprocess: what a user sees and finds on the disk."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import extract_features
from pipeline.cli import command_again, literal_arguments
from pipeline.config import COMMANDS, check_options, defaults, nested
from pipeline.errors import StoreError

from .pages import Page
from .processes import REPOSITORY, call, call_here, composed, run_python

QUICK = ["network.weights=random", "data.size=32"]
WHOLE = ["network.weights=random", "data.size=[72,64]", "layers=[relu2_1,pool3]", "output.images_per_shard=16"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """Thirty pictures and some rubbish."""
    folder = tmp_path_factory.mktemp("data") / "imgs"
    originals = [path for path in sorted(photographs.glob("*/*")) if path.suffix != ".md"]
    for number in range(30):
        source = originals[number % len(originals)]
        target = folder / f"class {number % 3}" / f"{number:02d}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    (folder / "class 0/broken.jpg").write_bytes((folder / "class 0/00.jpg").read_bytes()[:5000])
    (folder / "class 1/empty.png").write_bytes(b"")
    (folder / "class 2/page.jpg").write_text("<!doctype html><title>404</title>")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def finished(images: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    result = call(f"data.dir={images}", *WHOLE, cwd=images.parent)
    return images.parent / "outputs/imgs-vgg19", result


def test_a_run_says_what_it_does_and_what_it_did(finished: tuple[Path, subprocess.CompletedProcess[str]], images: Path) -> None:
    folder, result = finished
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    for text in (
        "images: 33 under",
        "skipped: 1 extension .txt, 1 hidden",
        "these features are untrained",
        "layer: pool3, 9 x 8 x 256 float32, 73.7 kB an image",
        "rows       33 (30 ok, 3 failed)",
        "1 truncated",
        "1 empty",
        "1 not an image",
        "images/s on the cpu",
        'open_run("outputs/imgs-vgg19")',
    ):
        assert text in result.stderr, (text, result.stderr)
    report = json.loads((folder / "report.json").read_text())
    assert report["rows"] == report["rows_now"] == 33
    assert report["causes"] == {"truncated": 1, "empty": 1, "not an image": 1}
    assert report["layers"]["pool3"] == [9, 8, 256]
    assert sum(report["seconds_by_stage"].values()) == pytest.approx(report["seconds"], rel=1e-6)
    assert (folder / "config.yaml").is_file()
    assert "page       outputs/imgs-vgg19/report.html" in result.stderr
    page = Page((folder / "report.html").read_text())
    assert page.wrong == []
    for text in ("33 images, relu2_1, pool3 of vgg19", "1 truncated", "class 0/broken.jpg", "Untrained weights", "dead channels"):
        assert text in page.text, text
    assert f"python -m pipeline.run data.dir={images} 'data.size=[72,64]' 'layers=[relu2_1,pool3]'" in page.text
    # Of six rows a photograph, and of two layers a map each.
    assert len(page.of("img")) == 6 * 3
    assert "rows       33 (30 ok, 3 failed)" in (folder / "run.log").read_text()
    assert sorted(path.name for path in (folder / "shards").iterdir()) == [f"shard-0000{n}-of-00003.h5" for n in range(3)]


def test_a_finished_run_has_nothing_left_to_do_and_another_is_refused_with_the_differences(
    finished: tuple[Path, Any], images: Path
) -> None:
    kept = [*(finished[0] / "shards").iterdir(), finished[0] / "report.json", finished[0] / "report.html"]
    stamps = [path.stat().st_mtime_ns for path in kept]
    options: dict[str, Any] = {"weights": "random", "images_per_shard": 16, "output_dir": finished[0].parent, "quiet": True}
    extract_features(images, ["relu2_1", "pool3"], size=(72, 64), **options)
    assert "33 finished by an earlier run" in (finished[0] / "run.log").read_text()
    with pytest.raises(StoreError, match=f"^{re.escape(str(finished[0]))}: ") as refused:
        extract_features(images, ["relu2_2"], size=(72, 64), **options)
    assert "relu2_1,pool3" in str(refused.value)
    assert "relu2_2" in str(refused.value)
    assert "data.size" not in str(refused.value)
    assert [path.stat().st_mtime_ns for path in kept] == stamps


# All in one process: each of its own would take a second or two.
REFUSALS = """
import contextlib, io, json, os, sys
from pipeline.run import main
found = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main()
        code = 0
    except SystemExit as error:
        code = error.code
    found.append([code, said.getvalue()])
heavy = [name for name in ("tensorflow", "h5py", "scipy") if name in sys.modules]
print(json.dumps([found, os.listdir(), heavy]))
"""
WRONG = [
    (["data.dir=x", "batchsize=3"], "batchsize: there is no such option, got 'batchsize'. Expected one of: batch_size"),
    (["data.dir=x", "+extra=3"], "extra: there is no such option"),
    (
        ["data.dir=x", "network=vgg18"],
        "network.name: not a valid value, got 'vgg18'. Expected one of: vgg11, vgg13, vgg16, vgg19",
    ),
    (["data.dir=x", "data.dir.x=3"], "data.dir.x: there is no such option"),
    (["data.dir=x", "batch_size=${nosuch}"], "command line: Interpolation key 'nosuch' not found"),
    (["data.dir=x", "data=3"], "data: there is no such option"),
    (["data.dir=x", "batch_size=1,2"], "command line: "),
    (["data.dir=x", "network=null"], "network.name: not a valid value, got None"),
    (["data.dir=x", "layers=[nope]"], "layers: no layer of vgg19 matches, got 'nope'."),
    (["foo"], "command line: "),
    ([], "data.dir: no images are named"),
]


def test_a_wrong_option_is_one_line_and_exit_code_2_and_loads_nothing_heavy(tmp_path: Path) -> None:
    ended = run_python(REFUSALS, json.dumps([arguments for arguments, _ in WRONG]), cwd=tmp_path)
    found, left, heavy = json.loads(ended.stdout)
    for (code, said), (arguments, message) in zip(found, WRONG, strict=True):
        assert code == 2, (arguments, said)
        assert said.startswith(f"error: {message}"), (arguments, said)
        assert len(said.splitlines()) == 1
    assert (left, heavy) == ([], [])


def test_an_option_of_another_command_is_none_of_this_one(tmp_path: Path) -> None:
    result = call_here("network=vgg16", cwd=tmp_path, module="pipeline.show")
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: network.name: there is no such option, got 'network.name'. Expected one of: run, json. Run"
    )


def test_help_names_every_option(tmp_path: Path) -> None:
    result = call_here("--help", cwd=tmp_path, module="pipeline.run")
    assert result.returncode == 0
    for key in defaults():
        assert f"{key.rsplit('.', 1)[-1]}:" in result.stdout, key


HARD_NAMES = [
    *("2024_01", "1e3", "true", "ünï", "it's", 'q"uote', "a,b", "a=b", "${foo}", "[br]", "#x", "~x", "back\\", "null ", "null"),
    *("'x'", '"', "a b ", "$(x)`y`", "*", "\\${a}", "-m", "!x"),
]


def again(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Gives the options that the command of a run comes to, through bash and Hydra."""
    command = command_again(config, folder)
    assert command.isprintable()
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    python, _, module, *arguments = done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]
    assert (python, module) == ("python", "pipeline.run")
    return composed(arguments)


def test_hard_names_come_back_as_they_were(tmp_path: Path) -> None:
    # Composing takes a quarter of a second, and each option takes a name as the others do.
    for number in range(0, len(HARD_NAMES), 3):
        folder, weights, name = (HARD_NAMES[number - place] for place in range(3))
        config = nested({**defaults(), "data.dir": f"/data/{folder}", "network.weights": weights, "data.label": name})
        found = again(config, tmp_path / "outputs" / name)
        config["name"], config["output"]["dir"] = name, str(tmp_path / "outputs")
        assert found == config


def test_options_come_back_as_they_were() -> None:
    for arguments in (
        ["layers=[relu?_1,'conv[45]_*',all]", "data.size=[72,64]", "network=vgg16", "output.existing=extend"],
        ["layers=relu4_1,relu5_1", "data.size=null", "batch_size=3", "network.seed=7", "data.max_failed_fraction=0.05"],
        ["engine=ray", "engine.address=ray://head:10001", "engine.workers=8", "engine.gpus_per_worker=0.5"],
    ):
        config = composed(["data.dir=imgs", *arguments])
        assert again(config, Path("outputs/x")) == {**config, "name": "x"}


def test_what_is_quoted_is_left_to_hydra() -> None:
    arguments = ["data.dir='a b'", 'name="x"', "data.dir=null", "layers=[a,b]", "batch_size=3"]
    assert literal_arguments(arguments) == arguments


def test_going_on_neither_discards_nor_refuses_what_is_there() -> None:
    for existing in ("replace", "fail"):
        assert command_again({"output": {"existing": existing}}, Path("x/y")) == "python -m pipeline.run output.dir=x name=y"


def test_what_is_read_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.mat").write_bytes(b"")
    for given, expected in (
        ({"data.dir": "imgs"}, {"data.dir": f"{tmp_path}/imgs"}),
        ({"data.dir": "~/imgs"}, {"data.dir": str(Path("~/imgs").expanduser())}),
        ({"data.dir": "memory://b/imgs", "data.list": "l/birds.csv"}, {"data.dir": "memory://b/imgs"}),
        ({"data.tar": ["s/x-{0..3}.tar", "/s/*.tar"]}, {"data.tar": [f"{tmp_path}/s/x-{{0..3}}.tar", "/s/*.tar"]}),
        ({"data.dir": "random", "network.weights": "random"}, {"data.dir": f"{tmp_path}/random", "network.weights": "random"}),
        ({"data.dir": "imgs", "network.weights": "w.mat"}, {"network.weights": f"{tmp_path}/w.mat"}),
    ):
        stored = check_options(nested(given)).given
        assert {key: stored[key] for key in expected} == expected
        found = again(nested(stored), Path("/runs/mine"))
        assert found == nested({**stored, "output.dir": "/runs", "name": "mine"})
    # The present folder has a name all the same.
    assert command_again(nested(stored), Path()).endswith(f" output.dir={tmp_path.parent} name={tmp_path.name}")


def test_every_console_script_is_a_command() -> None:
    scripts = re.findall(r'^deep-features(?:-(\w+))? = "pipeline.(\w+):main"$', (REPOSITORY / "pyproject.toml").read_text(), re.M)
    assert [name or "run" for name, _ in scripts] == [module for _, module in scripts]
    assert {module for _, module in scripts} == {*COMMANDS}
