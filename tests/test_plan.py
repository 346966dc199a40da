from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import check_options
from pipeline.images.folder import list_folder
from pipeline.network.architectures import resolve_layers
from pipeline.plan import plan_run
from pipeline.records import RunSpec

from .test_config import values


@pytest.fixture
def plan(photographs: Path, random_weights: Any) -> Any:
    manifest = list_folder(photographs)

    def make(**changes: Any) -> RunSpec:
        options = check_options(values(**changes))
        weights = random_weights(options.network.name)
        return plan_run(options, manifest, weights, resolve_layers(options.network.name, options.layers))

    return make


CHANGES_A_NUMBER = [
    {"data__size": 225},
    {"data__size": [224, 225]},
    {"data__size": None},
    {"data__resize": "crop"},
    {"data__interpolation": "bicubic"},
    {"data__decode": "fast"},
    {"layers": ["relu4_1", "relu1_1"]},
    {"network__name": "vgg16"},
    {"network__pooling": "avg"},
    {"network__kernel_order": "whio"},
    {"output__dtype": "float16"},
    {"output__images_per_shard": 3},
]
CHANGES_NONE = [
    {"batch_size": 3},
    {"name": "another"},
    {"data__max_failed_fraction": 0.5},
    {"output__compression": "none"},
    {"output__existing": "fail"},
    {"output__dir": "elsewhere"},
    {"runtime__device": "cpu"},
    {"runtime__workers": 7},
]


@pytest.mark.parametrize("changes", CHANGES_A_NUMBER, ids=str)
def test_what_can_change_a_number_changes_the_digest(changes: dict[str, Any], plan: Any) -> None:
    assert plan(**changes).digest != plan().digest


@pytest.mark.parametrize("changes", CHANGES_NONE, ids=str)
def test_what_cannot_change_a_number_does_not_change_the_digest(changes: dict[str, Any], plan: Any) -> None:
    assert plan(**changes).digest == plan().digest


def test_the_backend_counts_by_what_it_comes_to(plan: Any) -> None:
    assert plan().identity["runtime.backend"] == "winograd"
    assert plan().digest == plan(runtime__backend="winograd").digest != plan(runtime__backend="tensorflow").digest
    assert plan(data__size=None).identity["runtime.backend"] == "winograd"


def test_pooling_counts_only_where_something_is_pooled(plan: Any) -> None:
    assert plan(layers=["relu1_2"]).digest == plan(layers=["relu1_2"], network__pooling="avg").digest
    assert plan(layers=["pool1"]).digest != plan(layers=["pool1"], network__pooling="avg").digest


def test_the_padding_of_pooling_counts_only_at_odd_sides_and_at_native_size(photographs: Path, random_weights: Any) -> None:
    from dataclasses import replace

    manifest = list_folder(photographs)

    def digest(padding: str, **changes: Any) -> str:
        options = check_options(values(**changes))
        weights = replace(random_weights(), pool_padding=padding)
        return plan_run(options, manifest, weights, resolve_layers("vgg19", options.layers)).digest

    assert digest("same") == digest("valid")
    assert digest("same", data__size=225) != digest("valid", data__size=225)
    assert digest("same", data__size=None) != digest("valid", data__size=None)
    assert digest("same", data__size=None, layers=["relu1_1"]) == digest("valid", data__size=None, layers=["relu1_1"])


def test_at_native_size_what_resizes_does_not_count(plan: Any) -> None:
    assert plan(data__size=None).digest == plan(data__size=None, data__resize="crop", data__interpolation="lanczos").digest


def test_a_plan_holds_what_the_files_say(plan: Any) -> None:
    spec = plan(layers=["relu4_1", "pool1"])
    assert [(feature.layer.name, feature.shape) for feature in spec.features] == [
        ("pool1", (112, 112, 64)),
        ("relu4_1", (28, 28, 512)),
    ]
    assert len(spec.digest) == 64
    assert spec.attributes["network"] == "vgg19"
    assert spec.attributes["preprocess"] == "RGB 0..255, squash to 224 x 224 px, bilinear (antialiased), minus mean_pixel"
    np.testing.assert_array_equal(spec.attributes["mean_pixel"], [123.68, 116.779, 103.939])
    assert spec.attributes["version_tensorflow"]
    # 256 MiB hold 55 images of 4.8 MB, also where there are only seven yet.
    assert spec.images_per_shard == 55
