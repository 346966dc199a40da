"""The shape of the house: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pipeline"
ROOMS = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
WINGS = ("storage", "images", "network", "store", "training", "pages", "pictures")
# Training stands after the store and reads from it; the store has one door that leads there. Images and store read and write what
# lies at an address by way of storage.
BEHIND = {"training": {"store"}, "images": {"storage"}, "store": {"storage"}}
DOORS_BETWEEN = {"store/feeding.py": {"training"}}
DOORS = {"run.py", "jobs.py", "layers.py", "verify.py", "index.py", "show.py", "plot.py", "from_python.py"}
# What all may import: the nouns, and the words in which both wings of arithmetic are written.
NOUNS = {"records", "image_records", "sharding", "statistics", "errors"}
FOUNDATION = NOUNS | {"machine", "vector_code"}

# Where each library may be loaded. The Keras reader reads HDF5 because the weights file is one.
ONLY_IN = {
    "tensorflow": ("images/", "network/", "training/tf_data.py"),
    # Optional.
    "torch": ("training/torch_data.py",),
    "llvmlite": (
        "vector_code.py",
        "network/winograd/",
        "images/passes.py",
        "images/jpeg_",
        "store/sha256_code.py",
        "store/deflate_code.py",
        "store/gathering.py",
        "store/inflate_code.py",
        "store/inflate_step.py",
        "store/inflate_tables.py",
        "store/integer_code.py",
    ),
    "h5py": ("store/", "network/keras_h5.py", "network/stored.py"),
    # Optional.
    "ray": ("engines/",),
    "hydra": tuple(DOORS),
    "omegaconf": tuple(DOORS),
    "matplotlib": ("pictures/",),
    # Optional. What it opens is for storage to say.
    "fsspec": ("storage/",),
}
# What a wrong option must not wait for.
LIGHT = {
    *(
        "run.py",
        "layers.py",
        "verify.py",
        "index.py",
        "show.py",
        "plot.py",
        "from_python.py",
        "config.py",
        "schema.py",
        "errors.py",
        "report.py",
    ),
    *("network/layers.py", "network/start.py", "signals.py", "command_line.py", "completion.py", "layer_rows.py", "overview.py"),
    *("errors.py", "report.py", "plot_config.py"),
}


def imports(room: str) -> list[tuple[str, bool]]:
    """Gives (absolute name, whether at the top level of the file) of everything that a room imports."""
    tree = ast.parse((PACKAGE / room).read_text(encoding="utf-8"))
    package = ["pipeline", *Path(room).parts[:-1]]
    found = []
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
                if node.level
                else node.module
            )
            found += [(f"{base}.{alias.name}", top) for alias in node.names]
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_wings_meet_only_through_the_records(room: str) -> None:
    wing = Path(room).parts[0]
    for name, _ in imports(room):
        parts = name.split(".")
        if parts[0] != "pipeline" or len(parts) < 2:
            continue
        if wing in WINGS:
            allowed = {
                wing,
                *FOUNDATION,
                *BEHIND.get(wing, ()),
                *DOORS_BETWEEN.get(room, ()),
            }
            assert parts[1] in allowed, f"{room} imports {name}"
        assert parts[1] not in {"run"} or room in DOORS, f"{room} imports the door {name}"
        if room in {*(f"{noun}.py" for noun in NOUNS), "machine.py"}:
            assert parts[1] in NOUNS, f"{room} imports {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_each_library_stays_in_its_wing(room: str) -> None:
    for name, _ in imports(room):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or room.startswith(allowed), f"{room} imports {name}"


@pytest.mark.parametrize("room", sorted(LIGHT))
def test_what_answers_a_wrong_option_loads_nothing_heavy(room: str) -> None:
    heavy = {"tensorflow", "scipy", "h5py", "matplotlib"}
    for name, top in imports(room):
        assert not top or name.split(".")[0] not in heavy, f"{room} imports {name}"


def test_engines_are_chosen_in_one_place_and_ray_is_loaded_late() -> None:
    for room in ROOMS:
        for name, top in imports(room):
            assert not (top and name.split(".")[0] == "ray"), f"{room} imports {name}"
            if name.startswith("pipeline.engines") and not room.startswith("engines/"):
                assert (room, name.split(".")[2]) == ("assemble.py", "engine"), f"{room} imports {name}"


def test_nothing_loads_fsspec_before_there_is_an_address() -> None:
    for room in ROOMS:
        assert not any(top and name.startswith("fsspec") for name, top in imports(room)), room


def test_the_store_opens_its_door_to_training_late() -> None:
    for room in ROOMS:
        if room.startswith("store/"):
            assert not any(top and name.startswith("pipeline.training") for name, top in imports(room)), room


def test_no_room_is_a_drawer() -> None:
    for room in ROOMS:
        assert not {"utils", "helpers", "common", "misc"} & set(Path(room).with_suffix("").parts), room
