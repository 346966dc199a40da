"""The command that makes a run again: through a shell and Hydra's grammar back to the same options."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import configuration_folder, declare_options, literal_arguments
from pipeline.config import check_options, defaults, nested, to_yaml
from pipeline.reproduce import command_again

from .test_command import ODD_NAMES

HARD_NAMES = [
    *ODD_NAMES,
    "null",
    "'x'",
    '"',
    "a b ",
    "$(x)`y`",
    "*",
    "\\${a}",
    "-m",
    "!x",
]


def composed(arguments: list[str]) -> dict[str, Any]:
    """Gives what the options of a command line come to, as they are stored with a run."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    declare_options("pipeline.run")
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", literal_arguments(arguments)), resolve=True)
    stored: dict[str, Any] = yaml.safe_load(to_yaml(config))
    assert stored == config
    return stored


def shell_words(command: str) -> list[str]:
    """Gives the words of a command as bash sees them."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


def again(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    python, _, module, *arguments = shell_words(command_again(config, folder))
    assert (python, module) == ("python", "pipeline.run")
    return composed(arguments)


# Composing takes a quarter of a second, and each option takes a name as the others do.
TRIPLES = [(name, HARD_NAMES[number - 9], HARD_NAMES[number - 18]) for number, name in enumerate(HARD_NAMES[:9])]


def test_hard_names_come_back_as_they_were(tmp_path: Path) -> None:
    assert len(HARD_NAMES) <= 27
    for folder, weights, name in TRIPLES:
        config = nested(defaults())
        config["data"]["dir"], config["network"]["weights"] = f"/data/{folder}", weights
        command = command_again(config, tmp_path / "outputs" / name)
        assert command.isprintable()
        found = again(config, tmp_path / "outputs" / name)
        assert (found["data"]["dir"], found["network"]["weights"], found["name"]) == (f"/data/{folder}", weights, name)
        assert found["output"]["dir"] == str(tmp_path / "outputs")


@pytest.mark.parametrize(
    "arguments",
    [
        ["layers=[relu?_1,'conv[45]_*',all]", "data.size=[72,64]", "network=vgg16"],
        ["layers=relu4_1,relu5_1", "data.size=null", "batch_size=3", "network.seed=7", "data.max_failed_fraction=0.05"],
        ["engine=ray", "engine.address=ray://head:10001", "engine.workers=8", "engine.gpus_per_worker=0.5"],
        ["data.resize=crop", "output.dtype=float16", "runtime.workers=2", "network.pool_padding=valid"],
    ],
)
def test_options_come_back_as_they_were(arguments: list[str]) -> None:
    config = composed(["data.dir=imgs", *arguments])
    assert again(config, Path("outputs/x")) == {**config, "name": "x"}


def test_what_is_quoted_is_left_to_hydra() -> None:
    for arguments in (["data.dir='a b'"], ['name="x"'], ["data.dir=null"], ["layers=[a,b]"], ["batch_size=3"]):
        assert literal_arguments(arguments) == arguments


def test_going_on_neither_discards_nor_refuses_what_is_there(tmp_path: Path) -> None:
    for existing, is_named in (("replace", False), ("fail", False), ("extend", True)):
        config = composed(["data.dir=/imgs", f"output.existing={existing}"])
        assert ("output.existing" in command_again(config, tmp_path / "x")) == is_named


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


@pytest.mark.parametrize("name", ["run", "layers", "verify", "index", "show", "plot"])
def test_every_console_script_is_a_command(name: str) -> None:
    script = "deep-features" if name == "run" else f"deep-features-{name}"
    root = Path(__file__).parent.parent
    assert f'{script} = "pipeline.{name}:main"' in (root / "pyproject.toml").read_text()
    assert (root / f"pipeline/{name}.py").is_file()
