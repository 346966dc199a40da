"""The layout's rules: who may import whom, which library is used where, what the road may not contain."""

from __future__ import annotations

import ast
import graphlib
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pipeline"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
RECORDS = {"records", "errors", "sharding"}
EVERYWHERE = RECORDS | {"machine", "formatting"}

# Package -> what it may import besides itself and EVERYWHERE.
BELOW: dict[str, set[str]] = {
    "storage.py": set(),
    "images": {"storage"},
    # The device functions begin with the resize of images.
    "network": {"images"},
    # Run.torch_dataset and its like make training sets over the run; those are given it, and know nothing of files.
    "store": {"storage", "training"},
    "training": set(),
}
COMMANDS = {"run.py", "layers.py", "verify.py", "index.py", "show.py", "plot.py", "reduce.py", "export.py"}

# Library -> where it may be imported. The Keras reader reads HDF5 because the weights file is one.
ONLY_IN = {
    "tensorflow": ("images/", "network/", "training/tf_data.py"),
    "torch": ("training/torch_data.py", "network/torch_weights.py"),
    "llvmlite": ("network/winograd/",),
    "h5py": ("store/", "network/keras_h5.py"),
    "ray": ("ray_engine.py",),
    "hydra": ("cli.py",),
    "omegaconf": ("cli.py",),
    "matplotlib": ("figures.py",),
    "jinja2": ("report.py",),
    "fsspec": ("storage.py",),
    "pyarrow": ("images/lists.py", "export.py"),
    "zarr": ("export.py",),
}
# A wrong option is answered before any of HEAVY is loaded.
HEAVY = {"tensorflow", "scipy", "h5py", "matplotlib"}
LIGHT = COMMANDS | {
    *("cli.py", "config.py", "errors.py", "formatting.py", "signals.py", "storage.py", "__init__.py"),
    *("network/architectures.py", "network/__init__.py"),
}


@cache
def imports(module: str) -> list[tuple[str, bool]]:
    """Gives (absolute name, whether at the top level of the file) of everything that a module imports."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    package = ["pipeline", *Path(module).parts[:-1]]
    found = []
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*(package[: len(package) - node.level + 1] if node.level else []), *([node.module] if node.module else [])]
            found += [(".".join([*base, alias.name]), top) for alias in node.names]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_packages_import_what_lies_below_them(module: str) -> None:
    package = Path(module).parts[0]
    for name, _ in imports(module):
        parts = name.split(".")
        if parts[0] != "pipeline" or len(parts) < 2:
            continue
        if package in BELOW:
            assert parts[1] in {package, *EVERYWHERE, *BELOW[package]}, f"{module} imports {name}"
        assert parts[1] != "run" or module in COMMANDS, f"{module} imports the command {name}"
        if Path(module).with_suffix("").as_posix() in EVERYWHERE:
            assert parts[1] in RECORDS, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_each_library_is_used_in_its_place(module: str) -> None:
    for name, top in imports(module):
        library = name.split(".")[0]
        assert module.startswith(ONLY_IN.get(library, "")), f"{module} imports {name}"
        # Optional, and slow to load: only when it is needed.
        assert not (top and library in {"ray", "fsspec", "pyarrow", "zarr"}), f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_what_answers_a_wrong_option_loads_nothing_heavy(module: str) -> None:
    for name, top in imports(module):
        assert not top or name.split(".")[0] not in HEAVY, f"{module} imports {name}"


def test_the_loader_leaves_threads_and_queues_to_tf_data() -> None:
    for module in MODULES:
        if module.startswith("images/") and module not in ("images/lists.py",):  # which asks a storage for the sizes of a list
            text = (PACKAGE / module).read_text(encoding="utf-8")
            found = re.findall(r"\b(?:Thread|Queue|Condition|\w*Executor|Semaphore)\(", text)
            assert found == (["Condition("] if module == "images/loader.py" else []), (module, found)


def test_nothing_loops_over_images_on_a_device() -> None:
    for module in MODULES:
        assert not re.search(r"\b(map_fn|vectorized_map|while_loop)\b", (PACKAGE / module).read_text(encoding="utf-8")), module


def test_engines_are_chosen_in_one_place() -> None:
    for module in MODULES:
        for name, _ in imports(module):
            assert not name.startswith("pipeline.ray_engine") or module == "job.py", f"{module} imports {name}"


def test_modules_are_called_by_what_they_do_each_by_another_name() -> None:
    names = [Path(module).stem for module in MODULES if not module.endswith("__init__.py")]
    assert sorted({*names} - {"utils", "helpers", "common", "misc"}) == sorted(names)


def file_of(name: str) -> str | None:
    """Gives the file of a module of this program, or of the one that something is imported from."""
    path = name.removeprefix("pipeline.").replace(".", "/")
    candidates = [f"{path}.py", f"{path}/__init__.py", f"{path.rpartition('/')[0]}.py", f"{path.rpartition('/')[0]}/__init__.py"]
    return next((file for file in candidates if file in MODULES), None) if name.startswith("pipeline.") else None


def test_imports_have_no_cycle_late_ones_included() -> None:
    graph = {module: {file_of(name) for name, _ in imports(module)} - {None, module} for module in MODULES}
    assert len(graph["job.py"]) > 10
    tuple(graphlib.TopologicalSorter(graph).static_order())
