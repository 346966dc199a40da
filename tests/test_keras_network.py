"""Networks of Keras: layers, preprocessing and weights, against ``keras.Model(...).predict`` on the same pixels."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from pipeline import extract_features, layer_table, open_run
from pipeline.config import check_options
from pipeline.errors import OptionError, PipelineError, WeightsError
from pipeline.network.keras_models import MODELS, KerasTable, check_model, load_keras

from .oracle import relative_error
from .processes import call, call_here
from .test_config import values

SIDE = 64


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures that need no resizing, so that both sides see the same pixels."""
    folder = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(5)
    for number in range(3):
        coarse = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def pixels(images: Path, side: int = SIDE) -> Any:
    pictures = (Image.open(path).resize((side, side)) for path in sorted(images.iterdir()))
    return np.stack([np.asarray(picture, np.float32) for picture in pictures])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A functional model in a file, with a layer of every kind that is stored and of one that is not."""
    keras.utils.set_random_seed(1)
    taken = keras.Input((None, None, 3), name="picture")
    found = keras.layers.Rescaling(1 / 255, name="small.avg")(taken)
    found = keras.layers.Conv2D(8, 3, padding="same", name="first")(found)
    found = keras.layers.BatchNormalization()(found)
    found = keras.layers.ReLU(name="active.pca")(found)
    found = keras.layers.MaxPooling2D(name="small")(found)
    sequence = keras.layers.Reshape((-1, 8), name="sequence")(found)
    inner = keras.Sequential([keras.Input((None, None, 8)), keras.layers.Conv2D(4, 1, name="hidden")], name="inside")
    found = keras.layers.GlobalAveragePooling2D(name="mean")(inner(found))
    network = keras.Model(taken, [keras.layers.Dense(5, name="classes")(found), sequence])
    network.compile("adam")
    path = tmp_path_factory.mktemp("models") / "tiny.keras"
    network.save(path)
    return path


def extract(images: Path, model: str | Path, layers: list[str], output: Path, **options: Any) -> Any:
    given = {"network": "keras", "model": str(model), "output_dir": output, "name": "run", "quiet": True} | options
    return extract_features(images, layers, **given)


def test_a_file_gives_what_keras_predicts_and_goes_on_as_other_runs_do(images: Path, tiny: Path, tmp_path: Path) -> None:
    words = ["small", "inside:avg", "active.pca:grid", "mean", "classes:l2"]
    run = extract(images, tiny, words, tmp_path, size=SIDE, images_per_shard=2)
    network = keras.saving.load_model(tiny, compile=False)
    outputs = [network.get_layer(name).output for name in ("active.pca", "small", "inside", "mean", "classes")]
    active, small, inside, mean, classes = keras.Model(network.inputs, outputs).predict(pixels(images), verbose=0)
    assert run.layers == ("active.pca.grid", "small", "inside.avg", "mean", "classes.l2")
    assert run["small"].shape == (3, SIDE // 2, SIDE // 2, 8)
    halves = active.reshape(3, 2, SIDE // 2, 2, SIDE // 2, 8).mean((2, 4)).reshape(3, -1)
    normalized = classes / np.linalg.norm(classes, axis=1, keepdims=True)
    for name, expected in zip(run.layers, (halves, small, inside.mean((1, 2)), mean, normalized), strict=True):
        assert relative_error(run[name][:], expected) < 1e-5, name
    assert run.attributes["network"] == "keras"
    first = [path.stat().st_mtime_ns for path in sorted((tmp_path / "run/shards").iterdir())]
    extract(images, tiny, words, tmp_path, size=SIDE, images_per_shard=2)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "run/shards").iterdir())] == first
    for other in ({"preprocess": "tf"}, {"weights": "random"}):
        with pytest.raises(PipelineError, match="the folder holds another run"):
            extract(images, tiny, words, tmp_path, size=SIDE, images_per_shard=2, **other)


def test_dots_in_names_are_not_taken_for_reductions(images: Path, tiny: Path, tmp_path: Path) -> None:
    extract(images, tiny, ["small.avg", "active.pca", "small"], tmp_path / "outputs", size=SIDE)
    call_here("run=outputs/run", "name=reduced", "layers=[active.pca,*]", "reduce=[max]", cwd=tmp_path, module="pipeline.reduce")
    assert open_run(tmp_path / "outputs/reduced").layers == ("small.avg.max", "active.pca.max", "small.max")


def test_names_that_keras_makes_up_are_the_same_whatever_was_built_before(tiny: Path, tmp_path: Path) -> None:
    def build(side: int) -> Any:
        return KerasTable("MobileNet", (side, side)).layers()

    first = build(64)
    for _ in range(2):
        keras.layers.GlobalAveragePooling2D()
        keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(1, 1)])
    again = build(96)
    assert [*first] == [*again]
    assert "global_average_pooling2d" in first
    assert first["conv_pw_13_relu"].shape == (2, 2, 1024)
    assert first["conv_pw_13_relu"].layer == again["conv_pw_13_relu"].layer


def test_random_weights_are_seeded_and_do_not_disturb_other_draws(tiny: Path) -> None:
    layers = KerasTable(str(tiny), (SIDE, SIDE)).resolve(["all"])

    def load(seed: int) -> Any:
        return load_keras(str(tiny), "random", "auto", size_px=(SIDE, SIDE), layers=layers, seed=seed, log=lambda line: None)

    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    one, same, other = load(0), load(0), load(1)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    assert one.sha256 == same.sha256 != other.sha256
    drawn = dict(one.arrays)
    assert drawn["first/kernel"].std() == pytest.approx(math.sqrt(2 / 27), rel=0.2)
    assert drawn["first/bias"].tolist() == [0] * 8


def test_the_table_of_layers_has_shapes_and_bytes(tiny: Path) -> None:
    table = layer_table("keras", model=str(tiny), size=SIDE, layers="small")
    assert [row.name for row in table] == [
        *("small.avg", "first", "batch_normalization", "active.pca", "small", "inside", "mean", "classes")
    ]
    assert (table["small"].shape, table["small"].row_bytes, table["small"].is_chosen) == ((32, 32, 8), 32768, True)
    assert table["classes"].shape == (5,)
    assert table["small"].layer.stride_px == 2
    assert "3 x 3 x 3 x 8" in repr(table)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "ResNet5"}, "got 'ResNet5'. Expected a .keras file or one of: ResNet50"),
        ({"model": "x.keras"}, "got 'x.keras'. Expected a .keras file that exists"),
        ({"size": None}, "data.size: native size is of networks of VGG alone"),
        ({"layers": "smal"}, "layers: no map or vector of tiny matches, got 'smal'. Expected e.g. small, small.avg."),
        ({"layers": "sequence"}, "layers: no map or vector of tiny matches, got 'sequence'"),
        ({"layers": "hidden"}, "layers: no map or vector of tiny matches, got 'hidden'"),
        ({"layers": "mean:avg"}, "layers: avg takes a map and mean is a vector"),
        ({"layers": ["small.avg", "small:avg"]}, "layers: a layer has the name of a reduction, got small.avg twice"),
    ],
)
def test_wrong_options_are_one_line(images: Path, tiny: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    given = {"model": str(tiny), "layers": "small", "network": "keras"} | options
    with pytest.raises(OptionError) as error:
        extract_features(images, output_dir=tmp_path, quiet=True, **given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_what_is_no_graph_of_images_is_refused_and_nothing_in_it_is_run(images: Path, tiny: Path, tmp_path: Path) -> None:
    unsafe = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Lambda(lambda found: found + 1), keras.layers.Flatten()])
    unsafe.save(tmp_path / "lambda.keras")
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)]).save(tmp_path / "vectors.keras")
    (tmp_path / "text.keras").write_text("hello")
    with zipfile.ZipFile(tiny) as archive, zipfile.ZipFile(tmp_path / "own.keras", "w") as changed:
        config = json.loads(archive.read("config.json"))
        changed.writestr("config.json", json.dumps(config | {"class_name": "Mine", "registered_name": "my>Mine"}))
    for name, said in {"lambda": "Lambda", "vectors": "not one of RGB", "text": "not a zip", "own": "its class is Mine"}.items():
        with pytest.raises(PipelineError, match=f"network.model: .*{said}") as error:
            extract(images, tmp_path / f"{name}.keras", ["all"], tmp_path / "out")
        assert "\n" not in str(error.value)


def test_sizes_and_names_are_the_models_own() -> None:
    options = check_options(values(network__name="keras", network__model="InceptionV3"))
    assert (options.data.size, options.name) == ((299, 299), "imgs-InceptionV3")
    assert check_options(values()).data.size == (224, 224)
    assert {name for name in dir(keras.applications) if name[0].isupper()} == {*MODELS}
    assert [check_model(name) for name in MODELS] == [*MODELS]


def test_without_a_network_imagenet_says_what_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    said = r"imagenet cannot be used for MobileNet, got: .*https://.*/mobilenet_1_0_224_tf_no_top.h5.* into .*keras/models"
    with pytest.raises(WeightsError, match=said) as error:
        extract(images, "MobileNet", ["conv1_relu"], tmp_path / "out", size=96)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_published_weights_are_taken_from_keras_cache_or_as_a_file(images: Path, tmp_path: Path) -> None:
    keras.backend.clear_session()
    network = keras.applications.MobileNet(weights=None, include_top=False, input_shape=(SIDE, SIDE, 3))
    cached = tmp_path / "keras/models/mobilenet_1_0_224_tf_no_top.h5"
    cached.parent.mkdir(parents=True)
    network.save(cached)
    options = [f"data.dir={images}", "network=keras", "network.model=MobileNet", "layers=[conv_pw_3_relu]", f"data.size={SIDE}"]
    done = call(*options, "name=cached", f"output.dir={tmp_path}", cwd=tmp_path, KERAS_HOME=str(tmp_path / "keras"))
    assert done.returncode == 0, done.stderr
    cached_rows = open_run(tmp_path / "cached")["conv_pw_3_relu"][:]
    whole = keras.applications.MobileNet(weights=None, input_shape=(SIDE, SIDE, 3))
    for layer, other in zip(network.layers, whole.layers, strict=False):
        other.set_weights(layer.get_weights())
    whole.save_weights(tmp_path / "whole.weights.h5")
    for path in (cached, tmp_path / "whole.weights.h5"):
        run = extract(images, "MobileNet", ["conv_pw_3_relu"], tmp_path / path.stem, size=SIDE, weights=str(path))
        assert relative_error(run["conv_pw_3_relu"][:], cached_rows) < 1e-6
    with pytest.raises(WeightsError, match=r"network.weights: .*whole.weights.h5 cannot be used for MobileNetV2"):
        extract(images, "MobileNetV2", ["block_2_add"], tmp_path / "other", size=SIDE, weights=str(tmp_path / "whole.weights.h5"))


@pytest.mark.parametrize(
    ("model", "side", "layers"),
    [
        ("VGG16", 32, ["block2_pool"]),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("MobileNetV2", 64, ["block_2_add", "block_13_expand_relu", "out_relu", "predictions"]),
                ("ResNet50", 64, ["conv2_block3_out", "conv4_block6_out", "avg_pool"]),
                ("EfficientNetB0", 65, ["stem_activation", "block6a_expand_activation", "top_activation"]),
                ("DenseNet121", 64, ["conv1_relu", "conv5_block16_concat", "relu"]),
                ("InceptionV3", 96, ["conv2d_3", "mixed0", "mixed10"]),
                ("ConvNeXtTiny", 64, ["convnext_tiny_stem", "convnext_tiny_stage_3_block_2_identity"]),
                ("MobileNetV3Small", 64, ["activation_3", "logits"]),
            ]
        ),
    ],
)
def test_a_model_of_keras_gives_what_keras_predicts(
    model: str, side: int, layers: list[str], images: Path, tmp_path: Path
) -> None:
    # The weights of a file that Keras has saved, so that the other side has them too.
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    has_classifier = any(name in layers for name in ("predictions", "avg_pool", "logits"))
    shape = (side, side, 3)
    network = getattr(keras.applications, model)(weights=None, include_top=has_classifier, input_shape=shape)
    path = tmp_path / "saved.weights.h5"
    network.save_weights(path)
    folder = tmp_path / "images"
    folder.mkdir()
    seen = pixels(images, side)
    for number, picture in enumerate(seen):
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.png")
    run = extract(folder, model, layers, tmp_path / "out", size=side, weights=str(path))
    families = [module for module in vars(keras.applications).values() if hasattr(module, "preprocess_input")]
    # That of MobileNetV3, which is not in its module, changes nothing.
    preprocess = next((module.preprocess_input for module in families if hasattr(module, model)), np.asarray)
    outputs = [network.get_layer(name).output for name in layers]
    predicted = keras.Model(network.inputs, outputs).predict(preprocess(seen.copy()), verbose=0)
    for name, expected in zip(layers, predicted if len(layers) > 1 else [predicted], strict=True):
        assert relative_error(run[name][:], expected) < 1e-5, name
