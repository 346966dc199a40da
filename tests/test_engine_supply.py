"""Shards on their way to workers, and the manifest that goes with them."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from pipeline.engines.packing import PackedPaths, PackedTexts, packed
from pipeline.engines.supply import DEPTH, TRIES, Supply
from pipeline.errors import EngineError

from .stored_runs import make_spec

SPEC = make_spec(rows=40, images_per_shard=4)


def test_a_worker_has_a_few_shards_ahead_and_fewer_towards_the_end() -> None:
    supply = Supply(SPEC, SPEC.shards())
    assert [shard.number for shard in supply.give(0, 2)] == [0, 1, 2]
    assert supply.give(DEPTH, 2) == []
    assert [shard.number for shard in supply.give(1, 2)] == [3, 4]
    for _ in range(7):
        supply.finish()
    # Three are left, and two workers.
    assert [shard.number for shard in supply.give(0, 2)] == [5, 6]
    assert (supply.left, supply.waiting) == (3, 3)
    assert len(supply.give(0, 100)) == 1


def test_what_a_dead_worker_had_is_given_first_and_in_order() -> None:
    supply = Supply(SPEC, SPEC.shards())
    lost = supply.give(0, 1)
    supply.take_back(lost, "a fire")
    assert supply.give(0, 1) == lost


def test_a_shard_over_which_many_die_is_named_with_its_images() -> None:
    supply = Supply(SPEC, SPEC.shards())
    for _ in range(TRIES - 1):
        supply.take_back(supply.give(0, 1), "a fire")
    # Of a node that is gone nobody is to blame.
    supply.take_back(supply.give(0, 1), "a power cut", is_blamed=False)
    message = (
        r"^engine: shards/shard-00000-of-00010.h5 \(images 'folder0/image é0.jpg' to 'folder0/image é3.jpg'\) could not be made, "
        rf"got {TRIES} workers that died over it, the last since a flood. Expected one that lives\. .* shards are kept\.$"
    )
    with pytest.raises(EngineError, match=message) as caught:
        supply.take_back(supply.give(0, 1), "a flood")
    assert "\n" not in str(caught.value)


def test_packed_texts_are_the_texts() -> None:
    texts = ["", "a", "é/ü.jpg", "caf\udce9", "", "日本"]
    found = pickle.loads(pickle.dumps(PackedTexts(texts)))
    assert list(found) == texts
    assert [found[-1], found[3], *found[1:3]] == ["日本", "caf\udce9", "a", "é/ü.jpg"]
    assert len(found) == 6
    assert list(PackedTexts([])) == []
    with pytest.raises(IndexError):
        found[6]


def test_packed_paths_are_the_paths() -> None:
    found = PackedPaths({7: "/x", 2: "/y z"})
    assert dict(found) == {2: "/y z", 7: "/x"}
    assert found.get(3) is found.get(8) is None
    assert len(PackedPaths({})) == 0


def test_a_packed_manifest_says_the_same_and_shares_its_memory() -> None:
    manifest = replace(SPEC.manifest, paths={3: "/elsewhere"}, metadata={"colour": tuple(f"c{i}" for i in range(40))})
    parcel = packed(manifest)
    assert [*parcel] == [*manifest]
    assert parcel.metadata["colour"][5:7] == ("c5", "c6")
    assert replace(SPEC, manifest=parcel).digest == replace(SPEC, manifest=manifest).digest
    buffers: list[pickle.PickleBuffer] = []
    # Its arrays travel beside what is pickled, which Ray maps into every process of a machine.
    assert len(pickle.dumps(parcel, 5, buffer_callback=buffers.append)) < 2500
    assert sum(np.frombuffer(buffer, np.uint8).size for buffer in buffers) > 40 * 3 * 8
