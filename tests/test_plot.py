"""``python -m pipeline.plot``: from a stored run to files; every message, every option."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pipeline.config import PlotOptions, check_options, defaults
from pipeline.errors import OptionError, StoreError
from pipeline.formatting import words_for_number
from pipeline.plot import draw_plots
from pipeline.records import ImageStatus
from pipeline.store import format

from .conftest import PHOTOGRAPHS
from .processes import REPOSITORY, call, run_python
from .stored_runs import make_spec, make_values, write_run
from .test_seen import sha256_of

MODULE = "pipeline.plot"
SHAPES: dict[str, Any] = {"conv1_1": (12, 16, 3), "relu1_1": (12, 16, 3), "pool2": (6, 8, 5), "fc6": (1, 1, 40)} | {
    "relu5_1.avg.l2": (40,)
}
KEYS = ["sky/rocket.jpg", "people/broken.jpg", "sky/hubble.jpg", "things/coffee.jpg", "3", "gone/猫.jpg"]


def plot(run: Path, **values: Any) -> None:
    draw_plots(check_options({**defaults(PlotOptions), "run": str(run), **values}, PlotOptions))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the sample photographs as the store writes it, features made up; its second image failed."""
    path = tmp_path_factory.mktemp("plot") / "outputs" / "samples"
    identity = {"data.size": "24x32", "data.resize": "squash", "data.interpolation": "bilinear", "data.decode": "exact"}
    spec = make_spec(len(KEYS), SHAPES, identity=identity, keys=KEYS)
    spec.attributes.update({"data_root": str(PHOTOGRAPHS), "weights": "random (He normal, seed 0)"})
    files = {row: PHOTOGRAPHS / key for row, key in enumerate(KEYS) if (PHOTOGRAPHS / key).exists()}
    statuses = {row: ImageStatus(row, "", 0, 0, file.stat().st_size, sha256_of(file)) for row, file in files.items()}
    write_run(path, spec, failed=[1], statuses=statuses)
    return path


@pytest.fixture
def written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Draws into a new folder; gives the names of the files that were said to be written, and are, and what was said besides."""
    monkeypatch.chdir(tmp_path)
    # What is drawn is another test's.
    monkeypatch.setattr("pipeline.figures.draw", lambda *_: Figure((1, 1), dpi=20))

    def draw(*, run: Path = folder, **values: Any) -> tuple[list[str], str]:
        plot(run, **{"file": "{run}-{image}-{layer}.png", **values})
        said = capsys.readouterr()
        names = [line.removeprefix("written: ").rsplit(" (", 1)[0] for line in said.out.splitlines()]
        assert set(names) <= {path.name for path in tmp_path.iterdir()}
        return names, said.err

    return draw


def test_all_stored_layers_of_the_first_good_image_beside_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plot(folder)
    path = folder.parent / "samples-sky-rocket.jpg-5-layers.png"
    with Image.open(path) as image:
        assert capsys.readouterr().out == f"written: {path} ({image.width} x {image.height} px, 5 maps)\n"
    path.unlink()
    monkeypatch.chdir(folder.parent.parent)
    plot(folder, layers="pool2", channel=1)
    path = Path("outputs/samples-sky-rocket.jpg-pool2-channel-1.png")
    assert capsys.readouterr().out.startswith(f"written: {path} (")
    path.unlink()


def test_images_layers_and_channels_are_chosen(written: Callable[..., Any]) -> None:
    coffee = ["samples-things-coffee.jpg-pool2.png"]
    assert written(image="things/coffee.jpg", layers="pool2") == (coffee, "")
    # A row goes before a key of digits.
    assert written(image="3", layers="pool2") == (coffee, "")
    several = written(images=[-1, "sky/hubble.jpg", 2, 0], layers=["relu1*", "block2", "conv1_1"], channel=1, input=False)[0]
    images = ("gone-猫.jpg", "sky-hubble.jpg", "sky-rocket.jpg")
    assert several == [f"samples-{image}-conv1_1-relu1_1-pool2-channel-1.png" for image in images]
    mosaics = written(channels=4, layers=["conv1_1", "pool2", "fc6", "relu5_1:*"], scale="shared", input=False)[0]
    shown = (("conv1_1", 3), ("pool2", 4), ("fc6", 4), ("relu5_1.avg.l2", 4))
    assert mosaics == [f"samples-sky-rocket.jpg-{layer}-first-{count}-channels.png" for layer, count in shown]
    for channels, word in ((2, "first-2-channels"), ([4, 0], "channels-4-0"), ("active:2", "2-most-active")):
        names, _ = written(channels=channels, layers="pool2", input=False, file=f"{word} {{layer}}.png")
        assert names == [f"{word} pool2-{word}.png"]


def test_an_input_that_is_gone_or_another_now_is_said_and_left_out(written: Callable[..., Any]) -> None:
    _, said = written(image="gone/猫.jpg", layers="pool2")
    problem = "'gone/猫.jpg': the input cannot be shown, got missing: file not found"
    assert said.startswith(f"drawn without input: {PHOTOGRAPHS}: {problem}")
    with pytest.raises(StoreError, match=problem):
        written(image="gone/猫.jpg", input="only")


def test_the_input_alone_is_what_the_network_saw(written: Callable[..., Any]) -> None:
    names, _ = written(input="only")
    assert names == ["samples-sky-rocket.jpg-input.png"]
    expected = np.asarray(Image.open(PHOTOGRAPHS / "sky/rocket.jpg").resize((32, 24), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(np.asarray(Image.open(names[0])) - expected).max() <= 1


def test_a_shard_and_a_run_that_was_moved_are_drawn_alike(folder: Path, written: Callable[..., Any], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path.parent / f"{tmp_path.name} moved" / "there"))
    shard = next((moved / "shards").glob("*-00001-of-*.h5"))
    names, _ = written(run=shard, image="0", layers="pool2", file="{layer} {image}.png")
    assert names == ["pool2 3.png"]
    lone = tmp_path.parent / f"{tmp_path.name} moved" / shard.name
    shutil.copy(shard, lone)
    plot(lone, layers="pool2", input=False)
    assert (lone.parent / f"{lone.stem}-3-pool2.png").exists()


def test_native_size_float16_and_added_parts_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "BAND_BYTES", 1)
    keys = [f"{number}.jpg" for number in range(7)]
    sizes = {row: (40 + row, 30 + 7 * row) for row in range(7)}
    shapes = {"relu4_1": None, "relu5_1.avg": (9,)}
    for count, existing in ((4, "resume"), (7, "extend")):
        spec = make_spec(count, shapes, dtype="float16", identity={"data.size": "native"}, keys=keys[:count])
        whole = make_spec(7, shapes, keys=keys)
        write_run(tmp_path / "run", spec, values=make_values(whole, sizes), existing=existing)
    drawn: list[Figure] = []
    monkeypatch.setattr("pipeline.figures.save", lambda figure, path: drawn.append(figure) or (1, 1))
    for row in (0, 6):
        plot(tmp_path / "run", image=str(row), channels=3, input=False, colormap="hot", file=str(tmp_path / "{layer}.png"))
        maps, bars = drawn[-2:]
        maps.draw_without_rendering()
        box = maps.axes[0].images[0].get_window_extent()
        assert box.height / box.width == pytest.approx(sizes[row][0] / sizes[row][1], abs=0.01)
        assert len(bars.axes[0].collections[0].get_segments()) == 3


def test_of_a_large_layer_as_many_rows_are_read_as_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "BAND_BYTES", 1)
    monkeypatch.setattr("pipeline.plot.WHOLE_BYTES", 1000)
    spec = make_spec(1, {"relu1_1": None}, keys=["a.jpg"])
    values = make_values(spec, {0: (480, 360)})
    write_run(tmp_path / "run", spec, values=values)
    drawn: list[Any] = []
    monkeypatch.setattr("pipeline.figures.draw", lambda lines, maps, *rest: drawn.append(maps) or Figure())
    for exact in (False, True):
        plot(tmp_path / "run", exact=exact, dpi=20, input=False)
    part, whole = (maps[0] for maps in drawn)
    channel = values["relu1_1"][0][:, :, 0]
    # 4.2 x 5.6 inches of 20 px: squares of 4, two rows of each.
    assert part.lines[1] == "241 rows read"
    assert whole.lines[1] == f"{words_for_number(channel.min())} to {words_for_number(channel.max())}"
    assert part.high == max(channel[::2].max(), channel[-1].max())


WRONG = [
    ({"channel": 3, "channels": 9}, "channel: of no use beside channels, got 3. "),
    ({"file": "a.jpg"}, "file: not a valid value, got 'a.jpg'. Expected a name that ends in .png, .pdf or .svg."),
    # What this run does not have.
    ({"image": "sky/rockt.jpg"}, "image: {run}/features.h5: no such image, got 'sky/rockt.jpg'. Expected a key such as: sky/roc"),
    ({"image": "6"}, "image: no such row, got 6. Expected -6 to 5, or a key."),
    ({"layers": "relu1_2"}, "layers: not stored in this run, got 'relu1_2'. Expected one of: relu1_1."),
    ({"channel": 3}, "channel: layer conv1_1 has no such channel, got 3. Expected 0 to 2."),
    ({"channels": [0, 5], "layers": "pool2"}, "channels: layer pool2 has no such channel, got 5. Expected 0 to 4."),
    ({"colormap": "grey2"}, "colormap: Matplotlib has none of this name, got 'grey2'. Expected one of: grey"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda part: str(part)[:30])
def test_a_wrong_value_says_what_is_right(folder: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as raised:
        plot(**{"run": folder, "input": False, **values})
    assert str(raised.value).startswith(message.format(run=folder))


def test_a_failed_image_says_why_it_has_no_picture(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"row 1 \('people/broken.jpg'\) failed and has no features, got 'truncated"):
        plot(folder, image="people/broken.jpg")
    write_run(tmp_path / "bad", make_spec(2), failed=[0, 1])
    with pytest.raises(StoreError, match=r"row 0 .* failed and has no features"):
        plot(tmp_path / "bad")


def test_no_picture_takes_the_name_of_another(written: Callable[..., Any]) -> None:
    for values in ({"images": [0, 2], "layers": "pool2"}, {"channels": 2}):
        with pytest.raises(OptionError, match=r"file: several pictures would have one name, got .x\.png."):
            written(**values, file="x.png")


def test_keys_of_any_kind_make_names_that_every_system_takes(tmp_path: Path, written: Callable[..., Any]) -> None:
    keys = ["x" * 400 + "/猫.jpg", "猫" * 100, "a\nb", "{run}$HOME%s;|.jpg", ".."]
    run = tmp_path.parent / f"{tmp_path.name} run"
    write_run(run, make_spec(len(keys), {"a": (2, 2, 1)}, keys=keys))
    names, _ = written(run=run, images=[*range(len(keys))], input=False)
    assert len(set(names)) == len(keys)
    assert all(len(name.encode()) < 200 and not set("/\\\n:*?|;$%{}") & set(name) for name in names)


def test_a_window_is_refused_where_there_is_none(folder: Path, tmp_path: Path) -> None:
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    with pytest.raises(OptionError, match=r"^show: no window can be opened, got no display"):
        plot(folder, layers="pool2", show=True, file=str(tmp_path / "a.png"))
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_same_bytes_and_loads_no_tensorflow(folder: Path, tmp_path: Path) -> None:
    program = """
import runpy, sys
runpy.run_module("pipeline.plot", run_name="__main__")
print("tensorflow" in sys.modules)
"""
    # A notebook's backend, which the programs that it starts inherit and may not have.
    told = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONWARNINGS": "error"}
    arguments = ["image=sky/rocket.jpg", "layers=[conv1_1,relu5_1.avg.l2]", "channels=active:2", "file={layer}.png"]
    result = run_python(program, f"run={folder}", *arguments, cwd=tmp_path, **told)
    assert (result.stdout.splitlines()[-1], result.stderr) == ("False", "")
    for layer in ("conv1_1", "relu5_1.avg.l2"):
        path = next(tmp_path.glob(f"{layer}*.png"))
        plot(folder, layers=layer, channels="active:2", file=str(tmp_path / "again.png"))
        assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_picture_of_the_readme_is_what_its_command_makes(tmp_path: Path) -> None:
    shutil.copytree(PHOTOGRAPHS, tmp_path / "tests/photographs")
    arguments = ["data.dir=tests/photographs", "name=maps", "network.weights=random", "layers=[relu?_1,pool4]"]
    assert call(*arguments, cwd=tmp_path).returncode == 0
    arguments = ["run=outputs/maps", "image=sky/rocket.jpg", "channel=49", "file=feature-maps.png"]
    assert call(*arguments, cwd=tmp_path, module=MODULE).returncode == 0
    picture = REPOSITORY / "tests/pictures/feature-maps.png"
    made, kept = (np.asarray(Image.open(path)).astype(int) for path in (tmp_path / picture.name, picture))
    assert made.shape == kept.shape
    # Letters differ a little from one version of Matplotlib to the next, values from one processor to the next.
    assert np.mean(np.abs(made - kept).max(axis=2) > 8) < 0.01
