"""The digest that going on depends on: each option either changes it or cannot change a number. A new one must say which."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import AUTO, check_options, defaults
from pipeline.network.keras_models import KERAS
from pipeline.network.weights import load_weights
from pipeline.plan import list_images, plan_run

from .test_config import CHOICES, values

# An odd side, at which the padding of the pooling shows.
BASE = {"data__size": 225, "network__weights": "random", "reduction__gaussian__eps": 0.9, "reduction__pca__n_components": 1}
# All reductions that have options.
BASE["layers"] = [
    "relu4_1",
    *(f"relu5_1:{name}" for name in ("gem", "rmac", "grid", "gram", "units", "srp", "avg:gaussian", "max:pca")),
]

# Option -> another value. Those in CHOICES are tried with each of their values.
CHANGES_A_NUMBER: dict[str, Any] = {
    "data.dir": "other images",
    "data.list": "a list",
    "data.tar": "tar files",
    "data.tfds": "a set",
    "data.split": "test",
    "data.size": 224,
    "layers": ["relu1_1"],
    "reduce": ["avg"],
    **{f"reduction.{name}": value for name, value in {"gem.p": 4, "gem.eps": 0.1, "rmac.levels": 2, "grid.side": 3}.items()},
    **{f"reduction.{name}.n_components": 50 for name in ("units", "srp", "gaussian")},
    "reduction.pca.n_components": 2,
    **{f"reduction.{name}.seed": 1 for name in ("units", "srp", "gaussian", "pca")},
    **{"reduction.pca.whiten": True, "reduction.pca.fit_images": 3, "reduction.pca.fit": "a file"},
    **{"reduction.srp.eps": 0.2, "reduction.gaussian.eps": 0.8, "reduction.srp.density": 0.1, "reduction.gram.form": None},
    "network.weights": "a file",
    "network.seed": 1,
    "output.images_per_shard": 3,
    **dict.fromkeys(
        ("data.resize", "data.interpolation", "data.decode", "network.name", "network.pooling", "network.pool_padding")
    ),
    **dict.fromkeys(("network.kernel_order", "output.dtype", "runtime.backend", "runtime.precision")),
}
# Which would build a graph; see test_keras_network.
OF_KERAS = ["network.model", "network.preprocess"]
CHANGES_NONE: dict[str, Any] = {
    # Labels are part of the images' digest; first and last folders of these are the same.
    "data.label": "parent",
    "data.max_failed_fraction": 0.5,
    "batch_size": 3,
    "name": "another",
    "dry_run": True,
    "part": "2/3",
    "output.dir": "elsewhere",
    "output.scratch": "elsewhere",
    "output.compression": None,
    "output.existing": None,
    # With the other value the run stops, and what it has finished is the same.
    "output.overflow": None,
    # Which process makes a shard.
    "engine.name": None,
    "engine.address": "auto",
    "engine.workers": 3,
    "engine.gpus_per_worker": 1,
    "engine.cpus_per_worker": 2,
    # The contract: within a tolerance on a GPU; the same bits on a CPU.
    "runtime.device": None,
    "runtime.workers": 7,
}


@pytest.fixture(scope="module")
def digest(
    tmp_path_factory: pytest.TempPathFactory, photographs: Path, random_weights: Any, request: pytest.FixtureRequest
) -> Callable[..., str]:
    """Gives the digest of a run with some options set: ``digest(data__size=64)``."""
    folder = tmp_path_factory.mktemp("other")
    names = ("image.jpg", "same.jpg")
    for name in names:
        (folder / name).write_bytes((photographs / "sky/hubble.jpg").read_bytes())
    (folder / "list.txt").write_text("\n".join(names))
    with tarfile.open(folder / "image.tar", "w") as tar:
        for name in names:
            tar.add(folder / name, name)

    def plan(**changes: Any) -> str:
        if "data__dir" in changes:
            changes["data__dir"] = str(folder)
        if "reduction__pca__fit" in changes:
            changes["reduction__pca__fit"] = str(folder / "image.jpg")
        if "data__list" in changes:
            changes |= {"data__list": str(folder / "list.txt"), "data__dir": str(folder)}
        if "data__tar" in changes:
            changes |= {"data__tar": str(folder / "image.tar"), "data__dir": None}
        if "data__tfds" in changes or "data__split" in changes:
            changes |= {"data__tfds": "tiny", "data__dir": str(request.getfixturevalue("tiny_set"))}
        if any(key.startswith("engine__") for key in changes):
            changes = {"engine__name": "ray", **changes}
        if "output__scratch" in changes:
            # Refused, being of no use, without an address.
            changes["output__dir"] = "memory://bucket/outputs"
        is_file = changes.pop("network__weights", None) is not None
        options = check_options(values(**{**BASE, "data__dir": str(photographs), **changes}))
        name, seed, padding = options.network.name, options.network.seed, options.network.pool_padding
        weights = random_weights(name)
        if seed:
            weights = load_weights(name, "random", seed=seed, classifier=False, progress=False, log=lambda line: None)
        if is_file:
            # A file is known by its numbers, whatever its name.
            weights = replace(weights, sha256="0" * 64)
        if padding != AUTO:
            weights = replace(weights, pool_padding=padding)
        return plan_run(options, list_images(options.data), weights).digest

    return plan


def test_every_option_says_whether_it_can_change_a_number() -> None:
    assert not set(CHANGES_A_NUMBER) & set(CHANGES_NONE)
    assert sorted([*CHANGES_A_NUMBER, *CHANGES_NONE, *OF_KERAS]) == sorted(defaults())


# Of a set the program of TensorFlow Datasets makes the images, which takes seconds.
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=pytest.mark.slow) if key in ("data.tfds", "data.split") else key
        for key in sorted(CHANGES_A_NUMBER)
    ],
)
def test_an_option_that_can_change_a_number_changes_the_digest(key: str, digest: Callable[..., str]) -> None:
    name = key.replace(".", "__")
    if key in CHOICES:
        # What is chosen automatically is one of the others.
        found = {choice: digest(**{name: choice}) for choice in CHOICES[key] if choice != KERAS}
        assert len(set(found.values())) == len(found) - (AUTO in found), found
    else:
        assert digest(**{name: CHANGES_A_NUMBER[key]}) != digest()


@pytest.mark.parametrize("key", sorted(CHANGES_NONE))
def test_an_option_that_can_change_no_number_does_not_change_the_digest(key: str, digest: Callable[..., str]) -> None:
    for value in CHOICES.get(key, (CHANGES_NONE[key],)):
        assert digest(**{key.replace(".", "__"): value}) == digest()


def test_the_same_layers_in_other_words_are_the_same_run(digest: Callable[..., str]) -> None:
    expected = digest(layers=["relu1_1", "relu1_2"])
    for words in ("relu1_1,relu1_2", ["relu1_2", "relu1_1"], ["relu1_?"], ["relu1_?", "relu1_1"]):
        assert digest(layers=words) == expected


def test_the_same_images_in_another_folder_are_the_same_run(digest: Callable[..., str]) -> None:
    # By name and size; content is held to the digests in the table when a run goes on.
    assert digest(data__dir="x") == digest(data__dir="x", data__list="x")


@pytest.mark.parametrize(
    ("base", "changes", "counts"),
    [
        ({}, {"runtime__backend": "winograd"}, False),  # which auto comes to
        ({"layers": ["relu1_2"]}, {"network__pooling": "avg"}, False),
        ({"layers": ["pool1"]}, {"network__pooling": "avg"}, True),
        # Padding counts at odd sides and at native size, where something is pooled.
        ({}, {"network__pool_padding": "valid"}, False),
        ({"data__size": 225}, {"network__pool_padding": "valid"}, True),
        ({"data__size": None}, {"network__pool_padding": "valid"}, True),
        ({"data__size": None, "layers": ["relu1_1"]}, {"network__pool_padding": "valid"}, False),
        ({"data__size": None}, {"data__resize": "crop", "data__interpolation": "lanczos"}, False),
    ],
)
def test_an_option_counts_only_where_it_can_change_a_number(
    digest: Callable[..., str], base: dict[str, Any], changes: dict[str, Any], counts: bool
) -> None:
    base = {"data__size": 224, "layers": ["relu4_1"], "network__pool_padding": "same", **base}
    assert (digest(**base) != digest(**{**base, **changes})) == counts
