from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import check_options
from pipeline.images.folder import list_folder
from pipeline.plan import plan_run
from pipeline.records import RunSpec

from .test_config import values


@pytest.fixture
def plan(photographs: Path, random_weights: Any) -> Any:
    manifest = list_folder(photographs)

    def make(**changes: Any) -> RunSpec:
        options = check_options(values(**changes))
        weights = replace(random_weights(options.network.name), pool_padding=options.network.pool_padding)
        return plan_run(options, manifest, weights)

    return make


def test_the_backend_counts_by_what_it_comes_to(plan: Any) -> None:
    assert plan().identity["runtime.backend"] == "winograd"
    assert plan().digest == plan(runtime__backend="winograd").digest != plan(runtime__backend="tensorflow").digest


def test_pooling_counts_only_where_something_is_pooled(plan: Any) -> None:
    assert plan(layers=["relu1_2"]).digest == plan(layers=["relu1_2"], network__pooling="avg").digest
    assert plan(layers=["pool1"]).digest != plan(layers=["pool1"], network__pooling="avg").digest


def test_the_padding_of_pooling_counts_only_at_odd_sides_and_at_native_size(plan: Any) -> None:
    for changes, counts in (
        ({}, False),
        ({"data__size": 225}, True),
        ({"data__size": None}, True),
        ({"data__size": None, "layers": ["relu1_1"]}, False),
    ):
        digests = {plan(network__pool_padding=padding, **changes).digest for padding in ("same", "valid")}
        assert len(digests) == 1 + counts, changes


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
