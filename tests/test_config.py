from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import Options, check_options, defaults, flat, nested, options_of
from pipeline.errors import OptionError
from pipeline.sharding import Share

CHOICES = {key: of["choices"] for key, of in options_of(Options).items() if "choices" in of}


def values(**changes: Any) -> dict[str, Any]:
    """Plain defaults with some options set: ``values(data__dir="x")``."""
    return nested({"data.dir": "imgs", **{key.replace("__", "."): value for key, value in changes.items()}})


def test_the_configuration_file_has_the_defaults() -> None:
    written = yaml.safe_load((Path(__file__).parent.parent / "conf" / "config.yaml").read_text(encoding="utf-8"))
    del written["defaults"]
    assert {"data.dir", "layers", "batch_size"} <= {*flat(written)}
    assert {**defaults(), **flat(written)} == defaults()


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("data.size", [100, 200], (100, 200)),
        ("data.size", None, None),
        ("layers", "relu4_1,relu5_1", ("relu4_1", "relu5_1")),
        ("part", "3/8", Share(3, 8)),
        ("engine.gpus_per_worker", 0.5, 0.5),
        *(
            ("engine.address", address, address)
            for address in (None, "auto", "head:6379", "192.0.2.1:6379", "ray://head.example:10001", "[2001:db8::1]:6379")
        ),
    ],
)
def test_right_values_are_taken(key: str, given: Any, expected: Any) -> None:
    group, _, name = key.rpartition(".")
    options = check_options(nested({"data.dir": "imgs", "engine.name": "ray" if group == "engine" else "local", key: given}))
    assert getattr(getattr(options, group) if group else options, name) == expected
    assert options.given[key] == given


@pytest.mark.parametrize(
    ("key", "rule", "wrong"),
    [
        ("data.size", "a side from 1 to 8192 px, ", (0, -1, "224px", [1, 2, 3], [1.5, 2], True, 9000, {})),
        ("layers", "a list of names, patterns, ", ([""], [1], 3, None)),
        *(
            (key, "auto or a whole number from 1 to ", (0, -3, 1.5, "many", True, None))
            for key in ("batch_size", "output.images_per_shard", "runtime.workers", "engine.workers", "engine.cpus_per_worker")
        ),
        ("network.seed", "a whole number from 0 to ", (-1, "auto")),
        ("data.max_failed_fraction", "a number from 0 to 1", (1.1, "half", True)),
        ("network.weights", "one of: imagenet, matconvnet, torchvision, random, or a file that exists", (None, "", "imagnet")),
        ("name", "the name of one folder", ("a/b", "..", "")),
        ("part", "k/n with k from 1 to n", ("0/8", "9/8", "x", "3", 3, 0.375, True, ["1/2"], "1/2,2/2")),
        ("engine.gpus_per_worker", "auto or a number from 0 to 1", (2, True)),
        ("engine.address", "null, auto, host:port or ray", ("head", "http://head:80", "", 6379)),
        ("data.tar", "a tar file, a folder of them", ([], 3, ["a.tar", ""])),
        ("data.tfds", "a set's name: name, name/config or name:1.0.0", ("../x", 3)),
        ("data.split", "a whole split", ("train[:10%]",)),
        *((key, f"one of: {', '.join(values)}. ", ("sqash", None, 3)) for key, values in CHOICES.items()),
    ],
)
def test_a_wrong_value_names_the_rule(key: str, rule: str, wrong: tuple[Any, ...]) -> None:
    for value in wrong:
        with pytest.raises(OptionError) as caught:
            check_options(nested({"data.dir": "imgs", key: value}))
        assert str(caught.value).startswith(f"{key}: not a valid value, got {value!r}. Expected {rule}")
        assert (caught.value.exit_code, len(str(caught.value).splitlines())) == (2, 1)


RAY, KERAS = {"engine__name": "ray"}, {"network__name": "keras", "network__model": "ResNet50"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__dir": None}, "data.dir: no images are named, got None. Expected data.dir=FOLDER, "),
        (
            {"data__size": None, "data__decode": "fast"},
            "data.decode: nothing is reduced at native size, got 'fast'. Expected exact",
        ),
        ({"data__list": "a", "data__tar": "b.tar"}, "data.tar: the images are named twice, got "),
        ({"data__tar": "b.tar"}, "data.dir: of no use beside data.tar, got '"),
        ({"data__dir": None, "data__tar": "s3://b/x.tar"}, "data.tar: not a valid value, got 's3://b/x.tar'"),
        (
            {"data__dir": "memory://b", "data__tfds": "c"},
            "data.dir: read from this machine only, got 'memory://b'. Expected a path",
        ),
        ({"data__split": "test"}, "data.split: only a set has splits, got 'test'. Expected data.tfds=NAME too"),
        ({"runtime__device": "cpu", "runtime__precision": "tf32"}, "runtime.precision: a CPU computes in float32, got 'tf32'"),
        (
            {"runtime__backend": "winograd", "runtime__device": "gpu"},
            "runtime.backend: this one computes on a CPU, got 'winograd'",
        ),
        ({"part": "3/8", **RAY}, "part: engine=ray divides the run itself, got '3/8'"),
        ({"part": "3/8", "output__existing": "fail"}, "output.existing: others than part=3/8 may write here, got 'fail'."),
        ({"output__dir": "memory://outputs", **RAY}, "output.dir: workers of engine=ray write files, got 'memory://outputs'"),
        ({"engine__workers": 2}, "engine.name: workers are those of a cluster, got 'local'. Expected engine=ray too."),
        ({**KERAS, "network__model": None}, "network.model: no model is named, got None. Expected a name or a .keras file"),
        ({**KERAS, "network__pooling": "avg"}, "network.pooling: of networks of VGG alone, got 'avg'."),
        (
            {**KERAS, "network__weights": "matconvnet"},
            "network.weights: none such are known, got 'matconvnet'. Expected imagenet, ",
        ),
        ({**KERAS, "runtime__backend": "winograd"}, "runtime.backend: of VGG networks alone, got 'winograd'. Expected auto or "),
        ({**KERAS, "runtime__precision": "bfloat16"}, "runtime.precision: of VGG networks alone, got 'bfloat16'."),
        ({"network__model": "ResNet50"}, "network.model: of networks of keras alone, got 'ResNet50'."),
        (
            {"runtime__convolution": 3},
            "runtime.convolution: there is no such option, got 'runtime.convolution'. Expected one of: runtime.backend, ",
        ),
        ({"data__sise": 3}, "data.sise: there is no such option, got 'data.sise'. Expected one of: data.size"),
        (
            {"reduction__gem__q": 3},
            "reduction.gem.q: there is no such option, got 'reduction.gem.q'. Expected one of: reduction.gem.p",
        ),
    ],
)
def test_options_that_exclude_each_other_have_a_message(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_options(values(**changes))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_a_backend_that_needs_a_cpu_chooses_it() -> None:
    for backend, device, expected in [("auto", "auto", "auto"), ("tensorflow", "gpu", "gpu"), ("winograd", "auto", "cpu")]:
        options = check_options(values(runtime__backend=backend, runtime__device=device))
        assert (options.runtime.backend, options.runtime.device) == (backend, expected)


@pytest.mark.parametrize(
    ("images", "name"),
    [
        ({"data.list": "a/birds.csv"}, "birds"),
        ({"data.dir": "work/."}, "work"),
        ({"data.dir": 2024}, "2024"),
        ({"data.tar": "x/train.tar"}, "train"),
        ({"data.tar": "x/train.v2.TAR"}, "train.v2"),
        ({"data.tar": "shards/*.tar"}, "shards"),
        ({"data.tar": "shards"}, "shards"),
        ({"data.tar": ["a/b/x.tar", "a/c/y.tar"]}, "a"),
        ({"data.tfds": "mnist/x:1.0.0", "data.split": "test"}, "mnist-test"),
        ({"data.tfds": "mnist", "data.dir": "sets"}, "mnist"),
        ({"data.dir": "x", "name": "mine"}, "mine"),
    ],
)
def test_the_name_of_a_run_comes_from_its_images(images: dict[str, Any], name: str) -> None:
    assert check_options(nested(images)).folder == Path("outputs", name if "name" in images else f"{name}-vgg19")
