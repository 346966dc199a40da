from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import (
    CHOICES,
    EngineOptions,
    IndexOptions,
    Options,
    PlotOptions,
    ShowOptions,
    VerifyOptions,
    check,
    check_options,
    defaults,
    nested,
)
from pipeline.errors import OptionError
from pipeline.records import Share


def values(**changes: Any) -> dict[str, Any]:
    """Plain defaults with some options set: ``values(data__dir="x")``."""
    return nested({**defaults(), "data.dir": "imgs", **{key.replace("__", "."): value for key, value in changes.items()}})


def test_defaults_are_those_of_the_contract() -> None:
    options = check_options(values())
    assert options.data.size == (224, 224)
    assert (options.data.resize, options.data.interpolation, options.data.decode) == ("squash", "bilinear", "exact")
    assert options.layers == ("relu4_1",)
    assert options.batch_size is options.runtime.workers is options.output.images_per_shard is None
    assert (options.network.name, options.network.weights, options.network.pooling) == ("vgg19", "imagenet", "max")
    assert (options.output.dtype, options.output.compression, options.output.existing) == ("float32", "gzip", "resume")
    assert options.folder == Path("outputs/imgs-vgg19")


def test_sizes_are_a_side_a_pair_or_null() -> None:
    assert check_options(values(data__size=[100, 200])).data.size == (100, 200)
    assert check_options(values(data__size=None)).data.size is None
    for wrong in (0, -1, "224px", [1, 2, 3], [1.5, 2], True, 9000, {}):
        with pytest.raises(OptionError, match=r"^data.size: not a valid value, got .* Expected a side from 1 to 8192 px"):
            check_options(values(data__size=wrong))


def test_one_layer_needs_no_brackets() -> None:
    assert check_options(values(layers="relu4_1,relu5_1")).layers == ("relu4_1", "relu5_1")
    for wrong in ([], "", [1], 3, None, {}):
        with pytest.raises(OptionError, match=r"^layers: not a valid value"):
            check_options(values(layers=wrong))


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_a_wrong_choice_names_the_right_ones(key: str) -> None:
    group, name = key.split(".")
    for value in CHOICES[key]:
        if key != "data.decode":
            check_options(values(**{f"{group}__{name}": value}))
    with pytest.raises(
        OptionError, match=rf"^{key}: not a valid value, got 'sqash'. Expected one of: {', '.join(CHOICES[key])}"
    ) as caught:
        check_options(values(**{f"{group}__{name}": "sqash"}))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("key", ["batch_size", "output__images_per_shard", "runtime__workers"])
def test_counts_are_whole_and_positive(key: str) -> None:
    check_options(values(**{key: 1}))
    for wrong in (0, -3, 1.5, "many", True, None):
        with pytest.raises(OptionError, match=r"Expected auto or a whole number from 1 to"):
            check_options(values(**{key: wrong}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__dir": None}, r"data.dir: no images were named, got null. .* data.list=FILE"),
        ({"data__max_failed_fraction": 1.1}, r"data.max_failed_fraction: .* Expected a number from 0 to 1"),
        ({"data__max_failed_fraction": "half"}, r"data.max_failed_fraction: .* Expected a number from 0 to 1"),
        ({"network__seed": -1}, r"network.seed: .* Expected a whole number from 0"),
        ({"network__weights": None}, r"network.weights: .* Expected imagenet, matconvnet, random or a file"),
        ({"network__weights": "imagnet"}, r"network.weights: .* got 'imagnet'. Expected one of: .* Did you mean imagenet"),
        ({"name": "a/b"}, r"name: .* Expected the name of one folder"),
        ({"name": ".."}, r"name: .* Expected the name of one folder"),
        ({"runtime__device": "cpu", "runtime__precision": "tf32"}, r"runtime.precision: a CPU computes in float32, got tf32"),
        (
            {"runtime__backend": "winograd", "runtime__device": "gpu"},
            r"^runtime.backend: this one computes on a CPU, got winograd with runtime.device=gpu. Expected auto or tensorflow",
        ),
        (
            {"runtime__backend": "winograd", "runtime__precision": "tf32"},
            r"runtime.precision: a CPU computes in float32, got tf32",
        ),
        ({"part": "3/8", "engine__name": "ray"}, r"^part: engine=ray shares the shards among its workers itself, got part=3/8"),
        ({"data__dir": "memory://imgs", "engine__name": "ray"}, r"^data.dir: workers do not see the memory of this process"),
        ({"output__dir": "memory://outputs", "engine__name": "ray"}, r"^output.dir: workers of engine=ray write files"),
        (
            {"engine__name": "ray", "engine__gpus_per_worker": 0, "runtime__device": "gpu"},
            r"^engine.gpus_per_worker: workers compute on the gpu, got 0. Expected more than 0",
        ),
        *(
            ({"engine__name": "ray", "engine__address": wrong}, r"^engine.address: .* Expected null, auto, host:port or ray")
            for wrong in ("head", "head:70000", "http://head:80", "", 6379)
        ),
        ({"data__size": None, "data__decode": "fast"}, r"data.decode: nothing can be reduced at native size"),
    ],
)
def test_each_wrong_value_has_its_message(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        check_options(values(**changes))
    assert "\n" not in str(caught.value)


def test_a_backend_that_needs_a_cpu_chooses_it() -> None:
    for backend, device, expected in [
        ("auto", "auto", "auto"),
        ("auto", "gpu", "gpu"),
        ("tensorflow", "gpu", "gpu"),
        ("tensorflow", "cpu", "cpu"),
        ("winograd", "cpu", "cpu"),
        ("winograd", "auto", "cpu"),
    ]:
        options = check_options(values(runtime__backend=backend, runtime__device=device))
        assert (options.runtime.backend, options.runtime.device) == (backend, expected)


def test_the_engine_is_this_process_unless_another_is_asked_for() -> None:
    assert check_options(values()).engine == EngineOptions("local", None, None, None, None)
    ray = check_options(values(engine__name="ray", engine__gpus_per_worker=0.5, engine__cpus_per_worker=3, engine__workers=2))
    assert ray.engine == EngineOptions("ray", None, 2, 0.5, 3)


@pytest.mark.parametrize(
    "address", [None, "auto", "head:6379", "192.0.2.1:6379", "ray://head.example:10001", "[2001:db8::1]:6379"]
)
def test_addresses_of_a_cluster(address: str | None) -> None:
    assert check_options(values(engine__name="ray", engine__address=address)).engine.address == address


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, r"engine.workers: not a valid value, got 0. Expected auto or a whole number from 1"),
        ({"cpus_per_worker": 0.5}, r"engine.cpus_per_worker: not a valid value, got 0.5"),
        (
            {"gpus_per_worker": 2},
            r"engine.gpus_per_worker: .* Expected auto, 1, 0 or a share between them: a worker uses one GPU",
        ),
        ({"gpus_per_worker": True}, r"engine.gpus_per_worker: not a valid value, got True"),
        ({"name": "local", "workers": 2}, r"engine.workers: the local engine is one process .*, got 2. .* Add engine=ray\."),
        ({"name": "local", "address": "auto"}, r"engine.address: the local engine is one process .*, got 'auto'"),
    ],
)
def test_each_wrong_value_of_the_engine_has_its_message(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}"):
        check_options(values(**{f"engine__{key}": value for key, value in {"name": "ray", **changes}.items()}))


def test_keys_that_do_not_exist_or_were_removed_are_named() -> None:
    with pytest.raises(OptionError, match=r"data.sise: there is no such option, got 'data.sise'. Expected one of: data.size"):
        check_options(values(data__sise=3))
    removed = values()
    del removed["runtime"]["workers"]
    with pytest.raises(OptionError, match=r"runtime.workers: the option was removed"):
        check_options(removed)


def test_the_name_of_a_run_comes_from_its_data(tmp_path: Path) -> None:
    listing = tmp_path / "birds.csv"
    listing.write_text("path\n")
    assert check_options(values(data__dir=None, data__list=str(listing))).name == "birds-vgg19"
    assert check_options(values(data__dir=f"{tmp_path}/.")).name == f"{tmp_path.name}-vgg19"
    assert check_options(values(data__dir=2024)).name == "2024-vgg19"
    assert check_options(values(name="mine", network__name="vgg16")).folder == Path("outputs/mine")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("config", Options), ("verify", VerifyOptions), ("index", IndexOptions)),
        *(("show", ShowOptions), ("plot", PlotOptions)),
    ],
)
def test_names_and_defaults_are_those_of_the_configuration_files(name: str, kind: type) -> None:
    import yaml

    folder = Path(__file__).parent.parent / "conf"
    written = yaml.safe_load((folder / f"{name}.yaml").read_text())
    del written["defaults"], written["hydra"]
    for group in ("network", "engine") if name == "config" else ():
        for path in folder.glob(f"{group}/*.yaml"):
            assert yaml.safe_load(path.read_text()) == {"name": path.stem}
            assert path.stem in CHOICES[f"{group}.name"]
        written[group] |= {"name": defaults()[f"{group}.name"]}
    assert written == nested(defaults(kind))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            ShowOptions,
            {"run": None, "json": False},
            "run: no run was named, got None. Expected a run folder. Run e.g. `python -m x",
        ),
        (IndexOptions, {"run": ""}, "run: no run was named, got ''."),
        (IndexOptions, {"run": "a\0b"}, "run: no run was named, got 'a\\x00b'."),
        (IndexOptions, {"run": "x", "rum": 1}, "rum: there is no such option, got 'rum'. Expected one of: run. Run `python -m x"),
        (ShowOptions, {"run": "x", "json": 3}, "json: not a valid value, got 3. Expected true or false. Run `python -m x --help"),
        (VerifyOptions, {"run": "x"}, "repair: the option was removed, got none. Expected a value."),
    ],
)
def test_wrong_options_of_the_other_commands(kind: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as raised:
        check(kind, values, "x")
    assert str(raised.value).startswith(message)


def test_a_part_is_a_number_of_a_number() -> None:
    assert check_options(values()).part is None
    assert check_options(values(part="3/8")).part == Share(3, 8)
    for wrong in ("0/8", "9/8", "x", "3", 3, 0.375, True, ["1/2"], "1/2,2/2"):
        with pytest.raises(OptionError) as raised:
            check_options(values(part=wrong))
        assert str(raised.value) == (
            f"part: not a valid value, got {wrong!r}. Expected k/n with k from 1 to n, e.g. part=3/8, or null for the whole run. "
            f"Run `python -m pipeline.run --help` for all options."
        )


@pytest.mark.parametrize("existing", ["replace", "fail"])
def test_a_part_neither_replaces_nor_refuses_what_other_parts_may_have_made(existing: str) -> None:
    with pytest.raises(OptionError) as raised:
        check_options(values(part="3/8", output__existing=existing))
    assert str(raised.value) == (
        f"output.existing: a part cannot tell what was there from what other parts make, got {existing} with part=3/8. Expected "
        f"resume or extend. Use another name=..., or remove the folder first."
    )
    for allowed in ("resume", "extend"):
        assert check_options(values(part="3/8", output__existing=allowed)).output.existing == allowed
