"""Reductions: against sums in double precision, on every backend, in runs that are cut, resumed, extended and of native size."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import extract_features, job, open_run
from pipeline.config import check_options, nested
from pipeline.errors import OptionError, StoreError
from pipeline.network import host_reductions
from pipeline.network.architectures import VggTable
from pipeline.network.reductions import johnson_lindenstrauss, resolve_features
from pipeline.store.verification import verify_folder

from .oracle import reduce

CHAINS = [
    *("avg", "max", "catavgmax", "gem", "rmac", "grid", "gram", "units", "srp", "gaussian"),
    *("avg:l2", "grid:units", "gem:gaussian:l2", "catavgmax:srp"),
]
SETTINGS: dict[str, Any] = {"weights": "random", "quiet": True, "size": [36, 52]}
COUNTS = {f"{name}_n_components": 50 for name in ("units", "srp", "gaussian")}


def oracle(chain: str, values: np.ndarray) -> np.ndarray:
    """What a chain makes of a map (h, w, c), slowly and in double precision."""
    values = values.astype(np.float64)
    for name in chain.split(":"):
        values = reduce(name, values, **({"n_components": 50} if f"{name}_n_components" in COUNTS else {}))
    return values


@pytest.fixture(scope="module")
def folder(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images, one of them broken."""
    folder = tmp_path_factory.mktemp("images")
    for number, path in enumerate(sorted(photographs.rglob("*.jpg"))[:4]):
        (folder / f"{number}.jpg").write_bytes(path.read_bytes())
    (folder / "2b.jpg").write_bytes(b"no image")
    return folder


def same(first: Any, second: Any, names: Any) -> bool:
    return all(np.array_equal(first[name][:], second[name][:], equal_nan=True) for name in names)


@pytest.mark.parametrize("backend", ["winograd", "tensorflow"])
def test_each_reduction_is_what_double_precision_makes_of_the_stored_map(
    backend: str, folder: Path, thin_weights: Callable[..., Any], tmp_path: Path
) -> None:
    words = ["relu3_1", *(f"relu3_1:{chain}" for chain in CHAINS)]
    run = extract_features(folder, words, **SETTINGS, **COUNTS, output_dir=tmp_path, backend=backend)
    assert run.layers == ("relu3_1", *sorted(f"relu3_1.{chain.replace(':', '.')}" for chain in CHAINS))
    maps, bad = run["relu3_1"], list(run.images["status"]).index("failed")
    for chain in CHAINS:
        layer = run[f"relu3_1.{chain.replace(':', '.')}"]
        assert layer.dtype == np.float32
        assert layer.shape == (5, len(oracle(chain, maps[0])))
        assert np.isnan(layer[bad]).all()
        for row in {*range(5)} - {bad}:
            expected = oracle(chain, maps[row])
            assert np.linalg.norm(layer[row] - expected) <= 1e-5 * np.linalg.norm(expected), chain
    assert verify_folder(run.path.parent, 2).count == 0


def test_no_bit_depends_on_batches_threads_parts_or_a_second_run(
    folder: Path, thin_weights: Callable[..., Any], tmp_path: Path
) -> None:
    words = [f"relu3_1:{chain}" for chain in CHAINS]
    settings = SETTINGS | COUNTS | {"images_per_shard": 2}
    whole = extract_features(folder, words, **settings, output_dir=tmp_path / "a")
    alone = extract_features(folder, words, **settings, output_dir=tmp_path / "b", batch_size=1, workers=1)
    assert same(whole, alone, whole.layers)
    assert whole.attributes["run_digest"] == alone.attributes["run_digest"]
    # Of a run that is resumed: one of its shards is made again.
    shard = next((tmp_path / "b").glob("*/shards/*00001*"))
    shard.unlink()
    again = extract_features(folder, words, **settings, output_dir=tmp_path / "b")
    assert shard.exists()
    assert same(whole, again, whole.layers)


@pytest.mark.parametrize("size", [[36, 52], None])
def test_averages_made_while_a_layer_is_computed_are_those_of_its_stored_map(
    size: Any, folder: Path, thin_weights: Callable[..., Any], tmp_path: Path
) -> None:
    plain = dict.fromkeys(("conv1_1", "relu1_2", "pool1", "relu2_2"), "avg")
    chains = plain | {"relu1_1": "avg:l2", "conv2_1": "avg:gaussian"}
    words = [*(f"{layer}:{chain}" for layer, chain in chains.items()), "relu3_1:avg"]
    settings = SETTINGS | {"size": size, "gaussian_n_components": 7}
    if size is None:
        small = tmp_path / "small"
        small.mkdir()
        for number, path in enumerate(sorted(folder.glob("?.jpg"))):
            with Image.open(path) as image:
                image.resize((70 + 9 * number, 61)).save(small / path.name)
        folder = small
    alone = extract_features(folder, words, **settings, output_dir=tmp_path / "a")
    beside = extract_features(folder, [*words, *chains], **settings, output_dir=tmp_path / "b")
    assert alone.layers == tuple(layer for layer in beside.layers if "." in layer)
    assert same(alone, beside, alone.layers)


def test_automatic_components_stay_as_they_were_when_a_run_grows(
    folder: Path, photographs: Path, thin_weights: Callable[..., Any], tmp_path: Path
) -> None:
    settings = SETTINGS | {"name": "r", "output_dir": tmp_path / "out", "srp_eps": 0.9}
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted(folder.iterdir())[:2]:
        (images / path.name).write_bytes(path.read_bytes())
    first = extract_features(images, ["relu3_1:srp", "relu3_1:srp:srp"], **settings)
    assert first["relu3_1.srp"].shape == (2, johnson_lindenstrauss(2, 0.9))
    values = first["relu3_1.srp"][:]
    for path in folder.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    grown = extract_features(images, ["relu3_1:srp", "relu3_1:srp:srp"], **settings, existing="extend")
    assert grown["relu3_1.srp"].shape == (5, johnson_lindenstrauss(2, 0.9))
    # And so does the density that follows from them.
    matrix = host_reductions.sparse_matrix(17, 17, 17**-0.5, 0)
    np.testing.assert_allclose(grown["relu3_1.srp.srp"][4], matrix @ grown["relu3_1.srp"][4], rtol=1e-4)
    assert np.array_equal(grown["relu3_1.srp"][:2], values)
    with pytest.raises(StoreError, match=r"reduction\.srp\.seed"):
        extract_features(images, "relu3_1:srp", **settings, srp_seed=1)


def test_matrices_are_the_same_on_every_machine_and_keep_lengths() -> None:
    assert host_reductions.chosen_places("units", 1000, 5, 3).tolist() == [427, 462, 681, 967, 998]
    sparse = host_reductions.sparse_matrix(400, 300, 0.05, 7)
    assert sparse.nnz == 300 * 20
    assert [sparse.indices[:4].tolist(), np.sign(sparse.data[:4]).tolist()] == [[7, 27, 56, 73], [-1, 1, 1, 1]]
    dense = host_reductions.gaussian_matrix(400, 300, 7)
    assert (dense[0, :3] * math.sqrt(300) * 4096).round(2).tolist() == [-184, 2438, -6727]
    vectors = np.random.default_rng(0).normal(size=(50, 400))
    for matrix in (sparse, dense):
        ratio = np.linalg.norm(matrix @ vectors.T, axis=0) / np.linalg.norm(vectors, axis=1)
        assert abs(ratio.mean() - 1) < 0.03
        assert ratio.std() < 0.06  # 1 / sqrt(2 * 300)


@pytest.mark.parametrize(
    ("words", "reduce", "settings", "said"),
    [
        (["relu5_1:average"], [], {}, "no such reduction, got 'average' of relu5_1. Expected one of: avg"),
        (["relu5_1:avg:max"], [], {}, "max takes a map and relu5_1:avg is a vector"),
        (["relu5_1:l2"], [], {}, "l2 takes a vector and relu5_1 is a map"),
        (["relu5_1"], ["l2"], {}, "l2 takes a vector"),
        (["relu4_1:units"], [], {"size": None}, "maps of native size differ"),
        (["relu4_1:avg:units"], [], {}, "5000 components of 512 values"),
        (["relu1_1:gaussian"], [], {}, "matrix of relu1_1:gaussian would be too large"),
        (["relu4_1:pca"], [], {}, "matrix of relu4_1:pca would be too large"),
        (["relu4_1:avg:pca:pca"], [], {}, "pca comes once in a chain"),
    ],
)
def test_what_does_not_fit_together_is_one_line(
    words: list[str], reduce: list[str], settings: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError) as error:
        extract_features(folder, words, reduce=reduce, output_dir=tmp_path, **settings)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_the_default_chain_is_for_layers_that_name_none_and_classifiers_may_be_normalized() -> None:
    def names(words: list[str], reduce: list[str], **more: Any) -> list[str]:
        settings = {"size_px": (224, 224)} | more
        return [feature.name for feature in resolve_features(VggTable("vgg19", "same"), words, reduce, {}, **settings)]

    assert names(["relu5_1", "relu4_1:max"], ["avg", "l2"]) == ["relu4_1.max", "relu5_1.avg.l2"]
    assert names(["relu?_1:avg", "relu1_1:avg"], []) == [f"relu{block}_1.avg" for block in range(1, 6)]
    assert names(["fc7:l2", "features.20:avg"], []) == ["relu4_1.avg", "fc7.l2"]


@pytest.fixture
def more_images(photographs: Path, tmp_path: Path) -> Path:
    """Twelve different images and a broken one."""
    folder = tmp_path / "more"
    folder.mkdir()
    image = Image.open(sorted(photographs.rglob("*.jpg"))[0]).convert("RGB")
    for number in range(12):
        image.rotate(30 * number).save(folder / f"{number:02}.png")
    (folder / "05b.jpg").write_bytes(b"no image")
    return folder


PCA: dict[str, Any] = SETTINGS | {"pca_n_components": 4, "images_per_shard": 5}


@pytest.mark.parametrize("backend", ["winograd", "tensorflow"])
@pytest.mark.parametrize("whiten", [False, True])
def test_pca_is_that_of_the_sample_in_double_precision(
    backend: str, whiten: bool, more_images: Path, thin_weights: Callable[..., Any], tmp_path: Path
) -> None:
    words = ["relu3_1:avg", "relu3_1:avg:pca", "relu3_1:avg:pca:l2"]
    settings = PCA | {"output_dir": tmp_path / "out", "backend": backend, "pca_whiten": whiten}
    run = extract_features(more_images, words, **settings)
    vectors = run["relu3_1.avg"][run.images["status"] == "ok"].astype(np.float64)
    centred = vectors - vectors.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred / (len(vectors) - 1))
    axes = axes[:, ::-1][:, :4]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), range(4)])
    expected = centred @ axes / (np.sqrt(values[::-1][:4]) if whiten else 1)
    found = run["relu3_1.avg.pca"][run.images["status"] == "ok"]
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)
    normalized = run["relu3_1.avg.pca.l2"][run.images["status"] == "ok"]
    assert np.allclose(normalized, found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-6)
    assert verify_folder(run.path.parent, 2).count == 0


def test_parts_a_resumed_an_extended_and_another_run_share_a_transform(
    more_images: Path, thin_weights: Callable[..., Any], tmp_path: Path
) -> None:
    def made(where: str, **more: Any) -> Any:
        return extract_features(more_images, "relu3_1:avg:pca", **PCA, output_dir=tmp_path / where, name="r", **more)

    whole, folder = made("a"), tmp_path / "a/r"
    transform = (folder / "transforms.npz").read_bytes()
    for number in (1, 2):
        options = {"data.dir": str(more_images), "layers": ["relu3_1:avg:pca"], "data.size": [36, 52], "name": "r"}
        options |= {"network.weights": "random", "reduction.pca.n_components": 4, "output.images_per_shard": 5}
        job.run(check_options(nested(options | {"output.dir": str(tmp_path / "b"), "part": f"{number}/2"})), quiet=True)
    assert same(whole, open_run(tmp_path / "b/r"), whole.layers)
    # A lost transform is fitted again, to the same bits; a shard that is lost is made again with it.
    (folder / "transforms.npz").unlink()
    next(folder.glob("shards/*00001*")).unlink()
    again = made("a")
    assert (folder / "transforms.npz").read_bytes() == transform
    assert same(whole, again, whole.layers)
    values = whole["relu3_1.avg.pca"][:]
    Image.new("RGB", (40, 40), "red").save(more_images / "99.png")
    grown = made("a", existing="extend")
    assert (folder / "transforms.npz").read_bytes() == transform
    assert np.array_equal(grown["relu3_1.avg.pca"][:13], values, equal_nan=True)
    other = made("c", pca_fit=folder)
    assert np.array_equal(other["relu3_1.avg.pca"][:], grown["relu3_1.avg.pca"][:], equal_nan=True)
    assert verify_folder(folder, 2).count == 0
    # Damage of the file is found, named, and mended.
    (folder / "transforms.npz").write_bytes(transform[:-9] + b"x" * 9)
    assert [*verify_folder(folder, 2).findings] == ["transforms.npz"]
    made("a")
    assert verify_folder(folder, 2).count == 0


def test_too_few_images_for_the_components_are_one_line(folder: Path, thin_weights: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"got 4 and 4 images of the sample that are ok\. Expected more images"):
        extract_features(folder, "relu3_1:avg:pca", **PCA, output_dir=tmp_path)
    with pytest.raises(StoreError, match="No such file"):
        extract_features(folder, "relu3_1:avg:pca", **PCA, output_dir=tmp_path, pca_fit=tmp_path / "none")
