"""Random images and options through the command, against :mod:`.plain_script`.

A failure prints both. The slow test draws others each time: ``-m slow --hypothesis-seed=1`` for the same ones again.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import extract_features
from pipeline.errors import PipelineError
from pipeline.network import architectures
from pipeline.network.known_weights import Weights

from . import plain_script
from .bad_images import KINDS, ORIENTATION, encode, picture
from .conftest import MEAN_PIXEL, THIN_CHANNELS
from .matconvnet_writer import write_matconvnet
from .plain_script import Refused, Row
from .processes import call_here
from .test_tars import write_tar
from .test_torch_weights import DEVIATION, MEAN, save_safetensors
from .weight_files import save_keras

# A test that fails shows its weights, which are long.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
# Network -> path -> what is in it.
WeightsFiles = dict[str, dict[str, plain_script.Weights]]

TOLERANCE, OF_PCA = 1e-5, 1e-4
THIN_CLASSIFIER = {"FC_CHANNELS": 96, "CLASSES": 33}
STEMS = ["img", " lead", "two  spaces", "it's", 'say "x"', "new\nline", "tab\t", "back\\slash", "%s{0}$HOME`id`", "-rf", "*?[a]"]
STEMS += ["a,b;c", "#no", "C:", "\u202egnp", "日本語", "\U0001f600", "é", "e\u0301", "Upper", "under_score=1"]
FOLDERS = ["", "", "cats/", "cats/tom/", "dogs/", "10/", "9/", "train/a b/", "ü/"]
NO_IMAGES = ["notes.txt", ".hidden.png", ".cache/x.png", "__MACOSX/x.jpg", "cats/lost+found/x.png", "noextension"]
# Format, extension, mode and options; those of bad_images whose options fit any size among them.
PLAIN = [("JPEG", ".jpg", mode, {"quality": 30 + 30 * n, "subsampling": n}) for mode in ("RGB", "L") for n in range(3)]
TURNED = [
    ("JPEG", ".jpg", "RGB"),
    ("PNG", ".png", "RGB"),
    ("WEBP", ".webp", "RGB"),
    ("TIFF", ".tif", "RGB"),
    ("JPEG", ".jpe", "CMYK"),
]
CLEAR = [("PNG", ".png", "LA"), ("PNG", ".JPG", "RGBA"), ("WEBP", ".webp", "RGBA"), ("TIFF", ".tif", "RGBA")]
OTHERS = [kind for kind in KINDS if not {"strip_size", "tile_size"} & {*kind[3]}]
MAPS, ANY = ["avg", "max", "catavgmax", "gem", "rmac", "grid", "gram"], ["units", "srp", "gaussian"]
# Taken with a probability of 0.3 each.
OPTIONS: dict[str, list[Any]] = {
    **{"data.resize": ["crop", "pad"], "data.interpolation": ["nearest", "bicubic", "lanczos"], "data.decode": ["exact", "fast"]},
    **{"data.max_failed_fraction": [0.0, 0.3], "runtime.workers": [1, 2, 3], "runtime.device": ["cpu"]},
    **{"network.pooling": ["avg"], "network.pool_padding": ["same", "valid"], "network.kernel_order": ["whio"]},
    **{"output.dtype": ["float16"], "output.overflow": ["row"], "output.compression": ["none"]},
    **{"reduction.gem.p": [1.0, 2.5, 7], "reduction.rmac.levels": [1, 4], "reduction.grid.side": [1, 3]},
    **{"reduction.gram.form": ["full"], "reduction.srp.density": [0.2], "reduction.pca.whiten": [True]},
    **{"reduction.pca.fit_images": [3], **{f"reduction.{name}.seed": [5] for name in ("units", "srp", "gaussian", "pca")}},
}


# -- What is drawn --------------------------------------------------------------------------------------------------------------


def draw_file(random: Any, number: int) -> tuple[str, bytes]:
    """Gives the extension and the bytes of a small image of any kind, or of a spoilt one."""
    high, wide = (random.choice([1, 2, 3, random.randint(4, 100), *(random.randint(16, 70) for _ in range(9))]) for _ in "hw")
    if random.random() < 0.1:
        high, wide = random.choice([(1100, 12), (9, 1300), (1030, 40), (8, 2000)])
    image, kind = picture(number, high, wide), random.randrange(10)
    if kind == 0:
        exif = Image.Exif()
        exif[ORIENTATION] = random.randint(1, 8)
        file_format, extension, mode = random.choice(TURNED)
        return extension, encode(image, file_format, mode, exif=exif)
    if kind == 1:
        grey = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257 + number)
        return random.choice([(".png", encode(grey, "PNG", "I;16")), (".tif", encode(grey, "TIFF", "I;16"))])
    if kind == 2:
        image.putalpha(image.convert("L").point(lambda value: value // 100 * 127))
        file_format, extension, mode = random.choice(CLEAR)
        return extension, encode(image, file_format, mode)
    if kind == 3:
        file_format, extension = random.choice([("PNG", ".png"), ("GIF", ".gif")])
        return extension, encode(image, file_format, "P", transparency=random.randrange(20))
    file_format, extension, mode, options = random.choice(PLAIN if kind < 6 else OTHERS)
    data = encode(image, file_format, mode, **options)
    if kind == 9:
        data = random.choice([b"", b"no image", data[: len(data) // 3], data[: len(data) * 2 // 3]])
    return random.choice([extension, extension, extension.upper()]), data


def draw_source(random: Any, files: dict[str, bytes], folder: Path) -> tuple[dict[str, Any], Callable[..., None]]:
    """Gives the options that name the images, and what has some of them be there."""
    kind, place = random.choice(["dir", "dir", "list", "tar"]), random.choice(["imgs", "my imgs=1, é", "a.b"])
    first, second, third = (random.random() < 0.5 for _ in range(3))
    others, delimiter = random.sample(NO_IMAGES, 2), random.choice(",;\t")
    tar_format = random.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])

    def write(keys: Sequence[str]) -> None:
        for key in files:
            (folder / place / key).unlink(missing_ok=True)
        for key, data in {**{key: files[key] for key in keys}, **dict.fromkeys(others, b"")}.items():
            (folder / place / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / place / key).write_bytes(data)

    def write_list(keys: Sequence[str]) -> None:
        write(keys)
        named = [*(["cats/gone.png"] if first else []), *(key for key in keys if second or not {"\n", "#"} & {*key})]
        lines = [[key, str(len(key) / 4), key[-3:], *([key[:2].strip()] if third else [])] for key in named]
        if second:
            cells = [["path", "score", "kind", *(["label"] if third else [])], *lines]
            text = [delimiter.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in cells]
        else:
            text = ["# paths", *named]
        (folder / listing).write_bytes("".join(f"{line}\n" for line in text).encode())

    def write_tars(keys: Sequence[str]) -> None:
        cut = len(files) // 2 if second else len(files)
        # A name that is in both: then all of the second's keys begin with its own.
        for tar, part in zip(tars, ([*files][:cut], [*files][cut:] + [*files][: first and len(keys[0]) % 2]), strict=False):
            members = {f"./{key}" if first else key: files[key] for key in part if key in keys}
            heads = [key.rpartition(".")[0] for key in members]
            members |= {f"{head}.cls": str(len(head) % 3).encode() for head in heads if third and len(head) % 2}
            said = {"score": 0.5, "label": "of json", "none": "x"}
            members |= {f"{head}.json": json.dumps(said).encode() for head in heads if first}
            write_tar(folder / tar, {**members, **dict.fromkeys(others, b"")}, tar_format)

    listing, tars = f"{'.' if first else place}/list.{'csv' if second else 'txt'}", ["one.tar", "two.tar"][: 1 + second]
    (folder / place).mkdir()
    named, put, columns = {
        "dir": ({"data.dir": place}, write, []),
        "list": ({"data.list": listing, **({"data.dir": place} if first else {})}, write_list, ["score", "kind"] * second),
        "tar": ({"data.tar": tars}, write_tars, ["tar"]),
    }[kind]
    return named | {"data.label": random.choice(["folder", "folder", "parent", *columns])}, put


def draw_chain(random: Any, size: Any) -> list[str]:
    first = random.choice(MAPS if size is None else [*MAPS, *MAPS, *ANY])
    return [first, *random.choice([[], [], ["l2"], ["pca"], [random.choice(ANY)]]), *random.choice([[], [], ["l2"]])]


def draw_options(random: Any, weights_files: WeightsFiles) -> dict[str, Any]:
    network, depth = random.choice(["vgg19", "vgg19", "vgg16", "vgg13", "vgg11"]), random.choice([1, 2, 2, 3, 3, 4, 5])
    sides = [random.randint(16, 64) for _ in range(4)]
    size = random.choice([sides[0], sides[1], sides[2:], None])
    words = [name for name in plain_script.find_layers("all", network) if name[4] <= str(depth)] * 2
    words += ["relu?_1", "features.2", f"block{depth}", f"conv{depth}_*", f"block{depth}_pool", f"block{depth}_conv1"]
    words += ["all", "style", *(["lpips"] if network == "vgg16" else [])] if depth == 5 else []
    weights = random.choice(["random", "random", *weights_files.get(network, ())])
    has_classifier = weights_files and random.random() < 0.02
    if has_classifier:
        words, weights = ["fc6", "relu6", "fc7", "fc8", "fc?", "fc6:l2", "fc7:units"], "random"
        size = [random.randint(193, 226), 224]
    options: dict[str, Any] = {name: random.choice(values) for name, values in OPTIONS.items() if random.random() < 0.3}
    if size is None:
        options.pop("data.decode", None)
    if has_classifier:
        # A strip that is scaled to more than 16384 px is cut before, which rounds otherwise.
        options["data.resize"] = "squash"
    else:
        if random.random() < 0.2:
            options["reduce"] = draw_chain(random, size)
        chains = [draw_chain(random, size) if random.random() < 0.4 else [] for _ in range(3)]
        words = [":".join([word, *chain]) for word, chain in zip(random.sample(words, 3), chains, strict=True)]
    if size is None and "pca" in str([*words, options.get("reduce")]):
        # A transform is fitted to images that are too small for another layer, too.
        options["network.pool_padding"] = "same"
    return options | {
        "layers": random.sample(words, random.randint(1, 3)),
        "data.size": size,
        "network": network,
        "network.weights": weights,
        "network.seed": random.randint(1, 3),
        "batch_size": random.choice(["auto", 1, 2, 3, 5]),
        "output.images_per_shard": random.choice(["auto", 1, 2, 3]),
        "runtime.backend": random.choice(["auto", "winograd", "tensorflow"]),
        "reduction.units.n_components": random.randint(1, 9),
        "reduction.pca.n_components": random.randint(1, 2),
        "reduction.gaussian.n_components": random.randint(1, 9),
        "reduction.srp.n_components": random.choice(["auto", 5]),
        "reduction.srp.eps": 0.9,
        "name": "run",
    }


# -- What is done ---------------------------------------------------------------------------------------------------------------


def run_command(entry: str, folder: Path, options: dict[str, Any], module: str = "pipeline.run") -> tuple[int, str]:
    """Gives the exit code and what was said, of the command or of the call from Python."""
    if entry == "python" and module == "pipeline.run" and "part" not in options:
        paths = {name: options[name] for name in ("data.dir", "data.list", "data.tar") if name in options}
        absolute = {k: [str(folder / path) for path in v] if isinstance(v, list) else folder / v for k, v in paths.items()}
        try:
            extract_features(**options | absolute | {"output_dir": folder / "outputs"}, quiet=True)
        except PipelineError as error:
            return error.exit_code, str(error)
        return 0, ""
    texts = {
        k: f"[{','.join(map(str, v))}]" if isinstance(v, list) else "null" if v is None else str(v) for k, v in options.items()
    }
    ended = call_here(*(f"{name}={text}" for name, text in texts.items()), cwd=folder, module=module)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, ended.stderr


def check(folder: Path, random: Any, weights_files: WeightsFiles) -> str:
    """Draws images and options, calls the command, and compares what it has written; gives what has been done."""
    files = {}
    for number in range(random.randint(1, 7)):
        extension, data = draw_file(random, number)
        files[f"{random.choice(FOLDERS)}{random.choice(STEMS)}{number}{extension}"] = data
    source, put = draw_source(random, files, folder)
    options, keys, before, path = draw_options(random, weights_files) | source, [*files], list[Row](), folder / "outputs/run"
    entry = random.choice(["here", "here", "python"])
    story = random.choice(["twice", "lost", "extend", "parts", "replace", "reduce"])
    if story == "parts":
        # A part may fail more than the run does.
        options.pop("data.max_failed_fraction", None)
    print(story, entry, json.dumps(options, ensure_ascii=False), {key: len(data) for key, data in files.items()})
    weights = weights_files.get(options["network"], {}).get(options["network.weights"])
    if weights is None:
        weights = plain_script.random_weights(options["network"], options["network.seed"], THIN_CHANNELS, **THIN_CLASSIFIER)

    def run(code: int = 0, module: str = "pipeline.run", **more: Any) -> None:
        given = options if module == "pipeline.run" else {}
        found, said = run_command(entry, folder, given | {name.replace("__", "."): value for name, value in more.items()}, module)
        assert found == code, (found, code, said)

    def expect() -> list[Row]:
        return plain_script.make_rows(options, weights, folder, before)

    try:
        if story == "extend" and len(keys) > 1:
            put(keys[: len(keys) // 2 + 1])
            before = expect()
            run()
            options["output.existing"] = "extend"
            keys = keys[random.randrange(2) :]
        put(keys)
        rows = expect()
    except Refused as refused:
        run(refused.args[0])
        return "refused"
    if story == "parts":
        parts = random.randint(1, 3)
        for number in random.sample(range(1, parts + 1), parts):
            run(part=f"{number}/{parts}")
        run(module="pipeline.index", run=path)
    if story == "replace":
        run(data__size=20, layers=["relu1_1"], output__dtype="float32", data__decode="exact", reduce=[])
        options["output.existing"] = "replace"
    if story != "parts":
        run()
    if story in ("twice", "lost"):
        content = bits(path)
        if story == "lost":
            random.choice(sorted((path / "shards").iterdir())).unlink()
        run()
        assert bits(path) == content or (story == "lost" and options["runtime.backend"] == "tensorflow")
    compare(path, rows, options)
    stored = [name for name in rows[0].maps if all(row.features.get(name) is row.maps.get(name) for row in rows)]
    if story == "reduce" and stored and options.get("output.dtype") != "float16":
        options["layers"] = [":".join([random.choice(stored), *draw_chain(random, options["data.size"])])]
        of_reduce = {name: value for name, value in options.items() if name.startswith("reduction.")}
        try:
            rows, code = expect(), 0
        except Refused as refused:
            code = refused.args[0]
        run(code, "pipeline.reduce", run=path, layers=options["layers"], **of_reduce, name="small")
        if code == 0:
            compare(folder / "outputs/small", rows, options)
    return story


def bits(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape and item.dtype.kind == "f":
            found[name] = item[()].tobytes()

    with h5py.File(path / "features.h5") as file:
        file.visititems(add)
    return found


def compare(path: Path, rows: list[Row], options: dict[str, Any]) -> None:
    """Compares a run with what it should hold."""
    for line in (path / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ", 1)
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest, name
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    assert (report["rows"], report["failed"]) == (len(rows), sum(not row.ok for row in rows))
    with h5py.File(path / "features.h5") as file:
        columns = file["images"].items()
        images = {name: (column.asstr() if column.dtype.kind == "O" else column)[:].tolist() for name, column in columns}
        images["error"] = [bool(error) for error in images["error"]]
        assert images == {
            "key": [row.key for row in rows],
            "status": ["ok" if row.ok else "failed" for row in rows],
            "error": [not row.ok for row in rows],
            "label": [row.label for row in rows],
            "bytes": [len(row.data or b"") for row in rows],
            "sha256": ["" if row.data is None else hashlib.sha256(row.data).hexdigest() for row in rows],
            "height": [row.height for row in rows],
            "width": [row.width for row in rows],
            **{name: [row.columns[name] for row in rows] for name in rows[0].columns},
        }
        names = {*next(row.features for row in rows if row.ok)}
        assert {*file["features"]} == names
        for name in names:
            compare_layer(file, name, rows, np.dtype(options.get("output.dtype", "float32")))


def compare_layer(file: h5py.File, name: str, rows: list[Row], dtype: np.dtype[Any]) -> None:
    layer, checksums, statistics, kept = file["features"][name], file["checksums"][name][:], file["statistics"][name], []
    for number, row in enumerate(rows):
        values = layer.get(f"{number:09d}", np.nan) if isinstance(layer, h5py.Group) else layer[number]
        values = np.asarray(values)
        if not row.ok:
            assert np.isnan(values).all()
            assert checksums[number] == 0
            continue
        expected = row.features[name]
        assert (values.dtype, values.shape) == (dtype, expected.shape), name
        error, norm = np.abs(values - expected), float(np.linalg.norm(expected))
        if dtype == np.float16:
            error = np.maximum(0.0, error - np.spacing(np.abs(values)).astype(np.float64) / 2)
        assert np.linalg.norm(error) <= (OF_PCA if "pca" in name else TOLERANCE) * norm * row.losses[name], (
            name,
            row.key,
            np.linalg.norm(error) / norm,
        )
        assert checksums[number] == zlib.crc32(values.tobytes())
        kept.append(values.reshape(-1, values.shape[-1]))
    stored = np.concatenate(kept)
    counts = [len(kept), stored.size, np.count_nonzero(stored == 0)]
    assert [statistics[key][()] for key in ("rows", "values", "zeros")] == counts
    np.testing.assert_array_equal(statistics["channel_minimum"], stored.min(0))
    np.testing.assert_array_equal(statistics["channel_maximum"], stored.max(0))


# -- The tests ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights_files(tmp_path_factory: pytest.TempPathFactory) -> WeightsFiles:
    """Thin weights in files of several kinds."""
    folder = tmp_path_factory.mktemp("weights")
    found: WeightsFiles = {}
    names = {"vgg19": ("new.mat", "keras.h5", "of.safetensors"), "vgg16": ("old.mat", "keras.h5"), "vgg11": ("of.safetensors",)}
    for network, name in ((network, name) for network, all_names in names.items() for name in all_names):
        path, draw = folder / f"{network}-{name}", np.random.default_rng(len(network + name))
        plain = plain_script.random_weights(network, 10, THIN_CHANNELS)
        biases = {layer: draw.normal(0, 9, bias.size).astype(np.float32) for layer, bias in plain.biases.items()}
        kernels, mean, scale, padding = plain.kernels, MEAN_PIXEL, None, "same"
        if name == "of.safetensors":
            mean, scale, padding = MEAN * 255, DEVIATION * 255, "valid"
            places = {layer: f"features.{plain_script.layer_names(network).index(layer)}" for layer in kernels}
            state = {f"{places[layer]}.weight": kernel.transpose(3, 2, 0, 1).copy() for layer, kernel in kernels.items()}
            save_safetensors(path, state | {f"{places[layer]}.bias": bias for layer, bias in biases.items()})
        elif name == "keras.h5":
            save_keras(path, Weights(network, kernels, biases, mean, padding, ""))
        else:
            mean, padding = np.array([120.5, 110.25, 99.0]), "valid" if name == "new.mat" else "same"
            write_matconvnet(path, Weights(network, kernels, biases, mean, padding, ""), name[:3])
        found.setdefault(network, {})[str(path)] = plain_script.Weights(kernels, biases, mean, scale, padding == "same")
    return found


@pytest.fixture
def thin(thin_weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in THIN_CLASSIFIER.items():
        monkeypatch.setattr(architectures, name, value)


EVERY = settings(database=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate,))
# Hypothesis calls a test flaky that fails before all is drawn, if it draws more than a seed.
DRAWN = given(st.integers(0, 2**32))


def in_folder(seed: int, weights_files: WeightsFiles) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder), Random(seed), weights_files)


@settings(EVERY, max_examples=15, derandomize=True)
@DRAWN
def test_runs_hold_what_a_plain_script_makes(thin: None, weights_files: WeightsFiles, seed: int) -> None:
    in_folder(seed, weights_files)


@pytest.mark.slow
@settings(EVERY, max_examples=300)
@DRAWN
def test_many_runs_hold_what_a_plain_script_makes(thin: None, weights_files: WeightsFiles, seed: int) -> None:
    in_folder(seed, weights_files)
